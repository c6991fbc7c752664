"""`differentiable` with a tangent: rows, failures, trust, resuming, values alone, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec
from tests.zo.boxes import Sine
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch, make_box, nonlinear, weights
from zo.tangents import StudentTangent

TWO = zo.box_gradient.RowRGE(1e-4, q=2)
TANGENTS = {
    "identity": zo.tangents.IdentityTangent,
    "kernel": zo.tangents.KernelTangent,
    "network": lambda: learner(zo.tangents.MLPTangent, 8, first_steps=20, steps_per_step=2),
    "student": lambda: StudentTangent(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))),
}


class Regression(zo.tangents.Tangent):
    """The affine map nearest to all values seen: exact where the box is affine."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _fit(self) -> torch.Tensor:
        z, y = (torch.cat(column) for column in zip(*self.seen, strict=True))
        return torch.linalg.lstsq(self._wide(z), y).solution

    def _wide(self, z):
        return torch.cat([z, torch.ones(len(z), 1).double()], dim=1)

    def at(self, rows):
        if not self.seen:
            return zo.tangents.Unknown(rows)
        fit = self._fit()
        return zo.tangents.LinearMap(
            rows, lambda d: d @ fit[:-1], lambda v: v @ fit[:-1].T, self._wide(rows.z) @ fit
        )

    def see(self, pairs):
        self.seen.append((pairs.z, pairs.y))

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def sine(x):
    """What `Sine` computes, with a derivative."""
    return torch.sin(1.3 * x)


def gradient_of(solver, x: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
    x = x.detach().requires_grad_()
    y = solver(x)
    return torch.autograd.grad(y, x, torch.ones_like(y) if v is None else v)[0]


def many_box() -> FromTorch:
    """Two inputs with a derivative, two without; two outputs with one, and one of integers."""

    def many(a, label, b, fixed):
        scale = (1 + label.to(b.dtype))[:, None] * fixed[:, None]
        first = torch.sin(a.flatten(1)) * b[:, :1] * scale
        return first, label + 1, a.sum(dim=(1, 2)) + b.square().sum(dim=1)

    inputs = (
        ArraySpec("a", (2, 2)),
        ArraySpec("label", (), dtype="int64"),
        ArraySpec("b", (3,)),
        ArraySpec("fixed", (), differentiable=False),
    )
    outputs = (ArraySpec("y", (4,)), ArraySpec("n", (), dtype="int64"), ArraySpec("s", ()))
    return FromTorch(many, inputs, outputs)


def exact(box: FromTorch) -> zo.tangents.ModelTangent:
    """The derivative of such a box."""
    return zo.tangents.ModelTangent(lambda *arrays: box.function(*arrays)[::2])


def many_inputs(rows: int = 3) -> list[torch.Tensor]:
    a, b = weights(rows, 2, 2).requires_grad_(), weights(rows, 3, seed=1).requires_grad_()
    return [a, torch.arange(rows), b, weights(rows, seed=2).requires_grad_()]


# What it asks and gives


@pytest.mark.parametrize("kind", TANGENTS)
def test_each_call_costs_its_rows_once_forward_and_none_backward(kind):
    box = Sine()
    solver = zo.differentiable(box, tangent=TANGENTS[kind](), seed=0)
    for _ in range(2):
        state = weights(3, 4).requires_grad_()
        for _ in range(3):
            state = solver(state)
        state.sum().backward()
    assert box.ledger.rows_asked == box.ledger.rows_run == 2 * 3 * 3
    assert solver.counts == zo.box_gradient.RowCounts(calls=6)
    with torch.no_grad():
        solver(weights(3, 4))
    assert box.ledger.rows_asked == 21 and solver.counts.calls == 6


@pytest.mark.parametrize("moving", [(0, 2), (0,), (2,)])
def test_several_inputs_and_outputs_and_those_that_need_no_gradient(moving):
    box, inputs = many_box(), many_inputs()
    for place in (0, 2):
        inputs[place].requires_grad_(place in moving)
    solver = zo.differentiable(box, tangent=exact(box))
    y, n, s = solver(*inputs)
    assert n.tolist() == [1, 2, 3]
    (y.square().sum() + s.sum()).backward()
    y, _, s = box.function(*inputs)
    truth = torch.autograd.grad(y.square().sum() + s.sum(), [inputs[place] for place in moving])
    for place, expected in zip(moving, truth, strict=True):
        assert torch.allclose(inputs[place].grad, expected, rtol=1e-9)
    assert len(box.asked) == 1
    assert all(inputs[place].grad is None for place in set(range(4)) - set(moving))


def test_an_output_that_the_loss_does_not_use_counts_as_zero_and_is_learned_all_the_same():
    inputs, box = many_inputs(), many_box()
    solver = zo.differentiable(box, tangent=exact(box))
    solver(*inputs)[2].sum().backward()
    assert torch.allclose(inputs[0].grad, torch.ones(3, 2, 2).double(), atol=1e-5)
    assert torch.allclose(inputs[2].grad, 2 * inputs[2].detach(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_leading_axes_are_the_inputs(dtype):
    x = weights(2, 3, 4).to(dtype)
    solver = zo.differentiable(Sine(), tangent=zo.tangents.ModelTangent(sine))
    grad = gradient_of(solver, x)
    assert grad.dtype == dtype and grad.shape == x.shape
    truth = 1.3 * torch.cos(1.3 * x)
    assert torch.allclose(grad, truth, atol=4 * torch.finfo(dtype).eps)


def test_the_tangent_is_a_copy():
    template = zo.tangents.KernelTangent()
    solvers = [zo.differentiable(Sine(), tangent=template) for _ in range(2)]
    gradient_of(solvers[0], weights(3, 4))
    assert solvers[0].tangent is not template
    states = [tangent.state_dict()["form"] for tangent in (solvers[0].tangent, solvers[1].tangent, template)]
    assert [form is None for form in states] == [False, True, True]


# Failures


@pytest.mark.parametrize("kind", TANGENTS)
def test_a_dead_row_gets_zero_and_teaches_nothing(kind):
    x, v = weights(5, 4), weights(5, 4, seed=1)
    x[2, 1], v[2] = 9.0, float("nan")
    alive = torch.tensor([0, 1, 3, 4])
    torch.manual_seed(0)
    box = Sine(limit=5.0)
    solver = zo.differentiable(box, tangent=TANGENTS[kind]())
    grad = gradient_of(solver, x, v)
    torch.manual_seed(0)
    alone = gradient_of(zo.differentiable(Sine(), tangent=TANGENTS[kind]()), x[alive], v[alive])
    assert (grad[2] == 0).all()
    assert torch.allclose(grad[alive], alone, rtol=1e-9, atol=1e-9)
    assert box.calls == [5]


def test_nothing_alive_gives_zeros_without_queries():
    box = Sine(limit=-9.0)
    solver = zo.differentiable(box, tangent=zo.tangents.KernelTangent())
    assert torch.equal(gradient_of(solver, torch.zeros(3, 4)), torch.zeros(3, 4))
    assert box.calls == [3] and solver.trust == []


def test_a_nan_that_arrives_at_a_living_row_stays_there():
    v = torch.ones(3, 4).double()
    v[1, 2] = float("nan")
    for tangent in (zo.tangents.IdentityTangent(), zo.tangents.ModelTangent(sine)):
        grad = gradient_of(zo.differentiable(Sine(), tangent=tangent), weights(3, 4), v)
        assert torch.isnan(grad).any(dim=1).tolist() == [False, True, False]


# Trust


def test_without_a_tangent_there_is_no_trust():
    solver = zo.differentiable(Sine(), TWO)
    gradient_of(solver, weights(3, 4))
    assert solver.tangent is None and solver.trust == [] and solver.metrics() == {}


# Values


def test_a_tangent_that_learns_from_values_asks_for_nothing():
    mix = weights(4, 3, seed=5)
    box = FromTorch(lambda x: x @ mix + 1.0, (ArraySpec("x", (4,)),), (ArraySpec("y", (3,)),))
    solver = zo.differentiable(box, tangent=Regression())
    v = weights(4, 3, seed=7)
    errors, predictions = [], []
    for step in range(3):
        grad = gradient_of(solver, weights(4, 4, seed=step), v)
        errors.append(float((grad - v @ mix.T).abs().max()))
        predictions.append(solver.trust[0])
    assert errors[0] > 1e-3 and max(errors[1:]) < 1e-9  # five numbers an output, four rows a step
    assert predictions[0] is None and predictions[2] < 1e-9
    assert box.ledger.rows_run == 12
    assert solver.counts == zo.box_gradient.RowCounts(calls=3)


@pytest.mark.slow
def test_a_student_learns_a_box_from_what_it_answers_anyway():
    box = make_box(nonlinear)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 9)).double()
    student = StudentTangent(network, steps_per_step=20, batch=64)
    solver = zo.differentiable(box, tangent=student)
    errors, cosines = [], []
    for step in range(60):
        x, v = 0.5 * weights(16, 2, 3, seed=step).requires_grad_(), weights(16, 9, seed=1000 + step)
        truth = torch.autograd.grad(nonlinear(x), x, v)[0]
        grad = gradient_of(solver, x, v)
        errors.append(solver.trust[0])
        cosines.append(float((grad * truth).sum() / (grad.norm() * truth.norm())) if grad.any() else 0.0)
    assert box.ledger.rows_run == 60 * 16 + solver.counts.checks
    assert solver.counts.checks == 48  # in the fiftieth backward pass, along its gradient
    assert errors[0] is None or errors[0] > 0.9
    assert max(errors[-5:]) < 0.3
    assert min(cosines[-5:]) > 0.9


def test_the_identity_passes_the_gradient_on():
    box, v = Sine(), weights(3, 4, seed=1)
    assert torch.equal(
        gradient_of(zo.differentiable(box, tangent=zo.tangents.IdentityTangent()), weights(3, 4), v), v
    )
    assert box.calls == [3]


# A tangent that knows next to nothing


def far_faster(x):  # than what a linear map, or a regression, can follow from row to row
    return torch.sin(40.0 * x @ weights(4, 3, seed=5))


def test_a_tangent_that_predicts_next_to_nothing_is_told_once():
    box = FromTorch(far_faster, (ArraySpec("x", (4,)),), (ArraySpec("y", (3,)),))
    solver = zo.differentiable(box, tangent=Regression(), seed=0)
    told, errors = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(60):
            gradient_of(solver, weights(4, 4, seed=step))
            errors.append(solver.trust[0])
            told.append(len(caught))
    assert [str(warning.category) for warning in caught] == [str(zo.TangentWarning)]
    assert told[49] == 0 and "which was wrong by" in str(caught[0].message)
    assert min(error for error in errors[30:50] if error is not None) > 0.8


def test_what_a_tangent_was_wrong_by_goes_on_after_a_resume():
    box = FromTorch(far_faster, (ArraySpec("x", (4,)),), (ArraySpec("y", (3,)),))
    first, second = (zo.differentiable(box, tangent=Regression(), seed=0) for _ in range(2))
    for step in range(40):
        gradient_of(first, weights(4, 4, seed=step))
    second.load_state_dict(first.state_dict())
    with pytest.warns(zo.TangentWarning, match="which was wrong by") as told:
        for step in range(40, 55):
            gradient_of(second, weights(4, 4, seed=step))
    assert len(told) == 1


# Determinism


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", TANGENTS)
def test_resumed_equals_undisturbed_to_the_bit(kind, tmp_path):
    def run(resume: bool) -> tuple[list[torch.Tensor], list]:
        torch.manual_seed(0)
        network, start = nn.Linear(4, 4), TANGENTS[kind]()

        def make():
            return zo.differentiable(Sine(), tangent=start, seed=5)

        solver, trust = make(), []
        for step in range(6):
            if resume and step in (1, 3):
                torch.save(solver.state_dict(), tmp_path / "state.pt")
                solver = make()
                solver.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
                torch.rand(7)
            state = weights(3, 4, seed=step).float()
            for _ in range(3):
                state = solver(state + network(state))
            network.zero_grad()
            state.square().mean().backward()
            with torch.no_grad():
                for p in network.parameters():
                    p -= 0.1 * p.grad
            trust.append(solver.trust)
        return [p.detach() for p in network.parameters()], trust

    (undisturbed, trust), (resumed, same) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(undisturbed, resumed, strict=True))
    assert trust == same and len(trust[0]) == 3


def test_states_of_other_runs_are_refused():
    plain, memory = (
        zo.differentiable(Sine(), TWO),
        zo.differentiable(Sine(), tangent=zo.tangents.KernelTangent()),
    )
    other = zo.differentiable(Sine(), tangent=zo.tangents.KernelTangent(centres=30))
    for solver, state, words in (
        (memory, plain.state_dict(), ["KernelTangent", "None"]),
        (plain, memory.state_dict(), ["None", "KernelTangent"]),
        (memory, other.state_dict(), ["centres=1000", "centres=30"]),
    ):
        solver(torch.zeros(2, 4, requires_grad=True))
        with pytest.raises(zo.errors.ConfigurationError) as caught:
            solver.load_state_dict(state)
        assert all(word in str(caught.value) for word in words)
        assert solver.counts.calls == 1
        solver.counts.calls = 0


BAD = [
    (lambda: zo.differentiable(Sine()), ["differentiable, estimator", "neither", "RowRGE"]),
    (
        lambda: zo.differentiable(Sine(), TWO, tangent=zo.tangents.KernelTangent()),
        ["both, RowRGE(", "KernelTangent"],
    ),
    (
        lambda: zo.differentiable(Sine(), TWO, tangent="memory"),
        ["differentiable, tangent", "str", "MLPTangent()"],
    ),
]


@pytest.mark.parametrize(("act", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_is_a_named_error(act, words):
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError) as caught:
        act()
    assert all(word in str(caught.value) for word in words)


def plant(state, action):
    return 0.9 * state + torch.tanh(action) * torch.tensor([1.0, 0.5, -0.3]).to(state)


def in_closed_loop(noise, steps=6, rows=16):
    """A policy through six steps of a plant, by a tangent that learns from values; what was warned of."""
    specs = ArraySpec("state", (3,)), ArraySpec("action", (1,))
    box = FromTorch(plant, specs, (specs[0],))
    solver = zo.differentiable(box, tangent=zo.tangents.MLPTangent(), seed=0)
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", zo.TangentWarning)
        state = torch.randn(rows, 3).double()
        for _ in range(steps):
            action = policy(state)
            state = solver(state, action + noise * torch.randn_like(action))
        state.square().mean().backward()
    return [str(each.message) for each in warned]


@pytest.mark.slow
def test_an_action_that_is_a_function_of_the_state_is_said_once():
    (said,) = in_closed_loop(0.0)
    assert "'action'" in said and "'state'" not in said and "zo.TangentGradient" in said
    assert not in_closed_loop(0.3)


# Along its gradient


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("weak", [True, False], ids=["hidden by the other input", "alone"])
def test_a_derivative_that_values_hardly_show_is_told(weak):
    """Chance decides: of six draws of the rows it is told in five, and this is one of these."""
    specs = (ArraySpec("x", (4,)), ArraySpec("a", (2,)))

    def function(x, a):
        large = torch.cos(2.5 * x[:, 2:] * x[:, 1:3])
        return (3.0 * large if weak else 0.0) + (0.02 if weak else 1.0) * torch.sin(3.0 * a + x[:, :2])

    box = FromTorch(function, specs, (ArraySpec("y", (2,)),))
    solver = zo.differentiable(box, tangent=zo.tangents.KernelTangent(), seed=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(55):
            x, a = weights(16, 4, seed=14000 + step), weights(16, 2, seed=15000 + step).requires_grad_()
            solver(x, a).sum().backward()
    words = [str(warning.message) for warning in caught]
    assert len(words) == weak and all("along the gradient as KernelTangent" in said for said in words)
    assert solver.counts.checks == 48  # sixteen rows, both ways and where they are
    assert (solver.trust[0] or 1.0) < 0.3  # which says nothing of the derivative by the action


def test_a_batch_without_rows_has_a_gradient_without_rows():
    box = FromTorch(torch.sin, (ArraySpec("x", (4,)),), (ArraySpec("y", (4,)),))
    solver = zo.differentiable(box, tangent=zo.tangents.MLPTangent(8), seed=0)
    assert gradient_of(solver, torch.zeros(0, 4)).shape == (0, 4)
