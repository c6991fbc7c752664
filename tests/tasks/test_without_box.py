"""A problem whose objective calls no box: rows are the data's, and what a box is needed for is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import tasks
from tasks import cost, methods
from tasks.errors import ConfigurationError


class Line(tasks.Problem):
    """A line through points."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "cge", "rge")
        steps: tasks.Count = 4
        directions: tasks.Count = 3
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


def test_cost_is_in_rows_of_the_data():
    problem = Line()
    lines = cost.lines(problem, methods.chosen(problem), 2, timed=True)
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
