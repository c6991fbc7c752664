"""Reference data: what is in the file, and when it is used again, made anew or refused."""

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import h5py
import pytest
import torch

from blackbox.errors import ConfigurationError
from simulators.errors import ReferenceDataError, ReferenceWarning
from simulators.wake_flow import (
    Channel,
    ReferenceSettings,
    WakeStep,
    load_or_compute,
    reference,
    reference_file,
    reference_settings,
)
from simulators.wake_flow.staggered import downsample, start

TINY = ReferenceSettings(reynolds=(100.0, 400.0), width=8, reference_width=16, warm_up=3, frames=4)


@pytest.fixture(autouse=True)
def no_time_passes(limits):
    """Or a slow machine would keep what a fast one does not."""
    limits(clock_of_references=lambda: 0.0)


@pytest.mark.slow
def test_frames_are_the_fine_solvers_downsampled_once_per_source_step(tmp_path):
    flows = load_or_compute(TINY, tmp_path)
    step = WakeStep(Channel(16), 0.5, "mac-cormack")
    for reynolds, frames in zip(TINY.reynolds, flows.frames, strict=True):
        velocity = start(step.channel)[None]
        for done in range(1, 10):
            velocity = step(velocity, torch.tensor([reynolds]))  # a flow alone: equal to rounding
            if done in (3, 5, 7, 9):
                assert (frames[(done - 3) // 2] - downsample(velocity[0], 2)).abs().max() < 2e-6
    assert flows.frames.shape == (2, 4, 2, 16, 8) and flows.frames.dtype == torch.float32
    assert flows.reynolds.tolist() == [100.0, 400.0]


def test_a_second_load_reads_the_same_bits_and_computes_nothing(tmp_path, monkeypatch):
    first = load_or_compute(TINY, tmp_path / "new" / "folder")
    monkeypatch.setattr(reference, "simulate", lambda *_: pytest.fail("computed again"))
    second = load_or_compute(TINY, tmp_path / "new" / "folder")
    assert (first.reused, second.reused) == (False, True)
    assert torch.equal(first.frames, second.frames) and first.path == second.path


def test_progress_counts_every_step(tmp_path):
    seen = []
    load_or_compute(TINY, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(10)] and TINY.steps == 9


CHANGES = {
    "reynolds": (100.0, 401.0),
    "width": 16,
    "reference_width": 32,
    "dt": 2.0,
    "reference_dt": 0.25,
    "warm_up": 4,
    "frames": 5,
    "advection": "semi-lagrangian",
    "poke": 0.4,
    "along": 81.0,
}


def test_the_key_changes_with_every_parameter():
    assert set(CHANGES) == set(asdict(TINY))
    keys = {replace(TINY, **{name: value}).key() for name, value in CHANGES.items()}
    assert len(keys | {TINY.key()}) == len(CHANGES) + 1
    assert replace(TINY).key() == TINY.key()


@pytest.mark.parametrize("package", reference_settings.VERSIONS)
def test_the_key_changes_with_every_version(package, limits):
    before, version = TINY.key(), reference_settings.version
    limits(version_of_package=lambda name: "0.0.0" if name == package else version(name))
    assert TINY.key() != before


def test_the_key_changes_with_the_format(limits):
    before = TINY.key()
    limits(format_of_references=reference_settings.FORMAT + 1)
    assert TINY.key() != before


def test_the_file_says_what_it_holds(tmp_path):
    with h5py.File(load_or_compute(TINY, tmp_path).path) as file:
        assert [file[f"flows/{name}"].compression for name in ("0000", "0001")] == ["gzip", "gzip"]
        assert list(file["flows"]) == ["0000", "0001"]
        assert list(file.attrs["reynolds"]) == [100.0, 400.0]
        assert file.attrs["advection"] == "mac-cormack" and "torch_version" in file.attrs
        assert set(file.attrs) == {*TINY.attributes(), "sha256"}


def test_the_files_are_as_readable_as_the_umask_lets_them_be(tmp_path):
    before = os.umask(0o027)
    try:
        path = load_or_compute(TINY, tmp_path).path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_nothing_else_is_left_behind(tmp_path):
    path = load_or_compute(TINY, tmp_path).path
    assert os.listdir(tmp_path) == [path.name]
    path.unlink()
    (tmp_path / f"{path.name}.abc.partial").mkdir()  # of a process that was killed
    load_or_compute(TINY, tmp_path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("done", [0, 5, 9])
def test_an_interruption_leaves_no_file_and_the_next_call_makes_the_same(tmp_path, done):
    def interrupt(steps: int, _: int) -> None:
        if steps == done:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        load_or_compute(TINY, tmp_path, interrupt)
    assert torch.get_num_threads() == threads
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []
    again = load_or_compute(TINY, tmp_path)
    assert torch.equal(again.frames, load_or_compute(TINY, tmp_path / "whole").frames)
    assert set(os.listdir(tmp_path)) == {"whole", again.path.name} and not again.reused


@pytest.mark.parametrize("done", [2, 6])
def test_a_long_computation_goes_on_where_it_was_interrupted(tmp_path, limits, done):
    whole, now, seen = load_or_compute(TINY, tmp_path / "whole"), [0.0], []

    def interrupt(step, total):
        now[0] += 10
        seen.append(step)
        if seen == list(range(done + 1)):
            raise KeyboardInterrupt

    limits(clock_of_references=lambda: now[0])
    with pytest.raises(KeyboardInterrupt):
        load_or_compute(TINY, tmp_path / "cut", interrupt)
    again = load_or_compute(TINY, tmp_path / "cut", interrupt)
    assert torch.equal(again.frames, whole.frames)
    assert seen == [*range(done + 1), *range(done, 10)]  # the one that was cut short again, and no other
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [whole.path.name]


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    original, written = h5py.Group.create_dataset, []

    def interrupt(group, name, *arguments, **options):
        if written:
            raise KeyboardInterrupt
        written.append(name)
        return original(group, name, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(h5py.Group, "create_dataset", interrupt)
        load_or_compute(TINY, tmp_path)
    assert written and [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []
    assert load_or_compute(TINY, tmp_path).frames.isfinite().all()


GENERATE = """
import sys
from dataclasses import replace
from simulators.wake_flow import load_or_compute
from tests.simulators.test_wake_reference import TINY

load_or_compute(replace(TINY, frames=int(sys.argv[2])), sys.argv[1], lambda *done: print(*done, flush=True))
"""


def generating(folder, frames: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", GENERATE, str(folder), str(frames)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_what_is_killed_begins_again_and_gives_the_same_bits(tmp_path):
    """Killed by the system, which no code can answer."""
    settings = replace(TINY, frames=400)
    with generating(tmp_path, 400) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if int(line.split()[0]) > 100)
        process.send_signal(signal.SIGKILL)
    assert not settings.path(tmp_path).exists()
    again = load_or_compute(settings, tmp_path)
    assert not again.reused and os.listdir(tmp_path) == [again.path.name]
    assert torch.equal(again.frames, load_or_compute(settings, tmp_path / "whole").frames)


@pytest.mark.slow
def test_two_processes_that_want_the_same_data_compute_it_once(tmp_path):
    settings = replace(TINY, frames=300)
    both = [generating(tmp_path, 300) for _ in range(2)]
    counts = [len(process.communicate(timeout=120)[0].splitlines()) for process in both]
    assert sorted(counts) == [0, settings.steps + 1]
    assert [process.returncode for process in both] == [0, 0]
    assert os.listdir(tmp_path) == [settings.path(tmp_path).name]


def test_the_bits_do_not_hang_on_the_threads_of_who_asks(tmp_path):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(before + 1)
    try:
        load_or_compute(TINY, tmp_path, lambda *_: seen.append(torch.get_num_threads()))
        assert set(seen) == {1} and torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_flow_that_blows_up_is_named_with_step_reynolds_number_and_row(tmp_path):
    """One of the rows: the others are not to blame."""
    settings = replace(TINY, poke=1e38)
    words = r"Reference at Re 100 \(row 0\): .* in step 1 of 9\. .* smaller reference_dt than 0\.5"
    with pytest.raises(ReferenceDataError, match=words):
        load_or_compute(settings, tmp_path)
    assert not settings.path(tmp_path).exists()
    velocity = torch.ones(2, 2, 4, 4)
    velocity[1, 0, 1, 1] = float("inf")
    with pytest.raises(ReferenceDataError, match=r"Re 400 \(row 1\): .* step 7 of 9"):
        reference._check_finite(velocity, TINY, 7)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit_of_the_frames(path):
    with h5py.File(path) as file:
        offset = file["flows/0001"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 20] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def drop_the_frames(path):
    with h5py.File(path, "a") as file:
        del file["flows/0000"]


def add_a_flow(path):
    with h5py.File(path, "a") as file:
        file["flows/0002"] = file["flows/0000"][:]


def drop_an_attribute(path):
    with h5py.File(path, "a") as file:
        del file.attrs["poke"]


def drop_the_checksum(path):
    with h5py.File(path, "a") as file:
        del file.attrs["sha256"]


def change_a_number(path):
    """With a sound checksum of HDF5's own, as where metadata are damaged."""
    with h5py.File(path, "a") as file:
        flow: Any = file["flows/0001"]
        flow[1, 0, 2, 3] += 1


DAMAGES = [
    truncate, flip_a_bit_of_the_frames, empty, drop_the_frames, add_a_flow, drop_an_attribute,
    drop_the_checksum, change_a_number,
]  # fmt: skip


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, damage):
    first = load_or_compute(TINY, tmp_path)
    damage(first.path)
    with pytest.warns(ReferenceWarning, match="damaged"):
        again = load_or_compute(TINY, tmp_path)
    assert not again.reused and torch.equal(first.frames, again.frames)
    assert load_or_compute(TINY, tmp_path).reused


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_what_h5py_cannot_read_is_damaged(tmp_path, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    path = load_or_compute(TINY, tmp_path).path
    monkeypatch.setattr(h5py.Dataset, "read_direct", fail)
    assert reference_file.read(path, TINY.attributes(), (2, 4, 2, 16, 8)) is None


@pytest.mark.parametrize("which", ["lock", "part.npz", "linked"])
def test_a_pipe_is_not_waited_for(tmp_path, which):
    made = load_or_compute(TINY, tmp_path)
    pipe = made.path.with_suffix(f".{which}")
    os.mkfifo(pipe)
    if which == "linked":
        with h5py.File(made.path, "a") as file:
            del file[reference_file.FLOWS]
            file[reference_file.FLOWS] = h5py.ExternalLink(str(pipe), "flows")
        with pytest.warns(ReferenceWarning, match="damaged"):
            assert torch.equal(load_or_compute(TINY, tmp_path).frames, made.frames)
        return
    made.path.unlink()
    if which == "lock":
        with pytest.raises(OSError, match="seekable"):
            load_or_compute(TINY, tmp_path)
    else:
        assert torch.equal(load_or_compute(TINY, tmp_path).frames, made.frames)


def test_a_renamed_file_is_refused(tmp_path):
    other = load_or_compute(replace(TINY, poke=0.1), tmp_path)
    other.path.rename(TINY.path(tmp_path))
    with pytest.raises(
        ReferenceDataError, match=r"expected poke = 0\.5, as its name says, got 0\.1.*delete it"
    ):
        load_or_compute(TINY, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reynolds": ()}, "reynolds: expected some from"),
        ({"reynolds": (100.0, 0.0)}, "reynolds"),
        ({"reference_width": 20}, "reference_width: expected a multiple of width 8, got 20"),
        ({"reference_dt": 0.3}, "reference_dt: expected a whole fraction of dt 1, got 0.3"),
        ({"reference_dt": 2.0}, "whole fraction"),
        ({"warm_up": -1}, "warm_up: expected 0 or more steps, got -1"),
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"advection": "upwind"}, "advection"),
        ({"width": 4}, "at least 8"),
        ({"reference_dt": 250.0, "dt": 250.0}, "CFL number"),
    ],
)
def test_bad_settings_are_named(change, words):
    with pytest.raises(ConfigurationError, match=words):
        replace(TINY, **change)


def test_fractions_that_binary_numbers_miss_are_whole():
    assert replace(TINY, dt=0.3, reference_dt=0.1).steps_per_frame == 3
