"""What callbacks are told, against the run's own metrics; what becomes of their exceptions; MLflow."""

import math
import os
import re
import signal
import sys
from types import ModuleType
from unittest.mock import Mock

import pytest

import tasks
from blackbox.extras import MissingExtraError
from tasks import Progress, Run
from tasks.errors import CallbackWarning, ConfigurationError, Interrupted
from tests.tasks.problems import Steering


class Notes(tasks.Callback):
    def __init__(self):
        self.told = []

    def on_start(self, run, stage, step, steps):
        self.told.append(("start", stage, step, steps))

    def on_step(self, stage, step, metrics):
        self.told.append(("step", stage, step, dict(metrics)))

    def on_validation(self, stage, step, value):
        self.told.append(("validation", stage, step, value))

    def on_end(self, stage, outcome):
        self.told.append(("end", stage, outcome.step, outcome.best_validation))

    def on_result(self, run, result):
        self.told.append(("result", run.path, [row.method for row in result.table]))


def go(tmp_path, callbacks, problem=None, **settings):
    problem = Steering(steps=4, methods=("none", "first-order")) if problem is None else problem
    return tasks.run(problem, runs=tmp_path, progress=Progress(), callbacks=callbacks, **settings)


def test_a_callback_is_told_what_the_run_writes_down_in_its_order(tmp_path):
    notes = Notes()
    run = go(tmp_path, [notes])
    stage = "seed-0/first-order"
    lines = [line for line in Run.open(run.path).metrics(stage) if {"loss", "validation"} & line.keys()]
    written = [
        (("step", stage, line["step"], line["loss"]))
        if "loss" in line
        else (("validation", stage, line["step"], line["validation"]))
        for line in lines
    ]
    mine = [note for note in notes.told if note[1] == stage]
    assert mine[0] == ("start", stage, 0, 4)
    told = [(*note[:3], note[3]["loss"]) if note[0] == "step" else note for note in mine[1:-1]]
    assert told == written and len(told) == 4 + 3
    assert mine[-1] == ("end", stage, 4, min(note[3] for note in mine if note[0] == "validation"))
    assert notes.told[-1] == ("result", run.path, ["none", "first-order"])
    again = Notes()
    go(tmp_path, [again], resume=run.path)  # it is finished: nothing is trained, nothing told
    assert not again.told


@pytest.mark.slow
def test_a_resumed_run_tells_from_where_it_goes_on(tmp_path):
    class Stopping(Notes):
        def on_step(self, stage, step, metrics):
            super().on_step(stage, step, metrics)
            if step == 3:
                raise KeyboardInterrupt

    first, second, whole = Stopping(), Notes(), Notes()
    problem = Steering(steps=6, methods=("first-order",))  # a checkpoint after every other step
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "a", [first], problem)
    (folder,) = (tmp_path / "a").iterdir()
    go(tmp_path / "a", [second], Steering(steps=6, methods=("first-order",)), resume=folder)
    assert second.told[0] == ("start", "seed-0/first-order", 2, 6)
    go(tmp_path / "b", [whole], Steering(steps=6, methods=("first-order",)))
    losses = [{n[2]: n[3]["loss"] for n in notes.told if n[0] == "step"} for notes in (first, second, whole)]
    assert losses[0] | losses[1] == losses[2]


class Broken(tasks.Callback):
    def on_step(self, stage, step, metrics):
        raise ConnectionError("the server is gone")


@pytest.mark.slow
def test_an_exception_is_told_once_and_training_goes_on_to_the_same_result(tmp_path):
    notes = Notes()
    with pytest.warns(
        CallbackWarning, match=r"Broken.on_step: .* ConnectionError: the server is gone"
    ) as said:
        run = go(tmp_path / "a", [Broken(), notes])
    assert len([one for one in said if one.category is CallbackWarning]) == 1
    assert len([note for note in notes.told if note[0] == "step"]) == 4
    assert run.table["test loss"].tolist() == go(tmp_path / "b", []).table["test loss"].tolist()


class Deaf(Notes):
    """Fails in every way, each time in other words."""

    def on_start(self, run, stage, step, steps):
        super().on_start(run, stage, step, steps)
        raise ConnectionError(f"no answer to {stage}.")

    def on_result(self, run, result):
        raise ConnectionError("no answer at the end")


@pytest.mark.slow
def test_a_tracker_that_is_not_there_is_told_of_once_in_a_run_and_hears_no_more_of_the_stage(tmp_path):
    deaf = Deaf()
    with pytest.warns(CallbackWarning) as said:
        go(tmp_path, [deaf], seeds=2)
    (one,) = [one for one in said if one.category is CallbackWarning]
    assert "ConnectionError: no answer to seed-0/first-order. Training goes on;" in str(one.message)
    assert [note[:2] for note in deaf.told] == [("start", f"seed-{seed}/first-order") for seed in (0, 1)]


def test_a_strict_callback_ends_the_run(tmp_path):
    class Strict(Broken):
        strict = True

    with pytest.raises(ConnectionError, match="gone"):
        go(tmp_path, [Strict()])


def test_the_command_line_uses_those_that_the_problem_s_class_names(toy, tmp_path, monkeypatch):
    import toy as module

    notes = Notes()
    monkeypatch.setattr(module.Toy, "callbacks", (notes,))
    assert toy("run", "toy", "--methods", "no-gradient", "--steps", "2", "--runs", "runs") == 0
    assert [note[0] for note in notes.told if note[0] != "validation"] == [
        "start",
        "step",
        "step",
        "end",
        "result",
    ]


class Tracker(ModuleType):
    """What `tasks.MLflow` takes of MLflow, whose import takes seconds; it may go away and come back."""

    def __init__(self, monkeypatch, default="http://tracker", folders=False):
        super().__init__("mlflow")
        self.there, self.failed, self.kept, self.default = True, 0, [], default
        self.runs: list[tuple[str, dict[str, str]]] = []
        self.__version__, self.entities, self.environment_variables = "3.17", self, self
        self.MLFLOW_ALLOW_FILE_STORE = Mock(get=lambda: folders)
        for name in ("mlflow", "mlflow.entities", "mlflow.environment_variables"):
            monkeypatch.setitem(sys.modules, name, self)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")  # so that it is put back
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")

    def get_tracking_uri(self):
        return self.default

    def MlflowClient(self, tracking_uri):
        return self

    def Metric(self, key, value, timestamp, step):
        return key, value, step

    def Param(self, key, value):
        return key, value

    def get_experiment_by_name(self, name):
        return Mock(experiment_id="0")

    def search_runs(self, _, wanted, **__):
        tag = re.fullmatch(r"tags\.`([a-z.]+)` = '([^'\\\\]*)'", wanted)  # what its grammar takes
        assert tag
        found = [number for number, tags in self.runs if tags[tag[1]] == tag[2]]
        return [Mock(info=Mock(run_id=number)) for number in found]

    def create_run(self, *_, run_name, tags):
        self.runs.append((run_name.split()[-1], tags))
        return Mock(info=Mock(run_id=self.runs[-1][0]))

    def update_run(self, number, status):
        pass

    def get_metric_history(self, number, name):
        return [Mock(step=step) for run, key, _, step in self.kept if (run, key) == (number, name)]

    def log_batch(self, number, metrics=(), params=()):
        if not self.there:
            self.failed += 1
            raise ConnectionError(f"the server is gone, time {self.failed}")
        self.kept += [(number, *metric) for metric in metrics]

    def set_terminated(self, number):
        pass


def test_what_a_server_that_goes_away_has_not_taken_is_sent_at_the_end_of_the_stage(tmp_path, monkeypatch):
    tracker = Tracker(monkeypatch)

    class Away(tasks.Callback):
        def on_step(self, stage, step, metrics):
            tracker.there = not 1 < step < 8

    with pytest.warns(CallbackWarning, match="the server is gone, time 1") as said:
        run = go(tmp_path, [Away(), tasks.MLflow()], Steering(steps=8, methods=("first-order",)))
    assert tracker.failed == 1 and len([one for one in said if one.category is CallbackWarning]) == 1
    lines = [line for line in Run.open(run.path).metrics("seed-0/first-order") if "loss" in line]
    assert [(step, value) for _, name, value, step in tracker.kept if name == "loss"] == [
        (line["step"], line["loss"]) for line in lines
    ]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"  # seven take four minutes


def test_a_server_that_has_come_back_gets_the_next_stage_as_it_trains(tmp_path, monkeypatch):
    tracker, sent = Tracker(monkeypatch), []

    class Away(tasks.Callback):
        def on_start(self, run, stage, step, steps):
            tracker.there = True

        def on_step(self, stage, step, metrics):
            tracker.there = stage == "seed-1/first-order"

    class Sent(tasks.Callback):
        def on_validation(self, stage, step, value):
            sent.append((stage, any(kept[:2] == (stage, "loss") for kept in tracker.kept)))

    problem = Steering(steps=8, validate_every=4, methods=("first-order",))
    with pytest.warns(CallbackWarning, match="the server is gone"):
        go(tmp_path, [Away(), tasks.MLflow(), Sent()], problem, seeds=2)
    assert dict(sent) == {"seed-0/first-order": False, "seed-1/first-order": True}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["plain", "it's", 'a "b"', "back\\\\slash", "it's \\\\' all"])
def test_a_run_that_goes_on_goes_on_in_mlflow_too_whatever_its_folder_is_called(tmp_path, monkeypatch, name):
    tracker = Tracker(monkeypatch)

    class Killed(tasks.Callback):
        def on_step(self, stage, step, metrics):
            if step == 6:
                raise KeyboardInterrupt

    problem = Steering(steps=8, methods=("first-order",))
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / name, [tasks.MLflow(), Killed()], problem)
    (folder,) = (tmp_path / name).iterdir()
    go(tmp_path / name, [tasks.MLflow()], problem, resume=folder)
    assert [tags["blackbox.folder"] for _, tags in tracker.runs] == [str(folder)]


def test_steps_that_a_stopped_run_had_not_sent_are_in_mlflow_when_it_goes_on(tmp_path, monkeypatch):
    tracker = Tracker(monkeypatch)

    class Stopped(tasks.Callback):
        def on_step(self, stage, step, metrics):
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    problem = Steering(steps=8, validate_every=4, methods=("first-order",))
    with pytest.raises(Interrupted):
        go(tmp_path, [tasks.MLflow(), Stopped()], problem)
    (folder,) = tmp_path.iterdir()
    go(tmp_path, [tasks.MLflow()], problem, resume=folder)
    lines = Run.open(folder).metrics("seed-0/first-order")
    for wanted in ("loss", "validation", "rows"):
        found = [(step, value) for _, name, value, step in tracker.kept if name == wanted]
        assert found == [(line["step"], line[wanted]) for line in lines if wanted in line]


def test_a_store_that_mlflow_cannot_write_to_is_refused_before_anything_is_trained(monkeypatch):
    Tracker(monkeypatch, default="sqlite:///mlflow.db")
    monkeypatch.setitem(sys.modules, "alembic", None)
    monkeypatch.setitem(sys.modules, "sqlalchemy", Mock())
    with pytest.raises(MissingExtraError, match=r"'alembic'.*pip install 'blackbox-coupling\[mlflow\]'"):
        tasks.MLflow()
    said = (
        r"got the folder 'mlruns', which MLflow 3.17 refuses. Give 'sqlite:///mlflow.db' or 'http://...', or"
    )
    with pytest.raises(ConfigurationError, match=said):
        tasks.MLflow("mlruns")
    Tracker(monkeypatch, default="file:///mlruns", folders=True)
    tasks.MLflow()


@pytest.mark.slow  # importing MLflow takes seconds
@pytest.mark.needs("mlflow", "mlflow databases")
@pytest.mark.filterwarnings("ignore")  # MLflow's own
@pytest.mark.parametrize("store", ["database", "folder"])
def test_mlflow_has_what_the_run_has(tmp_path, monkeypatch, store):
    import mlflow

    if store == "database":
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    else:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (tmp_path / "mlruns").as_uri()
    run = go(tmp_path, [tasks.MLflow(uri)], seeds=2)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("steering")
    found = {
        each.data.tags["blackbox.stage"]: each for each in client.search_runs([experiment.experiment_id])
    }
    assert found.keys() == {"seed-0/first-order", "seed-1/first-order"}
    for seed in (0, 1):
        stage = f"seed-{seed}/first-order"
        kept = found[stage]
        assert kept.info.status == "FINISHED" and kept.data.params["learning_rate"] == "0.05"
        history = client.get_metric_history(kept.info.run_id, "loss")
        lines = [line for line in Run.open(run.path).metrics(stage) if "loss" in line]
        assert [(one.step, one.value) for one in history] == [(line["step"], line["loss"]) for line in lines]
        table = run.table[(run.table["method"] == "first-order") & (run.table["seed"] == seed)]
        assert kept.data.metrics["test loss"] == table["test loss"].item()
        assert math.isclose(kept.data.metrics["best validation"], table["validation"].item())


@pytest.mark.slow
def test_a_kill_after_the_result_leaves_no_callback_untold(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Notes, "on_result", killed)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, [Notes()])
    (folder,) = tmp_path.iterdir()
    assert (folder / "result.json").is_file()
    notes = Notes()
    go(tmp_path, [notes], resume=folder)
    assert notes.told == [("result", folder, ["none", "first-order"])]
