"""Boxes whose answers are printed with few digits: a right tangent is trusted, a wrong one is not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction
from zo.errors import TangentWarning
from zo.tangents import ModelTangent

ROWS, STEPS = 16, 40


class Program(BlackBoxFunction):
    """Values between 1 and 900, as a program prints them with `%.6g`, or all their digits."""

    inputs = (ArraySpec("x", (3,)),)
    outputs = (ArraySpec("y", (3,)),)

    def __init__(self, digits: int | None) -> None:
        super().__init__()
        self.digits, self.rows = digits, 0

    def evaluate_rows(self, x: np.ndarray) -> np.ndarray:
        self.rows += len(x)
        y = 450 + 449 * np.sin(x.astype(np.float64))
        if self.digits:
            y = np.array([float(f"{value:.{self.digits}g}") for value in y.ravel()]).reshape(y.shape)
        return y.astype(x.dtype)


def twin(x):
    return 450 + 449 * torch.sin(x)


def wrong(x):
    return 450 - 449 * torch.sin(x.flip(-1))


def trained(digits, slope, dtype, away=1e-3):
    """A gradient after some steps near the best weights, the cosines to the truth, and what was said."""
    torch.manual_seed(0)
    network, best = nn.Linear(4, 3, dtype=dtype), nn.Linear(4, 3, dtype=dtype).requires_grad_(False)
    with torch.no_grad():
        for weight, there in zip(network.parameters(), best.parameters(), strict=True):
            weight.copy_(there + away * torch.randn_like(there))
    box, cosines = Program(digits), []

    def objective(answer):
        return lambda network, batch: (answer(network(batch)) - twin(best(batch))).square().mean(dim=1)

    gradient = zo.TangentGradient(
        network,
        objective(box),
        boxes=[box],
        tangent=ModelTangent(slope),
        limits=zo.tangents.Limits(check_every=2),
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(STEPS):
            batch = torch.randn(ROWS, 4, dtype=dtype, generator=torch.Generator().manual_seed(step))
            network.zero_grad()
            gradient.backward(batch)
            mine = torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])
            true = torch.autograd.grad(objective(twin)(network, batch).mean(), list(network.parameters()))
            cosines.append(
                float(torch.cosine_similarity(mine, torch.cat([g.flatten() for g in true]), dim=0))
            )
    messages = [str(warning.message) for warning in said if issubclass(warning.category, TangentWarning)]
    return gradient, box, cosines, messages


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_tangent_is_trusted_and_a_wrong_one_is_found(dtype):
    gradient, box, cosines, messages = trained(6, twin, dtype)
    assert min(cosines) >= 0.99 and not messages and not gradient.watch.lost
    assert box.rows == gradient.counts.rows
    assert gradient.agreement == pytest.approx(1.0, abs=0.1)
    gradient, _, cosines, messages = trained(6, wrong, dtype)
    assert max(cosines) < 0.9 and gradient.watch.lost and "the loss along the gradient" in messages[0]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_no_way_is_long_enough_nothing_is_asked_and_the_digits_are_said_once(dtype):
    gradient, box, cosines, messages = trained(6, twin, dtype, away=1e-5)
    assert min(cosines) >= 0.99 and not gradient.watch.lost and gradient.agreement is None
    assert len(messages) == 1 and "the box's answers have 6 digits: print more" in messages[0]
    assert box.rows == ROWS * STEPS  # training's own


def test_answers_with_all_digits_are_checked_with_one_query():
    gradient, box, _, messages = trained(None, twin, torch.float64)
    assert not messages and box.rows == ROWS * STEPS * 3 // 2
    assert gradient.agreement == pytest.approx(1.0, abs=1e-2)
