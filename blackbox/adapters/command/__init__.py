"""A program that reads and writes files, as a black box."""

from blackbox.adapters.command.command_line import CommandLine

__all__ = ["CommandLine"]
