"""Advection's lookup by indices, which a GPU's derivative takes: that of `grid_sample`."""

import pytest
import torch

from simulators.wake_flow.advection import _sample, sample_in_order


def arguments():
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 9, 6), (3, 7, 4), (3, 7, 4))
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize("cells_per_speed", [0.3, 2.0, -4.0])
def test_values_and_derivatives_are_those_of_grid_sample(cells_per_speed):
    given = arguments()
    found = [look_up(*given, cells_per_speed) for look_up in (_sample, sample_in_order)]
    assert torch.allclose(*found, atol=1e-12)
    weights = torch.linspace(-1, 1, found[0].numel(), dtype=torch.float64).view_as(found[0])
    slopes = [torch.autograd.grad((each * weights).sum(), given) for each in found]
    for own, other in zip(*slopes, strict=True):
        assert torch.allclose(own, other, atol=1e-12)


def test_a_lost_row_is_nan_and_leaves_the_others():
    padded, x, y = (each.detach() for each in arguments())
    truth = sample_in_order(padded, x, y, 1.3)
    x[1], y[1] = torch.nan, torch.inf
    found = sample_in_order(padded, x, y, 1.3)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], truth[[0, 2]])
