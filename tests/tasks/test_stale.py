"""What was kept of other weights, settings or code is not reported as the result of these."""

import json
import shutil
import sys
from contextlib import nullcontext

import pytest
import torch

import tasks
from tasks import Run
from tasks.errors import RunFolderError
from tasks.folder import atomic, checkpoint, stamp
from tests.tasks import toy as problems
from tests.tasks.made_runs import begun_run

LINE = """
from dataclasses import dataclass
import torch
import tasks
from tasks.configuration import Count
from toy import Line

class Own(tasks.Problem):
    "A line."

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "no-gradient")
        steps: Count = 4
        batch: Count = 8

    def box(self):
        return Line()

    def network(self):
        return torch.nn.Linear(1, 1)

    def data(self):
        return tasks.Data.split((torch.linspace(0, 1, 40)[:, None],), batch=8, validation=8, test=8)

    def objective(self, network, batch):
        return (self.box(network(batch[0])) + network(batch[0]) - FACTOR).square().mean(dim=1)
"""


def unfinished(run):
    """As it was before the last line of the result was written."""
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()


def figures(run):
    table = json.loads((run / "result.json").read_text())["table"]
    return {row["method"]: (row["extra"].get("steps"), row["value"]) for row in table}


@pytest.mark.slow
def test_an_evaluation_of_other_settings_is_not_the_result_of_these(toy, tmp_path, capsys):
    """The settings of an unfinished run are changed, and its checkpoints deleted, as it used to advise."""
    assert toy("run", "toy", "--steps", "2") == 0
    (run,) = (tmp_path / "runs").iterdir()
    unfinished(run)
    config = run / "config.json"
    config.write_text(config.read_text().replace('"steps": 2', '"steps": 6'))
    assert toy("resume", str(run)) == 2
    assert "steps 2 (now 6). Put them back, or start a new run" in capsys.readouterr().err
    (run / "begun.json").unlink()  # who insists
    assert toy("resume", str(run)) == 0
    said = capsys.readouterr().out
    assert said.count("its evaluation is of other weights, settings or code, so it is evaluated again") == 2
    other = tmp_path / "other"
    assert toy("run", "toy", "--steps", "6", "--runs", str(other)) == 0
    assert figures(run) == figures(next(other.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["own_line", "its_part"])
def test_an_evaluation_by_other_code_is_not_the_result_of_this(toy, tmp_path, capsys, where):
    """The other code is the problem's file, or a module beside it that another one imports for it."""
    file = tmp_path / f"{where}.py"
    if where == "own_line":
        file.write_text(LINE.replace("FACTOR", "1.0"))
    else:
        (tmp_path / "own_line.py").write_text("from its_helper import AT\n" + LINE.replace("FACTOR", "AT"))
        (tmp_path / "its_helper.py").write_text("import its_part\n\nAT = its_part.AT\n")
        file.write_text("AT = 1.0\n")
    assert toy("run", "own_line.py") == 0
    (run,) = (tmp_path / "runs").iterdir()
    before = figures(run)
    (run / "result.json").unlink()
    assert toy("resume", str(run)) == 0
    assert figures(run) == before and "evaluated again" not in capsys.readouterr().out  # it is kept
    (run / "result.json").unlink()
    file.write_text(file.read_text().replace("1.0", "3.0"))
    for name in ("own_line", "its_helper", "its_part"):
        sys.modules.pop(name, None)
    with pytest.warns(UserWarning, match="its code has changed") as caught:
        assert toy("resume", str(run)) == 0
    assert sum("its code has changed" in str(each.message) for each in caught) == 1
    assert "seed-0/none: its evaluation is of other weights, settings or code" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="its code has changed"):
        found, after = tasks.load(run), figures(run)
    assert found.problem is not None and found.problem.data.test is not None
    (x,) = found.problem.data.test
    for method in ("none", "no-gradient"):
        with torch.no_grad():
            y = found.network(method)(x)
            loss = (2 * y - 1 + y - 3.0).square().mean(dim=1)
        assert after[method][1] == pytest.approx(float(loss.double().mean()), rel=1e-12)
        assert after[method] != before[method]


def test_an_evaluation_of_other_weights_is_not_the_result_of_these(toy, tmp_path):
    assert toy("run", "toy", "--steps", "2") == 0
    (run,) = (tmp_path / "runs").iterdir()
    whole = figures(run)
    (run / "result.json").unlink()
    path = checkpoint.evaluation(run, "seed-0/no-gradient")
    other = checkpoint.evaluation(run, "seed-0/sparse-cge")
    shutil.copy(other, path)  # of the same settings and code
    assert toy("resume", str(run)) == 0
    assert figures(run) == whole


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": [0, 1]}, r"seeds \[0\] \(now \[0, 1\]\)"),
        ({"task": "other"}, r"task 'toy' \(now 'other'\)"),
        ({"preset": "paper"}, r"preset 'demo' \(now 'paper'\)"),
        ({"data": "/elsewhere"}, r"data '.*/data' \(now '/elsewhere'\).*--data"),
    ],
)
def test_nothing_that_the_result_claims_may_be_edited_between_run_and_resume(run, changed, said):
    path = run.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(RunFolderError, match=said):
        Run.open(run.path)


def test_a_buffer_that_is_not_saved_is_part_of_what_an_evaluation_is_of(run):
    network = torch.nn.Linear(2, 1)
    network.register_buffer("mask", torch.ones(2), persistent=False)
    before = stamp.evaluation(run, network)
    assert stamp.evaluation(run, network) == before
    network.mask[1] = 0.0
    assert stamp.evaluation(run, network) != before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("making", [True, False])
def test_a_kill_while_settings_are_written_leaves_a_folder_that_can_be_used_or_says_so(
    tmp_path, monkeypatch, writes, making
):
    def write(path, value):
        if len(written) == writes:
            raise Killed
        written.append(path.name)
        original(path, value)

    written, original = [], atomic.write_json
    run = begun_run(tmp_path, "toy", "demo", problems.Toy.Config(), [0], data=tmp_path / "a")
    with monkeypatch.context() as patched, pytest.raises(Killed) if writes < 2 else nullcontext():
        patched.setattr(atomic, "write_json", write)
        if making:
            begun_run(tmp_path / "new", "toy", "demo", problems.Toy.Config(), [0], data=tmp_path / "b")
        else:
            run.with_data(tmp_path / "b")
    if making:
        (path,) = (tmp_path / "new").iterdir()
        if writes == 0:
            with pytest.raises(RunFolderError, match=r"without config.json. Nothing was done .* delete it"):
                Run.open(path)
            return
        run = Run.open(path)
    moved = Run.open(run.path)
    assert moved.data == str(tmp_path / ("b" if making or writes else "a"))
    with moved.lock():
        assert Run.open(run.path) == moved
    assert moved.with_data(tmp_path / "c").data == str(tmp_path / "c")
    edited = json.loads((run.path / "config.json").read_text()) | {"data": "/elsewhere"}
    (run.path / "config.json").write_text(json.dumps(edited))
    with pytest.raises(RunFolderError, match=r"data '.*/c' \(now '/elsewhere'\)"):
        Run.open(run.path)


def test_data_may_move_and_a_budget_grow_by_their_options(tmp_path):
    config = problems.Toy.Config(rows=100)
    run = begun_run(tmp_path, "toy", "demo", config, [0], data=tmp_path / "a")
    moved = run.with_data(tmp_path / "b").with_budget(200)
    assert (moved.data, moved.config["rows"]) == (str(tmp_path / "b"), 200)
    assert Run.open(run.path) == moved
