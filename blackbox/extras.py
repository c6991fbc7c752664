"""Optional packages: imported where they are needed, and missed with the command that installs them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from blackbox.errors import BlackBoxError

PACKAGE = "blackbox-coupling"


class MissingExtraError(BlackBoxError, ImportError):
    """An optional package is asked for and not installed."""


def import_extra(owner: str, module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        owner: who needs it, for the message.
        module: the module to import, such as "onnxruntime".
        extra: the extra of this project that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.partition(".")[0] != error.name.partition(".")[0]:
            raise  # installed, and itself in want of something: its own message says of what
        raise MissingExtraError(
            f"{owner}: expected the package {error.name!r}, which is optional, and found it not installed. "
            f"{install(extra)}"
        ) from None


def install(extra: str) -> str:
    """The sentence that tells how to install an extra."""
    return f"Install it with: pip install '{PACKAGE}[{extra}]'"
