"""`blackbox new` as a new user meets it: two files that work, a run, a report."""

import builtins
import json
import math
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

KINDS = ("correct", "design", "program", "classifier", "hosted")
RUN = [pytest.param(kind, marks=pytest.mark.needs("cc")) if kind == "hosted" else kind for kind in KINDS]
BESIDE = {  # what is written beside the problem and its test
    "program": ["pump_one_program.py"],
    "hosted": ["bb_host.c", "bb_host.h", "pump_one.mk", "pump_one_program.c"],
}
BOXES = {"correct": "Solver", "design": "Score", "program": "tube", "classifier": "Service", "hosted": "rod"}
FIRST = {
    "correct": "test error",
    "design": "mass and penalty",
    "program": "temperature off",
    "classifier": "wrong",
    "hosted": "temperature off",
}
ROOT = Path(__file__).parents[2]
ruff = Path(sys.executable).with_name("ruff")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder as users have them."""
    folder = tmp_path / "Größe und Maß"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "pump", raising=False)  # of another test's folder
    monkeypatch.setattr(sys, "path", list(sys.path))
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
    commands = re.findall(r"^  (\S.*?)(?:  |$)", said, flags=re.MULTILINE)
    assert commands == [
        f"blackbox run 'a b/{module}.py'",
        f"blackbox run 'a b/{module}.py' --help",
        f"python -m pytest 'a b/test_{module}.py'",
    ]
    assert f"class {kind}(tasks.Problem):" in (place / "a b" / f"{module}.py").read_text(encoding="utf-8")


def test_what_has_to_be_installed_first_is_said(toy, place, capsys, limits):
    for there, said in ((True, 0), (False, 1)):
        name = f"pump-{said}"
        limits(find_module=lambda module, there=there: (there or None) if module == "pytest" else None)
        assert toy("new", name) == 0
        assert capsys.readouterr().out.count("(pip install pytest)") == said
    assert toy("new", "--help") == 0
    help = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Where the files are written" in help  # three of a program


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_short_complete_and_imports_what_its_test_does(toy, place, capsys, monkeypatch, kind):
    assert toy("new", "pump-one", "--kind", kind) == 0
    beside = BESIDE.get(kind, [])
    files = ["pump_one.py", "test_pump_one.py", *(name for name in beside if name.endswith(".py"))]
    assert sorted(path.name for path in place.iterdir()) == sorted({*files, *beside})
    text = {name: (place / name).read_text(encoding="utf-8") for name in files}
    assert all("$" not in each and each.count("\n") < 125 for each in text.values())
    assert "class PumpOne(tasks.Problem):" in text["pump_one.py"]
    assert re.search(rf"from pump_one import .*{BOXES[kind]}", text["test_pump_one.py"])
    said = capsys.readouterr().out
    checked = f"blackbox check pump_one.py:{BOXES[kind]} --samples pump_one_samples.npz" in said
    assert checked == (kind in ("program", "classifier")) and "blackbox run pump_one.py " in said
    for each in text.values():
        compile(each, "pump_one.py", "exec")
    if ruff.exists():  # of the developers' tools
        style = ["check", "--isolated", "--select", "E,F,I,B,UP", "--line-length", "110"]
        found = subprocess.run([ruff, *style, "."], cwd=place, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_the_program_of_the_template_answers_and_refuses_in_two_units(toy, place):
    assert toy("new", "pump", "--kind", "program") == 0

    def outputs(**given):
        lines = "".join(f"{name} = {value!r}\n" for name, value in given.items())
        (place / "input.txt").write_text(lines, encoding="utf-8")
        command = [sys.executable, "-I", "-S", "pump_program.py"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        return done, [float(line.split()[-1]) for line in (place / "output.txt").read_text().splitlines()]

    done, (outlet, drop) = outputs(flow=0.08, power=0.0, inlet=293.0)
    assert done.returncode == 0 and outlet == 293.0  # nothing is heated, nothing lost
    assert drop == pytest.approx(2.0 * 4e6 * 0.08**2 * 2.718**0.07, rel=1e-8)
    done, _ = outputs(flow=0.01, power=1e5, inlet=293.0)
    assert done.returncode == 1 and "the water boils" in done.stderr


def test_a_failed_row_of_the_template_is_left_out_of_every_figure(toy, place, monkeypatch):
    """One that is not too weak since NaN is not above zero would be a design that nobody has seen."""
    assert toy("new", "beam", "--kind", "design") == 0
    made = {"__name__": "beam"}
    exec(compile((place / "beam.py").read_text(encoding="utf-8"), "beam.py", "exec"), made)
    problem = made["Beam"]()
    judged = [
        torch.tensor([*pair]) for pair in ((20.0, math.nan, 20.0), (0.0, math.nan, 1.0), (0.9, math.nan, 2.0))
    ]
    monkeypatch.setattr(problem, "judged", lambda network, load: judged)
    found = problem.evaluate(problem.network())
    assert {name: (found[name].value, found[name].failed) for name in problem.units} == {
        "mass and penalty": (35.0, 1),
        "mass": (20.0, 1),
        "too weak": (50.0, 1),
    }


@pytest.mark.parametrize(
    "name", ["3d", "a b", "class", "tasks", "zo", "random", "torch", "a/b", ".", "", "ä"]
)
def test_names_that_cannot_be_imported_or_are_taken_are_refused(toy, tmp_path, capsys, name):
    assert toy("new", name) == 2
    assert f"blackbox: {name!r}: expected a name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_class_takes_a_name_that_its_file_or_its_test_has(toy, place, capsys, monkeypatch, kind):
    """`class Hosted(tasks.Problem)` below `from blackbox.adapters import Hosted` would stand in its place."""
    assert toy("new", "pump-one", "--kind", kind) == 0
    monkeypatch.syspath_prepend(place)
    has = set(vars(builtins))
    for file in ("pump_one.py", "test_pump_one.py"):
        made = {"__name__": "made", "__file__": str(place / file)}
        exec(compile((place / file).read_text(encoding="utf-8"), file, "exec"), made)
        has |= set(made)
    del sys.modules["pump_one"]  # which the test imported
    capsys.readouterr()
    names = {name: re.sub("(?<=[a-z0-9])(?=[A-Z])", "-", name).lower() for name in has - {"PumpOne"}}
    classes = {name: word for name, word in names.items() if name == word.title().replace("-", "")}
    assert {"ArraySpec", "Positive", "ValueError"} <= set(classes)
    there = sorted(place.iterdir())
    for name, word in classes.items():
        assert toy("new", word, "--kind", kind) == 2
        said = capsys.readouterr().err
        assert f"blackbox: {word!r}: expected a name" in said and f"Take another, such as my-{word}." in said
        assert name in said
    assert sorted(place.iterdir()) == there
    assert toy("new", f"my-{word}", "--kind", kind) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["class"], "'class': expected a name that Python leaves free, got 'class', which is a word of"),
        (["none"], "'none': expected a name that Python leaves free, got 'None', which is a word of"),
        (["pump", "--folder", "no/such/place"], "got no/such/place: there is no no/such. Correct the path"),
        (["pump", "--folder", "file"], "--folder: expected a folder, got the file file."),
    ],
)
def test_a_word_of_python_and_a_folder_that_cannot_be_are_said_as_what_they_are(
    toy, tmp_path, capsys, words, said
):
    (tmp_path / "file").write_text("")
    assert toy("new", *words) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("there", ["pump.py", "test_pump.py"])
def test_nothing_is_overwritten_and_nothing_half_written(toy, tmp_path, capsys, there):
    (tmp_path / there).write_text("mine")
    assert toy("new", "pump") == 2
    assert f"{there}: expected no such file, got one" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "mine")]


@pytest.mark.parametrize("kind", ["correct", pytest.param("design", marks=pytest.mark.slow)])
def test_what_it_writes_runs_to_a_report_with_a_picture(toy, place, capsys, kind):
    assert toy("new", f"pump-{kind}", "--kind", kind) == 0
    words = ["--steps", "2", "--methods", "none", "tangents", "--seeds", "2"]
    assert toy("run", f"pump_{kind}.py", *words) == 0
    said = capsys.readouterr()
    assert "Pump" not in said.err and "warn" not in said.err.lower() and FIRST[kind].split()[0] in said.out
    (run,) = (place / "runs").iterdir()
    assert FIRST[kind] in (run / "table.md").read_text(encoding="utf-8")  # a terminal's columns are narrow
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "tangents" in report and (run / "picture-1.png").is_file()


def lightest(loads):
    """Mean mass and penalty of the best beams for some loads, by autograd through a beam's formulas."""
    arm = 1.0 - (torch.arange(8) + 0.5) / 8  # m
    moment = loads[:, None] * arm
    free = torch.full(moment.shape, 30.0, requires_grad=True)
    optimizer = torch.optim.Adam([free], 0.2)
    for _ in range(1000):
        heights = free.clamp(min=10.0) / 1000  # m
        inertia = 0.04 * heights**3 / 12
        bending = (moment * arm / 8 / (210e9 * inertia)).sum(dim=1, keepdim=True)
        stress = moment * heights / 2 / inertia
        used = torch.cat([bending / 0.010, stress / 150e6], dim=1)
        losses = 7850 * 0.04 * heights.mean(dim=1) + 30.0 * torch.log1p(used**10).sum(dim=1) / 10
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return losses.mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUN)
def test_each_line_that_it_says_comes_next_works_without_a_warning(place, kind):
    """As a user types them, in processes: make, run, the help, the test, rows, the check."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])

    def typed(line):
        done = subprocess.run(
            line, shell=True, cwd=place, env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        fine = "no faults" in said if "blackbox check" in line else "warning" not in said.lower()
        fine |= "-m pytest" in line  # three steps are too few for some, which are told so
        assert done.returncode == 0 and fine, f"{line}: {said}"
        return said

    said = typed(f"blackbox new pump --kind {kind}")
    lines = re.findall(r"^  (\S.*?)(?:  |$)", said, flags=re.MULTILINE)
    if kind in ("correct", "design"):
        lines.append(f"blackbox check pump.py:{BOXES[kind]}")
    said = {line: typed(line) for line in lines}
    assert [line.split()[1] for line in lines if line.startswith("blackbox")] == ["run", "run", "check"]
    assert re.search("[34] passed", said["python -m pytest test_pump.py"])

    said = said["blackbox run pump.py"]
    assert "┏" in said and FIRST[kind] in said
    if kind == "hosted":
        assert "Cost: one evaluation" in said and "if it is a grid or a line of cells" not in said
    (run,) = (place / "runs").iterdir()
    table = json.loads((run / "result.json").read_text())["table"]
    assert {line["metric"] for line in table} == {FIRST[kind]}
    found = {line["method"]: line["value"] for line in table}
    assert table[0]["method"] == "none" and min(found.values()) < 0.75 * found["none"]
    if kind == "correct":  # three seeds: .0197 at the start, .0179 +- .0018, .0129 and .0129
        assert found["tangents"] < 0.85 * found["no-gradient"]
        assert found["tangents"] < 1.1 * found["first-order"]
    if kind == "design":
        made = {"__name__": "pump"}
        exec(compile((place / "pump.py").read_text(encoding="utf-8"), "pump.py", "exec"), made)
        assert found["tangents"] < 1.03 * lightest(made["Pump"]().data.test)
    assert (run / "report.html").is_file() and (run / "picture-1.png").is_file()
