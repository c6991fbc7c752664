"""The catalogue: every benchmark runs, and the pages name what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import catalogue, figures, protocol, table_defense
from benchmarks.catalogue import BENCHMARKS, DEFENCE
from benchmarks.gpu.parts import PARTS
from tasks.applications.wake_flow import WakeFlow
from tests.test_documentation import PAGES

PRESETS = WakeFlow.presets

ROOT = Path(__file__).parents[2]
SEEDED = "python -m benchmarks tangents --size small --seeds 1"


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


def test_a_command_of_an_earlier_version_is_said(tmp_path, monkeypatch):
    today, earlier = "python -m benchmarks lens --size small", "python -m benchmarks.optics.lens --small"
    result = {"command": earlier, "machine": {"cpu": "Z80"}}
    result["versions"] = {"blackbox-coupling": "0.1.0", "torch": "2.13.0"}
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "RESULTS", tmp_path)
        (tmp_path / "lens.json").write_text(json.dumps(result))
        stated = catalogue.origin(["lens.json"], today)
    assert stated == f"Z80, 0.1.0, torch 2.13.0, by an earlier version's `{earlier}`"
    few = catalogue.origin(
        ["table_defense-few-b-logits.json"], "python -m benchmarks table_defense --size few"
    )
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
