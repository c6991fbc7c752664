"""Batches that no box has answered, against autograd: exact with the box as model, refused where not."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import Imagined, Linearised, ModelTangent

STATE, ACTION = ArraySpec("state", (4,)), ArraySpec("action", (2,))
pytestmark = pytest.mark.filterwarnings(
    "ignore::zo.errors.TangentWarning", "ignore::zo.errors.LostRowsWarning"
)


def pushed(state, action):
    """A state, moved on by itself and by an action."""
    return state + 0.3 * torch.sin(state.roll(1, dims=1)) + 0.2 * torch.tanh(action @ weights(2, 4, seed=3))


def moved(offset, state, action):
    return pushed(state, action) + offset


class Valued(Linearised):
    """What a tangent says at some rows, with values besides."""

    def __init__(self, of, values):
        super().__init__(of.rows)
        self._of, self._values = of, values

    @property
    def values(self):
        return self._values

    def push(self, d):
        return self._of.push(d)

    def pull(self, v):
        return self._of.pull(v)

    def to(self, z, others):
        return self._of.to(z, others)


class Exact(ModelTangent):
    """A tangent that is its box, in values too; perhaps with something added to these."""

    def __init__(self, model, offset=0.0):
        super().__init__(model)
        self.offset = offset

    def at(self, rows):
        return Valued(super().at(rows), self.model(*rows.z.split((4, 2), dim=1)) + self.offset)


def make_box(function=pushed, **more) -> FromTorch:
    return FromTorch(function, (STATE, ACTION), (ArraySpec("state", (4,), **more),))


def make_network(dropout=0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 2)).double()


def steered(box, calls=3):
    def objective(network, batch):
        state = batch
        for _ in range(calls):
            state = box(state, network(state))
        return (state - 0.5).square().mean(dim=1)

    return objective


def batch_of(seed: int, rows: int = 3) -> torch.Tensor:
    return weights(rows, 4, seed=seed)


def flat(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def true_gradient(network, batch) -> torch.Tensor:
    network = copy.deepcopy(network)
    network.zero_grad()
    steered(pushed)(network, batch).mean().backward()
    return flat(network)


def shown(network, box, tangent, windows=4, **settings) -> zo.TangentGradient:
    """A gradient behind some windows, of which imagined batches were asked from the first on."""
    gradient = zo.TangentGradient(network, steered(box), boxes=[box], tangent=tangent, **settings)
    for number in range(windows):
        gradient.imaginations()
        gradient.backward(batch_of(number))
    network.zero_grad()
    return gradient


def test_with_the_box_itself_as_the_model_the_gradient_is_autograd_s_and_no_box_runs():
    network, box = make_network(), make_box()
    gradient = shown(network, box, Exact(pushed))
    rows, batch = box.ledger.rows_asked, batch_of(77, rows=5)
    assert gradient.imaginations() > 0
    imagined = gradient.imagine(batch)
    assert imagined and imagined.rows == 5 and not imagined.why
    assert imagined.loss is not None
    assert torch.allclose(imagined.loss, steered(pushed)(network, batch).mean(), rtol=1e-12)
    assert torch.allclose(flat(network), true_gradient(network, batch), rtol=1e-10)
    assert box.ledger.rows_asked == rows and gradient.counts.imagined == 1


def test_the_bias_is_that_of_the_gradient_through_values_and_nothing_is_added_where_it_is_large():
    """Against autograd: with gradients that do not change, the fading sums are multiples of the gradients."""
    network, box, batch = make_network(), make_box(), batch_of(0)
    for offset, believed in ((0.02, True), (5.0, False)):
        gradient = zo.TangentGradient(network, steered(box), boxes=[box], tangent=Exact(pushed, offset))
        for _ in range(5):
            gradient.imaginations()
            network.zero_grad()
            gradient.backward(batch)
        off = copy.deepcopy(network)
        off.zero_grad()
        steered(partial(moved, offset))(off, batch).mean().backward()
        true, through = true_gradient(network, batch), flat(off)
        through *= min(1.0, float(2 * true.norm() / through.norm()))  # as a step would shorten it
        bias = float((through - true).norm() / true.norm())
        # the first window comes before there are units, and is judged like the others
        assert gradient.metrics()["tangent_imagined_bias"] == pytest.approx(bias, rel=1e-8)
        network.zero_grad()
        imagined = gradient.imagine(batch)
        assert bool(imagined) == believed == (gradient.imaginations() > 0)
        if not believed:
            assert "of the mean gradient" in imagined.why
            assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_a_window_on_which_the_model_ran_away_is_outweighed_by_those_that_follow():
    """In closed form: of sums that fade by .8, with one gradient and one forecast that is off."""
    network, box, batch = make_network(), make_box(), batch_of(0)
    gradient = zo.TangentGradient(network, steered(box), boxes=[box], tangent=Exact(pushed))
    (tangent,) = gradient.tangents
    assert isinstance(tangent, Exact)
    off, away = copy.deepcopy(network), 1e4
    off.zero_grad()
    steered(partial(moved, away))(off, batch).mean().backward()
    true, through = true_gradient(network, batch), flat(off)
    assert through.norm() > 1000 * true.norm()
    apart = float((through * (2 * true.norm() / through.norm()) - true).norm() / true.norm())
    for number in range(8):
        gradient.imaginations()
        tangent.offset = away if number == 2 else 0.0
        network.zero_grad()
        gradient.backward(batch)
        bias = apart * 0.8 ** (number - 2) / sum(0.8**age for age in range(number + 1))
        if number >= 2:
            assert gradient.metrics()["tangent_imagined_bias"] == pytest.approx(bias, rel=1e-8)
            assert (gradient.imaginations() > 0) == (bias <= 1)
    assert gradient.imaginations() > 0


def test_the_first_windows_allow_nothing_and_then_more_and_more():
    network, box = make_network(), make_box()
    gradient = zo.TangentGradient(network, steered(box), boxes=[box], tangent=Exact(pushed))
    counts = []
    for number in range(8):
        counts.append(gradient.imaginations())
        assert bool(gradient.imagine(batch_of(50))) == (counts[-1] > 0)
        gradient.backward(batch_of(number))
    assert counts[0] == counts[1] == 0 and counts[-1] > counts[4] > 0
    assert counts == sorted(counts)


def test_judging_a_window_changes_nothing_of_the_training():
    """With dropout, whose draws are those of the boxes' own evaluation."""

    def trained(asking):
        network, box = make_network(dropout=0.3), make_box()
        gradient = zo.TangentGradient(network, steered(box), boxes=[box], tangent=zo.KernelTangent())
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        torch.manual_seed(5)
        for number in range(5):
            if asking:
                gradient.imaginations()
            optimizer.zero_grad()
            gradient.backward(batch_of(number))
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(trained(True), trained(False))


@pytest.mark.parametrize(
    ("tangent", "words"),
    [(zo.SecantTangent(), "changes alone"), (Exact(pushed), None)],
)
def test_a_fixed_number_asks_no_window_but_for_values(tangent, words):
    network, box = make_network(), make_box()
    gradient = shown(network, box, tangent, windows=1, imaginations=4, max_rows=4)
    imagined = gradient.imagine(batch_of(9))
    assert gradient.imaginations() == 4 and bool(imagined) == (words is None)
    assert words is None or words in imagined.why


class Onward(FromTorch):
    """Whose rows go on from one another."""

    settable = False


def test_what_no_model_of_values_can_answer_is_refused_in_words():
    whole = FromTorch(
        lambda state, action: (pushed(state, action), state[:, 0].round().long()),
        (STATE, ACTION),
        (STATE, ArraySpec("place", (), "int64", differentiable=False)),
    )
    onward = Onward(pushed, (STATE, ACTION), (STATE,))
    for box, words in ((onward, "goes on from another row"), (whole, "'place'")):

        def objective(network, batch, box=box):
            answer = box(batch, network(batch))
            return (answer[0] if isinstance(answer, tuple) else answer).square().mean(dim=1)

        network = make_network()
        gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=zo.KernelTangent())
        for number in range(4):
            assert gradient.imaginations() == 0
            gradient.backward(batch_of(number))
        imagined = gradient.imagine(batch_of(9))
        assert not imagined and imagined == Imagined(why=imagined.why) and words in imagined.why


def test_a_box_that_is_not_named_would_cost_rows_and_is_refused():
    network, box, other = make_network(), make_box(), make_box()

    def objective(network, batch):
        return steered(box)(network, other(batch, 0 * batch[:, :2]))

    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=Exact(pushed), imaginations=1)
    gradient.imaginations()
    gradient.backward(batch_of(0))
    rows = other.ledger.rows_asked
    with pytest.raises(zo.TangentError, match="Name it in boxes"):
        gradient.imagine(batch_of(1))
    assert other.ledger.rows_asked == rows


def test_rows_that_go_far_from_what_was_recorded_are_left_out():
    network, box = make_network(), make_box()
    gradient = shown(network, box, Exact(pushed))
    near = batch_of(8, rows=2) / 2
    imagined = gradient.imagine(torch.cat([near, torch.full((1, 4), 100.0, dtype=torch.float64)]))
    assert imagined.rows == 2
    assert torch.allclose(flat(network), true_gradient(network, near), rtol=1e-10)
    network.zero_grad()
    assert "not asked anything like it" in gradient.imagine(torch.full_like(near, 100.0)).why


def test_where_many_rows_fail_nothing_is_imagined():
    def failing(state, action):
        return torch.where(state[:, :1] > 0.5, torch.nan, pushed(state, action))

    network, box = make_network(), make_box(failing)
    gradient = zo.TangentGradient(network, steered(box, calls=1), boxes=[box], tangent=Exact(pushed))
    for number in range(6):
        gradient.imaginations()
        gradient.backward(batch_of(number, rows=8))
    assert gradient.counts.lost > 0
    gradient.backward(-batch_of(3, rows=8).abs())
    for number in range(3):
        gradient.backward(-batch_of(number, rows=2).abs())  # none of which fails
    assert "rows failed" in gradient.imagine(batch_of(9)).why


def trained(steps, folder=None):
    """Windows, replays and imagined batches in turn; where there is a folder all is saved and loaded."""
    network, box = make_network(dropout=0.2), make_box()

    def made():
        return zo.TangentGradient(network, steered(box), boxes=[box], seed=1)

    gradient, optimizer = made(), torch.optim.Adam(network.parameters(), lr=3e-3)
    torch.manual_seed(3)
    for step in range(steps):
        optimizer.zero_grad()
        gradient.backward(batch_of(step))
        optimizer.step()
        for number in range(gradient.imaginations()):
            optimizer.zero_grad()
            if gradient.imagine(batch_of(100 * step + number, rows=4)):
                optimizer.step()
        if folder is not None:
            torch.save(gradient.state_dict(), folder / "state.pt")
            gradient = made()
            gradient.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return torch.cat([p.detach().flatten() for p in network.parameters()]), gradient.counts


@pytest.mark.slow
def test_a_run_with_imagined_batches_resumes_to_the_bit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (through, counts), (resumed, again) = trained(8), trained(8, tmp_path)
    assert torch.equal(through, resumed) and counts == again and counts.imagined > 0


@pytest.mark.parametrize("bad", [-1, 1.5])
def test_a_number_that_is_none_is_refused(bad):
    network, box = make_network(), make_box()
    with pytest.raises(zo.ConfigurationError, match="imaginations"):
        zo.TangentGradient(network, steered(box), boxes=[box], imaginations=bad)
