"""A run that was stopped in the middle of a training: its network can be loaded, and reported, at no row."""

import re
import shutil
import signal
from typing import ClassVar

import pytest
import torch

import tasks
from tasks import Progress, Run
from tasks.command.cli import main
from tasks.errors import CheckpointError, CheckpointWarning, ConfigurationError, RunFolderError
from tasks.folder import checkpoint
from tasks.training.stage import Stage
from tests.tasks.problems import Mixed, Steering

STOP = {"step": 0, "signal": signal.SIGINT}
DEARER = {"from": 10**9}  # objective evaluations after which one takes four times the rows
PAGES = {"report.html", "table.md", "table.tex", "curves.png", "loss.png", "trust.png"}


class Stops(tasks.Callback):
    """Stops a training after a step."""

    strict = True

    def on_step(self, stage, step, metrics):
        if step == STOP["step"]:
            if STOP["signal"] is None:
                raise Killed
            signal.raise_signal(STOP["signal"])


class Killed(BaseException):
    """A death that leaves no time for a checkpoint."""


class Asked(AssertionError):
    """The box was asked where it must not be."""


class Watched(Mixed):
    """A box that can be closed."""

    closed: ClassVar[bool] = False

    def evaluate(self, z):
        if Watched.closed:
            raise Asked
        return super().evaluate(z)


class UnderWay(Steering):
    """A training that is stopped on the way."""

    callbacks = (Stops(),)
    evaluated = 0

    def box(self):
        return Watched()

    def objective(self, network, wanted):
        UnderWay.evaluated += 1
        z = network(wanted)
        for _ in range(4 if UnderWay.evaluated > DEARER["from"] else 1):
            z = self.box(z)
        return (z - wanted).square().mean(dim=1)


@pytest.fixture(autouse=True)
def ends():
    yield
    STOP.update(step=0, signal=signal.SIGINT)
    DEARER["from"] = 10**9
    Watched.closed, UnderWay.evaluated = False, 0


def stopped(folder, step, **settings):
    """The folder of a run that was stopped after a step."""
    STOP["step"] = step
    with pytest.raises((KeyboardInterrupt, Killed)):
        tasks.run(UnderWay(), runs=folder, progress=Progress(), **settings)
    STOP["step"] = 0
    (path,) = folder.iterdir()
    return path


def weights(network):
    return [weight.detach().clone() for weight in network.state_dict().values()]


def equal(ones, others):
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def files(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in PAGES
    }


def loaded(path, method="population"):
    with pytest.warns(CheckpointWarning, match="not finished"):
        return weights(tasks.load(path).network(method))


def ended_there(path, method="population"):
    """The weights that the training keeps if it ends with its last checkpoint, validated if that is due."""
    file = checkpoint.of_stage(path, f"seed-0/{method}")
    content = checkpoint.load(file)
    content["state"]["course"]["steps"] = content["outcome"]["step"]
    checkpoint.save(file, {**content, "pending": bool(content["state"]["windows"]["losses"])})
    return weights(ended(path).network(method))


def ended(path):
    """The run after it went on to its end."""
    assert main(["resume", str(path)]) == 0
    return tasks.load(path)


def by_rows(folder, step):
    return stopped(folder, step, rows=60, rates=(1.0, 4.0), replays=2, surrogate=False)


@pytest.mark.parametrize("step", [3, 7])
def test_the_network_is_the_one_of_a_training_that_ended_there(tmp_path, step):
    path = by_rows(tmp_path / "runs", step)
    (steps,) = {checkpoint.load(file)["steps"] for file in (path / "checkpoints").glob("*.pt")}
    with pytest.warns(CheckpointWarning) as warned:
        network = tasks.load(path).network("population")
    sentences = [str(warning.message) for warning in warned]
    assert len(sentences) == 2
    assert all(f"step {step} of {steps}" in sentence for sentence in sentences)
    assert all(f"Go on with: blackbox resume {path}" in sentence for sentence in sentences)
    shutil.copytree(path, tmp_path / "copy" / path.name)
    assert equal(weights(network), ended_there(tmp_path / "copy" / path.name))


@pytest.mark.parametrize("losses", ["low", "high"])
def test_windows_since_the_last_validation_decide_as_at_the_end(tmp_path, losses):
    path = by_rows(tmp_path / "runs", 7)
    file = checkpoint.of_stage(path, "seed-0/population")
    content = checkpoint.load(file)
    lowest = torch.linspace(0.1, 0.2, 9, dtype=torch.float64)
    content["best"] = {name: weight + 1 for name, weight in content["state"]["network"].items()}
    content["best_rows"] = lowest
    level = 0.01 if losses == "low" else 10.0
    content["state"]["windows"]["losses"] = [(level + place / 1000, 0, 1) for place in range(9)]
    checkpoint.save(file, content)
    kept = content["state"]["network"] if losses == "low" else content["best"]
    assert equal(loaded(path), list(kept.values()))
    assert equal(ended_there(path), list(kept.values()))


def test_to_load_and_to_report_changes_nothing_and_asks_nothing(tmp_path, capfd):
    path = by_rows(tmp_path / "runs", 5)
    shutil.copytree(path, tmp_path / "untouched" / path.name)
    before = files(path)
    Watched.closed = True
    loaded(path)
    loaded(path, "none")
    assert main(["report", str(path)]) == 0
    assert files(path) == before
    Watched.closed = False
    ends = [ended(folder) for folder in (path, tmp_path / "untouched" / path.name)]
    assert equal(*[weights(run.network("population")) for run in ends])
    assert len({run.table["test loss"].to_numpy().tobytes() for run in ends}) == 1


def test_the_report_says_how_far_it_is_and_invents_no_test(tmp_path, capfd):
    path = by_rows(tmp_path, 5)
    assert main(["report", str(path)]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert re.search(r"population │ not tested yet │ - │ \d+ │", out)
    said = re.search(
        r"population is under way, and was not tested: step 5 of \d+, training loss ([\d.]*\d)", out
    )
    losses = [line["loss"] for line in Run.open(path).metrics("seed-0/population") if "loss" in line]
    assert said is not None and float(said[1]) == pytest.approx(losses[-1], rel=1e-3)
    assert f"tasks.load({str(path)!r}).network('population')" in out
    page = (path / "report.html").read_text()
    assert "population is under way" in page and "Training loss against rows" in page
    with pytest.warns(CheckpointWarning):
        run = tasks.load(path)
    line = run.table.set_index("method").loc["population"]
    assert line.isna()["test loss"] and line["under way"].startswith("step 5 of")
    with pytest.raises(ConfigurationError, match="expected a method that was tested, got population"):
        run.fields("population")


def test_where_no_method_is_finished_there_is_a_network_all_the_same(tmp_path, capfd):
    path = stopped(tmp_path, 4, methods=["tangents"], validate_every=2, seeds=2)
    assert not (path / "so_far.json").exists()
    assert main(["report", str(path)]) == 0
    assert "tangents, seed 0, is under way, and was not tested: step 4 of 6" in " ".join(
        capfd.readouterr().out.split()
    )
    assert "not tested yet" in (path / "table.md").read_text()
    content = checkpoint.load(path / "checkpoints/seed-0__tangents.pt")
    assert equal(loaded(path, "tangents"), list(content["best"].values()))


def test_after_a_kill_it_is_that_of_the_last_checkpoint(tmp_path):
    STOP["signal"] = None
    path = stopped(tmp_path, 5, methods=["none", "tangents"], validate_every=2)
    with pytest.warns(CheckpointWarning, match="step 4 of 6"):
        network = tasks.load(path).network("tangents")
    content = checkpoint.load(path / "checkpoints/seed-0__tangents.pt")
    assert equal(weights(network), list(content["best"].values()))


def test_a_training_that_ended_untested_has_its_network(tmp_path, monkeypatch):
    def ends(self):
        whole(self)
        raise KeyboardInterrupt

    whole = Stage.finish
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "finish", ends)
        path = stopped(tmp_path, 0, methods=["none", "tangents"])
    with pytest.warns(CheckpointWarning, match="step 6 of 6"):
        network = tasks.load(path).network("tangents")
    assert equal(weights(network), weights(ended(path).network("tangents")))


def test_a_second_seed_under_way_is_in_no_mean(tmp_path, capfd):
    class SecondSeed(Stops):
        def on_step(self, stage, step, metrics):
            if stage.startswith("seed-1"):
                super().on_step(stage, step, metrics)

    STOP["step"] = 3
    whole, UnderWay.callbacks = UnderWay.callbacks, (SecondSeed(),)
    try:
        path = stopped(tmp_path, 3, methods=["none", "tangents"], seeds=2)
    finally:
        UnderWay.callbacks = whole
    assert main(["report", str(path)]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "tangents, seed 1, is under way" in out and ".network('tangents', 1)" in out
    assert "not tested yet" not in (path / "table.md").read_text()
    with pytest.warns(CheckpointWarning):
        run = tasks.load(path)
        assert not equal(weights(run.network("tangents", 1)), weights(run.network("tangents", 0)))


def test_a_damaged_checkpoint_is_told(tmp_path, capfd):
    path = stopped(tmp_path, 3, methods=["none", "tangents"])
    file = path / "checkpoints/seed-0__tangents.pt"
    file.write_bytes(file.read_bytes()[:-1000])
    assert main(["report", str(path)]) == 0
    assert "What is missing: tangents (3 steps done)." in " ".join(capfd.readouterr().out.split())
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="cut short or altered"):
        tasks.load(path).network("tangents")
    file.unlink()
    (path / "so_far.json").unlink()
    with pytest.raises(RunFolderError, match="expected a run of which a method is finished"):
        tasks.load(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("outcome", "step"), "\x1b[31m"),
        (("outcome", "metrics"), {"loss": "low"}),
        (("outcome", "metrics"), {"rows": 1e300}),
        (("outcome", "ledger"), {"rows_run": {}}),
        (("steps",), [3]),
        (("state",), {"network": {}, "course": {"steps": "\x1b[31m"}}),
        (("state",), 3),
        (("best",), [1, 2]),
        (("best",), {"0.weight": torch.zeros(2)}),
        (("finished",), None),
        (("state", "judged"), {}),
    ],
)
def test_a_checkpoint_of_someone_else_is_read_or_refused_in_a_sentence(stopped_one, tmp_path, place, value):
    path = tmp_path / stopped_one.name
    shutil.copytree(stopped_one, path)
    file = path / "checkpoints/seed-0__tangents.pt"
    content = part = checkpoint.load(file)
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    checkpoint.save(file, content)
    assert main(["report", str(path)]) == 0
    with pytest.warns(CheckpointWarning) as warned:
        try:
            tasks.load(path).network("tangents")
        except (CheckpointError, ConfigurationError) as error:
            assert len(str(error)) < 600
    assert not any("\x1b" in str(warning.message) for warning in warned)


@pytest.fixture(scope="module")
def stopped_one(tmp_path_factory):
    path = stopped(tmp_path_factory.mktemp("one"), 3, methods=["none", "tangents"])
    UnderWay.evaluated = 0
    return path


def test_the_line_after_a_stop_has_the_steps_that_are_left_of_the_plan(tmp_path, capfd, monkeypatch):
    DEARER["from"], STOP["step"] = 12, 9
    monkeypatch.chdir(tmp_path)
    assert main(["run", f"{__name__}:UnderWay", "--rows", "160", "--methods", "tangents"]) == 130
    err = capfd.readouterr().err
    (path,) = (tmp_path / "runs").iterdir()
    content = checkpoint.load(path / "checkpoints/seed-0__tangents.pt")
    steps = content["state"]["course"]["steps"]
    assert steps < content["steps"]
    path = path.relative_to(tmp_path)
    last = err.strip().splitlines()[-1]
    assert last == (
        f"Stopped at step 9 of {steps} of seed-0/tangents. Load with: tasks.load('{path}'). "
        f"Resume with: blackbox resume {path}"
    )
    with pytest.warns(CheckpointWarning, match=f"step 9 of {steps}"):
        tasks.load(path).network("tangents")
