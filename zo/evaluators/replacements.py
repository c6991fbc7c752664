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
    copies = _copies(step.parameters, perturbation)
    for module in step.network.modules():
        if _uses_batch_statistics(module) or _draws(module):
            copies.setdefault(module, {})
    whole = _whole(step.network)
    forwards: dict[nn.Module, Forward] = {}
    for module in dict.fromkeys(whole.get(module, module) for module in copies):
        if isinstance(module, torch.jit.ScriptModule):
            raise Unservable(
                f"{type(module).__name__}: expected a module in Python, got a compiled ScriptModule, whose "
                "forward cannot be replaced. Use evaluator='loop'."
            )
        forward = module.forward
        if type(module) in BATCH_NORMS and _uses_batch_statistics(module):
            forwards[module] = blocks.with_batch_statistics(module, copies.get(module, {}), forward)
        elif type(module) in DROPOUTS and _draws(module):
            forwards[module] = blocks.with_one_draw(forward)
        else:  # its children run inside its vmap, with their changes
            state = {
                f"{path}.{name}" if path else name: copy
                for path, child in module.named_modules()
                for name, copy in copies.get(child, {}).items()
            }
            in_turn = type(module) in CONVOLUTIONS and all(
                copy.device.type == "cpu" for copy in state.values()
            )
            make = blocks.with_copies_in_turn if in_turn else blocks.with_copies
            forwards[module] = make(module, state, forward)
    return forwards


def _copies(parameters: Parameters, perturbation: Perturbation) -> dict[nn.Module, dict[str, Tensor]]:
    """Each moved parameter in each variant, `(variants, *shape)`, by module and name; owners share theirs."""
    copies: dict[nn.Module, dict[str, Tensor]] = {}

    def add(number: int, copied: Tensor) -> None:
        for owner in parameters.owners[number]:
            copies.setdefault(owner.module, {})[owner.local_name] = copied

    if not isinstance(perturbation, Coordinates):
        whole = sent(perturbation.steps, parameters.tensors[0].device)
        for number, steps in enumerate(parameters.split(whole)):
            tensor = parameters.tensors[number].detach()
            add(number, tensor + sent(steps, tensor.device, tensor.dtype))
        return copies
    which, entries = parameters.locate(perturbation.indices)
    for number in which.unique().tolist():
        tensor, variants = parameters.tensors[number].detach(), torch.nonzero(which == number).flatten()
        copied = tensor.expand(len(perturbation), *tensor.shape)
        copied = copied.clone(memory_format=torch.contiguous_format)  # channels last has no flat view
        places = sent(torch.stack([variants, entries[variants]]), tensor.device)
        steps = sent(perturbation.steps[variants], tensor.device, tensor.dtype)
        copied.view(len(copied), -1)[places[0], places[1]] += steps
        add(number, copied)
    return copies


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
    network = step.network
    tensors = [*network.parameters(), *(network.buffers() if network.training else ())]
    return sum(map(size_in_bytes, tensors))


def size_in_bytes(tensor: Tensor) -> int:
    """The bytes that a tensor's values take."""
    return tensor.numel() * tensor.element_size()
