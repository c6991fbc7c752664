"""`Rivalry`: when boxes are asked at a surrogate's weights, and whether it leads."""

import itertools
import math

from zo.tangents.population.rivalry import COMPARED, FEWEST, KEPT, Rivalry


def foreseen(*ratios):
    """After windows whose losses, 1 each, models foretold as such multiples."""
    rivalry = Rivalry()
    for ratio in ratios:
        rivalry = rivalry.saw(1.0, ratio)
    return rivalry


def judged(rivalry, *asked, first=0):
    """After rows at the surrogate's weights: its loss, and what the best rate was foretold."""
    for window, (own, rate) in enumerate(asked, start=first):
        rivalry = rivalry.after(window, own, rate)
    return rivalry


def test_boxes_are_asked_at_its_weights_where_models_foretell_losses_to_a_factor_of_two():
    assert not foreseen(*[1.0] * (COMPARED - 1)).holds  # too few
    assert foreseen(*[1.9] * COMPARED).holds and not foreseen(*[2.1] * COMPARED).holds
    assert foreseen(4.0, 4.0, 0.25, 0.25, 1.0).holds  # in the geometric mean
    assert foreseen(*[9.0] * 3, *[1.0] * COMPARED).holds  # of the last ones
    assert not foreseen(*[math.inf] * COMPARED).holds and not foreseen(*[math.nan] * COMPARED).holds


def test_a_hopeless_one_is_never_asked():
    rivalry = foreseen(*[30.0] * COMPARED)
    assert not any(rivalry.is_asked(window, 40) for window in range(41))


def test_rows_at_its_own_weights_refute_it():
    led = foreseen(*[1.0] * COMPARED)
    two = judged(led, *[(0.5, 1.0)] * (FEWEST - 1))  # of which nothing is known
    assert two.holds and not two.leads
    assert not judged(led, *[(2.0, 1.0)] * FEWEST).leads
    assert judged(led, *[(0.5, 1.0)] * FEWEST).leads


def test_one_row_that_blows_up_decides_little_and_ten_by_their_means():
    good = [(0.3, 1.0)] * (KEPT - 1)
    led = judged(foreseen(*[1.0] * COMPARED), *good)
    assert judged(led, (5.0, 1.0), first=KEPT).leads
    assert not judged(led, (1e6, 1.0), first=KEPT).leads  # rare rows that are so bad count in the mean
    assert judged(led, (math.inf, 0.0), first=KEPT).score < led.score  # failed


def test_the_last_rows_count_most():
    led = foreseen(*[1.0] * COMPARED)
    worse, better = [(2.0, 1.0)] * 3, [(0.5, 1.0)] * 3
    assert judged(led, *worse, *better).score > 0 > judged(led, *better, *worse).score


def test_trials_that_fail_come_after_twice_as_many_windows():
    rivalry = judged(foreseen(*[1.0] * COMPARED), *[(2.0, 1.0)] * FEWEST)
    trials = []
    for window in range(FEWEST, 80):
        if rivalry.is_asked(window, None):
            trials.append(window)
            rivalry = rivalry.after(window, 2.0, 1.0)
        else:
            rivalry = rivalry.saw(1.0, 1.0)
            assert not rivalry.holds  # what was refuted is not believed by what models foretell
    gaps = [after - before for before, after in itertools.pairwise(trials)]
    assert gaps == [3, 5, 9, 17, 33] and trials[0] == FEWEST + 1


def test_one_that_was_refuted_leads_again_by_trials():
    rivalry = judged(foreseen(*[1.0] * COMPARED), *[(2.0, 1.0)] * FEWEST)
    assert not rivalry.leads and judged(rivalry, *[(0.2, 1.0)] * 2, first=9).leads


def test_it_has_a_last_look_at_the_end():
    """Rates fall, so it is at its best then; unless it was hopeless."""
    worse = judged(foreseen(*[1.0] * COMPARED), *[(1.5, 1.0)] * 6, first=20)
    assert worse.next > 29
    assert worse.is_asked(29, 30) and not worse.is_asked(29, 300) and not worse.is_asked(29, None)
    hopeless = judged(foreseen(*[1.0] * COMPARED), *[(9.0, 1.0)] * 6, first=20)
    assert not hopeless.is_asked(29, 30)
