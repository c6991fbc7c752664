"""Conformance: is a black box fit to be trained through, how noisy is it, and which mu does that ask for."""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
