import json
import math
import re
import shutil
from dataclasses import replace
from html import unescape

import pytest
import torch
from matplotlib.image import imread

import tasks
from tasks import Progress, Run, report
from tasks.configuration import ZerothOrder, names
from tasks.errors import ProblemError, RunFolderError
from tasks.folder.result import Result
from tasks.problem import problems
from tasks.report import Details, Heading, Paragraph, Table, findings, lead, pictures, plots, run_tables
from tasks.report.compare import compare
from tasks.report.method_scores import with_error
from tests.tasks.made_runs import TWELVE, from_elsewhere, made
from tests.tasks.problems import Steering
from tests.tasks.test_html_report import EVIL, read


@pytest.fixture
def pens(drawing):
    """Pictures are drawn, which warns where something is not finite or does not fit."""
    with drawing():
        yield


def told(run):
    return " ".join(lead.sentences(Result.read(run.path)))


def page(run, problem=None):
    return unescape(report.write(run, problem).read_text())


class Shown(Steering):
    """Draws a picture and says something of its own."""

    def evaluate(self, network):
        return {"test loss": 0.5, "reach": 2.0, "field": network(self.data.test)}

    def pictures(self, fields):
        figure, axes = pictures.figure()
        for method, arrays in fields.items():
            axes[0, 0].plot(arrays["field"][:, 0], color=pictures.colour(method))
        return {f"First component {EVIL}": figure}

    def report(self, found):
        made = Table(["a", "b"], [(1, "x"), (2.5, None)], "own", [0], prose=True)
        blocks = [
            Paragraph(f"All {EVIL}"),
            made,
            Details("More", {"deep": {"a": [1, 2]}}, True),
        ]
        return [*super().report(found), Heading("Mine"), *blocks]


def shown_run(tmp_path):
    return tasks.run(Shown(), methods=["none", "first-order"], runs=tmp_path, progress=Progress())


def test_the_report_of_a_run_says_what_came_out(tmp_path, pens):
    run = tasks.run(Steering(), seeds=2, runs=tmp_path, progress=Progress())
    text = unescape(run.report.read_text())
    read(run.report.read_text())  # tags are balanced
    assert Steering.about() in text
    means = run.table.groupby("method")["test loss"].mean()
    (best,) = re.findall(r"([\w ,-]+) ha(?:s|ve) the lowest test loss", text)  # more than one, if shown alike
    assert means.idxmin() in re.split(", | and ", best.strip())
    assert "No row failed in training." in text
    assert (run.path / "curves.png").is_file()
    assert imread(run.path / "curves.png").ndim == 3


@pytest.mark.filterwarnings("ignore:.*does nothing here:tasks.errors.ProblemWarning")
def test_settings_that_differ_from_the_defaults_come_first(tmp_path):
    problem = Steering(calls=1, zeroth_order=ZerothOrder(mu=0.5))
    run = tasks.run(problem, methods=["none"], runs=tmp_path, progress=Progress())
    first, rest = unescape(run.report.read_text()).split("All other settings")
    for name, here, default in (
        ("calls", "1", "2"),
        ("zeroth_order.mu", "0.5", "0.001"),
        ("methods", "none", "none, first-order, cge"),
    ):
        cells = {"setting": name, "here": here, "default": default}
        row = "".join(f'<td data-head="{head}">{cell}</td>' for head, cell in cells.items())
        assert f"<tr>{row}</tr>" in first
        assert f"<dt>{name}</dt>" not in rest
    assert "<dt>steps</dt><dd>6</dd>" in rest


def test_the_best_method_and_what_it_costs_against_first_order(tmp_path):
    rows = {"tangents": 900, "cge": 5000, "first-order": 300}
    run = made(tmp_path, {"none": 4.0, "tangents": 0.5, "cge": 0.7, "first-order": 0.4}, rows_of=rows)
    assert told(run).startswith(
        "first-order has the lowest test loss, 0.4; the untrained start has 4. First order, with the box's "
        "derivative, has 0.4; without it tangents is the best, 0.5, with 900 rows in training, 3 times first "
        "order's."
    )
    run = made(tmp_path, {"none": 4.0, "cge": 0.3, "first-order": 0.4}, rows_of=rows)
    assert "cge is the best, 0.3, with 5,000 rows in training, 17 times first order's" in told(run)
    assert "This is one seed" in told(run)


def test_a_method_of_a_users_own_has_the_part_in_the_report_that_it_declares(tmp_path):
    roles = {"start": "none", "cut": "no-gradient", "exact": "first-order"}
    said = told(made(tmp_path, {"start": 4.0, "cut": 0.3, "tangents": 0.5, "exact": 0.4}, roles=roles))
    assert "the untrained start has 4." in said
    assert "First order, with the box's derivative, has 0.4; without it cut is the best" in said
    assert "No method does better than cut (cut 0.3, exact 0.4)" in said


def test_higher_may_be_better(tmp_path):
    values = {"none": 10.0, "rge": 91.0, "cge": 93.0, "student": 9.0}
    run = made(tmp_path, values, metric="accuracy", unit="%", higher_is_better=True)
    assert "cge has the highest accuracy, 93 %; the untrained start has 10 %." in told(run)
    assert "Worse than the untrained start (10 %): student (9 %)." in told(run)
    assert re.search(r'<tr class="emphasised"><td>cge</td>', page(run))


@pytest.mark.parametrize("mean", [1279471.95, -259127886.7, 5.43219e-5, 0.026176294, 253.33762])
@pytest.mark.parametrize("share", [0.5, 1e-2, 1e-4, 3e-6])
def test_a_mean_is_shown_as_finely_as_its_spread(mean, share):
    spread = share * abs(mean)
    shown, error = map(float, with_error(mean, spread).split(" ± "))
    assert abs(shown - mean) <= 0.05 * spread  # half a unit of the second digit, which is a tenth at most
    assert error == pytest.approx(spread, rel=0.05)


def test_methods_with_the_same_figure_are_all_named(tmp_path):
    run = made(tmp_path, {"none": 9.0, "student": 7.01751, "tangents": 7.01753, "cge": 8.0}, unit="%")
    said = "student and tangents have the lowest test loss, 7.018 %; the untrained start has 9 %."
    assert said in told(run)
    assert re.findall(r'<tr class="emphasised"><td>(\w+)</td>', page(run)) == ["student", "tangents"]
    values = {"first-order": 0.1, "cge": 0.5, "rge": 0.5, "tangents": 0.5}
    assert "without it cge, rge and tangents are the best, 0.5." in told(made(tmp_path, values))
    run = made(tmp_path, {"cge": 1.0, "none": 1.0})
    assert "No method is better than the untrained start, which has the lowest test loss, 1." in told(run)


def test_what_none_is_stands_beside_the_table_where_it_is_the_network(tmp_path):
    said = "none: the network with its first weights, untrained."
    for extra, there in (({"steps": 0}, True), ({"steps": 0, "weights": 0}, False)):
        run = made(tmp_path, {"none": 1.0, "cge": 0.5}, extra={"none": extra})
        assert (said in page(run)) == there


def test_rows_left_out_of_every_figure_alike_are_one_column(tmp_path):
    for last, heads in ((2, []), (3, ["failed rows of worst"])):
        failed = {"none": {"test loss": 0, "worst": 0}, "cge": {"test loss": 2, "worst": last}}
        run = made(tmp_path, {"none": 1.0, "cge": 0.5}, extra={"cge": {"worst": 1.0}}, failed=failed)
        assert re.findall(r"<th[^>]*>(failed rows[^<]*)", page(run)) == heads
        assert '<th scope="col">rows left out</th>' in page(run)


def test_the_column_of_the_test_says_that_it_counts_box_rows_and_skipped_ones(tmp_path):
    """The lead counts rows that the figure leaves out, which are fewer where a row of data takes several."""
    run = made(tmp_path, {"none": 1.0, "cge": 0.5}, failed={"cge": {"test loss": 7, "the test": 16}})
    text = page(run)
    assert "7 in the test, which the figures leave out" in text
    assert re.search(r"<th[^>]*>failed or skipped in test \(box rows\)</th>", text)
    assert "Skipped rows were not run, since their input was not finite" in text


def test_a_method_that_is_not_applicable_has_neither_weights_nor_rows_left_out(tmp_path):
    refused = {"weights": None, "not applicable": "Nothing to go by."}
    run = made(
        tmp_path, {"none": 1.0, "cge": None}, extra={"cge": refused}, failed={"none": {"test loss": 3}}
    )
    none, cge = run_tables.shown(Result.read(run.path)).to_dict("records")
    assert (none["rows left out"], none["weights"], cge["rows left out"], cge["weights"]) == (
        "3",
        "7",
        "-",
        "-",
    )
    assert cge["rows"] == "200"  # those were run before that was known


def test_what_did_harm_is_said(tmp_path):
    run = made(tmp_path, {"none": 1.0, "rge": 3.0, "cge": 2.0})
    assert "No method is better than the untrained start, which has the lowest test loss, 1." in told(run)
    assert "Worse than the untrained start (1): rge (3), cge (2)." in told(run)


def test_what_is_not_trained_under_another_name_is_what_others_are_measured_by(tmp_path):
    untrained = {"SRC": {"steps": 0}}
    run = made(tmp_path, {"SRC": 2.0, "TAN-SOL": 0.5, "NON": 3.0}, extra=untrained, unit="U")
    assert "TAN-SOL has the lowest test loss, 0.5 U; the untrained SRC has 2 U." in told(run)
    assert "Worse than the untrained SRC (2 U): NON (3 U)." in told(run)
    run = made(tmp_path, {"SRC": 0.2, "TAN-SOL": 0.5}, extra=untrained)
    assert "No method is better than the untrained SRC, which has the lowest" in told(run)


NEEDED = [  # no-gradient, tangents, what is said
    ([1.0, 1.2, 1.1], [1.1, 1.3, 1.2], "the gradient through the box shows no use here"),
    ([1.0, 1.2, 1.1], [0.5, 0.6, 0.55], None),
    # by seed 0.2 better, 0.15 worse, 0.1 better: nothing that three seeds could tell
    ([1.2, 1.0, 1.1], [1.0, 1.15, 1.0], "not distinguishable from the spread over seeds"),
    # always a little better, though seeds are far apart: paired, it is told apart
    ([1.0, 5.0, 9.0], [0.9, 4.9, 8.9], None),
    (
        [1.0, 1.2],
        [0.9, 0.95],
        "not distinguishable from the spread over seeds",
    ),  # 2.3 errors
    ([1.0], [0.99], "not distinguishable from chance with one seed"),
    ([1.0], [0.5], None),
    ([12.0, 12.0, 12.0], [13.0, 13.0, 13.0], None),  # neither has learned anything
]


@pytest.mark.parametrize(("cut", "tangents", "said"), NEEDED)
def test_whether_the_gradient_through_the_box_is_needed(tmp_path, cut, tangents, said):
    run = made(tmp_path, {"none": 11.0, "no-gradient": cut, "tangents": tangents}, seeds=range(len(cut)))
    if said is None:
        assert "gradient through the box" not in told(run)
    else:
        assert said in told(run)


def test_a_gradient_that_helps_others_is_not_called_of_no_use(tmp_path):
    run = made(tmp_path, {"none": 9.0, "no-gradient": 1.0, "tangents": 1.1, "first-order": 0.2})
    assert "gradient through the box" not in told(run)


@pytest.mark.slow
def test_a_figure_that_is_not_finite_has_no_mean(tmp_path, pens):
    run = made(tmp_path, {"rge": [1.0, None, 2.0], "cge": [1.0, 1.0, 3.0]}, seeds=(0, 1, 2))
    assert "Not finite: the test loss of rge (seed 1)." in told(run)
    assert "cge: test loss 1.7 ± 1.2." in told(run)
    text = page(run)
    assert "<td>not finite</td>" in text and "<td>1.7 ± 1.2</td>" in text
    alone = made(tmp_path, {"rge": math.nan, "cge": None})
    assert "No method has a finite test loss with every seed." in told(alone)
    page(alone)


def test_means_and_spreads_are_those_of_the_seeds(tmp_path):
    run = made(tmp_path, {"cge": [0.10, 0.12, 0.17]}, seeds=(3, 5, 8), extra={"cge": {"reach": 2}})
    text = page(run)
    assert "0.130 ± 0.036" in text  # deviations -.03, -.01, .04; n - 1 = 2
    assert "mean ± standard deviation of 3 seeds" in text
    assert "<td>cge</td><td>2</td>" in text  # the further figure


def test_the_table_is_written_for_papers_too(tmp_path):
    run = made(tmp_path, {"none": 1.0, "my_own|way": [0.5]}, unit="%", extra={"my_own|way": {"reach": 2}})
    page(run)
    assert (run.path / "table.md").read_text() == (
        "| method | test loss (%) | weights | rows | queries | time | reach |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| none | 1 | 7 | 0 | 0 | 1 s | - |\n"
        "| my_own\\|way | 0.5 | 7 | 200 | 1 | 1 s | 2 |\n"
    )
    text = (run.path / "table.tex").read_text()
    assert r"\begin{tabular}{lrrrrrr}" in text and r"my\_own|way & 0.5 & 7 & 200 & 1 & 1 s & 2 \\" in text


def test_why_rows_failed_is_told_with_the_first_in_words(tmp_path):
    lost = {
        "rows_failed": 3,
        "causes": {"ValueError": 2, "timed_out": 1},
        "first_failure": f"raised ({EVIL})",
    }
    run = made(tmp_path, {"none": 1.0, "my own way": 0.5}, seeds=(0, 1), ledger={"my own way": lost})
    text = report.write(run).read_text()
    reader = read(text)
    assert "script" not in [tag for tag, _ in reader.tags]
    shown = unescape(text)
    assert "ValueError (4), timed_out (2)" in shown
    assert f"seed 0: raised ({EVIL})" in shown
    assert "Rows failed: 6 of the 400 box rows that were run in training." in shown
    assert "No row failed" not in shown


@pytest.mark.slow
def test_rows_that_fail_in_a_run_are_in_its_report(tmp_path):
    run = tasks.run(
        Steering(limit=0.4), methods=["cge", "rge"], runs=tmp_path, progress=Progress(), learning_rate=1e-9
    )
    failed = run.result.table[0].ledger["rows_failed"]
    text = unescape(run.report.read_text())
    assert failed > 0
    for row in run.result.table:  # of each method its own first one, with the row's numbers
        first = row.ledger["first_failure"]
        assert re.match(r"row \d \(z=\[-?\d\S*, -?\d\S*, -?\d\S*\]\): .*ArithmeticError", first)
        assert first in text
    assert f"ArithmeticError ({failed:,})" in text
    assert "is too much" in text


def test_without_validation_the_loss_is_drawn(tmp_path, pens):
    run = made(tmp_path, {"none": 1.0, "rge": 0.5, "cge": 0.4}, validation=False, seeds=(0, 1))
    text = page(run)
    assert "running mean; there is no validation" in text
    assert (run.path / "loss.png").is_file() and not (run.path / "curves.png").exists()


def test_validation_that_is_never_finite_is_taken_for_none(tmp_path, pens):
    run = made(tmp_path, {"rge": 0.5}, validation=False)
    for step in (0, 5, 10):
        run.log("seed-0/rge", step, validation=math.nan, seconds=0.1)
    page(run)
    assert (run.path / "loss.png").is_file() and not (run.path / "curves.png").exists()


@pytest.mark.slow
def test_trust_is_drawn_for_those_that_learn_tangents(tmp_path, pens):
    run = made(tmp_path, {"tangents": 0.5, "cge": 0.4}, trust=("tangents",))
    assert "How far the learned tangents can be believed" in page(run)
    assert (run.path / "trust.png").is_file()
    curves = findings.Findings(run, Result.read(run.path)).curves
    names = ("error", "agreement", "distrusted")
    drawn = plots.trust(*(curves(f"gradient_tangent_{name}") for name in names))
    error, agreement, *strips = drawn.axes  # made with steps 5, 6 and 7 of the ten not trusted
    for strip, panel in zip(strips, (error, agreement), strict=True):
        (bars,) = strip.collections
        (bar,) = bars.get_paths()
        assert (bar.get_extents().x0, bar.get_extents().x1) == (4.5, 7.5)
        assert strip.get_position().y1 < panel.get_position().y0  # it covers no curve
    assert "Left: the relative error" in page(run) and "Below: steps without trust in them" in page(run)
    alone = plots.trust(curves("gradient_tangent_error"), {}, {})
    assert len(alone.axes) == 1
    other = made(tmp_path, {"cge": 0.4})
    assert "can be believed" not in page(other)


@pytest.mark.parametrize("checked", [False, True])
def test_an_error_of_the_first_step_alone_is_no_panel_of_trust(tmp_path, pens, checked):
    """No step but the first has one where batches have one row, and its panel would be empty."""
    run = made(tmp_path, {"tangents": 0.5})
    run.log("seed-0/tangents", 1, gradient_tangent_error=1.0, seconds=0.1)
    if checked:
        run.log("seed-0/tangents", 10, gradient_tangent_agreement=0.8, seconds=0.1)
    assert ("believed. In each check" in page(run)) == checked
    assert (run.path / "trust.png").is_file() == checked
    curves = findings.Findings(run, Result.read(run.path)).curves
    errors, agreements = (curves(f"gradient_tangent_{name}") for name in ("error", "agreement"))
    if checked:
        alone = plots.trust({}, agreements, {})
        assert len(alone.axes) == 1
        beside = plots.trust({"others": errors["tangents"]}, agreements, {})  # whose errors have a panel
        names = [[text.get_text() for text in drawn.legends[0].get_texts()] for drawn in (alone, beside)]
        assert names == [["tangents"], ["others", "tangents"]]


@pytest.mark.slow
def test_twelve_methods_of_three_seeds_fit(tmp_path, pens):
    values = {method: [0.3, 0.2, 0.25] for method in TWELVE}
    run = made(
        tmp_path, values, seeds=(0, 1, 2), trust=TWELVE[1:], rows_of={m: 3**n for n, m in enumerate(TWELVE)}
    )
    text = page(run)
    for method in TWELVE:
        assert f"<td>{method}</td>" in text
    height, width, _ = imread(run.path / "curves.png").shape
    assert width == 1280 and height < 700


@pytest.mark.slow
def test_without_code_a_report_stays_as_it_came(tmp_path):
    run = shown_run(tmp_path / "runs")
    before = run.report.read_text()
    assert "First component" in before and "Mine</h2>" in before
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(run.path, copy)
    shutil.rmtree(run.path)
    assert report.write(tasks.load(copy)._run).read_text() == before
    (copy / "report.html").unlink()
    after = report.write(tasks.load(copy)._run).read_text()
    assert "Mine</h2>" not in after
    assert set(re.findall(r"<td>(.*?)</td>", after)) >= {"none", "first-order"}


def test_a_report_without_code_or_an_earlier_one_says_so(tmp_path):
    run = made(tmp_path, {"cge": 0.4})
    said = "The problem's own part is not here"
    assert said not in page(run)  # a loop of one's own has no other part
    assert said not in page(from_elsewhere(run, problem="file.py:Problem"))  # the page that is there stays
    (run.path / "report.html").unlink()
    assert said in page(Run.open(run.path))
    (run.path / "report.html").write_text("an older page of a script's run")
    assert "cge" in page(from_elsewhere(run, problem="", script="/script.py"))  # has nothing that code makes


@pytest.mark.parametrize(
    ("extra", "calls", "told"),
    [
        ({"rows of test": 8}, (250, True), "With validation, test and timing, and with what was run again"),
        ({}, (250, True), "With validation and with what was run again after a kill, they ran 250 rows.</p>"),
        ({}, (150, True), "they ran 150 rows. The table has more: rows whose answers were in a file"),
        ({}, (150, False), "at least 150 rows. A process was killed, or broke off, while others ran rows"),
    ],
)
def test_the_rows_in_all_are_told_as_what_they_are(tmp_path, extra, calls, told):
    run = made(tmp_path, {"cge": 1.0}, rows_of={"cge": 200}, extra={"cge": extra})
    result = json.loads((run.path / "result.json").read_text())
    result["calls"] = dict(zip(("rows", "exact"), calls, strict=True))
    (run.path / "result.json").write_text(json.dumps(result))
    assert told in page(run)


def test_a_problem_without_a_box_has_no_ledger(tmp_path):
    run = made(tmp_path, {"cge": 0.4}, ledger={"cge": {"rows_run": 0, "rows_asked": 0}})
    assert "The black box" not in page(run) and "No row failed" not in page(run)


def test_settings_of_a_loop_of_ones_own_are_not_taken_for_others(tmp_path):
    run = made(tmp_path, {"cge": 0.4})
    text = page(from_elsewhere(run, config={"steps": 7}))
    assert "default" not in text.split("The run</h2>")[1]
    assert "<dt>steps</dt><dd>7</dd>" in text


class Broken(Steering):
    def pictures(self, fields):
        raise KeyError("no such field.")


def test_a_broken_part_of_a_problem_leaves_the_rest_of_the_report(tmp_path):
    with pytest.raises(
        ProblemError,
        match=r"Broken\.pictures: expected figures.*KeyError: 'no such field\.' "
        r"\(\S+test_report\.py, line \d+, in pictures\).*blackbox report",
    ) as caught:
        tasks.run(Broken(), methods=["none", "first-order"], runs=tmp_path, progress=Progress())
    assert isinstance(caught.value.__cause__, KeyError)
    (path,) = tmp_path.iterdir()
    run = tasks.load(path)
    text = unescape(run.report.read_text())
    assert "The problem's own part could not be made (KeyError: 'no such field.')." in text
    assert "has the lowest test loss" in text


def test_where_a_part_is_broken_a_run_under_way_is_not_said_to_have_ended(tmp_path):
    run = made(tmp_path, {"cge": 0.4})
    so_far = replace(Result.read(run.path), finished="")
    (run.path / "result.json").unlink()
    so_far.write(run.path)
    with pytest.raises(ProblemError, match="The rest is in") as caught:
        report.write(run, Broken())
    assert "finished" not in str(caught.value)


def test_a_run_that_is_not_finished_has_no_report(tmp_path):
    with pytest.raises(RunFolderError, match="blackbox resume"):
        report.write(made(tmp_path, {"cge": 0.4}, finished=False))


class NotFinite(Steering):
    def evaluate(self, network):
        return {"test loss": math.nan, "drag": math.inf, "lift": 0.5, "field": torch.full((2, 3), math.nan)}


@pytest.mark.slow
def test_a_run_whose_figures_are_not_finite_ends_with_a_report_that_says_so(tmp_path, pens):
    run = tasks.run(NotFinite(), methods=["none", "cge"], runs=tmp_path, progress=Progress())
    text = unescape(run.report.read_text())
    assert "No method has a finite test loss with every seed." in text
    assert "Not finite: the test loss of none (seed 0), cge (seed 0)." in text
    assert "<td>cge</td><td>-</td><td>0.5</td>" in text
    assert bool(tasks.load(run.path).table["drag"].isna().to_numpy().all())


def test_a_figure_of_ones_own_is_not_silently_one_that_is_to_be_low(tmp_path):
    taken = "A lower power is taken to be better; if it is not, say higher_is_better = True."
    assert taken in told(made(tmp_path, {"none": 4.0, "tangents": 0.5}, metric="power"))
    assert taken in told(made(tmp_path, {"none": 0.5, "tangents": 4.0}, metric="power"))
    assert "is taken" not in told(made(tmp_path, {"none": 4.0, "tangents": 0.5}))
    high = made(tmp_path, {"none": 4.0, "tangents": 0.5}, metric="power", higher_is_better=True)
    assert "is taken" not in told(high)
    for metric in ("MAE", "rmse of drag", "velocity error", "misfit"):
        assert "is taken" not in told(made(tmp_path, {"none": 4.0, "tangents": 0.5}, metric=metric))


@pytest.mark.parametrize("name", ["steps", "validation", "the test", "not applicable"])
def test_a_figure_with_the_name_of_a_number_of_the_training_is_refused(tmp_path, name):
    """A trained network whose "steps" are zero would be told as the untrained start."""

    class Named(Steering):
        def evaluate(self, network):
            return {"test error": 0.5, name: 0}

    with pytest.raises(ProblemError, match=f"than the training's own numbers have, got '{name}'"):
        tasks.run(Named(), methods=["none"], runs=tmp_path, progress=Progress())


class Light(Steering):
    """Its first figure is a mass, the lighter the worse it holds: nothing says that it is no verdict."""

    def evaluate(self, network):
        with torch.no_grad():
            return {"mass": network(self.data.test).abs().mean().item() - 1e3, "reach": 2.0}


class Declared(Light):
    """It says itself that less is better."""

    higher_is_better = False


class Without(Light):
    """It has no test data for an objective to be evaluated on."""

    def data(self):
        data = super().data()
        return tasks.Data(data.train, validation=data.validation)

    def evaluate(self, network):
        return {"mass": 0.5}


def test_methods_are_judged_by_the_test_loss_where_nothing_says_what_the_first_figure_is(tmp_path):
    run = tasks.run(Light(methods=["none", "first-order"]), runs=tmp_path, progress=Progress())
    problem = Light()
    for row in run.result.table:
        wanted = problem.losses(run.network(row.method), problem.data.test)
        assert (row.metric, row.value) == ("test loss", pytest.approx(wanted.mean().item(), rel=1e-12))
        assert row.extra["mass"] < -990 and row.extra["rows of test"] == 8 * problem.config.calls
    assert "first-order has the lowest test loss" in unescape(run.report.read_text())


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("kind", "advised"), [(Without, True), (Declared, False)])
def test_a_figure_that_is_a_verdict_or_the_only_one_stays_the_first(tmp_path, kind, advised):
    run = tasks.run(kind(methods=["none", "first-order"]), runs=tmp_path, progress=Progress())
    assert {row.metric for row in run.result.table} == {"mass"}
    assert ("is taken to be better" in unescape(run.report.read_text())) is advised


def test_a_figure_that_contradicts_the_trainings_own_validation_says_so(tmp_path, drawing):
    values = {"none": [1.4, 1.4], "tangents": [1.5, 1.6], "rge": [1.2, 1.3]}
    ends = {name: {"validation": 0.1} for name in values}
    run = made(tmp_path / "a", values, seeds=(0, 1), metric="mass", extra=ends)
    # validation of seed s begins at 0.5 / (s + 1)
    said = (
        "By its mass tangents is worse than the untrained start, yet its validation fell from 0.375 to 0.1: "
        "the mass leaves out something that the objective has, such as a constraint, or rows are few."
    )
    assert lead.contradictions(findings.Findings(run, Result.read(run.path))) == [said]
    ends = {name: {"validation": 0.5} for name in values}
    other = made(tmp_path / "b", values, seeds=(0, 1), metric="mass", extra=ends)
    assert lead.contradictions(findings.Findings(other, Result.read(other.path))) == []
    with drawing():
        assert said in page(run)
        assert f"A: {said}" in compare([run.path, other.path], tmp_path / "page.html").sentences


@pytest.mark.parametrize("name", names.PROBLEMS)
def test_shipped_problems_say_which_way_is_better(name):
    assert problems.find(name)[0].says_which_is_better()


def test_many_further_figures_have_a_line_each(tmp_path):
    values = {f"method-{number}": 0.5 for number in range(8)}
    extra = {name: {f"figure-{n}": n + 0.5 for n in range(14)} for name in values}
    *_, table = (
        part for part in page(made(tmp_path, values, extra=extra)).split("<table") if "figure-0" in part
    )
    assert re.findall(r"<th scope[^>]*>(.*?)</th>", table) == ["figure", *values]
    assert re.findall(r"<td>(figure-\d+)</td>" + r"<td>([\d.]+)</td>" * 8, table) == [
        (f"figure-{n}", *[str(n + 0.5)] * 8) for n in range(14)
    ]


def test_checks_without_a_number_are_not_taken_for_those_of_a_box_in_pieces(tmp_path, pens):
    run = made(tmp_path, {"tangents": 0.5}, trust=("tangents",))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if "agreement" not in name} for line in lines]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert (
        "No check along their gradient gave a number, as where a box is noisy or constant in pieces."
        in page(run)
    )


class Titled(Steering):
    """Draws a picture as users do, with pyplot and its settings."""

    def pictures(self, fields):
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots()
        axes.plot([1, 2], label="a line")
        axes.legend()
        return {"A picture": figure}


@pytest.mark.slow
def test_pictures_are_made_by_settings_of_their_own(tmp_path, monkeypatch, pens):
    """Not by those of a user without LaTeX, or of the current folder, which may be anyone's."""
    import matplotlib

    monkeypatch.setenv("MPLBACKEND", "agg")
    run = tasks.run(Titled(), methods=["none", "first-order"], runs=tmp_path, progress=Progress())
    usual = {path.name: path.read_bytes() for path in run.path.glob("*.png")}
    assert "picture-1.png" in usual and "curves.png" in usual
    strange = {"text.usetex": True, "lines.linewidth": 9, "font.family": "none such", "axes.facecolor": "red"}
    with matplotlib.rc_context(strange):
        report.write(Run.open(run.path), run.problem)
        assert {name: matplotlib.rcParams[name] for name in strange} == strange | {
            "font.family": ["none such"]
        }
    assert {path.name: path.read_bytes() for path in run.path.glob("*.png")} == usual
