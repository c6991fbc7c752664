"""First order in the benchmarks of closed loop: its rate is the best of all, not the last that was tried."""

from __future__ import annotations

import math

import pytest

from benchmarks.closed_loop import RATES, beyond, over_tuned
from benchmarks.closure import next_rate


@pytest.mark.parametrize(
    ("rate", "errors", "best"),
    [
        (RATES[-1], {2.4e-2: 0.7, 4.8e-2: 0.5, 9.6e-2: 0.6}, (4.8e-2, 0.5)),
        (RATES[-1], {2.4e-2: math.nan}, (RATES[-1], 1.0)),
        (RATES[0], {1.5e-3: 0.9, 7.5e-4: 1.1}, (1.5e-3, 0.9)),
        (RATES[1], {}, (RATES[1], 1.0)),
    ],
)
def test_rate_at_the_edge_of_those_tried_goes_on_as_long_as_the_error_falls(
    rate: float, errors: dict[float, float], best: tuple[float, float]
) -> None:
    assert beyond(errors.__getitem__, rate, 1.0) == best


def test_population_is_held_against_first_order_at_its_best_rate() -> None:
    run = {"first": 1.0, "tuned": {"error": 0.5}, "replayed": {"error": 0.2}}
    assert over_tuned(run) == pytest.approx(0.4)
    assert math.isnan(over_tuned({"first": 1.0, "tuned": {"error": 0.5}}))


def test_rates_of_a_closure_go_on_beyond_the_highest_as_long_as_it_is_the_best() -> None:
    def runs(error: float) -> list[dict[str, float]]:
        return [{"error": error}, {"error": error}]

    assert next_rate({}) == 1e-3
    tried = {"0.001": runs(0.2)}
    assert next_rate(tried) == 3e-3
    tried |= {"0.003": runs(0.1)}
    assert next_rate(tried) == 6e-3
    assert next_rate(tried | {"0.006": runs(0.15)}) is None
    assert next_rate(tried | {"0.006": runs(math.nan)}) is None
    assert next_rate({"0.001": runs(0.1), "0.003": runs(0.2)}) is None
