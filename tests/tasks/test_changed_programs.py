"""A program that is compiled again between a kill and resume: the run goes on with it, and says so."""

import warnings
from hashlib import sha256
from html import unescape

import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction, Cached
from blackbox.adapters import CommandLine
from blackbox.wrappers.sources import files_of
from tasks.errors import CheckpointWarning
from tasks.folder.machine import changes, digest_of_files
from tests.tasks.made_runs import begun_run, made

SCRIPT = "#!/bin/sh\nread x < x.txt\necho $x > y.txt\n"


class Killed(Exception):
    pass


class Named(BlackBoxFunction):
    inputs, outputs = (ArraySpec("x", ()),), (ArraySpec("y", ()),)

    def __init__(self, **attributes):
        vars(self).update(attributes)
        super().__init__()

    def evaluate(self, x):
        return x


class Programmed(tasks.Problem):
    def box(self):
        return CommandLine(
            [self.folder / "program"],
            [ArraySpec("x", ())],
            [ArraySpec("y", ())],
            input_templates={"x.txt": "{x}\n"},
            output_files={"y": "y.txt"},
        )

    def network(self):
        return torch.nn.Linear(1, 1)

    def data(self):
        return tasks.Data.split(torch.rand(8, 1), batch=1, validation=1, test=1)

    def objective(self, network, rows):
        return self.boxes["box"](network(rows)[:, 0]).square()

    def evaluate(self, network):
        if (self.folder / "kill").exists():
            raise Killed
        return {"loss": 1.0}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("changes", [True, False])
def test_a_program_that_was_compiled_again_is_named_on_resume_and_in_the_report(tmp_path, changes):
    program, kill = tmp_path / "program", tmp_path / "kill"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    kill.touch()
    problem = Programmed(folder=tmp_path, methods=["none"])
    with pytest.raises(Killed):
        tasks.run(problem, runs=tmp_path / "runs")
    kill.unlink()
    (folder,) = (tmp_path / "runs").iterdir()
    if changes:
        program.write_text(SCRIPT + "# another\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks.run(problem, resume=folder)
    said = [str(one.message) for one in caught if one.category is CheckpointWarning]
    before, now = (sha256(text.encode()).hexdigest()[:12] for text in (SCRIPT, program.read_text()))
    named = f"program {before} -> {now}"
    assert [named in one and "the result is of both" in one for one in said] == [True] * changes
    assert (named in unescape((folder / "report.html").read_text())) == changes


def test_the_files_of_a_box_are_those_of_its_paths_inside_its_wrappers(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    folder = {"mesh": tmp_path, "inside": {"b": [tmp_path / "b"]}, "text": str(tmp_path / "c")}
    box = Named(a=tmp_path / "a", others=folder, gone=tmp_path / "gone")
    assert files_of(box) == [tmp_path / "a", tmp_path / "b"]
    assert files_of(Cached(box, tmp_path / "answers")) == files_of(box)
    assert files_of(Named(a=tmp_path / "a", files=(tmp_path / "c", tmp_path))) == [tmp_path / "c", tmp_path]


def test_the_files_of_a_command_are_its_program_paths_templates_and_copies(tmp_path):
    for name in ("program", "script", "template", "mesh"):
        (tmp_path / name).write_text("{x}")
    (tmp_path / "program").chmod(0o755)
    box = CommandLine(
        [str(tmp_path / "program"), "word", tmp_path / "script"],
        [ArraySpec("x", ())],
        [ArraySpec("y", ())],
        input_templates={"x.txt": tmp_path / "template"},
        output_templates={"y.txt": "{y}"},
        copies={"mesh": str(tmp_path / "mesh")},
    )
    assert files_of(box) == [tmp_path / name for name in ("program", "script", "template", "mesh")]


def test_files_are_held_against_those_that_the_run_began_with(tmp_path):
    file = tmp_path / "torch"  # the name of a package, too
    file.write_text("1")
    run = made(tmp_path, {"none": 1.0}, finished=False)
    assert run.note_files([file]) == ""
    assert run.reread().versions[str(file)] == digest_of_files([file])[str(file)]
    file.write_text("2")
    assert run.note_files([file]).startswith(f"{file} ")
    file.unlink()
    assert run.note_files([file]).endswith(" -> gone")


def test_a_program_with_the_name_of_the_problem_s_file_is_another_file(tmp_path):
    code, program = (tmp_path / name / "solve.py" for name in ("problem", "simulator"))
    for file in (code, program):
        file.parent.mkdir()
        file.write_text(str(file))
    run = begun_run(tmp_path, "toy", "own", tasks.Config(), (0,), problem=f"{code}:Toy")
    assert run.note_files([program]) == "" == run.reread().note_files([program])
    result = run.finish([tasks.Row("cge", 0, "error", 1.0)])
    assert changes(run.reread().versions, result.versions) == ""
    program.write_text("another")
    assert run.note_files([program]).startswith(f"{program} ")


class WrittenAnew(Programmed):
    """Its program is written anew by the second validation."""

    written = SCRIPT + "# another\n"

    def validate(self, network):
        (self.folder / "validated").open("a").write("x")
        if (self.folder / "validated").stat().st_size == 2:
            (self.folder / "program").write_text(self.written)
        return 1.0

    def evaluate(self, network):
        return {"loss": 1.0}


class Touched(WrittenAnew):
    written = SCRIPT


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("problem", [WrittenAnew, Touched])
def test_a_program_that_is_compiled_again_while_a_run_goes_on_is_named_once(tmp_path, problem, capsys):
    (tmp_path / "program").write_text(SCRIPT)
    (tmp_path / "program").chmod(0o755)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks.run(
            problem(folder=tmp_path, methods=["cge"], steps=4, validate_every=1),
            runs=tmp_path / "runs",
        )
    said = [str(one.message) for one in caught if "while the run goes on" in str(one.message)]
    assert len(said) == (problem is WrittenAnew)
    assert all("but program changed" in one for one in said)
    printed = capsys.readouterr().out  # all validations are equal, and the plan knows the rows of none
    assert printed.count("seed-0/cge: no validation was better than that of the start") == 1
    assert "not known beforehand; 5 rows if it asks for each row of its data once" in printed
    assert ", up to " in printed and "of them at the first step" in printed


class OftenFailing(Programmed):
    def data(self):
        return tasks.Data.split(torch.rand(16, 1), batch=8, test=1)

    def objective(self, network, rows):  # penalised, or no-gradient would reach no weight
        return super().objective(network, rows) + network(rows)[:, 0].square()

    def evaluate(self, network):
        return {"loss": 1.0}


@pytest.mark.slow
def test_the_first_cause_of_rows_that_fail_in_training_is_said_once(tmp_path, capsys):
    fails_by_the_last_digit = "case $x in *[13579]) echo gone >&2; exit 3;; esac\n"
    (tmp_path / "program").write_text(SCRIPT + fails_by_the_last_digit)
    (tmp_path / "program").chmod(0o755)
    tasks.run(OftenFailing(folder=tmp_path, methods=["no-gradient"], steps=2), runs=tmp_path / "runs")
    said = [line for line in capsys.readouterr().out.splitlines() if "rows fail. The first: row " in line]
    assert len(said) == 1
    assert said[0].endswith("its stderr: gone).")
