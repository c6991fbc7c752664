"""A test of which no row was answered is no result: the run stops, and goes on when the box answers."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction, RowFailedError
from tasks import Progress
from tasks.configuration import Count
from tasks.folder import calls


class Server(BlackBoxFunction):
    """It is up while a file is there."""

    inputs = outputs = (ArraySpec("x", (1,)),)

    def __init__(self, mark, error):
        super().__init__()
        self.mark, self.error = mark, error

    def evaluate_rows(self, x):
        if Path(self.mark).exists():
            return 2 * x
        if self.error == "not finite":
            return np.nan * x
        raise (
            ConnectionRefusedError(111, "Connection refused")
            if self.error == "refused"
            else OSError("broken")
        )


class Line(tasks.Problem):
    """A line through a server."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "cge")
        steps: Count = 2
        batch: Count = 8
        mark: str = ""
        error: str = "refused"

    def box(self):
        return Server(self.config.mark, self.config.error)

    def network(self):
        return torch.nn.Linear(1, 1)

    def data(self):
        return tasks.Data.split((torch.linspace(0, 1, 416)[:, None],), batch=8, validation=8, test=400)

    def objective(self, network, batch):
        return (self.box(network(batch[0])) - 1).square().mean(dim=1)


class Heard(Progress):
    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("error", ["refused", "broken"])
def test_a_server_that_is_down_at_the_start_loses_no_baseline(tmp_path, error):
    settings = {"mark": str(tmp_path / "up"), "error": error}
    heard = Heard()
    with pytest.raises(RowFailedError, match=f"seed-0/none: .*none to 400 rows.*{error}"):
        tasks.run(Line(), runs=tmp_path / "runs", progress=heard, **settings)
    (folder,) = (tmp_path / "runs").iterdir()
    assert not list(folder.glob("evaluations/*"))
    assert not [line for line in heard.said if "ms a row" in line]
    spent = calls.read(folder)["rows"]
    # refused: five timed batches of 8 and the test; else each once more in halves, and some single rows
    assert (
        spent == 5 * 8 + 400 if error == "refused" else spent <= 5 * (2 * 8 + 3) + 2 * 400 + 18
    )  # it is asked in two parts
    Path(settings["mark"]).touch()
    run = tasks.run(Line(), resume=folder, progress=Progress(), **settings)
    assert all(np.isfinite(row.value) for row in run.result.table)


def test_answers_that_are_not_finite_are_a_result(tmp_path):
    settings = {"mark": str(tmp_path / "up"), "error": "not finite", "methods": ("none",)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = tasks.run(Line(), runs=tmp_path / "runs", progress=Progress(), **settings)
    assert run.result.table[0].value is None
