"""Map and rooms of ARCHITECTURE.md, by imports and first lines: `python docs/architecture_map.py` makes them.

A room is a folder of the four packages. An arrow between rooms says that a module of the one imports from the
other; an arrow between packages, the same of the packages. Arrows that a longer way implies are not drawn,
nor what lies in a package beside its folders: its rooms use that, and some of it uses the rooms.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PAGE = ROOT / "ARCHITECTURE.md"
SHOWN = "zo/tangents"  # whose own folders are rooms of the page, too
LAYERS = ("tasks",), ("zo", "simulators"), ("blackbox",)
PACKAGES = tuple(package for layer in LAYERS for package in layer)
WIDTH, HEIGHT, GAP, DOWN = 150, 34, 24, 66  # of a room; between two; from one level to the next
APART, EDGE = 56, 30  # between packages; around all
STYLE = """<style>
  text { font: 14px sans-serif; fill: #24292f; text-anchor: middle }
  .name { font-weight: bold; text-anchor: start }
  .package { fill: #f3f5f8; stroke: #b9c1cc }
  .room { fill: #ffffff; stroke: #57606a }
  path { fill: none; stroke: #57606a; stroke-width: 1.2; marker-end: url(#end) }
  .between { stroke: #0b62ae; stroke-width: 3 }
</style>"""


def room(module: str) -> str:
    """The room of a module such as `zo.estimators.cge`: `zo/estimators`; of `zo.errors`: `zo`."""
    parts = module.split(".")
    return "/".join(parts[:2]) if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir() else parts[0]


def imported(path: Path) -> Iterator[str]:
    """The modules of the four packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


@cache
def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms, of which the first imports the second."""
    found: set[tuple[str, str]] = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
            found.update((own, target) for target in {room(name) for name in imported(path)} - {own})
    return found


def levels(rooms: list[str], found: set[tuple[str, str]]) -> dict[str, int]:
    """How many rooms of its package stand below each, on the longest way down."""
    height = dict.fromkeys(rooms, 0)
    for _ in rooms:  # a ring of imports would rise for ever; so it ends
        for own, there in sorted(found):
            if own in height and there in height:
                height[own] = max(height[own], min(height[there] + 1, len(rooms)))
    return height


def direct(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no longer way implies; there is no ring of them."""
    targets: dict[str, set[str]] = {}
    for own, there in found:
        targets.setdefault(own, set()).add(there)

    def below(own: str) -> set[str]:
        return targets.get(own, set()).union(*map(below, targets.get(own, ())))

    return {(own, there) for own, there in found if not any(there in below(other) for other in targets[own])}


def svg() -> str:
    """The map as a picture."""
    found = arrows()
    rooms = sorted({name for pair in found for name in pair if "/" in name})
    grids = {
        package: _grid([name for name in rooms if name.startswith(f"{package}/")], found)
        for package in PACKAGES
    }
    sizes = {package: _size(grid) for package, grid in grids.items()}
    wide = max(sum(sizes[package][0] + APART for package in layer) for layer in LAYERS)
    boxes: list[str] = []
    places: dict[str, tuple[float, float]] = {}  # the middle of each room's upper edge
    frames: dict[str, tuple[float, float, float, float]] = {}
    top = float(EDGE)
    for layer in LAYERS:
        left = EDGE + (wide - sum(sizes[package][0] + APART for package in layer)) / 2
        for package in layer:
            across, high = sizes[package]
            frames[package] = left, top, across, high
            boxes.append(f'<text class="name" x="{left + 16:g}" y="{top + 24:g}">{package}</text>')
            for down, row in enumerate(grids[package]):
                start = left + (across - len(row) * (WIDTH + GAP) + GAP) / 2
                for number, name in enumerate(row):
                    x, y = start + number * (WIDTH + GAP), top + 40 + down * DOWN
                    places[name] = x + WIDTH / 2, y
                    shape = f'x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5"'
                    boxes.append(f'<rect class="room" {shape}/>')
                    boxes.append(
                        f'<text x="{x + WIDTH / 2:g}" y="{y + 22:g}">{name.partition("/")[2]}</text>'
                    )
            left += across + APART
        top += max(sizes[package][1] for package in layer) + APART
    packages = [
        f'<rect class="package" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8"/>'
        for x, y, w, h in frames.values()
    ]
    inside = {(own, there) for own, there in found if own in places and there in places}
    lines = [
        _line(places[own][0], places[own][1] + HEIGHT, *places[there], "")
        for own, there in sorted(
            direct({pair for pair in inside if len({_package(name) for name in pair}) == 1})
        )
    ]
    between = {(_package(own), _package(there)) for own, there in found}
    for own, there in sorted(direct({pair for pair in between if pair[0] != pair[1]})):
        (x, y, w, h), (to, below, far, _) = frames[own], frames[there]
        narrow = min((x, w), (to, far), key=lambda frame: frame[1])
        middle = narrow[0] + narrow[1] / 2  # of the narrower one, if it is above or below the other
        start, end = (min(max(middle, side + 40), side + long - 40) for side, long in ((x, w), (to, far)))
        lines.append(_line(start, y + h, end, below, ' class="between"'))
    size = tuple(max(frame[axis] + frame[axis + 2] for frame in frames.values()) + EDGE for axis in (0, 1))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:g} {size[1]:g}" '
            f'width="{size[0]:g}">',
            STYLE,
            '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#57606a;'
            'stroke:none;marker-end:none"/></marker></defs>',
            f'<rect width="{size[0]:g}" height="{size[1]:g}" fill="#ffffff"/>',
            *packages,
            *lines,
            *boxes,
            "</svg>",
            "",
        ]
    )


def _package(name: str) -> str:
    return name.partition("/")[0]


def _grid(rooms: list[str], found: set[tuple[str, str]]) -> list[list[str]]:
    """Rooms of a package, level by level from the top."""
    height = levels(rooms, found)
    return [
        [name for name in rooms if height[name] == level] for level in range(max(height.values()), -1, -1)
    ]


def _size(grid: list[list[str]]) -> tuple[float, float]:
    """Width and height of a package."""
    return max(len(row) for row in grid) * (WIDTH + GAP) + GAP, 40 + (len(grid) - 1) * DOWN + HEIGHT + GAP


def _line(x: float, y: float, to: float, below: float, kind: str) -> str:
    """From one edge down to another, around rooms that stand straight between them."""
    bend, aside = (below - y) / 2, WIDTH if x == to and below - y > 2 * DOWN else 0
    ends = f"{x + aside:g} {y + bend:g} {to + aside:g} {below - bend:g} {to:g} {below:g}"
    return f'<path{kind} d="M{x:g} {y:g}C{ends}"/>'


def first_line(path: Path) -> str:
    """The first sentence of a module, as its docstring has it."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(said.partition("\n\n")[0].split())


def listing() -> str:
    """The folders of the packages, each with its first line."""
    places = [ROOT / package for package in PACKAGES]
    places += [path for place in places for path in place.iterdir()]
    places += [*(ROOT / SHOWN).iterdir()]
    rooms = sorted(
        path.parent.relative_to(ROOT).as_posix() for place in places for path in place.glob("__init__.py")
    )
    return "\n".join(f"- `{name}/`: {first_line(ROOT / name / '__init__.py')}" for name in rooms)


def page() -> str:
    """ARCHITECTURE.md with the rooms of today."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition("<!-- rooms -->\n")
    _, end, after = rest.partition("<!-- end of rooms -->")
    return f"{before}{start}\n{listing()}\n\n{end}{after}"


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
