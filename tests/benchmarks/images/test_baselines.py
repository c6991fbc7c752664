"""Methods without a black box as methods of the problem: their cost; a killed run resumes to the bit."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.images.baselines import OTHERS, BaselineConfig, WithoutBackpropagation
from tasks import Progress, Run
from tasks.folder import checkpoint
from tasks.methods.by_name import methods_named
from tasks.planning.plan import plan_of
from tasks.running.start import carry_out
from tests.tasks.applications.image_classification.small import SETTINGS, Striped, made_setup, train
from tests.tasks.applications.image_classification.test_sparse_set import OWN
from tests.tasks.made_runs import begun_run


class StripedBaselines(WithoutBackpropagation, Striped):
    """The baselines on striped images."""


def new_run(folder) -> Run:
    config = BaselineConfig(**(SETTINGS | {"methods": OTHERS}))
    return begun_run(folder, WithoutBackpropagation.name(), "demo", config, [0])


def go_on(run: Run) -> None:
    run = Run.open(run.path)
    problem = WithoutBackpropagation(run.configuration(BaselineConfig))
    carry_out(run, plan_of(problem, methods_named(problem), run.seeds), Progress())


def outcome(run: Run):
    table = json.loads((run.path / "result.json").read_text())["table"]
    weights = {}
    for method in OTHERS:
        content = checkpoint.load(checkpoint.of_stage(run.path, f"seed-0/{method}"))
        weights[method] = b"".join(value.numpy().tobytes() for value in content["state"]["network"].values())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table], weights


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_method_resumes_to_the_bits_of_an_undisturbed_one(tmp_path):
    whole, log, killed = new_run(tmp_path / "whole"), Run.log, set()
    go_on(whole)
    truth = outcome(whole)
    rows = {row["method"]: row for row in truth[0]}
    assert rows.pop("pattern-search")["queries"] == SETTINGS["steps"] * SETTINGS["zeroth_order"].directions
    assert all(row["queries"] == 0 for row in rows.values())
    assert all(row["rows"] == SETTINGS["steps"] * SETTINGS["batch"] for row in rows.values())

    class Killed(BaseException):
        """The process is gone."""

    def dying(run, stage, step, **values):
        log(run, stage, step, **values)
        if step == 3 and stage not in killed:  # a step after the checkpoint
            killed.add(stage)
            raise Killed

    run = new_run(tmp_path / "killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", dying)
        for _ in OTHERS:
            with pytest.raises(Killed):
                go_on(run)
        go_on(run)
    assert len(killed) == len(OTHERS)
    assert outcome(run) == truth


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("method", OTHERS)
def test_running_statistics_move_once_a_step(tmp_path, method):
    trained = train(made_setup(tmp_path, method, StripedBaselines, steps=4))
    assert int(trained.network[1].num_batches_tracked) == trained.outcome.best_step
    assert trained.outcome.step == 4


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("method", "wanted"),
    [("fa", 0.03), ("dfa", 0.03), ("align-ada", 0.03), ("forward-gradient", 1e-3), ("fo", 0.1)],
)
def test_each_has_its_learning_rate(tmp_path, method, wanted):
    its = made_setup(
        tmp_path, method, StripedBaselines, learning_rate=0.1, feedback_learning_rate=0.03, warm_up=0.0
    )
    train(its)
    assert next(line["learning_rate"] for line in its.run.metrics() if "loss" in line) == wanted


@pytest.mark.parametrize("method", ["fa", "align-ada"])
def test_what_a_network_keeps_fixed_stays(tmp_path, method):
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    its = made_setup(
        tmp_path, method, StripedBaselines, network=f"{tmp_path / 'own.py'}:make", width=None, steps=4
    )
    first = its.network.layer.weight.detach().clone()
    trained = train(its)
    assert trained.network.fixed.tolist() == [1.0, 2.0, 3.0]
    assert not torch.equal(trained.network.layer.weight, first)
