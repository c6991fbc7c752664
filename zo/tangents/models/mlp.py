"""`MLPTangent`: for boxes without a known structure, a network of two hidden layers fitted to values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blackbox.checks import check_count
from zo.tangents.models.candidates import Candidate
from zo.tangents.models.form import Form
from zo.tangents.models.network import Learning, NetworkTangent
from zo.tangents.models.passes import Passes, Slopes, Tape, bent_back
from zo.tangents.models.prior import Below, said
from zo.tangents.record.pairs import sizes


class MLPTangent(NetworkTangent):
    """The derivative of a multilayer perceptron with a linear path beside it, fitted to the box's values.

    It learns from the rows that training asks for anyway. Each number is standardised by its own mean and
    spread, so a box may have any units.

    Memory: window x (size_in + size_out) numbers. A step: steps_per_step x batch rows forward and backward
    through the network; a call's VJP: its rows forward and backward. The box runs no rows beyond the step's.

    Args:
        width: the width of the two hidden layers.
        learning: how it learns; None for `LEARNING`, see `Learning`.
        output_map: whether a linear map behind the network is fitted in closed form (see `OutputMap`).
        seed: all draws depend on (seed, step of learning) alone.
        prior: a differentiable model under it, see `ValueTangent`.

    Raises:
        ConfigurationError: a value out of its range.
    """

    LEARNING = Learning(batch=64, steps_per_step=8)

    def __init__(
        self,
        width: int = 256,
        *,
        learning: Learning | None = None,
        output_map: bool = False,
        seed: int = 0,
        prior: Below | None = None,
    ) -> None:
        check_count("MLPTangent", "width", width)
        self.width = width
        super().__init__(learning=learning, output_map=output_map, seed=seed, prior=prior)

    def build(self, form: Form, plan: dict[str, Any]) -> Passes:
        """Two hidden layers and a linear path."""
        context_size = sum(_size(shape) for shape in form.others)
        return _Perceptron(sum(sizes(form.inputs)) + context_size, sum(sizes(form.outputs)), self.width)

    def __repr__(self) -> str:
        """The width."""
        return f"MLPTangent(width={self.width}{said(self.prior)})"


class _Perceptron(Passes):
    def __init__(self, size_in: int, size_out: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size_in, width), nn.Linear(width, width)
        self.last, self.linear = nn.Linear(width, size_out), nn.Linear(size_in, size_out, bias=False)
        for layer in (self.last, self.linear):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.last.bias)

    def arranged(self, z: Tensor, others: Tensor) -> Tensor:
        return torch.cat([z, others], dim=1)

    def answers(self, y: Tensor) -> Tensor:
        return y

    def arranged_cotangent(self, cotangent: Tensor) -> Tensor:
        return cotangent

    def cotangent_rows(self, cotangent: Tensor) -> Tensor:
        return cotangent

    def passed(self, x: Tensor) -> tuple[Tensor, Tape]:
        first = self.first(x)
        between = functional.silu(first)
        second = self.second(between)
        layer = functional.silu(second)
        return self.last(layer).addmm_(x, self.linear.weight.T), (x, first, between, second, layer)

    def back(self, tape: Tape, cotangent: Tensor, slopes: Slopes | None = None) -> Tensor | None:
        x, first, between, second, layer = tape
        of_second = bent_back(cotangent @ self.last.weight, second)
        of_first = bent_back(of_second @ self.second.weight, first)
        if slopes is None:
            return (of_first @ self.first.weight).addmm_(cotangent, self.linear.weight)
        for name, layer_input, of_output in (
            ("last", layer, cotangent),
            ("second", between, of_second),
            ("first", x, of_first),
        ):
            torch.mm(of_output.T, layer_input, out=slopes[f"{name}.weight"])
            torch.sum(of_output, 0, out=slopes[f"{name}.bias"])
        torch.mm(cotangent.T, x, out=slopes["linear.weight"])
        return None

    def apart(self, tape: Tape, counts: Sequence[int]) -> list[Tape]:
        return list(zip(*(tensor.split(counts) for tensor in tape), strict=True))

    def pushed(self, tape: Tape, change: Tensor) -> Tensor:
        _, first, _, second, _ = tape
        of_first = bent_back(change @ self.first.weight.T, first)
        of_second = bent_back(of_first @ self.second.weight.T, second)
        return (of_second @ self.last.weight.T).addmm_(change, self.linear.weight.T)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


CANDIDATE = Candidate(
    "mlp",
    lambda specs: "a perceptron has no cells" if specs.structure.kind == "grid" else None,
    lambda box, seed: MLPTangent(seed=seed),
    reserve=True,
)
