"""`Population`: the member that is trained through the model, beside those at several rates."""

from __future__ import annotations

import functools
import io
from itertools import pairwise

import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction, Grid
from tests.zo.populations import TARGET, Square, advance, batch, loss_of, weights
from zo.tangents import LinearMap, Tangent
from zo.tangents.models.at_rows import ModelAt

pytestmark = pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
STEPS, SHORT = 16, 12


class Known(Tangent):
    """Values and derivative of `Square`, off by some number everywhere."""

    learns = False

    def __init__(self, off=0.0):
        self.off = off

    def at(self, rows):
        slope = 1 + rows.z / 2
        return LinearMap(rows, lambda d: slope * d, lambda v: slope * v, advance(rows.z) + self.off)


def made(tangent=None, box=None, steps=STEPS, fresh=None, replays=4, **settings):
    torch.manual_seed(0)
    network, box = torch.nn.Linear(3, 4).double(), Square() if box is None else box
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1),
        boxes=[box],
        tangent=tangent,
        limits=zo.tangents.Limits(check_every=None, replays=replays),
        steps=steps,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    return zo.Population(gradient, optimizer, steps=steps, fresh=fresh, **settings), gradient, optimizer


def with_a_model_that_becomes_right(window):
    """A population after a training whose model is right from a window on, and its updates after each."""
    population, gradient, _ = made(Known(off=3.0))
    updates = []
    for number in range(STEPS):
        if number == window:
            gradient.tangents[0].off = 0.0
        population.step(batch(number))
        updates.append(population.updates)
    return population, updates


def test_losses_through_tangents_are_those_of_their_values_and_derivatives():
    _, gradient, _ = made(Known())
    network, x = gradient.network, batch(0)
    loss = gradient.through(x).mean()
    expected = loss_of(network, x)
    assert torch.allclose(loss, expected, rtol=1e-12)
    parameters = list(network.parameters())
    for got, right in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert torch.allclose(got, right, rtol=1e-12)
    assert gradient.boxes[0].ledger.rows_run == 0


@pytest.mark.slow
def test_where_the_model_is_right_the_surrogate_leads_for_the_rows_of_one_training(limits):
    limits(updates_of_a_population=400)
    population, gradient, _ = made(Known(), replays=None)
    alone, other, _ = made(Known(), surrogate=False, replays=None)
    for number in range(STEPS):
        population.step(batch(number))
        alone.step(batch(number))
    assert gradient.boxes[0].ledger.rows_run == STEPS * 2
    assert population.leader == "surrogate" and alone.leader.startswith("rate ")
    assert 300 < population.updates <= 400
    held_out = torch.cat([batch(500 + number) for number in range(50)])
    assert loss_of(gradient.network, held_out) < loss_of(other.network, held_out) / 2


@pytest.mark.parametrize("rate", [1e3, 1e200])
def test_steps_by_which_models_foretell_far_more_are_undone(limits, rate):
    """The rates run away too: what is left is where the surrogate was before."""
    limits(updates_of_a_population=400)
    population, gradient, optimizer = made(Known())
    for number in range(STEPS - 1):
        population.step(batch(number))
    assert population.leader == "surrogate"
    before, updates = weights(gradient.network), population.updates
    optimizer.param_groups[0]["lr"] = rate
    population.step(batch(STEPS))
    assert population.updates > updates
    assert population.leader == "surrogate" and torch.equal(weights(gradient.network), before)


def test_it_says_whether_a_loss_is_of_the_weights_that_led(limits):
    """Before the surrogate leads, boxes are asked at its weights: of no network that is kept."""
    limits(updates_of_a_population=400)
    population, gradient, _ = made(Known())
    others = []
    for number in range(STEPS):
        before = float(loss_of(gradient.network, batch(number)).detach())
        loss = float(population.step(batch(number)))
        assert population.asked_leader == (loss == pytest.approx(before, rel=1e-12))
        others += [] if population.asked_leader else [number]
    assert others and max(others) < STEPS - 1 and population.leader == "surrogate"


def test_fresh_batches_are_taken_one_after_another_and_no_box_is_asked(limits):
    limits(updates_of_a_population=140)
    taken = []

    def fresh(number):
        taken.append(number)
        return batch(1000 + number)

    population, gradient, _ = made(Known(), fresh=fresh)
    for number in range(STEPS):
        population.step(batch(number))
    assert taken == list(range(population.updates)) and len(taken) > 100
    assert gradient.boxes[0].ledger.rows_run == STEPS * 2


@pytest.mark.parametrize(("steps", "updates"), [(16, 72), (15, 20)])
def test_with_many_rows_that_are_asked_once_it_takes_more_steps_on_more_rows(limits, steps, updates):
    """2.25 for each row of 16 batches of two; 15 of them are not many."""
    limits(updates_of_a_population=20, many_rows_of_a_population=32)
    taken, rows = [], []

    def fresh(number):
        taken.append(number)
        return torch.cat([batch(2000 + number), batch(1000 + number)[:1]])

    population, gradient, _ = made(Known(), steps=steps, fresh=fresh)
    through = gradient.through
    gradient.through = lambda asked: rows.append(len(asked) * torch.is_grad_enabled()) or through(asked)
    for number in range(steps):
        population.step(batch(number))
    imagined = [count for count in rows if count]  # what is foretold has no graph
    assert population.updates == len(imagined) and updates - 5 <= population.updates <= updates
    assert len(taken) == len(set(taken))
    assert set(imagined) == ({66} if steps == 16 else {3})  # 22 batches of three rows
    assert gradient.boxes[0].ledger.rows_run == steps * 2


def test_steps_that_waited_are_taken_a_thousand_at_a_time(monkeypatch, limits):
    """A step of a training with a limit in time is no longer than they take."""
    limits(updates_of_a_population=20, many_rows_of_a_population=32)
    monkeypatch.setattr("zo.tangents.population.population.LONGEST", 30)
    population, updates = with_a_model_that_becomes_right(10)
    taken = [later - earlier for earlier, later in pairwise(updates)]
    assert set(taken) == {0, 30} and population.updates == 60


def test_with_many_rows_a_short_last_batch_changes_nothing(limits):
    limits(updates_of_a_population=20, many_rows_of_a_population=32)
    rows = []
    population, gradient, _ = made(Known(), fresh=lambda number: batch(1000 + number))
    through = gradient.through
    gradient.through = lambda asked: rows.append(len(asked)) or through(asked)
    for number in range(STEPS):
        population.step(batch(number)[: 1 if number == STEPS - 1 else 2])
    assert {count for count in rows if count > 2} == {64} and population.updates > 65


def test_fresh_batches_of_other_forms_are_not_joined(limits):
    """One factor would have scaled the rows of all."""
    limits(updates_of_a_population=20, many_rows_of_a_population=32)
    torch.manual_seed(0)
    network, box = torch.nn.Linear(3, 4).double(), Square()
    factors, rows = [], []

    def objective(net, asked):
        x, factor = asked
        factors.append(factor)
        rows.append(len(x))
        return (box(net(factor * x)) - TARGET).square().sum(dim=1)

    gradient = zo.TangentGradient(
        network,
        objective,
        boxes=[box],
        tangent=Known(),
        limits=zo.tangents.Limits(check_every=None, replays=4),
        steps=STEPS,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    population = zo.Population(
        gradient, optimizer, steps=STEPS, fresh=lambda number: (batch(1000 + number), float(number))
    )
    for number in range(STEPS):
        population.step((batch(number), 1.0))
    assert max(factors) > 64 and max(rows) < 64 and population.updates > 65


def test_with_many_rows_in_a_loop_of_calls_its_steps_are_as_usual(limits):
    limits(updates_of_a_population=20, many_rows_of_a_population=8)
    torch.manual_seed(0)
    network, box = torch.nn.Linear(3, 4).double(), Square()
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (box(box(net(x))) - TARGET).square().sum(dim=1),
        boxes=[box],
        tangent=Known(),
        limits=zo.tangents.Limits(check_every=None, replays=4),
        steps=STEPS,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    population = zo.Population(gradient, optimizer, steps=STEPS)
    for number in range(STEPS):
        population.step(batch(number))
    assert 15 < population.updates <= 20


def test_in_a_training_that_has_grown_its_steps_are_as_many(limits):
    limits(updates_of_a_population=140)
    population, *_ = made(Known(), steps=3)
    for number in range(STEPS):
        population.steps = STEPS if number > 1 else 3
        population.step(batch(number))
    assert 100 < population.updates <= 140


def test_a_fresh_batch_that_asks_a_box_is_refused_before_a_row_is_run(limits):
    limits(updates_of_a_population=200)
    box = Square()
    population, *_ = made(Known(), box, fresh=lambda number: box(torch.zeros(2, 4).double())[:, :3])
    with pytest.raises(zo.errors.TangentError, match="Population, fresh: expected batches for which no box"):
        for number in range(STEPS):
            population.step(batch(number))
    assert population.updates == 0 and box.ledger.rows_run == 2 * (number + 1)


def test_where_the_model_is_wrong_the_surrogate_takes_no_step_and_boxes_are_never_asked_at_it(limits):
    """And all is, to the bit, as without one."""
    limits(updates_of_a_population=200)
    population, gradient, _ = made(Known(off=3.0))
    alone, other, _ = made(Known(off=3.0), surrogate=False)
    for number in range(STEPS):
        assert torch.equal(population.step(batch(number)), alone.step(batch(number)))
    assert population.updates == 0 and population.leader.startswith("rate ")
    assert torch.equal(weights(gradient.network), weights(other.network))


def test_steps_that_waited_are_taken_where_the_model_becomes_right(limits):
    limits(updates_of_a_population=140)
    population, updates = with_a_model_that_becomes_right(6)
    assert updates[:7] == [0] * 7 and updates[7] > 0  # two windows were foretold to a factor of four
    assert 120 < population.updates <= 140 and population._rivalry.asked


def test_its_gradients_have_length_one(monkeypatch, limits):
    limits(updates_of_a_population=400)
    population, gradient, optimizer = made(Known())
    lengths, step = [], optimizer.step

    def seen():
        if population.updates > before:
            lengths.append(float(torch.cat([w.grad.flatten() for w in gradient.network.parameters()]).norm()))
        return step()

    monkeypatch.setattr(optimizer, "step", seen)
    for number in range(6):
        before = population.updates
        population.step(batch(number))
    assert len(lengths) >= 50 and max(abs(length - 1) for length in lengths) < 1e-12


def run(parts, numbers):
    for number in numbers:
        parts[0].step(batch(number))
    return parts


@functools.cache
def undisturbed():
    return run(made(Known(), steps=SHORT), range(SHORT))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("cut", [9, 2, 5])
def test_a_state_goes_on_to_the_same_bits(cut, limits):
    limits(updates_of_a_population=120)
    whole, begun = undisturbed(), run(made(Known(), steps=SHORT), range(cut))
    file = io.BytesIO()
    names = ("population", "gradient", "optimizer", "network")
    torch.save(dict(zip(names, [p.state_dict() for p in (*begun, begun[1].network)], strict=True)), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = made(Known(), steps=SHORT)
    again[1].network.load_state_dict(state["network"])
    for part, name in ((again[2], "optimizer"), (again[1], "gradient"), (again[0], "population")):
        part.load_state_dict(state[name])
    run(again, range(cut, SHORT))
    assert again[0].updates > begun[0].updates and (begun[0].updates > 0) == (cut == 9)
    assert torch.equal(weights(whole[1].network), weights(again[1].network))
    assert whole[0].metrics() == again[0].metrics() and whole[0].leader == again[0].leader


def test_a_box_that_no_model_stands_for_has_rates_alone():
    class Labelled(BlackBoxFunction):
        arrays = "torch"
        inputs = (ArraySpec("x", (4,), "float64"),)
        outputs = (*inputs, ArraySpec("label", (), "int64"))

        def evaluate_rows(self, x):
            return advance(x), (x.sum(dim=1) > 0).long()

    box = Labelled()
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 4).double()
    gradient = zo.TangentGradient(
        network, lambda net, x: (box(net(x))[0] - TARGET).square().sum(dim=1), boxes=[box]
    )
    population = zo.Population(gradient, torch.optim.Adam(network.parameters(), lr=1e-3), steps=8)
    assert "label" in population.without
    for number in range(8):
        population.step(batch(number))
    assert population.updates == 0 and population.leader.startswith("rate ")


def test_a_tangent_without_values_has_rates_alone():
    population, *_ = made(zo.tangents.IdentityTangent())
    for number in range(3):
        population.step(batch(number))
    assert population.without is not None and population.updates == 0


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("first", [True, False])
def test_one_tangent_without_values_beside_one_that_learns_is_enough(first):
    boxes = Square(), Square()
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 4).double()
    tangents = [zo.tangents.IdentityTangent(), zo.tangents.AutoTangent(boxes[first])]
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (boxes[1](boxes[0](net(x))) - TARGET).square().sum(dim=1),
        boxes=boxes,
        tangent=tangents if first else tangents[::-1],
    )
    population = zo.Population(gradient, torch.optim.Adam(network.parameters(), lr=1e-3), steps=8)
    for number in range(4):
        population.step(batch(number))
    assert "that knows its values, got one without" in population.without
    assert len(population.state_dict()["members"]) == 3


@pytest.mark.slow
def test_a_model_of_the_users_has_values_for_a_surrogate():
    population, *_ = made(zo.tangents.ModelTangent(advance))
    for number in range(12):
        population.step(batch(number))
    assert population.without is None and population.leader == "surrogate"


def test_rows_that_fail_at_the_surrogate_take_the_lead_from_it(limits):
    limits(updates_of_a_population=400)

    class Fails(Square):
        broken = False

        def evaluate_rows(self, x):
            return torch.full_like(x, torch.nan) if self.broken else super().evaluate_rows(x)

    box = Fails(failures="keep")
    population, *_ = made(Known(), box)
    number = 0
    while population.leader != "surrogate":
        population.step(batch(number))
        number += 1
    box.broken = True
    for _ in range(20):
        if population.leader == "surrogate":
            with pytest.raises(zo.FailedBatchError):
                population.step(batch(number))
    assert population.leader.startswith("rate ")


def test_a_trial_leaves_no_trace_in_what_replays_and_lengths_go_by():
    _, gradient, _ = made(Known())
    gradient.backward(batch(0))
    gradient.replays()
    before = gradient.state_dict()
    with gradient.aside():
        gradient.backward(batch(1))
    gradient.forget_last()
    after = gradient.state_dict()
    assert before["clipping"]["lengths"] == after["clipping"]["lengths"]
    assert len(after["windows"]["windows"]) == len(before["windows"]["windows"]) == 1
    gradient.forget_last()
    assert len(gradient.state_dict()["windows"]["windows"]) == 1  # the only one stays


def test_many_calls_keep_no_graphs_and_have_the_same_gradient(monkeypatch):
    """Where models keep them the gradient through their values is the same to rounding."""

    class Ring(BlackBoxFunction):
        arrays = "torch"
        inputs = outputs = (ArraySpec("u", (1, 8), "float64", layout=Grid(True)),)

        def evaluate_rows(self, u):
            return u + 0.1 * (u.roll(1, -1) - u) * u

    box, network = Ring(), torch.nn.Conv1d(1, 1, 3, padding=1).double()
    settings = {"boxes": [box], "tangent": zo.tangents.StencilTangent()}
    gradient = zo.TangentGradient(network, lambda net, u: box(box(net(u))).square().sum((1, 2)), **settings)
    for _ in range(3):
        gradient.backward(torch.randn(6, 1, 8, dtype=torch.float64))
    u, found, passes = torch.randn(4, 1, 8, dtype=torch.float64), [], []
    keep = ModelAt.values_before_pull
    monkeypatch.setattr(ModelAt, "values_before_pull", lambda at: passes.append(1) or keep(at))
    for most in (2**18, 0):
        monkeypatch.setattr("zo.tangents.playback.by_models.KEPT", most)
        loss = gradient.through(u).mean()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]))
    assert len(passes) == 2
    torch.testing.assert_close(*found)
