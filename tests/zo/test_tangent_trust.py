"""Trust in tangents: errors before learning, the check along the gradient, and when probes are added."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tests.zo.row_boxes import FromTorch, weights
from zo import TrustPolicy
from zo.errors import TangentWarning, ZeroGradientWarning
from zo.tangents import CallPairs
from zo.tangents.pairs import joined
from zo.tangents.trust import Check, TrustWatch

X = ArraySpec("x", (4,))
QUICK = TrustPolicy(check_every=None, average=3)
NEVER = TrustPolicy(check_every=None, lost=1e9, regained=1e9)
ALWAYS = TrustPolicy(check_every=1, lost=1e9, regained=1e9, agreement=-1e9)


def bent(x):
    return torch.sin(1.3 * x) + 0.2 * x.roll(1, dims=-1) * x


def make_network(dtype=torch.float64, middle: tuple[nn.Module, ...] = ()) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 4)).to(dtype)


def chain(box, steps=3):
    def objective(network, batch):
        state, loss = batch, 0.0
        for _ in range(steps):
            state = box(state + network(state))
            loss = loss + (state - 0.5).square().mean(dim=1)
        return loss

    return objective


def flat_grads(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()]).double()


def true_grads(objective, network, batch) -> torch.Tensor:
    loss = objective(network, batch).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]).double()


def along(objective, network, batch, direction) -> torch.Tensor:
    """The derivative of each row's loss along a direction."""
    losses, tensors = objective(network, batch), list(network.parameters())
    rows = [torch.autograd.grad(loss, tensors, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]).double() @ direction for row in rows])


# The check


@pytest.mark.parametrize("tangent", [zo.IdentityTangent(), zo.SecantTangent()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_the_agreement_is_the_true_gradient_along_the_surrogate(tangent, dtype, size):
    """<g, true> / <g, g>, of biased gradients, to the curvature over a thousandth of the loss."""
    network, batch = make_network(dtype), weights(5, 4).to(dtype)
    box = FromTorch(bent, (X,), (X,))

    def objective(solver):
        return lambda network, batch: size * chain(solver)(network, batch)

    gradient = zo.TangentGradient(
        network, objective(box), boxes=[box], tangent=tangent, probes=1, trust_policy=ALWAYS
    )
    gradient.backward(batch)
    g, true = flat_grads(network), true_grads(objective(bent), network, batch)
    expected = float(g @ true / g.square().sum())
    assert abs(expected - 1) > 0.02  # biased, so that it is seen to be measured
    assert gradient.agreement == pytest.approx(expected, abs=5e-3)
    assert gradient.metrics()["tangent_agreement"] == gradient.agreement


@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
def test_rows_of_checks_are_counted_and_are_all_that_they_cost(evaluator):
    """Three steps, the second checked: (1 + probes) x batch x calls, and batch x calls more."""
    box = FromTorch(bent, (X,), (X,))
    gradient = zo.TangentGradient(
        make_network(),
        chain(box),
        boxes=[box],
        tangent=zo.LowRankTangent(),
        probes=2,
        evaluator=evaluator,
        trust_policy=TrustPolicy(check_every=2, lost=1e9, regained=1e9, agreement=-1e9),
    )
    asked = []
    for step in range(3):
        asked.append(gradient.next_queries())
        before = box.ledger.rows_run
        gradient.backward(weights(5, 4, seed=step))
        assert (gradient.agreement is None) == ("tangent_agreement" not in gradient.metrics())
        assert box.ledger.rows_run - before == (1 + asked[-1]) * 5 * 3
    assert asked == [2, 3, 2]
    expected = zo.tangents.TangentCounts(steps=3, queries=7, rows=3 * 3 * 5 * 3 + 5 * 3, checks=1)
    assert gradient.counts == expected
    assert box.ledger.rows_run == box.ledger.rows_asked == expected.rows


@pytest.mark.parametrize(("noise", "length"), [(0.0, 1.0), (1e-4, 1.0), (1e-2, None)])
def test_a_check_that_finds_fault_is_made_sure_of(noise, length):
    """Of a gradient three times too short, by a limit: once by a query that moves nothing, and without noise
    each time by one a tenth as far; where noise hides that, nothing is said or asked.
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
        probes=0,
        trust_policy=TrustPolicy(check_every=1, lost_values=1e9, agreement=3.5),
    )
    found, rows = [], []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(12):
            before = box.ledger.rows_run
            gradient.backward(weights(64, 4, seed=n))
            found.append(gradient.agreement)
            rows.append((box.ledger.rows_run - before) // 64)
    assert rows[0] == (3 if noise else 4) and gradient.counts.rows == box.ledger.rows_run
    told = [each for each in said if issubclass(each.category, zo.TangentWarning)]
    if length is None:
        assert found == [None] * 12 and rows[1:] == [1] * 11 and not told
        return
    assert (
        rows[1:] == [2 if noise else 3] * 11 and len(told) == 1 and "nothing" not in str(told[0].message)[:30]
    )
    assert (found[0] is None) == (noise > 0)
    assert found[1:] == pytest.approx([3.0] * 11, abs=1e-2 if not noise else 1.0)


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
        trust_policy=TrustPolicy(check_every=1, average=1),
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
        box, found = FromTorch(bent, (X,), (X,)), []
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.SecantTangent(), trust_policy=policy
        )
        torch.manual_seed(3)
        for step in range(3):
            network.zero_grad()
            before = torch.get_rng_state()
            gradient.backward(weights(6, 4, seed=step))
            found.append(flat_grads(network))
            if gradient.agreement is not None:
                after = torch.get_rng_state()
                torch.set_rng_state(before)
                start = [b.clone() for b in network.buffers()]
                true = true_grads(chain(bent), network, weights(6, 4, seed=step))
                for buffer, value in zip(network.buffers(), start, strict=True):
                    buffer.copy_(value)
                torch.set_rng_state(after)
                expected = float(found[-1] @ true / found[-1].square().sum())
                assert gradient.agreement == pytest.approx(expected, abs=2e-2)
        return torch.cat(found + [b.double().flatten() for b in network.buffers()] + [torch.rand(3)])

    assert torch.equal(run(ALWAYS), run(NEVER))


def test_a_check_in_which_a_row_fails_tells_nothing_and_does_no_harm():
    class FailsInTheCheck(FromTorch):
        def evaluate_rows(self, x):
            y = super().evaluate_rows(x)
            if len(self.asked) == 4:  # three calls with the probes before
                y[2] = float("nan")
            return y

    def run(box, policy):
        network = make_network()
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.SecantTangent(), trust_policy=policy
        )
        gradient.backward(weights(5, 4))
        return gradient, flat_grads(network)

    gradient, found = run(FailsInTheCheck(bent, (X,), (X,)), ALWAYS)
    assert gradient.agreement is None and "tangent_agreement" not in gradient.metrics()
    assert (gradient.counts.checks, gradient.counts.failed_checks, gradient.counts.dropped) == (1, 1, 0)
    assert torch.equal(found, run(FromTorch(bent, (X,), (X,)), NEVER)[1])


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
        TrustPolicy(check_every=1, agreement=-1e9, agreement_of_rows=-1, lost_values=1e9),
    )
    tangent = zo.tangents.ModelTangent(slope)
    gradient = zo.TangentGradient(
        network, with_box(box), boxes=[box], tangent=tangent, trust_policy=policy, max_rows=2
    )
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


@pytest.mark.parametrize(("rows", "faults"), [(3, 1), (4, 0)])
def test_a_short_gradient_that_points_right_is_no_fault_where_rows_tell(rows, faults):
    """0.1 x for 0.3 x: by the mean loss alone, of three rows, its direction is not known."""
    network, box = make_network(), FromTorch(lambda x: 0.3 * x, (X,), (X,))
    gradient = zo.TangentGradient(
        network,
        lambda network, batch: (box(network(batch)) - 0.5).square().mean(dim=1),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(lambda x: 0.1 * x),
        trust_policy=TrustPolicy(check_every=1, lost_values=1e9),
        max_rows=2,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(12):
            gradient.backward(weights(rows, 4, seed=n))
    assert gradient.agreement == pytest.approx(3.0, abs=1e-2)
    assert sum(issubclass(each.category, zo.TangentWarning) for each in said) == faults
    assert gradient.watch.lost == bool(faults)
    if rows == 4:
        assert gradient.agreement_of_rows == pytest.approx(1.0, abs=1e-6)


def test_of_few_rows_and_where_nothing_is_checked_no_agreement_of_rows_is_told():
    for rows, policy in ((3, ALWAYS), (6, NEVER)):
        network, box = make_network(), FromTorch(bent, (X,), (X,))
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.IdentityTangent(), trust_policy=policy, max_rows=2
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
            network, weighed(box), boxes=[box], tangent=zo.IdentityTangent(), trust_policy=policy
        )
        torch.manual_seed(3)
        gradient.backward(batch)
        return gradient, flat_grads(network), torch.rand(3)

    gradient, found, after = run(FailsInTheCheck(bent, (X,), (X,)), ALWAYS)
    _, same, drawn = run(FromTorch(bent, (X,), (X,)), NEVER)
    assert torch.equal(found, same) and torch.equal(after, drawn)
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

    expected = float(of_the_rest(bent) @ found / (of_the_rest(AsIdentity.apply) @ found))
    assert gradient.agreement == pytest.approx(expected, abs=1e-2)
    whole = float(of_the_rest(bent) @ found / found.square().sum())
    assert abs(whole - expected) > 0.03  # by the whole gradient it would have been told wrong
    each = (of_the_rest(function, along, found) for function in (bent, AsIdentity.apply))
    assert gradient.agreement_of_rows == pytest.approx(float(torch.cosine_similarity(*each, dim=0)), abs=1e-2)


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
        network, objective, boxes=[box], tangent=zo.IdentityTangent(), trust_policy=ALWAYS
    )
    for step in range(2):
        gradient.backward(weights(20, 4, seed=step))
    with pytest.warns(TangentWarning, match="10% did, and the last 3 checks showed nothing"):
        gradient.backward(weights(20, 4, seed=2))
    assert gradient.counts.checks == gradient.counts.failed_checks == 3 and gradient.agreement is None


def test_three_checks_in_a_row_that_tell_nothing_are_said_once():
    found = TrustWatch(TrustPolicy(average=2), 0, 1.1)
    said = []

    def backward(step, agreement, failed):
        found.saw(step, 0.1, Check(agreement, failed=failed))

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
        assert all(each.filename == __file__ for each in caught)  # who called backward
        said += [(step, str(each.message)) for each in caught]
    assert [step for step, _ in said] == [6] and not found.lost
    assert "at most a tenth of a check's rows to fail" in said[0][1]
    assert "the gradient, 40% did, and the last 3 checks" in said[0][1]


def test_a_row_that_failed_in_the_base_is_in_no_check():
    def run(batch):
        network = make_network()
        box = FromTorch(
            lambda x: torch.where(x.amax(dim=1, keepdim=True) > 50, math.nan, bent(x)), (X,), (X,)
        )
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.IdentityTangent(), probes=1, trust_policy=ALWAYS
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
        tangent=zo.SecantTangent(zo.LowRankTangent()),
        probes=16,
        trust_policy=ALWAYS,
    )
    with pytest.warns(ZeroGradientWarning):
        gradient.backward(weights(5, 4))
    gradient.backward(weights(5, 4))  # and it is said once
    assert gradient.agreement is None and gradient.counts.checks == 0
    assert gradient.counts.rows == box.ledger.rows_run == 2 * 17 * 5


# The policy


def watch(errors, policy, probes=2, agreements=(), max_rows=18.0):
    """Feed errors to a watch: the probes after each step, and the steps in which it could not add any."""
    found, changes, warned = TrustWatch(policy, probes, max_rows), [], []
    for step, error in enumerate(errors):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.saw(step, error, Check(dict(agreements).get(step)))
        added = [str(each.message) for each in caught if "From now on" in str(each.message)]
        assert len(added) == (
            found.probes > (changes[-1] if changes else probes)
        )  # and what it costs is said
        assert all(f"{1 + found.probes} times the rows" in words for words in added)
        warned += [step] * (len(caught) - len(added))
        changes.append(found.probes)
    return found, changes, warned


def test_the_mean_is_exponential_and_free_of_its_start():
    """Against the weighted mean, the first step apart; errors above 10 count as 10, none as nothing."""
    errors = [9.0, 0.5, None, 0.3, math.inf, 0.2]
    found, _, _ = watch(errors, TrustPolicy(average=4))
    terms = [0.5, 0.3, 10.0, 0.2]
    ages = [0.75 ** (3 - place) for place in range(4)]
    assert found.error == pytest.approx(
        sum(a * e for a, e in zip(ages, terms, strict=True)) / sum(ages), rel=1e-12
    )


def test_probes_double_while_trust_is_lost_then_one_warning_then_they_halve():
    policy = TrustPolicy(lost=0.5, regained=0.3, average=2, check_every=None)
    errors = [1.0] + [0.9] * 12 + [0.1] * 8
    found, probes, warned = watch(errors, policy, max_rows=8)
    # Judged after steps 2 (nothing to compare with), 4, 6 and 8; and, now as good again, 2 steps apart.
    assert probes[:13] == [2] * 4 + [4] * 2 + [7] * 7
    assert warned == [8]
    assert probes[13:] == [7, 3, 3, 2, 2, 2, 2, 2] and not found.lost
    # Lost again from step 21: judged after 22, 24 and 26.
    assert watch(errors + [0.9] * 20, policy, max_rows=8)[2] == [8, 26]


def test_without_errors_the_checks_decide():
    """Nothing can be predicted, as with one row and no probes; a bad check counts after `average` steps."""
    policy = TrustPolicy(agreement=0.5, average=3)
    found, probes, warned = watch([None] * 12, policy, probes=4, agreements=[(1, 0.1), (5, 0.1), (11, 0.1)])
    assert found.error is None and probes == [4] * 3 + [8] * 3 + [16] * 6 and warned == [11]
    assert watch([None] * 8, policy, probes=0, agreements=[(5, 0.1)], max_rows=1.1)[2] == [5]


def test_between_lost_and_regained_nothing_changes():
    policy = TrustPolicy(lost=0.5, regained=0.3, average=2)
    assert set(watch([1.0] + [0.4] * 20, policy)[1]) == {2}
    found, probes, _ = watch([1.0] + [0.6] * 4 + [0.4] * 20, policy)
    assert set(probes[5:]) == {4} and found.lost


def test_no_verdict_while_the_tangent_learns():
    """Errors that fall by a fifth each two steps are given time; those that stay are not."""
    falling = [1.0] + [2.0 * 0.9**step for step in range(12)]
    assert set(watch(falling, TrustPolicy(lost=0.5, regained=0.3, average=2))[1]) == {2}
    assert watch([2.0] * 13, TrustPolicy(lost=0.5, regained=0.3, average=2))[1][-1] == 16


def test_a_bad_check_adds_probes_once_until_the_next_one():
    policy = TrustPolicy(agreement=0.5, average=2)
    _, probes, _ = watch([0.1] * 30, policy, agreements=[(9, 0.4), (19, -0.2), (25, 0.9)])
    # The errors, judged 2, 4, 6 steps after step 19, are good all along.
    assert probes == [2] * 9 + [4] * 10 + [8] * 6 + [4] * 2 + [2] * 3
    assert set(watch([0.1] * 30, policy, agreements=[(9, 0.6)])[1]) == {2}


def test_probes_beyond_the_most_are_never_cut():
    assert set(watch([9.0] * 20, TrustPolicy(average=2), probes=6, max_rows=5)[1]) == {6}


def test_from_none_probes_are_added_within_the_rows_that_a_step_may_take():
    policy = TrustPolicy(average=2, check_every=None)
    found, probes, warned = watch([9.0] * 20, policy, probes=0, max_rows=1.1)
    assert set(probes) == {0} and warned == [4] and found.lost
    assert watch([0.9] * 20, policy, probes=0)[2] == []  # of values; better than their mean
    found, probes, warned = watch([9.0] * 16, policy, probes=0, max_rows=4)
    # The first errors of responses have none to be compared with: those before were of values.
    assert probes == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 6 and warned == [12] and found.lost


def test_with_probes_the_errors_are_of_responses_and_have_their_own_limit():
    policy = TrustPolicy(average=2, check_every=None, lost=0.3, regained=0.2, lost_values=1.0)
    found, probes, _ = watch([2.0] * 5 + [0.5] * 8, policy, probes=0, max_rows=3)
    assert probes[4] == 1 and probes[-1] == 2 and found.limit == 0.3
    back, probes, _ = watch([2.0] * 5 + [0.1] * 8, policy, probes=0, max_rows=3)
    assert probes[4] == 1 and probes[-1] == 0 and not back.lost and back.limit == 1.0


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ((0.4, 0.1), "at least 0.5 times what the gradient says, found 0.4 times"),
        ((1.7, 0.1), "at most 1.5 times what the gradient says, found 1.7 times"),  # foretold too little
        ((1.0, 0.6), "at most 0.5, found 0.6"),  # the loss hides what is wrong with the responses
        (
            (1.7, 0.6, 0.9),
            "cosine of at least 0.95, found 0.9",
        ),  # by its rows a check is told, if there are four
        ((0.4, 0.6, 0.99), "at least 0.5 times what the gradient says, found 0.4 times"),
    ],
)
def test_without_probes_a_check_is_bad_in_four_ways(check, words):
    policy = TrustPolicy(average=2, agreement=0.5, missed=0.5)
    quiet = TrustWatch(policy, 0, 1.1)
    rows = TrustWatch(policy, 0, 1.1)
    loud = TrustWatch(policy, 0, 1.1)
    with pytest.warns(TangentWarning, match=words) as caught:
        for step in range(12):
            loud.saw(step, 0.1, Check(*check) if step == 9 else Check())
            quiet.saw(step, 0.1, Check(1.4, 0.4) if step == 9 else Check())
            rows.saw(step, 0.1, Check(1.7, 0.6, 0.96) if step == 9 else Check())
    assert loud.lost and not quiet.lost and not rows.lost and len(caught) == 1
    assert str(caught[0].message).count("found") == 1  # only the limit that is broken
    assert "max_rows=1.1 allows none" in str(caught[0].message)
    too_short = check[0] > 1.5 and len(check) == 2  # the loss falls along it, more than it says
    assert ("Adam's steps" in str(caught[0].message)) == too_short
    assert ("worse than none" in str(caught[0].message)) == (not too_short)
    with_probes = TrustWatch(policy, 2, 3.1)
    for step in range(12):  # with them only too little of the change is bad
        with_probes.saw(step, 0.1, Check(1.7, 0.6) if step == 9 else Check())
    assert not with_probes.lost


def test_what_costs_no_rows_comes_before_probes_and_then_it_is_said_that_nothing_is_left():
    rungs = ["A learns longer", "B takes over from A"]
    watch, said, probes = TrustWatch(TrustPolicy(average=2, check_every=None), 0, 3.1), [], []
    for step in range(24):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.saw(step, 9.0, improve=lambda: [rungs.pop(0)] if rungs else [])
        said += [str(each.message) for each in caught]
        probes.append(watch.probes)
    assert len(said) == 5
    for words, expected in zip(
        said,
        (
            "From now on A learns longer, for no more rows",
            "From now on B takes over from A, for no more rows",
            "From now on 1 probe until trust returns: a step asks the boxes for 2 times the rows",
            "From now on 2 probes",
            "max_rows=3.1 allows no more",
        ),
        strict=True,
    ):
        assert expected in words
    assert sorted(set(probes)) == [0, 1, 2] and probes.count(0) == 8


def test_a_first_check_comes_after_ten_steps():
    assert [step for step in range(60) if TrustPolicy().checks(step)] == [9, 24, 49]
    assert [step for step in range(20) if TrustPolicy(check_every=8).checks(step)] == [7, 15]
    assert not any(TrustPolicy(check_every=None).checks(step) for step in range(60))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lost": 0.0}, "lost: expected a finite number > 0"),
        ({"lost": math.inf}, "lost: expected a finite number > 0"),
        ({"lost": 0.2, "regained": 0.3}, "regained: expected a finite number"),
        ({"lost_values": -1.0}, "lost_values: expected"),
        ({"missed": 0.0}, "missed: expected a finite number > 0"),
        ({"agreement": math.nan}, "agreement: expected a finite number, got nan"),
        ({"agreement_of_rows": 1.5}, "agreement_of_rows: expected a finite number <= 1, got 1.5"),
        ({"agreement": True}, "agreement: expected a finite number, got True"),
        ({"check_every": 0}, "check_every: expected a whole number >= 1"),
        ({"average": 0}, "average: expected a whole number >= 1"),
    ],
)
def test_policies_out_of_range(settings, words):
    with suppress_type_checks(), pytest.raises(zo.ConfigurationError, match=words):
        TrustPolicy(**settings)


# In training


def lattice(x):
    """Coupled logistic maps on a ring, chaotic; the derivative turns round with the state."""
    y = 1 - 1.8 * x * x
    return 0.8 * y + 0.1 * y.roll(1, dims=-1) + 0.1 * y.roll(-1, dims=-1)


RING = ArraySpec("x", (1, 12))


class Controller(nn.Module):
    """Adds a little to the state of a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 6, 3, padding=1, padding_mode="circular"),
            nn.Tanh(),
            nn.Conv1d(6, 1, 3, padding=1, padding_mode="circular"),
        )

    def forward(self, x):
        return 0.05 * torch.tanh(self.layers(x))


def ring_gradient(tangent, policy=QUICK, mu=1e-3, max_rows=9.1, probes=2):
    torch.manual_seed(0)
    network, box = Controller().double(), FromTorch(lattice, (RING,), (RING,))

    def objective(network, batch):
        state, loss = batch, 0.0
        for _ in range(3):
            state = box(state + network(state))
            loss = loss + state.square().flatten(1).mean(dim=1)
        return loss

    return zo.TangentGradient(
        network,
        objective,
        boxes=[box],
        tangent=tangent,
        probes=probes,
        mu=mu,
        max_rows=max_rows,
        trust_policy=policy,
    )


def train(gradient, steps, start=0) -> list[int]:
    """Optimiser steps on states of the lattice; the probes after each."""
    optimizer, probes = torch.optim.SGD(gradient.network.parameters(), lr=0.05), []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        gradient.backward(lattice(lattice(torch.tanh(weights(4, 1, 12, seed=step)))))
        optimizer.step()
        probes.append(gradient.watch.probes)
    return probes


def test_a_tangent_without_the_state_on_a_chaotic_box_is_found_out():
    gradient = ring_gradient(zo.LowRankTangent())
    with pytest.warns(TangentWarning) as caught:
        probes = train(gradient, 20)
    assert gradient.watch.lost and probes[-1] == 8
    *grown, last = caught
    assert [
        f"From now on {more} probes" in str(each.message) for more, each in zip((4, 8), grown, strict=True)
    ]
    assert "9 times the rows of a first-order step instead of 5, within max_rows=9.1" in str(grown[1].message)
    words = str(last.message)
    expected = (
        "with 8 probes",
        "sparse coordinates (sparse-cge)",
        "SecantTangent outermost (secant)",
        "StudentTangent (student)",
        "zo.KeepBest",
        "max_rows=9.1",
        "take 17 times",
    )
    assert all(word in words for word in expected)
    assert {each.filename for each in caught} == {__file__}
    assert float(words.split("found ")[1].split(" over")[0]) == pytest.approx(gradient.watch.error, rel=0.3)


@pytest.mark.parametrize(
    ("tangent", "advice"),
    [
        (zo.SecantTangent(), "(sparse-cge); or take a StudentTangent (student), or allow more probes"),
        (
            zo.StudentTangent(torch.nn.Linear(12, 12), loss="squared"),
            "put SecantTangent outermost (secant), or allow",
        ),
        (None, "(sparse-cge); or take a StudentTangent (student), or"),  # secant around a model or a low rank
    ],
)
def test_no_one_is_advised_to_take_what_is_there(tangent, advice):
    gradient = ring_gradient(tangent, probes=1, max_rows=2.1)
    with pytest.warns(TangentWarning) as caught:
        for step in range(60):
            gradient.watch.saw(step, 2.0)
    assert advice in str(caught[-1].message)


def test_a_tangent_that_is_exact_there_needs_no_probes():
    gradient = ring_gradient(zo.StencilTangent(), probes=0)
    assert set(train(gradient, 16)) == {0} and not gradient.watch.lost


def test_one_that_needs_them_gets_them_and_is_trusted_again():
    """Up to 16 probes, which span the ring's twelve numbers without the one that is predicted: no warning."""
    policy = TrustPolicy(lost=0.02, regained=0.01, check_every=None, average=3)
    gradient, probes = ring_gradient(zo.SecantTangent(), policy, mu=1e-5, max_rows=17), [2]
    with pytest.warns(TangentWarning, match="From now on") as caught:
        while not (16 in probes and probes[-1] == 8) and len(probes) < 60:
            probes += train(gradient, 1, start=len(probes))
    assert len(caught) == 3
    assert [a for a, b in zip(probes, [*probes[1:], 0], strict=True) if a != b] == [2, 4, 8, 16, 8]


def test_checks_against_the_true_gradient_find_it_out_too():
    """With errors out of account: the loss does not fall along the gradient as that says."""
    policy = TrustPolicy(lost=1e9, regained=1e9, agreement=0.9, check_every=6, average=5)
    assert max(train(ring_gradient(zo.StencilTangent(), policy), 20)) == 2
    with pytest.warns(TangentWarning) as caught:
        assert max(train(ring_gradient(zo.LowRankTangent(), policy), 20)) > 2
    words = str(caught[0].message)
    found = float(words.split("found ")[1].split(" times")[0])
    assert found < 0.9 and "relative error" not in words
    assert "times. From now on 4 probes" in words


class DoublePendulum(FromTorch):
    """Two angles and two angular velocities, both bars and masses one, g = 9.81: one Runge-Kutta step."""

    def __init__(self, dt: float = 0.1) -> None:
        spec = ArraySpec("state", (4,))
        super().__init__(lambda state: self.step(state, dt), (spec,), (spec,))

    @staticmethod
    def rates(state):
        a, b, va, vb = state.unbind(dim=1)
        d, g = a - b, 9.81
        bottom = 3 - torch.cos(2 * d)
        turning = vb**2 + va**2 * d.cos()
        first = -3 * g * a.sin() - g * (a - 2 * b).sin() - 2 * d.sin() * turning
        second = 2 * d.sin() * (2 * va**2 + 2 * g * a.cos() + vb**2 * d.cos())
        return torch.stack([va, vb, first / bottom, second / bottom], dim=1)

    @classmethod
    def step(cls, state, dt):
        k1 = cls.rates(state)
        k2 = cls.rates(state + dt / 2 * k1)
        k3 = cls.rates(state + dt / 2 * k2)
        k4 = cls.rates(state + dt * k3)
        return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@pytest.mark.slow
def test_where_the_gradient_turns_it_is_said():
    """A double pendulum pushed by a network: two probes show too little, and the budget allows no more."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    box = DoublePendulum()

    def objective(call):
        def losses(network, batch):
            state = batch
            for _ in range(12):
                state = call(state + 0.1 * network(torch.sin(state)))
            return (state[:, :2] - 1).square().sum(dim=1)

        return losses

    tangent = zo.SecantTangent(zo.LowRankTangent())
    gradient = zo.TangentGradient(network, objective(box), boxes=[box], tangent=tangent, probes=2)
    optimizer, cosines = torch.optim.Adam(network.parameters(), lr=1e-2), []
    with pytest.warns(TangentWarning, match="max_rows=3.5 allows no more") as caught:
        for step in range(25):
            optimizer.zero_grad()
            batch = 2.0 * weights(4, 4, seed=step)
            true = true_grads(objective(lambda state: DoublePendulum.step(state, 0.1)), network, batch)
            gradient.backward(batch)
            found = flat_grads(network)
            cosines.append(float(found @ true / found.norm() / true.norm()))
            optimizer.step()
    assert min(cosines) < 0.5  # it was worth a word
    assert len(caught) == 1 and gradient.watch.lost
    assert gradient.counts.rows == box.ledger.rows_run <= 3.5 * 25 * 4 * 12  # and nothing was spent unasked


def test_what_does_not_learn_gets_no_more_probes_but_is_named():
    policy = TrustPolicy(lost=1e9, regained=1e9, agreement=0.9, check_every=6, average=5)
    with pytest.warns(zo.TangentWarning, match="take a tangent that learns"):
        assert max(train(ring_gradient(zo.IdentityTangent(), policy), 20)) == 2


def test_resume_to_the_bit_amid_lost_trust(tmp_path):
    policy = TrustPolicy(check_every=4, average=2)

    def run(resume):
        gradient = ring_gradient(zo.LowRankTangent(), policy)
        probes = []
        for start in range(0, 16, 2):
            if resume:
                torch.save(gradient.state_dict(), tmp_path / "state.pt")
                network = gradient.network
                gradient = ring_gradient(zo.LowRankTangent(), policy)
                gradient.network.load_state_dict(network.state_dict())
                gradient.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            probes += train(gradient, 2, start)
        flat = torch.cat([p.detach().flatten() for p in gradient.network.parameters()])
        return probes, flat, gradient.watch.error

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probes, flat, error = run(False)
        count = len(caught)
        again = run(True)
    assert probes == again[0] and len(set(probes)) > 2
    assert torch.equal(flat, again[1]) and error == again[2]
    assert len(caught) == 2 * count


# Values


class Student(zo.tangents.Tangent):
    """Predicts that outputs are the last it has seen; keeps what it was called with, in order."""

    learns_from_values = True

    def __init__(self):
        self.said: list[tuple[str, CallPairs]] = []
        self.known = None

    def apply(self, pairs, d):
        return d

    def vjp(self, pairs, cotangent):
        self.said.append(("vjp", pairs))
        return cotangent

    def predict_values(self, pairs):
        self.said.append(("predict", pairs))
        return self.known

    def see(self, pairs):
        self.said.append(("see", pairs))
        self.known = pairs.y.clone()

    def observe(self, pairs):
        self.said.append(("observe", pairs))

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return "Student()"


def test_without_probes_the_trust_is_of_values():
    box, student = FromTorch(bent, (X,), (X,)), Student()
    unchecked = TrustPolicy(check_every=None)
    gradient = zo.TangentGradient(
        make_network(), chain(box), boxes=[box], tangent=student, probes=0, trust_policy=unchecked
    )
    gradient.backward(weights(5, 4))
    assert gradient.trust == [None] * 3 and gradient.trust_of_step is None
    assert gradient.metrics()["tangent_error"] == 1.0  # nothing was known, and so nothing foretold
    assert [what for what, _ in student.said] == ["predict", "see", "observe"] + ["vjp"] * 3
    foretold, seen, _, *calls = (pairs for _, pairs in student.said)
    for name in ("z", "y", "alive"):  # all rows at once, in the order of the calls; pulled in reverse
        rows = torch.cat([getattr(pairs, name) for pairs in reversed(calls)])
        assert torch.equal(getattr(foretold, name), rows) and torch.equal(getattr(seen, name), rows)
    lasts, student.said = seen.y.split(5), []
    gradient.backward(weights(5, 4, seed=1))
    seen = [pairs for what, pairs in student.said if what == "vjp"][::-1]
    units, ys = seen[0].response_scale, [pairs.y for pairs in seen]
    sizes = [  # the smaller of spread and step: the box moves a state on
        min(((y - y.mean(dim=0)) / units).norm(), ((y - pairs.z) / units).norm())
        for y, pairs in zip(ys, seen, strict=True)
    ]
    errors = [((last - y) / units).norm() / size for last, y, size in zip(lasts, ys, sizes, strict=True)]
    assert any(size < ((y - y.mean(dim=0)) / units).norm() for y, size in zip(ys, sizes, strict=True))
    assert gradient.trust == pytest.approx([float(error) for error in errors], rel=1e-12)
    assert gradient.counts.rows == box.ledger.rows_run == 2 * 5 * 3
    assert gradient.next_queries() == 0


def test_calls_are_shown_at_once_as_far_as_their_rows_are_few(monkeypatch):
    monkeypatch.setattr("zo.tangents.quality.TOGETHER", 2 * 5 * 4)
    box, student = FromTorch(bent, (X,), (X,)), Student()
    gradient = zo.TangentGradient(make_network(), chain(box), boxes=[box], tangent=student, probes=0)
    gradient.backward(weights(5, 4))
    assert [len(pairs.z) for what, pairs in student.said if what in ("predict", "see")] == [10, 5] * 2


@pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")
def test_dead_rows_are_not_among_the_values():
    """A row that fails in the base is neither predicted nor part of the mean."""
    box, student = FromTorch(bent, (X,), (X,)), Student()
    gradient = zo.TangentGradient(make_network(), chain(box, 1), boxes=[box], tangent=student, probes=0)
    batch = weights(5, 4)
    batch[1] = math.nan
    student.known = torch.zeros(5, 4).double()
    gradient.backward(batch)
    (pairs,) = (pairs for what, pairs in student.said if what == "see")
    y = bent(batch + gradient.network(batch))[[0, 2, 3, 4]].detach()
    assert pairs.alive.tolist() == [True, False, True, True, True]
    assert torch.allclose(pairs.y[pairs.alive], y) and pairs.y.isfinite().all()
    units = y.std(dim=0)  # each output counts by its spread
    expected = (y / units).norm() / ((y - y.mean(dim=0)) / units).norm()
    assert gradient.trust_of_step == pytest.approx(float(expected), rel=1e-6)


def test_one_row_is_measured_by_the_step_that_the_box_makes_of_a_state():
    box, student = FromTorch(bent, (X,), (X,)), Student()
    unchecked = TrustPolicy(check_every=None)
    gradient = zo.TangentGradient(
        make_network(), chain(box), boxes=[box], tangent=student, probes=0, trust_policy=unchecked
    )
    gradient.backward(weights(1, 4))
    lasts, student.said = student.known.split(1), []
    gradient.backward(weights(1, 4, seed=1))
    seen = [pairs for what, pairs in student.said if what == "vjp"][::-1]
    units = seen[0].response_scale
    errors = [
        ((last - pairs.y) / units).norm() / ((pairs.y - pairs.z) / units).norm()
        for last, pairs in zip(lasts, seen, strict=True)
    ]
    assert gradient.trust == pytest.approx([float(error) for error in errors], rel=1e-12)


def test_one_row_of_what_is_no_state_is_no_measure():
    box, student = FromTorch(lambda x: bent(x)[:, :2], (X,), (ArraySpec("force", (2,)),)), Student()
    gradient = zo.TangentGradient(
        make_network(),
        lambda network, batch: box(network(batch)).square().mean(dim=1),
        boxes=[box],
        tangent=student,
        probes=0,
    )
    student.vjp = lambda pairs, cotangent: torch.zeros_like(pairs.z)
    with pytest.warns(zo.ZeroGradientWarning):
        for _ in range(2):
            gradient.backward(weights(1, 4))
    assert gradient.trust == [None]


@pytest.mark.parametrize(
    "wrap",
    [
        zo.SecantTangent,
        zo.LowRankTangent,
        lambda p: zo.SecantTangent(zo.LowRankTangent(p)),
    ],
)
def test_stacks_hand_values_on_to_what_they_stand_on(wrap):
    student, pairs = Student(), pairs_of_a_call()
    tangent = wrap(student)
    assert tangent.predict_values(pairs) is None
    tangent.see(pairs)
    assert torch.equal(tangent.predict_values(pairs), pairs.y)
    assert zo.IdentityTangent().predict_values(pairs) is None
    zo.IdentityTangent().see(pairs)
    assert not wrap(zo.IdentityTangent()).learns_from_values


def pairs_of_a_call() -> CallPairs:
    valid = torch.tensor([[True, False, True], [False, True, True]])
    others = (None, torch.tensor([5, 6, 7]))
    d, response = weights(2, 3, 4, seed=1), weights(2, 3, 4, seed=2)
    return CallPairs((X,), (X,), weights(3, 4), d, response, valid, weights(3, 4, seed=3), others=others)


def test_listed_pairs_keep_the_inputs_that_have_no_derivative():
    """The rows of the valid pairs, probe after probe, in each call; and all rows are alive if not said."""
    listed = joined([pairs_of_a_call(), pairs_of_a_call()])
    assert listed.others[0] is None and listed.others[1].tolist() == [5, 7, 6, 7] * 2
    assert listed.alive.tolist() == [True] * 8 and listed.y.numel() == 0
    assert pairs_of_a_call().alive.tolist() == [True] * 3


@pytest.mark.parametrize("max_rows", [*(pytest.param(rows, marks=pytest.mark.slow) for rows in (None, 6)), 4])
def test_a_step_takes_no_more_rows_on_average_than_it_says(max_rows):
    """Three probes and a check in every second step are 4.5 times a first-order step's rows."""
    box = FromTorch(bent, (X,), (X,))
    gradient = zo.TangentGradient(
        make_network(),
        chain(box),
        boxes=[box],
        probes=3,
        max_rows=max_rows,
        trust_policy=TrustPolicy(check_every=2, lost=1e9, regained=1e9, agreement=-1e9),
    )
    for step in range(4):
        gradient.backward(weights(5, 4, seed=step))
    assert box.ledger.rows_run == 4.5 * 4 * 5 * 3 <= gradient.watch.max_rows * 4 * 5 * 3
    assert f"max_rows={gradient.watch.max_rows:g}" in repr(gradient)
    assert gradient.watch.max_rows == (6 if max_rows == 6 else 4.5)


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

    gradient = zo.TangentGradient(network, objective, boxes=[box], trust_policy=TrustPolicy(check_every=8))
    optimizer, errors, agreements = torch.optim.Adam(network.parameters(), 1e-3), [], []
    for _ in range(40):
        batch = torch.randn(32, 3)
        optimizer.zero_grad()
        gradient.backward(batch)
        exact = copy.deepcopy(network).double()
        exact.zero_grad()
        objective(exact, batch.double(), lambda u: offset + curved_part(u)).mean().backward()
        found, true = (
            torch.cat([w.grad.flatten().double() for w in each.parameters()]) for each in (network, exact)
        )
        errors.append(float((found - true).norm() / true.norm()))
        agreements += [] if gradient.agreement is None else [gradient.agreement]
        optimizer.step()
    assert sum(errors[-10:]) / 10 < 0.15 and gradient.watch.probes == 0
    assert len(agreements) >= 3 and all(abs(each - 1) < 0.25 for each in agreements)


# The first steps


class Wrong(Student):
    """A tangent of values whose VJP is the true one's times a factor, and turned by what is added."""

    def __init__(self, factor, turned=0.0):
        super().__init__()
        self.factor, self.turned = factor, turned

    def vjp(self, pairs, cotangent):
        z = pairs.z.detach().requires_grad_(True)
        with torch.enable_grad():
            (true,) = torch.autograd.grad(bent(z), z, cotangent)
        return self.factor * (true + self.turned * cotangent.roll(1, dims=-1))

    def apply(self, pairs, d):
        with torch.enable_grad():  # a product with J is the derivative of one with its transpose
            z = pairs.z.detach().requires_grad_(True)
            v = torch.zeros_like(z, requires_grad=True)
            (pulled,) = torch.autograd.grad(bent(z), z, v, create_graph=True)
            found = [torch.autograd.grad(pulled, v, each, retain_graph=True)[0] for each in d]
        return self.factor * torch.stack(found)


def flat_gradient(network):
    return torch.cat([tensor.grad.flatten() for tensor in network.parameters()])


def one_call(box):
    return lambda network, batch: box(network(batch)).square().mean(dim=1)


@pytest.mark.parametrize(("factor", "turned"), [(50.0, 0.0), (-3.0, 0.0), (20.0, 0.5), (1e-3, 0.0)])
def test_the_first_step_takes_what_its_check_has_measured_of_the_gradient(factor, turned):
    """The true gradient's projection on the tangents' one; one that is too short stays as it is."""
    network, box = make_network(), FromTorch(bent, (X,), (X,))
    gradient = zo.TangentGradient(network, one_call(box), boxes=[box], tangent=Wrong(factor, turned))
    batch = weights(5, 4)
    gradient.backward(batch)
    found = flat_gradient(network)
    true = torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(
                bent(network(batch)).square().mean(dim=1).mean(), list(network.parameters())
            )
        ]
    )
    if abs(factor) < 1:
        assert torch.allclose(found, factor * true, rtol=1e-6)
        return
    projected = (true @ found) / (found @ found) * found
    assert torch.allclose(found, projected, rtol=2e-2)
    assert 0 < true @ found and found.norm() < 1.02 * true.norm()


@pytest.mark.parametrize(
    ("factor", "max_rows", "checked"),
    [(1.0, None, [0, 9]), (50.0, None, [0, 1, 2, 3, 4, 9]), (50.0, 1.0, [0, 9])],
)
def test_the_first_steps_are_checked_until_one_is_right_where_rows_are_left(factor, max_rows, checked):
    network, box = make_network(), FromTorch(bent, (X,), (X,))
    settings = {} if max_rows is None else {"max_rows": max_rows}
    gradient = zo.TangentGradient(network, one_call(box), boxes=[box], tangent=Wrong(factor), **settings)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.TangentWarning)
        for step in range(12):
            gradient.backward(weights(5, 4, seed=step))
            found += [step] * (gradient.agreement is not None)
    assert found == checked


def test_a_derivative_that_is_given_is_taken_as_it_is():
    network, box = make_network(), FromTorch(bent, (X,), (X,))
    model = zo.tangents.ModelTangent(lambda x: 50 * bent(x))
    gradient = zo.TangentGradient(network, one_call(box), boxes=[box], tangent=model)
    gradient.backward(weights(5, 4))
    assert gradient.counts.checks == 0 and gradient.agreement is None
