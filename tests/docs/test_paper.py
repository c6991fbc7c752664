"""The report: its numbers are figures of the results, and its tables are made."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from benchmarks.figures import marks

PAPER = Path(__file__).parents[2] / "docs" / "paper"


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(f"paper_{name}", PAPER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_number_of_the_evidence_is_marked():
    evidence = (
        (PAPER / "index.md").read_text(encoding="utf-8").partition("### 5.1")[2].partition("### 5.4")[0]
    )
    # two decimals: a measured ratio; 1.05 is a limit, and first order over itself 1.00
    text = re.sub(rf"{marks.MARKED.pattern}|`.*?`|\$.*?\$", "", evidence)
    assert set(re.findall(r"(?<![\w.,-])\d*\.\d\d\b", text)) == {"1.05", "1.00"}


def test_what_the_report_includes_is_made():
    text, made = (PAPER / "index.md").read_text(encoding="utf-8"), loaded("figures")
    drawn = {f"figures/{name}.svg" for name in made.DRAWN} | {f"figures/{name}.txt" for name in made.TABLES}
    named = re.findall(r"\{(?:figure|include)\} (\S+)", text)
    assert len(named) > 8 and set(named) <= drawn
    assert {f"figures/{name}.txt" for name in made.TABLES} <= set(named)


def test_without_a_browser_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    printer = loaded("print")
    page = tmp_path / "page.html"
    page.write_text("<p>Report</p>")
    monkeypatch.setenv("PATH", str(tmp_path))
    said = printer.main(page, tmp_path / "paper.pdf")
    assert said.startswith("No PDF: expected one of chromium") and "apt-get install chromium" in said
    with pytest.raises(FileNotFoundError, match="make paper"):
        printer.main(tmp_path / "none.html", tmp_path / "paper.pdf")
