"""A figure stands beside the test rows that it is of, and a difference within their chance is no win."""

import json
import math
from dataclasses import replace
from html import unescape
from statistics import fmean

import pytest
import torch

import tasks
from tasks import Row, report
from tasks.folder import checkpoint
from tasks.folder.result import Result
from tasks.problem.trained import TrainingOutcome
from tasks.report import lead
from tasks.report.compare import compare
from tests.tasks.made_runs import made
from tests.tasks.problems import Steering

FOUR = [1.0, 2.0, 3.0, 6.0]  # mean 3; squares 4 + 1 + 0 + 9 = 14, so the error is sqrt(14 / 3) / 2 = 1.0801


def of_rows(root, by_row, **settings):
    """A run whose figures are the means of the rows by method."""
    values = {method: fmean(numbers) for method, numbers in by_row.items()}
    return made(root, values, by_row=by_row, **settings)


def told(run):
    return " ".join(lead.sentences(Result.read(run.path)))


def test_a_line_has_the_mean_of_its_rows_with_their_count_and_standard_error():
    line = Row.of(TrainingOutcome("seed-0/mine"), {"error": tasks.RowMean([*FOUR, math.nan])})
    assert (line.value, line.test_rows, line.failed) == (3.0, 4, {"error": 1})
    assert line.standard_error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert line.by_row == (*FOUR, None)
    one = Row.of(TrainingOutcome("seed-0/mine"), {"error": tasks.RowMean([2.0])})
    assert (one.test_rows, one.standard_error) == (1, None)
    number = Row.of(TrainingOutcome("seed-0/mine"), {"error": 2.0})
    assert (number.test_rows, number.standard_error, number.by_row) == (None, None, ())


def test_a_run_keeps_the_rows_of_its_test_and_shows_them_in_all_outputs(tmp_path, capsys):
    run = tasks.run(Steering(), methods=["none", "first-order"], steps=2, runs=tmp_path)
    run.show()
    printed, page = capsys.readouterr().out, unescape(run.report.read_text(encoding="utf-8"))
    for line in run.result.table:
        losses = run.problem.losses(run.network(line.method), run.problem.data.test)
        error = float(losses.std() / len(losses) ** 0.5)
        assert (line.test_rows, line.standard_error) == (len(losses), pytest.approx(error))
        assert torch.allclose(torch.tensor(line.by_row, dtype=torch.double), losses)
        known = run.table.set_index("method").loc[line.method]
        assert (known["test rows"], known["standard error"]) == (line.test_rows, line.standard_error)
        (cell,) = report.shown(run.result).set_index("method").loc[[line.method], "test loss"]
        value, _, rest = cell.partition(" ± ")
        assert float(value) == pytest.approx(line.value, abs=error)
        assert float(rest.split()[0]) == pytest.approx(error, rel=0.06)  # to two digits
        assert rest.endswith(f" ({len(losses)} rows)")
        table = (run.path / "table.md").read_text(encoding="utf-8")
        assert all(cell in text for text in (printed, table, page))
    assert all("± is the standard error over test rows." in text for text in (printed, table, page))
    assert f"on {len(losses)} test rows" in page


def test_one_number_of_a_problems_own_has_the_count_of_the_test_data_alone(tmp_path):
    class Own(Steering):
        def evaluate(self, network):
            return {"error": float(self.losses(network, self.data.test).mean())}

    run = tasks.run(Own(), methods=["none"], runs=tmp_path)
    (line,) = run.result.table
    assert (line.test_rows, line.standard_error) == (len(run.problem.data.test), None)
    (shown,) = report.shown(run.result)["error"].tolist()
    assert shown == f"{line.value:.4g} ({line.test_rows} rows)"
    assert "±" not in (run.path / "table.md").read_text(encoding="utf-8")


def test_digits_are_those_that_the_standard_error_supports(tmp_path):
    shown = {
        "3.0 ± 1.1 (4 rows)": FOUR,
        "3000 ± 1100 (4 rows)": [1000 * value for value in FOUR],
        "0.0300 ± 0.0108 (4 rows)": [0.01 * value for value in FOUR],
        "1.177 (1 row)": [1.1769],
    }
    run = of_rows(tmp_path, {f"m{place}": rows for place, rows in enumerate(shown.values())})
    cells = report.shown(Result.read(run.path))["test loss"].tolist()
    assert cells == [cell.replace("0.0300 ± 0.0108", "0.030 ± 0.011") for cell in shown]


def test_within_the_chance_of_the_test_rows_no_method_is_said_to_win(tmp_path):
    """Differences row by row are 1, -1, 1, 0: mean .25, standard error sqrt(2.75 / 3) / 2 = .48."""
    run = of_rows(tmp_path, {"none": [9.0, 9.5, 9.2, 9.1], "a": FOUR, "b": [2.0, 1.0, 4.0, 6.0]}, rows=300)
    said = told(run)
    assert "By test loss 4 test rows do not tell these apart: a has 3.0 ± 1.1, b has 3.2 ± 1.1; " in said
    assert "the untrained start has 9.20 ± 0.11." in said
    assert "has the lowest" not in said
    assert "take a larger --rows, of which the test takes one in thirty, or" in said
    assert 'run.problem.losses(run.network("a"), rows)' in said
    page = unescape(report.write(run).read_text(encoding="utf-8"))
    assert page.count('<tr class="emphasised">') == 2  # neither stands out


def test_what_is_always_a_little_better_on_the_same_rows_is_told_apart(tmp_path):
    """Both have an error of 1.1 on their own; the differences are .1, .2, .1, .2."""
    better = [value - less for value, less in zip(FOUR, (0.1, 0.2, 0.1, 0.2), strict=True)]
    said = told(of_rows(tmp_path, {"a": FOUR, "b": better}))
    assert said.startswith("b has the lowest test loss on 4 test rows, 2.9 ± 1.1.")
    # squares 1.95, 1.05, .05, 2.95 off the mean 2.85: sqrt(13.61 / 3) / 2 = 1.065, of 2.85
    assert "The test loss of b is uncertain: its standard error over 4 test rows is 37% of it." in said


def test_where_rows_are_not_the_same_a_difference_has_to_be_five_standard_errors(tmp_path):
    for far, apart in ((5.0, False), (6.5, True)):  # errors: 1.08 each of 4 and of 8 rows, 1.1 in all
        run = of_rows(tmp_path, {"a": FOUR, "b": [3.0 + far] * 8})
        assert ("a has the lowest" in told(run)) == apart


def test_a_method_that_fails_on_hard_rows_is_not_called_the_best(tmp_path):
    """It is half a unit worse on each row that both have, and better in the mean of its own rows."""
    easy, hard = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9], [5.0, 5.5, 4.5]
    values = {"a": fmean(easy) + 0.5, "b": fmean([*easy, *hard])}
    rows = {"a": [*(value + 0.5 for value in easy), *[math.nan] * len(hard)], "b": [*easy, *hard]}
    said = told(made(tmp_path, values, by_row=rows))
    assert values["a"] < values["b"]
    assert "has the lowest" not in said and "do not tell these apart" in said


def test_a_handful_of_rows_has_to_differ_by_more(tmp_path):
    """Differences of 2 and 4: mean 3, standard error 1; of 32 such rows it is .18."""
    for pairs, apart in ((1, False), (16, True)):
        run = of_rows(tmp_path, {"a": [1.0, 1.0] * pairs, "b": [3.0, 5.0] * pairs})
        assert ("a has the lowest" in told(run)) == apart


def test_one_test_row_tells_nothing_apart(tmp_path):
    said = told(of_rows(tmp_path, {"none": [2.0], "a": [1.0]}))
    assert "By test loss 1 test row does not tell these apart: a has 1, the untrained start has 2." in said


def test_harm_and_the_use_of_the_gradient_are_no_more_certain_than_the_test(tmp_path):
    start, worse = [1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 4.0]
    run = of_rows(tmp_path, {"none": start, "a": worse, "b": [9.0, 9.5, 9.0, 9.5]})
    assert "Worse than the untrained start (2.50 ± 0.65): b (9.25 ± 0.14)." in told(run)
    run = of_rows(tmp_path, {"none": [9.0, 9.5, 9.0, 9.5], "no-gradient": worse, "tangents": start})
    assert "a difference that is not distinguishable from chance with 4 test rows." in told(run)


def test_with_several_seeds_the_spread_stays_and_the_rows_error_has_a_column(tmp_path):
    run = made(tmp_path, {"a": [2.0, 4.0], "b": [20.0, 21.0]}, seeds=(0, 1), by_row={"a": FOUR, "b": FOUR})
    first, _ = report.shown(Result.read(run.path)).to_dict("records")
    assert (first["test loss"], first["standard error"]) == ("3.0 ± 1.4 (4 rows)", "1.1")
    said = "± is the standard deviation of 2 seeds. The standard error is that over test rows, which all"
    assert said in lead.doubts(Result.read(run.path))[0]


def test_a_folder_without_these_numbers_still_reports(tmp_path):
    run = tasks.run(Steering(), methods=["none", "first-order"], steps=2, runs=tmp_path)
    path = run.path / "result.json"
    content = json.loads(path.read_text())
    for line in content["table"]:
        for name in ("test_rows", "standard_error", "by_row"):
            del line[name]
    path.write_text(json.dumps(content))
    old = tasks.load(run.path)
    assert [line.value for line in old.result.table] == [line.value for line in run.result.table]
    text = report.write(old._run, old.problem).read_text(encoding="utf-8")
    assert "has the lowest test loss, " in text and "±" not in text
    for evaluation in (run.path / "evaluations").iterdir():
        kept = checkpoint.load(evaluation)
        del kept["by_row"]
        checkpoint.save(evaluation, kept)
    path.unlink()  # as if it was stopped just before its end
    resumed = tasks.run(Steering(), methods=["none", "first-order"], steps=2, resume=run.path)
    assert [line.by_row for line in resumed.result.table] == [(), ()]


def test_a_resumed_run_has_the_same_rows(tmp_path):
    run = tasks.run(Steering(), methods=["none", "first-order"], steps=2, runs=tmp_path)
    (run.path / "result.json").unlink()
    resumed = tasks.run(Steering(), methods=["none", "first-order"], steps=2, resume=run.path)
    for before, now in zip(run.result.table, resumed.result.table, strict=True):
        assert replace(now, seconds=before.seconds, ledger=before.ledger) == before


def test_runs_side_by_side_say_what_the_error_is(tmp_path):
    one, other = (of_rows(tmp_path, {"a": FOUR}) for _ in range(2))
    side = compare([one.path, other.path], tmp_path / "compare.html")
    assert side.figures["A"].tolist() == ["3.0 ± 1.1 (4 rows)"]
    assert "With one seed ± is the standard error over test rows." in side.caption
