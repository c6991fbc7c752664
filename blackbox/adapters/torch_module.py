"""`TorchModule`: a frozen copy of a torch module as a black box, on its device, in chunks."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blackbox.adapters.module_identity import module_identity
from blackbox.checks import check_count
from blackbox.errors import ConfigurationError, OutputError
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec, check_specs


class TorchModule(BlackBoxFunction):
    """A module that is only ever called: a frozen classifier, a surrogate, a scripted model.

    The module is copied, put into evaluation mode and given no gradients; training the original
    afterwards does not change the box. Where a spec leaves the float dtype open, the module gets its
    own (that of its first floating parameter or buffer), and the caller's comes back.

    Args:
        module: takes one tensor `(rows, *shape)` for each input and returns one for each output, a tuple
            if there are several.
        inputs: their specs, in the order of the module's arguments.
        outputs: their specs, in the order in which it returns them.
        device: where the module runs, such as "cuda"; None where its parameters are. Rows are moved
            there and their outputs back to the caller's device.
        max_rows: rows taken at once; more are taken in turn, which bounds the memory. None for all.
        deterministic: False where the module draws random numbers in evaluation mode too.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: no module, a device that is not there, or `max_rows` below 1.
        DefinitionError: the specs make no sense.
        OutputError: in a call, the module returned something other than tensors with rows first.
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
        with torch.no_grad():  # or the copies of a scripted module's parameters hang on its own
            self.module = copy.deepcopy(module).to(self.device).eval()
        for parameter in self.module.parameters():  # one by one: scripted modules refuse requires_grad_
            parameter.requires_grad_(False)
        super().__init__(failures=failures)

    def evaluate_rows(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """All rows: tensors `(rows, *shape)` in, `(rows, *shape)` for each output out."""
        chunks = zip(*(array.split(self.max_rows or len(array)) for array in arrays), strict=True)
        parts = [self._forward(chunk) for chunk in chunks]
        if len({len(part) for part in parts}) > 1:
            raise OutputError(
                f"{self!r}: expected as many outputs from each chunk of rows, got "
                f"{sorted({len(part) for part in parts})}. Make the module return the same for any rows."
            )
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    def _forward(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        moved = [self._moved(spec, array) for spec, array in zip(self.inputs, rows, strict=True)]
        given = self.module(*moved)
        outputs = tuple(given) if isinstance(given, tuple | list) else (given,)
        for output in outputs:
            # a wrong number of rows in two chunks could add up to the right one
            if not isinstance(output, Tensor) or output.shape[:1] != rows[0].shape[:1]:
                found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise OutputError(
                    f"{self!r}: expected tensors with {len(rows[0])} rows first, got {found}. "
                    "Wrap the module in one that returns a tensor, or a tuple of them."
                )
        return tuple(output.to(rows[0].device) for output in outputs)

    def _moved(self, spec: ArraySpec, array: Tensor) -> Tensor:
        open_float = spec.dtype is None and self.dtype is not None
        return array.to(self.device, self.dtype if open_float else array.dtype)

    @property
    def identity(self) -> str:
        """What a cache knows this box by: see `blackbox.adapters.module_identity`.

        Raises:
            ConfigurationError: an attribute of the module is not plain data.
        """
        return f"{module_identity(self.module)} on {self.device.type}"

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
