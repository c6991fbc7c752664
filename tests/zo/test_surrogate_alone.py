"""`Surrogate`: what it leaves alone while it trains through models."""

import pytest
import torch

import zo
from blackbox import ArraySpec
from tests.zo.populations import TARGET, Square, batch
from tests.zo.row_boxes import FromTorch


def test_a_fresh_batch_that_asks_a_box_is_refused_before_a_row_is_run(limits):
    limits(updates_of_a_surrogate=12)
    network, box = torch.nn.Linear(3, 4).double(), Square()
    surrogate = zo.tangents.Surrogate(
        network,
        lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1),
        torch.optim.Adam(network.parameters()),
        lambda number: box(batch(number)[:, [0, 1, 2, 2]])[:, :3],
        boxes=[box],
        steps=6,
    )
    with pytest.raises(zo.errors.TangentError, match="Surrogate, fresh: expected batches for which no box"):
        surrogate.step(batch(0))
    assert surrogate.updates == 0 and box.ledger.rows_run == 2


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_weights_of_another_optimiser_get_no_gradient(limits):
    limits(updates_of_a_surrogate=12)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)).double()
    box, (own, other) = Square(), network
    surrogate = zo.tangents.Surrogate(
        network,
        lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1),
        torch.optim.Adam(own.parameters(), lr=1e-2),
        lambda number: batch(1000 + number),
        boxes=[box],
        steps=6,
    )
    before = own.weight.detach().clone()
    for number in range(6):
        surrogate.step(batch(number))
    assert surrogate.updates == 12 and not torch.equal(own.weight, before)
    assert other.weight.grad is None and other.bias.grad is None


def test_models_answer_in_the_dtype_of_the_box_beside_an_input_of_64_bits_without_derivative():
    """A layer of 32 bits follows the box, so that answers in 64 would break it."""
    time, state = ArraySpec("t", (), dtype="float64", differentiable=False), ArraySpec("x", (2,))
    box = FromTorch(lambda t, x: x + t[:, None].to(x), (time, state), (ArraySpec("y", (2,)),))
    network = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)])
    surrogate = zo.tangents.Surrogate(
        network,
        lambda net, batch: net[1](box(batch[1], net[0](batch[0])))[:, 0],
        torch.optim.Adam(network.parameters()),
        lambda number: (torch.rand(8, 2), torch.rand(8).double()),
        boxes=[box],
        steps=6,
    )
    rows = surrogate.fresh(0)
    asked = surrogate.ask(rows)
    surrogate.learn()
    assert surrogate.through(rows).dtype == asked.dtype == torch.float32


def test_no_model_answers_for_a_box_with_an_output_that_carries_no_gradient():
    """Its gradient is there; the values of a count, say, are in no model."""
    state, count = ArraySpec("x", (2,)), ArraySpec("count", (), dtype="int64", differentiable=False)
    box = FromTorch(lambda x: (2 * x, x[:, 0].long()), (state,), (state, count))
    network, x = torch.nn.Linear(2, 2), torch.rand(8, 2)
    gradient = zo.TangentGradient(network, lambda net, x: box(net(x))[0].square().sum(1), boxes=[box])
    gradient.backward(x)
    with pytest.raises(
        zo.errors.TangentError, match=r"through: expected a model of .* that knows its values"
    ):
        gradient.through(x)
