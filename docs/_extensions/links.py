"""Where things are: the repository, its code as a checksum, and links from a text to pages of the site."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Texts outside `docs` that have a page of their own.
PAGES = {
    "README.md": "/index.md",
    "ARCHITECTURE.md": "/project/architecture.md",
    "CONTRIBUTING.md": "/project/contributing.md",
    "CHANGELOG.md": "/project/changelog.md",
    "benchmarks/results/README.md": "/results/published.md",
    "benchmarks/results/tangents/table.md": "/results/tangents.md",
    "examples/README.md": "/gallery/index.md",
}
_NOT_CODE = r"\{(?!code|eval-rst|literalinclude|math)"  # a directive of text, in which links are mended too
_TOKEN = re.compile(
    rf"(?P<directive>^ *(?P<mark>`{{3,}}|~{{3,}}){_NOT_CODE}.*?^ *(?P=mark) *$)"
    rf"|(?P<code>^ *(?P<fence>`{{3,}}|~{{3,}})(?!{_NOT_CODE}).*?^ *(?P=fence) *$|`[^`\n]+`)"
    r"|(?P<start>!?\[[^\]\[]*\]\()(?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL | re.MULTILINE,
)


def code() -> str:
    """A checksum of all that a page's blocks may import, so that what is kept of a build is of this code."""
    digest = hashlib.sha256()
    for package in ("blackbox", "zo", "simulators", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def relinked(text: str, folder: Path, page: Path, known: dict[str, str] | None = None) -> str:
    """The text, written for a file in `folder`, with links that hold from the file `page` of the site.

    Links to texts that have a page lead there; links to other files of the repository are downloads; a folder
    or a file without a page that cannot be offered becomes its name. Code is left as it is.

    Args:
        text: Markdown.
        folder: Where its relative links start from.
        page: The file in `docs` that it is put into, or that it is.
        known: Further texts that have a page: from the repository's root, to the page.

    Raises:
        FileNotFoundError: A link leads to a file that is not there.
    """
    pages = PAGES | (known or {})

    def replaced(found: re.Match[str]) -> str:
        if found["directive"]:
            first, rest = found[0].split("\n", 1)
            inner, _, last = rest.rpartition("\n")
            return "\n".join([first, *[_TOKEN.sub(replaced, inner)] * bool(inner), last])
        start, target, anchor = found["start"], found["target"], found["anchor"] or ""
        if found["code"] or not target or re.match(r"[a-z+]+:", target) or target.startswith("/"):
            return found[0]
        path = Path(os.path.normpath(folder / target))
        place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if place in pages:
            return f"{start}{pages[place]}{anchor})"
        if path.is_relative_to(DOCS):
            if folder == page.parent:
                return found[0]  # Sphinx knows it, or says that it is missing
            path = path if path.exists() else _moved(path)
            return f"{start}/{path.relative_to(DOCS).as_posix()}{anchor})"
        if path.is_dir():
            return start[1:-2]
        if not path.exists():
            raise FileNotFoundError(f"{page.relative_to(ROOT)}: expected a file at {target}, linked in it.")
        return f"{start}{os.path.relpath(path, page.parent)})"

    return _TOKEN.sub(replaced, text)


def _moved(path: Path) -> Path:
    """A page that an older text, such as the changelog, names by its former place."""
    found = [each for each in DOCS.rglob(path.name) if "_build" not in each.parts]
    if len(found) != 1:
        raise FileNotFoundError(f"Expected a page at {path.relative_to(ROOT)}.")
    return found[0]
