"""The page of what was measured on a GPU, made of the files that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS
from benchmarks.protocol import markdown
from tasks.folder import atomic


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """The file of a part; None if there is none that can be read."""
    try:
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write(folder: Path) -> Path:
    """Write the page, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "README.md"
    atomic.write_bytes(path, text(folder).encode())
    return path


def text(folder: Path) -> str:
    """The page: a section for each part, with its table or why there is none."""
    parts = [
        "# What a GPU shows",
        "Made by `python -m benchmarks gpu` from the files of this folder.",
    ]
    for part in PARTS.values():
        result = read(folder, part.name)
        parts += [f"## {part.name}", f"{part.about[0].upper()}{part.about[1:]}."]
        if result is None:
            parts.append("Not run.")
            continue
        place, made_with = result["machine"], result["versions"]
        parts.append(
            f"{place['gpu']}, {place['cpu']} ({place['cores']} cores), torch {made_with['torch']}, "
            f"{made_with['blackbox-coupling']}; `{result['command']}`."
        )
        if result["state"] != "done":
            until = "What it had measured by then:" if result.get("rows") else "Run it again to go on."
            parts.append(f"**{result['state'].capitalize()}**. {result.get('error', until)}")
        parts += [*result.get("notes", ()), *_tables(result.get("rows", ()))]
    return "\n\n".join(parts) + "\n"


def _tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows with the same keys are one table."""
    tables: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        tables.setdefault(tuple(row), []).append(row)
    return [
        markdown(names, [[_cell(row[name]) for name in names] for row in lines])
        for names, lines in tables.items()
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "/").replace("\n", " ")
