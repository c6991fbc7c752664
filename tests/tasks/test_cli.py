import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import tasks
from blackbox import BlackBoxError
from tasks import Run
from tasks.command import cli
from tasks.folder import checkpoint
from tests.tasks.problems import Steering
from zo import TangentWarning

HEAVY = ("torch", "numpy", "matplotlib", "phi", "h5py", "scipy", "rich")
ROOT = Path(__file__).parent.parent.parent


def only_run(folder):
    (path,) = (folder / "runs").iterdir()
    return path


def figures(path):
    """Metrics and checkpoints without what a clock decides, comparable with ==."""
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in Run.open(path).metrics()]
    states = {}
    for file in sorted((path / "checkpoints").iterdir()):
        content = checkpoint.load(file)
        content.pop("settings")  # one of them pauses, to be killed
        for part in (content["outcome"], content["outcome"]["ledger"], content["outcome"]["judging"]):
            part.pop("seconds")
        states[file.name] = repr(content).encode() + b"".join(
            value.numpy().tobytes() for value in content["state"]["network"].values()
        )
    table = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in json.loads((path / "result.json").read_text())["table"]
    ]
    for row in table:
        row["ledger"].pop("seconds")
    return lines, states, table


def wait_for(condition, process, seconds=240):  # imports alone take a minute where other work runs
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["run", "--help"], ["check", "--help"], ["list"], []],
)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys; from tasks.command.cli import main; main(sys.argv[1:])\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_goes_well_without_standard_streams(tmp_path, closed):
    """And the first file that it opens does not get their number, into which programs would print."""
    code = (
        "import os, sys; from tasks.command.cli import main; status = main(['--version'])\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); file.write(str(file.fileno() > 2)); file.close()\n"
        "os.system('echo printed')\n"
        "sys.exit(status)"
    )
    line = f'exec "$0" "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("printed\n") == (">&- " not in f"{closed} ".replace("2>&- ", ""))
    assert (tmp_path / "file").read_text() == "True"


def test_help_has_the_settings_of_the_problem_before_those_of_all_problems(toy, capsys):
    assert toy("run", "toy", "--help") == 0
    said = capsys.readouterr().out
    assert max(said.index(f" --{name}") for name in ("width", "pause", "fault")) < said.index(" --methods ")
    assert "Units of the hidden layer." in said


def test_help_of_a_task_shows_presets_and_settings_with_their_meaning(toy, capsys):
    assert toy("run", "toy", "--preset", "small", "--help") == 0
    text = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "Fit a line through a black box." in text
    assert "{demo,small}" in text
    assert "--steps INT Optimiser steps of each method. (default: 20)" in text
    assert "--width INT Units of the hidden layer. (default: 8)" in text
    assert "--q INT, --directions INT" in text and "--input-q INT, --input-directions INT" in text
    assert "tangents:" in text and "first-order:" not in text  # it has a box, and no reference


def test_a_run_writes_everything_and_says_where(toy, tmp_path, capsys):
    words = ["run", "toy", "--preset", "small", "--seeds", "2", "--steps", "4"]
    assert toy(*words, "--sizes", "5", "6", "7") == 0
    path = only_run(tmp_path)
    assert {"config.json", "metrics.jsonl", "checkpoints", "result.json", "report.html"} <= set(
        os.listdir(path)
    )
    config = json.loads((path / "config.json").read_text())
    assert config["preset"] == "small"
    assert config["config"]["steps"] == 4
    assert config["config"]["sizes"] == [5, 6, 7]
    assert config["config"]["width"] == 8
    assert config["command"][:4] == ["blackbox", "run", "toy", "--preset"]
    result = json.loads((path / "result.json").read_text())
    assert [(row["method"], row["seed"]) for row in result["table"]] == [
        ("sparse-cge", 0), ("no-gradient", 0), ("sparse-cge", 1), ("no-gradient", 1),
    ]  # fmt: skip
    out = capsys.readouterr().out
    relative = path.relative_to(tmp_path)
    assert f"Report: {relative / 'report.html'}" in out
    assert f"Run folder: {relative}" in out
    assert "seed-1/no-gradient: step 4 of 4, loss" in out


def test_the_first_lines_name_the_tangent_of_each_box_and_why(toy, tmp_path, capsys):
    (tmp_path / "plain.py").write_text(
        "from tests.tasks.problems import Steering\nclass Plain(Steering):\n    pass\n"
    )
    for methods, said in ((["tangents"], True), (["none", "no-gradient"], False)):
        assert toy("run", "plain.py", "--methods", *methods, "--calls", "1", "--dry-run") == 0
        first, *others = capsys.readouterr().out.splitlines()
        line = r"Tangent of \w+: KernelTangent, for a table of numbers by its shape \(\d,\); if it is .*"
        assert bool(re.fullmatch(line, first)) is said, first
        assert not any(other.startswith("Tangent of") for other in others)


def test_a_dry_run_of_a_box_whose_rows_fail_says_so_with_the_cause(toy, tmp_path, capsys):
    (tmp_path / "dead.py").write_text(
        "import tasks\nfrom tests.tasks.problems import Steering\nclass Dead(Steering):\n"
        "    methods = {'cut': tasks.methods.Method('As no-gradient.', lambda setup: None, "
        "lambda problem, steps: tasks.methods.Cost(steps, again=True))}\n"
    )
    words = ["run", "dead.py", "--methods", "none", "no-gradient", "cut", "--calls", "1", "--dry-run"]
    assert toy(*words) == 0
    assert "finite loss" not in capsys.readouterr().out

    assert toy(*words, "--limit", "-100") == 1  # above which the box fails
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("  No row of the first batch had a finite loss. The first cause: row 0 (z=[")
    assert re.search(r"ArithmeticError: \S+ is too much\). Mend the box or the data before you train.$", last)

    torch.manual_seed(0)
    problem = Steering()
    first = problem.network()(problem.data.train(0, 0))[:, 0]
    assert toy(*words, "--limit", str(first.median().item())) == 0
    *_, failed, last = capsys.readouterr().out.splitlines()
    assert failed.startswith(
        "  Rows fail: 3 of 5 rows in the first batch had a finite loss, and 4 box rows of"
    )
    assert last.startswith("  no-gradient, cut: a batch with such a row runs twice")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")  # which cannot serve where all rows fail
def test_an_answer_of_the_wrong_shape_is_to_be_mended_before_the_run_goes_on(toy, tmp_path, capsys):
    (tmp_path / "odd.py").write_text(
        "from tests.tasks.problems import Mixed, Steering\n"
        "class Odd(Mixed):\n"
        "    calls = 0\n"
        "    def evaluate(self, z):\n"
        "        Odd.calls += 1\n"
        "        return super().evaluate(z)[: 2 if Odd.calls > 200 else 3]\n"
        "class Drifting(Steering):\n"
        "    def box(self): return Odd()\n"
    )
    assert toy("run", "odd.py", "--methods", "cge") == 1
    said = capsys.readouterr().err
    assert re.search(r"row \d+ \(z=\[\S+, \S+, \S+\]\).*expected shape \(3,\), got \(2,\)", said)
    assert "Resuming repeats this step: mend the box or the data" in said and "blackbox resume runs" in said


@pytest.mark.slow
def test_preset_may_be_written_in_any_place_and_form(toy, tmp_path):
    assert toy("run", "toy", "--preset=small", "--steps=1", "--runs", "elsewhere") == 0
    (path,) = (tmp_path / "elsewhere").iterdir()
    assert Run.open(path).config["width"] == 8


WRONG = [  # (words, words of the message)
    (["run", "toy", "--stepz", "3"], ["--stepz", "--steps"]),
    (["run", "toy", "--preset", "smal"], ["smal", "small"]),
    (["run", "tory"], ["tory", "toy"]),
    (["run", "toy", "--steps", "many"], ["many", "int"]),
    (["run", "toy", "--methods", "none", "tangent"], ["got 'tangent'. Did you mean 'tangents'?"]),
    (["run", "toy", "--methods", "first-order"], ["expected Toy to give reference"]),
    (["rum", "toy"], ["rum", "run"]),
    (["check", "lorenz96"], ["'lorenz96'", "Did you mean 'lorenz-96'?"]),
    (["check", "lorenz-96", "site=4"], ["lorenz-96", "Did you mean 'sites'?"]),
    (["check", "lorenz-96", "sites=3"], ["sites", "3"]),
    (["check", "lorenz-96", "sites=[3]"], ["sites: expected a number"]),
    (["check", "lorenz-96", "sites"], ["'sites'", "name=value"]),
    (["check", "lorenz-96", "--samples", "no.npz"], ["blackbox: --samples: no such file no.npz"]),
    (["serve", "lorenz-96", "dt=fast"], ["lorenz-96, dt: expected a number"]),
    (["serve", "lorenz-96", "--port", "http"], ["http", "int"]),
    (["serve", "lorenz-96", "--mu", "0.1"], ["expected --mu beside --derivative differences"]),
    (["serve", "lorenz-96", "--learn", "9", "--derivative", "differences"], ["without --learn, --from"]),
    (["serve", "lorenz-96", "--around", "draws.npy"], ["expected --around beside --learn"]),
    (["serve", "lorenz-96", "--learn", "9", "--same-box"], ["expected --same-box beside --frozen"]),
    (["serve", "lorenz-96", "--token", ""], ["--token", "everyone is answered"]),
    (
        ["serve", "lorenz-96", "--learn", "9", "--frozen", "."],
        ["--frozen: expected a file, got the folder ."],
    ),
    (["serve", "lorenz-96", "--learn", "9", "--frozen", "no/f.pt"], ["--frozen", "Make no first"]),
    (["check", "lorenz-96", "--out", "."], ["--out: expected a file, got the folder ."]),
    (["check", "lorenz-96", "--out", "toy_cli.py"], ["toy_cli.py, which would be overwritten"]),
    (["compare", "a", "b", "--page", "toy_cli.py"], ["toy_cli.py, which would be overwritten"]),
    (["host", "run", "--method", "cge"], ["expected --serve or --export with a run, got --method alone"]),
    (["host", "run", "--export", "net.pt", "--serve"], ["expected --serve or --export, got both"]),
    (["host", "run", "--export", "net.pt", "ocean"], ["expected --export and no program, got ocean"]),
    (["run", "toy", "--methods", "none", "--methods", "cge"], ["got 2 of it", "--methods ONE OTHER"]),
    (["resume", "run", "--without", "cge", "--without=rge"], ["--without: expected all values behind one"]),
    (["run", "toy", "--seeds", "0"], ["--seeds: expected 1 to 10,000, got 0"]),
    (["run", "toy", "--central", "True"], ["Unrecognized options", "True"]),
    (["run", "toy", "--dry-run=false"], ["Unrecognized options", "false"]),
    (["check", "heat", "--processes", "False"], ["Unrecognized options", "--no-processes"]),
    (["resume", "nowhere"], ["nowhere", "no such folder"]),
    (["report", "."], ["without config.json"]),
]


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize(("words", "said"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_use_is_a_message_and_status_2(toy, tmp_path, capsys, words, said):
    (tmp_path / "toy_cli.py").touch()
    assert toy(*words) == 2
    captured = capsys.readouterr()
    for word in said:
        assert word in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_known_errors_are_one_sentence_unless_debug(toy, tmp_path, capsys):
    assert toy("run", "toy", "--fault", "known") == 1
    path = only_run(tmp_path).relative_to(tmp_path)
    said = "blackbox: Faulty: expected a good row, got a bad one. Mend it."
    assert capsys.readouterr().err == f"{said} Resume with: blackbox resume {path}\n"
    with pytest.raises(ValueError, match="Faulty"):
        toy("run", "toy", "--fault", "known", "--debug")
    assert toy("run", "toy", "--fault", "nan", "--fault-at", "2") == 1
    assert re.fullmatch(
        r"blackbox: Step 3: expected a finite loss in some row .* Evaluate the objective by hand on this "
        r"batch, under torch.no_grad\(\), to see why. Resuming repeats this step: mend the box or the data "
        r"\(.*\), then: blackbox resume runs/toy-demo-\S+\n",
        capsys.readouterr().err,
    )


def test_a_server_that_is_not_there_is_not_taken_for_a_file(toy, capsys):
    assert toy("check", "um-bridge", "url=http://127.0.0.1:9") == 1
    said = capsys.readouterr().err
    assert said.startswith("blackbox: http://127.0.0.1:9: expected a server, found none (")
    assert said.endswith("Start it, or mend the address.\n")


def test_errors_of_ours_that_nobody_foresaw_keep_their_traceback(toy, limits):
    limits(run_carried_out=Mock(side_effect=ZeroDivisionError("nobody saw this coming")))
    with pytest.raises(ZeroDivisionError, match="nobody saw this coming"):
        toy("run", "toy")


@pytest.mark.slow
def test_an_error_of_the_problems_own_code_has_its_part_of_the_traceback_and_the_line_to_resume(toy, capsys):
    assert toy("run", "toy", "--fault", "unknown") == 1
    first, *trace, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"blackbox: \S+/toy\.py, line \d+, in fail: your code raised ZeroDivisionError: nobody saw this.*",
        first,
    )
    files = [line for line in trace if line.startswith("  File ")]
    assert len(files) == 2 and all("/toy.py" in line for line in files)  # none of ours in front of them
    assert trace[-1] == "ZeroDivisionError: nobody saw this coming"
    assert last.startswith("Resume with: blackbox resume runs/toy-demo-")
    with pytest.raises(ZeroDivisionError):
        toy("run", "toy", "--fault", "unknown", "--debug")


def test_an_error_before_the_first_step_leaves_no_folder(toy, tmp_path, capsys):
    assert toy("run", "toy", "--fault", "unknown", "--fault-at", "0") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("Nothing was begun; runs/toy-demo-")
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_immediate_stop_says_how_to_resume_too(toy, tmp_path, capsys):
    assert toy("run", "toy", "--runs", "my runs", "--fault", "stop") == 130
    (path,) = (tmp_path / "my runs").iterdir()
    said = f"Stopped. Resume with: blackbox resume 'my runs/{path.name}'\n"
    assert capsys.readouterr().err == said


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("moment, trained", [("begin", False), ("report", True)])
def test_a_stop_before_and_after_training_says_how_to_resume_too(
    toy, tmp_path, capsys, monkeypatch, moment, trained
):
    monkeypatch.setattr(f"toy.Toy.{moment}", Mock(side_effect=KeyboardInterrupt))
    assert toy("run", "toy") == 130
    path = only_run(tmp_path).relative_to(tmp_path)
    load = f"Load with: tasks.load('{path}'). " if trained else ""
    assert capsys.readouterr().err == f"Stopped. {load}Resume with: blackbox resume {path}\n"
    assert (path / "config.json").exists()


def test_a_stop_before_there_is_a_run_is_but_stopped(toy, capsys, monkeypatch):
    monkeypatch.setattr("tasks.running.start.methods_named", Mock(side_effect=KeyboardInterrupt))
    assert toy("run", "toy") == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_folder_that_cannot_be_made_is_one_sentence_unless_debug(toy, tmp_path, capsys):
    (tmp_path / "file").touch()  # root may write everywhere, but not in a file
    assert toy("run", "toy", "--runs", "file/runs") == 1
    err = capsys.readouterr().err
    assert err == (
        "blackbox: file/runs: expected a file or folder that can be read and written, "
        "got 'Not a directory'. Mend that, or give another folder.\n"
    )
    with pytest.raises(NotADirectoryError):
        toy("run", "toy", "--runs", "file/runs", "--debug")


@pytest.mark.slow
def test_a_file_that_cannot_be_written_in_a_run_says_how_to_resume(toy, tmp_path, capsys):
    assert toy("run", "toy", "--fault", "stop") == 130
    path = only_run(tmp_path).relative_to(tmp_path)
    (path / "metrics.jsonl").unlink()
    (path / "metrics.jsonl").mkdir()
    config = path / "config.json"
    config.write_text(config.read_text().replace('"fault": "stop"', '"fault": null'))
    (path / "begun.json").unlink()  # by which that is noticed
    capsys.readouterr()
    assert toy("resume", str(path)) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        f"blackbox: {path.absolute() / 'metrics.jsonl'}: expected a file or folder that can be "
    )
    assert err.endswith(f"got 'Is a directory'. Mend that. Resume with: blackbox resume {path}\n")
    with pytest.raises(IsADirectoryError):
        toy("resume", str(path), "--debug")
    (path / "metrics.jsonl").rmdir()
    assert toy("resume", str(path)) == 0


@pytest.mark.slow
def test_an_error_of_the_system_without_a_name_is_one_line(toy, tmp_path, capsys, monkeypatch):
    error = OSError("Can't synchronously write data\n(no space left)")
    monkeypatch.setattr("tasks.report.write", Mock(side_effect=error))
    assert toy("run", "toy") == 1
    err = capsys.readouterr().err
    assert "write data (no space left)" in err
    assert err.count("\n") == 1
    assert f"blackbox resume {only_run(tmp_path).relative_to(tmp_path)}" in err


BOXES = """
import time
from blackbox import ArraySpec, BlackBoxFunction

class Pump(BlackBoxFunction):
    inputs = (ArraySpec("x", (2,)),)
    outputs = (ArraySpec("y", (2,)),)

    def __init__(self, leak: bool = False):
        self.leak, self.total = leak, 0.0

    def evaluate_rows(self, x):
        self.total += x.sum()
        return x * x + (self.total if self.leak else 0.0)
"""


def test_help_lists_the_methods_that_the_problem_can_have(toy, capsys):
    assert toy("run", "image-classification", "--help") == 0
    text = capsys.readouterr().out
    assert "deepzero:" in text and "fo-sparse-weight:" in text and "none:" in text
    assert not any(f"{name}:" in text for name in ("tangents", "row-rge", "identity", "first-order"))


@pytest.mark.slow
def test_a_run_goes_on_with_a_larger_budget(toy, tmp_path, capsys):
    assert toy("run", "toy", "--fault", "stop", "--rows", "100_000", "--steps", "6") == 130
    run, config = str(only_run(tmp_path)), only_run(tmp_path) / "config.json"
    config.write_text(config.read_text().replace('"fault": "stop"', '"fault": null'))
    (only_run(tmp_path) / "begun.json").unlink()  # by which that is noticed
    assert toy("resume", run, "--rows", "10") == 2
    assert "--rows: expected at least the budget" in capsys.readouterr().err
    assert toy("resume", run, "--rows", "200_000") == 0
    assert json.loads(config.read_text())["config"]["rows"] == 200_000
    assert json.loads((only_run(tmp_path) / "result.json").read_text())["config"]["rows"] == 200_000


def test_a_run_without_a_budget_is_given_none(toy, tmp_path, capsys):
    assert toy("run", "toy", "--fault", "stop") == 130
    assert toy("resume", str(only_run(tmp_path)), "--rows", "200_000") == 2
    assert "which has none, got 200,000. Leave out --rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compare", ["compare [-h] FOLDER FOLDER ... ["]),
        ("check", ["a function", "--no-processes Do not try it in other processes. (default: it is tried)"]),
        ("serve", [" TARGET ", " NAME=VALUE ... "]),
        ("tesseract", [" TARGET ", " FOLDER ", " NAME=VALUE ... "]),
    ],
)
def test_help_says_what_each_command_takes(toy, capsys, command, said):
    assert toy(command, "--help") == 0
    shown = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert all(words in shown for words in said) and "(default: )" not in shown


def test_check_ends_with_0_for_a_good_box_and_1_for_a_faulty_one(toy, tmp_path, capsys):
    (tmp_path / "checked_boxes.py").write_text(BOXES)
    words = ["--no-processes", "--seed", "3"]
    assert toy("check", "checked_boxes.py:Pump", *words) == 0
    good = capsys.readouterr().out
    assert "no faults" in good and "mu of 'x'" in good
    assert toy("check", "checked_boxes.py:Pump", "leak=true", *words, "--out", "report.json") == 1
    assert "no faults" not in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert "Pump" in json.dumps(report)


def test_check_hands_its_limits_on_and_tells_of_ctrl_c_by_its_status(toy, monkeypatch):
    from blackbox import conformance

    asked = []
    monkeypatch.setattr(conformance, "command", lambda *_, **settings: asked.append(settings) or 130)
    assert toy("check", "lorenz-96") == 130
    assert toy("check", "lorenz-96", "--rows", "70", "--seconds", "2.5") == 130
    assert [(each["rows"], each["seconds"]) for each in asked] == [(1000, 60.0), (70, 2.5)]


def test_serve_makes_the_derivative_that_is_asked_for(toy, monkeypatch):
    from blackbox.adapters import um_bridge

    served = []
    monkeypatch.setattr(um_bridge, "serve", lambda box, **settings: served.append((box, settings)))
    assert toy("serve", "lorenz-96", "--derivative", "differences", "--mu", "0.01") == 0
    ((box, settings),) = served
    solver = settings["derivative"]
    assert solver.box is box and solver.tangent is None and solver.estimator.mu == 0.01


@pytest.mark.slow
def test_serve_answers_until_it_is_told_to_stop(start_toy, tmp_path):
    (tmp_path / "served_boxes.py").write_text(BOXES)
    process = start_toy("serve", "served_boxes.py:Pump", "--port", "0", "--name", "pump")
    said = re.fullmatch(r"serving pump at (http://127\.0\.0\.1:\d+/?)\n", process.stdout.readline())
    assert said is not None
    request = urllib.request.Request(
        f"{said[1].rstrip('/')}/Evaluate",
        json.dumps({"name": "pump", "input": [[3, -4]], "config": {}}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["output"] == [[9, 16]]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130)


def test_serve_hands_its_options_on_and_takes_the_token_from_the_environment(toy, capsys, monkeypatch):
    from blackbox.adapters import um_bridge

    served = []
    monkeypatch.setattr(um_bridge, "serve", lambda box, **settings: served.append((box, settings)))
    monkeypatch.setenv("BLACKBOX_TOKEN", "secret")
    assert toy("serve", "lorenz-96", "sites=5", "--threads", "2") == 0
    assert (
        toy("serve", "lorenz-96", "--host", "0.0.0.0", "--port", "80", "--token", "given", "--name", "l96")
        == 0
    )
    (first, by_default), (named, asked) = served
    assert first.inputs[0].shape == (1, 5)
    assert list(named) == ["l96"]
    usual = {"host": "127.0.0.1", "port": 4242, "token": "secret", "derivative": None}
    assert by_default == usual | {"threads": 2}
    assert asked == usual | {"host": "0.0.0.0", "port": 80, "token": "given", "threads": 1}


def test_list_and_info_say_what_there_is(toy, capsys):
    assert toy("list") == 0
    listed = capsys.readouterr().out
    assert re.search(r"^  wake-flow +The unsteady wake", listed, re.MULTILINE)
    assert re.search(r"^  toy +.*toy:Toy$", listed, re.MULTILINE)  # another package's: where it is
    assert toy("info") == 0
    info = capsys.readouterr().out
    assert re.search(r"^  torch +\d", info, re.MULTILINE) and re.search(r"^  gpu +\S", info, re.MULTILINE)


def test_report_needs_a_run_with_something_trained_and_rebuilds_it(toy, tmp_path, capsys):
    assert toy("run", "toy") == 0
    path = only_run(tmp_path)
    before = (path / "report.html").read_bytes()
    (path / "report.html").unlink()
    assert toy("report", str(path)) == 0
    assert (path / "report.html").read_bytes() == before
    (path / "result.json").unlink()
    capsys.readouterr()
    assert toy("report", str(path)) == 0
    assert f"This run is not finished; `blackbox resume {path}`" in " ".join(capsys.readouterr().out.split())
    for file in (path / "checkpoints").iterdir():
        file.unlink()
    assert toy("report", str(path)) == 2
    assert f"blackbox resume {path}" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(toy, tmp_path, capsys):
    assert toy("run", "toy") == 0
    path = only_run(tmp_path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert toy("resume", str(path)) == 0
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert "This run is finished; rebuilding its report." in capsys.readouterr().out
    assert toy("resume", str(path), "--rows", "9000", "--without", "none") == 0
    assert "This run is finished; --rows and --without change nothing, " in capsys.readouterr().out


def test_a_folder_that_does_not_say_where_its_problem_is_is_refused(toy, run, capsys):
    assert toy("resume", str(run.path)) == 2
    assert "with resume=" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_killed_at_several_places_resumes_to_the_same_bits(toy, start_toy, tmp_path):
    assert toy("run", "toy", "--runs", "truth") == 0
    (truth,) = (tmp_path / "truth").iterdir()

    process = start_toy("run", "toy", "--pause", "0.1")
    wait_for(lambda: (tmp_path / "runs").is_dir() and any((tmp_path / "runs").iterdir()), process)
    path = only_run(tmp_path)
    metrics = path / "metrics.jsonl"
    for lines in (9, 25):  # past the first checkpoint of the first stage, and of the second
        wait_for(lambda n=lines: metrics.exists() and metrics.read_bytes().count(b"\n") >= n, process)
        process.kill()
        process.wait()
        assert not (path / "result.json").exists()
        process = start_toy("resume", str(path))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Report: " in out
    assert figures(path) == figures(truth)


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_leaves_a_folder_to_resume_and_says_how(toy, start_toy, tmp_path, monkeypatch, number):
    assert toy("run", "toy", "--runs", "truth") == 0
    (truth,) = (tmp_path / "truth").iterdir()
    process = start_toy("run", "toy", "--pause", "0.1")
    wait_for(lambda: any((tmp_path / "runs").glob("*/metrics.jsonl")), process)
    path = only_run(tmp_path)
    wait_for(lambda: (path / "metrics.jsonl").read_bytes().count(b"\n") >= 3, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = re.fullmatch(
        r"Stopping after this step; Ctrl-C again stops at once\.\n"
        r"Stopped at step (\d+) of 12 of seed-0/sparse-cge\. Load with: tasks.load\(\S+\)\."
        r" Resume with: blackbox resume (\S+)\n",
        err,
    )
    assert stopped is not None, err
    assert tmp_path / stopped[2] == path
    assert max(line["step"] for line in Run.open(path).metrics()) == int(stopped[1])
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # what is left need not pause
    assert toy("resume", stopped[2]) == 0
    assert figures(path) == figures(truth)


@pytest.mark.slow
def test_a_second_process_on_the_same_run_is_refused(toy, start_toy, tmp_path, capsys):
    process = start_toy("run", "toy", "--pause", "5")
    wait_for(lambda: any((tmp_path / "runs").glob("*/metrics.jsonl")), process)
    assert toy("resume", str(only_run(tmp_path))) == 1
    assert f"process {process.pid} is" in capsys.readouterr().err


def test_every_error_has_the_root_and_a_builtin():
    from tasks import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 5
    for kind in kinds:
        if issubclass(kind, Warning) or kind is BlackBoxError:
            continue
        assert issubclass(kind, BlackBoxError)
        assert any(base.__module__ == "builtins" for base in kind.__bases__)
    # an `except Exception` on the way up must not swallow the user's wish to stop
    assert not issubclass(errors.Interrupted, Exception)


def test_a_warning_of_this_project_is_a_sentence_and_others_are_as_python_shows_them():
    before = warnings.formatwarning
    with cli.warnings_as_sentences():
        own = warnings.formatwarning(TangentWarning("Step 3: trust is lost."), TangentWarning, "a/b.py", 7)
        other = warnings.formatwarning(UserWarning("Old."), UserWarning, "a/b.py", 7, "")
    assert own == "blackbox: warning: Step 3: trust is lost.\n"
    assert other == "a/b.py:7: UserWarning: Old.\n"
    assert warnings.formatwarning is before


@pytest.mark.slow
def test_where_data_moved_to_is_noted_in_the_run(toy, tmp_path):
    assert toy("run", "toy") == 0
    path = only_run(tmp_path)
    for moved in ("moved", "again"):  # it is finished, and its report is made anew
        assert toy("resume", str(path), "--data", moved) == 0
        assert Run.open(path).data == str(tmp_path / moved)


class Listens(tasks.Callback):
    """Which of its methods were called, in their order."""

    def __init__(self):
        self.called = []

    def on_start(self, run, stage, step, steps):
        self.called.append("on_start")

    def on_end(self, stage, outcome):
        self.called.append("on_end")

    def on_result(self, run, result):
        self.called.append("on_result")


@pytest.mark.slow
def test_resume_of_a_finished_run_without_a_page_gives_callbacks_its_result(toy, tmp_path, monkeypatch):
    assert toy("run", "toy") == 0
    path, listens = only_run(tmp_path), Listens()
    (path / "report.html").unlink()  # as a kill leaves it that comes between result and page
    monkeypatch.setattr("toy.Toy.callbacks", (listens,))
    for _ in range(2):
        assert toy("resume", str(path)) == 0
        assert listens.called == ["on_result"]
