"""The page of all modules: each with the first line that it says of itself."""

from __future__ import annotations

import ast
from pathlib import Path

from _extensions.links import ROOT

PACKAGES = ("blackbox", "zo", "tasks", "simulators")


def page() -> str:
    """The page, a table for each folder."""
    parts = ["# Modules", "What each module says of itself, folder by folder."]
    for package in PACKAGES:
        for face in sorted((ROOT / package).rglob("__init__.py")):
            lines = [
                f"| `{path.name}` | {_first_line(path)} |" for path in sorted(face.parent.glob("*.py"))[1:]
            ]
            name = face.parent.relative_to(ROOT).as_posix()
            parts += [f"## `{name}/`", _first_line(face)]
            parts += ["\n".join(["| module | what it holds |", "| --- | --- |", *lines])] if lines else []
    return "\n\n".join(parts) + "\n"


def _first_line(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(said.partition("\n\n")[0].split()).replace("|", "\\|")
