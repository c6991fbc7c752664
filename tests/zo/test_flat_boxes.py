"""Boxes that are constant in pieces, as trees are: said once, and hardly any checks."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction

ROWS = 16


class Stairs(BlackBoxFunction):
    """sin(x), rounded to steps; to none where they are of width 0."""

    inputs = (ArraySpec("x", (3,)),)
    outputs = (ArraySpec("y", (3,)),)

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def evaluate_rows(self, x: np.ndarray) -> np.ndarray:
        self.rows += len(x)
        y = np.sin(x)
        return np.round(y / self.width) * self.width if self.width else y


def objective_of(box):
    return lambda network, batch: (box(network(batch)) - 0.5).square().mean(dim=1)


def trained(box, steps, *, wrong=False, policy=zo.tangents.TrustPolicy(check_every=2), **settings):  # noqa: B008
    """A gradient after some steps, and what was said; a wrong tangent never learns."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    student = zo.tangents.StudentTangent(nn.Linear(3, 3), learning_rate=1e-9 if wrong else 1e-2)
    gradient = zo.TangentGradient(
        network, objective_of(box), boxes=[box], trust_policy=policy, **({"tangent": student} | settings)
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        go_on(gradient, network, range(steps))
    return gradient, [
        str(warning.message) for warning in said if "constant in pieces" in str(warning.message)
    ]


def go_on(gradient, network, steps):
    for step in steps:
        network.zero_grad()
        gradient.backward(torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            for weight in network.parameters():
                weight -= 0.01 * weight.grad


def test_stairs_are_told_once_and_get_hardly_any_checks():
    box = Stairs(0.25)
    gradient, said = trained(box, 24, wrong=True)
    (message,) = said
    assert (
        "Step 1: " in message
        and "of the rows" in message
        and "every 20 steps" in message
        and "KeepBest" in message
    )
    assert "StudentTangent" not in message  # it has one
    # the base of each step, and the checks of the first step and of the twentieth
    assert gradient.counts.rows == box.rows == ROWS * (24 + 2)
    assert gradient.counts.checks == gradient.counts.failed_checks == 2


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("width", [0, 1e-5], ids=["smooth", "fine steps"])
def test_boxes_that_answer_are_checked_as_ever(width):
    gradient, said = trained(Stairs(width), 24, wrong=True)
    assert said == [] and gradient.counts.checks == 1 + 12
    assert gradient.watch.lost  # since the tangent is wrong


def test_a_box_that_is_smooth_again_is_checked_as_ever():
    box = Stairs(0.25)
    gradient, said = trained(box, 18)
    assert len(said) == 1 and gradient.counts.checks == 1
    box.width = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        go_on(gradient, gradient.network, range(18, 24))
    assert gradient.counts.checks == 1 + 1 + 2  # at 20, and then at 22 and 24


def test_a_run_that_goes_on_knows_it():
    gradient, _ = trained(Stairs(0.25), 3)
    twin, said = trained(Stairs(0.25), 0)
    twin.load_state_dict(gradient.state_dict())
    go_on(twin, twin.network, range(3, 9))
    assert said == [] and twin.counts.checks == 1


def test_a_gradient_that_is_far_too_long_does_not_make_a_smooth_box_look_flat():
    """In float32 the way that it foretells a thousandth of the loss on changes no digit of an answer."""

    class TooLong(zo.tangents.Tangent):
        def at(self, rows):
            return zo.tangents.LinearMap(rows, lambda d: 1e6 * d, lambda v: 1e6 * v)

    torch.manual_seed(0)
    network, box = nn.Linear(4, 3), Stairs(0)
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], tangent=TooLong())
    batch = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    true = torch.autograd.grad((network(batch).sin() - 0.5).square().mean(), list(network.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", zo.TangentWarning)
        gradient.backward(batch)
    estimated, true = (
        torch.cat([g.flatten() for g in parts])
        for parts in ([weight.grad for weight in network.parameters()], true)
    )
    assert not gradient.watch.flat
    assert torch.allclose(estimated, (true @ estimated) / (estimated @ estimated) * estimated, rtol=0.05)
