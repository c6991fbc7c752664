"""What comes out: the table, JSON, and the exit status."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from blackbox.conformance import Finding, Report, Verdict, check_black_box, command
from blackbox.conformance.check_report import NOT_SEEN
from tests.blackbox.conformance.broken_boxes import Centring, Good, Jumps, Random, Rounds
from tests.blackbox.conformance.probes import draws


def shown(width: int = 110) -> Console:
    return Console(width=width, file=io.StringIO(), no_color=True)


def test_the_table_names_every_check_with_verdict_and_sentence():
    report = check_black_box(Rounds(), processes=False)
    text = " ".join(str(report).split())
    for found in report.findings:
        assert found.check in text and found.verdict.value in text
    assert "no faults" in text and "warning" in text  # quantisation
    assert "Output 'y' comes in steps of 0.001" in text
    assert max(map(len, str(report).splitlines())) <= 110


@pytest.mark.parametrize("width", [60, 80, 110])
def test_the_table_loses_nothing_in_a_narrow_terminal(width):
    report = check_black_box(Rounds(), rows=300, processes=False)
    console = shown(width)
    console.print(report)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    cells = [report.summary(), NOT_SEEN, "check", "verdict", "number", "what was seen"]
    for found in report.findings:
        cells += [found.check, found.verdict.value, found.measured, found.sentence]
    assert sorted("".join(text.split())) == sorted("".join("".join(cells).split()))


def test_what_a_box_says_is_no_markup():
    report = Report("[red]box[/red]", (Finding("[x]", Verdict.FAULT, "got [/] (3,)"),), (), False, 5)
    assert "[red]box[/red]: 1 fault, no warnings, 5 rows." in str(report)
    assert "got [/] (3,)" in str(report)


def test_what_a_box_says_does_not_act_on_the_terminal():
    report = Report("box\x1b[2J", (Finding("x", Verdict.FAULT, "a server said \x1b[2J\u202e"),), (), False, 5)
    assert "\x1b" not in str(report) and "\u202e" not in str(report)
    assert r"box\x1b[2J: 1 fault" in str(report) and r"said \x1b[2J\u202e" in str(report)


def test_json_holds_what_the_report_holds():
    report = check_black_box(Good(), draws(8, 3), processes=False)
    content = json.loads(report.to_json())
    assert [found["check"] for found in content["findings"]] == [found.check for found in report.findings]
    assert {found["verdict"] for found in content["findings"]} <= {verdict.value for verdict in Verdict}
    (mu,) = content["recommendations"]
    assert mu["input"] == "x" and mu["size"] == 3
    assert mu["coordinates"]["forward"] == report.recommendations[0].coordinates.forward
    assert mu["long_directions"][0] == pytest.approx(mu["directions"]["forward"] / np.sqrt(3))
    assert (content["samples"], content["rows"], content["box"]) == ("given", report.rows, "Good")


def test_json_has_no_infinity():
    report = Report("box", (Finding("x", Verdict.FAULT, "far", float("inf")),), (), True, 1)
    assert json.loads(report.to_json())["findings"][0]["number"] is None


def test_a_name_that_is_no_check():
    with pytest.raises(KeyError, match="'memmory' is not among"):
        Report("box", (Finding("memory", Verdict.OK, "none"),), (), True, 1).finding("memmory")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("box", "status"), [(Good, 0), (Jumps, 0), (Centring, 1)])
def test_the_exit_status_and_the_file(box, status, tmp_path):
    np.save(tmp_path / "x.npy", draws(8, 3))
    console = shown()
    given = command(box(), tmp_path / "x.npy", tmp_path / "report.json", processes=False, console=console)
    assert given == status
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert any(found["verdict"] == "fault" for found in written["findings"]) == bool(status)
    assert isinstance(console.file, io.StringIO) and "determinism" in console.file.getvalue()


def test_json_on_standard_output(capsys):
    assert command(Good(), out="-", processes=False) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == "drawn"


def test_where_there_is_no_terminal_the_table_is_a_hundred_columns_wide(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert command(Good(), rows=100, processes=False) == 0
    assert 95 <= max(map(len, capsys.readouterr().out.splitlines())) <= 100


class SeedsItself(Random):
    """Noise on a common answer, the same in each call: all rows are moved by one draw."""

    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x) + np.random.default_rng(7).standard_normal()


def test_what_it_cannot_see_it_says():
    report = check_black_box(SeedsItself(), draws(8, 3), processes=False)
    assert report.finding("determinism").verdict is Verdict.OK and not report.faults
    for said in (str(report), json.loads(report.to_json())["not_seen"]):
        assert "seeds itself anew in each call" in " ".join(said.split())
