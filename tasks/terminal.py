"""The one way of text to the terminal, on which no text of a folder, a box or an error may act."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# control characters but tabs and ends of lines; marks that turn the direction of what follows; and halves of
# pairs, which names of files may hold and no terminal shows
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    r"""A text in which what a terminal would act upon is written out: `\x1b` for an escape."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(text: object, stream: TextIO | None = None) -> None:
    """Print a text and an end of line, to standard output if no other stream is given."""
    print(plain(str(text)), file=stream or sys.stdout, flush=True)
