"""The time that learned models will compute beside the boxes: a few steps on the first batch, for no row.

The boxes answer as they did when that batch was timed, and the learning rate is zero, so that these are the
answers of the weights at hand. A method trains as in a run, but for the end that all have, `Setup.descend`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import Any, cast

import torch
from torch import Tensor

import zo
from blackbox import BlackBoxFunction
from blackbox.calls import rows_run_by
from blackbox.errors import BlackBoxError
from blackbox.failures import Outcome
from blackbox.notices import warn
from tasks.errors import ProblemWarning
from tasks.folder.run import Run
from tasks.planning.plan import Plan
from tasks.planning.trial import Rehearsal
from tasks.problem.silence import Silence
from tasks.problem.trained import Trained
from tasks.rows.binding import Bound
from tasks.training.setup import Setup, setup_of
from zo.batches import Batch, count_rows
from zo.tangents.models.lessons import listening
from zo.tangents.population.updates import ROWS, ROWS_OF_MANY, rows_once
from zo.tangents.replay.replayed_windows import MOST, USUAL
from zo.tangents.surrogate import UPDATES

STEPS = 8  # fewer than there are before the first check, which asks the boxes at other weights
FEWEST = 3  # steps, however long they take
SECONDS = 5.0  # after which no more steps are taken than those
TRUSTED = round(math.sqrt(USUAL * MOST))  # replays, where trust decides how many there are
PATIENCE = 60.0  # seconds after which a first lesson is given up


class _Over(BaseException):  # no `Exception`, which methods may catch
    """The end of a rehearsal."""

    def __init__(self, rehearsal: Rehearsal | None) -> None:
        self.rehearsal = rehearsal


@dataclass(frozen=True)
class _Rehearsing(Setup):
    """A `Setup` whose `descend` takes a few steps, and goes no further."""

    def descend(self, gradient: Any, **settings: Any) -> Trained:
        """Take a few steps of learning rate zero, and raise `_Over` with what they took."""
        optimizer = settings.get("optimizer") or torch.optim.Adam(self.network.parameters())
        for weights in optimizer.param_groups:
            weights["lr"] = 0.0
        batch, begun = self.batch(0), perf_counter()
        timer = _passed if self.config.device == "cpu" else partial(_passed, waits=True)

        def along(add: Callable[[], Any]) -> float:
            start_time = timer()
            optimizer.zero_grad()
            add()
            optimizer.step()
            return start_time()

        if isinstance(gradient, zo.tangents.Surrogate):
            raise _Over(_of_rounds(gradient, batch, timer))
        before_first = timer()
        if settings.get("begin"):
            settings["begin"]()
        along(partial(gradient.backward, batch))
        first, first_passed = before_first(), perf_counter() - begun
        replayed = bool(settings.get("replayed"))
        # windows are kept from here on; where the gradient waits, as in closed loop, metrics have the number
        replays = 0
        if replayed:
            replays = gradient.replays() or int(gradient.metrics().get("tangent_replays", 0))
        most_replays = replays
        if replays and self.config.replays is None:
            replays, most_replays = TRUSTED, MOST
        steps, before = list[float](), gradient.metrics().get("rows", 0.0)
        while len(steps) < STEPS and (len(steps) < FEWEST or perf_counter() - begun - first_passed < SECONDS):
            steps.append(along(partial(gradient.backward, batch)))
        # of the quicker half: the first ones also look whether rows may be drawn
        of_replays = sorted(along(gradient.replay) for _ in steps) if replays else [0.0]
        replay = median(of_replays[: -(-len(of_replays) // 2)])
        population = settings.get("population")
        networks = 1 if population is None else len(self.config.rates)
        rehearsal = Rehearsal(
            first, median(steps), replay, replays, networks=networks, most_replays=most_replays
        )
        if population is not None and population.without is None:
            of_boxes = int(gradient.counts.rows - before) // len(steps)
            rows = rows_once(gradient, count_rows(batch), of_boxes, 0)
            update, update_of_many = (
                _through_a_model(gradient, timer, size) for size in (ROWS, ROWS_OF_MANY)
            )
            rehearsal = replace(rehearsal, update=update, update_of_many=update_of_many, rows=rows)
        raise _Over(rehearsal)


def _through_a_model(
    gradient: zo.TangentGradient, timer: Callable[[], Callable[[], float]], rows: int
) -> float:
    """Seconds of a step of a population's surrogate on so many rows; 0 where the model has no values."""
    updates = list[float]()
    for number in range(FEWEST):
        updating = timer()
        try:
            gradient.through(gradient.recorded(rows, number)).mean().backward()
        except zo.errors.TangentError:
            return 0.0
        updates.append(updating())
    return median(updates)


def _of_rounds(
    gradient: zo.tangents.Surrogate, batch: Batch, timer: Callable[[], Callable[[], float]]
) -> Rehearsal:
    """Return a surrogate's computing in all rounds, as the first batch shows it, as if in one step."""
    asking = timer()
    gradient.ask(batch)
    step, learning = asking(), timer()
    gradient.learn()
    lesson, updates = learning(), list[float]()
    for number in range(FEWEST):
        updating = timer()
        gradient.through(gradient.fresh(number)).mean().backward()
        updates.append(updating())
    return Rehearsal(step + gradient.rounds * lesson + UPDATES * median(updates), step)


def _passed(*, waits: bool = False) -> Callable[[], float]:
    """Return a function that gives the seconds since now, as of a machine that has nothing else to do.

    That is processor time, or the time that passes where several threads make that the shorter one.

    Args:
        waits: whether the work waits for a device, whose time is no processor's.
    """
    started, worked = perf_counter(), process_time()

    def seconds() -> float:
        passed = perf_counter() - started
        return passed if waits else min(passed, process_time() - worked)

    return seconds


def rehearsed(plan: Plan, bound: Bound) -> dict[str, Rehearsal | None]:
    """Rehearse the methods of a plan that learn a model, by name; None where a few steps do not show it.

    Args:
        bound: Its problem, whose first batch was timed.
        plan: The plan, with a trial that has the boxes' answers; without them nothing is known.
    """
    methods = plan.methods if plan.trial.answers else {}
    costs = {name: way.cost(bound.problem, 1) for name, way in methods.items() if way.cost is not None}
    return {name: _of(plan, bound, name) for name, cost in costs.items() if cost.learns}


def _of(plan: Plan, bound: Bound, name: str) -> Rehearsal | None:
    run = cast(Run, None)  # nothing that comes before `descend` writes
    try:
        with torch.random.fork_rng(devices=()), warnings.catch_warnings(), _answering(plan.trial.answers):
            warnings.simplefilter("ignore")
            setup = setup_of(bound.problem, run, name, plan.seeds[0], Silence(), {})
            with listening(partial(_impatient, perf_counter())):
                plan.methods[name].train(_Rehearsing(**vars(setup)))
    except _Over as over:
        return over.rehearsal
    except BlackBoxError:  # the run itself says what is wrong, in its own words
        return None
    except Exception as error:
        warn(
            f"{name}: its computing beside the boxes was tried on the first batch, which ended in "
            f"{type(error).__name__}: {error}. The plan counts the boxes' time alone.",
            ProblemWarning,
        )
    return None


def _impatient(started: float, done: int, most: int) -> None:
    if perf_counter() - started > PATIENCE:
        raise _Over(None)


@contextmanager
def _answering(answers: Sequence[Outcome]) -> Iterator[None]:
    """A block in which boxes give these answers, call by call, again and again, and run nothing.

    A call of more rows has several variants: further ones get almost the answers of the first, and so do rows
    that have failed. Where all have, numbers near zero stand for them: what is measured is time.
    """
    number = 0
    noise = zo.estimators.Key(0).generator(0)

    def answer(box: BlackBoxFunction, rows: tuple[Tensor, ...]) -> Outcome:
        nonlocal number
        outcome = answers[number % len(answers)]
        number += 1
        count, available = len(rows[0]), len(outcome.outputs[0])
        alive = [row for row in range(available) if row not in outcome.failed]
        outputs = []
        for all_values in outcome.outputs:
            values = all_values[alive] if alive else torch.zeros_like(all_values)
            more = torch.cat([values] * -(-count // len(values)))[:count].clone()
            if more.is_floating_point():
                scale = float(values.abs().mean()) or 1.0
                draws = torch.randn(more[len(alive) :].shape, generator=noise).to(more)
                more[len(alive) :] += 1e-3 * scale * draws
            outputs.append(more)
        return Outcome(tuple(outputs))

    with rows_run_by(answer):
        yield
