"""The map of ARCHITECTURE.md, made from the imports: `python docs/architecture_map.py` writes it anew.

A room is a folder of the four packages. An arrow between rooms says that a module of the one imports from the
other; an arrow between packages, the same of the packages. What lies in a package beside its folders is not
drawn: its rooms use that, and some of it uses the rooms.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("blackbox", "simulators", "zo", "tasks")
BEGIN, END = "<!-- made by docs/architecture_map.py -->\n", "<!-- end of what is made -->"


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


def mermaid() -> str:
    """The map as a mermaid graph: arrows between packages, and between the rooms of one."""
    found = arrows()
    rooms = sorted({name for pair in found for name in pair if "/" in name})
    lines = ["```mermaid", "flowchart TD"]
    for package in reversed(PACKAGES):
        lines.append(f"  subgraph {package}")
        inside = [name for name in rooms if name.startswith(f"{package}/")]
        lines += [f'    {name.replace("/", "_")}["{name.partition("/")[2]}"]' for name in inside]
        lines += [
            f"    {own.replace('/', '_')} --> {there.replace('/', '_')}"
            for own, there in sorted(found)
            if own in inside and there in inside
        ]
        lines.append("  end")
    between = {(own.split("/")[0], there.split("/")[0]) for own, there in found}
    lines += [f"  {own} --> {there}" for own, there in sorted(between) if own != there]
    return "\n".join([*lines, "```", ""])


def main() -> None:
    """Write the map into ARCHITECTURE.md."""
    page = ROOT / "ARCHITECTURE.md"
    text = page.read_text(encoding="utf-8")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    made = re.sub(pattern, lambda _: BEGIN + mermaid() + END, text, flags=re.DOTALL)
    page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
