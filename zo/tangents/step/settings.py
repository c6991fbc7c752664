"""`GradientSettings`: what a `TangentGradient` is made with; `Probing`: how probes are. Both frozen."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from blackbox import BlackBoxFunction
from blackbox.checks import check_choice, check_count, check_fraction, check_number, check_positive
from blackbox.group import BoxGroup
from blackbox.spec import none_differentiable
from zo.errors import ConfigurationError
from zo.estimators.estimator import check_mu
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked
from zo.execution.ranks import Group
from zo.objective import Closed, Objective, as_objective
from zo.parameters import Choice, Parameters
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.tangent import Tangent
from zo.tangents.trust import TrustPolicy

MAX_ROWS = 3.5  # what a step may cost where the user has not said so, in multiples of the base's rows


@dataclass(frozen=True)
class Probing:
    """How probes are made and evaluated, and how many there are to begin with: see `ProbedGradient`.

    Attributes:
        probes: the number while there is trust; None for what the tangents need.
        mu: the standard deviation by which a probe moves each weight.
        evaluator: what evaluates base and probes.
        chunk: how many of base and probes run together; None for all.
        max_dropped: the fraction of a step's pairs that may fail.

    Raises:
        ConfigurationError: a value out of its range.
    """

    probes: int | None = None
    mu: float = 1e-3
    evaluator: Stacked | Loop = Stacked()  # noqa: RUF009 - without a state
    chunk: int | None = None
    max_dropped: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values out of their range."""
        check_mu("ProbedGradient", self.mu)
        if self.chunk is not None:
            check_count("ProbedGradient", "chunk", self.chunk)
        check_fraction("ProbedGradient", "max_dropped", self.max_dropped)

    @classmethod
    def of(
        cls,
        probes: int | None = None,
        mu: float = 1e-3,
        evaluator: str | Evaluator = "stacked",
        chunk: int | None = None,
        max_dropped: float = 0.5,
    ) -> Probing:
        """All of it, as a user gives it: an evaluator's name stands for it."""
        return cls(probes, mu, _evaluator(evaluator), chunk, max_dropped)


@dataclass(frozen=True)
class GradientSettings:
    """What a `TangentGradient` is made with, see there.

    Attributes:
        network: the network.
        objective: the objective.
        boxes: the boxes, those of a host one by one.
        tangents: a tangent of its own for each.
        parameters: those that are trained.
        probing: how probes are made.
        probes: how many there are to begin with.
        max_rows: what a step may cost, in multiples of the base's rows.
        seed, process_group, trust_policy, replays, max_age, clip, excite, steps: as given.
    """

    network: nn.Module
    objective: Objective
    boxes: tuple[BlackBoxFunction, ...]
    tangents: tuple[Tangent, ...]
    parameters: Parameters
    probing: Probing
    probes: int
    max_rows: float
    seed: int
    process_group: Group
    trust_policy: TrustPolicy
    replays: int | None
    max_age: int | None
    clip: float | None
    excite: float | None
    steps: int | None

    def __post_init__(self) -> None:
        """Refuse numbers out of their range; None is in each."""
        who = "TangentGradient"
        for name, count, least in (
            ("replays", self.replays, 0),
            ("max_age", self.max_age, 1),
            ("steps", self.steps, 1),
        ):
            if count is not None:
                check_count(who, name, count, least=least)
        if self.clip is not None:
            check_number(who, "clip", self.clip, least=1.0, mend="None is for no bound.")
        if self.excite is not None:
            check_number(who, "excite", self.excite, least=0.0, mend="0 is for no dither.")

    @classmethod
    def checked(
        cls,
        network: nn.Module,
        objective: Objective,
        *,
        boxes: Sequence[BlackBoxFunction | BoxGroup],
        tangent: Tangent | Sequence[Tangent] | None,
        parameters: Choice | Iterable[Choice] | None,
        probing: Probing,
        max_rows: float | None,
        seed: int,
        **others: Any,
    ) -> GradientSettings:
        """All of it, as a user gives it.

        Raises:
            ConfigurationError, ParameterError: a value is out of range.
        """
        objective, single = _objective(objective), _boxes(boxes)
        tangents = _tangents(tangent, single, seed)
        probes = _probes(probing.probes, tangents)
        choice = Parameters(network, parameters)
        choice.refuse_frozen()
        most = _max_rows(max_rows, probes)
        return cls(network, objective, single, tangents, choice, probing, probes, most, seed, **others)


def _evaluator(evaluator: str | Evaluator) -> Stacked | Loop:
    """What evaluates base and probes; refuses what cannot show the calls of boxes."""
    if isinstance(evaluator, Stacked | Loop):
        return evaluator
    if isinstance(evaluator, Evaluator):
        raise ConfigurationError(
            f"ProbedGradient, evaluator: expected 'stacked' or 'loop', zo.evaluators.Stacked() or Loop(), "
            f"got {evaluator!r}, which shows no calls of boxes. Take one of these two."
        )
    check_choice("ProbedGradient", "evaluator", evaluator, ("stacked", "loop"))
    return Stacked() if evaluator == "stacked" else Loop()


def _probes(probes: int | None, tangents: Sequence[Tangent]) -> int:
    """How many probes there are; refuses none for tangents that have nothing else to learn from."""
    if probes is None:
        return 0 if all(tangent.learns_from_values or not tangent.learns for tangent in tangents) else 2
    if probes == 0 and type(probes) is int:
        for tangent in tangents:
            if tangent.learns and not tangent.learns_from_values:
                raise ConfigurationError(
                    f"ProbedGradient, probes: expected at least 1 for {tangent!r}, which learns from "
                    "changes, got 0. Only tangents that learn from values, as StudentTangent, do without, or "
                    "that do not learn."
                )
    else:
        check_count("ProbedGradient", "probes", probes)
    return probes


def _max_rows(max_rows: float | None, probes: int) -> float:
    """The budget of a step in multiples of the base's rows; None for the usual one, or what probes take."""
    if max_rows is None:
        return max(MAX_ROWS, 1.0 + probes)
    check_positive("TangentGradient", "max_rows", max_rows)
    if max_rows < 1 + probes:
        raise ConfigurationError(
            f"TangentGradient, max_rows: expected at least {1 + probes} times the rows of a first-order "
            f"step, as the base and probes={probes} take, got {max_rows!r}. Allow more, or take fewer probes."
        )
    return float(max_rows)


def _objective(objective: Objective) -> Objective:
    """The objective, as it was written where it is compiled, since it calls boxes; refuses a closure."""
    checked = as_objective(getattr(objective, "_torchdynamo_orig_callable", objective))
    if isinstance(checked, Closed):
        raise ConfigurationError(
            "TangentGradient, objective: expected objective(network, batch), got a closure without "
            "arguments, which has no rows to distinguish. Give it both."
        )
    return checked


def _boxes(boxes: Sequence[BlackBoxFunction | BoxGroup]) -> tuple[BlackBoxFunction, ...]:
    """The boxes, those of a host in its place; refuses what has no derivative to model, or is named twice."""
    if not isinstance(boxes, Sequence) or not boxes:
        raise ConfigurationError(
            f"TangentGradient, boxes: expected a list of black boxes, got {boxes!r}. Write boxes=[solver]."
        )
    single = [[*box.named_boxes.values()] if isinstance(box, BoxGroup) else [box] for box in boxes]
    boxes = [box for group in single for box in group]
    for box in boxes:
        if not isinstance(box, BlackBoxFunction):
            raise ConfigurationError(
                f"TangentGradient, boxes: expected BlackBoxFunctions, got {type(box).__name__}. "
                "Make it a subclass of BlackBoxFunction first."
            )
        for kind, specs in (("input", box.inputs), ("output", box.outputs)):
            if not any(spec.learned for spec in specs):
                raise ConfigurationError(
                    f"TangentGradient, boxes, {box!r}: {none_differentiable(kind, specs)}"
                )
    if len({id(box) for box in boxes}) < len(boxes):
        raise ConfigurationError(
            f"TangentGradient, boxes: expected different boxes, got {list(boxes)!r}. Name each once."
        )
    return tuple(boxes)


def _tangents(
    tangent: Tangent | Sequence[Tangent] | None, boxes: Sequence[BlackBoxFunction], seed: int
) -> tuple[Tangent, ...]:
    """A copy for each box: what they learn is their own. None for a choice by the box's specs."""
    if tangent is None:
        return tuple(AutoTangent(box, seed) for box in boxes)
    entries = [tangent] * len(boxes) if isinstance(tangent, Tangent) else list(tangent)
    if len(entries) != len(boxes) or not all(isinstance(entry, Tangent) for entry in entries):
        raise ConfigurationError(
            f"TangentGradient, tangent: expected a Tangent, or one for each of {len(boxes)} boxes, got "
            f"{tangent!r}. Such as zo.GridTangent()."
        )
    tangents = tuple(copy.deepcopy(entry) for entry in entries)
    for own, box in zip(tangents, boxes, strict=True):
        own.check_box(box)
    return tangents
