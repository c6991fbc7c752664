"""`GradientSettings`: the arguments of a `TangentGradient`, checked and frozen."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import Any

from torch import nn

from blackbox import BlackBoxFunction
from blackbox.box_group import BoxGroup
from blackbox.checks import check_count
from blackbox.spec import none_differentiable
from zo.errors import ConfigurationError
from zo.objective import Closed, Objective, as_objective
from zo.parameters import Choice, Parameters
from zo.tangents.models.alike import AlikeTangent, places_found
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.contest import ContestTangent
from zo.tangents.models.own_step import OwnStepTangent
from zo.tangents.models.structure import Specs
from zo.tangents.tangent import Tangent
from zo.tangents.trust import Limits


@dataclass(frozen=True)
class GradientSettings:
    """The arguments of a `TangentGradient`, see there.

    Attributes:
        network: the network.
        objective: the objective.
        boxes: the boxes, those of a host one by one.
        tangents: a tangent of its own for each box.
        parameters: the parameters that are trained.
        seed, process_group, steps, limits: the arguments of these names.
    """

    network: nn.Module
    objective: Objective
    boxes: tuple[BlackBoxFunction, ...]
    tangents: tuple[Tangent, ...]
    parameters: Parameters
    seed: int
    process_group: EllipsisType | None
    steps: int | None
    limits: Limits

    def __post_init__(self) -> None:
        """Refuse what is no number of steps, a group of processes, and what is no `Limits`."""
        if self.steps is not None:
            check_count("TangentGradient", "steps", self.steps)
        if self.process_group not in (None, ...):
            raise ConfigurationError(
                f"TangentGradient, process_group: expected None, got {self.process_group!r}. Processes that "
                "all have the whole batch share the rows of a box that is wrapped in each of them, "
                "zo.execution.SharedRows(box, group, block=n)."
            )
        if not isinstance(self.limits, Limits):
            raise ConfigurationError(
                f"TangentGradient, limits: expected zo.tangents.Limits, got {self.limits!r}. "
                "Such as Limits(clip=None)."
            )

    @classmethod
    def checked(
        cls,
        network: nn.Module,
        objective: Objective,
        *,
        boxes: Sequence[BlackBoxFunction | BoxGroup],
        tangent: Tangent | Sequence[Tangent] | None,
        parameters: Choice | Iterable[Choice] | None,
        seed: int,
        **others: Any,
    ) -> GradientSettings:
        """All of it, as a user gives it.

        Raises:
            ConfigurationError, ParameterError: a value is out of range.
        """
        objective, single = _objective(objective), _boxes(boxes)
        tangents = _tangents(tangent, single, seed)
        choice = Parameters(network, parameters)
        choice.refuse_frozen()
        return cls(network, objective, single, tangents, choice, seed, **others)


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


def _default(box: BlackBoxFunction, seed: int) -> Tangent:
    """The tangent of a box where the user names none."""
    if box.alike is not None:
        return AlikeTangent(Specs.of(box), box.alike, seed)
    specs = Specs.of(box)
    axis = None if box.settable or box.earlier else places_found(specs)
    if axis is None and not box.earlier:
        return AutoTangent(box, seed)
    whole = partial(
        AutoTangent, specs, seed
    )  # of the specs, since a copy of the tangent must not copy the box
    if axis is None:
        return ContestTangent({"own": partial(OwnStepTangent, specs, box.earlier, seed), "all": whole})
    rivals = {"alike": partial(AlikeTangent, specs, axis, seed), "whole": whole}
    if specs.structure.kind == "grid":  # of which the first rows show a place more than the whole
        rivals = dict(reversed(rivals.items()))
    return ContestTangent(rivals, by_last_step=True)


def _tangents(
    tangent: Tangent | Sequence[Tangent] | None, boxes: Sequence[BlackBoxFunction], seed: int
) -> tuple[Tangent, ...]:
    """A copy for each box: what they learn is their own. None for a choice by the box's specs."""
    if tangent is None:
        return tuple(_default(box, seed) for box in boxes)
    entries = [tangent] * len(boxes) if isinstance(tangent, Tangent) else list(tangent)
    if len(entries) != len(boxes) or not all(isinstance(entry, Tangent) for entry in entries):
        raise ConfigurationError(
            f"TangentGradient, tangent: expected a Tangent, or one for each of {len(boxes)} boxes, got "
            f"{tangent!r}. Such as zo.tangents.GridTangent()."
        )
    tangents = tuple(copy.deepcopy(entry) for entry in entries)
    for box_tangent, box in zip(tangents, boxes, strict=True):
        box_tangent.check_box(box)
    return tangents
