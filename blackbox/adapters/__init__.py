"""Adapters: black boxes made of functions, modules, files, programs, servers, sessions."""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
