"""The catalogue: every benchmark runs, the page is what the results say, and the pages name what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks import __main__ as program
from benchmarks import catalogue, figures, page, protocol, published, table_defense
from benchmarks.catalogue import BENCHMARKS, DEFENCE
from benchmarks.gpu.parts import PARTS
from tasks.applications.wake_flow import WakeFlow
from tests.test_documentation import PAGES

PRESETS = WakeFlow.presets

ROOT = Path(__file__).parents[2]
SEEDED = "python -m benchmarks tangents --size small --seeds 1"


def test_the_page_is_up_to_date_with_the_results():
    """If not: python -m benchmarks page."""
    written = (protocol.RESULTS / "README.md").read_text(encoding="utf-8")
    assert written == page.text()


def test_every_published_number_is_on_the_page_or_said_not_to_be_run():
    text, missing = page.text(), page.not_run()
    lines = {
        "Figure 2": published.FIGURE_2,
        "RGE by queries a step": {label: {"rge": own} for label, own in published.QUERY_NUMBER.items()},
        "CGE by smoothing parameter": {
            label: {"cge": own} for label, own in published.SMOOTHING_PARAMETER.items()
        },
        "Figure 4": {0.0: published.FIGURE_4_DENSE, **published.FIGURE_4},
    }
    for title, methods in lines.items():
        for label, own in methods.items():
            for method, value in own.items():
                name = f"{label:,}, {method}" if isinstance(label, int) else f"{label:g}, {method}"
                section = text.partition(f"### {title}")[2].partition("\n### ")[0]
                assert (f"| {value:.2f} |" in section) != (name in missing.get(title, ())), (title, name)
    for own in published.DEFENCE.values():
        assert all(f"| {value:.2f} |" in text for value in own)
    assert all(f"| {value:.3f} |" in text for value in published.WAKE.values())


def test_what_the_page_says_compares_is_so_in_the_files():
    """If not: the results have changed, and the sentences of `benchmarks/page.py` are to be read anew."""

    def ours(name, label, *methods):
        found = [page.line(name, label, method) for method in methods]
        return [[] if each is None else each.get("values") or [each["ours"]] for each in found]

    name = "figure2_cge_vs_rge"
    for size in published.FIGURE_2:
        fo, cge, rge = ours(name, size, "fo", "cge", "rge")
        assert (fmean(fo) < page.CHANCE) == (size == 730)
        if size != 730:  # the sentence says of one training alone that first order failed in it
            failed = [(size, seed) for seed, accuracy in enumerate(fo) if accuracy < 51]
            close = [abs(own / exact - 1) < 0.05 for own, exact in zip(cge, fo, strict=True)]
            below = [own < exact for own, exact in zip(rge, fo, strict=True)]
            assert [(size, seed) for seed in range(len(fo)) if not (close[seed] and below[seed])] == [
                place for place in failed if place == (6670, 2)
            ]
    name = "table_query_number"
    found = [value for label in sorted(published.QUERY_NUMBER) for value in _mean(*ours(name, label, "rge"))]
    assert len(found) > 3 and found == sorted(found)
    name = "table_smoothing_parameter"
    found = [value for mu in published.SMOOTHING_PARAMETER for value in _mean(*ours(name, mu, "cge"))]
    assert found[0] < 0.5 * min(found[1:]) and min(found[1:]) > 0.95 * max(found[1:])
    for share in published.FIGURE_4:
        drawn, fixed = ours("shapes_sparsity", share, "fo-sparse-gradient", "fo-sparse-weight")
        assert not drawn or min(drawn) > max(fixed)
    pairs = zip(*ours("shapes_sparse", 0.99, "deepzero", "fo-sparse-gradient"), strict=True)
    ratios, stated = [own / exact for own, exact in pairs], published.FIGURE_4[0.99]
    assert min(ratios) < stated["deepzero"] / stated["fo-sparse-gradient"] < 1.0 < max(ratios)
    lines = catalogue.read("wake_flow_small.json")["table"]
    wake = [
        fmean(row["value"] for row in lines if row["method"] == method)
        for method in ("SRC", "NON", "ZO-SOL", "FO-SOL")
    ]
    assert wake == sorted(wake, reverse=True)


def _mean(values):
    """As a list, which is empty where there is no line."""
    return [fmean(values)] if values else []


def test_a_ratio_on_the_page_is_of_the_two_numbers_beside_it():
    rows = re.findall(r"^\| \S+ \| ([\d.]+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|", page.text(), re.MULTILINE)
    assert len(rows) > 20
    for own, base, ratio in rows:
        assert abs(float(own) / float(base) - float(ratio)) < 0.006


def test_a_ratio_is_of_each_seed_where_both_files_have_them_and_else_of_the_means():
    several, one = {"ours": 30.0, "values": [20.0, 40.0]}, {"ours": 40.0, "values": [40.0, 40.0]}
    assert page._over(several, one) == [0.5, 1.0]
    assert page._over(several, {"ours": 40.0}) == [0.75]
    assert page._range([0.5, 1.0]) == "**0.75** (0.50 to 1.00)"


def test_commands_that_differ_in_the_problem_alone_are_one_line():
    found = re.findall(
        r"^\| `python -m benchmarks rows --size small --problems (.*?)`", page.text(), re.MULTILINE
    )
    named = [each.split() for each in found]
    files = list((protocol.RESULTS / "rows").rglob("*.json"))
    assert len(found) < len(files) / 2
    assert sum(not word.startswith("--") for words in named for word in words) == len(files)


def test_the_demo_has_the_paces_that_were_chosen_on_validation_flows():
    chosen = catalogue.read("wake_rows.json")["chosen"]
    paces = {name: (pace["batch"], pace["learning rate"]) for name, pace in chosen.items()}
    assert {name: (batch, rate) for name, batch, rate in PRESETS["demo"].tuned} == paces


def test_every_result_file_is_of_a_benchmark():
    known = {name for each in BENCHMARKS.values() for name in each.results}
    kept = {path.relative_to(protocol.RESULTS).as_posix() for path in protocol.RESULTS.rglob("*.json")}
    of_gpu = {name for name in kept if name.startswith("gpu/")}  # those parts that were measured
    assert kept - of_gpu - {figures.FILE.name} == known
    assert of_gpu <= {f"gpu/{part}.json" for part in PARTS}


def test_benchmarks_that_the_pages_name_are_there():
    for path in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"python -m benchmarks\.\w+", text), path.name
        for name in re.findall(r"python -m benchmarks ([a-z]\w*)", text):
            assert name in ("page", "gpu") or name in BENCHMARKS, f"{path.name}: {name}"


def test_the_list_says_what_there_is(capsys):
    assert program.main([]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", said, re.MULTILINE) for name in BENCHMARKS)
    for each in BENCHMARKS.values():
        assert each.measured() in said


def test_an_unknown_name_ends_with_2(capsys):
    assert program.main(["querry_speed"]) == 2
    assert "query_speed" in capsys.readouterr().err


def test_help_of_every_benchmark_names_it(capsys):
    for each in BENCHMARKS.values():
        with pytest.raises(SystemExit, match="0"):
            each.run(["--help"])
        said = capsys.readouterr().out
        assert f"python -m benchmarks {each.name}" in said
        assert f"--size {{{','.join(each.sizes)}}}" in said


@pytest.mark.parametrize("file", DEFENCE)
def test_the_command_of_a_table_of_the_defence_writes_that_file(file):
    asked, config = table_defense.asked(DEFENCE[file].split())
    assert f"{table_defense.name_of(asked.size, config)}.json" == file


def test_a_command_of_an_earlier_version_is_said():
    today = "python -m benchmarks table_defense --size small"
    stated = catalogue.origin(["table_defense-small-b-logits.json"], today)
    assert stated.endswith(", by an earlier version's `python -m benchmarks.table_defense --from FOLDER`")
    few = catalogue.origin(["table_defense-few-b-logits.json"], today.replace("small", "few"))
    assert "earlier" not in few and few != "not run"
    assert catalogue.origin(["no_such.json"]) == "not run"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.3.0", ", with more options"),
        ("0.2.0", ", with more options"),
        ("0.1.0", f", by an earlier version's `{SEEDED}`"),
    ],
)
def test_more_options_are_no_earlier_version_but_where_options_meant_something_else(
    monkeypatch, version, said
):
    found = {
        "machine": {"cpu": "A"},
        "versions": {"blackbox-coupling": version, "torch": "2"},
        "command": SEEDED,
    }
    monkeypatch.setattr(catalogue, "read", lambda name: found)
    assert catalogue.origin(["f.json"], SEEDED.partition(" --seeds")[0]) == f"A, {version}, torch 2{said}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_ci_size_runs(name, tmp_path):
    """In a process of its own: some start others, which import the main file again."""
    before = {path: path.stat().st_mtime_ns for path in protocol.RESULTS.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--size", "ci"],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in protocol.RESULTS.rglob("*")} == before
    for path in tmp_path.glob("runs/benchmarks/*-ci.json"):
        assert json.loads(path.read_text())["command"] == f"python -m benchmarks {name} --size ci"
