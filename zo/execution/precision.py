"""Precision: floats of 16 bits between weights and losses, which lose a step of mu: refused, or warned of.

Autocast, and modules that give 16 bits, are refused as the base runs. A cast in the middle of a forward, as
for an attention kernel, shows in no module's output: a step that is checked looks for it, and warns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from blackbox.errors import BudgetError
from blackbox.notices import Notice
from zo.batches import tensors
from zo.errors import NoiseWarning, ObjectiveError
from zo.evaluators.evaluator import Step
from zo.evaluators.loop import Loop
from zo.evaluators.operations import Operations
from zo.execution.memory import is_narrow
from zo.objective import uncompiled
from zo.parameters import Parameters
from zo.perturbation import Directions

LENGTH = 0.1  # of the step that shows what depends on weights: far above 16 bits' rounding


@contextmanager
def autocast_refused(network: nn.Module, parameters: Parameters, *, inside: bool = True) -> Iterator[None]:
    """Refuse to run the block inside of autocast, and in it layers that do and hold perturbed weights.

    Modules behind such a layer that give 16 bits, as frozen ones in bfloat16, are refused too: they round
    away the changes by mu. In front of all perturbed weights they are allowed.

    Args:
        network: the network that is trained.
        parameters: the perturbed parameters of the network.
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

    def refuse(module: nn.Module, inputs: Any) -> None:
        nonlocal reached
        reached = True
        for tensor in module.parameters(recurse=False):
            _refuse_active(tensor, type(module).__name__)

    def refuse_coarse(module: nn.Module, inputs: Any, output: Any) -> None:
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


def makes_narrow(step: Step, base: Tensor) -> Tensor:
    """Say whether an evaluation of the base makes numbers of 16 bits or less, `()` bool; takes a query.

    It is for a base that was not measured itself: compiled code would run and round differently there.

    Args:
        step: The step, with its network, objective and batch.
        base: Losses of the base, `(rows,)`.
    """
    watch = _Narrow()
    step.tally.queries += 1
    with uncompiled(), watch:
        Loop().begin(step, base)(Directions(torch.zeros(1, step.parameters.size)))
    return torch.tensor(bool(watch.results))


def narrow_notice(step: Step, base: Tensor) -> Notice | None:
    """The warning where numbers of 16 bits depend on the weights; takes two queries.

    Args:
        step: The step, in whose base there are such numbers.
        base: Losses of the base, `(rows,)`.

    Returns:
        The warning; None where there are none.
    """
    weights, results = step.parameters.flat(), []
    for length in (0.0, LENGTH):
        watch = _Narrow()
        step.tally.queries += 1
        try:
            with uncompiled(), watch:
                Loop().begin(step, base)(Directions((length * (weights.abs() + 1))[None]))
        except BudgetError:
            raise
        except Exception:  # a step as long may be too long for the objective
            return None
        results.append(watch.results)
    moved = [name for (name, total), (_, other) in zip(*results, strict=False) if total != other]
    if not moved:
        return None
    return Notice(
        "narrow",
        f"Step {step.number + 1}: expected float32 or float64 between the weights and the losses, got "
        f"{moved[0]}, in which most of what a step of mu changes is rounded away: the gradient may "
        "be off by as much as its size. Convert by .float() before, leave autocast out there, "
        "or take a larger mu.",
        NoiseWarning,
    )


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


class _Narrow(Operations):
    """Notes results of operations in 16 bits or less.

    Attributes:
        results: In order, the operation with its dtype, and the sum of its result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[str, float]] = []

    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """Note the result if it is narrow."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and is_narrow(tensor):
                total = float(tensor.detach().double().nan_to_num().sum())
                self.results.append(
                    (f"{str(tensor.dtype)[6:]} from {operation.overloadpacket.__name__}", total)
                )
        return result
