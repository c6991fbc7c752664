from html import unescape
from string import ascii_uppercase

import numpy as np
import pytest
from matplotlib.image import imread

from tasks.command import cli
from tasks.errors import ConfigurationError, RunFolderError
from tasks.report import findings, pictures, plots
from tasks.report.compare import compare
from tests.tasks.made_runs import from_elsewhere, made
from tests.tasks.test_html_report import read

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture
def page(tmp_path):
    return tmp_path / "comparison.html"


def records(frame):
    return frame.to_dict("records")


def test_runs_are_set_side_by_side(tmp_path, page):
    one = made(tmp_path, {"none": [4.0, 5.0], "cge": [0.2, 0.4]}, seeds=(0, 1))
    other = made(tmp_path, {"none": [4.0, 5.0], "rge": [1.0, 1.0], "cge": [0.1, 0.2]}, seeds=(0, 1), unroll=9)
    found = compare([one.path, other.path], page)
    assert found.sentences == []
    assert found.caption.startswith("Test loss, mean ± standard deviation over seeds. The ratio is B / A")
    assert [line["folder"] for line in records(found.runs)] == [str(one.path), str(other.path)]
    assert records(found.figures) == [
        {"method": "none", "A": "4.50 ± 0.71", "B": "4.50 ± 0.71", "ratio": "1"},
        {"method": "cge", "A": "0.30 ± 0.14", "B": "0.150 ± 0.071", "ratio": "0.5"},
        {"method": "rge", "A": "-", "B": "1 ± 0", "ratio": "-"},
    ]
    assert records(found.rows) == [
        {"method": "cge", "A": "200", "B": "300"},
        {"method": "rge", "A": "-", "B": "200"},
    ]
    assert records(found.settings) == [
        {"setting": "methods", "A": "none, cge", "B": "none, rge, cge"},
        {"setting": "unroll", "A": "6", "B": "9"},
    ]
    text = page.read_text()
    read(text)
    assert "Test loss, mean ± standard deviation over seeds. The ratio is B / A." in unescape(text)
    assert imread(page.with_suffix(".png")).ndim == 3
    assert text.count("<img") == 1


def test_runs_of_different_problems_are_said_to_say_nothing_about_each_other(tmp_path, page):
    one = made(tmp_path, {"cge": 0.5})
    other = made(tmp_path, {"cge": 91.0}, task="images", metric="accuracy", unit="%", higher_is_better=True)
    found = compare([one.path, other.path], page)
    (sentence,) = found.sentences
    assert sentence.startswith("These are runs of different problems")
    assert sentence.endswith("A (toy), B (images).")
    assert records(found.figures) == [{"method": "cge", "A": "test loss 0.5", "B": "accuracy 91 %"}]
    assert "<img" not in page.read_text()


def test_a_method_that_is_not_applicable_is_called_so_and_its_rows_count(tmp_path, page):
    why = {"no-gradient": {"not applicable": "Nothing to go by. It had run 24 rows by then."}}
    values = {"none": 1.0, "no-gradient": None}
    rows = {"no-gradient": 24}
    one = made(tmp_path, values, extra=why, unit="K", rows_of=rows)
    other = made(tmp_path, {"none": 1.0, "no-gradient": None}, unit="K", rows_of=rows)  # its figure is lost
    found = compare([one.path, other.path], page)
    _, line = records(found.figures)
    assert (line["A"], line["B"]) == ("not applicable", "not finite K")
    assert {"method": "no-gradient", "A": "24", "B": "24"} in records(found.rows)


def test_each_curve_has_its_run_s_name_and_seven_have_a_kind_of_line_each(tmp_path):
    runs = {name: {"cge": {0: curve()}, "rge": {0: curve()}} for name in ascii_uppercase}
    axes = plots.compared(runs, y="loss").axes[0]
    lines = [line for line in axes.lines if line.get_color() == pictures.colour("cge")]
    looks = {str(line._unscaled_dash_pattern) for line in lines if len(line.get_xdata())}
    assert len(looks) == 7
    assert sorted(text.get_text() for text in axes.texts) == sorted(2 * ascii_uppercase)  # each curve's end


def curve():
    steps = np.arange(4)
    return findings.Curve(steps, 10.0 * steps, 0.1 * steps, 1.0 / (1 + steps))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("one", "other"),
    [(-2.0, 4.0), (2.0, -4.0), (-2.0, -4.0), (0.0, 0.0), (2.0, 0.0)],
)
def test_figures_that_are_not_above_zero_have_no_ratio(tmp_path, page, one, other):
    runs = made(tmp_path, {"cge": one, "rge": 2.0}), made(tmp_path, {"cge": other, "rge": 1.0})
    found = compare([run.path for run in runs], page)
    assert [line["ratio"] for line in records(found.figures)] == ["-", "0.5"]


def test_the_ratio_of_runs_with_other_seeds_is_by_those_of_both(tmp_path, page):
    """The means are over all seeds of each; where no seed is common, so is the ratio."""
    one = made(tmp_path, {"none": [3.0, 1.0], "cge": [0.5, 0.1]}, seeds=(0, 1))
    other = made(tmp_path, {"none": 3.0, "cge": 0.25})
    found = compare([one.path, other.path], page)
    assert [line["ratio"] for line in records(found.figures)] == ["1", "0.5"]
    assert found.caption.endswith("The ratio is B / A, by the seeds of both: 0.")
    alone = made(tmp_path, {"none": 4.0, "cge": 0.6}, seeds=(7,))
    found = compare([one.path, alone.path], page)
    assert [line["ratio"] for line in records(found.figures)] == ["2", "2"]
    assert found.caption.endswith("The ratio is B / A.")


@pytest.mark.parametrize("other", [{"metric": "error"}, {"unit": "mm"}])
def test_figures_of_other_names_or_units_have_no_ratio(tmp_path, page, other):
    one, another = (
        made(tmp_path, {"cge": 1.0}, unit="m"),
        made(tmp_path, {"cge": 2.0}, **{"unit": "m"} | other),
    )
    assert [line["ratio"] for line in records(compare([one.path, another.path], page).figures)] == ["-"]


def test_a_figure_keeps_its_capitals(tmp_path, page):
    runs = [made(tmp_path, {"cge": 1.0}, metric="mean IoU").path for _ in range(2)]
    assert compare(runs, page).caption.startswith("Mean IoU, mean ±")


def test_seeds_that_took_other_numbers_of_steps_have_a_mean(tmp_path):
    """Seeds of 1,000 and 1,003 steps have no step in common once neighbours are averaged."""

    def falling(steps):
        at = np.arange(1.0, steps + 1)
        return findings.Curve(at, 10 * at, at, 1 - 1e-4 * at)

    axes = plots.compared({"A": {"cge": {0: falling(1000), 1: falling(1003)}}}, y="loss").axes[0]
    (line,) = (line for line in axes.lines if len(line.get_xdata()))
    rows, losses = line.get_xdata(), line.get_ydata()
    assert len(rows) > 190 and rows[-1] == 10_000
    # a mean of five or six neighbours, so of two or three steps before its last
    assert np.allclose(losses, 1 - 1e-5 * rows, atol=3e-4)


def test_a_run_that_is_not_finished_is_refused(tmp_path, page):
    one, other = made(tmp_path, {"cge": 0.5}), made(tmp_path, {"cge": 0.5}, finished=False)
    with pytest.raises(RunFolderError, match=f"blackbox resume {other.path}"):
        compare([one.path, other.path], page)
    assert not page.exists()


def test_the_loss_is_drawn_where_a_run_has_no_validation(tmp_path, page):
    runs = [made(tmp_path, {"cge": 0.5}, validation=validation) for validation in (True, False)]
    compare([run.path for run in runs], page)
    assert "Training loss over training" in page.read_text()


def test_what_else_differs_is_said(tmp_path, page):
    values = {"none": [1.0, 2.0], "cge": [0.5, 0.5]}
    one = made(tmp_path, values, seeds=(0, 1))
    other = from_elsewhere(
        made(tmp_path, {"none": 3.0, "cge": 0.5}), versions={**one.versions, "torch": "1.0"}
    )
    result = other.path / "result.json"
    result.write_text(result.read_text().replace('"cores": ', '"cores": 9'))
    first, second, third, fourth = compare([one.path, other.path], page).sentences
    assert first == "The seeds differ: A has 0, 1, B 0."
    assert second.startswith("A and B differ already in none, which is not trained")
    assert third == f"The versions differ, A -> B: torch {one.versions['torch']} -> 1.0."
    assert fourth == "A and B ran on different machines: do not compare their times."


def test_no_code_of_a_problem_is_executed(tmp_path, page):
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    runs = [
        from_elsewhere(made(tmp_path, {"cge": 0.5}), problem=f"{tmp_path}/evil.py:Evil") for _ in range(2)
    ]
    found = compare([run.path for run in runs], page)
    assert len(found.figures) and page.exists()


def test_fewer_than_two_runs_and_what_is_no_run_are_refused(tmp_path, page):
    run = made(tmp_path, {"cge": 0.5})
    for folders in ([], [run.path], [run.path, run.path]):
        with pytest.raises(ConfigurationError, match="two different runs or more"):
            compare(folders, page)
    with pytest.raises(RunFolderError, match="no such folder"):
        compare([run.path, tmp_path / "nowhere"], page)
    assert not page.exists()


def test_the_command_prints_what_differs_and_where_the_page_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [
        made(tmp_path, {"none": 1.0, "cge": value}, unroll=6 + n) for n, value in enumerate((0.5, 0.25, 0.1))
    ]
    assert cli.main(["compare", *(str(run.path) for run in runs), "--page", "sub page.html"]) == 0
    out = capsys.readouterr().out
    for word in ("A: ", f"{runs[2].path}", "unroll", "0.25", "0.1", "Page: sub page.html"):
        assert word in out
    assert (tmp_path / "sub page.html").is_file()
    assert cli.main(["compare", str(runs[0].path)]) == 2
    assert "two different runs or more" in capsys.readouterr().err
