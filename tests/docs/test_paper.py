"""The report: its numbers come from files alone, and its statistics do what they say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest

PAPER = Path(__file__).parents[2] / "docs" / "paper"


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(f"paper_{name}", PAPER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figures():
    return loaded("figures")


def test_a_bootstrap_contains_what_is_certain_and_has_the_width_of_a_mean():
    summaries = loaded("summaries")
    assert summaries.interval({name: [2.0, 2.0] for name in "abc"}) == (2.0, 2.0)
    draw = np.random.default_rng(1)
    problems = {str(number): [value] for number, value in enumerate(draw.normal(size=400))}
    low, high = summaries.interval(problems)
    # the median of n normal numbers has the standard deviation sqrt(pi / 2 / n)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(np.pi / 2 / 400), rel=0.3)
    assert low < median(seeds[0] for seeds in problems.values()) < high


def test_variants_of_a_simulator_are_one_family():
    problems = {"double-pendulum": [1.0, 3.0], "double-pendulum-wall": [4.0], "gray-scott": [5.0]}
    assert loaded("summaries").families(problems) == {"double-pendulum": [2.0, 4.0], "gray-scott": [5.0]}


def test_an_unknown_name_is_an_error_that_says_so(figures):
    with pytest.raises(KeyError, match=r"page: expected a name .* got \{\{nonsense\}\}"):
        figures.filled("It is {{nonsense}}.", "page")


def test_a_number_between_comments_is_brought_up_to_date_and_built_without_them(figures, monkeypatch):
    monkeypatch.setattr(figures, "numbers", lambda: {"a, b": "1.02", "c": "3"})
    text = "It is <!--=a, b-->.97<!--/--> and <!--=c-->?<!--/--> of {{c}}.<!--=unbuilt--> Build it!<!--/-->"
    today = text.replace(".97", "1.02").replace("?", "3")
    assert figures.shown(text, "page") == today == figures.shown(today, "page")
    assert figures.filled(text, "page") == "It is 1.02 and 3 of 3."


@pytest.mark.slow
def test_pages_show_unbuilt_what_the_files_say(figures):
    """If not: python docs/paper/figures.py."""
    for page in figures.PAGES:
        text = page.read_text(encoding="utf-8")
        assert figures.shown(text, page.name) == text, page.name


@pytest.mark.slow
def test_every_name_of_the_report_is_known_and_every_number_of_the_evidence_is_a_name(figures):
    text = (PAPER / "index.md").read_text(encoding="utf-8")
    assert "{{" not in figures.filled(text, "index.md")
    evidence = text.partition("### 5.1")[2].partition("### 5.4")[0]
    # two decimals: a measured ratio; 1.05 is a limit, and first order over itself 1.00
    written = set(re.findall(r"(?<![\w.,-])\d*\.\d\d\b", re.sub(r"\{\{.*?\}\}|`.*?`", "", evidence)))
    assert written == {"1.05", "1.00"}


def test_without_a_browser_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    printer = loaded("print")
    page = tmp_path / "page.html"
    page.write_text("<p>Report</p>")
    monkeypatch.setenv("PATH", str(tmp_path))
    said = printer.main(page, tmp_path / "paper.pdf")
    assert said.startswith("No PDF: expected one of chromium") and "apt-get install chromium" in said
    with pytest.raises(FileNotFoundError, match="make paper"):
        printer.main(tmp_path / "none.html", tmp_path / "paper.pdf")
