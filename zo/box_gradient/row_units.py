"""Steps by the usual size of each input, where its spec gives one, or where rows show that they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.arrays import APART, BESIDE, FEWEST, MOST, apart, spreads


class RowUnits:
    """The largest spreads over rows that a box's inputs have shown so far, and the steps that follow.

    An input with a scale in its spec moves by mu times that. The others move by mu, until the usual sizes of
    the inputs that are moved are a factor of 100 apart, or the numbers of one are (`blackbox.arrays.apart`).
    From then on each moves by mu times its own size over that size which is nearest to one; what is within a
    factor of 10 of it moves by mu as before. Sizes are rounded to powers of two, and the largest of all calls
    so far counts, so that a network whose outputs grow takes its steps along.

    Args:
        box: the box whose inputs they are.
    """

    def __init__(self, box: BlackBoxFunction) -> None:
        self._specs = box.inputs
        self._largest: dict[int, list[float]] = {}  # of inputs without a scale, by their place
        self._differing: dict[int, bool] = {}  # whether the numbers of an input differ among each other
        self._borne: dict[int, bool] = {}  # whether other steps were tried, and gave slopes

    def look(self, perturbed: Sequence[int], inputs: Sequence[Tensor], alive: Tensor) -> None:
        """Look at the rows of a call, if they are enough to judge by.

        Args:
            perturbed: the places of the inputs that queries move.
            inputs: all of the base, `(rows, *shape)` each.
            alive: `(n,)`, the rows that did not fail.
        """
        if len(alive) < FEWEST:
            return
        for place in perturbed:
            spec = self._specs[place]
            if spec.scale is not None:
                continue
            spread = spreads(inputs[place][alive])
            if len(spec.shape) > 1 or spread.numel() > MOST:
                spread = _usual(spread)[None]
            largest = self._largest.get(place, [0.0])
            spread = torch.maximum(spread, spread.new_tensor(largest))
            self._largest[place] = spread.tolist()
            self._differing[place] = self._differing.get(place, False) or apart(spec, spread) is not None

    def units(
        self, perturbed: Sequence[int], gives_slopes: Callable[[int, Tensor], bool]
    ) -> dict[int, Tensor]:
        """The unit of each number of the inputs that are moved, `(size,)` float64 on the CPU, by their place.

        Args:
            perturbed: the places of the inputs that are moved.
            gives_slopes: whether steps in another unit than one give slopes at an input; asked once of each.
        """
        candidates = self._wanted(perturbed)
        units = {}
        for place in perturbed:
            spec, unit = self._specs[place], candidates.get(place)
            ones = torch.ones(math.prod(spec.shape), dtype=torch.float64)
            units[place] = ones if spec.scale is None else ones.new_tensor(spec.scale)
            if unit is not None and (unit != 1).any():
                if place not in self._borne:
                    self._borne[place] = gives_slopes(place, unit.expand(len(ones)))
                if self._borne[place]:
                    units[place] = unit.expand(len(ones))
        return units

    def differ(self, perturbed: Sequence[int]) -> dict[int, tuple[float, bool]]:
        """The inputs that want other steps: their usual size, and whether they take them."""
        units = {place: unit for place, unit in self._wanted(perturbed).items() if (unit != 1).any()}
        return {place: (self._size(place), self._borne.get(place, False)) for place in units}

    def _size(self, place: int) -> float:
        return float(_usual(torch.tensor(self._largest[place], dtype=torch.float64)))

    def _wanted(self, perturbed: Sequence[int]) -> dict[int, Tensor]:
        """The unit of each number of an input without a scale, or one for all, where its size is known."""
        sizes: dict[int, Tensor] = {}
        for place in perturbed:
            if place in self._largest and self._size(place) > 0:
                largest = torch.tensor(self._largest[place], dtype=torch.float64)
                usual = _usual(largest)
                sizes[place] = (
                    torch.where(largest > 0, largest, usual) if self._differing[place] else usual[None]
                )
        if not sizes:
            return {}
        together = torch.cat(list(sizes.values()))
        scales = [torch.tensor(self._specs[p].scale) for p in perturbed if self._specs[p].scale is not None]
        spread = torch.cat([together, *(scale.double() for scale in scales)])
        if spread.max() < APART * spread.min() and not any(self._differing[place] for place in sizes):
            return {}
        nearest = together[together.log().abs().argmin()]
        one = 1.0 if scales or 1 / BESIDE <= nearest <= BESIDE else nearest
        return {place: _power_of_two(size / one) for place, size in sizes.items()}

    def state_dict(self) -> dict[str, Any]:
        """Save the sizes that the rows have shown."""
        return {"largest": dict(self._largest), "each": dict(self._differing), "borne": dict(self._borne)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._largest, self._differing, self._borne = (
            dict(state[name]) for name in ("largest", "each", "borne")
        )


def most_units(specs: Sequence[ArraySpec]) -> int:
    """Return the most units, besides one, to try a box's inputs in: one for each input, or each number."""
    counts = [math.prod(spec.shape) if len(spec.shape) <= 1 else MOST + 1 for spec in specs if _open(spec)]
    return sum(count if count <= MOST else 1 for count in counts)


def _open(spec: ArraySpec) -> bool:
    return spec.differentiable and spec.scale is None


def _usual(spread: Tensor) -> Tensor:
    """The root mean square of the numbers that are not zero; zero if all are."""
    moving = spread[spread > 0]
    return moving.square().mean().sqrt() if len(moving) else spread.new_zeros(())


def _power_of_two(unit: Tensor) -> Tensor:
    near = (unit <= BESIDE) & (unit >= 1 / BESIDE)
    return torch.where(near, 1.0, 2.0 ** unit.log2().round())
