"""Figures, tables and numbers of the report, and the figure of the front page, from `benchmarks/results`.

    python docs/paper/figures.py          what each name stands for, a line each; draws the figures, and
                                          brings up to date what pages show on a code host: numbers, and
                                          the README's picture

Where the report's source has {{name}} the site's build puts `numbers()[name]`, or the table of that name.
Other pages have the number itself between comments, <!--=name-->1.02<!--/-->, so that they can be read
unbuilt too; the build puts today's there all the same. A name that is not there is an error, so no number of
the site can differ from the files. Figures go into `docs/paper/figures`, which git ignores. What decisions
measured by hand is read off the records.

`measured` reads the files, `summaries` sums up problems and seeds, `named_numbers`, `tables` and `drawings`
make what pages ask for by name, and this module puts it there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from paper.drawings import DRAWN  # noqa: E402
from paper.measured import RESULTS  # noqa: E402
from paper.named_numbers import numbers  # noqa: E402
from paper.tables import TABLES  # noqa: E402

FIGURES = HERE / "figures"
OF_README = ROOT / "docs" / "images" / "rows.png"
SAID_ON = ("index.md", "which.md", "howto/diagnose.md", "howto/spend_rows.md", "concepts/learned_tangents.md")
PAGES = {HERE / "index.md", *(ROOT / "docs" / name for name in SAID_ON)}
UNBUILT = "unbuilt"  # the name of a sentence that only a page has that was not built
SHOWN = r"<!--=([^{}]+?)-->.*?<!--/-->"  # a number that a page shows unbuilt too


def filled(text: str, where: str) -> str:
    """A text with numbers and tables in the place of names.

    Raises:
        KeyError: A name that is not known.
    """

    def value(match: re.Match[str]) -> str:
        name = (match[1] or match[2]).strip()
        if name == UNBUILT:
            return ""
        if name in TABLES:
            return TABLES[name]()
        if name not in numbers():
            raise KeyError(
                f"{where}: expected a name that `python docs/paper/figures.py` lists, got {{{{{name}}}}}."
            )
        return numbers()[name]

    return re.sub(rf"\{{\{{([^{{}}]+)\}}\}}|{SHOWN}", value, text)


def shown(text: str, where: str) -> str:
    """A text whose numbers between comments are today's; the comments stay, and what is for unbuilt pages."""

    def value(match: re.Match[str]) -> str:
        return match[0] if match[1] == UNBUILT else f"<!--={match[1]}-->{filled(match[0], where)}<!--/-->"

    return re.sub(SHOWN, value, text)


def sources() -> list[Path]:
    """What a number or a figure can come from."""
    decisions = ROOT / "docs" / "decisions"
    read_off = [*decisions.glob("*.md"), *(ROOT / "examples").glob("*/*.json")]
    return [*HERE.glob("*.py"), *RESULTS.rglob("*.json"), *read_off]


def draw(kind: str = "svg") -> None:
    """Write figures that are older than the results or this file; those of the front page are transparent."""
    FIGURES.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in sources())
    for name, make in DRAWN.items():
        path = FIGURES / f"{name}.{kind}"
        if not path.exists() or path.stat().st_mtime < newest:
            with matplotlib.rc_context({"svg.hashsalt": name}):
                clear = "-" in name
                data = {"metadata": {"Date": None}} if kind == "svg" else {}
                make().savefig(path, format=kind, dpi=130, transparent=clear, **data)


if __name__ == "__main__":
    draw()
    DRAWN["rows"]().savefig(OF_README, dpi=130, metadata={"Software": None})
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if (now := shown(before, page.name)) != before:
            page.write_text(now, encoding="utf-8")
    for key, said in numbers().items():
        print(f"{{{{{key}}}}}: {said}")
