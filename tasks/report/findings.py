"""The findings of a run for its report: its table, curves over training, and fields of evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tasks.folder import checkpoint, reading
from tasks.folder.result import NOT_APPLICABLE, UNDER_WAY, Result
from tasks.folder.run import Run, stage_name
from tasks.folder.warning_notes import without_numbers


@dataclass(frozen=True)
class Curve:
    """A figure over the training of one method with one seed: arrays of one length.

    Attributes:
        steps: Optimiser steps done.
        rows: Box rows run in them; zeros where no box was counted.
        seconds: Time in them.
        values: The figure; NaN where it was not finite.
    """

    steps: np.ndarray
    rows: np.ndarray
    seconds: np.ndarray
    values: np.ndarray

    def smooth(self, points: int = 200) -> Curve:
        """Means of neighbours that leave about so many points, for what differs from step to step."""
        width = max(1, len(self.steps) // points)
        ends = np.arange(len(self.steps), 0, -width)[::-1]
        parts = [self.values[max(0, end - width) : end] for end in ends]
        means = np.array(
            [part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts]
        )
        at = ends - 1
        return Curve(self.steps[at], self.rows[at], self.seconds[at], means)


@dataclass(frozen=True)
class Findings:
    """The findings of a run.

    Attributes:
        run: Its folder; pictures go there.
        result: The table.
    """

    run: Run
    result: Result

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the table."""
        return self.result.seeds

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in the order of the table."""
        return tuple(dict.fromkeys(row.method for row in self.result.table))

    @cached_property
    def fields(self) -> Mapping[int, Mapping[str, Mapping[str, Any]]]:
        """The arrays that `evaluate` gave, by seed, method and name."""
        fields: dict[int, dict[str, dict[str, np.ndarray]]] = {seed: {} for seed in self.seeds}
        for row in self.result.table:
            if not {NOT_APPLICABLE, UNDER_WAY} & row.extra.keys():
                stage = stage_name(row.seed, row.method)
                tensors = checkpoint.load_evaluation(self.run.path, stage)["fields"]
                fields[row.seed][row.method] = {name: tensor.numpy() for name, tensor in tensors.items()}
        return fields

    @cached_property
    def lines(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The lines of `metrics.jsonl` by stage, read once."""
        lines: dict[str, list[Mapping[str, Any]]] = {}
        for line in self.run.metrics():
            lines.setdefault(line["stage"], []).append(line)
        return lines

    def curves(self, name: str) -> dict[str, dict[int, Curve]]:
        """A figure of the metrics over training, by method and seed; methods without it are left out."""
        curves: dict[str, dict[int, Curve]] = {}
        for method in self.methods:
            for seed in self.seeds:
                stage = self.lines.get(stage_name(seed, method), ())
                rows = {line["step"]: line["rows"] for line in stage if _is_number(line.get("rows"))}
                at = [line for line in stage if _is_number(line.get(name))]
                if at:
                    curves.setdefault(method, {})[seed] = Curve(
                        np.array([line["step"] for line in at]),
                        np.array([rows.get(line["step"], 0) for line in at], dtype=float),
                        np.array([_number(line.get("seconds")) for line in at], dtype=float),
                        np.array([line[name] for line in at], dtype=float),
                    )
        return curves

    def gaps(self) -> list[str]:
        """Describe the steps without a line in `metrics.jsonl`, in a sentence for each training."""
        lines = []
        for row in self.result.table:
            stage, steps = stage_name(row.seed, row.method), row.extra.get("steps")
            if isinstance(steps, int) and steps:
                missing = reading.gaps(self.lines.get(stage, ()), steps)
                if missing:
                    lines.append(
                        f"metrics.jsonl has no line of {missing} of {stage}: its curves are without."
                    )
        return lines


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and _is_number(value) else math.nan


def warned_of(result: Result) -> dict[tuple[str, str], str]:
    """Return the warnings of the run, by class and words without numbers, in the words of the first time."""
    texts: dict[tuple[str, str], str] = {}
    for warning in result.warnings:
        texts.setdefault((warning.kind, without_numbers(warning.text)), warning.text)
    return texts
