"""What users do wrong, and what goes wrong around them: one sentence, the right status, nothing left."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.tasks.test_cli import BOXES, only_run

ROOT = Path(__file__).parents[2]
ABSURD = [  # (words, what the one sentence has)
    (["--timeout", "1e300"], "--timeout: expected 0.001 to 2,592,000, got 1e+300."),
    (["--timeout", "nan"], "--timeout: expected 0.001 to 2,592,000, got nan."),
    (["--timeout", "-1"], "--timeout: expected"),
    (["--seeds", "1000000000000"], "--seeds: expected 1 to 10,000, got 1000000000000."),
    (["--workers", "100000"], "--workers: expected 1 to "),
    (["--threads", "100000"], "threads: expected less than or equal to 1024, got 100000."),
    (["--steps", "0"], "steps: expected greater than or equal to 1, got 0."),
    (["--steps", "9" * 30], "steps: expected "),
    (["--learning-rate", "nan"], "learning_rate: expected a finite number, got nan."),
    (["--learning-rate", "-1"], "learning_rate: expected greater than 0, got -1.0."),
    (["--methods"], "methods: "),
    (["--methods", "tangent"], "tangents"),
]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("words", "said"), ABSURD, ids=[" ".join(words) for words, _ in ABSURD])
def test_absurd_values_are_refused_before_anything_begins(toy, tmp_path, capsys, words, said):
    assert toy("run", "toy", *words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


def test_an_absurd_value_of_a_group_of_settings_is_refused_in_the_same_words(toy, tmp_path, capsys):
    assert toy("run", "toy", "--mu", "inf") == 2
    assert "mu: expected a finite number, got inf." in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


def test_more_frames_than_a_disk_takes_are_refused(toy, tmp_path, capsys):
    assert toy("run", "wake-flow", "--frames", "999999999999") == 2
    assert "frames: expected less than or equal to 1000000, got 999999999999." in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_data_that_cannot_be_written_is_named_and_leaves_no_folder(toy, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert toy("run", "wake-flow", "--width", "8", "--data", "file/data") == 1
    said = f"blackbox: {tmp_path / 'file' / 'data'}: expected a file or folder that can be "
    assert capsys.readouterr().err.startswith(said)
    assert list((tmp_path / "runs").iterdir()) == []


def test_more_memory_than_there_is_is_one_sentence_and_no_folder(toy, tmp_path, capsys):
    assert toy("run", "toy", "--batch", "99999999999999") == 1
    err = capsys.readouterr().err
    assert "expected memory for what the settings ask for" in err and err.count("\n") == 1
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("seeds", [[], [-1], [0, 0], [2**70]])
def test_seeds_that_are_none_or_absurd_are_refused_in_a_folder_too(toy, run, capsys, seeds):
    config = run.path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"seeds": seeds}))
    assert toy("resume", str(run.path)) == 2
    assert "seeds: expected" in capsys.readouterr().err
    assert not (run.path / "result.json").exists()


@pytest.mark.parametrize(
    "words",
    [["check", "lorenz-96", "--rows", "0"], ["check", "lorenz-96", "--seed", "-1"],
     ["serve", "lorenz-96", "--port", "99999"], ["serve", "lorenz-96", "--threads", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_absurd_values_of_boxes_are_refused_too(toy, capsys, words):
    assert toy(*words) == 2
    assert re.fullmatch(r"blackbox: --\w+: expected .*, got .*\n", capsys.readouterr().err)


def test_a_setting_that_has_the_name_of_an_option_is_refused(toy, tmp_path, capsys):
    (tmp_path / "taken.py").write_text(
        "from dataclasses import dataclass\nfrom toy import Toy\n\nclass Taken(Toy):\n    presets = {}\n"
        "    @dataclass(frozen=True)\n    class Config(Toy.Config):\n        workers: int = 1\n"
    )
    assert toy("run", "taken.py") == 2
    assert "Taken.Config: expected names that `blackbox run` has not itself, got workers." in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_an_error_of_data_generation_ends_with_1_and_the_line_to_resume(toy, tmp_path, capsys, monkeypatch):
    from simulators.errors import ReferenceDataError

    pool = BrokenProcessPool("A process in the process pool was terminated abruptly.")
    begins = {
        pool: "expected processes that go on to the end, got one that died: A process in the process pool"
    }
    begins[ReferenceDataError("Reference at Re 100: got NaN.")] = "Reference at Re 100: got NaN."
    for number, (error, begin) in enumerate(begins.items()):
        monkeypatch.setattr("tasks.report.write", Mock(side_effect=error))
        assert toy("run", "toy", "--steps", "2", "--runs", f"runs{number}") == 1
        err = capsys.readouterr().err
        (path,) = (tmp_path / f"runs{number}").iterdir()
        assert err.startswith(f"blackbox: {begin}")
        assert err.endswith(f"Resume with: blackbox resume {path.relative_to(tmp_path)}\n")


PARTS = ["box", "network", "data", "objective", "evaluate"]
WAYS = ["sys.exit(0)", "exit()", "argparse.ArgumentParser().parse_args(['--no'])"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("part", "how"), [*((part, WAYS[0]) for part in PARTS), *(("", way) for way in WAYS)]
)
def test_code_that_exits_never_passes_for_a_run_that_ended(toy, tmp_path, capsys, part, how):
    ends = f"import argparse, sys\nfrom toy import Toy\n{'' if part else how}\nclass Ending(Toy):\n    "
    (tmp_path / "ending.py").write_text(
        ends + (f"def {part}(self, *a):\n        {how}\n" if part else "pass\n")
    )
    sys.modules.pop("ending", None)
    assert toy("run", "ending.py", "--steps", "1") == 1
    err = capsys.readouterr().err
    place = f"blackbox: {tmp_path / 'ending.py'}, line {6 if part else 3}"
    assert place in err and "called sys.exit(" in err
    if part and part != "evaluate":
        assert "Nothing was begun" in err and list((tmp_path / "runs").iterdir()) == []


MOVING = """
import os
from pathlib import Path
import toy

ELSEWHERE = Path("elsewhere").absolute()

class Line(toy.Line):
    def evaluate_rows(self, x):
        ELSEWHERE.mkdir(exist_ok=True)
        os.chdir(ELSEWHERE)
        return super().evaluate_rows(x)

class Moving(toy.Toy):
    def box(self):
        return Line()
"""


@pytest.mark.slow
def test_a_box_that_changes_the_working_directory_takes_the_run_nowhere_else(toy, tmp_path, capsys):
    (tmp_path / "moving.py").write_text(MOVING)
    sys.modules.pop("moving", None)
    assert toy("run", "moving.py", "--steps", "2") == 0
    assert Path.cwd() == tmp_path
    path = only_run(tmp_path)
    assert (path / "result.json").is_file() and (path / "report.html").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (path / "result.json").unlink()
    assert toy("resume", str(path.relative_to(tmp_path))) == 0
    assert (path / "result.json").is_file() and Path.cwd() == tmp_path
    assert f"Run folder: {path.relative_to(tmp_path)}" in capsys.readouterr().out


BROKEN = {
    "at import": ("1 / 0\n" + BOXES, "ZeroDivisionError: division by zero"),
    "of syntax": (BOXES + "\ndef (", "SyntaxError"),
    "when made": (BOXES.replace("self.leak, self.total = leak", "self.leak = leaky #"), "NameError"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_broken_box_has_a_sentence_and_the_users_own_traceback(toy, tmp_path, capsys, command, fault):
    source, kind = BROKEN[fault]
    (tmp_path / "broken_box.py").write_text(source)
    sys.modules.pop("broken_box", None)
    assert toy(command, "broken_box.py:Pump") == 1
    first, *trace = capsys.readouterr().err.splitlines()
    assert first.startswith(f"blackbox: {tmp_path / 'broken_box.py'}, line ") and kind in first
    assert "your code raised" in first and trace[-1].startswith(kind.partition(":")[0])
    assert not any(str(ROOT / "tasks") in text or str(ROOT / "blackbox") in text for text in trace)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("part", PARTS)
def test_an_error_in_any_part_of_a_problem_is_the_users_and_says_how_to_go_on(toy, tmp_path, capsys, part):
    body = (
        f"from toy import Toy\nclass Broken(Toy):\n    def {part}(self, *arguments):\n        return 1 / 0\n"
    )
    (tmp_path / "broken_problem.py").write_text(body)
    sys.modules.pop("broken_problem", None)
    assert toy("run", "broken_problem.py", "--steps", "1") == 1
    first, *trace, last = capsys.readouterr().err.splitlines()
    place = f"{tmp_path / 'broken_problem.py'}, line 4, in {part}"
    assert first == f"blackbox: {place}: your code raised ZeroDivisionError: division by zero"
    assert trace[1] == f'  File "{tmp_path / "broken_problem.py"}", line 4, in {part}'
    if part == "evaluate":  # by then there is something to go on with
        assert last == f"Resume with: blackbox resume {only_run(tmp_path).relative_to(tmp_path)}"
    else:
        assert last.startswith("Nothing was begun") and list((tmp_path / "runs").iterdir()) == []


def test_an_error_of_code_in_the_first_batch_leaves_nothing_to_resume(toy, tmp_path, capsys):
    (tmp_path / "one_loss.py").write_text(
        "from toy import Toy\nclass OneLoss(Toy):\n    def objective(self, network, batch):\n"
        "        return super().objective(network, batch).mean()\n"
    )
    sys.modules.pop("one_loss", None)
    assert toy("run", "one_loss.py", "--steps", "1") == 1
    err = capsys.readouterr().err
    assert "expected one floating loss per row" in err and "Resume with" not in err
    assert re.search(r"Nothing was trained; runs/one-loss-\S+ is removed\. Mend that, and run it", err)
    assert list((tmp_path / "runs").iterdir()) == []


DTYPES = {
    "torch.nn.Linear(1, 1)(torch.zeros(2, 1).double())": "torch.as_tensor(x, dtype=torch.float32)",
    "torch.zeros(2, 2).gather(1, torch.zeros(2, 1))": "labels.long()",
    "torch.nn.functional.nll_loss(torch.zeros(2, 2), torch.zeros(2))": "labels.long()",
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("line", DTYPES)
def test_a_wrong_dtype_is_one_sentence(toy, tmp_path, capsys, line):
    body = f"import torch\nfrom toy import Toy\nclass Typed(Toy):\n    def data(self): {line}\n"
    (tmp_path / "typed.py").write_text(body)
    sys.modules.pop("typed", None)
    assert toy("run", "typed.py", "--steps", "1") == 1
    said, advice = capsys.readouterr().err.splitlines()
    assert "typed.py, line 4, in data: your code raised RuntimeError" in said and DTYPES[line] in said
    assert advice.startswith("Nothing was begun")


def test_frames_of_packages_are_left_out_of_a_traceback(toy, tmp_path, capsys):
    body = "import torch\nfrom toy import Toy\nclass Shaped(Toy):\n"
    body += "    def data(self): torch.nn.Sequential(torch.nn.Linear(1, 1))(torch.zeros(2, 3))\n"
    (tmp_path / "shaped.py").write_text(body)
    sys.modules.pop("shaped", None)
    assert toy("run", "shaped.py", "--steps", "1") == 1
    said = capsys.readouterr().err
    assert "mat1 and mat2 shapes cannot be multiplied" in said.splitlines()[0]
    assert said.count('  File "') == 1 and "in _call_impl" not in said


def test_a_package_that_lies_beside_the_environment_is_not_the_users_code(toy, tmp_path, capsys, monkeypatch):
    """Those of `pip install --user`, and of a system below an environment, lie in such folders."""
    packages = tmp_path / "elsewhere" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "helper_beside.py").write_text("def fail():\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(packages)
    body = "from helper_beside import fail\nfrom toy import Toy\n"
    body += "class Broken(Toy):\n    def data(self): return fail()\n"
    (tmp_path / "broken_beside.py").write_text(body)
    assert toy("run", "broken_beside.py", "--steps", "1") == 1
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(
        f"blackbox: {tmp_path / 'broken_beside.py'}, line 4, in data: your code raised Zero"
    )
    body = "import sys\ndef leave():\n    sys.exit(3)\n"
    (packages / "helper_leaving.py").write_text(body)
    (tmp_path / "left_beside.py").write_text("from helper_leaving import leave\nleave()\n")
    assert toy("run", "left_beside.py") == 1  # the user's: its own line is on the way
    assert "left_beside.py, line 2: your code raised" in capsys.readouterr().err


def script(*words, cwd, path=(), **settings):
    """The console script as it is installed, in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", "import sys, blackbox_coupling; sys.exit(blackbox_coupling.main())", *words],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **settings,
    )  # fmt: skip


@pytest.mark.slow
def test_output_that_nobody_reads_ends_quietly(tmp_path):
    words = f"{sys.executable} -m tasks.command.cli list | head -2"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 128 + signal.SIGPIPE)
    assert done.stdout.count("\n") == 2 and done.stderr == ""


@pytest.fixture
def namesakes(tmp_path):
    """A folder of a user's with files of the names of this project's packages."""
    for name in ("tasks.py", "zo.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')")
    (tmp_path / "simulators").mkdir()
    (tmp_path / "blackbox").mkdir()
    (tmp_path / "blackbox" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    return tmp_path


@pytest.mark.slow
def test_the_console_script_finds_its_packages_whatever_bears_their_names(namesakes):
    done = script("list", cwd=namesakes, path=[namesakes])
    assert done.returncode == 0 and "lorenz-96" in done.stdout, done.stderr
    (namesakes / "pump_box.py").write_text(BOXES)
    checked = script("check", "pump_box.py:Pump", "--rows", "2000", cwd=namesakes, path=[namesakes])
    assert checked.returncode == 0, checked.stdout + checked.stderr  # other processes find them too


@pytest.mark.slow
def test_a_namespace_on_the_path_is_in_the_way_as_well(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "celery_app.py").touch()
    done = script("--version", cwd=tmp_path, path=[tmp_path])
    assert done.returncode == 0 and done.stdout.startswith("blackbox-coupling "), done.stderr


@pytest.mark.slow
def test_a_file_that_wants_its_own_tasks_is_told_which_file_to_rename(namesakes):
    (namesakes / "tasks.py").write_text("helper = 1")
    (namesakes / "mine.py").write_text("from tasks import helper\n")
    done = script("run", "mine.py:Mine", cwd=namesakes, path=[namesakes])
    assert done.returncode == 1
    said = f"'tasks' means this project's package there: rename your {namesakes / 'tasks.py'}"
    assert said in done.stderr.splitlines()[0], done.stderr


def test_float64_data_before_float32_weights_has_a_mend(toy, tmp_path, capsys):
    body = (
        "import torch\nfrom toy import Toy\nclass Wide(Toy):\n    def objective(self, network, batch):\n"
        "        return torch.nn.Linear(3, 1)(torch.zeros(len(batch), 3).double()).mean(dim=1)\n"
    )
    (tmp_path / "wide_problem.py").write_text(body)
    sys.modules.pop("wide_problem", None)
    assert toy("run", "wide_problem.py", "--steps", "1") == 1
    said = capsys.readouterr().err
    assert "dtype=torch.float32" in said and "network.double()" in said
