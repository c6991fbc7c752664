"""A run's folder names code; only one that this user made, or trusts, has it executed."""

import hashlib
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

import tasks
from tasks import Run
from tasks.command.cli import main
from tasks.configuration import names, trust
from tests.tasks.made_runs import begun_run


@dataclass(frozen=True)
class Settings:
    """Of no problem."""


PROBLEM = """
from pathlib import Path
from toy import Toy
(Path(__file__).parent / "executed").touch()

class Own(Toy):
    "A problem of one's own."
    def report(self, found):
        from tasks.report.html_report import Paragraph
        return [Paragraph("My own part.")]
"""


@pytest.fixture
def own(toy, tmp_path):
    """A finished run of a problem in a file, and what says that the file was executed."""
    (tmp_path / "own_problem.py").write_text(PROBLEM)
    assert toy("run", "own_problem.py:Own", "--steps", "2") == 0
    (run,) = (tmp_path / "runs").iterdir()
    mark = tmp_path / "executed"
    mark.unlink()
    return run, mark


@pytest.fixture
def another_user(monkeypatch, tmp_path):
    """From here on the commands are those of someone else."""

    def change():
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another"))

    return change


def forget(*names):
    import sys

    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_one_who_made_a_run_is_not_asked(own, toy, tmp_path):
    run, mark = own
    moved = shutil.move(run, tmp_path / "moved")  # a folder may be moved and renamed
    (moved / "result.json").unlink()
    forget("own_problem")
    assert toy("resume", str(moved)) == 0
    assert mark.exists()


def test_resume_of_a_folder_from_elsewhere_asks_for_trust_and_names_the_file(
    own, toy, capsys, another_user, tmp_path
):
    run, mark = own
    another_user()
    forget("own_problem")
    (run / "result.json").unlink()
    for workers in ("1", "2"):
        assert toy("resume", str(run), "--workers", workers) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"execute {tmp_path / 'own_problem.py'}:Own" in said
        assert said.endswith(f"blackbox resume {run} --trust\n")
    assert not mark.exists()
    assert toy("resume", str(run), "--trust") == 0
    assert mark.exists()


@pytest.mark.slow
def test_a_report_needs_no_code_and_says_what_it_leaves_out(own, toy, capsys, another_user):
    run, mark = own
    assert "My own part." in (run / "report.html").read_text()
    another_user()
    forget("own_problem")
    for command in ("report", "resume"):  # of a finished run that is the same
        (run / "report.html").unlink()
        assert toy(command, str(run)) == 0
        assert "The page stays as it is: to make it anew would execute" in capsys.readouterr().out
        assert (run / "report.html").exists() and not mark.exists()
    assert toy("report", str(run), "--trust") == 0
    assert "My own part." in (run / "report.html").read_text() and mark.exists()


def test_load_gives_tables_without_trust_and_networks_with_it(own, another_user):
    run, mark = own
    another_user()
    forget("own_problem")
    found = tasks.load(run)
    assert list(found.table["method"]) == ["sparse-cge", "no-gradient"] and not mark.exists()
    with pytest.raises(TypeError, match="expected the problem's code"):
        found.network("sparse-cge")
    assert tasks.load(run, trust=True).network("sparse-cge") is not None and mark.exists()


@pytest.mark.slow
def test_a_run_whose_file_is_gone_still_has_its_report(own, toy, tmp_path, capsys):
    run, _ = own
    (tmp_path / "own_problem.py").unlink()
    (run / "report.html").unlink()
    assert toy("report", str(run)) == 0
    assert "or the file is gone" in capsys.readouterr().out and (run / "report.html").exists()


@pytest.mark.slow
def test_another_file_in_the_same_folder_is_not_trusted_with_it(own, toy, tmp_path, capsys):
    run, mark = own
    (tmp_path / "other.py").write_text(PROBLEM)
    config = json.loads((run / "config.json").read_text())
    config["problem"] = f"{tmp_path / 'other.py'}:Own"
    (run / "config.json").write_text(json.dumps(config))
    (run / "result.json").unlink()
    assert toy("resume", str(run)) == 2
    assert "other.py:Own" in capsys.readouterr().err and not mark.exists()


@pytest.mark.slow
def test_names_of_installed_problems_need_no_trust(toy, tmp_path, another_user):
    assert toy("run", "toy", "--steps", "2") == 0
    (run,) = (tmp_path / "runs").iterdir()
    (run / "result.json").unlink()
    another_user()
    assert toy("resume", str(run)) == 0


def test_what_a_user_runs_is_written_down_once_where_others_cannot_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first, second = (trust.problem(text) for text in ("a.py:A", "b.py:B\nc.py:C"))
    assert not trust.is_own(first)
    for code in (first, first, second):
        trust.note(code)
    listed = tmp_path / "blackbox" / "trusted"
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600 and listed.read_text().count("\n") == 2
    assert trust.is_own(first) and trust.is_own(second)
    others = (trust.problem(text) for text in ("a.py", "A", "c.py:C", "a.py:A\n", ""))
    assert not any(map(trust.is_own, others))
    assert not trust.is_own(trust.Script(Path("a.py").resolve()))  # another thing to do with the same file
    listed.chmod(0o620)  # others could have written it
    assert not trust.is_own(first)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    trust.note(first)
    assert not trust.is_own(first)  # nothing to keep it in: such runs are asked about
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    trust.note(first)
    assert trust.is_own(first) and (tmp_path / "home/.local/state/blackbox/trusted").exists()


@pytest.mark.slow
def test_code_that_changed_since_the_run_began_is_named(own, toy, tmp_path):
    run, _ = own
    (run / "result.json").unlink()
    with (tmp_path / "own_problem.py").open("a") as stream:
        stream.write("\n# changed\n")
    forget("own_problem")
    with pytest.warns(UserWarning, match=r"own_problem\.py [0-9a-f]{12} -> [0-9a-f]{12}"):
        assert toy("resume", str(run)) == 0
    assert Run.open(run).finished


def test_files_of_one_name_have_a_version_each(tmp_path):
    files = [tmp_path / name / "net.py" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text(f"{file}\n")
    first, second = (hashlib.sha256(f"{file}\n".encode()).hexdigest()[:12] for file in files)
    codes = [trust.named(f"{file}:Net") for file in (*files, *files)]
    assert trust.versions(codes) == {"net.py": first, str(files[1]): second}


@pytest.mark.slow
def test_settings_that_changed_since_the_run_began_are_refused_by_name(toy, tmp_path, capsys):
    assert toy("run", "toy", "--fault", "stop", "--fault-at", "7") != 0
    capsys.readouterr()
    (run,) = (tmp_path / "runs").iterdir()
    config = run / "config.json"
    config.write_text(config.read_text().replace('"learning_rate": 0.05', '"learning_rate": 0.5'))
    for status in (2, 1):  # by the copy that the run began with, and without it by the checkpoint
        assert toy("resume", str(run)) == status
        assert "learning_rate 0.05 (now 0.5)" in capsys.readouterr().err
        (run / "begun.json").unlink(missing_ok=True)
    assert not (run / "result.json").exists() and os.listdir(run / "checkpoints")


@pytest.mark.slow
def test_a_folder_that_names_a_script_beside_its_problem_executes_neither(own, toy, capsys, another_user):
    run, mark = own
    another_user()
    forget("own_problem")
    config = json.loads((run / "config.json").read_text())
    config["script"] = names.PROBLEMS["wake-flow"]  # which ships, so it is trusted
    (run / "config.json").write_text(json.dumps(config))
    (run / "report.html").unlink()
    assert toy("report", str(run)) == 2
    assert "expected a script or a problem, got both" in capsys.readouterr().err and not mark.exists()


def test_a_module_is_trusted_where_it_was_run_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        folder.mkdir()
    monkeypatch.chdir(mine)
    module, file = trust.problem("package.module:Own"), trust.problem("own.py:Own")
    trust.note(module)
    trust.note(file)
    assert trust.is_own(module)
    monkeypatch.chdir(theirs)
    assert not trust.is_own(module) and not trust.is_own(trust.problem("own.py:Own"))
    assert trust.is_own(trust.problem(f"{mine}/own.py:Own"))


SHIPPED = names.PROBLEMS["wake-flow"]
DISGUISES = {  # what a folder's config.json has of problem, script and command, and the file beside it
    "a shipped class": ({"script": SHIPPED}, SHIPPED),
    "a shipped name": ({"script": "wake-flow"}, "wake-flow"),
    "a shipped class up and down": ({"script": f"../here/{SHIPPED}"}, SHIPPED),
    "an option": ({"script": "-c", "command": ["blackbox", 'open("EXECUTED", "w")']}, "-c"),
    "an option with its value": ({"script": '-copen("EXECUTED","w")'}, '-copen("EXECUTED","w")'),
    "a relative script": ({"script": "run.py"}, "run.py"),
    "a file of a shipped name": ({"problem": f"{SHIPPED}.py"}, f"{SHIPPED}.py"),
    "a file by a shipped name": ({"problem": "wake-flow.py:WakeFlow"}, "wake-flow.py"),
    "a module": ({"problem": "payload:WakeFlow"}, "payload.py"),
    "a file of a module's name": ({"problem": "payload.py:WakeFlow"}, "payload.py"),
    "two colons": ({"problem": f"payload.py:{SHIPPED}"}, "payload.py"),
}  # fmt: skip


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("kind", DISGUISES)
def test_nothing_is_trusted_for_bearing_a_shipped_name(kind, tmp_path, monkeypatch, capfd):
    changed, file = DISGUISES[kind]
    (folder := tmp_path / "here").mkdir()
    monkeypatch.chdir(folder)
    run = begun_run(folder / "runs", "wake-flow", "demo", Settings(), [0], problem=SHIPPED)
    bare = {"problem": "", "command": ["blackbox"]}  # what has arguments is trusted with them alone
    for path in (run.path / "config.json", run.path / "begun.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | (bare | changed if "command" in content else {})))
    (folder / file).write_text('open("EXECUTED", "w").write("x")\n')
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was executed"))
    assert main(["resume", str(run.path)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and ("--trust" in said or "absolute path" in said)
    assert not (folder / "EXECUTED").exists()


def test_what_ships_needs_no_trust_by_its_name_or_its_class():
    for text in (*names.PROBLEMS, *names.PROBLEMS.values()):
        assert isinstance(trust.problem(text), trust.Shipped) and trust.is_own(trust.problem(text))
