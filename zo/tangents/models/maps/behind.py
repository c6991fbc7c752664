"""`MapBehind`: the linear map behind a model: its kind, the rows that it is fitted to, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zo.tangents.models.form import Form, rows_of
from zo.tangents.models.maps.output_map import OutputMap
from zo.tangents.models.maps.spectral_map import SpectralMap
from zo.tangents.models.maps.waves import MOST_ROWS, Odd, Waves, between_walls
from zo.tangents.models.row_window import RowWindow
from zo.tangents.record.pairs import sizes

MAP_ROWS = 1500  # of the window that a map is fitted to,
MAP_SIZE = 2**24  # and the numbers of their outputs: 256 rows of 2 x 128 x 256, for 1 GiB in a fit
VARIED_ROWS, DIRECTIONS, SPREAD = 256, 8, 1e-2  # see `_varied`; decision 12
MAP_NUMBERS = 2**17  # of inputs that a model is asked for at once: a stencil makes some 450 of each
# decision 66:
LARGE, SPECTRAL_SIZE = 2**12, 2**22  # numbers of outputs from which on waves are mapped, and of rows for that
SEVERAL = 4  # rows for each channel, from which on the matrices of waves are determined
LARGEST = 2**17  # numbers of outputs for which a map without waves is fitted: of more too few rows are kept
CHOSEN_AGAIN = 20  # lessons in which its ridge is chosen again in each fit


class MapBehind:
    """The map behind a model: `OutputMap` of all numbers, or `SpectralMap` of the waves of a large grid.

    Until rows determine one, answers stay as they are.

    Attributes:
        fitted: the map; None for none yet.
        alone: whether the model predicts held-out rows so well that nothing is put behind it.
        due: the count of lessons from which on it is fitted again.
    """

    def __init__(self) -> None:
        self.fitted: OutputMap | SpectralMap | None = None
        self.alone, self.due = False, 0

    @property
    def in_use(self) -> OutputMap | SpectralMap | None:
        """The map where it is put behind the model."""
        return None if self.alone else self.fitted

    def __call__(self, outputs: Tensor) -> Tensor:
        """`(rows, size)` to `(rows, size)`."""
        return outputs if (put := self.in_use) is None else put(outputs)

    def pushed(self, change: Tensor) -> Tensor:
        """Return the change of answers, `(rows, size)`, for a change of the model's."""
        return change if (put := self.in_use) is None else put.pushed(change)

    def pulled(self, cotangent: Tensor) -> Tensor:
        """The transpose of `pushed`."""
        return cotangent if (put := self.in_use) is None else put.pulled(cotangent)

    def fit_if_due(
        self,
        lessons: int,
        form: Form,
        ends: Sequence[bool] | None,
        window: RowWindow,
        unit: Tensor,
        model: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Fit it to the model as it is, less and less often. Rows that hardly differ determine no map.

        Args:
            lessons: how often the model has learned.
            form: the specs of the rows.
            ends: for each axis of the outputs' grid whether its ends meet; None where they lie on none.
            window: the last rows.
            unit: the unit of each number of the outputs, `(size_out,)`.
            model: a function of inputs and other inputs that gives outputs, each with rows first.
        """
        if lessons < self.due or not _varied(window.spread(rows_of(VARIED_ROWS, form))[2] / unit):
            return
        size, again = sum(sizes(form.outputs)), max(1, 2 * lessons)
        waves = None if ends is None or size <= LARGE else _waves_of(form, ends, window, unit)
        if waves is None and size > LARGEST:
            self.due = again
            return
        most = max(VARIED_ROWS // 4, MAP_SIZE // size) if waves is None else max(16, SPECTRAL_SIZE // size)
        z, others, y = window.spread(min(MAP_ROWS, most))
        if waves is not None and len(z) < SEVERAL * waves.lattice.channels:
            return
        with torch.no_grad():
            rows = max(1, min(256, MAP_NUMBERS // z.shape[1]))
            parts = zip(z.split(rows), others.split(rows), strict=True)
            answers = torch.cat([model(*part) for part in parts])
        output_map = self.fitted
        if waves is None:
            output_map = output_map if isinstance(output_map, OutputMap) else OutputMap()
        elif isinstance(output_map, SpectralMap):
            output_map.waves = waves
        else:
            output_map = SpectralMap(waves)
        new, self.fitted, self.due = output_map is not self.fitted, output_map, again
        alone = output_map.fit(answers, y, unit, new or lessons < CHOSEN_AGAIN)
        self.alone = not new and self.alone if alone is None else alone

    def state_dict(self) -> dict[str, Any]:
        """The map, whether it is in use, and when it is due."""
        entry = None if self.fitted is None else self.fitted.state_dict()
        return {"fitted": entry, "alone": self.alone, "due": self.due}

    def load_state_dict(self, state: dict[str, Any], form: Form, device: torch.device) -> None:
        """Go on where `state_dict` was taken."""
        self.due, self.alone, entry, self.fitted = state["due"], state["alone"], state["fitted"], None
        if entry is not None:
            self.fitted = SpectralMap(_waves(form, *entry["ends"])) if "matrix" in entry else OutputMap()
            self.fitted.load_state_dict(entry, device)


def _waves_of(form: Form, ends: Sequence[bool], window: RowWindow, unit: Tensor) -> Waves | None:
    """The waves of outputs on a grid; None where a cell is not mapped as any other."""
    waves = _waves(form, ends)
    if all(ends):
        return waves if waves.lattice.whole else None
    y = window.spread(rows_of(MOST_ROWS, form))[2]
    if len(y) < SEVERAL * waves.lattice.channels:
        return None
    return between_walls(waves.lattice, y / unit, ends)


def _waves(form: Form, ends: Sequence[bool], odd: Odd = ()) -> Waves:
    return Waves(form.lattices("GridTangent")[1], tuple(ends), odd)


def _varied(y: Tensor) -> bool:
    """Say whether outputs vary in eight directions, each by a hundredth of the largest, or in all there are.

    Where they are fewer, as with a batch of four rows that is always the same, their span says what has been
    asked, not what the box can answer, and a projector on it would take most of the gradient away.
    """
    y = y.double() - y.double().mean(dim=0)
    gram = y.T @ y if y.shape[1] < len(y) else y @ y.T
    values = torch.linalg.eigvalsh(gram)
    return int((values > SPREAD**2 * values[-1]).sum()) >= min(DIRECTIONS, y.shape[1])
