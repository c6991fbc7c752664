"""A test of which no row was answered is no result: the run stops, and goes on when the box answers."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.adapters import Call, Hosted
from blackbox.errors import RowFailedError
from tasks import Progress
from tasks.configuration import Count
from tasks.errors import ProblemWarning
from tasks.folder import row_counts
from zo.errors import FailedBatchError


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
    spent = row_counts.read(folder)["rows"]
    # refused: two timed batches of 8 and the test; else each once more in halves, and some single rows
    assert (
        spent == 2 * 8 + 400 if error == "refused" else spent <= 2 * (2 * 8 + 3) + 2 * 400 + 18
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


class Licensed(tasks.Problem):
    """A program that calls the network, and does not begin where its licence is gone: in step 5, say."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("tangents",)
        steps: Count = 8
        batch: Count = 5
        validate_every: Count = 4
        licence: str = ""

    def box(self):
        licence = Path(self.config.licence)

        def program(case, host):
            if not licence.exists():
                raise RuntimeError("no licence")
            x = np.array([1.0 + case / 60, 2.0 - case / 60])
            for _ in range(3):
                x = 0.9 * x + host.exchange("closure", x)

        arrays = [ArraySpec(name, (2,)) for name in "xu"]
        return Hosted(program, calls=[Call("closure", sees=arrays[0], gives=arrays[1])], failures="keep")

    def network(self):
        return torch.nn.Linear(2, 2)

    def data(self):
        return tasks.Data.split(torch.arange(80), batch=self.config.batch, validation=5, test=5)

    def training_batch(self, seed, step):
        if step == 4 and Path(self.config.licence).with_name("outage").exists():
            Path(self.config.licence).unlink(missing_ok=True)
        return super().training_batch(seed, step)

    def objective(self, network, cases):
        run = self.box.run(cases, calls=2, closure=network)
        return (run.closure.x[:, 1:] - torch.ones(1, 2, 2)).square().mean(dim=(1, 2))


@pytest.mark.quick_cases(1)
@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
@pytest.mark.parametrize("batch", [5, 1])
def test_a_program_whose_licence_is_gone_ends_a_run_in_its_words_which_goes_on_when_it_is_back(
    tmp_path, batch
):
    licence, outage = tmp_path / "licence", tmp_path / "outage"
    settings = {"licence": str(licence), "batch": batch, "steps": 8 if batch > 1 else 16}
    licence.touch()
    whole = tasks.run(Licensed(), runs=tmp_path / "whole", progress=Progress(), **settings)
    outage.touch()
    with (
        pytest.warns(ProblemWarning, match="Step 5: .*no licence.* unless 10 rows fail one after another"),
        pytest.raises(FailedBatchError, match=r"The first cause: .*start, row 0 .*no licence"),
    ):
        tasks.run(Licensed(), runs=tmp_path / "runs", progress=Progress(), **settings)
    (folder,) = (tmp_path / "runs").iterdir()
    losses = [line["loss"] for line in tasks.Run.open(folder).metrics("seed-0/tangents") if "loss" in line]
    assert np.isnan(losses).tolist() == [False] * 4 + [True] * (10 // batch - 1)
    outage.unlink()
    licence.touch()
    run = tasks.run(Licensed(), resume=folder, progress=Progress(), **settings)
    (row,), (undisturbed,) = run.result.table, whole.result.table
    assert np.isfinite(row.value)
    if batch > 1:  # from step 4 on, of which nothing had failed
        assert row.value == undisturbed.value and row.ledger["rows_failed"] == 0
    else:  # from step 12 on
        assert "no licence" in row.ledger["first_failure"] and row.ledger["rows_failed"] == 8


def test_a_program_without_its_licence_from_the_beginning_is_told_before_training(tmp_path):
    settings = {"licence": str(tmp_path / "licence"), "methods": ("none",)}
    heard = Heard()
    with pytest.raises(RowFailedError, match=r"none to 5 rows.*no licence"):
        tasks.run(Licensed(), runs=tmp_path / "runs", progress=heard, **settings)
    assert any("no licence" in line for line in heard.said)
