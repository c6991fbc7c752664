"""A surrogate in rounds against autograd through the box, and against a loop that is written out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, weights
from zo.errors import ConfigurationError, FailedBatchError, TangentError, TangentWarning
from zo.tangents import Surrogate

STATE, ACTION = ArraySpec("state", (4,), "float64"), ArraySpec("action", (2,), "float64")
CALLS, RATE = 2, 0.02


def pushed(state, action):
    """A state, moved on by itself and by an action."""
    return state + 0.3 * torch.sin(state.roll(1, dims=1)) + 0.2 * torch.tanh(action @ weights(2, 4, seed=3))


def make_box(function=pushed, **more) -> FromTorch:
    return FromTorch(function, (STATE, ACTION), (ArraySpec("state", (4,), "float64", **more),))


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def steered(box):
    def objective(network, batch):
        state = batch
        for _ in range(CALLS):
            state = box(state, network(state))
        return (state - 0.5).square().mean(dim=1)

    return objective


def batch_of(number: int, rows: int = 3) -> torch.Tensor:
    return weights(rows, 4, seed=number)


def fresh(number: int) -> torch.Tensor:
    return batch_of(1000 + number, 8)


def make(network, box, steps, **settings) -> tuple[Surrogate, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    return Surrogate(network, steered(box), optimizer, fresh, boxes=[box], steps=steps, **settings), optimizer


def flat(network) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_losses_and_gradient_are_nearly_autograd_s_through_the_box_and_no_box_runs():
    network, box = make_network(), make_box()
    surrogate, _ = make(network, box, 6)
    start = copy.deepcopy(network.state_dict())
    for number in range(12):  # other weights each time: actions of one network are a function of the state
        network.load_state_dict({k: w + weights(*w.shape, seed=number) for k, w in start.items()})
        surrogate.ask(batch_of(number, 8))
    network.load_state_dict(start)
    surrogate.learn()
    asked = box.ledger.rows_asked
    twin, batch = copy.deepcopy(network), batch_of(99)
    expected = steered(pushed)(twin, batch)
    losses = surrogate.through(batch)
    losses.mean().backward()
    expected.mean().backward()
    assert box.ledger.rows_asked == asked == 12 * 8 * CALLS
    assert torch.allclose(losses, expected, rtol=0.1)
    slopes, same = (
        torch.cat([weight.grad.flatten() for weight in each.parameters()]) for each in (network, twin)
    )
    assert torch.cosine_similarity(slopes, same, dim=0) > 0.99


def written_out(network, steps, updates, ends):
    """The same by a kernel whose values autograd follows, asked in a loop that knows nothing of boxes."""
    model, optimizer = zo.tangents.KernelTangent(), torch.optim.Adam(network.parameters())
    done, rounds = 0, len(ends)
    for first, end in zip([0, *ends], ends, strict=False):
        rows = []
        with torch.no_grad():
            for number in range(first, end):
                state = batch_of(number)
                for _ in range(CALLS):
                    action = network(state)
                    rows.append((state, action, pushed(state, action)))
                    state = rows[-1][2]
        z, u, y = (torch.cat(column) for column in zip(*rows, strict=True))
        model.fit((z, u), y, box=make_box())
        for _ in range(updates // rounds):
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * done / updates)) / 2
            optimizer.zero_grad()
            state = fresh(done)
            for _ in range(CALLS):
                state = model.values(torch.cat([state, network(state)], dim=1), state[:, :0])
            (state - 0.5).square().mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            done += 1
    return network


@pytest.mark.parametrize(("steps", "ends"), [(13, [2, 4, 6, 8, 10, 13]), (3, [1, 2, 3])])
def test_the_weights_are_those_of_a_loop_that_is_written_out(steps, ends, limits):
    limits(updates_of_a_surrogate=24)
    network, box = make_network(), make_box()
    surrogate, optimizer = make(network, box, steps)
    for number in range(steps):
        before = copy.deepcopy(network)
        loss = surrogate.step(batch_of(number))
        assert torch.allclose(loss, steered(pushed)(before, batch_of(number)).mean(), rtol=1e-12)
    assert torch.allclose(
        flat(network), flat(written_out(make_network(), steps, 24, ends)), rtol=1e-6, atol=1e-9
    )
    assert box.ledger.rows_asked == steps * 3 * CALLS
    assert surrogate.metrics() | {"model_error": 0} == {"rounds": len(ends), "updates": 24, "model_error": 0}
    assert optimizer.param_groups[0]["lr"] == RATE  # as it was
    assert 0 < surrogate.error < 1


@pytest.mark.parametrize(("planned", "ended"), [(7, [5, 5, 6]), (24, [2, 2, 2])])
def test_rounds_end_in_the_same_parts_of_a_training_that_gets_other_steps(limits, planned, ended):
    limits(updates_of_a_surrogate=24)
    surrogate, _ = make(make_network(), make_box(), 12)
    for number in range(4):
        surrogate.step(batch_of(number))
    assert (surrogate.metrics()["rounds"], surrogate.updates) == (2, 8)
    surrogate.planned = planned  # a clock or a budget left so many
    rounds = []
    for number in range(4, 7):
        surrogate.step(batch_of(number))
        rounds.append(surrogate.metrics()["rounds"])
    assert rounds == ended
    for number in range(7, planned):
        surrogate.step(batch_of(number))
    assert (surrogate.metrics()["rounds"], surrogate.updates) == (6, 24)


def test_it_goes_on_from_the_middle_of_a_round_to_the_same_bits(limits):
    limits(updates_of_a_surrogate=24)
    network, box = make_network(), make_box()
    whole, _ = make(network, box, 12)
    for number in range(12):
        whole.step(batch_of(number))
    first, before = make_network(), make_box()
    begun, optimizer = make(first, before, 12)
    for number in range(7):
        begun.step(batch_of(number))
    again, later = make_network(), make_box()
    surrogate, other = make(again, later, 12)
    again.load_state_dict(first.state_dict())
    other.load_state_dict(optimizer.state_dict())
    surrogate.load_state_dict(copy.deepcopy(begun.state_dict()))
    for number in range(7, 12):
        surrogate.step(batch_of(number))
    assert torch.equal(flat(network), flat(again))
    assert surrogate.metrics() == whole.metrics()


def test_it_trains_as_far_as_its_model_is_right(limits):
    limits(updates_of_a_surrogate=120)
    network = make_network()
    before = steered(pushed)(network, batch_of(77, 64)).mean()
    surrogate, _ = make(network, make_box(), 12)
    for number in range(12):
        surrogate.step(batch_of(number))
    assert steered(pushed)(network, batch_of(77, 64)).mean() < 0.8 * before


def test_the_rate_stays_where_it_is_not_to_fall(limits):
    limits(updates_of_a_surrogate=6)
    rates = []

    class Noted(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])

    network, box = make_network(), make_box()
    optimizer = Noted(network.parameters(), lr=0.1)
    surrogate = Surrogate(network, steered(box), optimizer, fresh, boxes=[box], steps=2, falls=False)
    for number in range(2):
        surrogate.step(batch_of(number))
    assert rates == [0.1] * 6


def test_rows_that_fail_are_left_out_and_a_batch_without_others_is_an_error(limits):
    limits(updates_of_a_surrogate=24)

    def lost(state, action):
        return torch.where(state[:, :1] > 50, torch.nan, pushed(state, action))

    network, box = make_network(), make_box(lost)
    surrogate, _ = make(network, box, 4)
    batch = batch_of(0)
    batch[0, 0] = 99
    expected = steered(pushed)(network, batch)[1:].mean()
    assert torch.allclose(surrogate.step(batch), expected)
    with pytest.raises(FailedBatchError, match="Step 2"):
        surrogate.step(torch.full((3, 4), 99.0, dtype=torch.float64))
    for number in range(2, 4):
        surrogate.step(batch_of(number))
    assert surrogate.metrics()["rounds"] == 4 and flat(network).isfinite().all()


def test_models_that_predict_nothing_are_said(limits):
    limits(updates_of_a_surrogate=6)
    generator = torch.Generator().manual_seed(0)

    def chance(state, action):
        return torch.randn(state.shape, generator=generator, dtype=torch.float64)

    surrogate, _ = make(make_network(), make_box(chance), 2)
    surrogate.step(batch_of(0, 6))
    with pytest.warns(TangentWarning, match="in the last round, and the mean has 1"):
        surrogate.step(batch_of(1, 6))


def test_what_no_model_can_answer_is_refused():
    network = make_network()

    class Ongoing(FromTorch):
        settable = False

    ongoing = Ongoing(pushed, (STATE, ACTION), (STATE,))
    fixed = FromTorch(
        lambda state, action: (state, state[:, 0].round()),
        (STATE, ACTION),
        (STATE, ArraySpec("kind", (), "float64", differentiable=False)),
    )
    for box, words in ((ongoing, "goes on from another row's answer"), (fixed, "'kind' of .* carries no")):
        with pytest.raises(ConfigurationError, match=words):
            make(network, box, 6)
    with pytest.raises(ConfigurationError, match="expected a list of black boxes"):
        Surrogate(network, steered(fixed), torch.optim.SGD(network.parameters()), fresh, boxes=[], steps=1)
    with pytest.raises(ConfigurationError, match="steps"):
        make(network, make_box(), 0)


def test_a_box_that_is_not_named_is_refused_before_it_runs():
    other = make_box()
    surrogate, _ = make(make_network(), make_box(), 6)
    surrogate.objective = steered(other)
    with pytest.raises(TangentError, match="Name it in boxes as well"):
        surrogate.step(batch_of(0))
    assert other.ledger.rows_asked == 0
