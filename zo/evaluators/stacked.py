"""`Stacked`: P variants on P x B rows in one pass, so a batched solver steps them all together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zo.batches import repeat
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.point_rules import RULES, PointChanges
from zo.evaluators.preserved import Snapshot
from zo.evaluators.variant_forward import (
    Forward,
    copies_with_points,
    differs_by_variant,
    to_module,
    with_copies,
    with_points,
)
from zo.objective import losses
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Perturbation


class Stacked(Evaluator):
    """All variants of a chunk in one call of the objective.

    The layers that hold changed weights are given, for that call, a forward that knows the variants:
    for single changed weights of `nn.Linear` and `nn.Conv2d` a rule without copies, for all else
    `torch.func` over copies of the layer. The objective itself sees an ordinary network and a batch of
    P x B rows, so it may call black boxes, and as often as it likes.
    """

    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """See `Evaluator.losses`."""
        variants = len(perturbation)
        start = Snapshot(problem.network)
        with _variant_forwards(problem, perturbation):
            batch = repeat(problem.batch, variants)
            stacked = losses(problem.objective, problem.network, batch, variants * problem.rows)
        start.restore()
        return stacked.view(variants, problem.rows)


@contextmanager
def _variant_forwards(problem: Problem, perturbation: Perturbation) -> Iterator[None]:
    """Replace forwards for the duration of the block."""
    replaced: list[nn.Module] = []
    try:
        for module, forward in _replacements(problem, perturbation).items():
            module.forward = forward
            replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward  # the class's own shows again


def _replacements(problem: Problem, perturbation: Perturbation) -> dict[nn.Module, Forward]:
    variants, rows = len(perturbation), len(perturbation) * problem.rows
    points: dict[nn.Module, dict[str, PointChanges]] = {}
    copies: dict[nn.Module, dict[str, Tensor]] = {}
    for number, change in _changes(problem.parameters, perturbation):
        tensor = problem.parameters.tensors[number]
        for owner in problem.parameters.owners[number]:
            if isinstance(change, Tensor):
                copies.setdefault(owner.module, {})[owner.local_name] = change
            elif type(owner.module) in RULES:
                points.setdefault(owner.module, {})[owner.local_name] = change
            else:
                copy = copies_with_points(tensor, change, variants)
                copies.setdefault(owner.module, {})[owner.local_name] = copy
    for module in problem.network.modules():
        if differs_by_variant(module):
            copies.setdefault(module, {})
    chosen: dict[nn.Module, Forward] = {}
    inside: set[nn.Module] = set()
    for module in problem.network.modules():  # parents come before their children
        if module in inside:
            continue
        if module in copies:
            # A module that is copied takes its children along: they run inside its vmap.
            stacked = {}
            for name, child in module.named_modules():
                inside.add(child)
                for local, tensor in copies.get(child, {}).items():
                    stacked[f"{name}.{local}" if name else local] = tensor
                for local, change in points.pop(child, {}).items():
                    own = copies_with_points(child.get_parameter(local), change, variants)
                    stacked[f"{name}.{local}" if name else local] = own
            chosen[module] = with_copies(module, stacked, module.forward, variants, rows)
        elif module in points:
            chosen[module] = with_points(module, points[module], module.forward, variants, rows)
    return chosen


def _changes(
    parameters: Parameters, perturbation: Perturbation
) -> Iterator[tuple[int, PointChanges | Tensor]]:
    """For each changed tensor its number, and its changed entries or its copies `(variants, *shape)`."""
    if not isinstance(perturbation, Coordinates):
        for number, steps in enumerate(parameters.split(perturbation.steps)):
            tensor = parameters.tensors[number].detach()
            yield number, tensor + steps.to(tensor.device, tensor.dtype)
        return
    which, local = parameters.locate(perturbation.indices)
    for number in which.unique().tolist():
        variants = torch.nonzero(which == number).flatten()
        change = PointChanges(variants, local[variants], perturbation.steps[variants])
        yield number, to_module(change, parameters.tensors[number])
