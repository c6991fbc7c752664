"""One self-contained HTML page: text, tables and figures in a file that opens anywhere, offline.

A block is a piece of HTML, `markupsafe.Markup`; its contents are escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

from blackbox.terminal import plain
from tasks.errors import ConfigurationError
from tasks.folder import atomic

if TYPE_CHECKING:
    import pandas

Block = Markup

MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}
DENSE = 7  # columns from which on a table is set smaller
INCH = 101  # of a picture on the page: one of 8 inches fills the column


def Heading(text: str) -> Block:
    """The title of a section."""
    return Markup("<h2>{}</h2>").format(text)


def Paragraph(text: str) -> Block:
    """Running text."""
    return Markup("<p>{}</p>").format(text)


def Table(
    headers: Sequence[str] | pandas.DataFrame,
    rows: Sequence[Sequence[object]] | None = None,
    caption: str = "",
    emphasised: Sequence[int] = (),
    prose: bool = False,
) -> Block:
    """Rows under headers: the first column stands left, the others right; what is missing is "-".

    Args:
        headers: Names of the columns; or a pandas frame that has the rows, too, its index left out.
        rows: Cells are text, numbers, None or NaN; numbers have four digits.
        caption: Below the table.
        emphasised: Rows that stand out, by index.
        prose: Whether cells hold sentences: they break into lines, and on a phone each row becomes a short
            list.

    Raises:
        ConfigurationError: A row has more or fewer cells than there are headers.
    """
    if rows is None:
        rows = list(headers.itertuples(index=False, name=None))  # type: ignore[union-attr]
        headers = [str(name) for name in headers.columns]  # type: ignore[union-attr]
    for index, row in enumerate(rows):
        if len(row) != len(headers):
            raise ConfigurationError(
                f"table {caption!r}, row {index}: expected {len(headers)} cells, got {len(row)}. Give one "
                "for each header."
            )
    cells = [[(name, _cell(value)) for name, value in zip(headers, row, strict=True)] for row in rows]
    kind = "prose" if prose else "dense" if len(headers) >= DENSE else ""
    return _block("table", headers=headers, rows=cells, caption=caption, emphasised=emphasised, kind=kind)


def Figure(path: Path, alt: str, caption: str = "", wide: bool = True) -> Block:
    """A PNG, WebP or GIF file, taken into the page.

    Args:
        path: The path of the file.
        alt: A description of the picture, for those who cannot see it.
        caption: The text below the picture.
        wide: Whether its text is too small for the width of a phone.

    Raises:
        ConfigurationError: The file has a format that browsers do not show.
        FileNotFoundError: The file is not there.
    """
    kind = MEDIA_TYPES.get(path.suffix.lower())
    if kind is None:
        raise ConfigurationError(
            f"figure {path}: expected {', '.join(MEDIA_TYPES)}, got another. Convert it."
        )
    content = path.read_bytes()
    data = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return _block("figure", data=data, alt=alt, caption=caption, wide=wide, width=_width(content))


def _width(content: bytes) -> int | None:
    """The pixels of a page that a picture takes at most, so that the text of all pictures has one size.

    One that says its dots per inch takes what its inches ask for, another its own; None if it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(content)) as picture:
            dots = float(picture.info.get("dpi", (0,))[0])
            return round(picture.width * INCH / dots) if dots >= INCH else picture.width
    except OSError:
        return None


def Details(title: str, values: Mapping[str, Any], open: bool = False) -> Block:
    """Names and values that are folded away until asked for: a configuration, a machine."""
    return _block("details", title=title, lines=flat(values), open=open)


def write(path: Path, title: str, lead: Sequence[str], blocks: Sequence[Block], footer: str = "") -> Path:
    """Write a page to `path` atomically, and return `path`; the other arguments are those of `render`."""
    atomic.write_bytes(path, render(title, lead, blocks, footer).encode())
    return path


def render(title: str, lead: Sequence[str], blocks: Sequence[Block], footer: str = "") -> str:
    """A whole page as text: a title, sentences on the outcome, and blocks in the order of reading.

    No name in it acts on a terminal that shows the page's text, or turns the direction of the text.
    """
    page = _templates().get_template("report.html")
    return plain(page.render(title=title, lead=lead, blocks=blocks, footer=footer))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as lines: {"network.channels": "32"}."""
    lines: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines |= flat(value, f"{prefix}{name}.")
        else:
            lines[f"{prefix}{name}"] = in_words(value)
    return lines


def in_words(value: object) -> str:
    """A setting as it is shown: "1, 2" for a list."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def _block(name: str, **values: object) -> Block:
    return getattr(_templates().get_template("blocks.html").module, name)(**values)


def _cell(value: object) -> str:
    """A value of a frame as it is shown: 12,345 for whole numbers, four digits of others."""
    if value is None or isinstance(value, bool | np.bool_ | str):
        return "-" if value is None else str(value)
    if isinstance(value, int | float | np.number):
        number = float(value)
        if math.isnan(number):
            return "-"
        return f"{number:,.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:,.4g}"
    return str(value)
