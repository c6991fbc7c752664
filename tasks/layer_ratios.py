"""The layer ratios of a run: found once, told, and kept in its folder with what they cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blackbox.words import counted
from tasks.problem import Setup
from tasks.runs import atomic
from tasks.runs.journal import Journal, journaled
from tasks.tally import Tally
from tasks.workers import group
from zo.pruning import LayerRatios


@dataclass(frozen=True)
class Ratios:
    """Layer ratios, and what it cost to find them.

    Attributes:
        layers: The ratios.
        queries: As the problem counts them.
    """

    layers: LayerRatios
    queries: int


def kept(setup: Setup, name: str, find: Callable[[Journal], tuple[LayerRatios, int]]) -> Ratios:
    """The ratios of a file in the run's folder; found and written if it is not there.

    Args:
        setup: Of the method that needs them.
        name: Of the file, without its ending.
        find: Is given a journal, so that a kill costs no finished query; the ratios, and the queries asked.
    """
    path = setup.run.path / f"{name}.json"
    if not path.exists():
        folder, tally = group.journal_folder(setup.run.path), Tally(setup.boxes)
        with journaled(folder, name.replace("_", "-"), tally, rank=group.rank()) as journal:
            layers, queries = find(journal)
            atomic.write_json(path, {"ratios": layers.to_dict(), "queries": queries})
        setup.progress.say(
            f"Layer ratios of seed {setup.seed} by {layers.method} ({counted(queries, 'query')}):\n{layers}"
        )
    return read(path)


def read(path: Path) -> Ratios:
    """The ratios of a file."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    return Ratios(LayerRatios.from_dict(saved["ratios"]), saved["queries"])
