"""Faults that once gave a wrong gradient without a word, and what the user must hear of each.

`test_matrix.py` asks only that gradients are right. Here it is asked, too, that the user hears of it: by a
warning that names the module or the parameter, or by an error.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tests.gradients import finite_differences
from tests.gradients.trials import names_a_part, of_the_library, off, trial
from tests.networks import TREACHEROUS, weighted_error
from tests.networks.keeping import CachesById
from tests.networks.treacherous import RisingMixture, against_the_last, centred, next_row, noisy

CASES = {case.name: case for case in TREACHEROUS}
FORWARD = zo.CGE(1e-6)
FAST = [("stacked", False), ("auto", False), ("auto", True), ("difference", True)]
EVALUATORS = ["loop", "stacked", "auto"]


def heard(said: list[warnings.WarningMessage]) -> list[Warning | str]:
    """Warnings of the library."""
    return [w.message for w in said if of_the_library(w.category)]


# ------------------------------------------------- 1.1: checked on chunks that real steps never have

OWNERS = [
    *(
        "local reparameterisation",
        "dropout inside the owner",
        "batch norm by hand",
        "noisy",
        "uniformly_noisy",
    ),
    *("centred", "standardised", "cumulative", "sorted_rows", "strongest_rows", "group means"),
]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("chunk", [5, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OWNERS)
def test_a_module_with_weights_that_draws_or_mixes_is_right_in_chunks_of_any_size(name, chunk):
    """Where a chunk moves no weight of the module, its forward runs on the rows of all variants."""
    assert trial(CASES[name], FORWARD, "stacked", chunk, output_loss=False).right


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", OWNERS)
def test_who_asked_for_stacked_hears_which_module_it_cannot_serve(name):
    outcome = trial(CASES[name], FORWARD, "stacked", 24, output_loss=False)
    fallen = [w for w in outcome.warnings if isinstance(w, zo.errors.EvaluatorWarning)]
    assert len(fallen) == 1, f"expected one warning in all steps: {outcome}"
    assert names_a_part(fallen[0], CASES[name].make()), str(fallen[0])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["auto", "difference"])
def test_a_loss_of_the_output_without_rules_falls_back_to_what_is_right(evaluator):
    """`Tensor.var` has no rule, and the fall-back from "difference" may not be worse than it."""

    def spread(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).var(dim=1)

    for name in ("local reparameterisation", "dropout inside the owner", "centred"):
        case = CASES[name]
        network, batch = case.make(), case.batch(0)
        objective = zo.OutputLoss(spread)
        truth = finite_differences.gradient(objective, network, batch, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gradient = zo.LossGradient(network, objective, FORWARD, evaluator=evaluator, chunk=24)
            finite_differences.seed_everything(0)
            gradient.backward(batch)
        assert off([p.grad for p in network.parameters()], truth) <= 1, name


# ------------------------------------------------------------------ 1.2: what sleeps at the first batch

SLEEPERS = [
    *("rising drop path", "rising dropout by the function", "rezero around centred", "rezero around noisy"),
    *("rezero around sorted_rows", "rezero around cumulative", "rising centred", "rising opposite_row"),
]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", SLEEPERS)
def test_what_wakes_at_a_later_step_is_found_and_the_module_named(name):
    outcome = trial(CASES[name], FORWARD, "stacked", 24, output_loss=False)
    assert outcome.right, f"{outcome}"
    assert any(names_a_part(w, CASES[name].make()) for w in outcome.warnings), f"{outcome}"


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("rising ")])
def test_pairs_of_opposite_steps_hide_nothing(name):
    """To a variant that moves nothing the means over antithetic neighbours are those of the base."""
    for estimator in (zo.RGE(1e-5, q=4, central=True), zo.CGE(1e-5, central=True)):
        assert trial(CASES[name], estimator, "stacked", 4096, output_loss=False).right


# ------------------------------------------------------------------- 1.3: weights written in a forward


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(network: nn.Module, state: dict[str, Tensor]) -> bool:
    now = network.state_dict()
    return all(torch.equal(now[name], value) for name, value in state.items())


WRITERS = [name for name in CASES if name.startswith(("momentum encoder", "unit norm"))]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("evaluator", "output_loss"), [pytest.param("loop", False, marks=pytest.mark.slow), *FAST]
)
@pytest.mark.parametrize("name", WRITERS)
def test_weights_that_a_forward_writes_are_left_as_one_forward_leaves_them(name, evaluator, output_loss):
    outcome = trial(CASES[name], FORWARD, evaluator, 24, output_loss=output_loss)
    assert outcome.changed == []


@pytest.mark.quick_cases(27)
@pytest.mark.parametrize("call", [0, 1, 2, 9])
@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("name", [*WRITERS, "batch norm by hand", "rising drop path, counted"])
def test_weights_are_left_alone_by_an_error_in_the_objective(name, evaluator, call):
    """Whatever call it comes from: the base, a check or a query."""
    case = CASES[name]
    network, batch, calls = case.make(), case.batch(0), 0
    case.before(network, 0)

    def breaks(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        loss = case.plain(network, batch)
        if calls == call:
            raise ArithmeticError("on purpose")
        calls += 1
        return loss

    _, after = finite_differences.evaluated(case.plain, network, batch, seed=0)
    states = snapshot(network), snapshot(after)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gradient = zo.LossGradient(network, breaks, FORWARD, evaluator=evaluator, chunk=24)
        finite_differences.seed_everything(0)
        try:
            gradient.backward(batch)
        except ArithmeticError:
            assert all(p.grad is None for p in network.parameters())
        except Exception as error:  # refused before the call that breaks
            assert of_the_library(type(error)) and case.excuse, f"{error!r}"
    assert any(same(network, state) for state in states)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_an_interrupt_leaves_the_weights_alone(evaluator):
    """Ctrl-C is no `Exception`."""
    network, calls = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double(), 0

    def interrupted(network: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return network(batch).square().mean(dim=1)

    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    gradient = zo.LossGradient(network, interrupted, zo.CGE(1e-4), evaluator=evaluator)
    with pytest.raises(KeyboardInterrupt):
        gradient.backward(torch.randn(6, 3).double())
    assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters())
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_an_objective_that_writes_an_output_which_is_a_view_of_weights(evaluator):
    """Codes of rows are weights; `y -= target` would move them for good."""
    case = CASES["weights as output"]
    network, batch = case.make(), case.batch(0)

    def in_place(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        y = network(batch[0])
        y -= batch[1]
        return y.square().mean(dim=1)

    before = snapshot(network)
    truth = finite_differences.gradient(in_place, network, batch, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            zo.LossGradient(network, in_place, FORWARD, evaluator=evaluator, chunk=5).backward(batch)
        except Exception as error:
            assert of_the_library(type(error)) and names_a_part(error, network), f"{error!r}"
            assert same(network, before)
            return
    assert off([p.grad for p in network.parameters()], truth) <= 1


# ------------------------------------------------------------------------- 1.4: state outside of torch


class Counts(nn.Module):
    """Outputs grow with the number of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * (1 + 0.01 * self.calls)


class DrawsOutside(nn.Module):
    """`generator` is its own, of torch or of NumPy; None for Python's global one."""

    def __init__(self, generator: torch.Generator | np.random.Generator | None = None) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            return self.inner(x) + torch.rand((), generator=self.generator)
        return self.inner(x) + (random if self.generator is None else self.generator).random()


class DrawsFromNumPy(DrawsOutside):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + np.random.random()  # noqa: NPY002 - what old code does


def mean_square(network: nn.Module, batch: Tensor) -> Tensor:
    return network(batch).square().mean(dim=1)


def with_running_baseline() -> Callable[[nn.Module, Tensor], Tensor]:
    """An objective that remembers: losses against a running mean, as in policy gradients."""
    baseline = 0.0

    def objective(network: nn.Module, batch: Tensor) -> Tensor:
        nonlocal baseline
        loss = mean_square(network, batch)
        baseline = 0.9 * baseline + 0.1 * loss.mean().item()
        return loss - baseline

    return objective


def with_lazy_penalty() -> Callable[[nn.Module, Tensor], Tensor]:
    """A penalty at every eighth call, as with lazy regularisation (Karras et al. 2020)."""
    calls = 0

    def objective(network: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        penalty = 0.1 * sum(p.square().sum() for p in network.parameters()) if calls % 8 == 0 else 0.0
        return mean_square(network, batch) + penalty

    return objective


OUTSIDE = {
    "a counter": (Counts, lambda: mean_square),
    "random.random()": (DrawsOutside, lambda: mean_square),
    "np.random.random()": (DrawsFromNumPy, lambda: mean_square),
    "a torch.Generator of its own": (lambda: DrawsOutside(torch.Generator()), lambda: mean_square),
    "a NumPy generator of its own": (lambda: DrawsOutside(np.random.default_rng(0)), lambda: mean_square),
    "a running baseline in the objective": (lambda: nn.Linear(3, 2), with_running_baseline),
    "a penalty at every eighth call": (lambda: nn.Linear(3, 2), with_lazy_penalty),
}


@pytest.mark.quick_cases(9)
@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_state_outside_of_torch_is_made_good_or_told(name, evaluator):
    """Two evaluations at the same weights differ: the difference over mu is noise."""
    make, make_objective = OUTSIDE[name]
    torch.manual_seed(0)
    network, batch = make().double(), torch.randn(6, 3).double()
    truth = finite_differences.gradient(mean_square, network, batch, seed=0)
    finite_differences.seed_everything(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            zo.LossGradient(network, make_objective(), FORWARD, evaluator=evaluator, chunk=4).backward(batch)
        except Exception as error:
            assert of_the_library(type(error)), f"{error!r}"
            return
    error = off([p.grad for p in network.parameters()], truth)
    unexpected = [w for w in heard(said) if not isinstance(w, zo.errors.EvaluatorWarning)]
    assert error <= 1 or unexpected, f"off by {error:.1g} times what is allowed, and nothing was said"


# ------------------------------------------------------------------- 1.9: nothing moves, nothing works


class Constant(BlackBoxFunction):
    """Gives the same, whatever it is given."""

    inputs = (ArraySpec("x", shape=(2,)),)
    outputs = (ArraySpec("y", shape=(2,)),)

    def evaluate_rows(self, x: np.ndarray) -> np.ndarray:
        return np.ones_like(x)


OTHER = nn.PReLU()  # without a product, whose rounding depends on the number of rows on some processors

ZEROS = {
    "the network is not used": lambda network, batch: batch.square().mean(dim=1),
    "another network is": lambda network, batch: OTHER(batch).square().mean(dim=1),
    "the box is constant": lambda network, batch: Constant()(network(batch)).square().mean(dim=1),
}


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.RGE(1e-3, q=4)], ids=["cge", "rge"])
@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("name", ZEROS)
def test_a_gradient_that_is_zero_everywhere_is_said_once(name, evaluator, estimator):
    network = nn.Linear(3, 2)
    gradient = zo.LossGradient(network, ZEROS[name], estimator, evaluator=evaluator)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            gradient.backward(torch.randn(5, 3))
    assert all((p.grad == 0).all() for p in network.parameters())
    unexpected = [w for w in heard(said) if not isinstance(w, zo.errors.EvaluatorWarning)]
    assert len(unexpected) == 1 and "zero" in str(unexpected[0]), f"{[str(w) for w in heard(said)]}"


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_gradient_that_is_zero_in_places_is_nothing_to_speak_of(evaluator):
    """Units that are off, and words that no row has."""
    network = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 2), nn.ReLU())
    network[2].bias.data = torch.tensor([-100.0, 10.0])  # the second is awake, whatever was drawn
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator=evaluator)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gradient.backward(torch.tensor([[0, 1], [2, 1], [1, 0]]))
    assert heard(said) == []


class Typo(BlackBoxFunction):
    """Its first rows work if `good` of them are asked for."""

    inputs = (ArraySpec("x", shape=(2,)),)
    outputs = (ArraySpec("y", shape=(2,)),)

    def __init__(self, good: int = 0) -> None:
        super().__init__(failures="keep")
        self.good = good

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        self.good -= 1
        return np.sin(x) if self.good >= 0 else x.sinus()


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("good", [0, 5], ids=["in the base", "in the queries"])
def test_rows_that_fail_tell_their_first_cause(evaluator, good):
    box = Typo(good)

    def objective(network: nn.Module, batch: Tensor) -> Tensor:
        return box(network(batch)).square().mean(dim=1)

    gradient = zo.LossGradient(nn.Linear(3, 2), objective, zo.CGE(1e-3), evaluator=evaluator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(zo.errors.FailedQueriesError, match=r"AttributeError.*sinus"):
            gradient.backward(torch.randn(5, 3))


# --------------------------------------------------------------------------- found beyond these reports


ROUNDED = {  # (dtype of the network, mu, what happens to a loss)
    "float32, 1e4 from zero": (torch.float32, 1e-3, lambda loss: loss + 1e4),
    "float32, 1e5 from zero": (torch.float32, 1e-3, lambda loss: loss + 1e5),
    "a loss in float32 behind float64": (torch.float64, 1e-7, lambda loss: loss.float()),
    "a loss in bfloat16": (torch.float32, 1e-3, lambda loss: loss.bfloat16()),
}


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_that_hides_the_change_is_told(name, evaluator):
    """Losses have steps of their own, and mu changes them by less, or hardly more."""
    dtype, mu, rounded = ROUNDED[name]
    torch.manual_seed(0)
    network, batch = nn.Linear(3, 2).to(dtype), torch.randn(6, 3, dtype=dtype)
    mean_square(network, batch).mean().backward()
    truth = torch.cat([p.grad.flatten() for p in network.parameters()])
    network.zero_grad()

    def objective(network: nn.Module, batch: Tensor) -> Tensor:
        return rounded(mean_square(network, batch))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        zo.LossGradient(network, objective, zo.CGE(mu), evaluator=evaluator).backward(batch)
    grad = torch.cat([p.grad.flatten() for p in network.parameters()])
    error = ((grad - truth).norm() / truth.norm()).item()
    unexpected = [w for w in heard(said) if not isinstance(w, zo.errors.EvaluatorWarning)]
    assert error < 0.1 or unexpected, f"off by {error:.2g} of the gradient, and nothing was said"


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_network_that_keeps_what_it_made_of_a_tensor(evaluator):
    torch.manual_seed(0)
    network, batch = CachesById().double(), torch.randn(6, 3).double()

    def uncached(network: nn.Module, batch: Tensor) -> Tensor:
        return network.head(torch.tanh(network.encoder(batch))).square().mean(dim=1)

    truth = finite_differences.gradient(uncached, network, batch, seed=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        zo.LossGradient(network, mean_square, FORWARD, evaluator=evaluator, chunk=12).backward(batch)
    unexpected = [w for w in heard(said) if not isinstance(w, zo.errors.EvaluatorWarning)]
    assert off([p.grad for p in network.parameters()], truth) <= 1 or unexpected


@pytest.mark.parametrize("evaluator", ["loop", "stacked", "auto", "difference"])
def test_what_a_network_shows_beside_its_output_is_of_the_base(evaluator):
    """Attention maps or features that are logged after a step: not of a query, and never a stand-in."""

    class Shows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
            self.features: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            self.features = h.detach()
            return self.second(h)

    torch.manual_seed(0)
    network, batch = Shows().double(), (torch.randn(6, 3).double(), torch.randn(6, 1).double())
    with torch.no_grad():
        expected = torch.tanh(network.first(batch[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gradient = zo.LossGradient(
            network, zo.OutputLoss(weighted_error), FORWARD, evaluator=evaluator, chunk=5
        )
        gradient.backward(batch)
    assert network.features.shape == expected.shape
    assert torch.allclose(network.features, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_batch_is_left_as_one_forward_leaves_it(evaluator):
    case = CASES["writes its input"]
    network, batch = case.make(), case.batch(0)
    once = batch[0].clone().mul_(0.9).add_(0.1)
    written = batch[0].clone()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            zo.LossGradient(network, case.plain, FORWARD, evaluator=evaluator).backward((written, batch[1]))
        except Exception as error:
            assert of_the_library(type(error)) and names_a_part(error, network)
    unexpected = [w for w in heard(said) if not isinstance(w, zo.errors.EvaluatorWarning)]
    assert torch.equal(written, once) or torch.equal(written, batch[0]) or unexpected


@pytest.mark.parametrize("evaluator", ["stacked", "auto"])
def test_a_smaller_last_batch_wakes_nothing(evaluator):
    """What is served for six rows is checked for them; the last batch of an epoch has fewer."""

    def many_alike(x: Tensor) -> Tensor:
        return x - x.mean(dim=0) if len(x) % 5 == 0 else x

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def objective(network: nn.Module, batch: Tensor) -> Tensor:
        return many_alike(network(batch)).square().mean(dim=1)

    gradient = zo.LossGradient(network, objective, FORWARD, evaluator=evaluator, chunk=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in (6, 5, 4):
            network.zero_grad()
            batch = torch.randn(rows, 6).double()
            truth = finite_differences.gradient(objective, network, batch, seed=0)
            gradient.backward(batch)
            assert off([p.grad for p in network.parameters()], truth) <= 1, f"{rows} rows"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("evaluator", ["stacked", "auto"])
def test_compiled_code_that_mixes_rows(evaluator):
    """A frozen module in TorchScript holds no weight that moves, and no evaluator can look into it."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strength = nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, x):
            return x - self.strength * x.mean(dim=0)

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = torch.jit.script(Inner())
    network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), inner, nn.Linear(4, 2)).double()
    gradient = zo.LossGradient(network, mean_square, FORWARD, evaluator=evaluator, chunk=24)
    batch = torch.randn(6, 6).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for strength in (0.0, 0.7):  # asleep at the first step
            inner.strength.data.fill_(strength)
            network.zero_grad()
            truth = finite_differences.gradient(mean_square, network, batch, seed=0)
            gradient.backward(batch)
            grads = [p.grad for p in finite_differences.trained(network)]
            assert off(grads, truth) <= 1, f"strength {strength}"


# ------------------------------------- what a check at some steps and a variant that moves nothing cannot see


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["stacked", "auto"])
@pytest.mark.parametrize("done", [centred, against_the_last, next_row], ids=lambda done: done.__name__)
def test_rows_that_mix_later_in_single_precision(done, evaluator):
    """In float32 the change of a variant that moves nothing is small beside rounding; the error is not."""
    torch.manual_seed(0)
    mixture = RisingMixture(done)
    network = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), mixture, nn.Linear(32, 2))
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator=evaluator, chunk=127)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for strength in (0.0, 0.0, 1.0):
            mixture.strength = strength
            batch = torch.randn(32, 16)
            network.zero_grad()
            gradient.backward(batch)
    grad = torch.cat([p.grad.flatten() for p in network.parameters()])
    network.zero_grad()
    mean_square(network, batch).mean().backward()
    truth = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert (grad - truth).norm() <= 0.05 * truth.norm(), (grad - truth).norm() / truth.norm()


class Sine(BlackBoxFunction):
    inputs = (ArraySpec("x", shape=(3,)),)
    outputs = (ArraySpec("y", shape=(3,)),)

    def evaluate_rows(self, x: np.ndarray) -> np.ndarray:
        return np.sin(x)


def spread(output: Tensor) -> Tensor:
    """No rule says how a change passes through it."""
    return output.var(dim=1)


def boxed(output: Tensor) -> Tensor:
    """A black box behind the network gets the rows of all variants."""
    return (Sine()(output) * torch.linspace(0.5, 1.5, 3, dtype=output.dtype)).sum(dim=1)


def unboxed(output: Tensor) -> Tensor:
    """The same with a derivative."""
    return (torch.sin(output) * torch.linspace(0.5, 1.5, 3, dtype=output.dtype)).sum(dim=1)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", [pytest.param("auto", marks=pytest.mark.slow), "difference"])
@pytest.mark.parametrize(
    "wakes", [centred, next_row, against_the_last, noisy], ids=lambda done: done.__name__
)
@pytest.mark.parametrize("last", [spread, boxed], ids=["without rules", "a black box"])
def test_a_loss_behind_the_output_that_mixes_or_draws_later(last, wakes, evaluator):
    """Where no rules lead to the loss, it is evaluated on the outputs of variants, at once or in turn."""
    strength = 0.0

    def loss(output: Tensor, target: Tensor, last: Callable[[Tensor], Tensor] = last) -> Tensor:
        seen = output + strength * wakes(output) if strength > 0 else output
        return last(seen) + (seen - target).square().mean(dim=1)

    def true_loss(output: Tensor, target: Tensor) -> Tensor:
        return loss(output, target, spread if last is spread else unboxed)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    objective, true_objective = zo.OutputLoss(loss), zo.OutputLoss(true_loss)
    gradient = zo.LossGradient(network, objective, FORWARD, evaluator=evaluator, chunk=24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for strength in (0.0, 0.0, 1.0):
            batch = torch.randn(6, 6).double(), torch.randn(6, 1).double()
            network.zero_grad()
            truth = finite_differences.gradient(true_objective, network, batch, seed=0)
            finite_differences.seed_everything(0)
            gradient.backward(batch)
            assert off([p.grad for p in network.parameters()], truth) <= 1, f"strength {strength}"


# ------------------------------------------------------- weights that are not, or no more, what they seem


def refused_or_right(
    network: nn.Module, step: Callable[[], object], truth: Callable[[], list[Tensor]]
) -> None:
    """A step gives the gradient of all that the network trains, or an error or a warning of the library."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            network.zero_grad()
            step()
        except Exception as error:
            assert of_the_library(type(error)), f"{error!r}"
            return
    unexpected = [w for w in heard(said) if not isinstance(w, zo.errors.EvaluatorWarning)]
    error = off([p.grad for p in finite_differences.trained(network)], truth())
    assert error <= 1 or unexpected, f"off by {error:.1g} times what is allowed, and nothing was said"


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("change", ["a layer is put in another's place", "a layer is no longer frozen"])
def test_weights_that_are_others_than_at_the_start(change, evaluator):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    network[2].requires_grad_(not change.endswith("frozen"))
    gradient = zo.LossGradient(network, mean_square, FORWARD, evaluator=evaluator, chunk=5)
    batch = torch.randn(6, 3).double()
    gradient.backward(batch)
    if change.endswith("frozen"):
        network[2].requires_grad_(True)
    else:
        network[2] = nn.Linear(4, 5).double()
    refused_or_right(
        network,
        lambda: gradient.backward(batch),
        lambda: finite_differences.gradient(mean_square, network, batch, seed=0),
    )


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_parametrized_weights_that_are_cached(evaluator):
    """Inside of `parametrize.cached()` a moved parameter does not reach the weight that is made of it."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    network = nn.Sequential(normed, nn.Tanh(), nn.Linear(4, 2)).double()
    batch = torch.randn(6, 3).double()

    def step() -> None:
        with nn.utils.parametrize.cached():
            zo.LossGradient(network, mean_square, FORWARD, evaluator=evaluator, chunk=5).backward(batch)

    refused_or_right(network, step, lambda: finite_differences.gradient(mean_square, network, batch, seed=0))
