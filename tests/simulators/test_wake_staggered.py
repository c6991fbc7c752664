"""Start and downsampling of staggered velocities."""

import pytest
import torch

from blackbox.errors import ConfigurationError, ShapeError
from simulators.wake_flow import Channel, WakeStep
from simulators.wake_flow.staggered import divergence, downsample, start


def rotation_field(channel: Channel) -> torch.Tensor:
    """A rough velocity that is free of divergence: the discrete curl of a random stream function."""
    height, width = channel.height, channel.width
    generator = torch.Generator().manual_seed(0)
    psi = torch.randn(height + 1, width + 1, generator=generator, dtype=torch.float64)
    psi[:, 0] = psi[:, -1] = psi[0] = 0  # nothing through the walls; the inflow stays 1
    across = psi.diff(dim=0)[:, :-1]
    along = 1 - psi.diff(dim=1)[1:]
    return torch.stack([across, along])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downsampling_keeps_what_is_free_of_divergence(factor):
    channel = Channel(24)
    velocity = rotation_field(channel)
    assert divergence(velocity, channel.cell).abs().max() < 1e-12
    coarse = downsample(velocity, factor)
    assert coarse.shape == (2, channel.height // factor, channel.width // factor)
    assert coarse.std() > 0.1
    assert divergence(coarse, channel.cell * factor).abs().max() < 1e-12


def test_downsampling_of_a_solved_flow_is_free_of_divergence_away_from_the_cylinder():
    fine, coarse = Channel(32), Channel(16)
    after = WakeStep(fine)(start(fine, dtype=torch.float64)[None], torch.tensor([300.0], dtype=torch.float64))
    left = divergence(downsample(after, 2), coarse.cell)[0]
    fluid = torch.from_numpy(fine.masks.active).unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).amin((1, 3)) > 0
    assert left[fluid].abs().max() < 1e-12 and 0 < (~fluid).sum() < 30


def test_downsampling_is_the_mean_over_each_coarse_face():
    velocity = torch.arange(2 * 8 * 4, dtype=torch.float64).reshape(2, 8, 4)
    coarse = downsample(velocity, 2)
    for row in range(4):
        for column in range(2):
            x = (velocity[0, 2 * row, 2 * column] + velocity[0, 2 * row + 1, 2 * column]) / 2
            y = (velocity[1, 2 * row + 1, 2 * column] + velocity[1, 2 * row + 1, 2 * column + 1]) / 2
            assert coarse[0, row, column] == x and coarse[1, row, column] == y
    assert torch.equal(downsample(velocity, 1), velocity)


def test_downsampling_keeps_leading_axes_and_constants():
    velocity = torch.full((3, 5, 2, 16, 8), 0.75)
    assert torch.equal(downsample(velocity, 4), torch.full((3, 5, 2, 4, 2), 0.75))


@pytest.mark.parametrize(
    ("factor", "error", "words"),
    [(3, ShapeError, "3 divides, got 32 x 16"), (0, ConfigurationError, "above 0, got 0")],
)
def test_factors_that_do_not_fit_are_refused(factor, error, words):
    with pytest.raises(error, match=words):
        downsample(torch.ones(2, 32, 16), factor)


def test_the_start_is_the_stream_with_a_poke_where_it_is_asked_for():
    channel = Channel(20)  # faces at multiples of 5, row centres at 2.5 + 5 j
    velocity = start(channel, poke=-0.3, along=82.5, dtype=torch.float64)
    assert velocity[1].eq(1).all()
    assert velocity[0, 16, 10] == -0.3 and velocity[0].abs().max() == 0.3  # at (50, 82.5)
    torch.testing.assert_close(velocity[0, 16, 12], torch.tensor(-0.3 * 2.718281828459045**-1).double())
    assert start(channel, poke=0.0)[0].eq(0).all()
