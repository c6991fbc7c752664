"""What a problem's own part of the report is made from: the result, and the fields of every evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tasks.runs import checkpoint
from tasks.runs.folder import Run, stage_name
from tasks.runs.result import Result


@dataclass(frozen=True)
class Findings:
    """What a finished run has found.

    Attributes:
        run: Its folder; pictures go there.
        result: The table.
    """

    run: Run
    result: Result

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the run."""
        return self.run.seeds

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(dict.fromkeys(row.method for row in self.result.table))

    @cached_property
    def fields(self) -> Mapping[int, Mapping[str, Mapping[str, Any]]]:
        """The arrays that `evaluate` gave, by seed, method and name."""
        from tasks.work import evaluation_path

        found: dict[int, dict[str, dict[str, np.ndarray]]] = {}
        for seed in self.seeds:
            found[seed] = {}
            for method in self.methods:
                path = evaluation_path(self.run.path, stage_name(seed, method))
                kept = checkpoint.load(path)["fields"]
                found[seed][method] = {name: tensor.numpy() for name, tensor in kept.items()}
        return found
