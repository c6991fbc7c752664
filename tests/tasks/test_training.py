import math
import os
import signal
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from toy import Config, train_line

from blackbox import ArraySpec, BlackBoxFunction
from tasks import Progress
from tasks.errors import (
    CheckpointError,
    CheckpointWarning,
    ConfigurationError,
    Interrupted,
    NonFiniteLossError,
    ProblemWarning,
    WorkersError,
)
from tasks.folder import checkpoint
from tasks.methods import train
from tasks.training.interruption import StopRequest
from tasks.training.windows import WindowLosses
from tests.tasks.made_runs import begun_run
from zo.errors import FailedBatchError, NonFiniteGradientError, RanksError

STAGE = "seed-0/zo-sol"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Walk:
    """A weight that a table moves, so that a test knows every value it should have."""

    def __init__(self):
        self.weight = torch.zeros(1)

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight.copy_(state["weight"])


def walk(run, *, steps=6, values=None, on_step=None, loss=None, **settings):
    """Train a `Walk` whose weight is i + 1 after step i; `values` gives validation by weight."""
    model = Walk()

    def step(i):
        model.weight += 1
        if on_step is not None:
            on_step(i)
        return {"loss": 1.0 / (i + 1) if loss is None else loss(i), "queries": 3 * (i + 1)}

    validate = None if values is None else lambda: values[int(model.weight)]
    settings = {"validate_every": 2, "progress": Progress(), **settings}
    outcome = train(
        run, STAGE, steps=steps, step=step, state={"m": model}, model="m", validate=validate, **settings
    )
    return model, outcome


def lines(run):
    """Metrics without what a clock decides."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics()]


def bits(content):
    """A checkpoint with every tensor as bytes and without seconds, comparable with ==."""
    if isinstance(content, torch.Tensor):
        return (content.dtype, content.shape, content.numpy().tobytes())
    if isinstance(content, dict):
        return {key: bits(value) for key, value in content.items() if key != "seconds"}
    if isinstance(content, list | tuple):
        return [bits(value) for value in content]
    return content


def saved(run):
    return checkpoint.load(checkpoint.of_stage(run.path, STAGE))


def final_bits(run):
    return bits(saved(run))


@pytest.fixture
def new_run(tmp_path):
    return lambda: begun_run(tmp_path, "toy", "demo", Config(), [0])


@pytest.fixture
def undisturbed(new_run):
    run = new_run()
    network, outcome = train_line(run, STAGE, 0, Config(), Progress())
    return run, network, outcome


class Crash(Exception):
    pass


class CrashesAt(Progress):
    """Raises when a step is shown, which is after it was logged: as a kill would come."""

    def __init__(self, step):
        super().__init__()
        self.fatal = step

    def update(self, step, metrics=None):
        if step == self.fatal:
            raise Crash


class SignalsAt(Progress):
    def __init__(self, step, number=signal.SIGINT):
        super().__init__()
        self.at, self.number = step, number

    def update(self, step, metrics=None):
        if step == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("step", [1, 3, 4, 5, 6, 9, 10, 11, 12])
def test_a_crash_at_any_step_changes_nothing_in_the_end(undisturbed, new_run, step):
    truth, network, outcome = undisturbed
    run = new_run()
    with pytest.raises(Crash):
        train_line(run, STAGE, 0, Config(), CrashesAt(step))
    torch.manual_seed(99)  # a new process has another generator
    again, same = train_line(run, STAGE, 0, Config(), Progress())
    assert final_bits(run) == final_bits(truth)
    assert lines(run) == lines(truth)
    assert bits(dict(again.state_dict())) == bits(dict(network.state_dict()))
    assert (same.best_step, same.best_validation) == (outcome.best_step, outcome.best_validation)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("step", [1, 5, 7])
def test_a_signal_finishes_the_step_and_resumes_to_the_same_bits(undisturbed, new_run, step, number):
    truth, _, _ = undisturbed
    run = new_run()
    before = [signal.getsignal(each) for each in STOPPING]
    with pytest.raises(Interrupted, match=f"Stopped at step {step} of 12 of {STAGE}"):
        train_line(run, STAGE, 0, Config(), SignalsAt(step, number))
    assert [signal.getsignal(each) for each in STOPPING] == before
    assert saved(run)["outcome"]["step"] == step
    torch.manual_seed(99)
    train_line(run, STAGE, 0, Config(), Progress())
    assert final_bits(run) == final_bits(truth)
    assert lines(run) == lines(truth)


def test_a_signal_before_the_first_step_repeats_no_validation(run):
    def validate():
        os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    settings = {"steps": 2, "state": {"m": Walk()}, "model": "m", "progress": Progress()}
    with pytest.raises(Interrupted, match="Stopped at step 0 of 2"):
        train(run, STAGE, step=lambda i: {"loss": 1.0}, validate=validate, **settings)
    train(run, STAGE, step=lambda i: {"loss": 1.0}, validate=lambda: 0.5, **settings)
    assert [line["step"] for line in run.metrics() if "validation" in line] == [0, 2]


@pytest.mark.parametrize("at", [0, 2, 6])
def test_a_kill_in_a_long_validation_takes_no_step_again(new_run, limits, at):
    values = {0: 5.0, 2: 1.0, 4: 3.0, 6: 4.0}
    truth, run, steps, begun, now = new_run(), new_run(), [], [], [0.0]
    walk(truth, values=values)
    limits(clock_of_writes=lambda: now[0])
    settings = {"begin": lambda: begun.append(now.insert(0, now[0] + 2))}

    def took(i):
        now[0] += 10
        steps.append(i)

    with pytest.raises(Crash):
        walk(run, values=Deadly(values, at), on_step=took, **settings)
    assert checkpoint.load(checkpoint.of_stage(run.path, STAGE))["outcome"]["step"] == at
    walk(run, values=values, on_step=took, **settings)
    assert steps == list(range(6)) and len(begun) == 1
    assert lines(run) == lines(truth)


class Deadly(dict):
    """Values of which one is never returned, as where a kill comes in its validation."""

    def __init__(self, values, at):
        super().__init__(values)
        self.at = at

    def __getitem__(self, weight):
        if weight == self.at:
            raise Crash
        return super().__getitem__(weight)


class Furnace(BlackBoxFunction):
    """Runs programs; a scheduler's signal, which all processes of a job get, ends those of one call."""

    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("y", ()),)

    def __init__(self, at=None, ended=1, failures="keep"):
        super().__init__(failures=failures)
        self.at, self.ended, self.calls = at, ended, 0

    def evaluate_rows(self, x):
        self.calls += 1
        y = np.cos(x)
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
            y[: self.ended] = np.nan
        return y


def heated(run, box):
    """Train four steps, of ten rows each, that are validated in every second: calls 1, 4 and 7 validate."""
    weight = Walk()

    def step(i):
        losses = box(weight.weight + torch.arange(10.0))
        finite = losses[losses.isfinite()]
        if not len(finite):
            raise FailedBatchError("no row has a loss.", rows=10)
        weight.weight += 0.1 * finite.mean()
        return {"loss": finite.mean().item()}

    settings = {"steps": 4, "state": {"m": weight}, "model": "m", "progress": Progress(), "boxes": [box]}
    train(run, STAGE, step=step, validate=lambda: box(weight.weight + torch.arange(4.0)), validate_every=2,
          **settings)  # fmt: skip


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize(("ended", "failures"), [(1, "keep"), (10, "keep"), (1, "raise")])
def test_rows_that_a_signal_ends_are_asked_again(new_run, at, ended, failures):
    truth, run = new_run(), new_run()
    heated(truth, Furnace())
    with pytest.raises(Interrupted, match=r"Rows failed meanwhile.*are asked again"):
        heated(run, Furnace(at, ended, failures))
    heated(run, Furnace())
    assert final_bits(run) == final_bits(truth)
    assert lines(run) == lines(truth)


class Leaky(Furnace):
    """Fails a row in each call by itself, whatever ends others."""

    def evaluate_rows(self, x):
        y = super().evaluate_rows(x)
        y[:1] = np.nan
        return y


@pytest.mark.filterwarnings("ignore:seed-0/zo-sol, validation")
def test_a_box_that_fails_by_itself_gets_further_however_often_it_is_stopped(new_run):
    truth, run = new_run(), new_run()
    heated(truth, Leaky())
    for _ in range(8):  # back to each checkpoint once
        with pytest.raises(Interrupted):
            heated(run, Leaky(1))
    assert saved(run)["outcome"]["step"] == 3
    heated(run, Leaky())
    assert final_bits(run) == final_bits(truth) and lines(run) == lines(truth)
    assert not list(run.path.glob("checkpoints/*.torn"))


def test_rows_that_fail_without_a_signal_stop_nothing(new_run, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *_: None)
    run = new_run()
    heated(run, Furnace(2))
    assert saved(run)["finished"]


def test_a_second_signal_stops_in_the_middle_of_the_step_and_the_first_says_so(run, capfd):
    reached = []

    def twice(i):
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the second")

    with pytest.raises(KeyboardInterrupt) as caught:
        walk(run, on_step=twice)
    assert not isinstance(caught.value, Interrupted)
    assert reached == ["after the first"]
    assert capfd.readouterr().err == "Stopping after this step; Ctrl-C again stops at once.\n"


def test_a_signal_is_noted_where_nobody_reads_that_it_was(run):
    """Ctrl-C ends all of a pipeline, as `tee` behind the run, whose stream is broken then."""
    read, write = os.pipe()
    os.close(read)
    stream = os.dup(2)
    os.dup2(write, 2)
    try:
        with pytest.raises(Interrupted, match="Stopped at step 1 of 6"):
            walk(run, on_step=lambda i: os.kill(os.getpid(), signal.SIGINT))
    finally:
        os.dup2(stream, 2)
        os.close(stream)
        os.close(write)


def test_a_signal_writes_nothing_where_there_is_no_standard_error_stream(monkeypatch, capfd):
    """A process that is started with a closed one may have its results as file 2."""
    monkeypatch.setattr(sys, "__stderr__", None)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested and capfd.readouterr().err == ""


def test_a_forked_child_does_not_say_that_the_step_goes_on(capfd):
    with StopRequest() as stop:
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                os._exit(int(not stop.requested))
        assert os.waitpid(child, 0)[1] == 0
    assert not stop.requested and capfd.readouterr().err == ""


def test_a_signal_in_the_last_step_leaves_a_finished_stage(run):
    with pytest.raises(Interrupted, match="Stopped at step 6 of 6"):
        walk(run, progress=SignalsAt(6))
    assert saved(run)["finished"]


def test_it_works_outside_the_main_thread_without_handlers(run):
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(walk(run)[1]))
    thread.start()
    thread.join()
    assert outcomes[0].step == 6


def test_a_finished_stage_is_loaded_and_not_trained(run):
    values = {0: 5.0, 2: 1.0, 4: 3.0, 6: 4.0}
    _, first = walk(run, values=values)
    before = lines(run)
    model, second = walk(run, values={}, on_step=lambda i: pytest.fail("trained again"))
    assert second == first
    assert model.weight.item() == 2
    assert lines(run) == before


VALIDATIONS = [  # (value by step, step that should win, weight that should be left)
    ({0: 5.0, 2: 1.0, 4: 3.0, 6: 4.0}, 2, 2),
    ({0: 0.0, 2: 1.0, 4: 3.0, 6: 4.0}, 0, 0),
    ({0: 5.0, 2: 4.0, 4: 3.0, 6: 2.0}, 6, 6),
    ({0: 5.0, 2: 1.0, 4: 1.0, 6: 1.0}, 2, 2),
    ({0: math.nan, 2: 2.0, 4: math.nan, 6: 3.0}, 2, 2),
    ({0: math.nan, 2: -math.inf, 4: math.inf, 6: math.nan}, None, 6),
]


@pytest.mark.parametrize(("values", "step", "weight"), VALIDATIONS)
def test_the_weights_of_the_lowest_finite_validation_are_kept(run, values, step, weight):
    finite = all(map(math.isfinite, values.values()))
    with nullcontext() if finite else pytest.warns(ProblemWarning, match="expected a finite loss, got nan"):
        model, outcome = walk(run, values=values)
    assert outcome.best_step == step
    assert outcome.best_validation == (None if step is None else values[step])
    assert model.weight.item() == weight


def test_the_best_weights_from_before_a_crash_still_win_after_it(run):
    values = {0: 5.0, 2: 1.0, 4: 3.0, 6: 4.0}
    with pytest.raises(Crash):
        walk(run, values=values, progress=CrashesAt(5))
    model, outcome = walk(run, values=values)
    assert (outcome.best_step, outcome.best_validation) == (2, 1.0)
    assert model.weight.item() == 2


def test_weights_are_compared_on_the_validation_rows_that_came_back(run):
    """The second row's losses are high: where it fails, a mean over the others alone would be the lowest."""
    nan, rest = math.nan, [1.0] * 18
    rows = {
        0: [1.0, 9.0, *rest],
        1: [2.0, nan, *rest],  # of 19 rows the mean is lower than of all 20, but each is as high or higher
        2: [0.5, 9.0, *rest],
        3: [0.1, nan, nan, nan, *rest[2:]],  # too many failed
    }
    values = {step: torch.tensor(losses, dtype=torch.float64) for step, losses in rows.items()}
    with pytest.warns(ProblemWarning, match="at most a tenth of 20 losses not to be finite, got 3"):
        model, outcome = walk(run, values=values, steps=3, validate_every=1)
    assert outcome.best_step == 2 and model.weight.item() == 2.0
    assert outcome.best_validation == pytest.approx((0.5 + 9 + 18) / 20) and outcome.best_failed == 0
    told = [line for line in run.metrics() if "validation" in line]
    assert [line.get("validation_failed", 0) for line in told] == [0, 1, 0, 3]
    assert told[1]["validation"] == pytest.approx((2.0 + 18) / 19)


EASY = [0.001, 0.02, 0.004, 0.3, 0.01]  # losses of windows differ a thousandfold at the same weights
WINDOWS = [  # losses by step, the step that is kept
    ({2: EASY, 4: [40 * loss for loss in EASY[::-1]], 6: [0.05, 0.002, 0.2, 0.01, 0.9]}, 6),
    ({2: EASY, 4: EASY, 6: [5.0, 9.0, 0.4, 80.0, 2.0]}, 4),
    ({2: EASY, 4: [1e6 * (1 + loss) for loss in EASY], 6: [5.0, 9.0, 0.4, 80.0, 2.0]}, 2),
    ({2: [loss - 7 for loss in EASY], 4: [loss - 6 for loss in EASY], 6: EASY}, 2),
    ({2: [1e-9, 1e-9], 4: [1.0, 2.0], 6: [3.0, 5.0, 4.0]}, 6),  # too few to tell
    ({2: [5.0, 6.0, 7.0, 8.0], 4: None, 6: EASY}, 6),
    ({2: EASY, 4: None, 6: None}, 2),
    ({2: None, 4: None, 6: None}, 6),
]


def of_windows(losses, failed=0, rows=8):
    """The losses of windows, in each of which so many rows failed."""
    counts = torch.tensor([[failed, rows]] * len(losses)).T
    return WindowLosses(torch.tensor(losses, dtype=torch.float64), *counts)


@pytest.mark.parametrize(("losses", "step"), WINDOWS)
def test_of_windows_the_last_weights_are_kept_unless_their_losses_are_clearly_above(run, losses, step):
    """Each has other rows, so a lower mean is no sign of better weights."""
    values = {0: None} | {at: None if some is None else of_windows(some) for at, some in losses.items()}
    model, outcome = walk(run, values=values)
    assert model.weight.item() == step
    if losses[step] is not None:
        assert outcome.best_step == step
        assert outcome.best_validation == pytest.approx(sum(losses[step]) / len(losses[step]))


def test_windows_that_get_worse_step_by_step_are_compared_with_the_lowest(run):
    values = {0: None, 1: None, 2: of_windows([1.6, 1.76, 1.92, 2.08, 2.24])} | {
        step: of_windows([step**2 * loss for loss in (1.0, 1.1, 1.2, 1.3, 1.4)]) for step in (3, 4, 5, 6)
    }
    model, outcome = walk(run, values=values, validate_every=1)
    assert outcome.best_step == 2 and model.weight.item() == 2


@pytest.mark.filterwarnings("error::tasks.errors.ProblemWarning")
def test_of_windows_those_whose_rows_fail_choose_no_weights(run):
    """The rows that came back may have low losses."""
    few = WindowLosses(torch.tensor(EASY, dtype=torch.float64) / 2, *torch.tensor([[0, 0, 2, 0, 1], [8] * 5]))
    values = {0: None, 2: of_windows(EASY), 4: few, 6: of_windows([1e-9] * 4 + [math.nan], failed=1)}
    words = "at most a tenth of 40 losses not to be finite, got 5"
    with pytest.warns(ProblemWarning, match=words):
        model, outcome = walk(run, values=values)
    assert model.weight.item() == 4 and outcome.best_failed == 3 and outcome.rejected == 1
    told = [line for line in run.metrics() if "validation" in line]
    assert [line.get("validation_failed", 0) for line in told] == [0, 3, 5]


def test_a_window_of_which_many_rows_fail_ranks_behind_all_others(run):
    """Weights that fail there, and elsewhere have low losses, are no better than others."""
    often = WindowLosses(
        torch.tensor([1e-9] * 8 + EASY[:2], dtype=torch.float64), *torch.tensor([[1] * 8 + [0] * 2, [8] * 10])
    )
    model, _ = walk(run, values={0: None, 2: of_windows(EASY + EASY), 4: None, 6: often})
    assert model.weight.item() == 2
    assert not of_windows(EASY, failed=1, rows=10).ranked.isinf().any()  # the others decide


def test_validation_runs_first_every_so_often_and_last(run):
    walk(run, steps=5, values=dict.fromkeys(range(6), 1.0))
    assert [line["step"] for line in run.metrics() if "validation" in line] == [0, 2, 4, 5]
    assert [line["step"] for line in run.metrics() if "loss" in line] == [1, 2, 3, 4, 5]


def test_without_validation_the_last_weights_are_kept(run):
    model, outcome = walk(run, steps=5)
    assert model.weight.item() == 5
    assert outcome.best_step is None
    assert outcome.metrics == {"loss": 0.2, "queries": 15}


def failing(at, rows):
    """A step that finds no finite row at some steps."""

    def loss(i):
        if i in at:
            raise FailedBatchError(f"none of {rows}", rows=rows)
        return 1.0

    return loss


def test_steps_whose_rows_all_failed_are_counted_and_a_resumed_run_goes_on_counting(run, tmp_path):
    with pytest.warns(ProblemWarning, match=r"none of 4 This step changes nothing, .* unless 10 rows fail"):
        _, outcome = walk(run, steps=9, loss=failing({1, 2, 6}, 4))
    told = lines(run)
    assert [line["step"] for line in told if math.isnan(line["loss"])] == [2, 3, 7]
    assert [line.get("lost_steps", 0) for line in told] == [0, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [line.get("lost_rows", 0) for line in told] == [0, 4, 8, 0, 0, 0, 4, 0, 0]

    def interrupt(i):
        if i == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    other = begun_run(tmp_path / "other", "toy", "demo", Config(), [0])
    with pytest.warns(ProblemWarning), pytest.raises(Interrupted):
        walk(other, steps=9, loss=failing({1, 2, 6}, 4), on_step=interrupt)
    _, again = walk(other, steps=9, loss=failing({1, 2, 6}, 4))
    assert again.metrics == outcome.metrics and len(lines(other)) == 9


@pytest.mark.parametrize(("rows", "steps"), [(1, 10), (4, 3), (16, 1)])
def test_ten_failed_rows_in_a_row_end_a_stage(run, rows, steps):
    reached = []
    warns = pytest.warns(ProblemWarning) if steps > 1 else nullcontext()
    with (
        warns,
        pytest.raises(FailedBatchError, match=rf"none of {rows} .*\.Retrying\(box, .* waits"),
    ):
        walk(run, steps=20, loss=failing(range(3, 20), rows), on_step=reached.append)
    assert reached == list(range(3 + steps))


def test_a_stage_without_any_gradient_is_no_result(run):
    with pytest.warns(ProblemWarning), pytest.raises(FailedBatchError, match="none of 1"):
        walk(run, steps=6, loss=failing(range(6), 1))
    assert len(lines(run)) == 5


def test_what_is_said_of_a_gradient_that_is_not_finite_does_not_advise_larger_batches(run):
    def loss(i):
        if i == 1:
            raise NonFiniteGradientError("no finite gradient.")
        return 1.0

    with pytest.warns(ProblemWarning, match="unless 10 of them come one after another") as told:
        walk(run, steps=3, loss=loss)
    assert "Larger batches" not in str(told[0].message)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_training_there(run, bad):
    reached = []
    with pytest.raises(NonFiniteLossError, match=f"{STAGE}, step 4 of 6: .*{bad}"):
        walk(run, on_step=reached.append, loss=lambda i: bad if i == 3 else 1.0)
    assert reached == [0, 1, 2, 3]
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    assert saved(run)["outcome"]["step"] == 2


def test_an_error_of_a_step_comes_through_and_the_last_checkpoint_stands(run):
    def explode(i):
        if i == 5:
            raise ZeroDivisionError("in the step")

    with pytest.raises(ZeroDivisionError, match="in the step"):
        walk(run, on_step=explode)
    reached = []
    model, _ = walk(run, on_step=reached.append)
    assert reached == [4, 5]
    assert model.weight.item() == 6


def test_seconds_go_on_from_the_checkpoint(run, limits):
    ticks = iter(range(0, 1000, 10))  # each step starts and ends with a look at the clock
    limits(clock_of_steps=lambda: next(ticks))
    with pytest.raises(Crash):
        walk(run, progress=CrashesAt(5))
    _, outcome = walk(run)
    assert outcome.seconds == 60
    assert [line["seconds"] for line in run.metrics()] == [10, 20, 30, 40, 50, 60]


def test_a_checkpoint_of_other_settings_is_refused(run):
    with pytest.raises(Crash):
        walk(run, progress=CrashesAt(5))
    with pytest.raises(CheckpointError, match="expected steps 8, got 6"):
        walk(run, steps=8)
    settings = {"steps": 6, "step": lambda i: {"loss": 1.0}, "progress": Progress()}
    with pytest.raises(CheckpointError, match=r"expected the states \['m', 'n'\], got \['m'\]"):
        train(run, STAGE, state={"m": Walk(), "n": Walk()}, model="m", **settings)
    with pytest.raises(CheckpointError, match="expected a state that fits 'm'"):
        train(run, STAGE, state={"m": torch.nn.Linear(2, 2)}, model="m", **settings)


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "", "a_b", "a b", ".."])
def test_stage_names_that_could_clash_or_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match="seed-0/zo-sol"):
        checkpoint.of_stage(tmp_path, name)


def test_wrong_settings_are_refused_before_anything_runs(run):
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        walk(run, steps=0)
    with pytest.raises(ConfigurationError, match=r"one of \['m'\], got 'x'"):
        train(run, STAGE, steps=1, step=lambda i: {}, state={"m": Walk()}, model="x", progress=Progress())
    assert run.metrics() == []


@dataclass
class Recorder(Progress):
    def __post_init__(self):
        super().__init__()
        self.calls = []

    def begin(self, stage, steps, *, done=0, unit="step"):
        self.calls.append(("begin", stage, steps, done))

    def update(self, step, metrics=None):
        self.calls.append(("update", step))

    def end(self):
        self.calls.append(("end",))


def test_progress_is_told_of_every_step_and_of_the_end(run):
    recorder = Recorder()
    walk(run, steps=2, progress=recorder)
    assert recorder.calls == [("begin", STAGE, 2, 0), ("update", 1), ("update", 2), ("end",)]


@pytest.mark.parametrize("error", [RanksError, WorkersError])
def test_a_process_that_another_left_was_stopped_if_it_was_asked_to_stop_too(run, error):
    """The other one was between two stages when the signal came, and had nothing to finish."""

    def left(asked):
        def on_step(i):
            if asked and i == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            if i == 2:
                raise error("no answer of process 1")

        return on_step

    with pytest.raises(error, match="no answer"):
        walk(run, on_step=left(False))
    with pytest.raises(Interrupted, match="Stopped at step 2 of 6"):
        walk(run, on_step=left(True))


def test_a_stage_that_goes_on_has_the_generator_of_its_gpu(new_run, monkeypatch):
    state = [torch.arange(16, dtype=torch.uint8)]  # of a GPU that is not there
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda found: state.__setitem__(0, found))

    def draw(i):
        if i == 3:
            raise OSError("cut")
        state[0] = state[0] + 1

    run = new_run()
    with pytest.raises(OSError, match="cut"):
        walk(run, on_step=draw, validate_every=2)
    saved, state[0] = torch.arange(16, dtype=torch.uint8) + 2, torch.zeros(16, dtype=torch.uint8)
    found = []
    walk(run, on_step=lambda i: found.append(state[0]), validate_every=2)
    assert torch.equal(found[0], saved)


def test_validations_by_other_code_choose_no_weights(run, monkeypatch):
    """The edit makes losses ten times as large: the best before would win over all that follows."""
    values = {0: 5.0, 2: 3.0, 4: 40.0, 6: 30.0}
    monkeypatch.setattr("tasks.folder.stamp.code", lambda run: "before")
    with pytest.raises(Crash):
        walk(run, values=values, on_step=lambda i: crash(i, at=3))
    monkeypatch.setattr("tasks.folder.stamp.code", lambda run: "now")
    with pytest.warns(CheckpointWarning, match="up to step 2 were by other code"):
        model, outcome = walk(run, values=values)
    assert (float(model.weight), outcome.best_step, outcome.best_validation) == (6.0, 6, 30.0)


def crash(step, at):
    if step == at:
        raise Crash
