"""The map of ARCHITECTURE.md, made from the imports: `python docs/architecture_map.py` draws it anew.

A room is a folder of the four packages. An arrow between rooms says that a module of the one imports from the
other; an arrow between packages, the same of the packages. What lies in a package beside its folders is not
drawn: its rooms use that, and some of it uses the rooms.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PACKAGES = {"tasks": (30, 30), "zo": (30, 350), "simulators": (450, 440), "blackbox": (220, 750)}  # corners
WIDTH, HEIGHT, GAP, DOWN = 150, 34, 24, 84  # of a room; between two; from one level to the next
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


def svg() -> str:
    """The map as a picture."""
    found = arrows()
    rooms = sorted({name for pair in found for name in pair if "/" in name})
    packages: list[str] = []
    boxes: list[str] = []
    places: dict[str, tuple[float, float]] = {}  # the middle of each room's upper edge
    frames: dict[str, tuple[float, float, float, float]] = {}
    for package, (left, top) in PACKAGES.items():
        inside = [name for name in rooms if name.startswith(f"{package}/")]
        height = levels(inside, found)
        most = max(height.values())
        rows = [[name for name in inside if height[name] == level] for level in range(most, -1, -1)]
        wide = max(len(row) for row in rows) * (WIDTH + GAP) + GAP
        frames[package] = left, top, wide, 40 + most * DOWN + HEIGHT + GAP
        packages.append(
            '<rect class="package" x="{}" y="{}" width="{}" height="{}" rx="8"/>'.format(*frames[package])
        )
        packages.append(f'<text class="name" x="{left + 16}" y="{top + 24}">{package}</text>')
        for down, row in enumerate(rows):
            start = left + (wide - len(row) * (WIDTH + GAP) + GAP) / 2
            for across, name in enumerate(row):
                x, y = start + across * (WIDTH + GAP), top + 40 + down * DOWN
                places[name] = x + WIDTH / 2, y
                boxes.append(
                    f'<rect class="room" x="{x:g}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
                )
                boxes.append(f'<text x="{x + WIDTH / 2:g}" y="{y + 22}">{name.partition("/")[2]}</text>')
    lines = [
        _line(places[own][0], places[own][1] + HEIGHT, *places[there], "")
        for own, there in sorted(found)
        if own in places and there in places and own.split("/")[0] == there.split("/")[0]
    ]
    for own, there in sorted({(own.split("/")[0], there.split("/")[0]) for own, there in found}):
        if own != there:
            (x, y, wide, high), (to, below, far, _) = frames[own], frames[there]
            first, last = max(x, to) + 40, min(x + wide, to + far) - 40  # where both are, if they meet
            middle = (first + last) / 2 + (28 if own == "tasks" and there == "blackbox" else 0)
            lines.append(_line(middle, y + high, middle, below, ' class="between"'))
    size = (
        max(x + w for x, _, w, _ in frames.values()) + 30,
        max(y + h for _, y, _, h in frames.values()) + 30,
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}">',
            STYLE,
            '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#57606a;'
            'stroke:none;marker-end:none"/></marker></defs>',
            f'<rect width="{size[0]}" height="{size[1]}" fill="#ffffff"/>',
            *packages,
            *lines,
            *boxes,
            "</svg>",
            "",
        ]
    )


def _line(x: float, y: float, to: float, below: float, kind: str) -> str:
    """From one edge down to another."""
    bend = (below - y) / 2
    return f'<path{kind} d="M{x:g} {y:g}C{x:g} {y + bend:g} {to:g} {below - bend:g} {to:g} {below:g}"/>'


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
