"""Did you mean: the known name that is nearest to one that is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], what: str = "The names are") -> str:
    """The sentence that ends a message about an unknown name.

    Args:
        name: what came.
        names: those that are known, in the order in which they are listed.
        what: how the sentence begins that lists them all, where none is near.
    """
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"{what} {', '.join(known) or 'none'}."
