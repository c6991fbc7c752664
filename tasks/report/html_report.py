"""One self-contained HTML page: text, tables and figures in a file that opens anywhere, offline."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import jinja2
import numpy as np
from pydantic import Field

from tasks.errors import ConfigurationError
from tasks.runs import atomic

if TYPE_CHECKING:
    import pandas

MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str
    kind: Literal["Heading"] = "Heading"


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str
    kind: Literal["Paragraph"] = "Paragraph"


@dataclass(frozen=True)
class Table:
    """Rows under headers; numbers stand right, text left. Cells are shown as `str` gives them.

    Raises:
        ConfigurationError: A row has more or fewer cells than there are headers.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    emphasised: Sequence[int] = ()
    """Rows that stand out, by index."""
    prose: bool = False
    """Whether cells hold sentences: they break into lines, and on a phone each row becomes a short list."""
    kind: Literal["Table"] = "Table"

    def __post_init__(self) -> None:
        """Check the lengths of rows."""
        for index, row in enumerate(self.rows):
            if len(row) != len(self.headers):
                raise ConfigurationError(
                    f"table {self.caption!r}, row {index}: expected {len(self.headers)} cells, got "
                    f"{len(row)}. Give one for each header."
                )

    @classmethod
    def of(cls, frame: pandas.DataFrame, **options: Any) -> Self:  # noqa: ANN401
        """The table of a pandas frame, its index left out unless it has a name; what is missing is "-".

        Args:
            frame: Cells may be text, numbers, None or NaN; numbers have four digits.
            **options: `caption`, `emphasised`, `prose`.
        """
        named = frame.reset_index() if frame.index.name is not None else frame
        rows = [[_cell(value) for value in row] for row in named.itertuples(index=False, name=None)]
        return cls([str(name) for name in named.columns], rows, **options)

    @property
    def right(self) -> list[bool]:
        """Which columns hold numbers."""
        columns = list(zip(*self.rows, strict=True)) or [() for _ in self.headers]
        return [bool(column) and all(map(_is_number, column)) for column in columns]


@dataclass(frozen=True)
class Figure:
    """A PNG, WebP or GIF file, taken into the page."""

    path: Path
    alt: str
    """What the picture shows, for those who cannot see it."""
    caption: str = ""
    wide: bool = True
    """Whether its text is too small for the width of a phone."""
    kind: Literal["Figure"] = "Figure"

    @property
    def data(self) -> str:
        """The file as a `data:` address."""
        kind = MEDIA_TYPES.get(self.path.suffix.lower())
        if kind is None:
            raise ConfigurationError(
                f"figure {self.path}: expected {', '.join(MEDIA_TYPES)}, got another. Convert it."
            )
        return f"data:{kind};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Details:
    """Names and values that are folded away until asked for: a configuration, a machine."""

    title: str
    values: Mapping[str, Any]
    open: bool = False
    kind: Literal["Details"] = "Details"

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Nested values as lines: ("network.channels", "32")."""
        return _flat(self.values)


Block = Annotated[Heading | Paragraph | Table | Figure | Details, Field(discriminator="kind")]


@dataclass(frozen=True)
class Page:
    """A title, the sentences that say what came out, and blocks in the order of reading."""

    title: str
    lead: Sequence[str]
    blocks: Sequence[Block] = field(default_factory=tuple)
    footer: str = ""


def write(path: Path, page: Page) -> Path:
    """Write `page` to `path` atomically; returns `path`.

    Raises:
        ConfigurationError: A figure is of a format that browsers do not show.
        FileNotFoundError: A figure is not there.
    """
    atomic.write_bytes(path, render(page).encode())
    return path


def render(page: Page) -> str:
    """The whole page as text; everything that came from outside is escaped."""
    return _templates().get_template("report.html").render(page=page)


def portable(block: Block, folder: Path) -> Block:
    """A block of plain values, whose picture is named relative to a folder that may be moved.

    Raises:
        ConfigurationError: The picture is elsewhere.
    """
    if isinstance(block, Table):
        rows = [[str(cell) for cell in row] for row in block.rows]
        return replace(block, headers=[str(name) for name in block.headers], rows=rows)
    if isinstance(block, Details):
        return replace(block, values=dict(block.lines))
    return anchored(block, folder, relative=True)


def anchored(block: Block, folder: Path, *, relative: bool = False) -> Block:
    """A portable block in its folder.

    Raises:
        ConfigurationError: Its picture is elsewhere: the folder may be from elsewhere, and the page is
            passed on, so no other file gets into it.
    """
    if not isinstance(block, Figure):
        return block
    root = folder.resolve()
    path = (block.path if relative else root / block.path).resolve()
    if root not in path.parents:
        raise ConfigurationError(
            f"figure {block.path}: expected a file in the run's folder {folder}. Save it there: "
            "found.run.path."
        )
    return replace(block, path=path.relative_to(root) if relative else path)


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            lines.append((prefix + str(name), ", ".join(map(str, value))))
        else:
            lines.append((prefix + str(name), str(value)))
    return lines


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


def _is_number(cell: object) -> bool:
    """Whether a cell reads as a figure, or as none: "1,234", "0.02 ± 0.01", "3 min 20 s", "-"."""
    text = str(cell).strip()
    return text in ("", "-", "–", "not finite") or text.lstrip("+-−<~≈ ")[:1].isdigit()  # noqa: RUF001
