"""Mixed precision, refused: a step of mu is lost where weights are rounded to 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zo.errors import ObjectiveError
from zo.parameters import Parameters


@contextmanager
def autocast_refused(parameters: Parameters, *, inside: bool = True) -> Iterator[None]:
    """Refuse to run the block inside of autocast, and in it layers that do and hold perturbed weights.

    Args:
        parameters: the perturbed ones.
        inside: look inside too. The hooks that it takes have compiled modules compiled anew.

    Raises:
        ObjectiveError: there is an autocast.
    """
    _refuse_active(parameters.tensors[0], "the objective")

    def refuse(module: nn.Module, inputs: Any) -> None:  # noqa: ANN401
        for tensor in module.parameters(recurse=False):
            _refuse_active(tensor, type(module).__name__)

    holders = {owner.module for owners in parameters.owners for owner in owners}
    handles = [
        module.register_forward_pre_hook(refuse)
        for module in holders
        if inside and not isinstance(module, torch.jit.ScriptModule)  # that takes no hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_active(tensor: Tensor, where: str) -> None:
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        raise ObjectiveError(
            f"{where}: expected perturbed weights in their own precision, got an active autocast to "
            f"{str(torch.get_autocast_dtype(device))[6:]}, in which a step of mu is lost. Leave it out, or "
            f"put the network under torch.autocast({device!r}, enabled=False)."
        )
