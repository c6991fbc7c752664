"""The units of a box's numbers: the spread of what its calls show, of one row alone too."""

from __future__ import annotations

import pytest
import torch

from blackbox import ArraySpec
from zo.tangents import CallPairs
from zo.tangents.record.units import Units

INPUT, OUTPUT = ArraySpec("input", (2,)), ArraySpec("output", (2,))


def shown(y):
    """A call whose rows have such outputs."""
    y = torch.as_tensor(y, dtype=torch.float64)
    z = torch.zeros(len(y), 2, dtype=torch.float64)
    return CallPairs((INPUT,), (OUTPUT,), z, y=y)


def test_the_only_row_of_a_step_varies_from_the_one_before():
    """A box asked once a step, for one row, has the units of many rows, up to chance; 1e6 apart here."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 2, generator=generator, dtype=torch.float64) * torch.tensor([1e-3, 1e3])
    alone, together = Units(), Units()
    (first,) = alone.measure([shown(rows[:1])])
    assert first.response_scale.tolist() == [0.0, 0.0]
    for row in rows[1:]:
        (pairs,) = alone.measure([shown(row[None])])
    (all_rows,) = together.measure([shown(rows)])
    ratio = pairs.response_scale / all_rows.response_scale
    assert ratio.min() > 0.2 and ratio.max() < 2.0


def test_a_state_goes_on_with_the_last_row():
    rows = torch.tensor([[1.0, 10.0], [3.0, 50.0], [2.0, 20.0]], dtype=torch.float64)
    units, again = Units(), Units()
    units.measure([shown(rows[:1])])
    again.load_state_dict(units.state_dict())
    scales = [each.measure([shown(rows[1:2])])[0].response_scale for each in (units, again)]
    assert scales[0].tolist() == pytest.approx([1.0, 20.0])
    assert scales[1].tolist() == scales[0].tolist()
