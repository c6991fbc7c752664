"""The table of a run: each method of each seed is set up, trained and judged, and has its line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tasks.errors import NotApplicableError
from tasks.folder.result import Row
from tasks.folder.run import Run, stage_name
from tasks.listeners.progress import Progress
from tasks.planning.plan import Plan
from tasks.planning.spending import refuse_to_run_out
from tasks.problem.trained import Trained
from tasks.rows.binding import Bound
from tasks.rows.tally import RowTally, everywhere
from tasks.training import judge
from tasks.training.setup import setup_of


def table_of(run: Run, plan: Plan, bound: Bound, progress: Progress) -> list[Row]:
    """The lines, in the order of seeds and methods; stages that are finished are loaded, not repeated."""
    problem, table = bound.problem, list[Row]()
    for seed in plan.seeds:
        trained: dict[str, Trained] = {}  # which the methods behind may start from
        fields: dict[str, Mapping[str, Any]] = {}
        for name, method in plan.methods.items():
            with run.notes.at(stage_name(seed, name)):
                setup = setup_of(problem, run, name, seed, progress, trained)
                torch.manual_seed(
                    seed
                )  # for what draws without a key, as dropout; checkpoints have its state
                tally = RowTally(setup.boxes)
                before = tally.copy()
                try:
                    trained[name] = method.train(setup)
                except NotApplicableError as error:
                    if len(plan.methods) == 1:
                        raise
                    progress.say(f"{setup.stage}: not applicable. {error}")
                    table.append(judge.line_without(setup, str(error), everywhere(tally.since(before))))
                else:
                    line, arrays = judge.judged(setup, trained[name], bound.ledger)
                    table.append(line)
                    if len(table) == 1:
                        refuse_to_run_out(plan, bound, run.path, table)
                    fields[name] = {kind: tensor.numpy() for kind, tensor in arrays.items()}
            last = name == list(plan.methods)[-1]
            if name in trained or (last and trained):
                problem.so_far(run, seed, trained, fields, last)
    return judge.with_one_metric(table)
