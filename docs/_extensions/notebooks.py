"""Pages with code as notebooks to download: blocks without outputs, and text as Jupyter shows Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from _extensions.links import DOCS

PLACE = DOCS / "_build" / "notebooks"
_FENCE = r"^```%s[^\n]*\n(?P<options>(?::[^\n]*\n)*)(?P<code>.*?)^```$"
_BLOCK = re.compile(_FENCE % r"\{code-cell\}", re.DOTALL | re.MULTILINE)
_SHOWN = re.compile(_FENCE % "python", re.DOTALL | re.MULTILINE)
NOT_RUN = ("jax.md",)  # pages whose blocks need a library that the pages are built without
_ROLE = re.compile(r"\{[a-z:]+\}`~?(?:([^`<]+?) <[^`>]+>|([^`]+))`")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z+]+:)[^)]*\)")


def lessons() -> list[Path]:
    """Pages that have a notebook: tutorials and how-tos with blocks that are run, and `NOT_RUN`."""
    pages = [path for folder in ("tutorials", "howto") for path in (DOCS / folder).glob("*.md")]
    return sorted(path for path in pages if block_of(path).search(path.read_text(encoding="utf-8")))


def block_of(page: Path) -> re.Pattern[str]:
    """What a block of code is on a page."""
    return _SHOWN if page.name in NOT_RUN else _BLOCK


def write() -> None:
    """Write the notebooks into `_build`."""
    PLACE.mkdir(parents=True, exist_ok=True)
    for page in lessons():
        made = notebook(page.read_text(encoding="utf-8"), block_of(page))
        nbformat.write(made, PLACE / f"{page.stem}.ipynb")


def offered(page: Path, text: str) -> str:
    """The text of a page that has a notebook, with a link to it below the title; any other text as it is."""
    if page not in lessons():
        return text
    link = f"{{download}}`Download this page as a notebook </_build/notebooks/{page.stem}.ipynb>`"
    return re.sub(r"^(# .*\n)", lambda title: f"{title[0]}\n{link}\n", text, count=1, flags=re.MULTILINE)


def notebook(text: str, block: re.Pattern[str] = _BLOCK) -> nbformat.NotebookNode:
    """A MyST page as a notebook, its blocks of code as a pattern finds them.

    Roles become code, and links to other pages, which a notebook does not have beside it, their words.
    """
    body = re.sub(r"\A---\n.*?^---\n", "", text, count=1, flags=re.DOTALL | re.MULTILINE)
    made = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    made.cells = [
        nbformat.v4.new_code_cell(part) if code else nbformat.v4.new_markdown_cell(_plain(part))
        for code, part in _parts(body, block)
    ]
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"  # not drawn: the same page is the same file
    return made


def _parts(body: str, block: re.Pattern[str]) -> Iterator[tuple[bool, str]]:
    """Text and code by turns, empty ones left out: whether it is code, and what it is."""
    last = 0
    for found in block.finditer(body):
        yield from [(False, text)] if (text := body[last : found.start()].strip()) else []
        yield True, found["code"].strip()
        last = found.end()
    yield from [(False, text)] if (text := body[last:].strip()) else []


def _plain(text: str) -> str:
    text = _ROLE.sub(lambda role: f"`{role[1] or role[2]}`", text)
    return _LINK.sub(r"\1", text)
