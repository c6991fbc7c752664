"""One self-contained HTML page: text, tables and figures in a file that opens anywhere, offline."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import ConfigurationError
from tasks.report.html_style import STYLE
from tasks.runs import atomic

MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under headers; numbers stand right, text left. Cells are shown as `str` gives them."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    emphasised: Sequence[int] = ()
    """Rows that stand out, by index."""
    prose: bool = False
    """Whether cells hold sentences: they break into lines, and on a phone each row becomes a short list."""


@dataclass(frozen=True)
class Figure:
    """A PNG, WebP or GIF file, taken into the page."""

    path: Path
    alt: str
    """What the picture shows, for those who cannot see it."""
    caption: str = ""
    wide: bool = True
    """Whether its text is too small for the width of a phone."""


@dataclass(frozen=True)
class Facts:
    """A few figures that a reader should take away: value -> what it is."""

    values: Sequence[tuple[str, str]]
    """(value, what it is): ("0.021 m/s", "mean absolute error of ZO-SOL")."""


@dataclass(frozen=True)
class Details:
    """Names and values that are folded away until asked for: a configuration, a machine."""

    title: str
    values: Mapping[str, Any]
    open: bool = False


Block = Heading | Paragraph | Table | Figure | Facts | Details


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
        ConfigurationError: a table's row has more or fewer cells than headers, or a figure is of a format
            that browsers do not show.
        FileNotFoundError: a figure is not there.
    """
    atomic.write_bytes(path, render(page).encode())
    return path


def render(page: Page) -> str:
    """The whole page as text; everything that came from outside is escaped."""
    lead = "\n".join(f'<p class="lead">{_text(sentence)}</p>' for sentence in page.lead)
    blocks = "\n".join(_block(block) for block in page.blocks)
    footer = f"<footer>{_text(page.footer)}</footer>\n" if page.footer else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # belt and braces: no browser fetches anything for this page, the icon included
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f'<link rel="icon" href="data:,">\n<title>{_text(page.title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_text(page.title)}</h1>\n{lead}\n{blocks}\n{footer}</main>\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_text(text)}</h2>"
        case Paragraph(text):
            return f"<p>{_text(text)}</p>"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)
        case Facts(values):
            items = "".join(
                f"<div><dd>{_text(value)}</dd><dt>{_text(what)}</dt></div>" for value, what in values
            )
            return f'<dl class="facts">{items}</dl>'
        case Details(title, values, opened):
            rows = "".join(f"<dt>{_text(n)}</dt><dd>{_text(v)}</dd>" for n, v in _flat(values))
            state = " open" if opened else ""
            return f"<details{state}><summary>{_text(title)}</summary><dl>{rows}</dl></details>"


def _table(table: Table) -> str:
    for index, row in enumerate(table.rows):
        if len(row) != len(table.headers):
            raise ConfigurationError(
                f"table {table.caption!r}, row {index}: expected {len(table.headers)} cells, got {len(row)}. "
                "Give one for each header."
            )
    columns = list(zip(*table.rows, strict=True)) or [() for _ in table.headers]
    right = [bool(column) and all(_is_number(cell) for cell in column) for column in columns]
    kinds = [' class="number"' if number else "" for number in right]
    head = "".join(f'<th scope="col"{k}>{_text(h)}</th>' for k, h in zip(kinds, table.headers, strict=True))
    body = []
    for index, row in enumerate(table.rows):
        heads = [f' data-head="{_text(header)}"' if table.prose else "" for header in table.headers]
        cells = "".join(f"<td{k}{h}>{_text(c)}</td>" for k, h, c in zip(kinds, heads, row, strict=True))
        mark = ' class="emphasised"' if index in table.emphasised else ""
        body.append(f"<tr{mark}>{cells}</tr>")
    caption = f"<figcaption>{_text(table.caption)}</figcaption>" if table.caption else ""
    style = ' class="prose"' if table.prose else ""
    # the wrapper scrolls, not the page, where the table is wider than the screen; tabindex: by keyboard too
    return (
        f'<figure><div class="scroll" tabindex="0"><table{style}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{caption}</figure>"
    )


def _figure(figure: Figure) -> str:
    kind = MEDIA_TYPES.get(figure.path.suffix.lower())
    if kind is None:
        raise ConfigurationError(
            f"figure {figure.path}: expected {', '.join(MEDIA_TYPES)}, got another. Convert it."
        )
    data = base64.b64encode(figure.path.read_bytes()).decode()
    caption = f"<figcaption>{_text(figure.caption)}</figcaption>" if figure.caption else ""
    image = f'<img src="data:{kind};base64,{data}" alt="{_text(figure.alt)}">'
    # on a phone a picture keeps a width at which its text can be read, and scrolls in its card
    scroll = f'<div class="scroll" tabindex="0">{image}</div>' if figure.wide else image
    return f'<figure><div class="card">{scroll}</div>{caption}</figure>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines: ("network.channels", "32")."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            lines.append((prefix + name, ", ".join(map(str, value))))
        else:
            lines.append((prefix + name, str(value)))
    return lines


def _is_number(cell: object) -> bool:
    """Whether a cell reads as a figure: "1,234", "0.02 ± 0.01", "-", "85 %", "3 min 20 s"."""
    text = str(cell).strip()
    return text in ("", "-", "–") or text.lstrip("+-−<~≈ ")[:1].isdigit()  # noqa: RUF001


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
