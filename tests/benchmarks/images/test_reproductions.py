"""Every reproduction script at its smallest: it runs, and leaves its files with the published numbers."""

from __future__ import annotations

import json
from importlib import import_module

import pytest

from benchmarks import published
from benchmarks.images import reproduction
from benchmarks.images.sizes import PRESETS, passes, residual, simple

SCRIPTS = (
    "figure2_cge_vs_rge",
    "table_query_number",
    "table_smoothing_parameter",
    "figure4_sparsity",
    "figure3_baselines",
    "pruning_methods",
    "dynamic_sparsity",
    "scaling_laws",
    "architectures",
    "better_recipe",
    "shapes_sparse",
)
FAST = ("figure2_cge_vs_rge", "shapes_sparse")  # the others are slow


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_settings_of_every_preset_are_allowed(name, preset):
    groups = import_module(f"benchmarks.{name}").groups(preset)
    assert len({group.label for group in groups}) == len(groups) >= 1


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in SCRIPTS]
)
def test_a_script_runs_and_leaves_result_table_and_plot(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = import_module(f"benchmarks.{name}")
    script.main(["--preset", "ci", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    groups = script.groups("ci")
    wanted = [(group.label, method) for group in groups for method in group.config.methods]
    assert [(line["label"], line["method"]) for line in result["table"]] == wanted
    assert all(0 <= line["ours"] <= 100 for line in result["table"])
    assert [line["published"] for line in result["table"]] == [
        group.published.get(method) for group in groups for method in group.config.methods
    ]
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "published (%)" in table and "Ours is on digits" in table
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_script_reads_its_runs_and_trains_nothing_again(tmp_path, monkeypatch):
    from benchmarks import table_query_number

    monkeypatch.chdir(tmp_path)
    table_query_number.main(["--out", "one"])
    monkeypatch.setattr(reproduction, "work", lambda *_: pytest.fail("trained again"))
    table_query_number.main(["--out", "two"])
    one, two = (json.loads((tmp_path / out / "result.json").read_text())["table"] for out in ("one", "two"))
    assert one == two


def test_published_numbers_are_percentages_and_the_paper_preset_has_the_published_settings():
    accuracies = [
        *(value for line in published.FIGURE_2.values() for value in line.values()),
        *published.QUERY_NUMBER.values(),
        *published.SMOOTHING_PARAMETER.values(),
        *(value for line in published.FIGURE_4.values() for value in line.values()),
    ]
    assert len(accuracies) == 15 + 12 + 7 + 12
    assert all(10 <= value <= 100 for value in accuracies)
    for config in (residual("paper"), simple("paper")):
        assert (config.dataset, passes(config), config.batch, config.mu) == ("cifar10", 50, 256, 5e-3)
        assert config.width is None and config.train_images is None


def test_all_lines_of_the_better_recipe_cost_the_same_to_a_tenth():
    """Counted by hand: coordinates of a set, images of a batch, steps."""
    from benchmarks import better_recipe
    from tasks.image_classification import networks, sparse_set

    costs = []
    for group in better_recipe.groups("small"):
        config = group.config
        network = networks.make(config.network, 10, (3, 32, 32), width=config.width)
        coordinates = sparse_set.coordinates(network, config)
        costs.append(config.steps * config.batch * coordinates)
    assert max(costs) < 1.2 * min(costs)
    assert all(abs(cost / better_recipe.COSTS["small"] - 1) < 0.12 for cost in costs)
