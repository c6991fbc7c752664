"""`Setup`: the network, data and settings of one training; and the training that methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction
from tasks.errors import ProblemError
from tasks.folder import stamp
from tasks.folder.journal import Journal, journaled
from tasks.folder.run import Run, stage_name
from tasks.problem.data import evaluating, unwritten
from tasks.problem.problem import Problem
from tasks.problem.silence import Silence
from tasks.problem.trained import Trained
from tasks.rows.budget_parts import judges_by_windows, rows_left
from tasks.rows.kept_answers import KeptAnswers
from tasks.rows.tally import RowTally
from tasks.training.course import Course
from tasks.training.training_loop import Gradient, Stateful, train
from tasks.training.windows import WindowLosses, Windows
from tasks.workers import group
from zo.batches import Batch, count_rows
from zo.errors import FailedBatchError, NonFiniteGradientError
from zo.tangents.step.clipping import Clipping

SHOWN = ("queries", "dropped", "steps", "rows")  # of a gradient's metrics: those with a name of their own
_given: WeakKeyDictionary[nn.Module, ref[Problem]] = WeakKeyDictionary()  # parts of networks, and by whom


@dataclass(frozen=True)
class Setup:
    """The setup of one training: all methods of a seed are given the same.

    Use `dataclasses.replace(setup, steps=..., network=...)` to depart from it.

    Attributes:
        problem: The problem, with its boxes in the run's wrappers.
        run: The run that gets metrics and checkpoints.
        name: The method's name.
        seed: One of the run's seeds; all draws depend on it.
        network: The network with this seed's first weights; the method trains it in place.
        steps: Optimiser steps.
        batch: The training batch of a step, from 0.
        objective: `objective(network, batch) -> Tensor (rows,)`.
        learning_rate: The learning rate at the start; it follows the configuration's schedule.
        validate: The validation that chooses weights; None to keep the last.
        progress: The progress that the user sees.
        trained: The networks that the methods before have trained with this seed.
        reserve: Rows of the run's budget for the work after this training, whose steps become fewer where no
            more are left; None where steps do not follow from a budget.
        seconds: The seconds in which the training should end, see `Course`; None for no limit.
        answers: In `judge`: the boxes' answers there, kept until the evaluation is on the disk.
    """

    problem: Problem
    run: Run
    name: str
    seed: int
    network: nn.Module
    steps: int
    batch: Callable[[int], Batch]
    objective: Callable[[nn.Module, Any], Tensor]
    learning_rate: float
    validate: Callable[[nn.Module], float | Tensor | None] | None
    progress: Silence
    trained: Mapping[str, Trained]
    reserve: int | None = None
    seconds: float | None = None
    answers: KeptAnswers | None = None

    @property
    def config(self) -> Any:
        """The problem's settings."""
        return self.problem.config

    @property
    def boxes(self) -> list[BlackBoxFunction]:
        """The problem's boxes."""
        return list(self.problem.boxes.values())

    @property
    def stage(self) -> str:
        """The method's name in the run's metrics and checkpoints: "seed-0/sparse-cge"."""
        return stage_name(self.seed, self.name)

    @property
    def process_group(self) -> Any:
        """The processes that work on the run; None for one alone."""
        return group.process_group()

    def journal(self, name: str) -> AbstractContextManager[Journal]:
        """A block of work that asks boxes outside of the steps, and its journal, so that a kill costs little.

        It has the entries of an earlier process when the block begins, and loses them when the block ends
        without an error. Gradients and `zo.pruning` take it; each process of the run has its own.

        Args:
            name: The name of the work; no stage of the run may have it.
        """
        folder, version = group.journal_folder(self.run.path), stamp.code(self.run)
        return journaled(folder, name, RowTally(self.boxes), rank=group.rank(), of=version)

    def descend(
        self,
        gradient: Gradient,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        rate: Callable[[int], float] | None = None,
        update: Callable[[int], None] | None = None,
        judged: nn.Module | None = None,
        state: Mapping[str, Stateful] | None = None,
        figures: Callable[[], Mapping[str, float]] = dict,
        validate_every: int | None = None,
        begin: Callable[[], None] | None = None,
        replayed: bool = False,
        population: zo.Population | None = None,
    ) -> Trained:
        """Take the steps that are left along a gradient: the loop of every method.

        Args:
            gradient: The gradient, which fills `.grad` of the weights of `network`.
            optimizer: The optimiser; Adam if None.
            rate: The learning rate of a step; the configuration's schedule if None.
            update: A function that takes step i along `.grad`; `optimizer.step()` if None.
            judged: The network to validate and keep, such as a running mean of the weights; `network` if
                None. Where batches validate, another is not validated, and its last weights are kept.
            state: Further things that steps change, for the checkpoint.
            figures: Further numbers for each step's line of metrics.
            validate_every: Optimiser steps between validations; the configuration's if None.
            begin: A function that is called once before the first step, such as a check; not in a run that
                goes on.
            replayed: Whether further steps on recorded answers follow each step: as many as
                `gradient.replays()` says, each along `gradient.replay()`; see `zo.TangentGradient`.
            population: A population that takes the steps in the place of gradient and optimiser, which are
                its own.
        """
        config, network = self.config, self.network
        judged_one = network if judged is None else judged
        adam = torch.optim.Adam(network.parameters()) if optimizer is None else optimizer
        remaining_rows = None if self.reserve is None else partial(rows_left, self.boxes, self.reserve)
        checks = (lambda: gradient.counts.queries) if isinstance(gradient, zo.TangentGradient) else None
        by_time = config.rows is None and "steps" in self.run.chosen and not self.problem.presets
        by_time = by_time and not isinstance(gradient, zo.tangents.Surrogate)  # whose rounds are over then
        course = Course(self.steps, self.seconds, remaining_rows, checks, grows=by_time)
        windows = Windows()
        rate_of = partial(self._rate, course) if rate is None else rate
        validate, by_windows = self.validate, judges_by_windows(self.problem, self.run.chosen)

        def take(i: int) -> None:
            if update is None:
                adam.step()
            else:
                update(i)

        bound = None
        if config.clip is not None and not isinstance(gradient, zo.TangentGradient):  # which has its own
            bound = GradientBound(config.clip)

        def along(i: int, batch: Batch) -> Tensor:
            """The optimiser's steps of step i, at its own rate."""
            adam.zero_grad()
            loss = gradient.backward(batch)
            if bound is not None:
                bound.apply(network)
            take(i)
            if replayed:
                assert isinstance(gradient, zo.TangentGradient)
                for _ in range(gradient.replays()):
                    adam.zero_grad()
                    gradient.replay()
                    take(i)
            return loss

        def saw(i: int, loss: float, failed: int, batch: Batch) -> None:
            """Take in the loss of a step, if it is of the weights that would be kept."""
            if judged_one is not network:  # a running mean of them: no loss of a step is its own
                return
            if population is None:
                windows.saw(i, loss, "", failed, count_rows(batch))
            else:
                leader_loss = loss if population.asked_leader else None
                windows.saw(i, leader_loss, population.leader, failed, count_rows(batch))

        def step(i: int) -> dict[str, float]:
            for weights in adam.param_groups:
                weights["lr"] = rate_of(i)
            batch = self.batch(i)
            if isinstance(gradient, zo.TangentGradient):
                gradient.unchecked = course.is_tight
            if population is not None:
                population.steps = course.steps
            elif isinstance(gradient, zo.tangents.Surrogate):
                gradient.planned = course.steps
            lost_rows = gradient.metrics().get("lost", 0)
            try:
                with unwritten(batch, f"{type(self.problem).__name__}.objective"):
                    loss = along(i, batch) if population is None else population.step(batch)
            except NonFiniteGradientError:  # its rows came back
                raise
            except FailedBatchError:
                saw(i, math.nan, count_rows(batch), batch)
                raise
            saw(i, loss.item(), int(gradient.metrics().get("lost", 0) - lost_rows), batch)
            of_gradient = {
                f"gradient_{name}": value for name, value in gradient.metrics().items() if name not in SHOWN
            }
            step_counts = {name: gradient.metrics().get(name, 0.0) for name in ("queries", "dropped")}
            if not self.boxes:  # one evaluation of the objective for each step, and one for each query
                counted = int(i + 1 + step_counts["queries"]) * count_rows(batch)
                step_counts["rows"] = int(gradient.metrics().get("rows", counted))
            if bound is not None:
                of_gradient["gradient_clipped"] = float(bound.clipped)
            if population is not None:
                of_gradient |= population.metrics()
            return {"loss": loss.item(), **step_counts, **of_gradient, **figures()}

        def judge() -> float | Tensor | WindowLosses | None:
            if by_windows:
                return windows.losses()
            with evaluating(judged_one):
                value = None if validate is None else validate(judged_one)
            return math.nan if value is None else value

        saved_state = {"network": network, "optimizer": adam, "gradient": gradient, **(state or {})}
        if judged_one is not network:
            saved_state["judged"] = judged_one
        if bound is not None:
            saved_state["bound"] = bound
        if population is not None:
            saved_state["population"] = population
        if population is not None or by_windows:
            saved_state["windows"] = windows
        if config.minutes is not None or "steps" in self.run.chosen:
            saved_state["course"] = course
        outcome = train(
            self.run,
            self.stage,
            steps=self.steps,
            step=step,
            state=saved_state,
            model="network" if judged_one is network else "judged",
            validate=judge if by_windows or validate is not None else None,
            validate_every=validate_every or config.validate_every,
            progress=self.progress,
            boxes=self.boxes,
            begin=begin,
            course=course,
        )
        counts = gradient.metrics()
        figures_of_gradient: dict[str, Any] = {"replays": int(counts.get("replays", 0))} if replayed else {}
        if windows.leader:
            led = f"{windows.leader}, from step {windows.since + 1} of {outcome.step}"
            self.progress.say(f"{self.stage}: what led at the end was {led}.")
            figures_of_gradient["leader"] = led
        return Trained(
            judged_one,
            outcome,
            int(counts.get("queries", 0)),
            int(counts.get("dropped", 0)),
            figures_of_gradient,
        )

    def _rate(self, course: Course, step: int) -> float:
        if self.config.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(course.angle(step)))


class GradientBound:
    """The bound on a gradient's length that `clip` asks for, of methods that have none of their own.

    Attributes:
        clipped: How many gradients were shortened.
    """

    def __init__(self, most: float) -> None:
        self._clipping, self.clipped = Clipping(most), 0

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Shorten the network's gradient where it is far longer than those before."""
        self.clipped += self._clipping.shorten(network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """The count, and the lengths of the last gradients."""
        return {"clipped": self.clipped, **self._clipping.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.clipped = state["clipped"]
        self._clipping.load_state_dict(state)


def setup_of(
    problem: Problem,
    run: Run,
    name: str,
    seed: int,
    progress: Silence,
    trained: Mapping[str, Trained],
    *,
    again: bool = False,
) -> Setup:
    """Make the setup of a method, the same for all methods of a seed.

    Args:
        problem: The problem.
        run: Its run.
        name: The method.
        seed: Of the network's first weights and of the batches.
        progress: What is told of the training.
        trained: What the methods before have trained.
        again: Whether the network may be one that was given before.

    Raises:
        ProblemError: The problem's network is none, or was given before.
    """
    config = problem.config
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = problem.network()
    if not isinstance(network, nn.Module):
        raise ProblemError(
            f"{type(problem).__name__}.network: expected an nn.Module, got {type(network).__name__}."
        )
    if not again:
        _refuse_again(problem, network)
    return Setup(
        problem=problem,
        run=run,
        name=name,
        seed=seed,
        network=network.to(config.device),
        steps=config.steps,
        batch=partial(problem.training_batch, seed),
        objective=problem.objective,
        learning_rate=config.learning_rate,
        validate=problem.validate if problem.validates() else None,
        progress=progress,
        trained=trained,
    )


def _refuse_again(problem: Problem, network: nn.Module) -> None:
    """Refuse a network that was given before: it has the weights that another method or seed has left."""
    learning = [
        part
        for part in network.modules()
        if any(weight.requires_grad for weight in part.parameters(recurse=False))
    ]
    givers = [_given.get(part) for part in learning]
    twice = [part for part, giver in zip(learning, givers, strict=True) if giver and giver() is problem]
    if twice:
        raise ProblemError(
            f"{type(problem).__name__}.network: expected a new network each time, got a "
            f"{type(twice[0]).__name__} for the second time, with the weights that the training before left. "
            "Make it inside of the method, or return copy.deepcopy(...) of it."
        )
    _given.update(dict.fromkeys(learning, ref(problem)))
