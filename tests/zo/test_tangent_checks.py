"""The check along the gradient: what it measures, what it costs, and when it tells nothing."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tests.judged import judged
from tests.zo.chains import ALWAYS, NEVER, X, along, bent, chain, flat_grads, make_network, true_grads
from tests.zo.checks import check_of
from tests.zo.row_boxes import FromTorch, weights
from zo.errors import TangentWarning, ZeroGradientWarning
from zo.tangents.evidence import along_gradient
from zo.tangents.trust import figures
from zo.tangents.trust.evidence import FailedRows
from zo.tangents.trust.watch import TrustWatch


@pytest.mark.parametrize(
    "tangent",
    [zo.tangents.IdentityTangent(), zo.tangents.ModelTangent(lambda x: 0.5 * x + x.square() / 3)],
    ids=["identity", "bent otherwise"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_the_agreement_is_the_true_gradient_along_the_surrogate(tangent, dtype, size):
    """<g, true> / <g, g>, of biased gradients, to the curvature over a thousandth of the loss."""
    network, batch = make_network(dtype), weights(5, 4).to(dtype)
    box = FromTorch(bent, (X,), (X,))

    def objective(solver):
        return lambda network, batch: size * chain(solver)(network, batch)

    gradient = zo.TangentGradient(network, objective(box), boxes=[box], tangent=tangent, limits=ALWAYS)
    gradient.backward(batch)
    g, true = flat_grads(network), true_grads(objective(bent), network, batch)
    expected = float(g @ true / g.square().sum())
    assert abs(expected - 1) > 0.02  # biased, so that it is seen to be measured
    assert gradient.agreement == pytest.approx(expected, abs=5e-3)
    assert gradient.metrics()["tangent_agreement"] == gradient.agreement


def test_rows_of_checks_are_counted_and_are_all_that_they_cost():
    """Three steps, the second checked: batch x calls, and batch x calls more."""
    box = FromTorch(bent, (X,), (X,))
    gradient = zo.TangentGradient(
        make_network(),
        chain(box),
        boxes=[box],
        tangent=zo.tangents.IdentityTangent(),
        limits=judged(check_every=2, lost=1e9, agreement=-1e9, agreement_of_rows=-1),
    )
    asked = []
    for step in range(3):
        asked.append(gradient.next_queries())
        before = box.ledger.rows_run
        gradient.backward(weights(5, 4, seed=step))
        assert (gradient.agreement is None) == ("tangent_agreement" not in gradient.metrics())
        assert box.ledger.rows_run - before == (1 + asked[-1]) * 5 * 3
    assert asked == [0, 1, 0]
    expected = zo.tangents.TangentCounts(steps=3, queries=1, rows=3 * 5 * 3 + 5 * 3, checks=1)
    assert gradient.counts == expected
    assert box.ledger.rows_run == box.ledger.rows_asked == expected.rows


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_figure_of_one_measure_and_one_line_judges_a_box_but_not_a_noisy_one(monkeypatch, noise):
    measured, generator = along_gradient.Query.figures, torch.Generator().manual_seed(0)
    monkeypatch.setattr(along_gradient.Query, "figures", lambda query: {**measured(query), "new": 5.0})
    line = figures.Figure("new", lambda *_: (0.0, 1.0), lambda found, limit: f"<= {limit:g}, found {found:g}")
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, line))
    box = FromTorch(
        lambda x: bent(x) + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype), (X,), (X,)
    )
    gradient = zo.TangentGradient(
        make_network(),
        chain(box),
        boxes=[box],
        tangent=zo.tangents.KernelTangent(),
        limits=judged(ALWAYS, average=1),
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(2):  # the second time the noise is known, and the way as long as that asks for
            gradient.backward(weights(5, 4, seed=step))
            assert gradient.metrics().get("tangent_new") == (None if noise else 5.0)
    assert any("<= 1, found 5" in str(warning.message) for warning in said) == (not noise)
    assert gradient.counts.checks == 2 and bool(gradient.watch.state.noise) == bool(noise)


def test_where_rows_are_short_a_step_has_no_check():
    """As at the end of a budget: the gradient is that of a step whose check finds nothing."""
    box, network = FromTorch(bent, (X,), (X,)), make_network()
    gradient = zo.TangentGradient(
        network,
        chain(box),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(bent),
        limits=zo.tangents.Limits(check_every=1),
    )
    assert gradient.next_queries() == 1
    gradient.backward(weights(64, 4, seed=0))
    checked, spent = flat_grads(network), box.ledger.rows_run
    gradient.unchecked = True
    assert gradient.next_queries() == 0
    network.zero_grad()
    gradient.backward(weights(64, 4, seed=0))
    assert box.ledger.rows_run - spent == spent // 2 and gradient.agreement is None
    assert torch.equal(flat_grads(network), checked)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("noise", "length"), [(0.0, 1.0), (1e-4, 1.0), (1e-2, None)])
def test_a_check_that_finds_fault_is_made_sure_of(noise, length):
    """Of a gradient three times too short, by a limit: once by a query that moves nothing, and without noise
    each time by one a tenth as far; where noise hides that, nothing is asked, and of it is said that it is.
    """
    generator = torch.Generator().manual_seed(0)

    def answer(x):
        return 0.3 * x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    box, network = FromTorch(answer, (X,), (X,)), make_network()
    gradient = zo.TangentGradient(
        network,
        lambda network, batch: (box(network(batch)) - 0.5).square().mean(dim=1),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(lambda x: 0.1 * x),
        limits=judged(check_every=1, lost=1e9, agreement=3.5),
    )
    agreements, rows = [], []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(12):
            before = box.ledger.rows_run
            gradient.backward(weights(64, 4, seed=n))
            agreements.append(gradient.agreement)
            rows.append((box.ledger.rows_run - before) // 64)
    assert rows[0] == (3 if noise else 4) and gradient.counts.rows == box.ledger.rows_run
    messages = [warning for warning in said if issubclass(warning.category, zo.TangentWarning)]
    if noise:
        assert "where the boxes are asked the same rows again" in str(messages.pop(0).message)
    if length is None:
        assert agreements == [None] * 12 and rows[1:] == [1] * 11 and not messages
        return
    assert (
        rows[1:] == [2 if noise else 3] * 11
        and len(messages) == 1
        and "nothing" not in str(messages[0].message)[:30]
    )
    assert (agreements[0] is None) == (noise > 0)
    assert agreements[1:] == pytest.approx([3.0] * 11, abs=1e-2 if not noise else 1.0)


def test_curvature_near_a_minimum_is_no_fault_of_the_true_derivative():
    """1 + 50 (x - x0)^2: a thousandth of the loss further the change is 2.25 times what the slope says."""
    network = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(network.weight)
    one = (ArraySpec("x", (1,)),)
    box = FromTorch(lambda x: 50 * (x - 2e-3) ** 2, one, one)
    gradient = zo.TangentGradient(
        network,
        lambda network, batch: 1 + box(network(batch))[:, 0],
        boxes=[box],
        tangent=zo.tangents.ModelTangent(lambda x: 50 * (x - 2e-3) ** 2),
        limits=judged(check_every=1, average=1),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            gradient.backward(torch.ones(2, 1, dtype=torch.float64))
    foretold = 1e-4 * (1 + 50 * 2e-3**2)  # (100 d h + 50 h^2) / (100 d h), h = foretold / (100 d)
    assert gradient.agreement == pytest.approx(1 + foretold / (200 * 2e-3**2), rel=1e-3)
    assert gradient.counts.queries == 7 and not gradient.watch.lost  # one moved nothing


def test_a_check_draws_the_masks_of_the_base_and_leaves_everything_as_it_was():
    """With dropout: the agreement is that of the masked loss; and runs with and without checks are equal."""

    def run(policy):
        network = make_network(middle=(nn.BatchNorm1d(5), nn.Dropout(0.5)))
        box, gradients = FromTorch(bent, (X,), (X,)), []
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.tangents.IdentityTangent(), limits=policy
        )
        torch.manual_seed(3)
        for step in range(3):
            network.zero_grad()
            before = torch.get_rng_state()
            gradient.backward(weights(6, 4, seed=step))
            gradients.append(flat_grads(network))
            if gradient.agreement is not None:
                after = torch.get_rng_state()
                torch.set_rng_state(before)
                start = [b.clone() for b in network.buffers()]
                true = true_grads(chain(bent), network, weights(6, 4, seed=step))
                for buffer, value in zip(network.buffers(), start, strict=True):
                    buffer.copy_(value)
                torch.set_rng_state(after)
                expected = float(gradients[-1] @ true / gradients[-1].square().sum())
                assert gradient.agreement == pytest.approx(expected, abs=2e-2)
        return torch.cat(gradients + [b.double().flatten() for b in network.buffers()] + [torch.rand(3)])

    assert torch.equal(run(ALWAYS), run(NEVER))


def test_a_check_in_which_a_row_fails_tells_nothing_and_does_no_harm():
    class FailsInTheCheck(FromTorch):
        def evaluate_rows(self, x):
            y = super().evaluate_rows(x)
            if len(self.asked) == 4:  # behind three calls of the base
                y[2] = float("nan")
            return y

    def run(box, policy):
        network = make_network()
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.tangents.IdentityTangent(), limits=policy
        )
        gradient.backward(weights(5, 4))
        return gradient, flat_grads(network)

    gradient, result = run(FailsInTheCheck(bent, (X,), (X,)), ALWAYS)
    assert gradient.agreement is None and "tangent_agreement" not in gradient.metrics()
    assert (gradient.counts.checks, gradient.counts.failed_checks) == (1, 1)
    assert torch.equal(result, run(FromTorch(bent, (X,), (X,)), NEVER)[1])


def in_pairs(box):
    """Two rows of the box for each of the batch."""

    def objective(network, batch):
        state = batch + network(batch)
        return (box(torch.stack([state, state.flip(1) - 1], dim=1)) - 0.5).square().flatten(1).mean(dim=1)

    return objective


@pytest.mark.parametrize(
    ("slope", "with_box", "asked"),
    [
        (bent, chain, 18),
        (lambda x: x, chain, 18),
        (lambda x: 0.5 * x + x.square() / 3, chain, 18),
        (lambda x: x, in_pairs, 12),
    ],
    ids=["true", "identity", "bent otherwise", "two rows each"],
)
def test_the_agreement_of_rows_is_the_cosine_of_what_autograd_says_of_each(slope, with_box, asked):
    """<true gradient of a row's loss, g> against <the tangent's of the same row, g>, over six rows."""
    network, batch = make_network(), weights(6, 4)
    box, policy = (
        FromTorch(bent, (X,), (X,)),
        judged(check_every=1, agreement=-1e9, agreement_of_rows=-1, lost=1e9),
    )
    tangent = zo.tangents.ModelTangent(slope)
    gradient = zo.TangentGradient(network, with_box(box), boxes=[box], tangent=tangent, limits=policy)
    gradient.backward(batch)

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return bent(x)

        @staticmethod
        def backward(ctx, cotangent):
            return torch.autograd.functional.vjp(slope, ctx.saved_tensors[0], cotangent)[1]

    expected = torch.cosine_similarity(
        *(along(with_box(function), network, batch, flat_grads(network)) for function in (bent, Slope.apply)),
        dim=0,
    )
    assert gradient.agreement_of_rows == pytest.approx(float(expected), abs=2e-3)
    assert (slope is bent) == (float(expected) > 1 - 1e-9)
    assert gradient.metrics()["tangent_agreement_of_rows"] == gradient.agreement_of_rows
    assert gradient.counts.rows == box.ledger.rows_run == 2 * asked  # the query of the agreement, no more


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("rows", "faults"), [(3, 1), (4, 0)])
def test_a_short_gradient_that_points_right_is_no_fault_where_rows_tell(rows, faults):
    """0.1 x for 0.3 x: by the mean loss alone, of three rows, its direction is not known. It is told."""
    network, box = make_network(), FromTorch(lambda x: 0.3 * x, (X,), (X,))
    gradient = zo.TangentGradient(
        network,
        lambda network, batch: (box(network(batch)) - 0.5).square().mean(dim=1),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(lambda x: 0.1 * x),
        limits=judged(check_every=1, lost=1e9),
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(12):
            gradient.backward(weights(rows, 4, seed=n))
    assert gradient.agreement == pytest.approx(3.0, abs=1e-2)
    told = [str(warning.message) for warning in said if issubclass(warning.category, zo.TangentWarning)]
    assert len(told) == 1 and ("got 3 times that, over a tenth" in told[0]) == (not faults)
    assert gradient.watch.lost == bool(faults)
    if rows == 4:
        assert told[0].startswith("Step 3:")  # the second check behind one that found no fault
        assert gradient.agreement_of_rows == pytest.approx(1.0, abs=1e-6)
        assert gradient.counts.rows == rows * (2 * 12 + 4)  # twice for noise and a tenth as far


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_loss_that_curves_or_is_noisy_does_not_make_a_gradient_short(noise):
    """1 + x^2 near its minimum, with the right derivative: over the usual way it changes by far more."""
    network, draws = make_network(), torch.Generator().manual_seed(0)
    network[-1].weight.data *= 0.02
    network[-1].bias.data *= 0.0

    def answers(x):
        return x + noise * torch.randn(x.shape, generator=draws).to(x)

    gradient = zo.TangentGradient(
        network,
        lambda network, batch: 1 + (box(network(batch))).square().mean(dim=1),
        boxes=[box := FromTorch(answers, (X,), (X,))],
        tangent=zo.tangents.ModelTangent(lambda x: x),
        limits=judged(check_every=1, lost=1e9, agreement_of_rows=-1.0, agreement=-1e9),
    )
    agreements, queries = [], []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(8):
            before = gradient.counts.queries
            gradient.backward(weights(5, 4, seed=n))
            agreements.append(gradient.agreement)
            queries.append(gradient.counts.queries - before)
    assert min(agreements[2:]) > 5 and not any("too short" in str(warning.message) for warning in said)
    assert set(queries[3:]) == {1}  # it was looked at once


def test_of_few_rows_and_where_nothing_is_checked_no_agreement_of_rows_is_told():
    for rows, policy in ((3, ALWAYS), (6, NEVER)):
        network, box = make_network(), FromTorch(bent, (X,), (X,))
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.tangents.IdentityTangent(), limits=policy
        )
        gradient.backward(weights(rows, 4))
        assert gradient.agreement_of_rows is None
        assert "tangent_agreement_of_rows" not in gradient.metrics()


def test_a_check_in_which_few_rows_fail_is_decided_by_the_others():
    """Two of twenty: the agreement is that of the mean over the rest, by autograd; nothing else changes."""

    class FailsInTheCheck(FromTorch):
        def evaluate_rows(self, x):
            y = super().evaluate_rows(x)
            if len(self.asked) in (5, 8, 11):  # the second call of each query of the check
                y[[3, 7]] = float("nan")
            return y

    batch, weigh = weights(20, 4), torch.ones(20).double()
    weigh[[3, 7]] = 4.0  # much of the gradient is theirs

    def weighed(function):
        return lambda network, batch: weigh * chain(function)(network, batch)

    def run(box, policy):
        network = make_network(middle=(nn.Dropout(0.5),))
        gradient = zo.TangentGradient(
            network, weighed(box), boxes=[box], tangent=zo.tangents.IdentityTangent(), limits=policy
        )
        torch.manual_seed(3)
        gradient.backward(batch)
        return gradient, flat_grads(network), torch.rand(3)

    gradient, grad, after = run(FailsInTheCheck(bent, (X,), (X,)), ALWAYS)
    _, same, drawn = run(FromTorch(bent, (X,), (X,)), NEVER)
    assert torch.equal(grad, same) and torch.equal(after, drawn)
    assert gradient.counts.checks == 1 and gradient.counts.failed_checks == 0

    rest = torch.ones(20, dtype=torch.bool)
    rest[[3, 7]] = False

    def only_rest(function):
        return lambda network, batch: weighed(function)(network, batch)[rest]

    def of_the_rest(function, of=true_grads, *more):
        network = make_network(middle=(nn.Dropout(0.5),))
        torch.manual_seed(3)
        return of(only_rest(function), network, batch, *more)

    class AsIdentity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return bent(x)

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent

    expected = float(of_the_rest(bent) @ grad / (of_the_rest(AsIdentity.apply) @ grad))
    assert gradient.agreement == pytest.approx(expected, abs=1e-2)
    whole = float(of_the_rest(bent) @ grad / grad.square().sum())
    assert abs(whole - expected) > 0.03  # by the whole gradient it would have been told wrong
    changes = (of_the_rest(function, along, grad) for function in (bent, AsIdentity.apply))
    assert gradient.agreement_of_rows == pytest.approx(
        float(torch.cosine_similarity(*changes, dim=0)), abs=1e-2
    )


def test_checks_without_the_rows_that_matter_tell_nothing_and_that_is_said():
    """Two of twenty rows have most of the gradient, and fail in each check."""

    class FailsInChecks(FromTorch):
        def evaluate_rows(self, x):
            y = super().evaluate_rows(x)
            if len(self.asked) % 6 == 5:  # three calls of the base, three of the check
                y[[3, 7]] = float("nan")
            return y

    box, weigh = FailsInChecks(bent, (X,), (X,)), torch.ones(20).double()
    weigh[[3, 7]] = 1e3

    def objective(network, batch):
        return weigh * chain(box)(network, batch)

    network = make_network()
    gradient = zo.TangentGradient(
        network, objective, boxes=[box], tangent=zo.tangents.IdentityTangent(), limits=ALWAYS
    )
    for step in range(2):
        gradient.backward(weights(20, 4, seed=step))
    with pytest.warns(TangentWarning, match="10% did, and the last 3 checks showed nothing"):
        gradient.backward(weights(20, 4, seed=2))
    assert gradient.counts.checks == gradient.counts.failed_checks == 3 and gradient.agreement is None


def test_three_checks_in_a_row_that_tell_nothing_are_said_once():
    watch = TrustWatch(judged(average=2))
    said = []

    def backward(step, agreement, failed):
        watch.saw(step, 0.1, check_of(agreement, reason=None if failed is None else FailedRows(failed)))

    for step, (agreement, failed) in enumerate(
        [
            (None, 0.2),
            (None, None),
            (None, 0.3),
            (1.0, None),
            (None, 0.2),
            (None, 0.2),
            (None, 0.4),
            (None, 0.2),
        ]
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            backward(step, agreement, failed)
        assert all(warning.filename == __file__ for warning in caught)  # who called backward
        said += [(step, str(warning.message)) for warning in caught]
    assert [step for step, _ in said] == [6] and not watch.lost
    assert "at most a tenth of a check's rows to fail" in said[0][1]
    assert "the gradient, 40% did, and the last 3 checks" in said[0][1]


def test_a_row_that_failed_in_the_base_is_in_no_check():
    def run(batch):
        network = make_network()
        box = FromTorch(
            lambda x: torch.where(x.amax(dim=1, keepdim=True) > 50, math.nan, bent(x)), (X,), (X,)
        )
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.tangents.IdentityTangent(), limits=ALWAYS
        )
        gradient.backward(batch)
        return gradient.agreement

    batch = weights(5, 4)
    dead = torch.cat([batch[:2], torch.full((1, 4), 1e3).double(), batch[2:]])
    assert run(dead) == pytest.approx(run(batch), rel=1e-9)


def test_a_gradient_of_zero_cannot_be_checked():
    box = FromTorch(lambda x: 0 * x, (X,), (X,))
    gradient = zo.TangentGradient(
        make_network(),
        lambda network, batch: box(network(batch)).sum(dim=1),
        boxes=[box],
        tangent=zo.tangents.ZeroTangent(),
        limits=ALWAYS,
    )
    with pytest.warns(ZeroGradientWarning):
        gradient.backward(weights(5, 4))
    gradient.backward(weights(5, 4))  # and it is said once
    assert gradient.agreement is None and gradient.counts.checks == 0
    assert gradient.counts.rows == box.ledger.rows_run == 2 * 5


class Pressure(BlackBoxFunction):
    """A function with an offset, in the floats that it is given."""

    arrays = "torch"
    inputs, outputs = (ArraySpec("u", shape=(4,)),), (ArraySpec("p", shape=(4,)),)

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def evaluate_rows(self, u: torch.Tensor) -> torch.Tensor:
        return (self.offset + curved_part(u.double())).to(u.dtype)


def curved_part(u: torch.Tensor) -> torch.Tensor:
    return torch.sin(u) + 0.5 * u.roll(1, 1).square()


@pytest.mark.slow
@pytest.mark.parametrize(
    "offset", [*(pytest.param(value, marks=pytest.mark.slow) for value in (300.0, 20000.0)), 101325.0]
)
def test_an_offset_in_float32_is_no_fault_of_a_tangent(offset):
    """Warnings are errors here; the gradient is as near to autograd's as without the offset."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
    box = Pressure(offset)

    def objective(network, batch, solve=box):
        return (solve(network(batch)) - offset - curved_part(batch[:, :1].repeat(1, 4))).square().mean(dim=1)

    gradient = zo.TangentGradient(network, objective, boxes=[box], limits=zo.tangents.Limits(check_every=8))
    optimizer, errors, agreements = torch.optim.Adam(network.parameters(), 1e-3), [], []
    for _ in range(40):
        batch = torch.randn(32, 3)
        optimizer.zero_grad()
        gradient.backward(batch)
        exact = copy.deepcopy(network).double()
        exact.zero_grad()
        objective(exact, batch.double(), lambda u: offset + curved_part(u)).mean().backward()
        estimated, true = (
            torch.cat([w.grad.flatten().double() for w in module.parameters()]) for module in (network, exact)
        )
        errors.append(float((estimated - true).norm() / true.norm()))
        agreements += [] if gradient.agreement is None else [gradient.agreement]
        optimizer.step()
    assert sum(errors[-10:]) / 10 < 0.15
    assert len(agreements) >= 3 and all(abs(agreement - 1) < 0.25 for agreement in agreements)


def test_noise_that_the_same_rows_repeat_turns_no_gradient_round():
    """Digits of the inputs draw it here; of a program whose rows are remembered, chance does."""
    mix = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def smooth(x):
        return torch.tanh(x.double() @ mix)

    def rough(x):
        return smooth(x) + 1e-2 * torch.sin(1e5 * x.double() @ mix)

    def objective(solver):
        return lambda network, batch: (solver(network(batch)) - batch).square().mean(dim=1)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 4))
    box = FromTorch(rough, (ArraySpec("x", (4,)),), (ArraySpec("y", (3,)),))
    gradient = zo.TangentGradient(network, objective(box), boxes=[box], seed=0, limits=ALWAYS)
    optimizer, found = torch.optim.Adam(network.parameters(), 3e-3), []
    with pytest.warns(TangentWarning, match="the same rows again, or nearly the same"):
        for step in range(12):
            batch = 1.6 * torch.rand(16, 3, generator=torch.Generator().manual_seed(step)) - 0.8
            optimizer.zero_grad()
            gradient.backward(batch)
            if network[0].weight.grad is not None:
                true = true_grads(objective(smooth), network, batch)
                found.append(float(torch.cosine_similarity(flat_grads(network), true, dim=0)))
            optimizer.step()
    assert len(found) > 8 and min(found) > 0.9
    assert gradient.watch.state.noise


def test_a_loss_that_nothing_changes_is_no_noise():
    """The fault of a saturated output beside one that responds is found, and is not taken for chance."""

    def half(y, w):
        return y, torch.full_like(w, 2.0)

    specs = ArraySpec("y", (4,)), ArraySpec("w", (4,))
    box = FromTorch(half, specs, specs)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8)).double()

    def objective(network, batch):
        _, w = box(*network(batch).split(4, dim=1))
        return (w - 3).square().sum(dim=1)

    identity = zo.tangents.ModelTangent(lambda y, w: (y, w))
    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=identity, limits=ALWAYS)
    gradient.backward(torch.randn(8, 6, dtype=torch.float64))
    assert gradient.agreement == 0 and gradient.watch.state.noise in (None, 0.0)
