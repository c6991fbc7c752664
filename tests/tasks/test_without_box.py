"""A problem whose objective calls no box: rows are the data's, and what a box is needed for is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction
from tasks import Progress
from tasks.command.cli import main
from tasks.configuration import Count, ZerothOrder
from tasks.errors import ConfigurationError
from tests.tasks.problems import Steering, cost_of


class Line(tasks.Problem):
    """A line through points."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "cge", "rge")
        steps: Count = 4
        zeroth_order: ZerothOrder = ZerothOrder(directions=3)
        slope: float = 2.0

    box = {}  # noqa: RUF012

    def network(self):
        return torch.nn.Linear(1, 1)

    def data(self):
        x = torch.linspace(-1, 1, 24).unsqueeze(1)
        return tasks.Data.split((x, self.config.slope * x), batch=5, validation=4, test=4)

    def objective(self, network, batch):
        return (network(batch[0]) - batch[1]).square().mean(dim=1)

    def check(self):
        if self.config.slope == 0:
            raise ConfigurationError("slope: expected a line that rises or falls, got 0.0.")


@pytest.mark.slow
def test_rows_are_those_of_base_and_queries(tmp_path):
    found = tasks.run(Line(), runs=tmp_path)
    rows = dict(zip(found.table["method"], found.table["rows"], strict=True))
    queries = dict(zip(found.table["method"], found.table["queries"], strict=True))
    assert rows["none"] == queries["none"] == 0
    for method, each in (("cge", 2), ("rge", 3)):  # a weight and a bias; directions
        assert queries[method] >= 4 * each  # and those of checks
        assert rows[method] == 5 * (4 + queries[method])
    last = [line["rows"] for line in found.metrics.to_dict("records") if line["rows"] == line["rows"]]
    assert last[-1] == rows["rge"]
    assert found.report.is_file()


def test_cost_is_in_rows_of_the_data(tmp_path):
    lines = cost_of(Line(methods=("cge", "none", "rge")), tmp_path)
    assert "without a black box" in lines[0] and "5" in lines[0]
    assert any("cge" in line and "queries" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"methods": ("tangents",)}, ["tangents", "none"]),
        ({"methods": ("no-gradient",)}, ["no-gradient"]),
        ({"rows": 100}, ["rows", "100"]),
        ({"slope": 0.0}, ["slope"]),
    ],
)
def test_what_needs_a_box_and_what_the_problem_refuses_is_said(tmp_path, settings, words):
    with pytest.raises(ConfigurationError) as caught:
        tasks.run(Line(**settings), runs=tmp_path)
    assert all(word in str(caught.value) for word in words)


class Costly(Steering):
    """Its box and its data must not be made for settings that are refused."""

    def box(self):
        raise AssertionError("the box was made")

    def data(self):
        raise AssertionError("the data was made")

    def check(self):
        if self.config.limit < 0:
            raise ConfigurationError("limit: expected one above zero.")


@pytest.mark.parametrize(
    ("settings", "words", "said"),
    [
        ({"limit": -1.0}, ["--limit=-1.0"], "limit: expected"),
        ({"methods": ("first-order", "reg")}, ["--methods", "first-order", "reg"], "Did you mean 'rge'"),
        ({"device": "cuda"}, ["--device", "cuda"], "expected a GPU"),
    ],
)
def test_what_settings_tell_is_refused_before_a_box_or_data_is_made(
    tmp_path, monkeypatch, capsys, settings, words, said
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BlackBoxError, match=said):
        tasks.run(Costly(**settings), runs=tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*"))
    place = ["--runs", str(tmp_path / "of-command")]
    assert main(["run", "tests.tasks.test_without_box:Costly", *words, *place]) != 0
    assert said in capsys.readouterr().err


def test_a_script_leaves_no_folder_of_a_run_that_was_not_begun(tmp_path):
    with pytest.raises(ConfigurationError, match="No row was run"):
        tasks.run(Steering(), runs=tmp_path, rows=10)
    assert not list(tmp_path.iterdir())


class Labels(BlackBoxFunction):
    """Whole numbers, which have no derivative to be learned."""

    inputs = (ArraySpec("z", (3,)),)
    outputs = (ArraySpec("label", (), dtype="int64"),)

    def evaluate_rows(self, z):
        raise AssertionError("a row was run")


class Classed(Steering):
    def box(self):
        return Labels()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("problem", "settings", "said"),
    [
        *(
            (Classed(), {"methods": ["cge", method]}, "Labels.*expected a differentiable output.*astype")
            for method in ("identity", "student", "tangents", "row-rge")
        ),
    ],
)
def test_what_a_method_cannot_train_with_is_refused_before_the_one_ahead_of_it(
    tmp_path, problem, settings, said
):
    with pytest.raises(ConfigurationError, match=said):
        tasks.run(problem, runs=tmp_path, progress=Progress(), **settings)
    assert not list(tmp_path.iterdir())
