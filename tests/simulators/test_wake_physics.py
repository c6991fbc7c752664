"""Physics of the wake: shedding frequency, its refinement, and convergence with resolution.

Mass conservation is in `test_wake_obstacles`, that uniform flow stays uniform likewise.
"""

from itertools import pairwise

import pytest
import torch

from simulators.wake_flow.geometry import Channel
from simulators.wake_flow.staggered import downsample, start
from simulators.wake_flow.step import WakeStep


def shedding_frequency(signal: torch.Tensor, dt: float) -> float:
    """From the upward zero crossings of a signal `(times,)`, interpolated between samples."""
    signal = signal - signal.mean()
    before = torch.nonzero((signal[:-1] < 0) & (signal[1:] >= 0)).flatten()
    times = before + signal[before] / (signal[before] - signal[before + 1])
    return float((len(times) - 1) / ((times[-1] - times[0]) * dt))


def strouhal(width: int, reynolds: torch.Tensor, steps: int) -> torch.Tensor:
    """f D / U of the published cylinder, `(reynolds,)`, from the second half of a run with dt = 0.5."""
    step = WakeStep(width, dt=0.5, advection="mac-cormack")
    velocity = start(step.channel).repeat(len(reynolds), 1, 1, 1)
    probe = []  # velocity across at the domain's centre, 2.5 diameters behind the cylinder
    with torch.no_grad():
        for _ in range(steps):
            velocity = step(velocity, reynolds)
            probe.append(velocity[:, 0, width, width // 2])
    signals = torch.stack(probe)[steps // 2 :].T
    assert (signals.std(dim=1) > 0.2).all()
    return torch.tensor([shedding_frequency(s, step.dt) * 20 for s in signals])


def unbounded(reynolds: torch.Tensor) -> torch.Tensor:
    """Williamson (1989, J. Fluid Mech. 206), parallel shedding at 49 < Re < 178, here used up to 200."""
    return -3.3265 / reynolds + 0.1816 + 1.6e-4 * reynolds


def test_a_frequency_is_found():
    times = torch.arange(400) * 0.5
    assert shedding_frequency(3 + torch.sin(2 * torch.pi * 0.0123 * times), 0.5) == pytest.approx(
        0.0123, 1e-4
    )


def test_the_wake_sheds_at_a_confined_cylinders_frequency():
    """Above that of the unbounded cylinder: walls make the flow pass beside the cylinder faster.

    By 1 / (1 - 0.2) at most, the mean acceleration in the gap, as these walls move with the stream and
    grow no boundary layers.
    """
    reynolds = torch.tensor([100.0, 150.0, 200.0])
    found = strouhal(48, reynolds, 1200)
    assert (found > unbounded(reynolds)).all() and (found < 1.25 * unbounded(reynolds)).all()
    assert (found.diff() > 0).all()


@pytest.mark.slow
def test_the_strouhal_number_converges_to_that_of_a_confined_cylinder():
    """24, 48 and 96 cells across: differences shrink, and Richardson's limit is a confined cylinder's.

    At Re 150, the benchmark 2D-2 of Schaefer & Turek (1996, "Benchmark computations of laminar flow around a
    cylinder"): St = 0.295 to 0.305 and Re = 100 with the mean velocity, so 0.197 to 0.203 and 150 with the
    parabola's 1.5 times larger one at the cylinder. Its cylinder blocks 24 %, ours 20 %, but its walls are
    at rest and its inflow is slower beside the axis: 10 % are left for that.
    """
    reynolds = torch.tensor([100.0, 150.0])
    coarse, middle, fine = (strouhal(width, reynolds, 1400) for width in (24, 48, 96))
    first, second = middle - coarse, fine - middle
    assert (first > 0).all() and (second > 0).all() and (first / second > 2).all()  # at least first order
    limit = fine + second**2 / (first - second)
    assert (limit > unbounded(reynolds)).all() and (limit < 1.25 * unbounded(reynolds)).all()
    assert abs(limit[1] / 0.2 - 1) < 0.1


@pytest.mark.parametrize(
    ("advection", "least", "most"), [("semi-lagrangian", 1.4, 2.2), ("mac-cormack", 3, 4.4)]
)
def test_a_smooth_flow_converges_with_resolution(advection, least, most):
    """Cells and time step halved: differences fall twofold in the limit for first order, fourfold for second.

    A poke without obstacles, after 16 units of time, on 32, 64 and 128 cells across; the finer ones are
    averaged over the faces of the coarsest. On these grids the limit is near, not reached.
    """
    flows = []
    for width in (32, 64, 128):
        step = WakeStep(Channel(width, ()), 32 / width, advection)
        velocity = start(step.channel, dtype=torch.float64)[None]
        for _ in range(width // 2):
            velocity = step(velocity, torch.tensor([400.0], dtype=torch.float64))
        flows.append(downsample(velocity, width // 32))
    first, second = (float((a - b).square().mean().sqrt()) for a, b in pairwise(flows))
    assert least < first / second < most
    assert second < 0.01
