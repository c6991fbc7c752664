"""What the tests of the small systems share: derivatives by differences, and growth along a trajectory."""

from collections.abc import Callable

import torch
from torch import Tensor

from simulators.state_system import StateSystem


def assert_derivative_is_the_differences(
    step: Callable[[Tensor], Tensor], state: Tensor, tolerance: float = 1e-6, h: float = 1e-6
) -> None:
    """`<J d, v>` by autograd against differences of fourth order along random d, in float64."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        d, v = (torch.randn(state.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        tracked = state.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((step(tracked) * v).sum(), tracked)
        with torch.no_grad():
            near = step(state + h * d) - step(state - h * d)
            far = step(state + 2 * h * d) - step(state - 2 * h * d)
        expected = float((v * (8 * near - far)).sum() / (12 * h))
        scale = float(v.norm() * near.norm()) / (2 * h)
        assert abs(float((gradient * d).sum()) - expected) < tolerance * scale


def lyapunov_exponent(
    box: StateSystem, state: Tensor, steps: int, settle: int = 100, size: float = 1e-7
) -> Tensor:
    """Mean growth rate per step of a small difference, scaled back after each step; one per row.

    The first `settle` steps turn the difference to the fastest growing direction.
    """
    generator = torch.Generator().manual_seed(2)
    difference = torch.randn(state.shape, generator=generator, dtype=torch.float64)
    difference -= difference.mean(-1, keepdim=True)  # KS never forgets a change of its mean
    grown = torch.zeros(len(state), dtype=torch.float64)
    shape = (-1,) + (1,) * (state.ndim - 1)
    with torch.no_grad():
        for number in range(settle + steps):
            difference *= size / difference.flatten(1).norm(dim=1).view(shape)
            after = box.step(state)
            difference = box.step(state + difference) - after
            state = after
            if number >= settle:
                grown += torch.log(difference.flatten(1).norm(dim=1) / size)
    return grown / steps
