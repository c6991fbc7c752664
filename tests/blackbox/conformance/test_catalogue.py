"""Every broken box is found and named; good ones have no fault."""

from __future__ import annotations

import os

import pytest

from blackbox.conformance import Report, Verdict, check_black_box
from tests.blackbox.conformance.broken_boxes import CATALOGUE, GOOD, IN_PROCESSES, Broken
from tests.test_documentation import blocks


def warned(report: Report) -> list[str]:
    return [found.check for found in report.warnings]


def check_found(broken: Broken, report: Report) -> None:
    found = report.finding(broken.check)
    assert found.verdict is broken.verdict, str(report)
    for word in broken.words:
        assert word in found.sentence


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("broken", CATALOGUE, ids=repr)
def test_each_fault_is_found_and_named(broken, monkeypatch):
    monkeypatch.chdir(os.getcwd())
    check_found(broken, check_black_box(broken.make(), rows=3000, processes=False))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("make", GOOD)
@pytest.mark.parametrize("seed", range(3))
def test_a_good_box_has_no_fault_and_no_warning(make, seed):
    report = check_black_box(make(), processes=False, seed=seed)
    assert not report.faults and not warned(report), str(report)
    assert [found.check for found in report.of(Verdict.SKIPPED)] == ["process safety"]


@pytest.mark.slow
def test_a_good_box_has_no_fault_in_other_processes():
    report = check_black_box(GOOD[1](), rows=2000, seconds=None)
    assert not report.faults and not warned(report), str(report)
    assert report.finding("process safety").verdict is report.finding("picklability").verdict is Verdict.OK


def test_the_readme_s_pendulum_has_no_fault():
    scope: dict = {}
    exec(blocks("README.md")[0].split("network = ")[0], scope)
    report = check_black_box(scope["pendulum"], processes=False)
    assert not report.faults, str(report)
    assert warned(report) in ([], ["picklability"])  # it was typed into no module
    assert scope["pendulum"].failures == "keep"  # as it was


def test_each_check_has_a_broken_box():
    """What has none may find nothing at all; answers to good boxes come from every check."""
    broken = {entry.check.split(" of ")[0] for entry in CATALOGUE + IN_PROCESSES} | {"process safety"}
    checks = {found.check.split(" of ")[0] for found in check_black_box(GOOD[0](), processes=False).findings}
    assert checks - broken == {"noise level"}  # it measures; test_noise_level
    assert len(CATALOGUE + IN_PROCESSES) >= 15
