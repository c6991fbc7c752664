"""`Shown`: whether the rows of a box's calls show the derivative by each input, to a tangent without queries.

`zo.TangentGradient` dithers what they do not show. Here values are the box's own: it can only be said.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from zo.tangents.excitation.identified import DETERMINED, constant, sketch, unexplained

LOOKS = (64, 256)  # rows after which it is looked at


class Shown:
    """The first rows of a box's calls, as far as they are needed.

    Args:
        box: the box.
    """

    def __init__(self, box: BlackBoxFunction) -> None:
        self._box = box
        self._rows: list[list[Tensor]] = [[] for _ in box.inputs]
        self._runs: list[Tensor] = []
        self._count, self._moved = 0, set[int]()

    @torch.no_grad()
    def look(self, inputs: Sequence[Tensor], moved: Sequence[int]) -> list[str]:
        """Take in a call.

        Args:
            inputs: all inputs, `(rows, *shape)` each.
            moved: the places of inputs that require a gradient and are no earlier answer of the box.

        Returns:
            The names of inputs whose derivative these rows do not show, where that is found.
        """
        if self._count >= LOOKS[-1]:
            return []
        self._moved |= set(moved)
        old_count, rows = self._count, len(inputs[0])
        if not rows:
            return []
        for sketches, array, spec in zip(self._rows, inputs, self._box.inputs, strict=True):
            flat = array.detach().reshape(rows, -1).double().cpu()
            sketches.append(sketch(flat) if spec.modelled else flat[:, :0])
        self._runs.append(torch.arange(rows))
        self._count += rows
        if not any(old_count < look <= self._count for look in LOOKS):
            return []
        columns = [torch.cat(parts) for parts in self._rows]
        runs = torch.cat(self._runs)
        finite = torch.stack([column.isfinite().all(dim=1) for column in columns]).all(dim=0)
        columns, runs = [column[finite] for column in columns], runs[finite]
        if self._count >= LOOKS[-1]:
            self._rows, self._runs = [[] for _ in columns], []
        names = []
        for place in sorted(self._moved):
            same = bool(constant(columns[place]).all())
            if same or unexplained(columns, runs, place) <= DETERMINED:
                names.append(self._box.inputs[place].name)
        return names
