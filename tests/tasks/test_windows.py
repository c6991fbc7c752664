"""Large windows of a training lie in files of their own: written once, removed when no longer named."""

import pytest
import torch

import tasks
from tasks.errors import CheckpointError
from tasks.folder import window_files
from tasks.folder.window_files import LARGE, WindowFiles
from tests.tasks.test_checkpoints import same
from tests.tasks.test_spending import Steering, go


def window(step, size=LARGE // 4):
    """A window as `TangentGradient.state_dict` has it, with `size` numbers of four bytes."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(step))
    return {"step": step, "batch": (values,), "calls": [(0, [values[None]], [values])], "losses": values[:2]}


def state(*kept):
    return {
        "network": {"windows": torch.ones(3)},  # a weight may have that name
        "gradient": {"windows": {"trust": {"replays": 9.0}, "windows": list(kept)}},
    }


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "seed-0__tangents.windows"


def test_windows_come_back_to_the_bit_and_small_ones_need_no_file(folder):
    whole = state(window(1), window(2, size=10), window(3))
    kept = WindowFiles(folder).put(whole)
    assert sorted(path.name for path in folder.iterdir()) == ["gradient-step-1.pt", "gradient-step-3.pt"]
    assert sum(tensor.nbytes for tensor in window_files.tensors(kept)) < 1000
    assert same(WindowFiles(folder).take(kept), whole)


def test_two_parts_have_windows_of_the_same_step(folder):
    """As a training has whose state holds two gradients, each of a network of its own."""
    whole = state(window(1), window(2))
    whole["critic/a"] = state(window(2, size=LARGE // 2))["gradient"]
    files = WindowFiles(folder)
    for _ in range(2):  # written, and named again
        kept = files.put(whole)
        files.tidy()
        assert len(list(folder.iterdir())) == 3
        assert same(WindowFiles(folder).take(kept), whole)


def test_a_window_is_written_once_and_removed_when_the_checkpoint_no_longer_names_it(folder):
    files = WindowFiles(folder)
    kept = files.put(state(window(1), window(2)))
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    resumed = WindowFiles(folder)
    resumed.take(kept)
    for each in (files, resumed):
        each.put(state(window(2), window(3)))
    assert (folder / "gradient-step-2.pt").stat().st_ino == before[
        "gradient-step-2.pt"
    ]  # written anew it would be another
    assert (folder / "gradient-step-1.pt").exists()  # as long as the checkpoint on the disk may name it
    resumed.tidy()
    assert sorted(path.name for path in folder.iterdir()) == ["gradient-step-2.pt", "gradient-step-3.pt"]


def test_what_a_killed_process_wrote_is_not_taken_for_what_comes_after_a_resume(folder):
    kept = WindowFiles(folder).put(state(window(1)))
    (folder / "gradient-step-2.pt").write_bytes(b"of a process that was killed")
    files = WindowFiles(folder)
    files.take(kept)
    whole = state(window(1), window(2))
    assert same(WindowFiles(folder).take(files.put(whole)), whole)


@pytest.mark.parametrize("fault", ["missing", "another", "cut"])
def test_a_window_that_is_not_the_one_that_is_named_is_refused(folder, fault):
    kept = WindowFiles(folder).put(state(window(1), window(2)))
    path, other = folder / "gradient-step-1.pt", (folder / "gradient-step-2.pt").read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(other if fault == "another" else other[:-100])
    with pytest.raises(CheckpointError, match=r"step-1\.pt: expected"):
        WindowFiles(folder).take(kept)


def test_a_run_that_replays_goes_on_from_its_files_to_the_same_bits(tmp_path, limits):
    limits(window_file_bytes=1)
    seen = []

    class Stops(tasks.Callback):
        strict = True

        def on_step(self, stage, step, metrics):
            if step == 7:
                seen.extend((tmp_path / "cut").rglob("*.windows/*"))
                raise RuntimeError("stopped")

    settings = {"methods": ("tangents",), "validate_every": 3}
    config = {"steps": 10, "replays": 2}
    whole = go(Steering(**config), tmp_path / "whole", **settings)
    with pytest.raises(RuntimeError, match="stopped"):
        go(Steering(**config), tmp_path / "cut", callbacks=[Stops()], **settings)
    assert len(seen) == 6
    (folder,) = (tmp_path / "cut").iterdir()
    again = go(Steering(**config), tmp_path, resume=folder, **settings)
    first, second = (
        torch.cat([weight.flatten() for weight in run.network("tangents").parameters()])
        for run in (whole, again)
    )
    assert torch.equal(first, second)
    assert not list((tmp_path / "cut").rglob("*.windows/*"))  # the training is finished


@pytest.mark.slow
def test_windows_of_a_process_that_was_killed_right_behind_the_last_checkpoint_are_removed(
    tmp_path, limits, monkeypatch
):
    limits(window_file_bytes=1)
    tidy = WindowFiles.tidy

    def killed(self):
        if not self._sums:  # the training is finished
            raise RuntimeError("killed")
        tidy(self)

    settings = {"methods": ("tangents",), "validate_every": 3}
    problem = Steering(steps=4, replays=1)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(WindowFiles, "tidy", killed)
        go(problem, tmp_path / "cut", **settings)
    (folder,) = (tmp_path / "cut").iterdir()
    assert list(folder.rglob("*.windows/*"))
    go(problem, tmp_path, resume=folder, **settings)
    assert not list(folder.rglob("*.windows/*"))
