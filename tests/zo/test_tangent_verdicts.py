"""What errors and checks make of trust: when it is lost and regained, and how many probes follow."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from typeguard import suppress_type_checks

import zo
from tests.tasks.problems import Beside, Steering
from tests.zo.checks import check_of
from zo import TrustPolicy
from zo.errors import TangentWarning
from zo.tangents.trust.watch import TrustWatch


def watch(errors, policy, probes=2, agreements=(), max_rows=18.0):
    """Feed errors to a watch: the probes after each step, and the steps in which it could not add any."""
    trust, changes, warned = TrustWatch(policy, probes, max_rows), [], []
    for step, error in enumerate(errors):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trust.saw(step, error, check_of(dict(agreements).get(step)))
        added = [str(warning.message) for warning in caught if "From now on" in str(warning.message)]
        assert len(added) == (
            trust.probes > (changes[-1] if changes else probes)
        )  # and what it costs is said
        assert all(f"{1 + trust.probes} times the rows" in words for words in added)
        warned += [step] * (len(caught) - len(added))
        changes.append(trust.probes)
    return trust, changes, warned


def test_the_mean_is_exponential_and_free_of_its_start():
    """Against the weighted mean, the first step apart; errors above 10 count as 10, none as nothing."""
    errors = [9.0, 0.5, None, 0.3, math.inf, 0.2]
    trust, _, _ = watch(errors, TrustPolicy(average=4))
    terms = [0.5, 0.3, 10.0, 0.2]
    ages = [0.75 ** (3 - place) for place in range(4)]
    assert trust.error == pytest.approx(
        sum(a * e for a, e in zip(ages, terms, strict=True)) / sum(ages), rel=1e-12
    )


def test_probes_double_while_trust_is_lost_then_one_warning_then_they_halve():
    policy = TrustPolicy(lost=0.5, regained=0.3, average=2, check_every=None)
    errors = [1.0] + [0.9] * 12 + [0.1] * 8
    trust, probes, warned = watch(errors, policy, max_rows=8)
    # Judged after steps 2 (nothing to compare with), 4, 6 and 8; and, now as good again, 2 steps apart.
    assert probes[:13] == [2] * 4 + [4] * 2 + [7] * 7
    assert warned == [8]
    assert probes[13:] == [7, 3, 3, 2, 2, 2, 2, 2] and not trust.lost
    # Lost again from step 21: judged after 22, 24 and 26.
    assert watch(errors + [0.9] * 20, policy, max_rows=8)[2] == [8, 26]


def test_without_errors_the_checks_decide():
    """Nothing can be predicted, as with one row and no probes; a bad check counts after `average` steps."""
    policy = TrustPolicy(agreement=0.5, average=3)
    trust, probes, warned = watch([None] * 12, policy, probes=4, agreements=[(1, 0.1), (5, 0.1), (11, 0.1)])
    assert trust.error is None and probes == [4] * 3 + [8] * 3 + [16] * 6 and warned == [11]
    assert watch([None] * 8, policy, probes=0, agreements=[(5, 0.1)], max_rows=1.1)[2] == [5]


def test_steps_count_from_one_and_a_check_is_named_where_it_is_judged_later():
    trust = TrustWatch(TrustPolicy(), 0, 3.5)
    with pytest.warns(TangentWarning) as caught:
        for step in range(36):
            trust.saw(step, 0.1, check_of(0.3) if step in (9, 35) else check_of())
    first, second = (str(warning.message) for warning in caught)
    assert first.startswith("Step 11: ") and "found 0.3 times" in first
    assert "weights move (in the check of step 10). From" in first
    assert second.startswith("Step 36: ") and "weights move. From" in second
    assert "no-gradient" in first and "no-gradient" not in second  # once


@pytest.mark.parametrize(
    ("last", "left"),
    [(None, ""), (60, ""), (21, " There are 10 steps left."), (12, " There is 1 step left.")],
)
def test_a_remedy_says_how_many_steps_it_has(last, left):
    trust = TrustWatch(TrustPolicy(), 0, 3.5, last=last)
    with pytest.warns(TangentWarning) as caught:
        for step in range(11):
            trust.saw(step, 0.1, check_of(0.3) if step == 9 else check_of())
    (told,) = (str(warning.message) for warning in caught)
    assert "From now on 1 probe until trust returns" in told
    assert ("left." in told) is bool(left) and left in told


def test_no_remedy_is_begun_in_the_last_step():
    asked = []
    trust = TrustWatch(TrustPolicy(), 0, 3.5, last=11)
    with pytest.warns(TangentWarning) as caught:
        for step in range(11):
            trust.saw(
                step,
                0.1,
                check_of(0.3) if step == 9 else check_of(),
                lambda: asked.append(1) or ["it learns longer"],
            )
    (told,) = (str(warning.message) for warning in caught)
    assert "found 0.3 times" in told and "This is the last step, so nothing is done about it" in told
    assert "From now on" not in told and not asked and trust.probes == 0 and trust.lost


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("kind", "advised"), [(Steering, False), (Beside, True)])
@pytest.mark.parametrize("probes", [0, 1])
def test_a_cut_at_the_boxes_is_advised_only_where_a_way_goes_beside_them(kind, advised, probes):
    """Cut there, the weights of a network of which all goes through the box have no gradient at all."""
    problem = kind()
    torch.manual_seed(0)
    network = problem.network()
    policy = TrustPolicy(lost=1e-9, regained=1e-10, lost_values=1e-9, average=1, check_every=None)
    gradient = zo.ProbedGradient(
        network, problem.objective, boxes=[problem.box], probes=probes, max_rows=3.5, trust_policy=policy
    )
    with pytest.warns(TangentWarning) as caught:
        for step in range(8):
            gradient.backward(problem.training_batch(0, step))
    told = [str(warning.message) for warning in caught]
    assert any("From now on" in words for words in told)
    assert any("no-gradient" in words for words in told) is advised


def test_of_a_box_in_pieces_no_probes_are_advised():
    """None are added, as they would show nothing, though `max_rows` has room for two."""
    trust = TrustWatch(TrustPolicy(average=2), 0, 3.5)
    with pytest.warns(TangentWarning) as caught:
        for step in range(12):
            trust.saw(step, 4.0, check_of(flat=0.9) if step == 1 else check_of())
    flat, stuck = (str(warning.message) for warning in caught)
    assert "constant in pieces" in flat and "no probes are added" in flat
    assert "Training may be worse than none" in stuck and "probes" not in stuck and "allows none" not in stuck
    assert trust.probes == 0


def test_between_lost_and_regained_nothing_changes():
    policy = TrustPolicy(lost=0.5, regained=0.3, average=2)
    assert set(watch([1.0] + [0.4] * 20, policy)[1]) == {2}
    trust, probes, _ = watch([1.0] + [0.6] * 4 + [0.4] * 20, policy)
    assert set(probes[5:]) == {4} and trust.lost


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
    trust, probes, warned = watch([9.0] * 20, policy, probes=0, max_rows=1.1)
    assert set(probes) == {0} and warned == [4] and trust.lost
    assert watch([0.9] * 20, policy, probes=0)[2] == []  # of values; better than their mean
    trust, probes, warned = watch([9.0] * 16, policy, probes=0, max_rows=4)
    # The first errors of responses have none to be compared with: those before were of values.
    assert probes == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 6 and warned == [12] and trust.lost


def test_with_probes_the_errors_are_of_responses_and_have_their_own_limit():
    policy = TrustPolicy(average=2, check_every=None, lost=0.3, regained=0.2, lost_values=1.0)
    trust, probes, _ = watch([2.0] * 5 + [0.5] * 8, policy, probes=0, max_rows=3)
    assert probes[4] == 1 and probes[-1] == 2 and trust.limit == 0.3
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
    loud = TrustWatch(policy, 0, 1.0)
    with pytest.warns(TangentWarning, match=words) as caught:
        for step in range(12):
            loud.saw(step, 0.1, check_of(*check) if step == 9 else check_of())
            quiet.saw(step, 0.1, check_of(1.4, 0.4) if step == 9 else check_of())
            rows.saw(step, 0.1, check_of(1.7, 0.6, 0.96) if step == 9 else check_of())
    assert loud.lost and not quiet.lost and not rows.lost and len(caught) == 1
    assert str(caught[0].message).count("found") == 1  # only the limit that is broken
    assert "max_rows=1 allows none" in str(caught[0].message)  # as given, without what checks take
    too_short = check[0] > 1.5 and len(check) == 2  # the loss falls along it, more than it says
    assert ("Adam's steps" in str(caught[0].message)) == too_short
    assert ("worse than none" in str(caught[0].message)) == (not too_short)
    with_probes = TrustWatch(policy, 2, 3.1)
    for step in range(12):  # with them only too little of the change is bad
        with_probes.saw(step, 0.1, check_of(1.7, 0.6) if step == 9 else check_of())
    assert not with_probes.lost


def test_what_costs_no_rows_comes_before_probes_and_then_it_is_said_that_nothing_is_left():
    rungs = ["A learns longer", "B takes over from A"]
    watch, said, probes = TrustWatch(TrustPolicy(average=2, check_every=None), 0, 3.1), [], []
    for step in range(24):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.saw(step, 9.0, improve=lambda: [rungs.pop(0)] if rungs else [])
        said += [str(warning.message) for warning in caught]
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


def test_no_probes_are_added_in_front_of_noise_that_is_larger_than_what_they_change():
    for felt, probes in ((1e-3, 0), (1.0, 2)):
        watch = TrustWatch(TrustPolicy(average=2, check_every=None), 0, 3.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(24):
                noisy = check_of(None, noise=0.1) if step == 2 else check_of()
                watch.saw(step, 9.0, noisy, felt=felt)
        assert watch.probes == probes
        said = " ".join(str(warning.message) for warning in caught)
        assert ("change the loss by less than the noise does" in said) == (not probes)


@pytest.mark.parametrize("every", [None, 1, 2, 9, 10, 11, 25])
@pytest.mark.parametrize("guesses", [False, True])
def test_checks_are_counted_as_they_come(every, guesses):
    policy = TrustPolicy(check_every=every)
    for steps in (0, 1, 2, 9, 10, 11, 24, 25, 26, 100):
        counted = sum(policy.checks(step, guesses) for step in range(steps))
        assert policy.checks_within(steps, guesses) == counted


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
