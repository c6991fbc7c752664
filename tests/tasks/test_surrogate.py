"""In runs: a surrogate, trained in rounds on batches that no box answers, and several rates."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

import tasks
import zo
from tasks import Run
from tasks.errors import ConfigurationError
from tests.tasks.problems import Mixed, Steering
from tests.tasks.test_spending import rows_in_all

pytestmark = pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")


class Drawn(Steering):
    """What is wanted is drawn, as often as anybody asks."""

    def data(self):
        def draw(seed, step, rows):
            generator = zo.estimators.Key(seed, step).generator()
            return torch.rand(rows, 3, generator=generator, dtype=torch.float64) - 0.5

        return tasks.Data.drawn(draw, batch=self.config.batch, validation=6, test=8)


def go(problem, tmp_path, **settings):
    return tasks.run(problem, runs=tmp_path, progress=tasks.Progress(), **settings)


def weights(run, method):
    return torch.cat([weight.detach().flatten() for weight in run.network(method).parameters()])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("problem", [Drawn, Steering])  # rows that are drawn, and rows that are there
def test_a_surrogate_takes_the_rows_of_its_steps_and_no_more(problem, tmp_path, limits):
    limits(updates_of_a_surrogate=60)
    run = go(problem(), tmp_path, methods=["none", "surrogate"], steps=12)
    none, surrogate = run.result.table
    assert surrogate.value < none.value / 2
    assert surrogate.rows == 12 * 5 * 2  # steps, rows of a batch, calls
    steps = [line for line in run._run.metrics("seed-0/surrogate") if "loss" in line]
    assert steps[-1]["gradient_updates"] == 60 and steps[-1]["gradient_model_error"] < 1


def test_it_spends_the_rows_that_it_is_given(tmp_path, limits):
    limits(updates_of_a_surrogate=60)
    run = go(Steering(), tmp_path, methods=["surrogate"], rows=400)
    (row,), config = run.result.table, Run.open(run.path).config
    assert row.rows == config["steps"] * config["batch"] * 2 > 200  # beside validation and test
    assert rows_in_all(run) <= 400


class Stops(Exception):
    pass


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("method", "settings"),
    [("surrogate", {}), ("population", {"replays": 2, "rates": (1, 4, 30)})],
)
def test_a_run_that_is_cut_short_goes_on_to_the_same_bits(method, settings, tmp_path, limits):
    limits(updates_of_a_surrogate=36, updates_of_a_population=120)

    class Falls(Drawn):
        name = Drawn.name
        left = 12

        def training_batch(self, seed, step):
            type(self).left -= step < 100  # of the steps' own batches
            if type(self).left < 0:
                raise Stops
            return super().training_batch(seed, step)

    settings = {"methods": [method], "steps": 15, "validate_every": 3, **settings}
    whole = go(Drawn(), tmp_path / "whole", **settings)
    with pytest.raises(Stops):
        go(Falls(), tmp_path / "cut", **settings)
    again = go(Drawn(), tmp_path, resume=next((tmp_path / "cut").iterdir()), **settings)
    assert torch.equal(weights(whole, method), weights(again, method))
    assert whole.result.table[0].rows == again.result.table[0].rows


class Asking(Steering):
    """What is wanted is computed by a box in each batch."""

    def data(self):
        box = Mixed()
        wanted = super().data()
        return replace(wanted, train=lambda seed, step: box(wanted.train(seed, step)))


def test_where_batches_cost_rows_a_surrogate_is_not_applicable(tmp_path):
    _, row = go(Asking(), tmp_path, methods=["none", "surrogate"]).result.table
    assert row.value is None and not row.rows
    assert "cost no row of a box" in str(row.extra["not applicable"])


@pytest.mark.slow
def test_several_rates_take_the_rows_of_one_training(tmp_path):
    settings = {"methods": ["population"], "steps": 8, "replays": 2}
    several = go(Unvalidated(), tmp_path, **settings, rates=(1, 30))
    one = go(Unvalidated(), tmp_path, **settings | {"methods": ["tangents"]})
    (row,), (plain,) = several.result.table, one.result.table
    assert row.rows == plain.rows and plain.extra["replays"] == 8 * 2
    assert row.extra["replays"] >= 8 * (2 + 2 + 1)  # of each rate, and one by which the other is judged
    lines = list(several._run.metrics("seed-0/population"))
    assert {line["rate_factor"] for line in lines if "loss" in line} <= {1.0, 30.0}


def test_a_rate_is_given_once():
    for rates in ((0, 4), (4, 4), ()):
        with pytest.raises(ConfigurationError, match="rates"):
            Drawn(rates=rates)


def test_a_method_s_own_update_is_taken(tmp_path):
    """It may hold weights within bounds, which a population's steps would leave."""

    def bounded(setup):
        gradient = zo.TangentGradient(
            setup.network, setup.objective, boxes=setup.boxes, limits=zo.tangents.Limits(replays=1), seed=0
        )
        optimizer = torch.optim.Adam(setup.network.parameters())

        def update(step):
            optimizer.step()
            for weight in setup.network.parameters():
                weight.data.clamp_(-0.1, 0.1)

        return setup.descend(gradient, optimizer=optimizer, update=update, replayed=True)

    class Bounded(Unvalidated):
        methods: ClassVar = {"bounded": tasks.methods.Method("Weights within .1.", bounded)}

    run = go(Bounded(), tmp_path, methods=["bounded"], steps=2, replays=1)
    assert float(weights(run, "bounded").abs().max()) <= 0.1


class Unvalidated(Drawn):
    """The last weights are kept."""

    def data(self):
        return replace(super().data(), validation=None)
