"""`TorchModule`: a frozen copy of a torch module as a black box, on its device, in chunks."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blackbox.checks import check_count
from blackbox.errors import ConfigurationError
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec, check_specs


class TorchModule(BlackBoxFunction):
    """A module that is only called, never differentiated: a frozen classifier, a surrogate, a scripted model.

    The module is copied, put into evaluation mode and given no gradients; training the original afterwards
    does not change the box. If a spec leaves the float dtype open, the module gets its own dtype (that of its
    first floating parameter or buffer), and the output is converted back to the caller's.

    Args:
        module: the module; it takes one tensor `(rows, *shape)` for each input and returns one for each
            output, a tuple if there are several.
        inputs: the specs of the inputs, in the order of the module's arguments.
        outputs: the specs of the outputs, in the order in which the module returns them.
        device: where the module runs, such as "cuda"; None for the device of its parameters. Rows are moved
            there, and outputs back to the caller's device.
        max_rows: the most rows that run at once, which limits memory; None for all rows of a call.
        deterministic: False if the module draws random numbers in evaluation mode too.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Raises:
        ConfigurationError: `module` is not a module, the device does not exist, or `max_rows` is below 1.
        DefinitionError: the specs are inconsistent.
    """

    arrays = "torch"

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[ArraySpec],
        outputs: Sequence[ArraySpec],
        *,
        device: str | torch.device | None = None,
        max_rows: int | None = None,
        deterministic: bool = True,
        failures: Policy = "raise",
    ) -> None:
        """Check, then copy and freeze."""
        if not isinstance(module, nn.Module):
            raise ConfigurationError(
                f"TorchModule, module: expected a torch.nn.Module, got {type(module).__name__}. "
                "A plain function goes through from_callable(..., arrays='torch')."
            )
        if max_rows is not None:
            check_count("TorchModule", "max_rows", max_rows)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        check_specs("TorchModule", "inputs", self.inputs)
        check_specs("TorchModule", "outputs", self.outputs)
        tensors = [*module.parameters(), *module.buffers()]
        self.max_rows, self.deterministic = max_rows, deterministic
        self.device = _device(device, tensors)
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
        with torch.no_grad():  # or the copies of a scripted module's parameters depend on its own
            self.module = copy.deepcopy(module).to(self.device).eval()
        for parameter in self.module.parameters():  # one by one: scripted modules refuse requires_grad_
            parameter.requires_grad_(False)
        super().__init__(failures=failures)

    def evaluate_rows(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """All rows: tensors `(rows, *shape)` in, `(rows, *shape)` for each output out."""
        answer = self.module(*(self._moved(spec, a) for spec, a in zip(self.inputs, arrays, strict=True)))
        return tuple(answer) if isinstance(answer, tuple | list) else (answer,)

    def _moved(self, spec: ArraySpec, array: Tensor) -> Tensor:
        open_float = spec.dtype is None and self.dtype is not None
        return array.to(self.device, self.dtype if open_float else array.dtype)

    @property
    def identity(self) -> tuple[nn.Module, str]:
        """The identity of the answers: the module's code, numbers and settings, and the kind of device."""
        return self.module, self.device.type

    def __repr__(self) -> str:
        """Named after the module's class."""
        return f"TorchModule({type(self.module).__name__}, device='{self.device}')"


def _device(device: str | torch.device | None, tensors: list[Tensor]) -> torch.device:
    """The device asked for, where a tensor can be made on it."""
    if device is None:
        return tensors[0].device if tensors else torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # the second: torch without CUDA
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"TorchModule, device: expected one that this machine has, got {str(device)!r} ({reason}). "
            "Take 'cpu'."
        ) from error
