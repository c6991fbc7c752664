"""What is said before training where nothing of the first batch has a loss, and when the run stops there."""

import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.adapters import CommandLine
from tests.inside import plan_of, sentences, settled
from zo.errors import FailedBatchError


class Doubles(BlackBoxFunction):
    inputs, outputs = (ArraySpec("x", ()),), (ArraySpec("y", ()),)

    def evaluate(self, x):
        return 2 * x


class Sized(tasks.Problem):
    """The objective takes a root of a negative number, whatever the box answers."""

    def box(self):
        return Doubles()

    def network(self):
        return torch.nn.Linear(1, 1)

    def data(self):
        rows = torch.rand(12, 1, generator=torch.Generator().manual_seed(0))
        return tasks.Data.split(rows, batch=4, validation=1, test=1)

    def objective(self, network, rows):
        return (-1 - self.box(network(rows)[:, 0]).square()).sqrt()


class Commanded(Sized):
    """A program that writes two numbers, where its class says what is expected."""

    command, shape = "echo 1 2 > y.txt", (2,)

    def box(self):
        return CommandLine(
            ["sh", "-c", self.command, "{x}"],
            [ArraySpec("x", ())],
            [ArraySpec("y", self.shape)],
            output_files={"y": "y.txt"},
            failures="keep",
        )

    def objective(self, network, rows):
        return self.box(network(rows)[:, 0]).square().sum(dim=1)


class WrongShape(Commanded):
    shape = (3,)


class WrongName(Commanded):
    command = "echo 1 2 > z.txt"


class Crashes(Commanded):
    command = "exit 3"


def test_an_objective_that_makes_nan_of_finite_outputs_is_named_not_the_box():
    problem = Sized(methods=["none"], steps=1)
    said = sentences(settled(plan_of(problem, (0,)), timed=True))
    assert said[-1].startswith(
        "  No row of the first batch had a finite loss, though its 20 box rows came back"
    )
    assert "the objective made NaN" in said[-1] and "Mend the box" not in said[-1]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [(WrongShape, "expected 3 numbers"), (WrongName, "expected the program to write y.txt")],
)
def test_files_that_no_row_can_be_read_from_stop_the_run_after_one_batch(tmp_path, capsys, kind, cause):
    problem = kind(methods=["none", "tangents"], steps=3)
    with pytest.raises(FailedBatchError, match=cause):
        tasks.run(problem, runs=tmp_path)
    assert "timing: 4 rows, which have been run" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [Commanded, Crashes])
def test_programs_that_fail_by_themselves_are_asked_again(kind):
    problem = kind(methods=["none"], steps=1)
    trial = settled(plan_of(problem, (0,)), timed=True).trial
    trial.refuse_unread()
    assert trial.spent.rows_run > 4
