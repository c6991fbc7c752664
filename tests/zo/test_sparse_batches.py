"""Batches of sparse and of jagged tensors: replayed, resumed, or refused in a sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import ModelTangent

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested tensors")

Y = ArraySpec("y", (3,))
LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]


def dense(seed: int, rows: int = 6):
    """Few of many numbers, as words of a text."""
    return weights(rows, 5, seed=seed).relu()


def make(layout=None, failing=False):
    """A step, and a network whose weights are those of a replay later."""

    def function(y):
        answer = y.sin() + y.roll(1, 1)
        return torch.where(y[:, :1] > y[:, :1].median(), torch.nan, answer) if failing else answer

    torch.manual_seed(0)
    network, box = nn.Linear(5, 3).double(), FromTorch(function, (Y,), (Y,))

    def objective(network, batch):
        words, aim = batch
        return (
            (box(network(words if words.layout is torch.strided else words.to_dense())) - aim)
            .square()
            .mean(1)
        )

    model = ModelTangent(lambda y: y.sin() + y.roll(1, 1))
    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=model, replays=2)
    gradient.replays()
    for seed in range(2):
        words = dense(seed)
        gradient.backward(
            (words if layout is None else words.to_sparse(layout=layout), weights(6, 3, seed=9))
        )
        network.zero_grad()
    return gradient, network


def after_a_replay(gradient, network, **settings):
    with torch.no_grad():
        network.weight += 0.1
    network.zero_grad()
    gradient.replay(**settings)
    return network.weight.grad.clone()


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("rows", [None, 9])
@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_batch_is_replayed_as_the_dense_one(layout, failing, rows):
    """Rows of one window, rows of two, and where rows that failed have others in their places."""
    same = after_a_replay(*make(failing=failing), rows=rows)
    torch.testing.assert_close(
        after_a_replay(*make(layout, failing), rows=rows), same, rtol=1e-12, atol=1e-14
    )
    assert same.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_windows_are_resumed(layout, tmp_path):
    gradient, network = make(layout)
    torch.save(gradient.state_dict(), tmp_path / "state.pt")
    resumed, same = make(layout)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(after_a_replay(gradient, network), after_a_replay(resumed, same))


def test_a_sparse_batch_takes_what_it_holds():
    """And not what it would take if it were written out: its windows would go as too large."""
    network, box = nn.Linear(1, 3).double(), FromTorch(torch.sin, (Y,), (Y,))
    wide = torch.sparse_coo_tensor([[0, 1], [5, 10**8]], [1.0, 2.0], (2, 10**9), dtype=torch.float64)

    def objective(network, words):
        total = torch.stack([words[row].coalesce().values().sum()[None] for row in range(2)])
        return box(network(total)).square().mean(1)

    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=ModelTangent(torch.sin))
    gradient.replays()
    for _ in range(3):
        gradient.backward(wide)
    assert gradient.metrics()["tangent_windows"] == 3
    assert gradient.metrics()["tangent_window_bytes"] < 10**4


def nested(layout):
    rows = [weights(length, 5, seed=length) for length in (3, 1, 4)]
    return torch.nested.nested_tensor(rows, layout=layout)


def test_a_jagged_batch_has_a_gradient_and_no_replay():
    network, box = nn.Linear(5, 3).double(), FromTorch(torch.sin, (Y,), (Y,))

    def objective(network, batch):
        means = torch.stack([row.mean(0) for row in batch[0].unbind()])
        return (box(network(means)) - batch[1]).square().mean(1)

    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=ModelTangent(torch.sin))
    with pytest.raises(zo.errors.ObjectiveError, match=r"older kind, which has none.*layout=torch\.jagged"):
        gradient.backward((nested(torch.strided), weights(3, 3)))
    batch = (nested(torch.jagged), weights(3, 3))
    gradient.backward(batch)
    means = torch.stack([row.mean(0) for row in batch[0].unbind()])
    true = torch.autograd.grad((network(means).sin() - batch[1]).square().mean(), network.weight)
    torch.testing.assert_close(network.weight.grad, *true, rtol=1e-9, atol=1e-12)
    gradient.replays()
    with pytest.raises(
        zo.errors.ObjectiveError, match=r"got one that is nested \(jagged\)\. Pad it.*replays=0"
    ):
        gradient.replay()


def test_where_a_row_of_a_jagged_batch_fails_that_is_refused_too():
    network = nn.Linear(5, 3).double()
    box = FromTorch(lambda y: torch.where(y == y[1], torch.nan, y), (Y,), (Y,))

    def objective(network, batch):
        return box(network(torch.stack([row.mean(0) for row in batch.unbind()]))).square().mean(1)

    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=ModelTangent(torch.sin))
    with pytest.raises(zo.errors.ObjectiveError, match="in the place of failed ones, got one that is nested"):
        gradient.backward(nested(torch.jagged))
    assert network.weight.grad is None
