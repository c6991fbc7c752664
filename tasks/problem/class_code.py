"""A digest of a problem's class: its functions, and the values that these read beside the object.

A class of a notebook has no file whose checksum would show a change.
"""

from __future__ import annotations

from blackbox.errors import ConfigurationError
from blackbox.wrappers.identity import described
from blackbox.wrappers.sources import digest


def class_digest(kind: type) -> dict[str, str]:
    """The first digits of a SHA-256 by the name of a class, as a run's versions have those of files.

    In it are the files of its functions, or their text in a notebook, and all values that they name, as
    `blackbox.wrappers.identity` has them; what cannot be described counts by its kind. Nothing for a class
    that holds something nested too deep.
    """
    try:
        words = described(kind.__name__, kind, lambda value: type(value).__qualname__)
    except ConfigurationError:
        return {}
    return {f"class {kind.__name__}": digest(words)[:12]}
