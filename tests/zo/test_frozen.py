"""Frozen derivatives: one fixed function, exact of the model's values, no row; served by UM-Bridge too."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pytest
import requests
import torch
import umbridge

import zo
from blackbox import ArraySpec, BlackBoxFunction, Parallel
from blackbox.adapters import UmBridge
from blackbox.adapters.um_bridge import serving
from blackbox.conformance import check_black_box
from blackbox.errors import ConfigurationError, NotDifferentiableError
from zo.recorded_rows import read_rows

RNG = np.random.default_rng(0)


class Banana(BlackBoxFunction):
    """Two numbers to three."""

    inputs = (ArraySpec("x", (2,), dtype="float64"),)
    outputs = (ArraySpec("y", (3,), dtype="float64"),)

    def evaluate_rows(self, x: Any) -> Any:
        return np.stack([x[:, 0], x[:, 1] + x[:, 0] ** 2, np.sin(2 * x[:, 0]) * x[:, 1]], 1)


class Linear(Banana):
    """The same shapes, linear."""

    weights = np.array([[1.0, 2.0], [-0.5, 0.3], [0.0, 4.0]])

    def evaluate_rows(self, x: Any) -> Any:
        return x @ self.weights.T


def solver_of(box: BlackBoxFunction, count: int = 80) -> zo.FrozenBox:
    x = np.random.default_rng(1).normal(size=(count, 2))
    return zo.frozen(box, zo.tangents.KernelTangent(), (x, box(x)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # forward mode
def test_autograd_agrees_with_differences_of_the_models_values_and_takes_no_row():
    solver = solver_of(Banana())
    before = solver.ledger.rows_run
    x = torch.tensor(RNG.normal(size=(1, 2)), requires_grad=True)
    assert torch.autograd.gradcheck(solver.predicted, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solver.predicted, x)
    assert solver.ledger.rows_run == before


def test_a_linear_box_is_known_exactly():
    solver = solver_of(Linear())
    x, v = RNG.normal(size=(5, 2)), RNG.normal(size=(5, 3))
    np.testing.assert_allclose(solver.vjp(x, v), v @ Linear.weights, atol=1e-5)
    assert solver.info is not None and solver.info.errors["y"] < 1e-5


def test_a_leapfrog_goes_back_to_where_it_began_and_a_point_has_one_force():
    solver = solver_of(Banana())

    def force(x: np.ndarray) -> np.ndarray:
        t = torch.tensor(x[None], requires_grad=True)
        (solver(t).square().sum() + t.square().sum() / 8).backward()
        assert t.grad is not None
        return t.grad[0].numpy()

    def leapfrog(x: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(8):
            p = p - 0.05 * force(x)
            x = x + 0.1 * p
            p = p - 0.05 * force(x)
        return x, p

    x, p = np.array([0.5, -0.3]), np.array([0.4, 0.7])
    there, momentum = leapfrog(x, p)
    back, _ = leapfrog(there, -momentum)
    assert np.linalg.norm(there - x) > 0.1 and np.linalg.norm(back - x) < 1e-9
    assert (force(x) == force(x)).all()


def test_nothing_is_differentiated_before_it_is_frozen():
    solver = zo.frozen(Banana())
    assert solver(np.zeros((1, 2))).shape == (1, 3)
    with pytest.raises(NotDifferentiableError, match="expected a derivative that is frozen, got none yet"):
        solver(torch.zeros(1, 2, dtype=torch.float64, requires_grad=True))


def test_a_saved_derivative_answers_with_the_same_bits(tmp_path):
    solver = solver_of(Banana())
    solver.save(tmp_path / "frozen.pt")
    again = zo.frozen(Banana(), zo.tangents.KernelTangent()).load(tmp_path / "frozen.pt")
    x, v = RNG.normal(size=(4, 2)), RNG.normal(size=(4, 3))
    assert (solver.vjp(x, v) == again.vjp(x, v)).all() and again.info == solver.info


def test_recorded_rows_come_back_from_a_file_and_rows_are_bought(tmp_path):
    bought = zo.frozen(Banana(), zo.tangents.KernelTangent())
    bought.learn(30, around=RNG.normal(size=(10, 2)), path=tmp_path / "rows.h5")
    assert bought.ledger.rows_run == 30
    read = zo.frozen(Banana(), zo.tangents.KernelTangent(), tmp_path / "rows.h5")
    x, v = RNG.normal(size=(4, 2)), RNG.normal(size=(4, 3))
    assert read.ledger.rows_run == 0 and (read.vjp(x, v) == bought.vjp(x, v)).all()


@pytest.mark.parametrize("wrong", [300.0, -1.0, 1.5, np.nan])
def test_a_number_in_a_file_that_the_spec_cannot_hold_is_refused(tmp_path, wrong):
    class Chosen(BlackBoxFunction):
        inputs = (*Banana.inputs, ArraySpec("kind", (), dtype="uint8", differentiable=False))
        outputs = Banana.outputs

        def evaluate_rows(self, x: Any, kind: Any) -> Any:
            return Banana().evaluate_rows(x)

    def read(kinds: np.ndarray) -> torch.Tensor:
        with h5py.File(tmp_path / "rows.h5", "w") as file:
            file["inputs/x"], file["inputs/kind"], file["outputs/y"] = x, kinds, Banana()(x)
        return read_rows(Chosen(), tmp_path / "rows.h5").inputs[1]

    x, kinds = RNG.normal(size=(20, 2)), np.arange(20.0)
    assert read(kinds).dtype == torch.uint8
    kinds[7] = wrong
    with pytest.raises(ConfigurationError, match=f"expected numbers of uint8 in inputs/kind, got {wrong}"):
        read(kinds)


def test_rows_that_were_bought_before_a_kill_are_not_bought_again(tmp_path, monkeypatch):
    kernel, around, kept = zo.tangents.KernelTangent(), RNG.normal(size=(80, 2)), tmp_path / "rows.h5"
    killed, again, whole = (zo.frozen(Banana(), kernel) for _ in range(3))
    ask, asked = killed.run_rows, []

    def until_killed(inputs: Any) -> Any:
        if asked:
            raise KeyboardInterrupt
        return asked.append(0) or ask(inputs)

    monkeypatch.setattr(killed, "run_rows", until_killed)
    with pytest.raises(KeyboardInterrupt):
        killed.learn(80, around=around, path=kept)
    whole.learn(80, around=around)
    again.learn(80, around=around, path=kept)
    assert again.ledger.rows_run == 80 - 64
    x, v = RNG.normal(size=(4, 2)), RNG.normal(size=(4, 3))
    assert (again.vjp(x, v) == whole.vjp(x, v)).all()
    with pytest.raises(ConfigurationError, match="expected rows of this box, got those of one with other"):
        zo.frozen(Linear(), kernel).learn(80, around=around, path=kept)
    with h5py.File(kept, "a") as file:  # killed between two arrays of a block
        file["outputs/y"].resize(70, 0)
    cut = zo.frozen(Banana(), kernel).learn(80, around=around, path=kept, same_box=True)
    assert cut.ledger.rows_run == 10
    kept.write_text("something else")
    with pytest.raises(ConfigurationError, match="expected an HDF5 file that bought rows can be written to"):
        again.learn(80, around=around, path=kept)


def test_umbridge_s_client_gets_values_unchanged_and_products_without_a_row():
    solver = zo.frozen(Banana(), zo.tangents.KernelTangent())
    x, sens, vec = [0.3, -0.7], [1.0, 0.5, -2.0], [0.2, 0.9]
    with serving({"banana": solver}) as url:
        model = umbridge.HTTPModel(url, "banana")
        with pytest.raises(Exception, match="expected a derivative that is frozen, got none yet"):
            model.gradient(0, 0, [x], sens)
        inputs = np.random.default_rng(1).normal(size=(80, 2))
        solver.learn((inputs, solver.box(inputs)))
        assert model([x]) == [Banana()(np.array([x]))[0].tolist()]
        before = solver.ledger.rows_run
        one = [np.array([values]) for values in (x, sens, vec)]
        assert model.gradient(0, 0, [x], sens) == solver.vjp(one[0], one[1])[0].tolist()
        assert model.apply_jacobian(0, 0, [x], vec) == solver.jvp(one[0], one[2])[0].tolist()
        assert model.apply_hessian(0, 0, 0, [x], sens, vec) == solver.hessian_action(*one)[0].tolist()
        assert solver.ledger.rows_run == before
        asked = {"name": "banana", "input": [x], "sens": sens, "outWrt": 0, "inWrt": 0}
        answers = [requests.post(f"{url}/Gradient", json=asked) for _ in range(2)]
        assert answers[0].content == answers[1].content
        assert solver.info is not None
        assert answers[0].headers["derivative-error"] == f"y={solver.info.errors['y']:.3g}"
        known = requests.post(f"{url}/ModelInfo", json={"name": "banana"}).json()["derivative"]
        assert known["rows"] == solver.info.rows and known["frozen"]


def test_a_server_that_starts_again_from_the_saved_state_answers_with_the_same_bytes(tmp_path):
    solver_of(Banana()).save(tmp_path / "frozen.pt")
    asked = {"name": "banana", "input": [[0.3, -0.7]], "sens": [1.0, 0.5, -2.0], "outWrt": 0, "inWrt": 0}
    answers = []
    for _ in range(2):
        again = zo.frozen(Banana(), zo.tangents.KernelTangent()).load(tmp_path / "frozen.pt")
        with serving({"banana": again}) as url:
            answers.append(requests.post(f"{url}/Gradient", json=asked).content)
        assert again.ledger.rows_run == 0
    assert answers[0] == answers[1] and b"output" in answers[0]


class Bent(Banana):
    """Bent by a setting; it counts its calls."""

    calls = 0

    def __init__(self, bend: float) -> None:
        super().__init__()
        self.bend = bend

    def evaluate_rows(self, x: Any) -> Any:
        self.calls += 1
        return super().evaluate_rows(x) * self.bend


def test_the_derivative_of_another_box_is_refused_and_taken_if_it_is_said_to_be_the_same(tmp_path):
    kernel, kept = zo.tangents.KernelTangent(), tmp_path / "frozen.pt"
    solver = zo.frozen(Bent(1.0), kernel, 30, around=RNG.normal(size=(30, 2)))
    solver.save(kept)
    x, v = RNG.normal(size=(2, 2)), RNG.normal(size=(2, 3))
    assert (zo.frozen(Bent(1.0), kernel).load(kept).vjp(x, v) == solver.vjp(x, v)).all()
    other = zo.frozen(Bent(3.0), kernel)
    with pytest.raises(ConfigurationError, match=r"a box with another bend\. .* same_box=True"):
        other.load(kept)
    assert other.info is None and (other.load(kept, same_box=True).vjp(x, v) == solver.vjp(x, v)).all()


def test_a_model_without_a_second_derivative_does_not_offer_one():
    solver = solver_of(Banana())
    assert solver.info is not None
    solver.info = replace(solver.info, hessian=False)  # as a perceptron's, which takes longer to learn
    with serving({"banana": solver}) as url:
        support = requests.post(f"{url}/ModelInfo", json={"name": "banana"}).json()["support"]
    assert support["Gradient"] and support["ApplyJacobian"] and not support["ApplyHessian"]


def test_a_check_says_how_wrong_the_frozen_derivative_is():
    solver = solver_of(Banana())
    finding = check_black_box(solver, RNG.normal(size=(8, 2)), rows=60, processes=False).finding(
        "learned derivative"
    )
    assert solver.info is not None and finding.number == solver.info.errors["y"]


def test_torch_trains_through_it_by_the_same_products():
    solver = solver_of(Banana())
    x, v = torch.tensor(RNG.normal(size=(3, 2)), requires_grad=True), torch.tensor(RNG.normal(size=(3, 3)))
    y = solver(x)
    assert (y.detach().numpy() == Banana()(x.detach().numpy())).all()
    (gradient,) = torch.autograd.grad(y, x, v)
    assert (gradient == solver.vjp(x.detach(), v)).all()


@pytest.mark.needs("openmdao")
def test_openmdao_takes_its_jacobian():
    import openmdao.api as om

    from blackbox.adapters import openmdao

    solver = solver_of(Banana())
    problem = om.Problem()
    problem.model.add_subsystem("box", openmdao.component(solver), promotes=["*"])
    problem.setup()
    problem.set_val("x", [0.3, -0.7])
    problem.run_model()
    jacobian = problem.compute_totals("y", "x")["y", "x"]
    at = np.repeat([[0.3, -0.7]], 3, 0)
    np.testing.assert_allclose(jacobian, solver.vjp(at, np.eye(3)), rtol=1e-12)


def tenths(x: Any) -> Any:
    """A tenth of the linear box, for torch."""
    return x @ torch.tensor(Linear.weights.T / 10)


def test_a_prior_belongs_to_the_saved_derivative(tmp_path):
    x = np.random.default_rng(1).normal(size=(40, 2))
    above = zo.tangents.KernelTangent(prior=tenths)
    solver = zo.frozen(Linear(), above, (x, Linear()(x)))
    v = RNG.normal(size=(5, 3))
    np.testing.assert_allclose(solver.vjp(x[:5], v), v @ Linear.weights, atol=1e-4)
    at = torch.tensor(x[:1], requires_grad=True)
    assert torch.autograd.gradcheck(solver.predicted, at) and torch.autograd.gradgradcheck(
        solver.predicted, at
    )
    solver.save(tmp_path / "frozen.pt")
    again = zo.frozen(Linear(), zo.tangents.KernelTangent(prior=tenths)).load(tmp_path / "frozen.pt")
    assert (again.vjp(x[:5], v) == solver.vjp(x[:5], v)).all()
    with pytest.raises(ConfigurationError, match=r"got one with KernelTangent\(.*prior=ModelTangent\(tenths"):
        zo.frozen(Linear(), zo.tangents.KernelTangent()).load(tmp_path / "frozen.pt")


def test_a_perceptron_has_first_derivatives_in_both_modes_and_refuses_a_second():
    x = np.random.default_rng(1).normal(size=(40, 2))
    solver = zo.frozen(Banana(), zo.tangents.MLPTangent(width=16), (x, Banana()(x)))
    assert solver.info is not None and not solver.info.hessian
    at, v, d = torch.tensor(x[:3], requires_grad=True), RNG.normal(size=(3, 3)), RNG.normal(size=(3, 2))
    pushed, pulled = solver.jvp(x[:3], d), solver.vjp(x[:3], v)
    ahead, behind = (solver.predicted(x[:3] + step * d) for step in (1e-3, -1e-3))
    np.testing.assert_allclose(pushed, (ahead - behind) / 2e-3, atol=1e-2)
    np.testing.assert_allclose((pushed * v).sum(1), (pulled * d).sum(1), atol=1e-5)
    with pytest.raises(NotDifferentiableError, match="expected a model with a second derivative"):
        solver.hessian_action(x[:3], v, d)
    (gradient,) = torch.autograd.grad(solver(at).square().sum(), at, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Half(Banana):
    """Fails beyond 5."""

    def evaluate_rows(self, x: Any) -> Any:
        return np.where(x[:, :1] > 5, np.nan, super().evaluate_rows(x))


def test_a_failed_row_has_a_gradient_of_zero_whatever_arrives():
    solver = solver_of(Half(failures="keep"))
    x = torch.tensor([[0.1, 0.2], [9.0, 0.2]], dtype=torch.float64, requires_grad=True)
    y = solver(x)
    y.square().sum().backward()
    assert y[1].isnan().all() and x.grad is not None
    assert x.grad[0].abs().min() > 0 and (x.grad[1] == 0).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # forward mode
def test_a_row_that_is_not_finite_has_a_gradient_of_zero_in_both_modes():
    solver = solver_of(Banana(failures="keep"))
    x = torch.tensor([[0.1, 0.2], [np.nan, 0.3], [0.3, np.inf]], dtype=torch.float64, requires_grad=True)
    torch.nansum(solver(x)).backward()
    assert x.grad is not None and (x.grad[1:] == 0).all()
    assert (x.grad[0] == solver.vjp(x.detach(), torch.ones(3, 3, dtype=torch.float64))[0]).all()
    with torch.autograd.forward_ad.dual_level():
        y = solver(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    assert tangent is not None and (tangent[1:] == 0).all() and (tangent[0] != 0).any()


def test_a_server_and_several_threads_may_be_behind_it():
    x = np.random.default_rng(1).normal(size=(40, 2))
    with serving({"banana": Banana()}) as url, ThreadPoolExecutor(2) as threads:
        for box in (UmBridge(url, "banana"), Parallel(Banana(), threads, block=16)):
            solver = zo.frozen(box, zo.tangents.KernelTangent())
            solver.learn(40, around=x)
            assert solver.ledger.rows_run == 40
            np.testing.assert_allclose(solver(x[:3]), Banana()(x[:3]), rtol=1e-15)
            here = zo.frozen(Banana(), zo.tangents.KernelTangent(), (x, Banana()(x)))
            assert (solver.vjp(x[:3], np.ones((3, 3))) == here.vjp(x[:3], np.ones((3, 3)))).all()
            assert solver.ledger.rows_run == 43


@pytest.mark.needs("jax")
def test_jax_takes_values_of_the_box_and_the_frozen_gradient():
    import jax

    solver = solver_of(Linear())
    solve = zo.jax.differentiable(solver)
    x, before = np.float32(RNG.normal(size=(4, 2))), solver.ledger.rows_run
    loss = jax.jit(lambda x: (solve(x) ** 2).sum())
    np.testing.assert_allclose(solve(x), x @ Linear.weights.T, rtol=1e-5)
    gradient = jax.grad(loss)(x)
    np.testing.assert_allclose(gradient, 2 * x @ Linear.weights.T @ Linear.weights, rtol=1e-3, atol=1e-4)
    assert solver.ledger.rows_run == before + 8  # of values alone, there and in the loss


@pytest.mark.needs("jax")
def test_jax_has_no_gradient_of_rows_that_failed_and_a_copy_asks_the_same_box():
    """One is never run, since its input is NaN, and one fails; the third has the gradient that torch has."""
    import jax

    solver = solver_of(Half(failures="keep"))
    solve, x = zo.jax.differentiable(solver), np.float32([[np.nan, 0.2], [9.0, 0.2], [0.1, 0.2]])
    gradient = jax.grad(lambda x: jax.numpy.nansum(solve(x) ** 2))(x)
    at = torch.from_numpy(x[2:]).double().requires_grad_()
    (expected,) = torch.autograd.grad(solver(at).square().sum(), at)
    np.testing.assert_allclose(gradient, [[0, 0], [0, 0], *expected.tolist()], rtol=1e-5)
    assert copy.deepcopy(solve).solver.box is solver


def test_an_empty_batch_has_an_empty_gradient_beside_an_input_without_derivative():
    class Scaled(BlackBoxFunction):
        inputs = (*Banana.inputs, ArraySpec("c", (), dtype="float64", differentiable=False))
        outputs = Banana.inputs

        def evaluate_rows(self, x: Any, c: Any) -> Any:
            return x * c[:, None]

    box, x, c = Scaled(), RNG.normal(size=(40, 2)), RNG.uniform(1, 2, 40)
    solver = zo.frozen(box, zo.tangents.KernelTangent(), ((x, c), box(x, c)))
    none = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    solver(none, torch.zeros(0, dtype=torch.float64)).sum().backward()
    assert none.grad is not None and none.grad.shape == (0, 2)
    assert solver.jvp((x[:0], c[:0]), (x[:0], None)).shape == (0, 2)


@pytest.mark.parametrize("count", [0, 9])
def test_too_few_rows_are_counted_also_where_there_are_none(count):
    with pytest.raises(ConfigurationError, match=f"at least 10 with finite numbers, got {count}"):
        solver_of(Banana(), count)


def test_all_rows_held_out_are_refused_as_rows_in_the_tangents_place_are():
    x = np.random.default_rng(1).normal(size=(80, 2))
    rows = x, Banana()(x)
    with pytest.raises(ConfigurationError, match=r"held_out: expected rows .* got 1 of 80"):
        zo.frozen(Banana(), zo.tangents.KernelTangent(), rows, held_out=1.0)
    with pytest.raises(ConfigurationError, match=r"rows by name, rows=\(inputs, outputs\)"):
        zo.frozen(Banana(), rows)  # pyright: ignore[reportArgumentType]


def test_a_tangent_is_fitted_to_arrays_of_numpy_as_to_tensors():
    x = np.random.default_rng(1).normal(size=(40, 2))
    answers = Banana()(x)
    tangents = zo.tangents.KernelTangent(), zo.tangents.KernelTangent()
    tangents[0].fit(x, answers, box=Banana())
    tangents[1].fit([torch.as_tensor(x)], torch.as_tensor(answers), box=Banana())
    states = [tangent.state_dict()["centres"] for tangent in tangents]
    assert len(states[0]) == 40 and torch.equal(*states)
