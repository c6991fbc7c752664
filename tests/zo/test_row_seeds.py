"""Seeds of `differentiable`: boxes, calls and copies draw apart, or the gradient through several is wrong."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

import zo
from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction
from blackbox.adapters import from_callable
from tests.zo.boxes import Sine
from tests.zo.row_boxes import weights

ONE = zo.box_gradient.RowRGE(1e-3, q=1)


class Rotation(BlackBoxFunction):
    """By 90 degrees: with equal draws u the mean of (c u u^T R^T)^2 is zero, and the truth -1."""

    inputs = outputs = (ArraySpec("u", shape=(2,)),)
    arrays = "torch"

    def evaluate_rows(self, u: Tensor) -> Tensor:
        return torch.stack([-u[:, 1], u[:, 0]], dim=1)


def one() -> zo.box_gradient.DifferentiableBox:
    return zo.differentiable(Rotation(), ONE)


def twice() -> list:
    return [one()] * 2


def a_copy() -> list:
    first = one()
    return [first, copy.deepcopy(first)]


def a_shallow_copy() -> list:
    first = one()
    return [first, copy.copy(first)]


def one_made_after_another_was_unpickled() -> list:
    first = pickle.loads(pickle.dumps(one()))
    return [first, one()]


def one_made_after_a_state_was_loaded() -> list:
    state = one().state_dict() | {"_extra_state": one().get_extra_state() | {"seed": one().seed + 1}}
    first = one()
    first.load_state_dict(state)
    return [first, one()]


def one_with_the_number_of_the_other() -> list:
    first = one()
    return [first, zo.differentiable(Rotation(), ONE, seed=first.seed)]


PAIRS = [
    lambda: [one(), one()],
    twice,
    a_copy,
    a_shallow_copy,
    one_made_after_another_was_unpickled,
    one_made_after_a_state_was_loaded,
    one_with_the_number_of_the_other,
]


@pytest.mark.parametrize("make", PAIRS, ids=lambda make: make.__name__)
def test_the_mean_gradient_through_two_boxes_is_the_gradient(make):
    """4,000 equal rows are 4,000 draws. |z| > 5 in one of 2 numbers has probability 1e-6, and 7 tests."""
    rows, (first, second) = 4000, make()
    z = torch.ones(rows, 2, dtype=torch.float64, requires_grad=True)
    v = torch.tensor([1.0, 2.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad((second(first(z)) * v).sum(), z)
    error = grad + v  # the truth is -v
    assert (error.mean(dim=0) / (error.std(dim=0) / math.sqrt(rows))).abs().max() < 5


def test_a_loop_through_one_box_near_the_identity_is_not_too_long():
    """16 inputs, 2 calls of u -> 1.1 u: with equal draws the gradient would be about 16 times too long."""
    box = zo.differentiable(Growing(), ONE)
    rows, v = 20000, torch.linspace(-1, 1, 16, dtype=torch.float64)
    z = torch.zeros(rows, 16, dtype=torch.float64, requires_grad=True)
    state = z
    for _ in range(2):
        state = box(state)
    (grad,) = torch.autograd.grad((state * v).sum(), z)
    error = grad - 1.1**2 * v
    assert (error.mean(dim=0) / (error.std(dim=0) / math.sqrt(rows))).abs().max() < 5


class Growing(BlackBoxFunction):
    inputs = outputs = (ArraySpec("u", shape=(16,)),)
    arrays = "torch"

    def evaluate_rows(self, u: Tensor) -> Tensor:
        return 1.1 * u


def gradient_of(solver, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(solver(x).sum(), x)[0]


def test_a_box_without_a_seed_goes_on_from_a_state_to_the_same_bits():
    """In a notebook where the cell was run again it has another number by then."""
    first, x = zo.differentiable(Sine(), ONE), weights(3, 4)
    gradient_of(first, x)
    state = copy.deepcopy(first.state_dict())
    expected = gradient_of(first, x)
    second = zo.differentiable(Sine(), ONE)
    assert second.seed > first.seed
    second.load_state_dict(state)
    assert torch.equal(gradient_of(second, x), expected)
    assert second.seed == first.seed and f"seed=None (number {first.seed})" in repr(second)


def test_numbers_go_by_the_order_of_making_and_given_seeds_take_none():
    first = zo.differentiable(Sine(), ONE)
    zo.differentiable(Sine(), ONE, seed=3)
    assert zo.differentiable(Sine(), ONE).seed == first.seed + 1


def test_a_deep_copy_of_a_box_with_a_seed_keeps_it():
    solver = zo.differentiable(Sine(), ONE, seed=3)
    assert copy.deepcopy(solver).seed == solver.seed == 3


def through(first, second, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(second(first(z)).square().sum(), z)[0]


@pytest.mark.filterwarnings("error::zo.errors.SeedWarning")
def test_boxes_of_one_seed_in_one_backward_pass_are_told_once():
    """Two trainings beside each other, a box that is called twice, and a rule without draws are not."""
    z = weights(50, 2)
    first, second = (zo.differentiable(Rotation(), ONE, seed=5) for _ in range(2))
    through(first, first, z)
    through(second, second, z)
    through(zo.differentiable(Rotation(), ONE, seed=6), zo.differentiable(Rotation(), ONE, seed=7), z)
    through(*(zo.differentiable(Rotation(), zo.CGE(1e-3), seed=5) for _ in range(2)), z)
    with pytest.warns(zo.errors.SeedWarning, match="another one with seed 5 too"):
        through(first, second, z)
    through(first, second, z)


@pytest.mark.slow
def test_calls_in_threads_draw_directions_of_their_own_and_lose_no_count():
    """One box around which four threads go at once, as replicas do: four numbers, 200 times."""
    reached = threading.Barrier(4, timeout=60)

    class Slow(BlackBoxFunction):
        arrays = "torch"
        inputs = outputs = (ArraySpec("u", shape=(3,)),)
        waits = False

        def evaluate_rows(self, u):
            if self.waits:
                reached.wait()  # all calls are in flight
            return 1.0 * u

    box = Slow()
    solver = zo.differentiable(box, zo.box_gradient.RowRGE(1e-2, 1), seed=0, check=False)

    def gradient_of_one() -> torch.Tensor:
        x = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        box.waits = True
        y = solver(x)
        reached.wait()
        box.waits = False
        y.sum().backward()
        assert x.grad is not None
        return x.grad

    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            found = torch.cat([done.result() for done in [pool.submit(gradient_of_one) for _ in range(4)]])
            assert len(found.unique(dim=0)) == 4
    assert solver.counts.calls == 200 and solver.counts.rows == 200


def test_a_call_that_fails_takes_no_number():
    def fails_once(u):
        if not asked:
            asked.append(1)
            raise ValueError("once")
        return np.sin(u)

    asked: list[int] = []
    box = from_callable(fails_once, inputs=[ArraySpec("u", (3,))], outputs=[ArraySpec("y", (3,))])
    solver = zo.differentiable(box, zo.box_gradient.RowRGE(1e-4, 1), seed=0)
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(BlackBoxError):
        solver(x)
    assert solver.counts.calls == 0
    solver(x).sum().backward()
    assert solver.counts.calls == 1
