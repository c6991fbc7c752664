"""Anchored replay against autograd: exact with the box itself as model, for linear boxes, where recorded."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import random
import warnings
import weakref
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import ModelTangent

STATE, SIZE, DRIVE = ArraySpec("state", (4,)), ArraySpec("size", ()), ArraySpec("drive", (), "float64")
FIXED = ArraySpec("drive", (), "float64", differentiable=False)


def wave(state, size, drive):
    """A state, moved on by how large it is and by what it is driven with; and a number of its own."""
    moved = state + 0.3 * torch.sin(state.roll(1, dims=1)) * size[:, None] + 0.1 * drive[:, None]
    return moved, state.square().sum(dim=1) * drive


def linear(state, size, drive):
    moved = state @ weights(4, 4, seed=5) + size[:, None] + 0.1 * drive[:, None]
    return moved, state.sum(dim=1) + 2 * size


def make_box(function) -> FromTorch:
    return FromTorch(function, (STATE, SIZE, FIXED), (STATE, ArraySpec("own", ())))


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()


def rollout(solver, steps=3, moving=0.0):
    """The same box several times; `moving`, its drive depends on the weights, without a gradient."""

    def objective(network, batch):
        state, losses = batch["start"], 0.0
        for _ in range(steps):
            out = network(state)
            drive = (batch["drive"] + moving * out[:, 4]).detach()
            state, size = solver(state + out[:, :4], out[:, 4], drive)
            losses = losses + (state - 0.5).square().mean(dim=1) + 0.1 * size.square()
        return losses

    return objective


def batch_of(seed: int, rows: int = 3) -> dict[str, torch.Tensor]:
    return {"start": weights(rows, 4, seed=seed), "drive": weights(rows, seed=100 + seed)}


def flat(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def true_gradient(function, network, batch, moving=0.0) -> torch.Tensor:
    network = copy.deepcopy(network)
    network.zero_grad()
    rollout(function, moving=moving)(network, batch).mean().backward()
    return flat(network)


def all_of(*batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def move(network, seed=9, length=0.3):
    with torch.no_grad():
        for n, parameter in enumerate(network.parameters()):
            parameter += length * weights(*parameter.shape, seed=seed + n)


def recorded(network, box, tangent, windows=2, moving=0.0, **settings) -> zo.TangentGradient:
    objective = rollout(box, moving=moving)
    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=tangent, **settings)
    for n in range(windows):
        gradient.replays()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zo.TangentWarning)
            gradient.backward(batch_of(n))
        move(network, seed=20 + n, length=0.1)
    network.zero_grad()
    return gradient


@pytest.mark.parametrize("moving", [0.0, 1.0])
def test_with_the_box_itself_as_the_model_replay_is_autograd_wherever_the_weights_are(moving):
    network, box = make_network(), make_box(wave)
    gradient = recorded(network, box, zo.tangents.ModelTangent(wave), moving=moving)
    move(network)
    rows = box.ledger.rows_asked
    loss = gradient.replay(rows=100)  # all there are
    batch = all_of(batch_of(0), batch_of(1))
    assert torch.allclose(flat(network), true_gradient(wave, network, batch, moving), rtol=1e-10)
    assert torch.allclose(loss, rollout(wave, moving=moving)(network, batch).mean(), rtol=1e-12)
    assert box.ledger.rows_asked == rows and gradient.counts.replays == 1


def test_with_a_tangent_of_zero_the_gradient_is_autograd_s_with_the_answers_cut_off():
    def corrected(solver):
        def objective(network, batch):
            state, losses = batch["start"], 0.0
            for _ in range(3):
                moved, size = solver(state, state[:, 0], batch["drive"])
                state = moved + network(state)[:, :4]
                losses = losses + (state - 0.5).square().mean(dim=1) + 0.1 * size.square()
            return losses

        return objective

    def cut(*arrays):
        return tuple(output.detach() for output in wave(*arrays))

    network, box = make_network(), make_box(wave)
    corrected(cut)(network, batch_of(0)).mean().backward()
    expected = flat(network)
    never = zo.tangents.Limits(check_every=None)
    zero = zo.tangents.ZeroTangent()
    gradient = zo.TangentGradient(network, corrected(box), boxes=[box], tangent=zero, limits=never)
    gradient.replays()  # from here on windows are kept
    for step in (gradient.backward, lambda batch: gradient.replay()):
        network.zero_grad()
        step(batch_of(0))
        assert torch.allclose(flat(network), expected, rtol=1e-12, atol=1e-14)
    assert expected.norm() > 0 and gradient.counts.replays == 1


TANGENTS = {
    "mlp": lambda: learner(zo.tangents.MLPTangent, 8, first_steps=20, steps_per_step=2),
    "student": lambda: zo.tangents.StudentTangent(
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    ),
    "identity": lambda: zo.tangents.IdentityTangent(),
}


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("kind", TANGENTS)
def test_where_it_was_recorded_replay_is_the_tangents_gradient(kind):
    network, box = make_network(), make_box(wave)
    gradient = zo.TangentGradient(
        network,
        rollout(box),
        boxes=[box],
        tangent=TANGENTS[kind](),
        limits=zo.tangents.Limits(check_every=None, max_age=1, excite=0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(9):  # in the first eight a gradient may wait
            network.zero_grad()
            loss = gradient.backward(batch_of(n))
    expected = flat(network)
    gradient.replays()
    network.zero_grad()
    again = gradient.replay()
    assert expected.norm() > 0
    # "mlp" holds a model in float32, whose products differ with how many rows it is asked at once
    rounding = 1e-6 if kind == "mlp" else 1e-12
    assert (flat(network) - expected).norm() <= 1e3 * rounding * expected.norm()
    assert torch.allclose(loss, again, rtol=rounding)


def test_a_model_that_learned_is_first_order_near_what_was_recorded():
    """The error falls with the way from there, as y_k + M(x') - M(x_k) is exact where it begins."""
    errors = []
    for length in (1e-2, 1e-3):
        network, box = make_network(), make_box(wave)
        tangent = learner(zo.tangents.MLPTangent, 8, first_steps=50, steps_per_step=2)
        gradient = zo.TangentGradient(network, rollout(box), boxes=[box], tangent=tangent)
        gradient.backward(batch_of(0))
        gradient.replays()
        move(network, length=length)
        loss = gradient.replay()
        with torch.no_grad():
            errors.append(float((loss - rollout(wave)(network, batch_of(0)).mean()).abs()))
    assert 0 < errors[1] < 0.2 * errors[0]


def test_rows_that_failed_have_no_part_and_the_others_replay():
    def failing(state, size, drive):
        moved, second = wave(state, size, drive)
        return torch.where(drive[:, None] > 0.5, torch.nan, moved), second

    network, box = make_network(), make_box(failing)
    batch = batch_of(3, rows=8)
    gradient = zo.TangentGradient(network, rollout(box), boxes=[box], tangent=zo.tangents.ModelTangent(wave))
    gradient.backward(batch)
    alive = batch["drive"] <= 0.5
    assert 0 < int(alive.sum()) < 8
    gradient.replays()
    move(network, length=1e-2)
    network.zero_grad()
    gradient.replay(rows=100)
    kept = {name: tensor[alive] for name, tensor in batch.items()}
    assert torch.allclose(flat(network), true_gradient(wave, network, kept), rtol=1e-10)


def train(steps: int, folder=None, **settings):
    """Windows and replays in turn; where there is a folder all is saved and loaded on the way."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, 5)).double()
    torch.manual_seed(2)
    box, counts = make_box(wave), []

    def make():
        tangent = learner(zo.tangents.MLPTangent, 8, first_steps=10, steps_per_step=2)
        limits = zo.tangents.Limits(**settings)
        return zo.TangentGradient(network, rollout(box), boxes=[box], tangent=tangent, limits=limits)

    def again(gradient):
        torch.save(gradient.state_dict(), folder / "state.pt")
        gradient = make()
        gradient.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
        return gradient

    gradient, optimizer = make(), torch.optim.SGD(network.parameters(), lr=0.02)
    for step in range(steps):
        optimizer.zero_grad()
        gradient.backward(batch_of(step))
        optimizer.step()
        if folder is not None and step < 2:  # before replays are asked for, and after
            gradient = again(gradient)
        counts.append(gradient.replays())
        for number in range(counts[-1]):
            if folder is not None and number == 1:
                gradient = again(gradient)
            optimizer.zero_grad()
            gradient.replay()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()]), counts, gradient


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"replays": 3, "max_age": 2}, marks=pytest.mark.slow)],
    ids=["trusted", "fixed"],
)
def test_a_run_with_replays_resumes_to_the_bit(settings, tmp_path):
    plain, counts, _ = train(4, **settings)
    resumed, same, gradient = train(4, tmp_path, **settings)
    assert torch.equal(plain, resumed) and counts == same and max(counts) >= 2
    assert gradient.metrics()["tangent_window_bytes"] > 0
    assert gradient.counts.replays == sum(counts)


def test_a_window_holds_each_number_once():
    """The batch, what boxes were asked and answered, losses, and who survived: nothing of it twice."""
    network, box = make_network(), make_box(wave)
    gradient = zo.TangentGradient(network, rollout(box, steps=3), boxes=[box], seed=0)
    batch = batch_of(0)
    loss = gradient.backward(batch)
    gradient.replays()
    rows, calls = len(batch["start"]), 3
    numbers = sum(tensor.numel() // rows for tensor in batch.values())
    numbers += calls * sum(math.prod(spec.shape) for spec in (*box.inputs, *box.outputs))
    numbers += 1  # the loss
    assert loss.dtype == torch.float64
    assert gradient.metrics()["tangent_window_bytes"] == rows * (8 * numbers + 1)


def trusted_after(losses, replayed, windows, key, recorded=1e9):
    """How many replays follow each of windows with these losses, each after a replay with that loss."""
    window, counts = windows.draw(None, key), []
    for loss in losses:
        windows.replayed(torch.full_like(window.losses, replayed), torch.full_like(window.losses, recorded))
        windows.add(replace(window, losses=torch.full_like(window.losses, loss)))
        counts.append(windows.trusted())
    return counts


def test_replays_fall_where_new_losses_rise_rest_and_are_tried_again():
    gradient = recorded(make_network(), make_box(wave), zo.tangents.ModelTangent(wave))
    assert gradient.replays() == 9
    known = gradient._replays.windows, gradient._evaluations.key
    assert trusted_after([1e-3] * 12, 1e-5, *known)[-1] == 9  # easier than new ones: no harm
    assert max(trusted_after([1e-3] * 12, 1e-3, *known)) == 19  # as easy: more of them
    rising = trusted_after([1e-2 * 3**n for n in range(50)], 1e-3, *known)
    assert min(rising) == 0 and rising[-1] <= 9
    assert 1 in trusted_after([1e3] * 8, 1e-3, *known)


def test_replays_halve_each_time_that_they_make_their_rows_harder():
    gradient = recorded(make_network(), make_box(wave), zo.tangents.ModelTangent(wave))
    known = gradient._replays.windows, gradient._evaluations.key
    harder = trusted_after([1e-3] * 16, 1e-3, *known, recorded=0.9e-3)
    assert harder[:4] == [4, 2, 1, 0] and harder[4:9] == [0, 0, 0, 0, 1] and max(harder[9:]) <= 1
    assert trusted_after([1e-3] * 16, 1e-3, *known, recorded=1.1e-3)[-1] == 19  # they grow again


def test_replays_whose_steps_go_the_wrong_way_stop():
    """Steps uphill make what was recorded harder with the true derivative too."""
    network, box = make_network(), make_box(wave)
    tangent = zo.tangents.ModelTangent(wave)
    gradient = zo.TangentGradient(network, rollout(box), boxes=[box], tangent=tangent, seed=0)
    optimizer, counts = torch.optim.Adam(network.parameters(), lr=0.003, maximize=True), []
    for seed in range(10):
        optimizer.zero_grad()
        gradient.backward(batch_of(seed))
        optimizer.step()
        counts.append(gradient.replays())
        for _ in range(counts[-1]):
            optimizer.zero_grad()
            gradient.replay()
            optimizer.step()
    assert counts[:4] == [9, 4, 2, 1] and not counts[4]


def test_what_replay_refuses():
    network, box = make_network(), make_box(wave)
    gradient = zo.TangentGradient(network, rollout(box), boxes=[box])
    assert gradient.replays() == 0
    with pytest.raises(zo.errors.TangentError, match="recorded, got none so far"):
        gradient.replay()
    for bad in ({"replays": -1}, {"max_age": 0}):
        with pytest.raises(zo.errors.ConfigurationError, match=next(iter(bad))):
            zo.tangents.Limits(**bad)

    calls = iter((2, 3, 3, 3))
    many = zo.TangentGradient(network, varying(box, calls), boxes=[box])
    many.replays()
    many.backward(batch_of(0))
    with pytest.raises(zo.errors.TangentError, match="same number of calls in each step"):
        many.backward(batch_of(1))
        many.replay()
    with pytest.warns(zo.TangentWarning, match="same number of calls in each step, got 2 and 3. Nothing"):
        assert many.replays() == 0  # a training goes on without

    other = make_box(wave)

    def two(network, batch):
        with torch.no_grad():
            aside, _ = other(batch["start"], batch["drive"], batch["drive"])
        return rollout(box)(network, batch) + aside.mean(dim=1)

    aside = zo.TangentGradient(network, two, boxes=[box])
    aside.backward(batch_of(0))
    aside.replays()
    with pytest.raises(zo.errors.TangentError, match="calls no box but those in boxes"):
        aside.replay()


def varying(box, steps):
    """As many calls in a step as the iterator says; each step evaluates twice."""
    known = {}

    def objective(network, batch):
        key = float(batch["start"][0, 0])
        if key not in known:
            known[key] = next(steps)
        return rollout(box, known[key])(network, batch)

    return objective


def test_rows_are_mixed_only_among_batches_that_differ_in_nothing_but_rows():
    """A number that a whole batch shares, as a viscosity, stays with its rows."""
    network, box = make_network(), make_box(wave)

    def objective(network, batch):
        tensors, factor = batch
        return factor * rollout(box)(network, tensors)

    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=zo.tangents.ModelTangent(wave))
    gradient.replays()
    batches = [(batch_of(n), factor) for n, factor in enumerate((1.0, 10.0, 1.0))]
    for batch in batches:
        gradient.backward(batch)
    expected = {}
    for factor, batch in ((1.0, all_of(batch_of(0), batch_of(2))), (10.0, batch_of(1))):
        expected[factor] = factor * true_gradient(wave, network, batch)
    seen = set()
    for _ in range(12):
        network.zero_grad()
        gradient.replay(rows=100)
        (which,) = [f for f, g in expected.items() if torch.allclose(flat(network), g, rtol=1e-10)]
        seen.add(which)
    assert seen == {1.0, 10.0}


def paired(box, axis):
    """Two states of each row in one call: along an axis, or (2) one list after another."""

    def objective(network, batch):
        out = network(batch["start"])[:, :4]
        both = [out, 1 - 2 * out]
        answers = box(torch.stack(both, axis)).unbind(axis) if axis < 2 else box(torch.cat(both)).chunk(2)
        return (answers[0] - batch["start"]).square().mean(dim=1) + answers[1].square().mean(dim=1)

    return objective


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["members first", "rows first", "one list after another"])
def test_where_a_call_has_other_rows_than_the_batch_s_in_its_order_replay_is_refused(axis, drawn):
    """With a tangent of zero a replay at the weights of the recording has the losses that were recorded."""
    network, box = make_network(), FromTorch(torch.sin, (STATE,), (STATE,))
    asked = paired(box, axis)

    def noisy(network, batch):
        moved = batch["start"] + 0.1 * torch.randn_like(batch["start"]) if drawn else batch["start"]
        return asked(network, {"start": moved})

    gradient = zo.TangentGradient(
        network,
        noisy,
        boxes=[box],
        tangent=zo.tangents.ZeroTangent(),
        limits=zo.tangents.Limits(replays=1, max_age=1),
    )
    gradient.replays()
    with pytest.warns(zo.errors.ZeroGradientWarning):
        gradient.backward(batch_of(0, rows=5))
    before = torch.get_rng_state()
    if axis == 1:
        loss = gradient.replay(rows=5)
        key = gradient._evaluations.key
        assert drawn or torch.allclose(loss, gradient._replays.windows.draw(5, key).losses.mean())
    else:
        with pytest.raises(zo.errors.TangentError, match=r"call 1, .* rows in the order of the batch's 5"):
            gradient.replay(rows=5)
        assert drawn or torch.equal(torch.get_rng_state(), before)
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("turn", [lambda rows: rows.flip(0), lambda rows: rows.roll(1, dims=0)])
@pytest.mark.parametrize("count", [2, 5])
def test_rows_that_an_objective_has_in_another_order_are_not_replayed(turn, count):
    network, box = make_network(), FromTorch(torch.sin, (STATE,), (STATE,))

    def turned(network, batch):
        return (box(turn(network(batch["start"])[:, :4])) - turn(batch["start"])).square().mean(dim=1)

    gradient = zo.TangentGradient(network, turned, boxes=[box])
    gradient.replays()
    gradient.backward(batch_of(0, rows=count))
    with pytest.raises(zo.errors.TangentError, match=f"rows in the order of the batch's {count}"):
        gradient.replay(rows=count)


def by_place(kind: str, box):
    """Objectives that know a row by its place in the batch, and such as only seem to."""
    kept = weights(5, 4, seed=9)
    norm = nn.BatchNorm1d(4, affine=False).double()

    def objective(network, batch):
        start = batch["start"]
        answer = box(network(norm(start) if kind == "batch norm" else start)[:, :4])
        errors = (answer - (kept if kind == "targets" else 0.5)).square().mean(dim=1)
        if kind == "weights":
            return errors * torch.arange(1, len(start) + 1)
        if kind == "neighbours":
            return (answer[1:] - answer[:-1]).square().mean(dim=1).repeat_interleave(2)[: len(start)]
        if kind == "share":
            return errors / errors.detach().sum()
        if kind == "dropout":
            return errors * nn.functional.dropout(torch.ones_like(errors))
        if kind == "Python":
            return errors * random.random()
        return errors

    return objective


@pytest.mark.parametrize("kind", ["targets", "weights", "neighbours"])
def test_an_objective_that_goes_by_the_place_of_a_row_is_not_replayed(kind):
    """Rows of a replay are drawn: each would get the target, or the weight, of another one."""
    network, box = make_network(), FromTorch(torch.sin, (STATE,), (STATE,))
    gradient = zo.TangentGradient(network, by_place(kind, box), boxes=[box], tangent=ModelTangent(torch.sin))
    gradient.replays()
    gradient.backward(batch_of(0, rows=5))
    before = [None if weight.grad is None else weight.grad.clone() for weight in network.parameters()]
    with pytest.raises(zo.errors.TangentError, match=r"each of 5 rows to keep its loss.*into the batch"):
        gradient.replay(rows=5)
    torch.testing.assert_close([w.grad for w in network.parameters()], before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["batch norm", "share", "dropout", "Python"])
def test_what_all_rows_have_a_part_in_and_what_is_drawn_does_not_go_by_place(kind):
    network, box = make_network(), FromTorch(torch.sin, (STATE,), (STATE,))
    gradient = zo.TangentGradient(network, by_place(kind, box), boxes=[box], tangent=ModelTangent(torch.sin))
    gradient.replays()
    gradient.backward(batch_of(0, rows=5))
    network.zero_grad()
    assert float(gradient.replay(rows=5)) > 0.0
    assert all(bool(weight.grad.isfinite().all()) for weight in network.parameters())


@pytest.mark.parametrize("listed", [[3, 1, 2], ("c", "a", "b"), {"deeper": [["c", "a", "b"]]}])
def test_a_list_with_an_entry_for_each_row_is_not_replayed(listed):
    """As a DataLoader makes one of names: rows would be drawn beside it, and it would stay."""
    network, box = make_network(), make_box(wave)
    gradient = zo.TangentGradient(network, lambda n, batch: rollout(box)(n, batch[0]), boxes=[box])
    gradient.replays()
    gradient.backward((batch_of(0), listed, [batch_of(1)["start"]] * 3))
    with pytest.raises(
        zo.errors.TangentError, match="3 rows, which would stay as it is where rows are drawn"
    ):
        gradient.replay()
    gradient = zo.TangentGradient(network, lambda n, batch: rollout(box)(n, batch[0]), boxes=[box])
    gradient.replays()
    gradient.backward((batch_of(0), ["of", "all"], [batch_of(1)["start"]] * 3))
    gradient.replay()


def test_replays_without_a_finite_loss_stop():
    """The weights stay, as where a network has gone astray."""
    network, box, astray = make_network(), make_box(wave), []

    def objective(network, batch):
        return rollout(box)(network, batch) * (torch.nan if astray else 1.0)

    limits, counts = zo.tangents.Limits(excite=0.1), []
    gradient = zo.TangentGradient(network, objective, boxes=[box], limits=limits)
    for seed in range(8):  # in which a gradient may wait, and nothing is replayed
        network.zero_grad()
        gradient.backward(batch_of(100 + seed))
    for seed in range(6):
        network.zero_grad()
        gradient.backward(batch_of(seed))
        counts.append(gradient.replays())
        astray.append(True)
        for _ in range(counts[-1]):
            assert gradient.replay().isnan()
        astray.clear()
    assert counts[:4] == [9, 4, 2, 1] and not counts[4]


class Pair(NamedTuple):
    start: torch.Tensor
    drive: torch.Tensor


@pytest.mark.parametrize("named", [False, True])
def test_of_a_batch_that_a_checkpoint_cannot_hold_it_is_said_when_it_is_written(named, tmp_path):
    """Not when it is to be read."""
    network, box = make_network(), make_box(wave)

    def objective(network, batch):
        start, drive, *_ = batch
        return rollout(box)(network, {"start": start, "drive": drive})

    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=zo.tangents.ModelTangent(wave))
    gradient.replays()
    pair = Pair(**batch_of(0))
    gradient.backward(pair if named else (*pair, {"of": [1.0, None, "all", torch.float64]}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            torch.save(gradient.state_dict(), tmp_path / "state.pt")
    if named:
        assert ["Pair: torch.load would refuse the file" in str(w.message) for w in caught] == [True]
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "state.pt", weights_only=True)
        alone = zo.TangentGradient(network, objective, boxes=[box], tangent=zo.tangents.ModelTangent(wave))
        alone.backward(pair)  # without replays nothing is kept that could not be read
        torch.save(alone.state_dict(), tmp_path / "state.pt")
        torch.load(tmp_path / "state.pt", weights_only=True)
    else:
        assert not caught
        gradient.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_windows_keep_no_graph_of_a_batch():
    """As of an encoder that is trained apart: each window would hold what it has computed."""
    network, box, encoder = make_network(), make_box(wave), nn.Linear(4, 4).double()

    def objective(network, batch):
        return rollout(box)(network, batch)

    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=zo.tangents.ModelTangent(wave))
    gradient.replays()
    batch = batch_of(0)
    hidden = encoder(batch["start"])
    made = weakref.ref(hidden)
    with pytest.warns(zo.TangentWarning, match="got 2 tensors more"):
        gradient.backward({"start": hidden, "drive": batch["drive"]})
    del hidden
    gc.collect()
    assert made() is None
    copy.deepcopy(gradient._replays.windows)
    gradient.replay()
    assert encoder.weight.grad is None
