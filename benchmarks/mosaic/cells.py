"""Cells of the table and their states: measured, failed, excluded, and stale where code has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CODE = {
    "solvers": ("flow.py", "solvers.py", "corrector.py"),
    "recovery": ("recovery.py",),
    "bands": ("recovery.py", "bands.py"),
}  # study -> the files that decide its figures
STALE: dict[str, str] = {
    "jax-cfd.json": "the loss of the last call alone was added since, which its cells do not use",
}
"""File in `benchmarks/results/mosaic` -> why its figures stand though code has changed since."""


def code(study: str) -> str:
    """A digest of the code that decides a study's figures."""
    text = b"".join((HERE / name).read_bytes() for name in CODE[study])
    return hashlib.sha256(text).hexdigest()[:16]


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
