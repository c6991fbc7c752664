"""What tangents say of a box that answers the same rows differently: noise, or a state between calls."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction


class Plain(BlackBoxFunction):
    """The sine of each number."""

    inputs = outputs = (ArraySpec("y", (4,)),)

    def evaluate_rows(self, y):
        return np.sin(y)


class Warm(Plain):
    """Goes half the way to the answer from where the last call ended."""

    def __init__(self) -> None:
        super().__init__()
        self.last = 0.0

    def evaluate_rows(self, y):
        self.last = 0.5 * self.last + 0.5 * super().evaluate_rows(y)
        return self.last


class Noisy(Plain):
    """With noise of a hundredth."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = np.random.default_rng(0)

    def evaluate_rows(self, y):
        return super().evaluate_rows(y) + self.draws.normal(0, 0.01, y.shape).astype(y.dtype)


@pytest.mark.parametrize(("make", "times"), [(Warm, 1), (Noisy, 1), (Plain, 0)])
def test_a_box_that_answers_the_same_rows_differently_is_told_of_once(make, times):
    torch.manual_seed(0)
    box, network = make(), nn.Linear(4, 4)

    def objective(network, batch):
        return (box(network(box(network(batch)))) - 0.3).square().mean(dim=1)

    gradient = zo.TangentGradient(network, objective, boxes=[box])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(6):
            network.zero_grad()
            gradient.backward(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))
    told = [str(warning.message) for warning in said if "asked the same rows again" in str(warning.message)]
    assert len(told) == times
    assert all(issubclass(w.category, zo.errors.TangentWarning) for w in said)
    assert all("Step 1" in words and "`blackbox check`" in words for words in told)
