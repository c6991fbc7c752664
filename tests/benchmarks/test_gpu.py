"""`python -m benchmarks gpu`: every part runs small on a CPU, is not run twice, and is stopped in time."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import protocol
from benchmarks.gpu import page, runner
from benchmarks.gpu.parts import LIMIT, PARTS, Part
from benchmarks.gpu.queries import CONTENDERS, Traffic, runnable
from benchmarks.query_speed import measuring
from benchmarks.query_speed.problems import make
from tasks.folder.machine import versions

CPU = ["--device", "cpu", "--size", "ci"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty one, in which parts that run apart look too."""
    monkeypatch.setattr(protocol, "SCRATCH", tmp_path / "runs/benchmarks")
    root = os.getcwd()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return runner.folder_of("cpu", "ci")


def done(folder, name, **more):
    """A part's file, as if it had run."""
    part = PARTS[name]
    runner.keep(part, CPU, {"state": "done", "seconds": 1.0, **more}, folder, runner.machine_with_gpu("cpu"))


def test_a_part_that_is_there_is_not_run_again_unless_the_machine_is_another(folder, monkeypatch, capsys):
    ran = []

    def run_apart(part, options, limit, folder, here):
        ran.append(part.name)
        done(folder, part.name)
        return "done", 1.0

    monkeypatch.setattr(runner, "run_apart", run_apart)
    done(folder, "tests")
    words = ["gpu", "--parts", "tests", "tangents", *CPU]
    assert program.main(words) == 0
    assert ran == ["tangents"] and "tests: there already" in capsys.readouterr().out
    path = folder / "tests.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"versions": versions() | {"torch": "2.0.0"}}))
    program.main(words)
    assert ran[1:] == ["tests"]
    path.write_text("{")  # half of a file, of a disk that was full
    program.main(words)
    assert ran[2:] == ["tests"]


def test_no_part_begins_that_would_not_end_in_time(folder, monkeypatch, capsys):
    monkeypatch.setattr(runner, "run_apart", lambda *_: pytest.fail("it began"))
    program.main(["gpu", "--parts", "wake-small", "--minutes", "2", *CPU])
    assert capsys.readouterr().out.count("not begun") == 3


def test_all_parts_are_short_and_groups_name_them(folder, capsys):
    assert all(60 * part.minutes <= LIMIT for part in PARTS.values())
    program.main(["gpu", "--minutes", "0", "--parts", "epochs", "tests", *CPU])
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines()[:-1]] == [
        "tests", "shapes-epoch", "cifar10-epoch",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        program.main(["gpu", "--parts", "query-sped", *CPU])
    assert "query-speed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_that_hangs_is_stopped_and_one_that_fails_says_why(folder):
    part, here = PARTS["tests"], runner.machine_with_gpu("cpu")
    state, seconds = runner.run_apart(part, CPU, 0.5, folder, here)
    assert (state, page.read(folder, "tests")["state"]) == ("stopped", "stopped") and seconds < 60
    assert "Run it again" in page.text(folder)

    broken = replace(part, options={"kernel": "no such"})
    with pytest.raises(TypeError, match="kernel"):
        runner.run_here(broken, runner.Place("cpu", "ci", folder / "work"), folder, [])
    assert "TypeError: " in page.text(folder)
    assert not runner.is_there(folder, part, here)


def test_what_a_part_had_measured_when_it_was_stopped_is_in_its_file_and_on_the_page(folder, monkeypatch):
    def stopped(place):
        place.table().append({"rows": 16, "microseconds": 2.5})
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.gpu.checks.tests", stopped)
    with pytest.raises(KeyboardInterrupt):
        runner.run_here(PARTS["tests"], runner.Place("cpu", "ci", folder / "work"), folder, [])
    assert page.read(folder, "tests")["state"] == "stopped"
    assert "**Stopped**. What it had measured by then:\n\n| rows | microseconds |" in page.text(folder)


def test_all_tests_for_a_gpu_lie_where_the_part_looks_for_them():
    tests = Path(__file__).parents[1]
    marks = "mark.gpu", "tests.gpu.conftest"
    marked = [path for path in tests.rglob("*.py") if any(mark in path.read_text() for mark in marks)]
    assert {path.parent for path in marked if path != Path(__file__)} == {tests / "gpu"}


def test_the_page_has_a_table_of_each_kind_of_row_and_says_what_is_missing(folder):
    done(folder, "tests", rows=[{"a": 1, "b": 2.5}, {"a": 3, "b": None}, {"c": "x|y"}], notes=["Said first."])
    text = page.text(folder)
    assert "| a | b |\n| --- | --- |\n| 1 | 2.5 |\n| 3 |  |\n\n| c |\n| --- |\n| x/y |" in text
    assert text.index("Said first.") < text.index("| a | b |")
    assert text.count("Not run.") == len(PARTS) - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PARTS if name[-1] not in "12" and "-64" not in name])
def test_a_part_runs_small(folder, name):
    assert program.main(["gpu", "--parts", name, *CPU]) == 0
    found = page.read(folder, name)
    assert found["state"] == "done", found.get("error")
    assert found["rows"] and found["machine"]["gpu"] == "not used"
    if name.startswith("query-speed"):
        names = [row["evaluator"] for row in found["rows"] if row.get("precision") == "float32"]
        assert names == [*CONTENDERS]
        assert all(row["error"] < 0.25 and row["MB moved"] > 0 for row in found["rows"][: len(names)])
        assert found["rows"][-1]["microseconds a query"] > 0
    if name == "tangents":
        assert all(0 < row["share of the fit"] + row["share of the VJP"] < 1 for row in found["rows"])
    if name == "wake-speed":
        assert all(row["difference"] < 1e-3 for row in found["rows"] if row["difference"] is not None)
    if name.endswith("epoch"):
        assert found["rows"][0]["hours of 50 epochs"] > 0 and found["rows"][0]["queries"] > 0


def test_parts_have_names_of_their_own():
    assert all(isinstance(part, Part) and part.name == name for name, part in PARTS.items())


def test_an_evaluator_that_does_not_run_there_is_said_and_does_not_end_the_part(monkeypatch):
    def fails(evaluator, problem, base):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("zo.evaluators.Stacked.begin", fails)
    timed = make("wake", 2, "cpu", width=4)
    every = measuring.contenders(timed, ("loop", "stacked"), 2)
    found, why = runnable(timed, timed.blocks()[0], every, exact=True)
    assert list(found) == ["loop"]
    assert why == [{"does not run": "stacked", "because": "RuntimeError: no kernel image is available"}]


def test_memory_that_is_only_taken_is_not_read_or_written():
    x = torch.ones(8)
    with Traffic() as traffic:
        _ = torch.empty_like(x), x.new_empty(8), x.view(2, 4)
    assert (traffic.bytes, traffic.launches) == (0, 0)
    with traffic:
        _ = x + x
    assert (traffic.bytes, traffic.launches) == (3 * 8 * 4, 1)
