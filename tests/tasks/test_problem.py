import copy
import functools
import math
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

import tasks
import zo
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.errors import BudgetError, NotDifferentiableError
from blackbox.wrappers import Budgeted
from tasks import Progress, Run
from tasks.configuration import Count, ZerothOrder
from tasks.configuration.settings import flat, to_dict
from tasks.errors import (
    CheckpointError,
    ConfigurationError,
    NotApplicableError,
    ProblemError,
    ProblemWarning,
    RunFolderError,
)
from tasks.folder import row_counts
from tasks.folder.terms import Terms
from tasks.methods import by_name
from tasks.methods.by_name import METHODS
from tasks.methods.by_student import student_loss
from tasks.methods.in_rounds import FURTHER
from tasks.problem.data import evaluating
from tasks.report import findings, html_report
from tests.tasks.problems import MATRIX, Beside, Mixed, Steering, TwoBoxes
from zo.errors import FailedQueriesError, ObjectiveError, ZeroGradientWarning
from zo.estimators import Key
from zo.tangents.models.alike import AlikeTangent
from zo.tangents.models.contest import ContestTangent

CMA = ("cma-es", "sep-cma-es")
# those that need no further package, nor 1,200 steps: see test_surrogate.py
FEW = ZerothOrder(coordinates=6, directions=4)
ALL = tuple(name for name in METHODS if name not in (*CMA, "surrogate"))


def go(problem, tmp_path, **settings):
    return tasks.run(problem, runs=tmp_path, progress=Progress(), **settings)


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def trained_by_hand(problem, steps):
    """First order as anyone would write it: autograd through the closed form, Adam, a cosine."""
    torch.manual_seed(0)
    network = problem.network()
    start = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters())
    data, best, found = problem.data, math.inf, start

    def loss_of(network, wanted):
        z = network(wanted)
        for _ in range(problem.config.calls):
            z = (z @ MATRIX.T).tanh()
        return (z - wanted).square().mean()

    for i in range(steps + 1):
        if i % problem.config.validate_every == 0 or i == steps:
            with torch.no_grad():
                value = float(loss_of(network, data.validation))
            if value < best:
                best, found = value, copy.deepcopy(network)
        if i == steps:
            break
        for weights in optimizer.param_groups:
            weights["lr"] = problem.config.learning_rate * 0.5 * (1 + math.cos(math.pi * i / steps))
        optimizer.zero_grad()
        loss_of(network, data.train(0, i)).backward()
        optimizer.step()
    return found, loss_of(found, data.test).item()


@pytest.mark.slow
def test_first_order_is_the_loop_that_anyone_would_write(tmp_path):
    run = go(Steering(), tmp_path, methods=["first-order"])
    network, error = trained_by_hand(Steering(), 6)
    assert torch.allclose(weights(run.network("first-order")), weights(network), rtol=0, atol=1e-14)
    assert run.result.table[0].value == pytest.approx(error, rel=1e-12)


@pytest.mark.slow
def test_differences_of_every_weight_train_as_first_order_does(tmp_path):
    run = go(Steering(), tmp_path, methods=["cge"], zeroth_order=ZerothOrder(central=True, mu=1e-4))
    network, _ = trained_by_hand(Steering(), 6)
    assert torch.allclose(weights(run.network("cge")), weights(network), rtol=0, atol=1e-6)


def test_every_method_has_the_same_start_steps_and_batches_and_ends_in_the_table(tmp_path, limits):
    limits(updates_of_a_population=60, updates_of_a_surrogate=60)
    asked = []

    class Noted(Beside):
        def data(self):
            data = super().data()
            return tasks.Data(
                lambda seed, step: (asked.append((seed, step)), data.train(seed, step))[1],
                data.validation,
                data.test,
            )

    run = go(Noted(), tmp_path, methods=ALL, zeroth_order=FEW, steps=3)
    assert [row.method for row in run.result.table] == list(ALL)
    assert all(row.value is not None for row in run.result.table)
    trained = [name for name in ALL if name != "none"]
    steps = [(0, step) for step in range(3)]
    # besides, costs are found on the first batch, and further ones are taken through a model
    of_steps = [each for each in asked if each != (0, 0) and each[1] < FURTHER]
    assert of_steps == [each for each in steps if each != (0, 0)] * len(trained)
    validations = {
        name: [line["validation"] for line in run._run.metrics(f"seed-0/{name}") if "validation" in line]
        for name in trained
    }
    assert len({values[0] for values in validations.values()}) == 1  # the start's
    assert set(run.table["method"]) == set(ALL) and run.report.is_file()


@pytest.mark.slow
def test_what_training_ran_is_in_the_table_by_method(tmp_path):
    run = go(Beside(), tmp_path, methods=["none", "no-gradient", "first-order", "tangents", "cge"])
    rows = {row.method: row for row in run.result.table}
    once = 6 * 5 * 2  # steps x batch x calls
    assert rows["none"].rows == 0
    assert rows["no-gradient"].rows == rows["first-order"].rows == once
    assert rows["tangents"].rows == once + rows["tangents"].queries * 5 * 2  # of checks of the first steps
    assert rows["tangents"].queries >= 1
    assert rows["cge"].rows == once + rows["cge"].queries * 5 * 2
    validations = 4  # at 0, 2, 4, 6
    assert rows["cge"].extra["rows of validation"] == validations * 6 * 2
    # where there is a reference, it is compared with the box on a batch
    assert rows["first-order"].extra["rows of validation"] == validations * 6 * 2 + 5 * 2
    assert rows["cge"].extra["rows of test"] == 8 * 2


def test_no_gradient_is_autograd_with_the_box_cut_out(tmp_path):
    problem = Steering()
    setup = METHODS["no-gradient"]
    assert setup.needs_reference is False
    torch.manual_seed(0)
    network = problem.network()
    batch = problem.data.train(0, 0)
    gradient = tasks.methods.AutogradGradient(
        network, problem.objective, {problem.box: lambda z: problem.box.call(z.detach())}
    )
    with pytest.raises(NotApplicableError, match="what stands in the box's place"):
        gradient.backward(batch)
    assert all(weight.grad is None for weight in network.parameters())  # nothing reaches the weights here
    problem.objective = lambda network, batch: network(problem.box(network(batch))).square().mean(dim=1)
    gradient = tasks.methods.AutogradGradient(
        network, problem.objective, {problem.box: lambda z: problem.box.call(z.detach())}
    )
    gradient.backward(batch)  # beside the box there is a way
    assert all(weight.grad.any() for weight in network.parameters())


def test_a_gradient_of_zero_asks_whether_it_was_cut_at_the_box():
    problem = Steering()
    network, batch = problem.network(), problem.data.train(0, 0)

    def objective(network, wanted):
        return problem.objective(network, wanted) + 0 * network(wanted).sum(dim=1)

    gradient = tasks.methods.AutogradGradient(
        network, objective, {problem.box: lambda z: problem.box.call(z.detach())}
    )
    with pytest.warns(ZeroGradientWarning, match="flat, .* or cut, as no-gradient cuts it at the box"):
        gradient.backward(batch)


class Idle(Steering):
    """A last layer that begins at zero, and a penalty on its outputs, whose slope there is exactly zero."""

    def network(self):
        network = super().network()
        torch.nn.init.zeros_(network[2].weight)
        torch.nn.init.zeros_(network[2].bias)
        return network

    def objective(self, network, wanted):
        return super().objective(network, wanted) + 1e-4 * network(wanted).square().sum(dim=1)


@pytest.mark.parametrize("replays", [0, 2])
@pytest.mark.filterwarnings("ignore::zo.errors.ZeroGradientWarning")
def test_a_cut_gradient_that_stays_exactly_zero_is_not_trained_along(tmp_path, replays):
    run = go(Idle(), tmp_path, methods=["none", "no-gradient"], steps=50, replays=replays)
    (row,) = [row for row in run.result.table if row.method == "no-gradient"]
    why = row.extra["not applicable"]
    assert why.startswith("Step 3: expected a gradient that is not zero in one of the first 3 steps")
    assert row.value is None and row.rows <= 3 * 10 + 2 * 12  # and the validations, of 50 steps


def test_a_gradient_that_is_zero_at_first_is_trained_along_and_counted_across_a_resume():
    """Also where a batch has none by chance: of a hinge, or units that are saturated."""
    problem = Steering()
    network = problem.network()

    def gradient(most=3):
        return tasks.methods.AutogradGradient(network, lambda n, w: w * n(w.new_ones(1, 3)).sum(), {}, most)

    flat, steep = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    one = gradient()
    with pytest.warns(ZeroGradientWarning):
        one.backward(flat)
        one.backward(flat)
    network.zero_grad()
    one.backward(steep)
    network.zero_grad()
    for _ in range(4):  # behind a step that had one
        one.backward(flat)
    one, other = gradient(), gradient()
    network.zero_grad()
    with pytest.warns(ZeroGradientWarning):
        one.backward(flat)
        one.backward(flat)
        other.load_state_dict(one.state_dict())
        with pytest.raises(NotApplicableError, match=r"Step 3: .* exactly zero in every weight of Seq"):
            other.backward(flat)
        other = gradient(most=None)
        for _ in range(4):
            other.backward(flat)


@pytest.mark.slow
def test_a_method_that_has_nothing_to_go_by_is_marked_and_the_others_run(tmp_path):
    class Steered(Steering):
        units = dict.fromkeys(("validation",), "s")

    run = go(Steered(), tmp_path, methods=["no-gradient", "none", "first-order"], seeds=2)
    alone = go(Steering(), tmp_path / "alone", methods=["none", "first-order"], seeds=2)
    values = {(row.method, row.seed): row.value for row in run.result.table}
    assert values == {
        **{(row.method, row.seed): row.value for row in alone.result.table},
        **{("no-gradient", seed): None for seed in (0, 1)},
    }
    page = run.report.read_text()
    assert "<td>not applicable</td>" in page.replace(' class="text"', "")
    assert "no-gradient is not applicable. Step 1: expected some weight of Sequential" in page
    assert all(row.units == Steered.units for row in run.result.table)  # the report takes the first one's
    # two calls of each of 6 rows of validation and of 5 in a step, before that was known
    given_up = [row for row in run.result.table if row.method == "no-gradient"]
    assert [(row.rows, row.ledger["rows_run"]) for row in given_up] == [(22, 22)] * 2
    assert "It had run 22 rows by then." in page
    assert not run._run.metrics("seed-0/no-gradient")
    assert torch.equal(weights(run.network("first-order")), weights(alone.network("first-order")))
    with pytest.raises(NotApplicableError, match="to receive a gradient, got none"):
        run.network("no-gradient")
    with pytest.raises(NotApplicableError, match="to receive a gradient, got none"):
        run.fields("no-gradient", 1)
    with pytest.raises(ConfigurationError, match=r"none, first-order and of the seeds \(0, 1\), got 'cge'"):
        run.fields("cge")
    with pytest.raises(NotApplicableError, match="Take a method that goes through the box"):
        go(Steering(), tmp_path, methods=["no-gradient"])


@pytest.mark.parametrize("failed", [0, 2])
def test_a_method_of_which_validation_chose_the_start_says_so_and_why(tmp_path, capsys, failed):
    class Held(Steering):
        def validate(self, network):
            # each later one is worse, or has two failed rows of six
            self.asked = vars(self).get("asked", 0) + 1
            losses = torch.full((6,), float(self.asked))
            losses[: failed if self.asked > 1 else 0] = math.nan
            return losses

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProblemWarning)
        run = go(Held(), tmp_path, methods=["none", "first-order"])
    assert len(set(run.table["test loss"].tolist())) == 1  # the start's: a reader would wonder
    run.show()
    more = ", and in 3 of them too many rows failed to choose weights by" if failed else ""
    said = (
        f"first-order has the weights that it started from: no validation after the first was better{more}."
    )
    assert said in capsys.readouterr().out and said in run.report.read_text()


@pytest.mark.slow
def test_a_method_that_is_not_applicable_with_one_seed_has_what_the_others_gave(tmp_path):
    def one_seed(setup):
        if setup.seed == 1:
            raise NotApplicableError("Nothing to go by with seed 1.")
        return METHODS["cge"].train(setup)

    class Field(Steering):
        methods = {"sometimes": tasks.methods.Method("Has something to go by with seed 0.", one_seed)}  # noqa: RUF012

        def evaluate(self, network):
            return {"test loss": 0.5, "field": network(self.data.test)}

    run = go(Field(), tmp_path, methods=["none", "sometimes"], seeds=2)
    found = findings.Findings(run._run, run.result)
    assert {seed: list(methods) for seed, methods in found.fields.items()} == {
        0: ["none", "sometimes"], 1: ["none"],
    }  # fmt: skip
    assert run.fields("sometimes", 0)["field"].shape == run.fields("none", 1)["field"].shape
    assert run.network("sometimes", 0) is not None
    with pytest.raises(NotApplicableError, match=r"Nothing to go by with seed 1\."):
        run.network("sometimes", 1)


def test_where_no_method_is_applicable_the_report_says_that_alone(tmp_path):
    def cut(setup):
        raise NotApplicableError("Nothing to go by.")

    class Cut(Steering):
        methods = {"cut": tasks.methods.Method("Has nothing to go by.", cut)}  # noqa: RUF012

    page = go(Cut(), tmp_path, methods=["no-gradient", "cut"]).report.read_text()
    assert "cut is not applicable. Nothing to go by." in page and "no-gradient is not applicable." in page
    assert "No method has a finite" not in page and ">figure</th>" in page


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("method", ["first-order", "tangents", "cge", "row-rge", "identity"])
def test_several_boxes_by_name(tmp_path, method):
    run = go(TwoBoxes(), tmp_path, methods=[method])
    assert run.result.table[0].rows >= 6 * 5 * 2


class Answered(Steering):
    def answers(self):
        z = torch.randn(300, len(MATRIX), generator=torch.Generator().manual_seed(1)).to(MATRIX.dtype)
        return {"box": ([z], (z @ MATRIX.T).tanh())}


@pytest.mark.slow
def test_a_student_learns_before_the_first_step_from_answers_that_the_problem_has(tmp_path):
    def losses(problem, **settings):
        run = go(problem, tmp_path, methods=["student", "first-order"], **settings)
        student, exact = run.result.table
        assert student.rows == exact.rows  # what is known before costs none
        return student.value, exact.value

    learned, exact = losses(Answered())
    alone, _ = losses(Steering())
    assert abs(learned - exact) < 0.05 * exact and alone > 1.3 * exact
    assert losses(Answered(), prefit=0)[0] == alone


class Alike(Mixed):
    alike = 0


class Staged(Mixed):
    earlier = ("z",)
    inputs = (ArraySpec("z", (3,)), ArraySpec("own", (3,)))

    def evaluate(self, z, own):
        return super().evaluate(z + own)


@pytest.mark.parametrize("kind", [Alike, Staged])
def test_every_default_tangent_learns_from_answers_that_the_problem_has(tmp_path, monkeypatch, kind):
    """Places that are alike and stages have tangents of their own."""
    fitted, own = [], {Alike: AlikeTangent, Staged: ContestTangent}[kind]
    fit = own.fit

    def noted(self, *answers, steps):
        fitted.append(steps)
        fit(self, *answers, steps=steps)

    class Known(Steering):
        def box(self):
            return kind()

        def objective(self, network, wanted):
            y = self.box(*[network(wanted)] * len(self.box.inputs))
            return (y - wanted).square().mean(dim=1)

        def answers(self):
            z = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)).to(MATRIX.dtype)
            return {"box": ([z] * len(self.box.inputs), self.box(*[z] * len(self.box.inputs)))}

    monkeypatch.setattr(own, "fit", noted)
    go(Known(), tmp_path, methods=["tangents"], steps=1, prefit=30)
    assert fitted == [30]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["own", "another"])
def test_rows_that_answers_asks_for_are_in_count_plan_and_budget(tmp_path, how):
    """By the run's box and by one that it makes; they are asked once, and not again after a kill."""

    class Asking(Steering):
        def answers(self):
            z = torch.randn(300, len(MATRIX), generator=torch.Generator().manual_seed(1)).to(MATRIX.dtype)
            return {"box": ([z], (self.box if how == "own" else Mixed())(z))}

    both = {"methods": ["student", "tangents"], "seeds": 2}
    run = go(Asking(), tmp_path / "asking", **both)
    plain = go(Steering(), tmp_path / "plain", **both)
    assert run.result.calls["rows"] == plain.result.calls["rows"] + 300
    with pytest.raises(BudgetError, match="250 rows"):
        go(Asking(), tmp_path / "little", rows=250, **both)
    (folder,) = (tmp_path / "asking").iterdir()
    (folder / "result.json").unlink()
    again = tasks.run(Asking(), resume=folder, progress=Progress(), methods=both["methods"])
    assert (
        again.result.calls["rows"] <= run.result.calls["rows"] + 5 * 5 + 16
    )  # those that are timed, or asked again


@pytest.mark.slow
def test_tangents_learn_before_the_first_step_from_answers_that_the_problem_has(tmp_path):
    def errors(problem, **settings):
        run = go(problem, tmp_path, methods=["tangents"], **settings)
        lines = [line for line in run._run.metrics("seed-0/tangents") if "gradient_tangent_error" in line]
        return lines[0]["gradient_tangent_error"], run.result.table[0].rows

    learned, rows = errors(Answered())
    alone, same = errors(Steering())
    assert learned < 0.3 * alone and rows == same
    assert errors(Answered(), prefit=0) == (alone, same)


def test_answers_of_a_box_that_is_not_there_are_refused(tmp_path):
    class Misnamed(Steering):
        def answers(self):
            return {"bocks": (torch.zeros(3, 3), torch.zeros(3, 3))}

    with pytest.raises(ProblemError, match="got 'bocks'"):
        go(Misnamed(), tmp_path, methods=["tangents"])


def test_several_boxes_train_as_one_that_is_called_twice(tmp_path):
    one = go(Steering(), tmp_path, methods=["first-order"]).network("first-order")
    two = go(TwoBoxes(), tmp_path, methods=["first-order"]).network("first-order")
    assert torch.equal(weights(one), weights(two))


class Noted(Mixed):
    """Keeps what it is asked, call by call."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def evaluate_rows(self, z):
        self.asked.append(z.copy())
        return np.tanh(z @ MATRIX.numpy().T)


def test_the_rows_of_several_boxes_move_along_other_directions(tmp_path):
    """With the same ones, the gradient through both boxes would be wrong in the mean."""
    boxes = {"first": Noted(), "second": Noted()}

    class Both(TwoBoxes):
        def box(self):
            return boxes

    go(Both(), tmp_path, methods=["row-rge"], steps=1, zeroth_order=ZerothOrder(input_directions=1))
    moved = []
    for box in boxes.values():
        pairs = zip(box.asked, box.asked[1:], strict=False)
        steps = [after - before for before, after in pairs if before.shape == after.shape]
        moved += [step for step in steps if 0 < np.abs(step).max() <= 1e-3][:1]
    assert len(moved) == 2 and not np.allclose(*moved, atol=1e-5)


class Stops(Exception):
    pass


QUICK = {"student", "row-rge"}  # each with a state of its own


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "method",
    [
        *(
            pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
            for name in ALL
            if name != "none"
        ),
        *(pytest.param(name, marks=pytest.mark.needs("cma")) for name in CMA),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does nothing here:tasks.errors.ProblemWarning")
def test_a_run_that_is_cut_short_goes_on_to_the_same_bits_and_the_same_ledger(tmp_path, method):
    settings = {"methods": [method], "zeroth_order": FEW, "seeds": 2}
    whole = go(Beside(), tmp_path / "whole", **settings)

    class Falls(Beside):
        name = Beside.name
        left = 4 if method in ("first-order", "no-gradient", "identity") else 8

        def objective(self, network, wanted):
            if torch.is_grad_enabled() or network.training:
                type(self).left -= 1
                if type(self).left < 0:
                    raise Stops
            return super().objective(network, wanted)

    with pytest.raises(Stops):
        go(Falls(), tmp_path / "cut", **settings)
    folder = next((tmp_path / "cut").iterdir())
    again = go(Beside(), tmp_path, resume=folder, **{k: v for k, v in settings.items() if k != "seeds"})
    for seed in (0, 1):
        assert torch.equal(weights(whole.network(method, seed)), weights(again.network(method, seed)))
    for mine, theirs in zip(whole.result.table, again.result.table, strict=True):
        assert (mine.value, mine.rows, mine.queries, mine.extra) == (
            theirs.value,
            theirs.rows,
            theirs.queries,
            theirs.extra,
        )


def test_a_plan_beyond_the_budget_is_refused_before_any_row(tmp_path):
    box = Mixed()

    class One(Steering):
        def box(self):
            return box

    with pytest.raises(ConfigurationError, match=r"budget of 1,000 rows.*No row was run"):
        go(One(), tmp_path, methods=["cge"], rows=1000, steps=6)
    assert box.ledger.rows_run == 0


def test_a_budget_of_exactly_the_plan_is_enough(tmp_path):
    # (steps, and once to compare the reference) x batch x calls, validations, test
    planned = (6 + 1) * 5 * 2 + 4 * 6 * 2 + 8 * 2
    run = go(Steering(), tmp_path, methods=["first-order"], rows=planned, steps=6)
    row = run.result.table[0]
    assert row.rows + row.extra["rows of validation"] + row.extra["rows of test"] == planned
    with pytest.raises(ConfigurationError, match="No row was run"):
        go(Steering(), tmp_path, methods=["first-order"], rows=planned - 1, steps=6)


class Grows(Steering):
    """More calls of the box from the fourth step on, which no plan can know."""

    def data(self):
        data = super().data()

        def train(seed, step):
            wanted = data.train(seed, step)
            return wanted, torch.full((len(wanted),), 9 if step >= 3 else 2)

        return tasks.Data(train, (data.validation, torch.full((6,), 2)), (data.test, torch.full((8,), 2)))

    def objective(self, network, batch):
        wanted, calls = batch
        z = network(wanted)
        for _ in range(int(calls[0])):
            z = self.box(z)
        return (z - wanted).square().mean(dim=1)


def test_a_budget_is_kept_to_the_row_and_a_larger_one_goes_on(tmp_path):
    settings = {"methods": ["first-order"], "steps": 6}
    whole = go(Grows(), tmp_path / "whole", **settings)
    with pytest.raises(BudgetError):
        go(Grows(), tmp_path / "cut", rows=250, **settings)
    folder = next((tmp_path / "cut").iterdir())
    assert not Run.open(folder).finished
    with pytest.raises(ConfigurationError, match="has one of 250, got 240"):
        go(Grows(), tmp_path, resume=folder, rows=240, **settings)
    again = go(Grows(), tmp_path, resume=folder, rows=10_000, **settings)
    assert torch.equal(weights(whole.network("first-order")), weights(again.network("first-order")))
    assert whole.result.table[0].extra == again.result.table[0].extra
    assert Run.open(folder).config["rows"] == 10_000


class Crash(tasks.Callback):
    """Ends the run as a fault would: without a checkpoint of what came since the last one."""

    strict = True

    def __init__(self, step):
        self.step = step

    def on_step(self, stage, step, metrics):
        if step == self.step:
            raise OSError("the machine is gone")


@pytest.mark.slow
def test_rows_that_a_crash_makes_run_again_count_in_the_budget(tmp_path):
    planned = (6 + 1) * 5 * 2 + 4 * 6 * 2 + 8 * 2
    settings = {"methods": ["first-order"], "rows": planned, "steps": 6}
    whole = go(Steering(), tmp_path / "whole", **settings)
    assert whole.result.calls["rows"] == planned
    with pytest.raises(OSError, match="the machine is gone"):
        go(Steering(), tmp_path / "cut", callbacks=[Crash(5)], **settings)  # a checkpoint is behind step 4
    folder = next((tmp_path / "cut").iterdir())
    with pytest.raises(BudgetError, match=f"128 of {planned} are spent"):  # all but the test
        go(Steering(), tmp_path, resume=folder, **settings)
    assert row_counts.read(folder)["rows"] == planned + 10 - 16
    again = go(Steering(), tmp_path, resume=folder, **{**settings, "rows": planned + 10})
    assert again.result.calls == {"rows": planned + 10, "exact": True}
    assert again.result.table[0].extra == whole.result.table[0].extra
    assert again.result.table[0].rows == whole.result.table[0].rows == (6 + 1) * 5 * 2 - 10


def test_rows_that_fail_are_kept_and_counted_with_their_cause(tmp_path):
    run = go(Beside(limit=0.4), tmp_path, methods=["cge", "tangents", "no-gradient"])
    assert all(row.value is not None or row.method for row in run.result.table)
    failed = [row.ledger for row in run.result.table if row.ledger["rows_failed"]]
    assert failed and all("ArithmeticError" in ledger["causes"] for ledger in failed)
    assert all("is too much" in ledger["first_failure"] for ledger in failed)


@pytest.mark.slow
def test_rows_that_fail_in_validation_and_test_are_told_beside_the_figures(tmp_path):
    class Lossy(Steering):
        """In evaluation mode one row of each held-out batch fails, and the figure hides it."""

        def objective(self, network, wanted):
            if not network.training:
                wanted = wanted.clone()
                wanted[1] = math.nan
            return super().objective(network, wanted)

        def validate(self, network):
            return torch.cat([self.losses(network, self.data.validation), torch.zeros(4)])

        def evaluate(self, network):
            return {"error": float(self.losses(network, self.data.test).nanmean())}

    run = go(Lossy(), tmp_path, methods=["none", "first-order"], steps=2)
    none, trained = run.result.table
    assert (none.failed, trained.failed) == (
        {"the test": 2},
        {"validation": 1, "the test": 2},
    )  # called twice
    page = run.report.read_text(encoding="utf-8")
    assert "Rows failed: 1 in the validations that chose weights, 4 box rows in the test. " in page
    assert "failed in validation" in page and "failed or skipped in test (box rows)" in page
    clean = go(Steering(), tmp_path / "clean", methods=["none", "first-order"], steps=2)
    assert [row.failed for row in clean.result.table] == [{"test loss": 0}] * 2
    page = clean.report.read_text(encoding="utf-8")
    assert "Rows failed" not in page and "skipped in test" not in page and "failed rows" not in page


def test_a_mean_over_rows_leaves_out_those_that_failed_and_counts_them(tmp_path):
    class Judged(Steering):
        units = dict.fromkeys(("error", "largest"), "m")

        def evaluate(self, network):
            values = torch.tensor([1.0, math.nan, 3.0, math.inf])
            return {"error": tasks.RowMean(values), "largest": 3.0, "all": tasks.RowMean(values[::2].numpy())}

    run = go(Judged(), tmp_path, methods=["none", "first-order"], steps=2)
    row = run.result.table[0]
    assert row.value == 2.0 and row.unit == "m"
    assert row.failed == {"error": 2, "all": 0}
    assert run.table["failed rows of error"].tolist() == [2, 2]
    assert row.extra["all"] == 2.0
    page = run.report.read_text(encoding="utf-8")
    assert "rows left out" in page and "largest (m)" in page
    assert "Rows failed: 4 in the test, which the figures leave out." in page
    assert ">failed rows of all</th>" in page  # of which as many failed as of no other


def test_a_part_of_an_array_takes_the_room_of_that_part(tmp_path):
    class Cut(Steering):
        def evaluate(self, network):
            return {"error": 1.0, "first": torch.ones(1000, 1000)[:1], "last": np.ones((1000, 1000))[-1:]}

    run = go(Cut(), tmp_path, methods=["none"])
    (path,) = (run.path / "evaluations").iterdir()
    assert path.stat().st_size < 50_000
    assert run.fields("none")["first"].shape == run.fields("none")["last"].shape == (1, 1000)


@pytest.mark.parametrize("rows", [3.0, torch.zeros(2, 2), []])
def test_a_mean_over_rows_wants_a_row_of_numbers(rows):
    with pytest.raises(ProblemError, match="a number for each row"):
        tasks.RowMean(rows)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (0.3, "at least one figure by name, got 0.3. Return {'test error': ...}."),
        (tasks.RowMean([1.0, 2.0]), "at least one figure by name, got RowMean(rows=[1.0, 2.0])"),
        ([("error", 0.3)], "at least one figure by name, got [('error', 0.3)]"),
        (
            {"found": [1.0, 2.0]},
            "got ['found']. A figure is one number, and what has axes, 'found' of shape (2,)",
        ),
        ({"error": 0.3, "names": ["a", "b"]}, "as 'names', got ['a', 'b']"),
        ({"error": 0.3, "ragged": [[1.0], [1.0, 2.0]]}, "as 'ragged', got [[1.0], [1.0, 2.0]]"),
        ({"error": {"mean": 0.3}}, "as 'error', got {'mean': 0.3}"),
    ],
)
def test_what_evaluate_may_not_return_is_refused_by_name(tmp_path, told, said):
    class Judged(Steering):
        def evaluate(self, network):
            return told

    with suppress_type_checks(), pytest.raises(ProblemError, match=re.escape(said)) as error:
        go(Judged(), tmp_path, methods=["none"])
    assert str(error.value).startswith("Judged.evaluate: expected")


def test_a_list_of_numbers_is_an_array(tmp_path):
    class Judged(Steering):
        def evaluate(self, network):
            return {"error": 0.3, "found": [1, 2]}

    assert go(Judged(), tmp_path, methods=["none"]).fields("none")["found"].tolist() == [1, 2]


def test_a_unit_whose_name_is_misspelt_is_told_and_one_that_comes_with_data_is_not(tmp_path):
    class Judged(Steering):
        units = dict.fromkeys(("test err", "largest", "found", "valdation", "only at night"), "K")

        def evaluate(self, network):
            return {"test error": 0.3, "largest": 0.4, "found": [1, 2]}

    with pytest.warns(ProblemWarning) as told:
        go(Judged(), tmp_path, methods=["none", "first-order"], steps=2)
    assert [str(each.message).partition("got ")[2] for each in told if each.category is ProblemWarning] == [
        "'test err'. Did you mean 'test error'?",
        "'valdation'. Did you mean 'validation'?",
    ]


def test_the_mean_test_loss_counts_rows_that_failed(tmp_path):
    """In place of NaN, which said nothing of the other rows."""
    run = go(Steering(limit=0.1), tmp_path, methods=["none"])
    problem = Steering(limit=0.1)
    torch.manual_seed(0)
    network = problem.network()
    problem.box.failures = "keep"
    with torch.no_grad():
        losses = problem.objective(network, problem.data.test)
    came = losses[losses.isfinite()]
    assert 0 < len(came) < len(losses)
    row = run.result.table[0]
    assert row.value == pytest.approx(came.mean().item()) and math.isfinite(row.value)
    assert row.failed["test loss"] == len(losses) - len(came)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("method", ["no-gradient", "row-rge", "tangents", "cge"])
def test_where_every_row_fails_the_first_cause_is_told(tmp_path, method):
    with (
        pytest.warns(ProblemWarning, match="validation after step 0: expected at most a tenth of 6"),
        pytest.warns(ProblemWarning, match=r"Step 1: .* unless 10 rows fail one after another"),
        pytest.raises(FailedQueriesError, match=r"ArithmeticError: .* is too much"),
    ):
        go(Steering(limit=-9.0), tmp_path, methods=[method])


class Fickle(Mixed):
    """Fails for half of all inputs, with no pattern that one could see."""

    def evaluate(self, z):
        if int(1e6 * abs(z[0])) % 2:
            raise ArithmeticError("no luck")
        return super().evaluate(z)


def lenient(setup):
    """`cge`, of which every query may fail."""
    gradient = zo.LossGradient(setup.network, setup.objective, zo.CGE(1e-3), seed=setup.seed, max_dropped=1.0)
    return setup.descend(gradient)


class FickleSteering(Beside):
    methods = {"lenient": tasks.methods.Method("Each query may fail.", lenient)}  # noqa: RUF012

    def box(self):
        return Fickle()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*validation after step:tasks.errors.ProblemWarning")
@pytest.mark.filterwarnings("ignore:.*expected rows to survive a dither:zo.errors.TangentWarning")
@pytest.mark.filterwarnings("ignore:.*to stand out within 3 steps:zo.errors.TangentWarning")  # half fail
@pytest.mark.parametrize("method", ["lenient", "tangents", "no-gradient"])
def test_a_batch_that_failed_as_a_whole_costs_its_step_and_no_more(tmp_path, method):
    """By hand: the same steps, of which those whose one row fails are left out."""
    problem = FickleSteering(batch=1, steps=12, calls=1, validate_every=12)
    with pytest.warns(ProblemWarning, match="some row .* This step changes nothing"):
        run = go(problem, tmp_path, methods=[method])
    told = [line for line in Run.open(run.path).metrics(f"seed-0/{method}") if "loss" in line]
    lost = [line["step"] - 1 for line in told if math.isnan(line["loss"])]
    assert 0 < len(lost) < 12 and told[-1]["lost_steps"] == len(lost)
    of_a_step = {"stage", "step", "seconds", "loss", "rows", "queries", "dropped", "lost_steps", "lost_rows"}
    assert all(line.keys() <= of_a_step for line in told if math.isnan(line["loss"]))
    if method != "lenient":
        return
    torch.manual_seed(0)
    network = problem.network()
    problem.box.failures = "keep"
    gradient = zo.LossGradient(network, problem.objective, zo.CGE(1e-3), seed=0, max_dropped=1.0)
    optimizer = torch.optim.Adam(network.parameters())
    left_out = []
    for i in range(12):
        falling = 0.5 * (1 + math.cos(math.pi * i / 12))
        optimizer.param_groups[0]["lr"] = problem.config.learning_rate * falling
        optimizer.zero_grad()
        try:
            gradient.backward(problem.data.train(0, i))
        except zo.FailedBatchError:
            left_out.append(i)
        else:
            optimizer.step()
    assert left_out == lost


WRONG = [
    ({"methods": ["tangent"]}, "Did you mean 'tangents'"),
    ({"methods": []}, "at least one method"),
    ({"methods": ["cge", "cge"]}, "every method once"),
    ({"steps": 0}, "steps: expected greater than or equal to 1, got 0"),
    ({"learning_rate": math.nan}, "learning_rate: expected a finite number, got nan"),
    ({"learning_rate": -1.0}, "greater than 0"),
    ({"stepz": 3}, "no setting is named 'stepz'. Did you mean 'steps'"),
    ({"mu": 3.0}, r"no setting is named 'mu'. Write zeroth_order=replace\(Config.zeroth_order, mu=...\)."),
    ({"seeds": 0}, "expected 1 to 10,000 of them, got 0"),
    ({"device": "gpu"}, "'cpu' or 'cuda'"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=[str(settings) for settings, _ in WRONG])
def test_wrong_settings_are_refused_before_a_folder_is_made(tmp_path, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        go(Steering(), tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_a_reference_that_is_cut_from_the_graph_is_refused(tmp_path):
    class Cut(Steering):
        def reference(self, z):
            return super().reference(z.detach())

    with pytest.raises(ProblemError, match="cut from the graph"):
        go(Cut(), tmp_path, methods=["first-order"])


def test_first_order_needs_a_reference(tmp_path):
    class None_(Steering):
        reference = None

    with pytest.raises(ConfigurationError, match="reference"):
        go(None_(), tmp_path, methods=["first-order"])


def off_by(error):
    class Off(Steering):
        def reference(self, z):
            return super().reference(z) + error * (z.detach() > 0)

    return Off()


def test_a_reference_with_other_values_than_the_box_is_refused(tmp_path):
    with pytest.raises(
        ProblemError, match=r"expected the box's values, got .* for 'y' in row \d, where the box"
    ) as told:
        go(off_by(0.1), tmp_path, methods=["first-order"])
    theirs, own = re.findall(r"-?\d\.\d+", str(told.value))[:2]
    assert float(theirs) - float(own) == pytest.approx(0.1, abs=1e-5)


def test_a_reference_that_is_a_little_off_is_told_and_trains(tmp_path):
    with pytest.warns(ProblemWarning, match="expected the box's values"):
        run = go(off_by(1e-6), tmp_path, methods=["first-order"])
    assert run.result.table[0].value is not None
    assert (
        run.result.table[0].extra["rows of validation"] == 4 * 6 * 2 + 2 * 5 * 2
    )  # the box was asked again, for its noise


def test_a_reference_is_not_told_from_a_noisy_box_by_its_noise(tmp_path):
    class Noisy(Mixed):
        def evaluate(self, z):
            self.draws = getattr(self, "draws", None) or torch.Generator().manual_seed(0)
            return super().evaluate(z) + 1e-3 * torch.randn(3, generator=self.draws).numpy()

    class Through(Steering):
        def box(self):
            return Noisy()

    go(Through(), tmp_path, methods=["first-order"])  # warnings are errors here


def test_comparing_a_reference_changes_no_bit_of_the_training(tmp_path):
    class Drops(Steering):
        def network(self):
            return torch.nn.Sequential(super().network(), torch.nn.Dropout(0.3))

    def plain(setup):
        reference = {setup.problem.box: setup.problem.reference}
        return setup.descend(tasks.methods.AutogradGradient(setup.network, setup.objective, reference))

    class Unchecked(Drops):
        methods = {"plain": tasks.methods.Method("As first-order, with nothing compared.", plain)}  # noqa: RUF012

    checked = go(Drops(), tmp_path / "1", methods=["first-order"])
    unchecked = go(Unchecked(), tmp_path / "2", methods=["plain"])
    assert torch.equal(weights(checked.network("first-order")), weights(unchecked.network("plain")))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("part", ["box", "network", "data", "objective"])
def test_a_missing_part_is_named(tmp_path, part):
    have = {name: getattr(Steering, name) for name in ("network", "objective")}
    have |= {name: Steering.__dict__[name].method for name in ("box", "data")}
    have.pop(part)
    kind = type("Partial", (tasks.Problem,), {**have, "Config": Steering.Config})
    with pytest.raises(ProblemError, match=part):
        go(kind(), tmp_path, methods=["cge"])


def test_of_a_parent_box_and_data_are_methods_and_are_made_once():
    made = []

    class Counted(Steering):
        def box(self):
            made.append("box")
            return Budgeted(super().box(), 7)

        def data(self):
            made.append("data")
            return replace(super().data(), validation=None)

    problem = Counted()
    assert problem.box is problem.box and problem.box.rows == 7
    assert problem.data is problem.data and problem.data.validation is None
    assert torch.equal(problem.data.test, Steering().data.test) and made == ["box", "data"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("box", lambda kind, self: super(kind, self).box),
        ("box", lambda kind, self: super(kind, self).box.inputs),
        ("data", lambda kind, self: super(kind, self).data),
        ("data", lambda kind, self: super(kind, self).data.test),
    ],
)
def test_a_parent_s_box_or_data_without_brackets_is_told_to_have_them(name, body):
    kind = type("Bare", (Steering,), {name: lambda self: body(kind, self)})
    with pytest.raises(ProblemError, match=rf"super\(\)\.{name}\(\)"):
        getattr(kind(), name)


def test_a_run_changes_nothing_of_the_problem_that_it_is_given(tmp_path):
    problem = Steering(methods=("first-order",))
    before = dict(vars(problem))
    run = go(problem, tmp_path, rows=100)
    assert vars(problem) == before and run.problem is not problem
    assert run.problem.config.steps != problem.config.steps  # which follow from the budget


@pytest.mark.parametrize("part", ["evaluate", "objective"])
def test_data_that_a_problem_writes_to_are_refused(tmp_path, part):
    """Else the methods behind are judged by other rows than the first."""

    class Writes(Steering):
        def objective(self, network, wanted):
            if part == "objective":
                wanted *= 0.5
            return super().objective(network, wanted)

        def evaluate(self, network):
            if part == "evaluate":
                self.data.test[0] *= 0.5
            return super().evaluate(network)

    with pytest.raises(ProblemError, match=rf"Writes\.{part}: .*shape \(8, 3\) that was written to"):
        go(Writes(), tmp_path, methods=["none", "no-gradient"])


def test_a_training_batch_that_is_written_to_is_refused(tmp_path):
    """A batch that the problem cuts out of its data by itself is these data."""

    class Writes(Steering):
        def data(self):
            data, rows = super().data(), torch.rand(40, 3, dtype=torch.float64)
            return replace(data, train=lambda seed, step: rows[5 * (step % 8) :][:5])

        def objective(self, network, wanted):
            if network.training:
                wanted -= 0.1
            return super().objective(network, wanted)

    for method in ("row-rge", "first-order"):  # others look at the batch themselves
        with pytest.raises(ProblemError, match=r"Writes\.objective: .*shape \(5, 3\) that was written to"):
            go(Writes(), tmp_path, methods=[method])


def test_a_network_that_is_given_twice_is_refused(tmp_path):
    """Else a method begins with the weights that the one before has trained."""
    first = Steering().network()

    class Shared(Steering):
        def network(self):
            return torch.nn.Sequential(first, torch.nn.Linear(3, 3, dtype=torch.float64))

    class Frozen(Shared):
        def network(self):
            network = super().network()
            network[0].requires_grad_(False)
            return network

    with pytest.raises(ProblemError, match=r"Shared\.network: expected a new network each time"):
        go(Shared(), tmp_path, methods=["none", "cge"], steps=1)
    go(Frozen(), tmp_path, methods=["none"], seeds=2)


def test_settings_that_no_method_of_a_run_reads_are_said(tmp_path):
    """Else `--mu` beside row-rge, whose own step is `--input-mu`, would seem to do something."""
    wider = ZerothOrder(mu=0.1)
    with pytest.warns(ProblemWarning, match=r"--mu does nothing here: .*, rge read it alone, not row-rge"):
        go(Steering(), tmp_path, methods=["row-rge"], zeroth_order=wider, steps=1)
    with pytest.warns(ProblemWarning, match=r"--rates does nothing here: population reads it alone, not cge"):
        go(Steering(), tmp_path, methods=["cge"], rates=(1.0, 2.0), steps=1)

    class Usual(Steering):
        @dataclass(frozen=True)
        class Config(Steering.Config):
            zeroth_order: ZerothOrder = wider
            surrogate: bool = True  # which the problem itself may read

    class Own(Steering):
        methods: ClassVar = {"mine": METHODS["none"]}

    with warnings.catch_warnings():
        warnings.simplefilter("error", ProblemWarning)
        go(Usual(), tmp_path, methods=["none"])
        go(Usual(), tmp_path, methods=["none"], surrogate=False)
        go(Own(), tmp_path, methods=["mine"], zeroth_order=wider)


def test_settings_that_some_methods_read_alone_are_settings_and_their_readers_methods():
    settings = flat(to_dict(tasks.Config()))
    assert by_name.READ_BY.keys() <= settings.keys()
    assert {reader for readers in by_name.READ_BY.values() for reader in readers} <= METHODS.keys()
    of_values = {name for name in settings if name.startswith("zeroth_order.")}
    assert of_values <= by_name.READ_BY.keys()


def test_the_one_network_of_a_run_may_be_the_problems_own(tmp_path):
    class Kept(Steering):
        def __eq__(self, other):  # so that it has no hash
            return self is other

        @functools.cached_property
        def first(self):
            return super().network()

        def network(self):
            return self.first

    run = go(Kept(), tmp_path, methods=["none"])
    assert isinstance(run.network("none"), torch.nn.Module)


def test_one_loss_for_the_whole_batch_is_refused(tmp_path):
    class Mean(Steering):
        def objective(self, network, wanted):
            return super().objective(network, wanted).mean()

    with pytest.raises(Exception, match=r"one floating loss per row"):
        go(Mean(), tmp_path, methods=["no-gradient"])


def test_a_box_that_is_none_is_named(tmp_path):
    class Plain(Steering):
        def box(self):
            return lambda z: z

    with pytest.raises(ProblemError, match="BlackBoxFunction"):
        go(Plain(), tmp_path)


def test_boxes_that_are_compared_by_their_values_are_refused(tmp_path):
    @dataclass
    class Compared(BlackBoxFunction):
        scale: float = 2.0
        inputs = (ArraySpec("x", (2,)),)
        outputs = (ArraySpec("y", (2,)),)

        def evaluate_rows(self, x):
            return self.scale * x

    class Plain(Steering):
        def box(self):
            return Compared()

    with pytest.raises(ProblemError, match=r"dataclass\(eq=False\)"):
        go(Plain(), tmp_path)


def test_a_box_that_nothing_stands_in_for_refuses_a_gradient():
    """Its part would be missing from the gradient of methods by autograd, without a word."""
    problem, other = Steering(), Steering().box
    network, batch = problem.network(), problem.data.train(0, 0)

    def objective(network, wanted):
        return problem.objective(network, wanted) + other(network(wanted)).square().mean(dim=1)

    stand = zo.differentiable(problem.box, zo.CGE(mu=1e-3))
    gradient = tasks.methods.AutogradGradient(network, objective, {problem.box: stand})
    with pytest.raises(NotDifferentiableError, match="cut from the graph"):
        gradient.backward(batch)
    assert all(weight.grad is None for weight in network.parameters())


def test_batches_in_the_place_of_what_gives_them_are_refused():
    with pytest.raises(ProblemError, match=r"Data\.split"):
        tasks.Data(torch.zeros(4, 2))
    with pytest.raises(ConfigurationError, match="runs="):
        tasks.run(Steering(), folder="here")


def test_a_method_of_ones_own(tmp_path):
    def signs(setup):
        gradient = tasks.methods.AutogradGradient(
            setup.network, setup.objective, {setup.problem.box: lambda z: (z @ MATRIX.T).tanh()}
        )
        optimizer = torch.optim.SGD(setup.network.parameters())
        return setup.descend(gradient, optimizer=optimizer, rate=lambda step: 0.1)

    class Own(Steering):
        methods = {"signs": tasks.methods.Method("Descends along exact gradients.", signs)}  # noqa: RUF012

    run = go(Own(), tmp_path, methods=["none", "signs"])
    start, end = (row.value for row in run.result.table)
    assert end is not None and start is not None and end < start


def test_data_is_split_without_overlap_and_batches_are_the_same_whenever_asked():
    rows = torch.arange(20.0)
    data = tasks.Data.split((rows, rows + 100), batch=4, validation=5, test=6)
    assert data.validation[0].tolist() == list(range(9, 14)) and data.test[1].tolist() == list(
        range(114, 120)
    )
    seen = {value for step in range(200) for value in data.train(3, step)[0].tolist()}
    assert seen == set(range(9))
    assert torch.equal(data.train(1, 5)[0], data.train(1, 5)[0])
    index = torch.randint(9, (4,), generator=Key(1, 5).generator())
    assert torch.equal(data.train(1, 5)[0], rows[index])
    with pytest.raises(ConfigurationError, match="held out"):
        tasks.Data.split(rows, batch=4, validation=12, test=8)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda _: None, r"Made.data: expected tasks.Data\(...\), got NoneType. Return tasks.Data.split"),
        (lambda _: (torch.rand(9, 3), torch.rand(9, 3)), "Made.data: expected .* got tuple"),
        (lambda _: tasks.Data(lambda seed, step: None), "tensors that have their rows first, got None"),
        (
            lambda _: tasks.Data.split(torch.rand(9, 3), batch=2, test=-3),
            "test: expected a whole number >= 0",
        ),
        (lambda _: tasks.Data.split(torch.rand(9, 3), batch=0), "batch: expected a whole number >= 1"),
        (
            lambda _: tasks.Data.split(torch.rand(59, 3), batch=100_000, validation=4, test=7),
            r"batch: expected at most the 48 rows to train on, got 100,000. Lower it \(--batch, in Python",
        ),
    ],
)
def test_data_that_are_none_are_one_sentence(tmp_path, data, words):
    made = type("Made", (Steering,), {"data": data})
    with pytest.raises((ProblemError, ConfigurationError, ObjectiveError), match=words):
        go(made(), tmp_path)


def test_settings_of_ones_own_and_what_differs_is_in_the_repr():
    assert repr(Steering(calls=3)) == "Steering(calls=3)"
    assert Steering(calls=3).config.calls == 3 and Steering.name() == "steering"

    class ReactionDiffusion(Steering):
        @dataclass(frozen=True)
        class Config(Steering.Config):
            width: Count = 4

    assert ReactionDiffusion.name() == "reaction-diffusion"
    with pytest.raises(ConfigurationError, match="width"):
        ReactionDiffusion(width=0)


def test_boxes_get_a_budget_and_keep_failed_rows(tmp_path):
    problem = Steering(rows=10**6, methods=("none",))
    go(problem, tmp_path)
    assert isinstance(problem.box, BlackBoxFunction)
    assert not isinstance(problem.box, Budgeted)  # a run works on an object of its own


def test_a_run_is_gone_on_with_by_its_own_problem_and_seeds(tmp_path):
    folder = go(Steering(), tmp_path, methods=["none"]).path
    with pytest.raises(RunFolderError, match="expected a run of beside, got one of steering"):
        go(Beside(), tmp_path, methods=["none"], resume=folder)
    with pytest.raises(RunFolderError, match=r"got others: seeds \[0\] \(now \[0, 1, 2\]\)"):
        go(Steering(), tmp_path, methods=["none"], resume=folder, seeds=3)
    assert go(Steering(), tmp_path, methods=["none"], resume=folder, seeds=1).path == folder
    terms = Terms(
        "steering", "own", tasks.Config(), [0], script=str(tmp_path / "mine.py")
    )  # as those of `own_run`
    own = Run.create(tmp_path, terms)
    with pytest.raises(RunFolderError, match="got one of a script with a loop of its own"):
        go(Steering(), tmp_path, resume=own.path, rows=10)


def test_methods_whose_checkpoints_would_be_one_are_refused(tmp_path):
    class Signs(Steering):
        methods: ClassVar = {"Signs": METHODS["none"], "signs": METHODS["cge"], "si-gns": METHODS["cge"]}

    with pytest.raises(ConfigurationError, match="got 'Signs' and 'signs', whose checkpoints would be one"):
        go(Signs(), tmp_path, methods=["Signs", "si-gns", "signs"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_nothing_is_trained_in_a_finished_run_whose_checkpoints_are_gone(tmp_path):
    run = go(Steering(), tmp_path, methods=["none", "cge"])
    for path in (run.path / "checkpoints").glob("*cge*"):
        path.unlink()
    before = (run.path / "metrics.jsonl").read_bytes()
    assert weights(run.network("none")).isfinite().all()
    with pytest.raises(CheckpointError, match="expected the checkpoint of seed-0/cge, which"):
        run.network("cge")
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert not list((run.path / "checkpoints").glob("*cge*"))


def test_figures_are_kept_as_plain_numbers_and_a_name_is_a_text(tmp_path):
    class Figures(Steering):
        def evaluate(self, network):
            numbers = {"error": np.float32(0.5), "converged": True, "flag": np.bool_(False), "n": np.int64(3)}
            return {**numbers, "t": torch.tensor(2.5), "field": torch.ones(3, dtype=torch.bfloat16)}

    run = go(Figures(), tmp_path, methods=["none"])
    extra = tasks.load(run.path).result.table[0].extra
    assert {name: extra[name] for name in ("converged", "flag", "n", "t")} == {
        "converged": 1, "flag": 0, "n": 3, "t": 2.5,
    }  # fmt: skip
    assert run.fields("none")["field"].tolist() == [1.0, 1.0, 1.0]

    class Numbered(Steering):
        def evaluate(self, network):
            return {0: 1.0}

    with suppress_type_checks(), pytest.raises(ProblemError, match="expected names that are texts, got 0"):
        go(Numbered(), tmp_path, methods=["none"])


@pytest.mark.parametrize("seeds", [[0.5, 1.5], ["0"], []])
def test_seeds_that_are_no_whole_numbers_are_refused_before_a_folder_is_made(tmp_path, seeds):
    with suppress_type_checks(), pytest.raises(ConfigurationError, match="seeds: expected"):
        go(Steering(), tmp_path, methods=["none"], seeds=seeds)
    assert not list(tmp_path.iterdir())


def test_a_class_of_the_same_name_elsewhere_does_not_go_on_with_a_run(tmp_path):
    folder = go(Steering(), tmp_path, methods=["none"]).path
    namesake = type("Steering", (Steering,), {"__module__": Beside.__module__, "__qualname__": "Another"})
    with pytest.raises(RunFolderError, match=r"that it was begun with, .*:Steering, got"):
        go(namesake(), tmp_path, methods=["none"], resume=folder)


def test_a_report_of_one_block_without_its_list_is_said(tmp_path):
    class Single(Steering):
        def report(self, found):
            return html_report.Heading("Mine")

    with pytest.raises(ProblemError, match="expected a list of blocks"):
        go(Single(), tmp_path, methods=["none"])


@pytest.mark.slow
def test_threads_of_a_process_train_one_after_the_other_from_their_own_first_weights(tmp_path):
    alone = [go(Steering(), tmp_path / "alone", methods=["none"], seeds=[seed]) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda seed: go(Steering(), tmp_path, methods=["none"], seeds=[seed]), (0, 1)))
    for one, other in zip(alone, both, strict=True):
        assert one.result.table[0].value == other.result.table[0].value


def test_a_finished_run_of_a_class_made_in_a_function_is_loaded_without_its_code(tmp_path):
    class Inner(Steering):
        pass

    run = go(Inner(), tmp_path, methods=["none"])
    assert tasks.load(run.path).table["test loss"].tolist() == run.table["test loss"].tolist()


class Forgetful(Steering):
    """Its objective ends without `return`."""

    def objective(self, network, wanted):  # pyright: ignore[reportIncompatibleMethodOverride]
        super().objective(network, wanted)


class Plain(Steering):
    """Its objective returns something that is no tensor."""

    def objective(self, network, wanted):  # pyright: ignore[reportIncompatibleMethodOverride]
        return float(super().objective(network, wanted).mean())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("kind", "words"), [(Forgetful, "None. .*`return`"), (Plain, "float.*item")])
@pytest.mark.parametrize("method", ["none", "first-order", "cge", "tangents"])
def test_an_objective_that_returns_no_losses(tmp_path, method, kind, words):
    with (
        suppress_type_checks(),
        pytest.raises((tasks.errors.ProblemError, ObjectiveError), match=f"objective: .*got {words}"),
    ):
        go(kind(), tmp_path, methods=(method,))


def test_identity_of_a_box_without_an_output_that_follows_is_refused_before_a_row(tmp_path):
    class Sums(BlackBoxFunction):
        inputs = (ArraySpec("z", shape=(3,)),)
        outputs = (ArraySpec("y", shape=(1,)),)

        def evaluate_rows(self, z):
            return z.sum(axis=1, keepdims=True)

    class Summed(Steering):
        def box(self):
            return Sums()

        def objective(self, network, batch):
            return self.box(network(batch)).square()[:, 0]

    run = go(Summed(), tmp_path, methods=["identity", "cge"])
    line = run.result.table[0]
    assert "z (3,) -> y (1,)" in line.extra["not applicable"] and line.rows == 0


@pytest.mark.parametrize(
    ("answers", "loss"),
    [
        ([[0.25, 0.75], [1.0, 0.0]], "kl"),
        ([[0.33, 0.33, 0.33], [math.nan] * 3, [0.1, 0.2, 0.7]], "kl"),  # rounded, and a row that failed
        ([[0.0, 1.0], [1.0, 0.0]], "labels"),
        ([[0.5, 0.9], [0.1, 0.2]], "squared"),
        ([[-0.5, 1.5]], "squared"),
        ([[1.0], [1.0]], "squared"),
        ([1.0, 0.0], "squared"),
    ],
)
def test_a_student_learns_by_the_loss_that_suits_the_answers(answers, loss):
    assert student_loss([torch.tensor(answers)]) == loss
    assert student_loss([torch.tensor(answers)] * 2) == "squared"


def test_evaluate_and_validate_have_the_network_in_evaluation_mode(tmp_path):
    """Dropout is off in both, running statistics stay, and training goes on in its mode."""
    modes: dict[str, set[bool]] = {"evaluate": set(), "validate": set(), "objective": set()}

    class Own(Steering):
        def network(self):
            return torch.nn.Sequential(torch.nn.Dropout(0.1), *super().network())

        def objective(self, network, wanted):
            modes["objective"].add(network.training)
            return super().objective(network, wanted)

        def validate(self, network):
            modes["validate"].add(network.training or network[0].training)
            return 1.0

        def evaluate(self, network):
            modes["evaluate"].add(network.training or network[0].training)
            return {"error": 1.0}

    tasks.run(
        Own(steps=2, validate_every=1), methods=("none", "first-order"), runs=tmp_path, progress=Progress()
    )
    assert modes["evaluate"] == modes["validate"] == {False}
    assert True in modes["objective"]


def test_a_layer_that_merges_weights_for_evaluation_trains_on_after_it():
    """Adapters of low rank do so in their own `train`."""

    class Merging(torch.nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    network = torch.nn.Sequential(Merging(2, 2), torch.nn.Dropout(0.5))
    network[1].eval()
    with evaluating(network):
        assert network[0].merged and not network[0].training
    assert not network[0].merged and network[0].training
    assert not network[1].training and network.training
