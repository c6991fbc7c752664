"""Trainings under way: what the last checkpoints of a run that is not finished say of them, as data alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError, ConfigurationError, RunFolderError
from tasks.folder import checkpoint, row_counts, warning_notes
from tasks.folder.result import NAME, SO_FAR, UNDER_WAY, Result, Row
from tasks.folder.run import Run, stage_name
from tasks.problem.trained import TrainingOutcome

AT_THE_END = "its network can be loaded at the end only"  # of a line's words


def result_so_far(run: Run) -> Result:
    """The result of a run; of one that is not finished the lines that there are, and its trainings under way.

    A line of a training under way has no figure, and in its `extra` says under `UNDER_WAY` how far it is.

    Raises:
        RunFolderError: No method is finished, and no training has a checkpoint that can be read.
    """
    try:
        result = Result.read(run.path, so_far=True)
    except RunFolderError:
        there = any((run.path / name).exists() for name in (NAME, SO_FAR))
        if there or not (lines := list(_lines(run, ()))):
            raise
        # the machine is not known here
        result = Result(
            run.task, run.preset, run.config, run.seeds, (), {}, run.versions, run.command, run.started, ""
        )
    else:
        lines = [] if result.finished else list(_lines(run, result.table))
    if not lines:
        return result
    example = result.table[0] if result.table else Row("", 0, "", None)
    metric = {name: getattr(example, name) for name in ("metric", "unit", "units", "higher_is_better")}
    table = (*result.table, *(replace(line, **metric) for line in lines))
    return replace(
        result,
        table=table,
        calls=row_counts.read(run.path),
        warnings=tuple(
            warning_notes.of_stages(run.path, {stage_name(row.seed, row.method): row for row in table})
        ),
    )


def measured(result: Result) -> Result:
    """The result without trainings under way, which have no figures."""
    return replace(result, table=tuple(row for row in result.table if UNDER_WAY not in row.extra))


def steps_of(content: Mapping[str, Any]) -> int:
    """The steps of a checkpoint's training, by what its budget leaves of the planned ones."""
    return content["state"].get("course", {}).get("steps", content["steps"])


def trains_network(content: Mapping[str, Any]) -> bool:
    """Say whether a checkpoint has the weights of the problem's own network, and of no other that is kept."""
    return "network" in content["state"] and "judged" not in content["state"]


def _lines(run: Run, table: tuple[Row, ...]) -> Iterator[Row]:
    """Yield a line for each training of a run that has a checkpoint, and none in the table."""
    methods = run.config.get("methods")
    names = [name for name in methods if isinstance(name, str)] if isinstance(methods, list | tuple) else []
    done = {(row.method, row.seed) for row in table}
    for seed in run.seeds:
        for name in dict.fromkeys(names):
            try:
                path = checkpoint.of_stage(run.path, stage_name(seed, name))
            except ConfigurationError:  # no stage can have that name
                continue
            if (name, seed) not in done and path.is_file() and (line := _line(run, name, seed, path)):
                yield line


def _line(run: Run, name: str, seed: int, path: Path) -> Row | None:
    """Make the line of a training under way; None where its checkpoint cannot be read."""
    try:
        content = checkpoint.load(path)
        outcome = TrainingOutcome.of(content["outcome"])
        row = Row(
            name,
            seed,
            "",
            None,
            rows=outcome.ledger.rows_run or int(outcome.metrics.get("rows", 0)),
            queries=int(outcome.metrics.get("queries", 0)),
            seconds=outcome.seconds,
            extra={"steps": outcome.step, UNDER_WAY: _words(content, outcome)},
            ledger=asdict(outcome.ledger),
        )
        # a checkpoint of someone else's may hold anything, so its line is read as one of a file is
        values = json.loads(json.dumps({**_EMPTY, "seeds": [seed], "table": [asdict(row)]}))
        return Result.of(values, path).table[0]
    except (
        *(CheckpointError, RunFolderError, KeyError, TypeError, ValueError, AttributeError),
        *(OverflowError, RecursionError),
    ):
        return None


_EMPTY: dict[str, Any] = {
    **{"task": "", "preset": "", "config": {}, "machine": {}, "versions": {}, "command": []},
    **{"started": "", "finished": "", "schema": 1},
}


def _words(content: Mapping[str, Any], outcome: TrainingOutcome) -> str:
    """Say how far a training is, and what it has come to: "step 37 of 78, loss 0.0043"."""
    words = f"step {outcome.step:,} of {steps_of(content):,}"
    if content["finished"]:
        words = f"trained to its end, {words}"
    loss, validation = outcome.metrics.get("loss"), outcome.best_validation
    if loss is not None and math.isfinite(loss):
        words += f", training loss {loss:.4g}"
    if validation is not None and outcome.best_step is not None:
        words += f", validation {validation:.4g} after step {outcome.best_step:,}"
    return words if trains_network(content) else f"{words}; {AT_THE_END}"
