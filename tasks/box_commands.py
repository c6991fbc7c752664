"""`blackbox check`, `serve` and `tesseract`: a black box by its name, examined or handed to others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tasks import names
from tasks.commands import CheckCommand, ServeCommand, TesseractCommand

if TYPE_CHECKING:
    from blackbox import BlackBoxFunction

TOKEN = "BLACKBOX_TOKEN"  # the environment variable


def check(command: CheckCommand) -> int:
    """Print what was found; the exit status is 1 where a fault was."""
    from blackbox import conformance

    box = _box(command)
    out = None if command.out is None else str(command.out)
    return conformance.command(
        box, command.samples, out, rows=command.rows, processes=command.processes, seed=command.seed
    )


def serve(command: ServeCommand) -> int:
    """Serve until told to stop."""
    from blackbox.adapters import um_bridge

    box = _box(command)
    um_bridge.serve(
        box if command.name is None else {command.name: box},
        host=command.host,
        port=command.port,
        token=command.token or os.environ.get(TOKEN) or None,
        threads=command.threads,
        timeout=command.timeout,
    )
    return 0


def tesseract(command: TesseractCommand) -> str:
    """Write a Tesseract, and say what to do with it."""
    from blackbox.registry_arguments import parse
    from tasks import tesseract

    return tesseract.write(
        _box(command),
        command.target,
        parse(command.arguments),
        command.folder,
        tangent=command.derivative == "tangent",
        vectorized=command.vectorized,
        mu=command.mu,
    )


def _box(command: CheckCommand | ServeCommand | TesseractCommand) -> BlackBoxFunction:
    """The black box that a command names."""
    from blackbox.registry import make
    from blackbox.registry_arguments import parse

    names.check_single(command.target)
    return make(command.target, parse(command.arguments), names.functions())
