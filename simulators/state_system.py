"""`StateSystem`: common parent of the small test systems, a state that a differentiable step moves on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from blackbox.checks import check_count
from blackbox.errors import DtypeError, ShapeError
from blackbox.spec import ArraySpec
from simulators.simulator import Simulator, count


@dataclass(kw_only=True, eq=False, repr=False)
class StateSystem(Simulator, abstract=True):
    """A black box that advances a state `(*shape)` by `steps` steps, all rows together.

    A call gives values alone. `step`, one of its steps, is differentiable by autograd, and `advance` is
    what a call does: training through a call can be held against training through `advance`. Rows do
    not interact: NaN in one stays there, and batch mates change a row by rounding only.

    A subclass gives `_step`, `_draw` and `spin_up_time`, and sets `shape` in `_prepare`, and `_tables` to
    what it computes from its settings.

    Args:
        steps: steps per call.
        max_rows: rows advanced at once; more are taken in turn, which bounds the memory.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Attributes:
        shape: of the state, channels first, then the sites of the grid.
        spin_up_time: that `start` lets pass from a random state.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    arrays = "torch"
    spin_up_time: ClassVar[float]

    max_rows: int = count(4096)
    shape: tuple[int, ...] = field(init=False)
    _tables: tuple[Tensor, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Check the settings, and take the state for input and output."""
        super().__post_init__()
        self.inputs = self.outputs = (ArraySpec("state", self.shape),)
        self._converted: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    @abstractmethod
    def _step(self, state: Tensor) -> Tensor:
        """One step of a checked state `(..., *shape)`."""

    @abstractmethod
    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Random states `(rows, *shape)` in float64, from which the spin-up begins."""

    @property
    def spin_up(self) -> int:
        """How many steps `start` takes from a random state."""
        return math.ceil(self.spin_up_time / getattr(self, "dt", 1.0))

    def step(self, state: Tensor) -> Tensor:
        """One step, differentiable.

        Args:
            state: `(..., *shape)`, float32 or float64, on any device.

        Returns:
            `(..., *shape)`, in the same dtype.

        Raises:
            ShapeError: the trailing axes differ from `shape`.
            DtypeError: the state is neither float32 nor float64.
        """
        if tuple(state.shape[-len(self.shape) :]) != self.shape:
            raise ShapeError(
                f"{self!r}, state: expected (..., {', '.join(map(str, self.shape))}), "
                f"got {tuple(state.shape)}. Channels come before the sites, rows before both."
            )
        if state.dtype not in (torch.float32, torch.float64):
            raise DtypeError(
                f"{self!r}, state: expected float32 or float64, got {str(state.dtype)[6:]}. "
                "Convert it with .float() or .double()."
            )
        # A solver in bfloat16 is another solver: no autocast from around the call.
        with torch.autocast(state.device.type, enabled=False):
            return self._step(state)

    def advance(self, state: Tensor) -> Tensor:
        """What a call does, differentiable: `steps` steps of a state `(..., *shape)`."""
        for _ in range(self.steps):
            state = self.step(state)
        return state

    def evaluate_rows(self, state: Tensor) -> Tensor:
        """All rows, at most `max_rows` in a call: `(rows, *shape)` to `(rows, *shape)`."""
        with torch.no_grad():
            return self.advance(state)

    def start(self, rows: int, seed: int) -> Tensor:
        """States to begin with, after `spin_up` steps from random ones.

        Args:
            rows: how many, all different.
            seed: the draw's; equal seeds give equal states. No global generator is read or moved.

        Returns:
            `(rows, *shape)`, float32, on the CPU.

        Raises:
            ConfigurationError: `rows` is no whole number above 0, or `seed` none of 0 or more.
        """
        check_count(f"{self!r}.start", "rows", rows)
        check_count(f"{self!r}.start", "seed", seed, least=0)
        generator = torch.Generator().manual_seed(seed)
        parts = []
        with torch.no_grad():
            for part in self._draw(rows, generator).split(self.max_rows or rows):
                for _ in range(self.spin_up):
                    part = self.step(part)
                parts.append(part)
        return torch.cat(parts).float()

    def _tables_for(self, state: Tensor) -> tuple[Tensor, ...]:
        """`_tables`, made in float64 or complex128, in the precision and on the device of `state`."""
        key = state.dtype, state.device
        if key not in self._converted:
            # Tensors made in inference mode could take part in no gradient later.
            with torch.inference_mode(False):
                self._converted[key] = tuple(
                    t.to(state.device, state.dtype.to_complex() if t.is_complex() else state.dtype)
                    for t in self._tables
                )
        return self._converted[key]


def runge_kutta(tendency: Callable[[Tensor], Tensor], state: Tensor, dt: float) -> Tensor:
    """One step of the classical method of fourth order."""
    first = tendency(state)
    second = tendency(state + dt / 2 * first)
    third = tendency(state + dt / 2 * second)
    fourth = tendency(state + dt * third)
    return state + dt / 6 * (first + 2 * (second + third) + fourth)
