"""The one way of text to the terminal, on which no text of a folder, a box or an error may act.

`plain` is for pages and tables, too: they are shown in terminals, and names in them are read.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import pandas

# control characters but tabs and ends of lines; marks that turn the direction of what follows; what has no
# width, by which two names look the same (but joiners, without which some scripts cannot be written); and
# halves of pairs, which names of files may hold and no terminal shows
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    r"""A text in which what a terminal would act upon is written out: `\x1b` for an escape."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def short(text: str, most: int = 300) -> str:
    """A text whose longest words, such as a name of thousands of characters, keep their two ends alone."""
    return re.sub(rf"\S{{{most + 1},}}", lambda match: f"{match[0][: most // 2]}...{match[0][-60:]}", text)


def open_what_is_closed() -> None:
    """Give this process the standard streams that it was started without (`>&-`), to and from nowhere.

    The next file that is opened would get their number, and what a program prints would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) != number:  # the lowest that is free
                continue
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))


def say(text: object, stream: TextIO | None = None) -> None:
    """Print a text and an end of line, to standard output if no other stream is given."""
    print(plain(str(text)), file=stream or sys.stdout, flush=True)


def print_table(lines: pandas.DataFrame) -> None:
    """Print a table: the first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for place, name in enumerate(lines.columns):
        table.add_column(plain(str(name)), justify="right" if place else "left", overflow="fold")
    for line in lines.to_numpy().tolist():
        table.add_row(*(plain(str(cell)) for cell in line))
    Console().print(table, markup=False, highlight=False)
