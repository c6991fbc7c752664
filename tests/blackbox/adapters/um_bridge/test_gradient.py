"""`Gradient` of UM-Bridge: theirs asked by us, ours asked by them, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import umbridge
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec
from blackbox.adapters.um_bridge import UmBridge, serving
from blackbox.errors import ConfigurationError, NotDifferentiableError, RowFailedError
from tests.blackbox.adapters.um_bridge import umbridge_models
from tests.blackbox.adapters.um_bridge.boxes import EIGHT, NINE, Cubes, Shapes
from tests.blackbox.adapters.um_bridge.servers import umbridge_server

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def theirs() -> Iterator[str]:
    with umbridge_server() as url:
        yield url


class Weighing(Shapes):
    """`Shapes` with a whole number beside them, which has no derivative."""

    inputs = (*Shapes.inputs, ArraySpec("count", (), "int64"))

    def evaluate(self, field: Any, factor: Any, count: Any) -> Any:
        first, energy = super().evaluate(field, factor)
        return first, energy * count


def exact(field: Any, factor: Any, count: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`Weighing` in torch."""
    first = field.sin().transpose(1, 2) * factor[:, None, None]
    return first, (field**2).sum(dim=(1, 2)) * count


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    solver = zo.differentiable(Weighing(), zo.CGE(mu=1e-5, central=True), seed=0)
    boxes, derivative = {"exact": Weighing(), "estimated": Weighing()}, {"exact": exact, "estimated": solver}
    with serving(boxes, derivative=derivative) as url:
        yield url


# Their server, our client


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_their_gradient_is_the_box_s_derivative(theirs, connections, dtype):
    a, b = (torch.from_numpy(RNG.normal(size=(5, size))).to(dtype).requires_grad_() for size in (3, 2))
    with UmBridge(theirs, "forward", {"scale": 1.0}, connections=connections) as box:
        assert box.has_derivative
        first, second = box.reference(a, b)
        weights = torch.linspace(-1, 1, 10, dtype=dtype).reshape(5, 2)
        (first * weights).sum().add((second[1:] ** 2).sum()).backward()
        assert box.ledger.rows_run == 0
    x, y = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
    flat = torch.stack([x[:, 0].sin() * y[:, 0], x[:, 1] * x[:, 2] * y[:, 1]], 1)
    (flat * weights.double()).sum().add(((x**2).sum(1)[1:] ** 2).sum()).backward()
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    for found, expected in ((a.grad, x.grad), (b.grad, y.grad)):
        assert found is not None and found.dtype == dtype and expected is not None
        torch.testing.assert_close(found, expected.to(dtype), rtol=rtol, atol=1e-6 if rtol > 1e-9 else 1e-14)


def test_a_model_without_gradients_says_so(theirs):
    with UmBridge(theirs, "cubes") as box:
        assert not box.has_derivative
        with pytest.raises(NotDifferentiableError, match="expected a model that supports Gradient"):
            box.reference(torch.ones(1, 10))


def test_a_row_that_failed_has_no_derivative_and_hinders_no_other(theirs):
    a, b = torch.ones(3, 3, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    a[1, 0] = umbridge_models.RAISES
    a.requires_grad_()
    with UmBridge(theirs, "forward", failures="keep") as box:
        first, _ = box.reference(a, b)
        assert first[1].isnan().all()
        first[[0, 2]].sum().backward()
        assert a.grad is not None and (a.grad[1] == 0).all() and (a.grad[[0, 2]] != 0).all()


def test_a_gradient_that_does_not_come_is_a_failed_row():
    def moody(x: torch.Tensor) -> torch.Tensor:
        raise ConfigurationError("out of order")

    x = torch.ones(1, 10, dtype=torch.float64, requires_grad=True)
    with serving(Cubes(), derivative=moody) as url, UmBridge(url) as box:
        loss = box.reference(x).sum()
        with pytest.raises(RowFailedError, match=r"Gradient of output 0 in input 0.*out of order"):
            loss.backward()


# Our server, their client


@pytest.mark.parametrize(("name", "tolerance"), [("exact", 1e-12), ("estimated", 1e-7)])
def test_our_gradient_for_their_client(ours, name, tolerance):
    model = umbridge.HTTPModel(ours, name)
    assert model.supports_gradient() and not model.supports_apply_jacobian()
    field, factor = RNG.normal(size=(2, 3)), 0.7
    given = [field.ravel().tolist(), [factor], [3]]
    sens = RNG.normal(size=(3, 2))
    products = {
        (0, 0, tuple(sens.ravel())): (sens.T * np.cos(field) * factor).ravel(),
        (0, 1, tuple(sens.ravel())): [(sens * np.sin(field).T).sum()],
        (1, 0, (2.0,)): (2 * 2 * 3 * field).ravel(),
        (1, 1, (2.0,)): [0.0],
    }
    for (out, into, vector), expected in products.items():
        found = model.gradient(out, into, given, list(vector))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["exact", "estimated"])
def test_both_ours_to_the_bit_of_the_derivative_that_is_served(ours, name):
    given = [torch.from_numpy(RNG.normal(size=(4, 2, 3))), torch.rand(4).double(), torch.full((4,), 2)]
    sens = torch.from_numpy(RNG.normal(size=(4, 3, 2)))

    def gradients(function: Any, *arrays: torch.Tensor) -> list[torch.Tensor]:
        moved = [array.detach().requires_grad_() for array in arrays[:2]]
        (function(*moved, arrays[2])[0].reshape(4, 3, 2) * sens).sum().backward()
        return [each.grad for each in moved if each.grad is not None]

    here = exact if name == "exact" else zo.differentiable(Weighing(), zo.CGE(mu=1e-5, central=True))
    expected = gradients(here, *given)
    with UmBridge(ours, name) as box:
        flat = [given[0].reshape(4, 6), given[1].reshape(4, 1), given[2].double().reshape(4, 1)]
        found = gradients(box.reference, *flat)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.reshape(other.shape), other)


def test_what_has_a_derivative_itself_is_served_with_it(theirs):
    """Their model, our client, our server, our client: two servers in a row."""
    with UmBridge(theirs, "forward") as box, serving({"relay": box}) as url, UmBridge(url) as relayed:
        assert relayed.has_derivative
        a, b = torch.ones(1, 3).double().requires_grad_(), torch.ones(1, 2).double()
        relayed.reference(a, b)[1].sum().backward()
        assert a.grad is not None and a.grad.tolist() == [[2.0, 2.0, 2.0]]


REFUSED = {
    "out-of-range": (dict(outWrt=2), "InvalidInput: outWrt: expected a number below 2"),
    "negative": (dict(inWrt=-1), "InvalidInput: inWrt"),
    "flag": (dict(inWrt=True), "InvalidInput: inWrt"),
    "none": (dict(outWrt=None), "InvalidInput: outWrt"),
    "whole-number": (dict(inWrt=2), "UnsupportedFeature: inWrt.*'count' has none"),
    "short-sens": (dict(sens=[1.0]), "InvalidInput: sens: expected 6 numbers, got 1"),
    "no-sens": (dict(sens="x"), "InvalidInput: sens: expected a list of 6 numbers"),
    "raises": (dict(input=[[1.0] * 6, [NINE], [1]]), "RowFailedError: .*nine"),
    "nan": (dict(input=[[1.0] * 6, [EIGHT], [1]]), "RowFailedError: .*"),
    "short-input": (dict(input=[[1.0] * 5, [1.0], [1]]), "InvalidInput: input 'field'"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_gradient_is_an_error(ours, changes, words):
    asked = dict(outWrt=0, inWrt=0, input=[[1.0] * 6, [1.0], [1]], sens=[1.0] * 6) | changes
    model = umbridge.HTTPModel(ours, "estimated")
    with pytest.raises(Exception, match=words):
        model.gradient(asked["outWrt"], asked["inWrt"], asked["input"], asked["sens"])


def test_outputs_that_autograd_does_not_reach_are_no_gradient_of_zeros():
    with serving(Cubes(), derivative=lambda x: x.detach() ** 3) as url:
        with pytest.raises(Exception, match=r"NoDerivative.*'x'"):
            umbridge.HTTPModel(url, "Cubes").gradient(0, 0, [[1.0] * 10], [1.0] * 10)


def test_a_failed_row_is_no_gradient_of_zeros():
    box = Shapes(failures="keep")
    solver = zo.differentiable(box, zo.CGE(mu=1e-5))
    with serving(box, derivative=solver) as url:
        model = umbridge.HTTPModel(url, "Shapes")
        with pytest.raises(Exception, match="EvaluationFailed"):
            model.gradient(0, 0, [[1.0] * 6, [EIGHT]], [1.0] * 6)


class OnlyHere(Cubes):
    """Of which the first number cannot be moved."""

    def evaluate_rows(self, x: Any) -> Any:
        return np.where(x[:, :1] == 1, x**3, np.nan)


class NotAbove(Cubes):
    """Of which the first number cannot be larger."""

    def evaluate_rows(self, x: Any) -> Any:
        return np.where(x[:, :1] <= 1, x**3, np.nan)


@pytest.mark.parametrize("estimator", [zo.CGE(mu=1e-3, central=True), zo.CGE(mu=1e-3)])
def test_a_number_beside_which_all_rows_fail_has_no_gradient_of_zero(estimator):
    row, ones = [[1.0] * 10], [1.0] * 10
    box = OnlyHere(failures="keep")
    with serving(box, derivative=zo.differentiable(box, estimator)) as url:
        with pytest.raises(Exception, match=r"EvaluationFailed.*near each number of 'x'"):
            umbridge.HTTPModel(url, "OnlyHere").gradient(0, 0, row, ones)
    box = NotAbove(failures="keep")
    with serving(box, derivative=zo.differentiable(box, estimator)) as url:  # one side is enough
        gradient = umbridge.HTTPModel(url, "NotAbove").gradient(0, 0, row, ones)
    np.testing.assert_allclose(gradient, [3.0] * 10, rtol=5e-3)


@suppress_type_checks
def serve_wrongly(boxes: Any, derivative: Any) -> None:
    with serving(boxes, derivative=derivative):
        pass


@pytest.mark.parametrize(
    ("boxes", "derivative", "words"),
    [
        (Cubes(), 3.0, "expected a function that autograd goes through, got float"),
        ({"a": Cubes()}, {"b": exact}, r"expected names of \['a'\], got \['b'\]"),
        ({"a": Cubes(), "b": Cubes()}, exact, "expected a mapping of names for the 2 boxes"),
    ],
)
def test_a_derivative_that_makes_no_sense(boxes, derivative, words):
    with pytest.raises(ConfigurationError, match=words):
        serve_wrongly(boxes, derivative)
