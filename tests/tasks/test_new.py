"""`blackbox new` as a new user meets it: two files that work, a run, a report."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder as users have them."""
    folder = tmp_path / "Größe und Maß"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "module", "kind"),
    [
        ("brusselator", "brusselator", "Brusselator"),
        ("my-problem", "my_problem", "MyProblem"),
        ("MyProblem2", "my_problem2", "MyProblem2"),
    ],
)
def test_a_name_gives_a_file_a_class_and_a_test(toy, place, capsys, name, module, kind):
    assert toy("new", name, "--folder", "a b") == 0
    said = capsys.readouterr().out
    folder = place / "a b"
    text = (folder / f"{module}.py").read_text(encoding="utf-8")
    assert f"class {kind}(tasks.Problem):" in text and text.count("\n") < 90 and "$" not in text
    test = (folder / f"test_{module}.py").read_text(encoding="utf-8")
    assert f"from {module} import {kind}, Solver" in test and "$" not in test
    commands = re.findall(r"^  (\S.*?)(?:  |$)", said, flags=re.MULTILINE)
    assert commands == [
        f"blackbox run 'a b/{module}.py'",
        f"blackbox run 'a b/{module}.py' --help",
        f"python -m pytest 'a b/test_{module}.py'",
    ]


@pytest.mark.parametrize(
    "name", ["3d", "a b", "class", "tasks", "zo", "random", "torch", "a/b", ".", "", "ä"]
)
def test_names_that_cannot_be_imported_or_are_taken_are_refused(toy, tmp_path, capsys, name):
    assert toy("new", name) == 2
    assert f"blackbox: {name!r}: expected a name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["pump.py", "test_pump.py"])
def test_nothing_is_overwritten_and_nothing_half_written(toy, tmp_path, capsys, there):
    (tmp_path / there).write_text("mine")
    assert toy("new", "pump") == 2
    assert f"{there}: expected no such file, got one" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "mine")]


def test_what_it_writes_runs_to_a_report_with_a_picture(toy, place, capsys):
    assert toy("new", "pump-station") == 0
    words = ["--steps", "3", "--methods", "none", "tangents", "--seeds", "2"]
    assert toy("run", "pump_station.py", *words) == 0
    assert "PumpStation" not in capsys.readouterr().err
    (run,) = (place / "runs").iterdir()
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "tangents" in report and "A test state after" in report


@pytest.mark.slow
def test_the_test_that_it_writes_passes(toy, place):
    assert toy("new", "pump") == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_pump.py"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():  # of the developers' tools
        style = ["check", "--isolated", "--select", "E,F,I,B,UP", "--line-length", "110"]
        found = subprocess.run([ruff, *style, "."], cwd=place, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
