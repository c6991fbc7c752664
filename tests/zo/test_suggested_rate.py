"""The learning rate that is suggested for other numbers of steps than usual, against what it promises."""

import pytest

import zo


@pytest.mark.parametrize("steps", [10, 250, 500, 750, 1500, 3999, 4000, 10**6])
def test_the_way_is_ten_times_the_usual_within_the_usual_rate_and_eight_times_that(steps):
    rate = zo.suggested_rate(2e-3, usual_steps=400, steps=steps)
    assert 2e-3 <= rate <= 16e-3
    usual_way, way = 400 * 2e-3, steps * rate
    if 2e-3 < rate < 16e-3:
        assert way == pytest.approx(10 * usual_way)
    assert (rate == 16e-3) == (steps <= 500)
    assert (rate == 2e-3) == (steps >= 4000)


def test_it_is_in_proportion_to_the_usual_rate_and_never_rises_with_the_steps():
    rates = [zo.suggested_rate(1.0, usual_steps=70, steps=steps) for steps in range(1, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert zo.suggested_rate(3.0, usual_steps=70, steps=300) == pytest.approx(3 * rates[299])


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"usual_rate": 0.0}, "usual_rate"),
        ({"usual_rate": float("nan")}, "usual_rate"),
        ({"usual_steps": 0}, "usual_steps"),
        ({"steps": 2.5}, "steps"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(bad, named):
    good = {"usual_rate": 1e-3, "usual_steps": 100, "steps": 50}
    with pytest.raises(zo.ConfigurationError, match=named):
        zo.suggested_rate(**{**good, **bad})
