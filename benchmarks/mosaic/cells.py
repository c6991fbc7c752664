"""Cells of the table and their states: measured, failed, excluded, and stale where code has changed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CODE = {
    "solvers": ("flow.py", "solvers.py", "corrector.py"),
    "recovery": ("recovery.py",),
    "bands": ("recovery.py", "bands.py"),
    "field": ("recovery.py", "field.py", "flow.py", "solvers.py"),
    "heat": ("heat.py",),
    "compliance": ("heat.py", "compliance.py"),
    "inflow": ("inflow.py",),
    "lattice": ("flow.py", "solvers.py", "corrector.py", "lattice.py"),
}  # study -> the files that decide its figures
STALE: dict[str, str] = {}
"""File in `benchmarks/results/mosaic` -> why its figures stand though code has changed since."""


def code(study: str) -> str:
    """A digest of the code that decides a study's figures, without comments, docstrings and annotations."""
    trees = (ast.parse((HERE / name).read_text(encoding="utf-8")) for name in CODE[study])
    text = "".join(_words(tree) for tree in trees)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _words(node: object) -> str:
    """A syntax tree in words, the same by all versions of Python."""
    if isinstance(node, list):
        parts = (_words(each) for each in node if not _is_text(each))
        return f"[{', '.join(parts)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    kind = "Assign" if isinstance(node, ast.AnnAssign) else type(node).__name__
    parts = (
        f"{'targets' if name == 'target' else name}={_words([value] if name == 'target' else value)}"
        for name, value in ast.iter_fields(node)
        if value not in (None, []) and name not in ("annotation", "returns", "simple", "kind")
    )
    return f"{kind}({', '.join(parts)})"


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def measured(run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A cell: what a run gives, or the sentence with which it failed."""
    try:
        return {"state": "measured", **run()}
    except Exception as error:  # whatever a solver of others raises is the cell's content
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return {"state": "failed", "why": said[:300]}


def excluded(why: str) -> dict[str, Any]:
    """A cell that is not to be measured."""
    return {"state": "excluded", "why": why}


def states(result: Mapping[str, Any], study: str) -> dict[str, str]:
    """The state of each cell, in a word: those that were measured with other code are stale."""
    changed = result["code"] != code(study)
    return {
        name: "stale" if changed and cell["state"] == "measured" else cell["state"]
        for name, cell in result["cells"].items()
    }
