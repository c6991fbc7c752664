"""Replacement of modules' forwards by ones that know the variants: which modules, and which forward."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized

from zo.batches import sent
from zo.evaluators.evaluator import Step, Unservable
from zo.evaluators.forwards import Forward
from zo.evaluators.point_rules import PointChanges, rule_of
from zo.evaluators.variant_forward import Blocks
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Perturbation

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def replacements(step: Step, perturbation: Perturbation) -> dict[nn.Module, Forward]:
    """The forwards of one chunk of queries, by module.

    Raises:
        Unservable: a module's forward cannot be replaced.
    """
    blocks = Blocks(len(perturbation), len(perturbation) * step.rows)
    changes = _changes(step.parameters, perturbation)
    for module in step.network.modules():
        if _uses_batch_statistics(module) or _draws(module):
            changes.setdefault(module, {})
    whole = _whole(step.network)
    copies: dict[int, Tensor] = {}  # by tensor: tied parameters share theirs

    def copied(module: nn.Module, name: str) -> Tensor:
        change, tensor = changes[module][name], module.get_parameter(name)
        if id(tensor) not in copies:
            copies[id(tensor)] = (
                change.copies(tensor, blocks.variants) if isinstance(change, PointChanges) else change
            )
        return copies[id(tensor)]

    forwards: dict[nn.Module, Forward] = {}
    for module in dict.fromkeys(whole.get(module, module) for module in changes):
        if isinstance(module, torch.jit.ScriptModule):
            raise Unservable(
                f"{type(module).__name__}: expected a module in Python, got a compiled ScriptModule, whose "
                "forward cannot be replaced. Use evaluator='loop'."
            )
        module_changes, forward = changes.get(module, {}), module.forward
        if type(module) in BATCH_NORMS and _uses_batch_statistics(module):
            forwards[module] = blocks.with_batch_statistics(
                module, {name: copied(module, name) for name in module_changes}, forward
            )
        elif type(module) in DROPOUTS and _draws(module):
            forwards[module] = blocks.with_one_draw(forward)
        elif points := _points(module, module_changes):
            forwards[module] = blocks.with_points(module, points, forward)
        else:  # its children run inside its vmap, with their changes
            state = {
                f"{path}.{name}" if path else name: copied(child, name)
                for path, child in module.named_modules()
                for name in changes.get(child, {})
            }
            in_turn = type(module) in CONVOLUTIONS and all(
                copy.device.type == "cpu" for copy in state.values()
            )
            make = blocks.with_copies_in_turn if in_turn else blocks.with_copies
            forwards[module] = make(module, state, forward)
    return forwards


def _changes(
    parameters: Parameters, perturbation: Perturbation
) -> dict[nn.Module, dict[str, PointChanges | Tensor]]:
    """The changes by module and name: entries, or for directions whole copies `(variants, *shape)`."""
    changes: dict[nn.Module, dict[str, PointChanges | Tensor]] = {}

    def add(number: int, change: PointChanges | Tensor) -> None:
        for owner in parameters.owners[number]:
            changes.setdefault(owner.module, {})[owner.local_name] = change

    if not isinstance(perturbation, Coordinates):
        whole = sent(perturbation.steps, parameters.tensors[0].device)
        for number, steps in enumerate(parameters.split(whole)):
            tensor = parameters.tensors[number].detach()
            add(number, tensor + sent(steps, tensor.device, tensor.dtype))
        return changes
    which, local = parameters.locate(perturbation.indices)
    for number in which.unique().tolist():
        variants = torch.nonzero(which == number).flatten()
        change = PointChanges(variants, local[variants], perturbation.steps[variants])
        add(number, change.to(parameters.tensors[number]))
    return changes


def _points(module: nn.Module, module_changes: dict[str, PointChanges | Tensor]) -> dict[str, PointChanges]:
    """The module's changes if rules serve all of them; else none."""
    points = {name: change for name, change in module_changes.items() if isinstance(change, PointChanges)}
    ruled = len(points) == len(module_changes) and all(rule_of(module, name) for name in points)
    return points if ruled else {}


def _uses_batch_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Say whether it is a batch norm that mixes the rows it sees."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def _draws(module: nn.Module) -> bool:
    """Say whether it draws at random, so that all variants must be given one draw."""
    if isinstance(module, nn.MultiheadAttention):
        return module.training and module.dropout > 0
    return isinstance(module, _DropoutNd) and module.training


def _whole(network: nn.Module) -> dict[nn.Module, nn.Module]:
    """The module around each one whose weights are read without a call of it: that one is replaced whole."""
    whole: dict[nn.Module, nn.Module] = {}
    for module in network.modules():  # parents come before their children
        if isinstance(module, nn.MultiheadAttention) or is_parametrized(module):
            for child in module.modules():
                whole.setdefault(child, whole.get(module, module))
    return whole


def copied_bytes(step: Step, perturbation: Perturbation) -> int:
    """Return the most bytes that copies take for each variant."""
    parameters = step.parameters
    if not isinstance(perturbation, Coordinates):  # directions as drawn and as stepped, and moved weights
        return 3 * sum(size_in_bytes(tensor) for tensor in parameters.tensors)
    whole = _whole(step.network)
    copied: dict[int, int] = {}
    for module in step.network.modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if whole.get(module, module) is module and all(rule_of(module, name) for name in names):
            continue
        tensors = [*module.parameters(), *(module.buffers() if module.training else ())]
        copied |= {id(tensor): size_in_bytes(tensor) for tensor in tensors}
    return sum(copied.values())


def size_in_bytes(tensor: Tensor) -> int:
    """The bytes that a tensor's values take."""
    return tensor.numel() * tensor.element_size()
