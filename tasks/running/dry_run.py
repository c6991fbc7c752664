"""A dry run: a plan and its cost, by its first batch and steps that run no row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks.planning import cost
from tasks.planning.plan import Plan
from tasks.planning.spending import settled
from tasks.planning.trial import asked
from tasks.rows.binding import Bound
from tasks.rows.kept_answers import KeptAnswers
from tasks.running.rehearsal import rehearsed
from tasks.running.torch_arithmetic import set_torch


def sentences(plan: Plan) -> list[str]:
    """Describe a run and its cost; no folder is made.

    Raises:
        ConfigurationError: The problem refuses its settings, or the run cannot end within its budget.
    """
    set_torch(plan.config)  # as in a run
    bound = Bound.of(plan.problem)
    bound.check()
    bound.bound()
    demand = asked(bound, plan.methods, len(plan.seeds))
    with TemporaryDirectory() as folder:
        answers = partial(KeptAnswers, folder=Path(folder))
        plan = settled(plan, bound, demand, answers, timed=True, keep=True, rehearse=rehearsed)
    return cost.sentences(plan, bound, dry=True)


def nothing_came_back(sentences: Sequence[str]) -> bool:
    """Say whether sentences report that no row of the first batch had a finite loss."""
    return any(sentence.strip().startswith(cost.NONE_BACK) for sentence in sentences)
