"""The table of seconds and memory against cells: slopes, and that it is of the committed figures."""

from __future__ import annotations

import json

import pytest

from benchmarks import size


@pytest.mark.parametrize("power", [0.5, 1.0, 1.3])
def test_the_slope_is_the_power_by_which_values_grow(power):
    cells = [576, 4096, 2**20]
    assert size.slope(cells, [3.0 * n**power for n in cells]) == pytest.approx(power)


def test_the_table_is_that_of_the_committed_figures(monkeypatch, tmp_path):
    cases = json.loads(size.PATH.read_text(encoding="utf-8"))["cases"]
    committed = (size.FOLDER / "table.md").read_text(encoding="utf-8")
    monkeypatch.setattr(size, "FOLDER", tmp_path)
    monkeypatch.setattr(size, "draw", lambda curves: None)
    size.write_table(cases)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == committed
