"""Mixed precision, refused: a step of mu is lost where weights are rounded to 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zo.batches import tensors
from zo.errors import ObjectiveError
from zo.parameters import Parameters


@contextmanager
def autocast_refused(network: nn.Module, parameters: Parameters, *, inside: bool = True) -> Iterator[None]:
    """Refuse to run the block inside of autocast, and in it layers that do and hold perturbed weights.

    Modules behind such a layer that give 16 bits, as frozen ones in bfloat16, are refused too: what a step of
    mu changes is rounded away there. In front of all perturbed weights they may.

    Args:
        network: what is trained.
        parameters: its perturbed ones.
        inside: look inside too. The hooks that it takes have compiled modules compiled anew.

    Raises:
        ObjectiveError: there is an autocast, or a module in 16 bits behind perturbed weights.
    """
    device = parameters.tensors[0].device.type
    if torch.is_autocast_enabled(device):
        raise ObjectiveError(
            f"backward: expected a call outside of torch.autocast, got one inside of a block to "
            f"{_active(device)}, in which a step of mu is lost. Call it behind that block. What may run in "
            "16 bits, such as a frozen part in front of the network, gets a block of its own in the "
            "objective."
        )

    reached = False

    def refuse(module: nn.Module, inputs: Any) -> None:  # noqa: ANN401
        nonlocal reached
        reached = True
        for tensor in module.parameters(recurse=False):
            _refuse_active(tensor, type(module).__name__)

    def refuse_coarse(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ANN401
        for tensor in tensors(output) if reached else ():
            if tensor.is_floating_point() and tensor.element_size() < 4:
                raise ObjectiveError(
                    f"{type(module).__name__}: expected float32 or float64 behind perturbed weights, got "
                    f"{str(tensor.dtype)[6:]}, in which the change by a step of mu is lost. Convert the "
                    "module by .float(), or leave it in front of all perturbed weights."
                )

    holders = {owner.module for owners in parameters.owners for owner in owners}
    hooked = [
        module
        for module in dict.fromkeys((*network.modules(), *holders))
        if inside and not isinstance(module, torch.jit.ScriptModule)  # that takes no hooks
    ]
    handles = [module.register_forward_pre_hook(refuse) for module in hooked if module in holders]
    handles += [module.register_forward_hook(refuse_coarse) for module in hooked]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_active(tensor: Tensor, where: str) -> None:
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        raise ObjectiveError(
            f"{where}: expected perturbed weights in their own precision, got an autocast to "
            f"{_active(device)} around the layer, in which a step of mu is lost. Take the network out of "
            f"that block of the objective, or put it under torch.autocast({device!r}, enabled=False)."
        )


def _active(device: str) -> str:
    return str(torch.get_autocast_dtype(device))[6:]
