"""`Fallback`: rows that failed get a given value instead."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.arrays import as_tensor
from blackbox.errors import ConfigurationError
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec
from blackbox.wrappers.wrapper import Wrapper


class Fallback(Wrapper):
    """Answer failed rows with `value`.

    With it, the four ways that Dakota offers for a failed row are available ("abort", "retry", "recover",
    "continue"): `failures="raise"`, `Retrying`, `Fallback` and `failures="keep"`.

    Recovered rows count as failed and as recovered, and do not raise. Code that reads the answers cannot
    distinguish them from others: a gradient estimated from them belongs to the recovered function, with its
    jumps. If a failed row may be left out, `failures="keep"` is the honest way. Rows whose *input* is not
    finite are not recovered.

    Args:
        box: the black box whose rows fail.
        value: a number for all outputs, or one number or array for each output, with a shape that broadcasts
            to the spec's.

    Raises:
        ConfigurationError: the value is not finite, or does not fit the output specs.
    """

    def __init__(self, box: BlackBoxFunction, value: Any) -> None:
        """Check, then wrap."""
        super().__init__(box)
        single = len(box.outputs) == 1 or (not isinstance(value, tuple | list) and np.ndim(value) == 0)
        values = [value] * len(box.outputs) if single and not isinstance(value, tuple) else list(value)
        if len(values) != len(box.outputs):
            names = ", ".join(spec.name for spec in box.outputs)
            raise ConfigurationError(
                f"Fallback, value: expected one value for each of {len(box.outputs)} outputs ({names}), "
                f"got {len(values)}. Give a tuple with one for each, or a single number for all."
            )
        self.value = tuple(_fitted(spec, one) for spec, one in zip(box.outputs, values, strict=True))
        self.isolates = True

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """All rows, with answers for the failed ones."""
        outcome = self.box.run_rows(inputs)
        rows = sorted(outcome.failed)
        if rows:
            self.ledger.count_failed(
                outcome.failed, partial(self._whereabouts, inputs, outcome)
            )  # before the value stands in their place
            # In the value's own precision: a box may answer in 16 bits, where it would overflow.
            outcome.outputs = tuple(
                output.to(torch.promote_types(output.dtype, value.dtype))
                for output, value in zip(outcome.outputs, self.value, strict=True)
            )
            for output, value in zip(outcome.outputs, self.value, strict=True):
                output[rows] = value.to(output.device, output.dtype)
            self.ledger.count(rows_recovered=len(rows))
            outcome.failed.clear()
        return outcome


def _fitted(spec: ArraySpec, value: object) -> Tensor:
    where = f"Fallback, value of output {spec.name!r}"
    try:
        wide = as_tensor(value)
        if wide.is_complex():
            raise TypeError("complex numbers")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"{where}: expected a number or an array of numbers, got {type(value).__name__}. "
            "Give what a failed row is to be answered with."
        ) from error
    tensor = wide.to(spec.torch_dtype or torch.float64)
    rounded = not spec.floating and not torch.equal(tensor.to(torch.float64), wide.to(torch.float64))
    if rounded or not torch.isfinite(tensor).all():
        raise ConfigurationError(
            f"{where}: expected finite numbers that {spec.dtype or 'a float'} can hold, got {value!r}. "
            "To have failed rows as NaN use failures='keep' and no Fallback."
        )
    try:
        return tensor.expand(spec.shape).clone()
    except RuntimeError as error:
        raise ConfigurationError(
            f"{where}: expected a shape that broadcasts to {spec.shape}, got {tuple(tensor.shape)}. "
            "Give a single number, or an array of that shape."
        ) from error
