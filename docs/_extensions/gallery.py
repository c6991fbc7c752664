"""The gallery: a card for each folder of `examples` and each task that ships, and a page for each example."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _extensions.links import DOCS, ROOT, relinked

EXAMPLES = ROOT / "examples"
_STRIPS = ("picture.png", "wake.png", "shapes.png")  # panels, of which a card shows the first, large
# The tasks that ship: title, page, picture (from `docs`), rows and time.
TASKS = (
    (
        "Correcting a coarse flow solver",
        "/applications/wake_flow.md",
        "images/wake.png",
        "PhiFlow's wake of a cylinder; a network corrects the solver as it runs.",
        "960 rows, the demo a few minutes",
    ),
    (
        "A classifier behind an API, certified",
        "/applications/denoised_smoothing.md",
        "../benchmarks/results/table_defense-small-b-logits.png",
        "A denoiser is trained in front of a classifier that only answers queries.",
        "5,000 to 20,000 queries",
    ),
    (
        "A ResNet from values of its loss",
        "/applications/image_classification.md",
        "images/shapes.png",
        "DeepZero's Algorithm 1, beside eight other ways to a gradient.",
        "no black box but the loss",
    ),
)


@dataclass(frozen=True)
class Example:
    """A folder of `examples`.

    Attributes:
        name: Of the folder.
        text: Of its README.
        cost: Rows and time as the list of examples has them; empty where it says nothing.
    """

    name: str
    text: str
    cost: str

    @property
    def title(self) -> str:
        """Its heading."""
        return self.text.partition("\n")[0].removeprefix("# ").strip()

    @property
    def about(self) -> str:
        """The first sentences of its first paragraph, as a card has room for."""
        paragraph = self.text.split("\n\n")[1].replace("\n", " ")
        paragraph = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", paragraph)
        about = ""
        for sentence in re.split(r"(?<=[.:;]) ", paragraph):
            if about and len(about) + len(sentence) > 160:
                break
            about = f"{about} {sentence}".strip()
        return about.rstrip(":;")

    @property
    def picture(self) -> Path | None:
        """Its picture; None where there is none."""
        path = EXAMPLES / self.name / "picture.png"
        return path if path.exists() else None


def examples() -> list[Example]:
    """All of them, by name."""
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    found = []
    for path in sorted(EXAMPLES.glob("*/README.md")):
        name = path.parent.name
        row = re.search(rf"^\|.*\]\({re.escape(name)}/README\.md\).*\|([^|]+)\|\s*$", listed, re.MULTILINE)
        cost = row[1].strip() if row else ""
        found.append(Example(name, path.read_text(encoding="utf-8"), cost))
    return found


def places() -> dict[str, str]:
    """The README of each example, and its page."""
    return {f"examples/{each.name}/README.md": f"/gallery/{each.name}.md" for each in examples()}


def pages() -> Iterator[tuple[str, str]]:
    """Places in `docs`, and texts."""
    found = examples()
    cards = [
        _card(each.title, f"/gallery/{each.name}.md", _near(each.picture), each.about, each.cost)
        for each in found
    ]
    cards += [
        _card(title, page, _near((DOCS / picture).resolve()), about, cost)
        for title, page, picture, about, cost in TASKS
    ]
    yield (
        "gallery/index.md",
        "\n\n".join(
            [
                "# Gallery",
                "Each card is a program that people use as it is installed, or a task that ships; each "
                "page has the figures of a run and what they do not show. Rows are evaluations of the black "
                "box in training by the method that the page recommends; times are of two shared cores.",
                "::::{grid} 1 1 2 2\n:gutter: 3\n\n" + "\n\n".join(cards) + "\n\n::::",
                "```{toctree}\n:hidden:\n\n" + "\n".join(each.name for each in found) + "\n```",
            ]
        )
        + "\n",
    )
    for each in found:
        yield f"gallery/{each.name}.md", _page(each)


def _page(example: Example) -> str:
    page = DOCS / "gallery" / f"{example.name}.md"
    folder = EXAMPLES / example.name
    known = places()
    parts = [relinked(example.text.rstrip(), folder, page, known)]
    sources = sorted(path for path in folder.rglob("*") if path.suffix in {".py", ".f", ".cir", ".in", ".c"})
    for path in sources:
        place = os.path.relpath(path, page.parent)
        language = {".py": "python", ".f": "fortranfixed", ".c": "c"}.get(path.suffix, "text")
        parts.append(f"## {path.relative_to(folder).as_posix()}")
        parts.append(f"```{{literalinclude}} {place}\n:language: {language}\n```")
    return "\n\n".join(parts) + "\n"


def _near(path: Path | None) -> str:
    return "" if path is None else os.path.relpath(path, DOCS / "gallery")


def _card(title: str, page: str, picture: str, about: str, cost: str) -> str:
    lines = [f":::{{grid-item-card}} {title}", f":link: {page.removesuffix('.md')}", ":link-type: doc"]
    if picture:
        lines += [
            f":img-top: {picture}",
            *([":class-img-top: strip"] if picture.endswith(_STRIPS) else []),
        ]
    lines += ["", about]
    if cost:
        lines += ["", "```{card-footer}", cost, "```"]
    return "\n".join([*lines, ":::"])
