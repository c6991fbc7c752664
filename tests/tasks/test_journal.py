"""The journal of a step: what is found again, what is torn, when it writes, and when a step ends inside."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction, Ledger
from tasks import Progress
from tasks.errors import CheckpointWarning, Interrupted, StoppedInside
from tasks.folder import checkpoint, row_counts
from tasks.folder.journal import Journal, journaled
from tasks.methods import train
from tests.tasks.made_runs import begun_run
from tests.tasks.test_progress import Clock
from tests.tasks.test_training import final_bits, lines

ROOT = Path(__file__).parents[2]
STAGE = "seed-0/zo-sol"


def entry(number):
    return {"difference": torch.full((3,), float(number)), "queries": number}


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def filled(folder, entries=3, step=7, **settings):
    """A journal of a step with entries that are all on the disk, each in a file of its own."""
    journal = Journal(folder, STAGE, every=0.0, **settings)
    journal.begin(step)
    for number in range(entries):
        assert journal.get(str(number)) is None
        journal.put(str(number), entry(number))
    return journal


def found(folder, step=7, entries=3):
    journal = Journal(folder, STAGE, every=0.0)
    journal.begin(step)
    values = [journal.get(str(number)) for number in range(entries)]
    return [None if value is None else int(value["queries"]) for value in values]


def test_another_process_may_write_while_the_folder_is_removed(folder, monkeypatch):
    journal, remove = filled(folder), Path.rmdir

    def written_meanwhile(path):
        filled(folder, step=8, rank=1)
        remove(path)

    monkeypatch.setattr(Path, "rmdir", written_meanwhile)
    journal.end()
    assert found(folder, step=8) == [0, 1, 2]


def test_work_outside_of_the_steps_is_found_again_until_it_is_done(folder, limits):
    limits(journal_writes=0.0)
    with pytest.raises(KeyboardInterrupt), journaled(folder, "layer-ratios-seed-0") as journal:
        journal.put("0", entry(0))
        raise KeyboardInterrupt
    with journaled(folder, "layer-ratios-seed-0") as journal:
        assert journal.get("0")["queries"] == 0
    with journaled(folder, "layer-ratios-seed-0") as journal:
        assert journal.get("0") is None


def test_another_process_finds_the_entries_of_the_step_and_of_no_other(folder):
    filled(folder)
    again = Journal(folder, STAGE)
    again.begin(7)
    assert torch.equal(again.get("2")["difference"], entry(2)["difference"])
    assert found(folder) == [0, 1, 2]
    assert found(folder, step=6) == found(folder, step=8) == [None] * 3


def test_a_file_that_is_torn_or_altered_is_dropped_and_no_other(folder):
    filled(folder)
    (folder / "journal" / ".seed-0__zo-sol.step-00000008.0.pt.1.tmp").touch()  # a kill while it was written
    first, second, third = sorted((folder / "journal").glob("*.pt"))
    one, two, three = (int(next(iter(checkpoint.load(path)))) for path in (first, second, third))
    first.write_bytes(first.read_bytes()[:-5])
    third.write_bytes(b"x" + third.read_bytes()[1:])
    journal = Journal(folder, STAGE, every=0.0)
    journal.begin(7)
    assert journal.get(str(one)) is None and journal.get(str(three)) is None
    assert journal.get(str(two))["queries"] == two
    journal.put(str(one), entry(one))
    assert found(folder)[one] == one and found(folder)[two] == two
    journal.end()
    assert os.listdir(folder) == []


def test_a_step_that_is_over_soon_leaves_nothing_and_a_long_one_is_written_every_five_seconds(folder):
    clock = Clock()
    journal = Journal(folder, STAGE, clock=clock)
    for step in range(5):
        journal.begin(step)
        for number in range(4):
            clock.now += 1
            journal.put(str(number), entry(number))
        journal.end()
    assert os.listdir(folder) == []
    journal.begin(5)
    written = []
    for number in range(12):
        clock.now += 1
        journal.put(str(number), entry(number))
        written.append(found(folder, 5, 12).count(None))
    assert written == [12] * 4 + [7] * 5 + [2] * 3  # what is not there yet: every five seconds all is
    journal.end()
    assert os.listdir(folder) == []


COUNTS = asdict(Ledger(rows_run=3))


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, 1, "text", [], {}, {"value": {}}, {"counts": None}, {"value": {}, "step": 7}),
        *({"value": each, "counts": None, "step": 7} for each in (None, 1, "text", [1], torch.ones(1))),
        *({"value": {}, "counts": None, "step": each} for each in (None, "7", 7.5, [7])),
        *(
            {"value": {}, "counts": each, "step": 7}
            for each in (1, "text", [], {"rows": 1}, {"rows_run": "x"})
        ),
        *({"value": {}, "counts": COUNTS | {"causes": each}, "step": 7} for each in (1, {"a": "b"})),
        *({"value": {}, "counts": COUNTS | {"rows_run": each}, "step": 7} for each in (None, [1], {})),
    ],
    ids=str,
)
def test_a_file_that_is_no_journal_is_dropped_and_no_other(folder, wrong):
    filled(folder, entries=2)
    first, second = sorted((folder / "journal").glob("*.pt"))
    one, two = (int(next(iter(checkpoint.load(path)))) for path in (first, second))
    checkpoint.save(first, {str(one): wrong})
    assert found(folder)[one] is None and found(folder)[two] == two
    assert not first.exists()


def test_the_end_of_a_step_leaves_the_journals_of_later_ones_and_other_stages(folder):
    for step in (3, 9):
        filled(folder, step=step)
    other = Journal(folder, f"{STAGE}.step-1", every=0.0)
    other.begin(3)
    other.put("0", entry(0))
    journal = Journal(folder, STAGE)
    journal.begin(5)  # on its way back to step 9, where it was interrupted
    journal.end()
    left = {path.name.rsplit(".", 2)[0] for path in (folder / "journal").iterdir()}
    assert left == {"seed-0__zo-sol.step-00000010", "seed-0__zo-sol.step-1.step-00000004"}


def test_the_first_write_of_a_process_comes_after_a_second(folder):
    clock = Clock()
    journal = Journal(folder, STAGE, clock=clock)
    journal.begin(0)
    clock.now += 1
    journal.put("0", entry(0))
    assert found(folder, 0, 1) == [0]


def test_a_step_that_no_checkpoint_covers_is_found_again_and_later_ones_with_it(folder):
    clock = Clock()
    journal = Journal(folder, STAGE, clock=clock)
    for step in range(3):
        journal.begin(step)
        for number in range(2):
            clock.now += 3
            assert journal.get(f"{step} {number}") is None
            journal.put(f"{step} {number}", entry(number))
        journal.end(covered=False)
    for start in range(3):  # a checkpoint before that step
        again = Journal(folder, STAGE, clock=clock)
        for step in range(start, 3):
            again.begin(step)
            assert all(again.get(f"{step} {number}") is not None for number in range(2))
            assert again.get(f"{1 - step} 0") is None
            again.end(covered=False)
    journal.end()
    assert os.listdir(folder) == []


def test_the_rows_of_an_entry_are_counted_where_it_is_used(folder):
    ledger = Ledger()
    journal = Journal(folder, STAGE, ledger, every=0.0)
    journal.begin(0)
    ledger.count(rows_run=100)  # the base, which is evaluated again
    for number in range(2):
        assert journal.get(str(number)) is None
        ledger.count(rows_run=10, rows_failed=number)
        journal.put(str(number), entry(number))
    other = Ledger(rows_run=100)
    again = Journal(folder, STAGE, other, every=0.0)
    again.begin(0)
    assert again.get("0") is not None and again.get("1") is not None
    assert again.used == Ledger(rows_run=20, rows_failed=1)
    assert other == Ledger(rows_run=100)  # a budget knows of them from the run's calls
    again.begin(1)
    assert again.used == Ledger()


def test_a_step_ends_inside_only_after_what_it_has_is_on_the_disk(folder):
    clock = Clock()
    journal = Journal(folder, STAGE, clock=clock)
    journal.stop = lambda: True
    journal.begin(0)
    journal.put("0", entry(0))  # soon over: it is finished
    clock.now += 6
    with pytest.raises(StoppedInside):
        journal.put("1", entry(1))
    assert found(folder, 0, 2) == [0, 1]
    again = Journal(folder, STAGE, clock=clock)
    again.begin(0)
    again.stop = lambda: True
    with pytest.raises(StoppedInside):  # known to take long
        again.put("2", entry(2))
    assert found(folder, 0) == [0, 1, 2]


def test_an_entry_whose_rows_failed_once_a_stop_was_asked_is_not_kept(folder):
    """The signal of a scheduler ends the programs of boxes too."""
    ledger, asked = Ledger(), [False]
    journal = Journal(folder, STAGE, ledger, every=0.0)
    journal.tears = lambda: asked[0]
    journal.begin(0)
    for number, (failed, asked[0]) in enumerate([(1, False), (0, True), (1, True)]):
        assert journal.get(str(number)) is None
        ledger.count(rows_run=10, rows_failed=failed)
        journal.put(str(number), entry(number))
    assert found(folder, 0, 3) == [0, 1, None]


def test_a_step_ends_inside_behind_an_entry_that_is_not_kept_too(folder):
    """Else a box of which some rows always fail would be asked for all of the step."""
    ledger = Ledger()
    journal = Journal(folder, STAGE, ledger, every=0.0)
    journal.begin(0)
    journal.put("0", entry(0))
    journal.stop = journal.tears = lambda: True
    journal.get("1")
    ledger.count(rows_run=10, rows_failed=1)
    with pytest.raises(StoppedInside):
        journal.put("1", entry(1))
    assert found(folder, 0, 2) == [0, None]


def test_a_disk_that_takes_no_journal_does_not_stop_the_step(folder, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    journal = Journal(folder, STAGE, every=0.0)
    journal.stop = lambda: True
    journal.begin(0)
    with pytest.warns(CheckpointWarning, match="queries of step 1 of seed-0/zo-sol.*No space left") as caught:
        for number in range(3):
            journal.put(str(number), entry(number))
    assert len(caught) == 1


@dataclass(frozen=True)
class Settings:
    steps: int = 3


class Cubed(BlackBoxFunction):
    """Counts its rows, and does something to the process at a certain one."""

    inputs = (ArraySpec("x", (2,)),)
    outputs = (ArraySpec("y", (2,)),)

    def __init__(self, at=None, action=None):
        self.at, self.action = at, action

    def evaluate_rows(self, x):
        if self.at is not None and self.ledger.rows_run >= self.at:
            self.at = None
            if self.action is not None:
                self.action()
        return x**3


def descend(run, box, evaluator="stacked", steps=3, validate_every=1):
    """Train 30 weights through the box, nine queries at a time, everything journaled at once."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    )
    optimizer = torch.optim.Adam(network.parameters())

    def objective(network, batch):
        return box(network(batch)).square().sum(dim=1)

    gradient = zo.LossGradient(network, objective, zo.CGE(mu=1e-3), evaluator=evaluator, chunk=9, seed=3)

    def step(i):
        optimizer.zero_grad()
        loss = gradient.backward(torch.randn(6, 2, generator=torch.Generator().manual_seed(i)))
        optimizer.step()
        return {"loss": loss.item(), "queries": gradient.counts.queries}

    state = {"network": network, "optimizer": optimizer, "gradient": gradient}
    train(
        run, STAGE, steps=steps, step=step, state=state, model="network",
        validate_every=validate_every, progress=Progress(), boxes=[box],
    )  # fmt: skip
    assert gradient.journal is None
    return box


class Killed(BaseException):
    pass


def die():
    raise Killed


@pytest.fixture
def new_run(tmp_path):
    def make():
        return begun_run(tmp_path / "runs", "toy", "demo", Settings(), [0])

    return make


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_a_step_that_is_cut_short_anywhere_goes_on_to_the_same_bits_and_counts(new_run, limits, evaluator):
    limits(journal_writes=0.0)
    truth = new_run()
    rows = descend(truth, Cubed(), evaluator).ledger.rows_run
    assert rows > 500
    for at in (100, 320):
        run, box = new_run(), Cubed(at, die)
        with pytest.raises(Killed):
            descend(run, box, evaluator)
        again = descend(run, Cubed(), evaluator)
        assert final_bits(run) == final_bits(truth), at
        assert lines(run) == lines(truth), at
        assert lines(run)[-1]["rows"] == rows
        assert again.ledger.rows_run == row_counts.read(run.path)["rows"] > rows  # a budget counts all
        assert not (run.path / "journal").exists()


def test_steps_after_the_last_checkpoint_are_not_evaluated_again(new_run, limits, monkeypatch):
    """A kill after a step of 30 seconds lost all of it, where no checkpoint was due."""
    limits(journal_writes=0.0)
    truth, run, asked = new_run(), new_run(), []
    whole = descend(truth, Cubed(), "loop", validate_every=9).ledger.rows_run
    steps = [line["rows"] for line in lines(truth)]
    with pytest.raises(Killed):
        descend(run, Cubed(steps[1] + 6, die), "loop", validate_every=9)  # behind the third step's base
    assert not (run.path / "checkpoints" / "seed-0__zo-sol.pt").exists()
    original = Cubed.evaluate_rows
    monkeypatch.setattr(Cubed, "evaluate_rows", lambda self, x: asked.append(len(x)) or original(self, x))
    descend(run, Cubed(), "loop", validate_every=9)
    again = (
        1 + 1 + 2 * 4
    )  # of both steps the base; and behind them, as both are checked, the base and four slopes, also back
    assert sum(asked) == whole - steps[1] + 2 * 6 * again
    assert final_bits(run) == final_bits(truth) and lines(run) == lines(truth)
    assert not (run.path / "journal").exists()


def test_what_is_in_the_journal_is_not_evaluated_again(new_run, limits, monkeypatch):
    limits(journal_writes=0.0)
    run, whole = new_run(), descend(new_run(), Cubed(), "loop", steps=1).ledger.rows_run
    with pytest.raises(Killed):
        descend(run, Cubed(whole - 6 * 3, die), "loop", steps=1)  # close to the end
    box = Cubed()
    asked = []
    monkeypatch.setattr(Cubed, "evaluate_rows", lambda self, x: asked.append(len(x)) or x**3)
    descend(run, box, "loop", steps=1)
    assert sum(asked) <= whole - 6 * 18  # two chunks of nine, at least, were whole
    assert lines(run)[-1]["rows"] == whole
    assert box.ledger.rows_run == whole - 6 * 3 + sum(asked)


CHANGES = {
    "weights": lambda gradient, batch: gradient.network[0].weight.data.add_(1e-6),
    "batch": lambda gradient, batch: batch.add_(1e-6),
    "buffers": lambda gradient, batch: gradient.network[1].running_mean.add_(1.0),
    "step": lambda gradient, batch: setattr(gradient.counts, "steps", 1),
    "chunk": lambda gradient, batch: setattr(gradient, "chunk", 8),
    "estimator": lambda gradient, batch: setattr(gradient, "estimator", zo.CGE(mu=2e-3)),
    "random state": lambda gradient, batch: torch.manual_seed(5),
    "nothing": lambda gradient, batch: None,
}


class Memory:
    """A journal in memory."""

    def __init__(self):
        self.values, self.hits = {}, 0

    def get(self, key):
        self.hits += key in self.values
        return self.values.get(key)

    def put(self, key, value):
        self.values[key] = value


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_only_the_very_same_step_is_taken_from_the_journal(change):
    def gradient():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        made = zo.LossGradient(network, objective, zo.CGE(mu=1e-3), chunk=4)
        made.journal = memory
        return made

    def objective(network, batch):
        return network(batch).square().sum(dim=1)

    memory = Memory()
    batch = torch.arange(10.0).view(5, 2).sin()
    gradient().backward(batch)
    kept = len(memory.values)
    assert kept and memory.hits == 0
    again = gradient()
    change(again, batch)
    again.backward(batch)
    same = change is CHANGES["nothing"]
    assert memory.hits == (kept if same else 0)
    assert (len(memory.values) == kept) == same


# rows: a step has 31 queries, the first two 3 more that check them; in the second two chunks of nine are done
LATE = 6 * (34 + 3 + 1 + 18)

KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.folder import journal
from tasks import Run
from tests.tasks.test_journal import LATE, Cubed, descend

journal.EVERY = 0.0
run = Run.open(Path(sys.argv[1]))
descend(run, Cubed(LATE, lambda: os.kill(os.getpid(), signal.SIGKILL)), "loop")
"""


def killed(run):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run.path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'tasks'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def signalled(run):
    with pytest.raises(
        Interrupted, match="Stopped in step 2 of 3 of seed-0/zo-sol; its queries so far are kept"
    ):
        descend(run, Cubed(LATE, lambda: os.kill(os.getpid(), signal.SIGUSR1)), "loop")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [pytest.param(killed, marks=pytest.mark.slow), signalled])
def test_a_signal_within_a_long_step_loses_no_finished_chunk(new_run, limits, monkeypatch, stop):
    limits(journal_writes=0.0)
    truth, run = new_run(), new_run()
    whole = descend(truth, Cubed(), "loop").ledger.rows_run
    stop(run)
    assert (run.path / "journal").is_dir()
    asked = []
    original = Cubed.evaluate_rows
    monkeypatch.setattr(Cubed, "evaluate_rows", lambda self, x: asked.append(len(x)) or original(self, x))
    descend(run, Cubed(), "loop")
    # a whole step, whose base is asked again where nothing was saved, and two chunks of nine were done
    assert sum(asked) <= whole - 6 * (34 + (stop is signalled) + 18)
    assert final_bits(run) == final_bits(truth) and lines(run) == lines(truth)


def test_a_request_to_stop_in_a_step_after_unsaved_ones_finishes_the_step(new_run, limits):
    """Else those would have to be taken again."""
    limits(journal_writes=0.0)
    run = new_run()
    box = Cubed(320, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Interrupted, match="Stopped at step 2 of 3"):
        descend(run, box, "loop", validate_every=9)
