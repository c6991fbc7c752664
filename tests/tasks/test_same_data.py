"""A run that goes on with other data than it began with is refused, before a row is run."""

import json

import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from tasks.errors import CheckpointWarning
from tasks.folder import checkpoint, place
from tasks.folder.run import Run
from tasks.problem import data as batches
from tasks.running import same_data


class Doubles(BlackBoxFunction):
    inputs, outputs = (ArraySpec("x", (1,)),), (ArraySpec("y", (1,)),)

    def evaluate_rows(self, x):
        return 2 * x


class Seeded(tasks.Problem):
    seeds: tuple[int | None, int | None] = 0, 0  # of the rows, and of the test

    def box(self):
        return Doubles()

    def network(self):
        return torch.nn.Linear(1, 1)

    def data(self):
        rows, test = (drawn(seed) for seed in self.seeds)
        parts = tasks.Data.split(rows, batch=4, validation=8)
        return batches.Data(parts.train, parts.validation, test, parts.rows)

    def objective(self, network, rows):
        return (self.box(network(rows)) - rows).square().mean(dim=1)


def drawn(seed):
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    return torch.rand(40, 1, generator=generator)


class Unseeded(Seeded):
    seeds = None, None


class Other(Seeded):
    seeds = 0, None


class Drawn(Seeded):
    def data(self):
        return tasks.Data.drawn(lambda seed, step, rows: drawn(None)[:rows], batch=4)

    def evaluate(self, network):
        return {"loss": 1.0}


def cut_short(kind, tmp_path):
    """The folder is as after a kill in the last method."""
    problem = kind(methods=["none", "cge"], steps=2)
    folder = tasks.run(problem, runs=tmp_path).path
    (folder / "result.json").unlink()
    checkpoint.of_stage(folder, "seed-0/cge").unlink()
    checkpoint.evaluation(folder, "seed-0/cge").unlink()
    return problem, folder


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("kind", "parts"),
    [(Unseeded, "training, validation and test"), (Other, "test"), (Drawn, "training")],
)
def test_a_run_that_goes_on_with_other_data_says_so(tmp_path, kind, parts):
    problem, folder = cut_short(kind, tmp_path)
    said = rf"its {parts} rows have changed since the run began.*without a seed.*tasks\.Data\.drawn"
    with pytest.warns(CheckpointWarning, match=said):
        tasks.run(problem, resume=folder)
    assert f"its {parts} rows have changed" in (folder / "report.html").read_text()


def test_a_folder_without_digests_goes_on(tmp_path):
    problem, folder = cut_short(Unseeded, tmp_path)
    (folder / place.DATA).unlink()
    assert tasks.run(problem, resume=folder).path == folder
    assert not (folder / place.DATA).exists()


def test_the_same_data_go_on(tmp_path):
    problem, folder = cut_short(Seeded, tmp_path)
    tasks.run(problem, resume=folder)
    assert (folder / "result.json").is_file()


@pytest.mark.parametrize("changed", ["code", "machine"])
def test_where_what_they_come_from_has_changed_it_is_said_and_the_run_goes_on(tmp_path, monkeypatch, changed):
    monkeypatch.setattr(Run, "code_versions", lambda run: {"its.py": "now"})
    problem, folder = cut_short(Other, tmp_path)
    path, name = {
        "code": (folder / "config.json", "its.py"),
        "machine": (folder / place.DATA, "cpu"),
    }[changed]
    content = json.loads(path.read_text())
    (content["versions"] if changed == "code" else content)[name] = "another"
    path.write_text(json.dumps(content))
    with pytest.warns(CheckpointWarning) as caught:
        tasks.run(problem, resume=folder)
    said = [str(one.message) for one in caught if "test rows have changed" in str(one.message)]
    assert len(said) == 1 and f"{name} another -> " in said[0]
    assert "test rows have changed" in (folder / "report.html").read_text()


def test_data_of_a_run_in_which_nothing_was_done_are_taken_anew(tmp_path):
    problem, folder = cut_short(Unseeded, tmp_path)
    for stage in ("seed-0/none", "seed-0/cge"):
        checkpoint.of_stage(folder, stage).unlink(missing_ok=True)
        checkpoint.evaluation(folder, stage).unlink(missing_ok=True)
    (folder / "metrics.jsonl").unlink()
    before = json.loads((folder / place.DATA).read_text())
    tasks.run(problem, resume=folder)
    now = json.loads((folder / place.DATA).read_text())
    assert now.keys() == before.keys() and now["test"] != before["test"]


def test_a_digest_is_of_numbers_shapes_and_dtypes_however_they_lie_in_memory(monkeypatch):
    rows = torch.arange(24.0).reshape(6, 4)
    whole = same_data.digest({"x": (rows,), "name": "a"})
    monkeypatch.setattr(same_data, "BLOCK", 5)
    assert same_data.digest([rows.T.contiguous().T, 3]) == whole
    others = [rows.double(), rows.reshape(4, 6), rows + 1e-6 * (rows == 23), rows[:5], (rows, rows)]
    assert len({whole, *map(same_data.digest, others)}) == 6
    kinds = [torch.tensor(3), torch.zeros(0, 2), torch.ones(3, dtype=torch.bool), rows.bfloat16(), 1j * rows]
    assert all(map(same_data.digest, kinds))
    assert same_data.digest(rows[:1, 2]) == same_data.digest(rows[:1, 2].clone()) != ""  # its stride is 4
    assert same_data.digest(rows.to_sparse()) == ""
