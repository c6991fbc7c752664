"""Making reference data: in processes as in one, going on after a kill, and what is said when it fails."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch

from blackbox import ConfigurationError
from simulators.errors import ReferenceDataError, ReferenceWarning
from simulators.wake_flow import Box, ReferenceSettings, load_or_compute, reference_file
from simulators.wake_flow.simulation import Simulation

TINY = ReferenceSettings(reynolds=(100.0, 200.0, 400.0), width=8, reference_width=16, warm_up=3, frames=20)

GENERATE = """
import sys
from simulators.wake_flow.reference import load_or_compute
from simulators.wake_flow.reference_settings import ReferenceSettings

if __name__ == "__main__":
    few = dict(width=8, reference_width=16, warm_up=3, frames={})
    settings = ReferenceSettings(reynolds=(100.0, 200.0, 400.0), **few)
    load_or_compute(settings, sys.argv[1], lambda *done: print(*done, flush=True), workers={})
"""


def parts(folder: Path, settings: ReferenceSettings = TINY) -> list[str]:
    return sorted(os.listdir(settings.path(folder).with_suffix(".parts")))


def stop_at(step: int):
    def progress(done: int, _: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.slow
def test_processes_give_the_bits_of_one_and_so_does_each_reynolds_number_alone(tmp_path):
    settings = replace(TINY, obstacles=(Box((40.0, 40.0), (65.0, 65.0)),))
    serial = load_or_compute(settings, tmp_path / "serial")
    seen = []
    parallel = load_or_compute(
        settings, tmp_path / "parallel", lambda *counts: seen.append(counts), workers=2
    )
    assert torch.equal(serial.frames, parallel.frames) and not parallel.reused
    assert seen[0] == (0, 3 * settings.steps) and seen[-1] == (3 * settings.steps, 3 * settings.steps)
    assert sorted(seen) == seen
    assert os.listdir(tmp_path / "parallel") == [parallel.path.name]
    alone = load_or_compute(replace(settings, reynolds=settings.reynolds[1:2]), tmp_path / "alone")
    assert torch.equal(alone.frames[0], serial.frames[1])


def test_an_interrupted_generation_goes_on_where_it_was(tmp_path):
    whole = load_or_compute(TINY, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        load_or_compute(TINY, tmp_path, stop_at(TINY.steps + 5))
    assert parts(tmp_path) == ["0000.h5"] and not TINY.path(tmp_path).exists()
    seen = []
    resumed = load_or_compute(TINY, tmp_path, lambda *counts: seen.append(counts))
    assert seen == [(done, 3 * TINY.steps) for done in range(TINY.steps, 3 * TINY.steps + 1)]
    assert torch.equal(resumed.frames, whole.frames)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_generation_goes_on_where_it_was(tmp_path, workers):
    """Killed by the system, which no code can answer; its processes end with it."""
    frames = 400
    settings = replace(TINY, frames=frames)
    script = tmp_path / "generate.py"
    script.write_text(GENERATE.format(frames, workers))
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line.split()[0]) > settings.steps * (0.1 + workers):
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    left = [name for name in parts(tmp_path, settings) if name.endswith(".h5")]
    assert left and not settings.path(tmp_path).exists()
    first = []
    flows = load_or_compute(settings, tmp_path, lambda *counts: first.append(counts[0]))
    assert first[0] == settings.steps * len(left)
    simulation = Simulation(settings)
    for place, made in enumerate(flows.frames):
        for frame, again in zip(made[:30], simulation.frames(place), strict=False):
            assert torch.equal(frame, again)
    assert sorted(os.listdir(tmp_path)) == sorted(["generate.py", flows.path.name])


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_part_is_computed_again_and_a_foreign_one_refused(tmp_path):
    whole = load_or_compute(TINY, tmp_path / "whole")
    for harm in (damage, lambda path: path.write_bytes(b"")):
        with pytest.raises(KeyboardInterrupt):
            load_or_compute(TINY, tmp_path, stop_at(TINY.steps + 5))
        part = reference_file.part(TINY.path(tmp_path).with_suffix(".parts"), 0)
        harm(part)
        with pytest.warns(ReferenceWarning, match=r"0000\.h5 is damaged"):
            again = load_or_compute(TINY, tmp_path)
        assert torch.equal(again.frames, whole.frames)
        again.path.unlink()
    with pytest.raises(KeyboardInterrupt):
        load_or_compute(TINY, tmp_path, stop_at(TINY.steps + 5))
    part.rename(part.with_name("0001.h5"))
    with pytest.raises(ReferenceDataError, match=r"0001\.h5: expected place = 1, as its name says, got 0"):
        load_or_compute(TINY, tmp_path)


def test_memory_holds_few_frames_at_a_time(tmp_path):
    """Frames are taken from the simulation one by one and written before more are asked for."""
    asked = written = 0

    def frames():
        nonlocal asked
        for value in range(100):
            asked += 1
            assert asked - written <= reference_file.TOGETHER + 1
            yield torch.full((2, 16, 8), float(value))

    original = h5py.Dataset.__setitem__

    def note(dataset, place, block):
        nonlocal written
        original(dataset, place, block)
        written += len(block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h5py.Dataset, "__setitem__", note)
        reference_file.write_part(tmp_path / "part.h5", frames(), 100, {})
    with h5py.File(tmp_path / "part.h5") as file:
        assert (file["frames"][:, 1, 2, 3] == torch.arange(100.0).numpy()).all() and written == 100


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_simulation_that_blows_up_is_named_with_step_reynolds_number_and_row(tmp_path, workers):
    settings = replace(TINY, poke=1e38)
    words = r"Reference at Re (100 \(row 0\)|200 \(row 1\)): .* in step 1 of 41\. .* smaller reference_dt"
    with pytest.raises(ReferenceDataError, match=words):
        load_or_compute(settings, tmp_path, workers=workers)
    assert not settings.path(tmp_path).exists() and parts(tmp_path, settings) == []


@pytest.mark.slow
def test_two_processes_that_want_the_same_data_compute_it_once(tmp_path):
    script = tmp_path / "generate.py"
    script.write_text(GENERATE.format(300, 1))
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [len(process.communicate(timeout=120)[0].splitlines()) for process in both]
    settings = replace(TINY, frames=300)
    assert sorted(counts) == [0, 3 * settings.steps + 1]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(os.listdir(tmp_path)) == sorted(["generate.py", settings.path(tmp_path).name])


@pytest.mark.parametrize("workers", [0, -1, True])
def test_a_number_of_workers_that_is_none_is_refused(tmp_path, workers):
    with pytest.raises(ConfigurationError, match="workers: expected a whole number >= 1"):
        load_or_compute(TINY, tmp_path, workers=workers)
    assert os.listdir(tmp_path) == []
