"""Served by the `umbridge` package and called by us; served by us and called by its client; both by us."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import umbridge

import zo
from blackbox.adapters.um_bridge import ServerError, UmBridge, serving
from blackbox.errors import RowFailedError
from tests.blackbox.adapters.um_bridge import umbridge_models
from tests.blackbox.adapters.um_bridge.boxes import EIGHT, NINE, Mixing, Shapes, Typed
from tests.blackbox.adapters.um_bridge.servers import umbridge_server

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def theirs() -> Iterator[str]:
    with umbridge_server() as url:
        yield url


@pytest.fixture(scope="module")
def ours() -> Iterator[str]:
    with serving({"shapes": Shapes(), "Typed": Typed()}) as url:
        yield url


# Their server, our client


def forward(a: Any, b: Any, scale: float = 1.0) -> tuple[Any, Any]:
    """The model of their server, with autograd."""
    first = torch.stack([a[..., 0].sin() * b[..., 0], a[..., 1] * a[..., 2] * b[..., 1]], -1)
    return first, scale * (a**2).sum(-1, keepdim=True)


def pair(*leading: int) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (torch.from_numpy(RNG.normal(size=(*leading, size))) for size in (3, 2))
    return a, b


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_their_server_is_a_black_box(theirs, leading, dtype):
    with UmBridge(theirs, "forward", {"scale": 2.5}, connections=2) as box:
        assert [spec.shape for spec in box.inputs + box.outputs] == [(3,), (2,), (2,), (1,)]
        a, b = (x.to(dtype) for x in pair(*leading))
        for found, expected in zip(box(a, b), forward(a.double(), b.double(), 2.5), strict=True):
            assert found.dtype == dtype
            rtol = 1e-6 if dtype == torch.float32 else 1e-14
            torch.testing.assert_close(found, expected.to(dtype), rtol=rtol, atol=0)
        assert box.ledger.rows_run == np.prod(leading, dtype=int)


ODD_ROWS = {
    umbridge_models.RAISES: "status 500 and '500 Internal Server Error",
    umbridge_models.NANS: "expected JSON.*nan.*the row failed there",
    umbridge_models.WRONG_SIZE: "InvalidOutput: Output vector 0 has invalid length",
}


@pytest.mark.parametrize("connections", [1, 2])
def test_what_goes_wrong_there_is_a_failed_row_here(theirs, connections):
    a, b = (x.numpy() for x in pair(6))
    a[[1, 3, 4], 0] = list(ODD_ROWS)
    a[5, 0] = umbridge_models.INTEGERS
    with UmBridge(theirs, "forward", failures="keep", connections=connections) as box:
        first, second = box(a, b)
        assert np.isnan(first).all(1).tolist() == [False, True, False, True, True, False]
        assert (first[5].tolist(), second[5].tolist()) == ([1, -2], [3])
        expected = forward(torch.from_numpy(a), torch.from_numpy(b))[0]
        np.testing.assert_allclose(first[[0, 2]], expected[[0, 2]], rtol=1e-14)
        assert (box.ledger.rows_run, box.ledger.rows_failed) == (6, 3)


@pytest.mark.parametrize("first", ODD_ROWS)
def test_and_raises_with_what_the_server_said(theirs, first):
    with UmBridge(theirs, "forward") as box:
        with pytest.raises(RowFailedError, match=ODD_ROWS[first]):
            box(np.array([[1.0, 1, 1], [first, 1, 1]]), np.ones((2, 2)))


# Our server, their client


def test_our_server_for_their_client(ours):
    assert umbridge.supported_models(ours) == ["shapes", "Typed"]
    model = umbridge.HTTPModel(ours, "shapes")
    assert (model.get_input_sizes(), model.get_output_sizes()) == ([6, 1], [6, 1])
    assert model.supports_evaluate() and not model.supports_gradient()
    assert not model.supports_apply_jacobian() and not model.supports_apply_hessian()
    field, factor = RNG.normal(size=(2, 3)), 0.7
    first, second = model([field.flatten().tolist(), [factor]])
    # to the bit: JSON's shortest decimals lead back to the same double
    assert (first, second) == ((np.sin(field).T * factor).flatten().tolist(), [float((field**2).sum())])
    with pytest.raises(Exception, match="UnsupportedFeature: Gradient"):
        umbridge.HTTPModel.gradient(Insists(ours, "shapes"), 0, 0, [[1.0] * 6, [1.0]], [1.0] * 6)


class Insists(umbridge.HTTPModel):
    """Asks for what is not there."""

    def supports_gradient(self) -> bool:
        return True


@pytest.mark.parametrize(
    "factor, words", [(NINE, "EvaluationFailed: .*ValueError: nine"), (EIGHT, "EvaluationFailed.*not finite")]
)
def test_their_client_gets_an_error_for_a_failed_row(ours, factor, words):
    model = umbridge.HTTPModel(ours, "shapes")
    with pytest.raises(Exception, match=words):
        model([[1.0] * 6, [factor]])
    with pytest.raises(Exception, match="InvalidInput: input 'field': expected 6 numbers, got 5"):
        model([[1.0] * 5, [1.0]])
    with pytest.raises(Exception, match="InvalidInput: expected an empty config"):
        model([[1.0] * 6, [1.0]], {"level": 2})


# Both ours


def test_served_and_called_equals_in_process_to_the_bit():
    x = RNG.normal(size=(7, 3)) * 10.0 ** RNG.integers(-200, 200, size=(7, 1))
    with serving(Mixing()) as url, UmBridge(url, connections=2) as box:
        np.testing.assert_array_equal(box(x), Mixing()(x))
        twin = pickle.loads(pickle.dumps(box))
        np.testing.assert_array_equal(twin(x), box(x))
        twin.close()
        box.close()
        np.testing.assert_array_equal(box(x), Mixing()(x))  # opens again


def test_failed_rows_keep_their_places_and_the_server_its_own_words(ours):
    field, factor = RNG.normal(size=(4, 6)), np.array([[1.0], [NINE], [EIGHT], [2.0]])
    with UmBridge(ours, "shapes", failures="keep", connections=3) as box:
        first, energy = box(field, factor)
        assert np.isnan(first).any(1).tolist() == [False, True, True, False]
        np.testing.assert_array_equal(
            energy[[0, 3], 0], [(field[k].reshape(2, 3) ** 2).sum() for k in (0, 3)]
        )
        box.failures = "raise"
        with pytest.raises(RowFailedError, match=r"EvaluationFailed: .*ValueError: nine") as caught:
            box(field, factor)
        assert isinstance(caught.value.__cause__, ServerError)


def test_dtypes_go_through_and_what_they_cannot_hold_is_refused(ours):
    given = [np.array([0.1, -3e38]), np.array([2.0**53]), np.array([0.0, 255]), np.array([1.0])]
    with UmBridge(ours, "Typed") as box:
        single, whole, small, flag = box(*given)
        np.testing.assert_array_equal(single, given[0].astype("f4"))
        assert (whole.tolist(), small.tolist(), flag.tolist()) == ([2.0**53], [0, 255], [1])
        model = umbridge.HTTPModel(ours, "Typed")
        exact = [[1.0, 2.0], [2**53 + 1], [1, 2], [True]]  # integers are not rounded to doubles on the way
        assert model(exact) == [[1.0, 2.0], [2**53 + 1], [1, 2], [1]]
        for place, values in enumerate([[1e39, 0], [0.5], [256, 0], [2]]):
            bad = [*exact[:place], values, *exact[place + 1 :]]
            with pytest.raises(
                Exception, match=f"InvalidInput: input '{Typed.inputs[place].name}'.*can hold"
            ):
                model(bad)
        for bad in ([-1, 0], [2**70, 0]):
            with pytest.raises(Exception, match="input 'small'"):
                model([exact[0], exact[1], bad, exact[3]])


# Training


@pytest.mark.slow
def test_gradients_through_a_served_box_are_those_in_process():
    x = torch.from_numpy(RNG.normal(size=(5, 3)))
    sens = torch.from_numpy(RNG.normal(size=(5, 4)))
    weights = torch.from_numpy(Mixing.weights)

    def gradient(box: Any, estimator: Any) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        (zo.differentiable(box, estimator, seed=3)(leaf) * sens).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    leaf = x.clone().requires_grad_()
    ((torch.sin(leaf @ weights.T) + 0.5 * leaf @ weights.T) * sens).sum().backward()
    with serving(Mixing()) as url, UmBridge(url, connections=2) as box:
        for estimator in (zo.CGE(mu=1e-4), zo.RGE(mu=1e-4, q=4)):
            assert torch.equal(gradient(box, estimator), gradient(Mixing(), estimator))
        # mu / 2 times the second derivative: 1e-4 / 2 * sum |sens| * weights^2 < 5e-4
        torch.testing.assert_close(gradient(box, zo.CGE(mu=1e-4)), leaf.grad, rtol=0, atol=5e-4)


@pytest.mark.slow
def test_a_network_learns_through_a_served_box():
    """Loss down by a factor of 20: a linear layer finds the inputs that lead to wanted outputs."""
    wanted_inputs = torch.from_numpy(RNG.uniform(-1, 1, size=(4, 3)))
    features = wanted_inputs @ torch.from_numpy(RNG.normal(size=(3, 3)))  # a linear map away from them
    wanted = torch.from_numpy(Mixing()(wanted_inputs.numpy()))
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 3).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    with serving(Mixing()) as url, UmBridge(url, connections=2) as box:
        solver = zo.differentiable(box, zo.CGE(mu=1e-4))
        losses = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = (solver(network(features)) - wanted).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
