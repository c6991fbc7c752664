"""Every reproduction at its smallest: it runs, and leaves its files with the published numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import protocol, published
from benchmarks.images.reproductions import REPRODUCTIONS, main
from benchmarks.images.sizes import SIZES, differs, passes, residual, simple

FAST = ("figure2_cge_vs_rge",)  # the others are slow


@pytest.mark.parametrize("name", REPRODUCTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_the_settings_of_every_size_are_allowed(name, size):
    groups = REPRODUCTIONS[name].groups(size)
    assert len({group.label for group in groups}) == len(groups) >= 1


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_the_committed_lines_are_those_of_size_small(name):
    found = json.loads((protocol.RESULTS / name / "result.json").read_text(encoding="utf-8"))["table"]
    groups = REPRODUCTIONS[name].groups("small")
    wanted = [(group.label, method) for group in groups for method in group.config.methods]
    assert [(line["label"], line["method"]) for line in found] == wanted


# of one that varies mu: it is too small where it ends
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zo.errors.NoiseWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in REPRODUCTIONS]
)
def test_a_reproduction_runs_and_leaves_result_and_table(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(name, ["--size", "ci", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    groups = REPRODUCTIONS[name].groups("ci")
    wanted = [(group.label, method) for group in groups for method in group.config.methods]
    assert [(line["label"], line["method"]) for line in result["table"]] == wanted
    assert all(0 <= line["ours"] <= 100 for line in result["table"])
    assert [line["published"] for line in result["table"]] == [
        group.published.get(method) for group in groups for method in group.config.methods
    ]
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "published (%)" in table and "Ours is on digits" in table


@pytest.mark.slow
def test_a_finished_one_reads_its_runs_and_trains_nothing_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main("table_query_number", ["--out", "one"])
    monkeypatch.setattr(protocol, "carry_out", lambda *_: pytest.fail("trained again"))
    main("table_query_number", ["--out", "two"])
    one, two = (json.loads((tmp_path / out / "result.json").read_text())["table"] for out in ("one", "two"))
    assert one == two


def test_published_numbers_are_percentages_and_the_paper_size_has_the_published_settings():
    accuracies = [
        *(value for line in published.FIGURE_2.values() for value in line.values()),
        *published.QUERY_NUMBER.values(),
        *published.SMOOTHING_PARAMETER.values(),
        *(value for line in published.FIGURE_4.values() for value in line.values()),
    ]
    assert len(accuracies) == 15 + 12 + 7 + 12
    assert all(10 <= value <= 100 for value in accuracies)
    for config in (residual("paper"), simple("paper")):
        assert (config.dataset, passes(config), config.batch) == ("cifar10", 50, 256)
        assert config.zeroth_order.mu == 5e-3
        assert config.width is None and config.train_images is None


def test_what_differs_is_said_of_all_groups():
    one = simple("small")
    said = differs("small", [one, replace(one, train_images=150, steps=30, batch=10)])
    assert "1,200 or 150 images, 6 or 2 epochs of batches of 50 or 10, networks with 5 channels" in said
