"""What errors and checks make of trust: when it is lost and regained, and what is begun and said then."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from typeguard import suppress_type_checks

import zo
from tests.tasks.problems import Beside, Steering
from tests.zo.checks import check_of
from zo.errors import TangentWarning
from zo.tangents import TrustPolicy
from zo.tangents.trust.watch import TrustWatch


def watch(errors, policy, agreements=(), rungs=0):
    """Feed errors to a watch: whether trust is lost after each step, steps of remedies, and those without."""
    trust, lost, begun, stuck = TrustWatch(policy), [], [], []
    for step, error in enumerate(errors):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            left = [f"remedy {step}"] if len(begun) < rungs else []
            trust.saw(step, error, check_of(dict(agreements).get(step)), improve=lambda left=left: left)
        for warning in caught:
            (begun if "From now on remedy" in str(warning.message) else stuck).append(step)
        lost.append(trust.lost)
    return trust, lost, begun, stuck


def test_the_mean_is_exponential_and_free_of_its_start():
    """Against the weighted mean, the first step apart; errors above 10 count as 10, none as nothing."""
    errors = [9.0, 0.5, None, 0.3, math.inf, 0.2]
    trust, *_ = watch(errors, TrustPolicy(average=4))
    terms = [0.5, 0.3, 10.0, 0.2]
    ages = [0.75 ** (3 - place) for place in range(4)]
    assert trust.error == pytest.approx(
        sum(a * e for a, e in zip(ages, terms, strict=True)) / sum(ages), rel=1e-12
    )


def test_remedies_follow_each_other_while_trust_is_lost_then_one_warning_then_it_returns():
    policy = TrustPolicy(lost=0.5, regained=0.3, average=2, check_every=None)
    errors = [1.0] + [0.9] * 12 + [0.1] * 8
    # Judged after steps 2 (nothing to compare with), 4, 6 and 8.
    _, lost, begun, stuck = watch(errors, policy, rungs=2)
    assert begun == [4, 6] and stuck == [8]
    assert lost == [False] * 4 + [True] * 10 + [False] * 7
    # Lost again from step 21: judged after 22, against the good ones before.
    assert watch(errors + [0.9] * 20, policy, rungs=2)[3] == [8, 22]


def test_without_errors_the_checks_decide():
    """Nothing can be predicted, as with one row; a bad check counts after `average` steps."""
    policy = TrustPolicy(agreement=0.5, average=3)
    bad = [(1, 0.1), (5, 0.1), (11, 0.1)]
    trust, _, begun, stuck = watch([None] * 12, policy, bad, rungs=2)
    assert trust.error is None and begun == [3, 6] and stuck == [11]
    assert watch([None] * 8, policy, [(5, 0.1)])[3] == [5]


def test_steps_count_from_one_and_a_check_is_named_where_it_is_judged_later():
    trust = TrustWatch(TrustPolicy())
    with pytest.warns(TangentWarning) as caught:
        for step in range(36):
            found = check_of(0.3) if step in (9, 35) else check_of()
            trust.saw(step, 0.1, found, improve=lambda: ["it learns longer"])
    first, second = (str(warning.message) for warning in caught)
    assert first.startswith("Step 11: ") and "found 0.3 times" in first
    assert "weights move (in the check of step 10). From" in first
    assert second.startswith("Step 36: ") and "weights move. From" in second
    assert "no-gradient" in first and "no-gradient" not in second  # once


@pytest.mark.parametrize("resume", [5, 9, 10, 11, 30])
def test_a_resumed_watch_is_the_same_and_says_nothing_twice(resume):
    def run(resume):
        trust, said, lost = TrustWatch(TrustPolicy()), [], []
        for step in range(60):
            if step == resume:
                state, trust = copy.deepcopy(trust.state_dict()), TrustWatch(TrustPolicy())
                trust.load_state_dict(state)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trust.saw(
                    step, 0.1, check_of(0.1 if step < 40 else 1.0) if trust.checks(step) else check_of()
                )
            said += [str(warning.message) for warning in caught]
            lost.append(trust.lost)
        return said, lost, trust.state

    whole = run(None)
    assert run(resume) == whole and len(whole[0]) == 1 and whole[1][30] and not whole[1][-1]


@pytest.mark.parametrize(
    ("last", "left"),
    [(None, ""), (60, ""), (21, " There are 10 steps left."), (12, " There is 1 step left.")],
)
def test_a_remedy_says_how_many_steps_it_has(last, left):
    trust = TrustWatch(TrustPolicy(), last=last)
    with pytest.warns(TangentWarning) as caught:
        for step in range(11):
            found = check_of(0.3) if step == 9 else check_of()
            trust.saw(step, 0.1, found, improve=lambda: ["it learns longer"])
    (told,) = (str(warning.message) for warning in caught)
    assert "From now on it learns longer, for no more rows." in told
    assert ("left." in told) is bool(left) and left in told


def test_no_remedy_is_begun_in_the_last_step():
    asked = []
    trust = TrustWatch(TrustPolicy(), last=11)
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
    assert "From now on" not in told and not asked and trust.lost


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("kind", "advised"), [(Steering, False), (Beside, True)])
def test_a_cut_at_the_boxes_is_advised_only_where_a_way_goes_beside_them(kind, advised):
    """Cut there, the weights of a network of which all goes through the box have no gradient at all."""
    problem = kind()
    torch.manual_seed(0)
    network = problem.network()
    policy = TrustPolicy(lost=1e-9, regained=1e-10, average=1, check_every=None)
    gradient = zo.TangentGradient(network, problem.objective, boxes=[problem.box], trust_policy=policy)
    with pytest.warns(TangentWarning) as caught:
        for step in range(8):
            gradient.backward(problem.training_batch(0, step))
    told = [str(warning.message) for warning in caught]
    begun = [words for words in told if "From now on" in words]
    assert begun and any("no-gradient" in words for words in begun) is advised


def test_a_box_in_pieces_is_named_and_trust_in_its_values_goes_on_being_judged():
    trust = TrustWatch(TrustPolicy(average=2))
    with pytest.warns(TangentWarning) as caught:
        for step in range(12):
            trust.saw(step, 4.0, check_of(flat=0.9) if step == 1 else check_of())
    flat, stuck = (str(warning.message) for warning in caught)
    assert "constant in pieces" in flat and "a check in every 250 steps alone" in flat
    assert "Training may be worse than none" in stuck and "nothing left to try" in stuck


def test_between_lost_and_regained_nothing_changes():
    policy = TrustPolicy(lost=0.5, regained=0.3, average=2)
    assert not any(watch([1.0] + [0.4] * 20, policy)[1])
    assert all(watch([1.0] + [0.6] * 4 + [0.4] * 20, policy)[1][5:])


def test_no_verdict_while_the_tangent_learns():
    """Errors that fall by a fifth each two steps are given time; those that stay are not."""
    falling = [1.0] + [2.0 * 0.9**step for step in range(12)]
    policy = TrustPolicy(lost=0.5, regained=0.3, average=2)
    assert not any(watch(falling, policy)[1])
    assert watch([2.0] * 13, policy)[1][-1]
    assert not any(watch([0.9] * 20, TrustPolicy(average=2))[1])  # better than the mean


def test_a_bad_check_begins_one_remedy_until_the_next_one():
    policy = TrustPolicy(agreement=0.5, average=2)
    _, lost, begun, stuck = watch([0.1] * 30, policy, [(9, 0.4), (19, -0.2), (25, 0.9)], rungs=5)
    # The errors, judged 2, 4, 6 steps after step 19, are good all along.
    assert begun == [9, 19] and not stuck
    assert lost == [False] * 9 + [True] * 16 + [False] * 5
    assert not any(watch([0.1] * 30, policy, [(9, 0.6)])[1])


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
def test_a_check_is_bad_in_four_ways(check, words):
    policy = TrustPolicy(average=2, agreement=0.5, missed=0.5)
    quiet, rows, loud = (TrustWatch(policy) for _ in range(3))
    with pytest.warns(TangentWarning, match=words) as caught:
        for step in range(12):
            loud.saw(step, 0.1, check_of(*check) if step == 9 else check_of())
            quiet.saw(step, 0.1, check_of(1.4, 0.4) if step == 9 else check_of())
            rows.saw(step, 0.1, check_of(1.7, 0.6, 0.96) if step == 9 else check_of())
    assert loud.lost and not quiet.lost and not rows.lost and len(caught) == 1
    said = str(caught[0].message)
    assert said.count("found") == 1  # only the limit that is broken
    assert "tangents have nothing left to try" in said and "another method" in said and "stop" in said
    too_short = check[0] > 1.5 and len(check) == 2  # the loss falls along it, more than it says
    assert ("Adam's steps" in said) == too_short
    assert ("worse than none" in said) == (not too_short)


def test_remedies_are_taken_in_their_order_and_then_it_is_said_that_nothing_is_left():
    rungs, dithers = ["A learns longer", "B takes over from A"], ["'u' is dithered"]
    watch, said = TrustWatch(TrustPolicy(average=2, check_every=None)), []
    for step in range(24):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.saw(
                step,
                9.0,
                improve=lambda: [rungs.pop(0)] if rungs else [],
                excite=lambda: [dithers.pop()] if dithers else [],
            )
        said += [str(warning.message) for warning in caught]
    expectations = (
        "From now on 'u' is dithered, for no more rows",
        "From now on A learns longer, for no more rows",
        "From now on B takes over from A, for no more rows",
        "tangents have nothing left to try",
    )
    assert len(said) == 4
    assert all(expected in words for words, expected in zip(said, expectations, strict=True))


@pytest.mark.parametrize("every", [None, 1, 2, 9, 10, 11, 25])
@pytest.mark.parametrize("learns", [False, True])
def test_checks_are_counted_as_they_come(every, learns):
    policy = TrustPolicy(check_every=every)
    for steps in (0, 1, 2, 9, 10, 11, 24, 25, 26, 100):
        counted = sum(policy.checks(step, learns) for step in range(steps))
        assert policy.checks_within(steps, learns) == counted


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
        ({"early": 0}, "early: expected a whole number >= 1"),
        ({"missed": 0.0}, "missed: expected a finite number > 0"),
        ({"agreement": math.nan}, "agreement: expected a finite number, got nan"),
        ({"agreement_of_rows": 1.5}, "agreement_of_rows: expected a finite number <= 1, got 1.5"),
        ({"agreement": True}, "agreement: expected a finite number, got True"),
        ({"check_every": 0}, "check_every: expected a whole number >= 1"),
        ({"average": 0}, "average: expected a whole number >= 1"),
    ],
)
def test_policies_out_of_range(settings, words):
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError, match=words):
        TrustPolicy(**settings)
