"""A prior under a learned rest: y = f(x) + what a model learns of y - f(x)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec, BlackBoxFunction
from zo.errors import ConfigurationError
from zo.tangents import (
    AutoTangent,
    CallPairs,
    GridTangent,
    IdentityTangent,
    KernelTangent,
    MLPTangent,
    ModelTangent,
    SelectedTangent,
    StencilTangent,
    Tangent,
)

SPECS = {"dtype": "float64"}


def twin(x: Tensor, c: Tensor) -> Tensor:
    """The box of these tests, as a function of tensors."""
    return torch.stack([torch.sin(x[:, 0]) * x[:, 1] + c[:, 0], x[:, 2].square() * c[:, 1]], 1)


class Bent(BlackBoxFunction):
    """`twin`, and perhaps a slope beside it."""

    inputs = (
        ArraySpec("x", shape=(3,), **SPECS),
        ArraySpec("c", shape=(2,), differentiable=False, **SPECS),
    )
    outputs = (ArraySpec("y", shape=(2,), **SPECS),)

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.slope = slope

    def evaluate_rows(self, x: np.ndarray, c: np.ndarray) -> np.ndarray:
        return self.true(torch.as_tensor(x), torch.as_tensor(c)).numpy()

    def true(self, x: Tensor, c: Tensor) -> Tensor:
        return twin(x, c) + self.slope * x[:, :2]


class Answering(Bent):
    """A box that answers with a derivative which is differentiable once, as a server's is."""

    has_derivative = True

    def reference(self, x: Tensor, c: Tensor) -> Any:
        return _Once.apply(x, c)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(x, c)
        return twin(x, c)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        x, c = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(twin(x, c), x, v)[0], None


class AsModule(nn.Module):
    """`twin` with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.one * twin(x, c)


def rows_of(box: Bent, count: int, seed: int = 0) -> CallPairs:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=draws, dtype=torch.float64)
    c = torch.randn(count, 2, generator=draws, dtype=torch.float64)
    return CallPairs(box.inputs[:1], box.outputs, x, box.true(x, c), others=(None, c))


def trained(
    box: Bent, tangent: Tangent, steps: int, state: dict[str, Any] | None = None, first: int = 0
) -> tuple[nn.Module, zo.TangentGradient, float]:
    """A network, its gradient, and by how much gradients missed those of autograd, at most."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def objective(solver: Callable[..., Any]) -> Callable[[nn.Module, Any], Tensor]:
        return lambda net, batch: solver(net(batch[0]), batch[1]).square().sum(1)

    few = zo.tangents.Limits(replays=4)
    gradient = zo.TangentGradient(network, objective(box), boxes=[box], tangent=tangent, limits=few)
    if state is not None:
        gradient.load_state_dict(state["gradient"])
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    missed = 0.0
    for step in range(first, steps):
        draws = torch.Generator().manual_seed(step)
        batch = tuple(torch.randn(8, n, generator=draws, dtype=torch.float64) for n in (4, 2))
        optimizer.zero_grad()
        gradient.backward(batch)
        weights = list(network.parameters())
        exact = torch.autograd.grad(objective(box.true)(network, batch).mean(), weights)
        for weight, slope in zip(weights, exact, strict=True):
            assert weight.grad is not None
            missed = max(missed, float((weight.grad - slope).abs().max() / slope.abs().max()))
        optimizer.step()
        for _ in range(gradient.replays()):
            optimizer.zero_grad()
            gradient.replay()
            optimizer.step()
    trained.state = {  # type: ignore[attr-defined]
        "gradient": copy.deepcopy(gradient.state_dict()),
        "network": copy.deepcopy(network.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
    }
    return network, gradient, missed


def learned(tangent: Tangent) -> Tangent:
    """A tangent that has learned from rows of the box."""
    rows = rows_of(Bent(), 300, seed=9)
    tangent.see(rows)
    tangent.learn()
    return tangent


KINDS = {
    "function": lambda: twin,
    "module": AsModule,
    "box": Answering,
    "tangent": lambda: ModelTangent(twin),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_that_equals_the_box_gives_the_exact_gradient_from_the_first_step_on(kind: str) -> None:
    box = Bent()
    _, gradient, missed = trained(box, KernelTangent(prior=KINDS[kind]()), 3)
    assert missed < 1e-6
    assert gradient.counts.lost == 0


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_both_products_are_the_priors_before_anything_was_learned(kind: str) -> None:
    box = Bent()
    rows = rows_of(box, 5)
    at = KernelTangent(prior=KINDS[kind]()).at(rows)
    assert at.values is not None
    assert torch.allclose(at.values, rows.y, atol=1e-12)
    d = torch.randn(5, 3, dtype=torch.float64)
    context = rows.others[1]
    assert context is not None
    pushed = torch.autograd.functional.jvp(lambda x: twin(x, context), rows.z, d)[1]
    assert torch.allclose(at.push(d), pushed, atol=1e-7)
    v = torch.randn(5, 2, dtype=torch.float64)
    pulled = torch.autograd.functional.vjp(lambda x: twin(x, context), rows.z, v)[1]
    assert torch.allclose(at.pull(v), pulled, atol=1e-12)
    moved = (rows.z + d).requires_grad_()
    assert torch.allclose(at.to(moved, rows.others), twin(moved, context) - rows.y, atol=1e-12)


def test_a_fitted_tangent_is_a_prior_which_does_not_learn() -> None:
    below = learned(KernelTangent())
    before = below.at(rows_of(Bent(), 5)).values
    above = KernelTangent(prior=below)
    above.see(rows_of(Bent(0.3), 60))
    above.learn()
    after = below.at(rows_of(Bent(), 5)).values
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    test = rows_of(Bent(0.3), 50, seed=3)
    alone, summed = below.at(test).values, above.at(test).values
    assert alone is not None
    assert summed is not None
    assert (summed - test.y).square().mean() < 0.2 * (alone - test.y).square().mean()


@pytest.mark.parametrize(
    "make", [KernelTangent, lambda **prior: MLPTangent(32, **prior)], ids=["kernel", "mlp"]
)
def test_a_linear_rest_is_learned_above_the_prior(make: Callable[..., Tangent]) -> None:
    box, tangent = Bent(0.5), make(prior=twin)
    tangent.see(rows_of(box, 100))
    tangent.learn(400)
    test = rows_of(box, 20, seed=1)
    at, context = tangent.at(test), test.others[1]
    assert at.values is not None
    assert context is not None
    assert (at.values - test.y).norm() < 0.3 * (twin(test.z, context) - test.y).norm()
    v = torch.randn(20, 2, dtype=torch.float64)
    without, exact = (
        torch.autograd.functional.vjp(lambda x, y=y: y(x, context), test.z, v)[1] for y in (twin, box.true)
    )
    assert (at.pull(v) - exact).norm() < 0.3 * (without - exact).norm()


def test_replays_do_not_ask_the_prior_again_at_recorded_rows() -> None:
    asked: list[bytes] = []

    def counting(x: Tensor, c: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # values alone
            asked.extend(row.tobytes() for row in torch.cat([x, c], 1).detach().numpy())
        return twin(x, c)

    _, gradient, _ = trained(Bent(0.2), KernelTangent(prior=counting), 8)
    assert gradient.counts.replays > 8
    tangent = gradient.tangents[0]
    assert isinstance(tangent, KernelTangent)
    assert tangent.prior is not None
    assert len(asked) == len(set(asked)) == 8 * 8 == tangent.prior.rows


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("auto", [False, True])
def test_a_resumed_run_goes_on_to_the_same_bits(auto: bool) -> None:
    def make(box: Bent) -> Tangent:
        return AutoTangent(box, prior=twin) if auto else KernelTangent(prior=twin)

    box = Bent(0.2)
    whole, _, _ = trained(box, make(box), 6)
    trained(box, make(box), 3)
    state = trained.state  # type: ignore[attr-defined]
    resumed, _, _ = trained(box, make(box), 6, state, first=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_prior_of_the_wrong_sign_is_left_and_that_is_said_once() -> None:
    box = Bent()
    tangent = AutoTangent(box, prior=lambda x, c: -10 * twin(3 * x, c))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, gradient, _ = trained(box, tangent, 27)
    said = [str(w.message) for w in caught if "expected a prior that helps" in str(w.message)]
    assert len(said) == 1
    used = gradient.tangents[0]
    assert isinstance(used, AutoTangent)
    assert used.kind == "kernel"
    assert list(used.models) == ["kernel"]


def test_a_good_prior_stays_and_nothing_is_said() -> None:
    box = Bent(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", zo.TangentWarning)
        _, gradient, _ = trained(box, AutoTangent(box, prior=twin), 27)
    used = gradient.tangents[0]
    assert isinstance(used, AutoTangent)
    assert list(used.models) == ["prior"]


def test_who_takes_over_from_a_prior_begins_with_the_boxes_own_answers() -> None:
    box = Bent(0.1)
    tangent = AutoTangent(box, prior=twin)
    tangent.see(rows_of(box, 60))
    tangent.learn()
    kept = tangent.models["prior"].rows()
    assert kept is not None
    assert torch.allclose(kept[1][2], rows_of(box, 60).y, atol=1e-12)


def test_answers_that_are_there_already_are_learned_less_the_prior() -> None:
    box = Bent(0.5)
    rows = rows_of(box, 100)
    context = rows.others[1]
    assert context is not None
    tangent = AutoTangent(box, prior=twin)
    tangent.fit([rows.z, context], rows.y)
    assert tangent.kind == "prior"
    test = rows_of(box, 20, seed=1)
    values = tangent.at(test).values
    assert values is not None
    assert torch.allclose(values, test.y, atol=1e-2)


class Shifted(BlackBoxFunction):
    """A field moved on by one cell and a little of itself."""

    inputs = (ArraySpec("u", shape=(1, 16), **SPECS),)
    outputs = (ArraySpec("u", shape=(1, 16), **SPECS),)

    def evaluate_rows(self, u: np.ndarray) -> np.ndarray:
        return np.roll(u, 1, -1) + 0.1 * u


@pytest.mark.parametrize("kind", [GridTangent, StencilTangent])
def test_grid_models_learn_above_a_prior(kind: Callable[..., Tangent]) -> None:
    u = torch.randn(64, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = u.roll(1, -1) + 0.1 * u
    flat = CallPairs(Shifted.inputs, Shifted.outputs, u.flatten(1), y.flatten(1))
    tangent = kind(prior=lambda u: u.roll(1, -1))
    at = tangent.at(flat)
    assert at.values is not None
    assert torch.equal(at.values, u.roll(1, -1).flatten(1))
    tangent.see(flat)
    tangent.learn(100)
    v = torch.randn(64, 16, dtype=torch.float64)
    exact = v.roll(-1, -1) + 0.1 * v
    assert (tangent.at(flat).pull(v) - exact).norm() < 0.5 * (v.roll(-1, -1) - exact).norm()


def test_a_population_imagines_with_a_prior_from_the_first_step_on() -> None:
    box = Bent()
    gradient = zo.TangentGradient(
        nn.Linear(4, 3).double(),
        lambda net, batch: box(net(batch[0]), batch[1]).square().sum(1),
        boxes=[box],
        tangent=ModelTangent(twin),
    )
    batch = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    with torch.no_grad():
        exact = twin(gradient.network(batch[0]), batch[1]).square().sum(1)
    assert torch.allclose(gradient.through(batch), exact)


@pytest.mark.parametrize("bad", [3, Bent()])
def test_what_is_no_prior_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="prior: expected"):
        KernelTangent(prior=bad)


def test_a_tangent_of_changes_alone_is_refused_when_its_values_are_wanted() -> None:
    with pytest.raises(ConfigurationError, match="knows the box's values"):
        KernelTangent(prior=IdentityTangent()).see(rows_of(Bent(), 3))


def test_a_model_is_not_judged_by_its_values() -> None:
    rows = rows_of(Bent(), 3)
    assert ModelTangent(twin).expect(rows) is None
    assert "prior" not in repr(KernelTangent())
    assert "prior" not in KernelTangent().state_dict()


@pytest.mark.parametrize(("sign", "above"), [(1, True), (-1, False)])
def test_of_several_models_one_is_selected_above_the_prior_or_without_it(sign: int, above: bool) -> None:
    """A wrong prior leaves no trace; and a saved choice is the same one again."""
    draws = torch.Generator().manual_seed(0)
    x, new = (torch.randn(rows, 2, generator=draws, dtype=torch.float64) for rows in (40, 20))

    def waves(x: Tensor) -> Tensor:
        return torch.sin(2 * x[:, :1]) * x[:, 1:]

    def made(prior: Callable[..., Tensor] | None) -> SelectedTangent:
        models = {"line": zo.tangents.LinearTangent, "kernel": KernelTangent}
        return SelectedTangent(models, prior=prior)

    tangent, plain = made(lambda x: sign * waves(x)), made(None)
    for each in (tangent, plain):
        each.fit(x, waves(x) + x[:, :1])
    assert tangent.kinds == ("line above prior", "kernel above prior", "line", "kernel")
    assert tangent.kind == min(tangent.errors, key=lambda kind: tangent.errors[kind])
    assert tangent.kind.endswith("above prior") == above
    assert ("prior=" in repr(tangent)) == above

    y = waves(new) + new[:, :1]
    rows = CallPairs((ArraySpec("x", (2,)),), (ArraySpec("y", (1,)),), new, y)
    values, alone = tangent.at(rows).values, plain.at(rows).values
    assert values is not None
    assert alone is not None
    torch.testing.assert_close(values, y if above else alone, rtol=0, atol=1e-5)

    loaded = made(lambda x: sign * waves(x))
    loaded.load_state_dict(tangent.state_dict())
    v = torch.ones_like(y)
    assert torch.equal(loaded.at(rows).pull(v), tangent.at(rows).pull(v))
