"""What is said before training where nothing of the first batch has a loss, and when the run stops there."""

import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.adapters import CommandLine
from tasks.methods.by_name import methods_named
from tasks.planning.cost import sentences
from tasks.planning.plan import plan_of
from tasks.planning.spending import settled
from tasks.planning.trial import asked
from tasks.rows.binding import Bound
from zo.errors import FailedBatchError, ObjectiveError


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
    plan, bound = plan_of(problem, methods_named(problem), (0,)), Bound.of(problem)
    said = sentences(settled(plan, bound, asked(bound, plan.methods, 1), timed=True), bound)
    assert said[-1].startswith(
        "  No row of the first batch had a finite loss, though its 8 box rows came back"
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
    plan, bound = plan_of(problem, methods_named(problem), (0,)), Bound.of(problem)
    trial = settled(plan, bound, asked(bound, plan.methods, 1), timed=True).trial
    trial.refuse_unread()
    assert trial.spent.rows_run > 4


class OneLoss(Sized):
    """The loss of the whole batch, with a test of its own that takes it as it is."""

    def objective(self, network, rows):
        return (self.box(network(rows)[:, 0]) - rows[:, 0]).square().mean()

    def evaluate(self, network):
        with torch.no_grad():
            return {"error": float(self.objective(network, self.data.test).mean())}


class EveryPair(OneLoss):
    def objective(self, network, rows):
        return (self.box(network(rows)[:, 0]) - rows).square()


@pytest.mark.parametrize(("kind", "shape"), [(OneLoss, r"\(\)"), (EveryPair, r"\(4, 4\)")])
def test_losses_of_another_shape_are_refused_before_any_method_is_judged(tmp_path, capsys, kind, shape):
    with pytest.raises(ObjectiveError, match=rf"one floating loss per row.*\(4,\), got a .* {shape}"):
        tasks.run(kind(methods=["none", "tangents"], steps=3), runs=tmp_path)
    assert "Rows fail" not in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert not (folder / "evaluations").exists() and (folder / "calls" / "0").read_text().split() == ["1"] * 4


class Broken(BlackBoxFunction):
    inputs = outputs = (ArraySpec("x", (1,)),)
    raised: type[Exception] = NameError
    said = "a slip"

    def evaluate(self, x):
        raise self.raised(self.said or f"x is {x[0]}")


class Through(Sized):
    def box(self):
        return Broken(failures="keep")

    def data(self):
        rows = torch.linspace(0, 1, 30)[:, None]
        return tasks.Data.split((rows,), batch=10, validation=10, test=10)

    def network(self):
        return torch.nn.Linear(1, 1)

    def objective(self, network, batch):
        return self.box(network(batch[0])).square().mean(dim=1)


@pytest.mark.parametrize("raised", [NameError, ValueError])
def test_an_error_of_code_in_every_row_ends_the_run_with_the_users_traceback(
    tmp_path, capsys, monkeypatch, raised
):
    monkeypatch.setattr(Broken, "raised", raised)
    with pytest.raises(raised, match="a slip") as ended:
        tasks.run(Through(methods=["none"], steps=1), runs=tmp_path)
    assert ended.traceback[-1].name == "evaluate" and "Nothing was trained" in ended.value.__notes__[0]
    assert "timing: 11 rows" in capsys.readouterr().out  # the batch, and one for the traceback


@pytest.mark.parametrize(("raised", "said"), [(ValueError, ""), (OSError, "no server")])
def test_an_error_that_another_batch_may_not_have_does_not(monkeypatch, raised, said):
    monkeypatch.setattr(Broken, "raised", raised)
    monkeypatch.setattr(Broken, "said", said)
    problem = Through(methods=["none"], steps=1)
    plan, bound = plan_of(problem, methods_named(problem), (0,)), Bound.of(problem)
    trial = settled(plan, bound, asked(bound, plan.methods, 1), timed=True).trial
    assert trial.fault is None and trial.back == 0
