"""Pages made at each build from the repository: results, gallery, command line, project."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from paper import figures
from sphinx.application import Sphinx
from sphinx.util import logging

from _extensions import command_line, gallery, modules, notebooks, results
from _extensions.links import DOCS, PAGES, ROOT, relinked

FOLDERS = ("results", "gallery", "project")  # all that is in them is made here; git ignores them
FILES = ("reference/command_line.md",)
_log = logging.getLogger(__name__)


def write(app: Sphinx) -> None:
    """Write the pages that changed, and remove those that are no longer made."""
    made: set[Path] = set()
    for place, text in _pages():
        path = DOCS / place
        made.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")  # only then: Sphinx reads again what is newer
    for folder in FOLDERS:
        for path in (DOCS / folder).rglob("*"):
            if path.is_file() and path not in made:
                path.unlink()
    notebooks.write()
    figures.draw()
    _log.info("pages made from the repository: %d", len(made))


def known() -> dict[str, str]:
    """Texts of examples and results that have a page, and the page."""
    return gallery.places() | results.places()


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Mend links of a hand-written page that leave `docs`; Sphinx's event "source-read"."""
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".md" and path.relative_to(DOCS).parts[0] not in FOLDERS:
        content[0] = notebooks.offered(path, relinked(content[0], path.parent, path, known()))


def _pages() -> Iterator[tuple[str, str]]:
    for source, page in PAGES.items():
        if page.startswith("/project/"):
            text = (ROOT / source).read_text(encoding="utf-8")
            yield page[1:], relinked(text, ROOT, DOCS / page[1:], known())
    yield "project/index.md", _project()
    yield "project/modules.md", modules.page()
    yield from gallery.pages()
    yield from results.pages()
    yield FILES[0], command_line.page()


def _project() -> str:
    """The list of pages for who carries on, with the decisions where there are some."""
    decisions = sorted(
        path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.glob("decisions/*.md")
    )
    listed = [place for place in decisions if place.endswith(("index", "README"))] or decisions
    names = ["architecture", "modules", "contributing", "changelog", *(f"/{place}" for place in listed)]
    return "# Project\n\nFor who carries on.\n\n```{toctree}\n:maxdepth: 1\n\n" + "\n".join(names) + "\n```\n"


def clean() -> None:
    """Remove all that is made."""
    for folder in FOLDERS:
        shutil.rmtree(DOCS / folder, ignore_errors=True)
    for name in FILES:
        (DOCS / name).unlink(missing_ok=True)
