"""`KeepBest`: the best weights come back, those of the start among them, beside any gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec, Budgeted
from blackbox.errors import BudgetError
from tests.zo.row_boxes import FromTorch, weights
from zo import KeepBest
from zo.errors import ConfigurationError, KeepBestWarning


class Counted(nn.Module):
    """One weight, that a step raises by one, so that it says how many steps were made."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))


def follow(losses, *, steps=None, **settings) -> tuple[KeepBest, Counted, list[int]]:
    """Train with a held-out loss for each number of steps; also the steps that were validated."""
    network, asked = Counted(), []

    def validate():
        asked.append(int(network.steps))
        return losses[asked[-1]]

    held_out = KeepBest(network, validate, **settings)
    for _ in range(len(losses) - 1 if steps is None else steps):
        if not held_out.before_step():
            break
        with torch.no_grad():
            network.steps += 1
            network.seen += 2
    return held_out, network, asked


def test_the_lowest_of_those_validated_comes_back():
    """Every third step, and the last; not the one between that would have been better; buffers too."""
    losses = [5.0, 0.0, 5.0, 4.0, 5.0, 5.0, 3.0, 5.0, 5.0, 5.0, 3.5]
    held_out, network, asked = follow(losses, every=3)
    assert asked == [0, 3, 6, 9]
    assert held_out.restore() == "Kept the weights of step 6 of 10, held-out loss 3."
    assert asked == [0, 3, 6, 9, 10]
    assert (int(network.steps), int(network.seen)) == (6, 12)
    assert (held_out.step, held_out.best_step, held_out.best_validation) == (10, 6, 3.0)
    held_out.restore()
    assert len(asked) == 5  # it is known


def test_the_last_weights_may_be_the_best():
    held_out, network, _ = follow([3.0, 2.0, 1.0], every=50)
    held_out.restore()
    assert int(network.steps) == 2 and held_out.best_validation == 1.0


@pytest.mark.parametrize("last", [1.0, 1.5, math.nan, -math.inf])
def test_the_start_comes_back_where_nothing_was_better(last):
    held_out, network, _ = follow([1.0, 2.0, last], every=1)
    with pytest.warns(KeepBestWarning, match=r"expected 2 steps to lower .* it has 1 and none") as caught:
        words = held_out.restore()
    assert int(network.steps) == 0 and held_out.best_step == 0
    assert str(caught[0].message) == words and caught[0].filename == __file__


def test_losses_that_are_not_finite_are_never_the_best():
    held_out, network, _ = follow([math.nan, math.inf, -math.inf, 7.0, math.nan], every=1)
    held_out.restore()
    assert int(network.steps) == 3 and held_out.best_validation == 7.0
    held_out, network, _ = follow([math.nan] * 3, every=1)
    with pytest.warns(KeepBestWarning, match="none was finite"):
        held_out.restore()
    assert int(network.steps) == 0 and held_out.best_validation is None


def test_without_a_step_the_start_is_kept_without_a_word():
    held_out, network, asked = follow([1.0])
    held_out.restore()
    assert asked == [0] and int(network.steps) == 0


def test_patience_counts_validations_in_a_row():
    """At 0, 2, ... steps: better at 4, then three that are not; NaN is one of them."""
    losses = [9.0, 0.0, 9.5, 0.0, 8.0, 0.0, 8.0, 0.0, math.nan, 0.0, 9.0, 0.0, 0.0]
    held_out, network, asked = follow(losses, steps=50, every=2, patience=3)
    assert asked == [0, 2, 4, 6, 8, 10] and held_out.step == 10
    assert not held_out.before_step() and asked[-1] == 10
    held_out.restore()
    assert int(network.steps) == 4


def test_the_best_come_back_where_no_rows_are_left_to_validate_the_last():
    """The budget is of one validation, and a step; those of the start are the best that anyone knows."""
    network, box = (
        Counted(),
        Budgeted(FromTorch(lambda x: x, (ArraySpec("x", ()),), (ArraySpec("y", ()),)), 5),
    )
    held_out = KeepBest(network, lambda: box(network.steps.expand(4)), every=1)
    assert held_out.before_step()
    with torch.no_grad():
        network.steps += 1
    with pytest.warns(KeepBestWarning, match="it has 0 and none.*The weights of step [0-9]+ were not judged"):
        held_out.restore()
    assert int(network.steps) == 0
    with pytest.raises(BudgetError):
        KeepBest(network, lambda: box(network.steps.expand(4))).restore()


def test_a_validation_that_raises_is_made_again():
    """Else the start would be no candidate."""
    network, losses = Counted(), iter([OSError("server down"), 1.0, 2.0])

    def validate():
        loss = next(losses)
        if isinstance(loss, OSError):
            raise loss
        return loss

    held_out = KeepBest(network, validate)
    with pytest.raises(OSError, match="down"):
        held_out.before_step()
    assert held_out.before_step() and held_out.best_validation == 1.0
    with torch.no_grad():
        network.steps += 1
    with pytest.warns(KeepBestWarning):
        held_out.restore()
    assert int(network.steps) == 0


def test_a_validation_leaves_no_trace():
    """Modes, buffers and draws; with and without it a training is the same to the bit."""

    def run(every):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4))
        optimizer = torch.optim.Adam(network.parameters())

        def validate():
            assert not torch.is_grad_enabled()
            network(torch.rand(6, 4))  # moves the statistics, draws
            network.eval()
            return network(torch.rand(6, 4)).square().mean()

        held_out = KeepBest(network, validate, every=every)
        for _ in range(6):
            held_out.before_step()
            optimizer.zero_grad()
            network(torch.rand(6, 4)).square().mean().backward()
            optimizer.step()
        assert network.training and network[1].training
        return torch.cat([tensor.double().flatten() for tensor in network.state_dict().values()])

    assert torch.equal(run(1), run(100))


def test_resume_goes_on_as_if_nothing_had_been(tmp_path):
    losses = [4.0, 3.0, 3.5, 1.0, 3.6, 3.7, 2.0]
    expected, network, asked = follow(losses, every=1, patience=3)
    expected.restore()
    held_out, half, _ = follow(losses, steps=4, every=1, patience=3)
    torch.save(held_out.state_dict(), tmp_path / "state.pt")
    again, rest = Counted(), []
    again.load_state_dict(half.state_dict())

    def validate():
        rest.append(int(again.steps))
        return losses[rest[-1]]

    resumed = KeepBest(again, validate, every=1, patience=3)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    while resumed.before_step():
        with torch.no_grad():
            again.steps += 1
    assert rest == [4, 5, 6] == asked[-3:]
    resumed.restore()
    assert int(again.steps) == int(network.steps) == 3
    assert (resumed.step, resumed.best_step) == (expected.step, expected.best_step) == (6, 3)


NAN = math.nan


def test_rows_that_fail_are_left_out_of_both_sides_and_counted():
    """Ten rows: without its hardest row a mean falls by itself, and is not taken for better weights."""
    easy = [1.0] * 9
    losses = [
        torch.tensor(row)
        for row in (
            [*easy, 9.0],
            [1.1] * 9 + [NAN],
            [0.9] * 9 + [math.inf],
            [0.5] * 8 + [NAN, NAN],
            [0.8] * 10,
        )
    ]
    held_out, network, _ = follow(losses, every=1)
    assert held_out.best_step == 2 and held_out.best_validation == pytest.approx(0.9)  # not 1: worse on nine
    assert held_out.not_finite == 2  # two of ten are too many to be judged by the rest
    half = KeepBest(network, lambda: losses[4], every=1)
    half.load_state_dict(held_out.state_dict())
    assert half.not_finite == 2
    words = held_out.restore()
    assert words == "Kept the weights of step 4 of 4, held-out loss 0.8." and held_out.not_finite == 0
    kept, _, _ = follow(losses[:3], every=1)
    assert kept.restore() == "Kept the weights of step 2 of 2, held-out loss 0.9, 1 of 10 rows not finite."


def test_where_other_rows_fail_each_time_the_best_is_lower_than_all_that_were_the_best():
    """Each of three is lower than the one before it, on rows that both have; the third not than the first."""
    rest, steps = [1.0] * 17, [[NAN, 1.0, 5.0], [5.0, NAN, 1.0], [1.0, 5.0, NAN]]
    cycle = [torch.tensor([*row, *rest]) for row in steps]
    held_out, network, _ = follow([*cycle, cycle[2]], every=1)
    assert held_out.best_step == 1
    saved = held_out.state_dict()
    again = KeepBest(network, lambda: cycle[2], every=1)
    again.load_state_dict(saved)
    again.before_step()
    assert again.best_step == 1
    better = KeepBest(network, lambda: torch.tensor([0.5] * 20), every=1)
    better.load_state_dict({**saved, "last": None})
    better.before_step()
    assert better.best_step == saved["step"] and better.best_validation == 0.5
    before = {**saved, "rows": saved["rows"][-1]}  # as earlier versions saved it
    better.load_state_dict({**before, "last": None})
    better.before_step()
    assert better.best_validation == 0.5


def test_losses_of_other_rows_than_before_are_refused():
    with pytest.raises(zo.errors.ConfigurationError, match="the same 3 rows each time, got 2"):
        follow([torch.ones(3), torch.ones(2), torch.ones(2)], every=1)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["loss", "tangent"])
def test_beside_a_gradient_it_keeps_what_is_best_through_the_box(kind):
    """The last steps go up the slope: the restored weights have the lowest loss of all validated."""
    torch.manual_seed(0)
    network = nn.Linear(4, 4).double()
    box = FromTorch(torch.sin, (ArraySpec("x", (4,)),), (ArraySpec("x", (4,)),))

    def objective(network, batch):
        return (box(network(batch)) - batch.roll(1, dims=1).tanh()).square().mean(dim=1)

    @torch.no_grad()
    def validate():
        return float(objective(network, weights(32, 4, seed=99)).mean())

    gradient = (
        zo.LossGradient(network, objective, zo.CGE(mu=1e-5))
        if kind == "loss"
        else zo.TangentGradient(network, objective, boxes=[box], tangent=zo.tangents.ModelTangent(torch.sin))
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    held_out, losses = KeepBest(network, validate, every=1), []
    for step in range(30):
        if step == 20:
            optimizer.param_groups[0]["lr"] = -2.0
        held_out.before_step()
        losses.append(validate())
        optimizer.zero_grad()
        gradient.backward(weights(4, 4, seed=step))
        optimizer.step()
    losses.append(validate())
    held_out.restore()
    assert validate() == min(losses) == held_out.best_validation
    assert 0 < held_out.best_step < 30 and losses[held_out.best_step] == min(losses)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 0}, "every: expected a whole number >= 1"),
        ({"patience": 0}, "patience: expected a whole number >= 1"),
        ({"validate": 3.0}, "validate: expected a function without arguments, got 3.0"),
    ],
)
def test_settings_out_of_range(settings, words):
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError, match=words):
        KeepBest(nn.Linear(1, 1), **{"validate": lambda: 0.0, **settings})


@pytest.mark.parametrize(
    "loss", [np.ma.masked, np.ma.MaskedArray([1.0, 0.0], [False, True]), np.complex128(1j)]
)
def test_a_held_out_loss_that_is_masked_or_complex_is_not_the_best(loss):
    network = nn.Linear(1, 1)
    losses = iter([3.0, loss] if np.ndim(loss) == 0 else [np.array([3.0, 3.0]), loss])
    held_out = zo.KeepBest(network, lambda: next(losses), every=1)
    held_out.before_step()
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    if np.iscomplexobj(loss):
        with pytest.raises(ConfigurationError, match="validate"):
            held_out.restore()
        return
    with pytest.warns(KeepBestWarning):
        held_out.restore()
    assert torch.equal(network.weight, start)  # behind the mask lies 0
