"""A resumed run asks the first rows of its boxes again and says which has changed; not which is noisy."""

import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks
import zo
from blackbox import ArraySpec, BlackBoxFunction, Cached
from blackbox.calls import rows_run_by, runner
from tasks import Progress
from tasks.configuration import Count
from tasks.errors import CheckpointWarning
from tasks.folder import changed_boxes, checkpoint, row_counts
from tasks.rows import first_rows
from tasks.rows.kept_answers import KeptAnswers

pytestmark = pytest.mark.filterwarnings("ignore::zo.errors.NoiseWarning")


BOXES = itertools.count()


class Opens(BlackBoxFunction):
    """Its factor is in a file that its code opens by name; nobody sees that."""

    inputs = (ArraySpec("x", (1,)),)
    outputs = (ArraySpec("y", (1,)),)
    identity = "a factor in a file"
    noise = 0.0

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.draws = np.random.default_rng(
            next(BOXES)
        )  # others in each box, the same in each run of the tests

    def evaluate_rows(self, x):
        return float(Path(self.path).read_text()) * x + self.noise * self.draws.normal(size=x.shape)


class Noisy(Opens):
    noise = 0.1


class Line(tasks.Problem):
    """A line through a box with a file."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "cge")
        steps: Count = 2
        batch: Count = 8
        file: str = ""
        noisy: bool = False
        cache: str = ""

    def box(self):
        box = (Noisy if self.config.noisy else Opens)(self.config.file)
        return Cached(box, self.config.cache) if self.config.cache else box

    def network(self):
        return torch.nn.Linear(1, 1)

    def data(self):
        return tasks.Data.split((torch.linspace(0, 1, 40)[:, None],), batch=8, validation=8, test=8)

    def objective(self, network, batch):
        return (self.box(network(batch[0])) - 1).square().mean(dim=1)


def cut_short(folder):
    """As after a kill in the last method."""
    (folder / "result.json").unlink()
    (folder / "report.html").unlink()
    checkpoint.of_stage(folder, "seed-0/cge").unlink()
    checkpoint.evaluation(folder, "seed-0/cge").unlink()


def run(tmp_path, **settings):
    file = tmp_path / "factor"
    file.write_text("2.0")
    settings = {"file": str(file), **settings}
    folder = tasks.run(Line(), runs=tmp_path / "runs", progress=Progress(), **settings).path
    cut_short(folder)
    return file, folder, lambda: tasks.run(Line(), resume=folder, progress=Progress(), **settings)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("cache", ["", "answers.db"], ids=["bare", "cached"])
def test_a_file_that_changed_between_kill_and_resume_is_said(tmp_path, cache):
    file, folder, resume = run(tmp_path, cache=cache and str(tmp_path / cache))
    before = row_counts.read(folder)["rows"]
    file.write_text("2.5")
    with pytest.warns(CheckpointWarning, match="Box 'box' has changed since the run began"):
        resume()
    kept = checkpoint.load(folder / first_rows.FILE)["box"]
    largest = float(kept["inputs"][0].abs().max())
    (sentence,) = changed_boxes.read(folder)
    assert f"by up to {0.5 * largest:.3g} where the largest answer was {2 * largest:.3g}" in sentence
    assert "asked three times now, it answered the same each time" in sentence
    for name in ("report.html", "table.md"):
        assert "has changed since the run began" in (folder / name).read_text()
    if not cache:  # each time is counted: 3 x 8 beside what cge takes
        assert row_counts.read(folder)["rows"] - before >= 24
    cut_short(folder)
    file.write_text("2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume()


def test_rows_are_seen_through_kept_answers_whatever_runs_them_around(tmp_path):
    (tmp_path / "factor").write_text("2.0")
    box = Opens(str(tmp_path / "factor"))
    with first_rows.FirstRows(tmp_path, {"box": box}).watching():
        around = runner()
        assert around is not None
        with rows_run_by(lambda box, rows: around(box, rows)), KeptAnswers("data").used():
            box(np.ones((3, 1)))
    assert checkpoint.load(tmp_path / first_rows.FILE)["box"]["outputs"][0].tolist() == [[2.0]] * 3


@pytest.mark.parametrize("shared", [False, True])
def test_answers_that_are_recalled_say_nothing_of_the_box(tmp_path, shared):
    """A run that is killed before its first step makes its data from kept answers: the box may be another."""

    class Recalls(KeptAnswers):
        any_known = True

        def known(self, key):
            return (torch.full((3, 1), 9.0),), 3

    (tmp_path / "factor").write_text("2.0")
    box = Opens(str(tmp_path / "factor"))
    asked = zo.execution.SharedRows(box, None) if shared else box
    with first_rows.FirstRows(tmp_path, {"box": asked}).watching(), Recalls("data").used():
        assert asked(np.ones((3, 1))).tolist() == [[9.0]] * 3
    assert not (tmp_path / first_rows.FILE).exists()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("noisy", [False, True])
def test_a_box_that_is_the_same_or_noisy_is_not_spoken_of(tmp_path, noisy):
    _, folder, resume = run(tmp_path, noisy=noisy)
    for _ in range(3):
        resume()  # a warning would be an error
        cut_short(folder)
    assert changed_boxes.read(folder) == []


@pytest.mark.slow
def test_a_noisy_box_that_changed_is_said(tmp_path):
    file, _, resume = run(tmp_path, noisy=True)
    file.write_text("90")
    with pytest.warns(CheckpointWarning, match="with noise of"):
        resume()


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_of_a_whole_one_and_keeps_its_budget(tmp_path):
    """The rows that are asked again teach nothing, and are at most a small part of the budget."""
    _, folder, resume = run(tmp_path, methods=("none", "tangents", "cge"), rows=2000, steps=4)
    (folder / "evaluations" / "seed-0__tangents.pt").unlink()
    checkpoint.of_stage(folder, "seed-0/tangents").unlink()
    before = row_counts.read(folder)["rows"]
    resumed = resume()
    other = tmp_path / "whole"
    other.mkdir()
    _, unbroken, _ = run(other, methods=("none", "tangents", "cge"), rows=2000, steps=4)
    again = checkpoint.load(checkpoint.of_stage(unbroken, "seed-0/tangents"))
    mine = checkpoint.load(checkpoint.of_stage(folder, "seed-0/tangents"))
    for name, weights in mine["state"]["network"].items():
        assert torch.equal(weights, again["state"]["network"][name])
    assert resumed.path == folder and row_counts.read(folder)["rows"] > before


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (3, 4),
        (None, None),
        ([torch.tensor(1.0)], [torch.ones(2, 1)]),
        ([torch.ones(2, 1).to_sparse()], [torch.ones(2, 1)]),
        ([torch.ones(0, 1)], [torch.ones(0, 1)]),
        ([torch.ones(2, 1)], [torch.ones(2, 2)]),
        ([torch.ones(2, 1)], [torch.ones(3, 1)]),
        ([torch.ones(2, 1)] * 2, [torch.ones(2, 1)]),
        ([torch.ones(2, 1)] * 2, []),
        ([], [torch.ones(2, 1)]),
        (["a"], ["b"]),
    ],
)
def test_what_is_no_row_of_a_box_is_left_out(tmp_path, inputs, outputs):
    (tmp_path / "factor").write_text("2.0")
    checkpoint.save(tmp_path / first_rows.FILE, {"box": {"inputs": inputs, "outputs": outputs}})
    box = Opens(tmp_path / "factor")
    first_rows.FirstRows(tmp_path, {"box": box}).ask_again(None, "cpu")
    assert box.ledger.rows_run == 0


@pytest.mark.slow
def test_a_file_of_others_is_read_as_what_fits(tmp_path):
    _, folder, resume = run(tmp_path)
    path = folder / first_rows.FILE
    for content in ({"box": 1}, {"box": {"inputs": [1], "outputs": []}}, {"other": {}}):
        checkpoint.save(path, content)
        resume()
        cut_short(folder)
    path.write_bytes(b"none")
    resume()
