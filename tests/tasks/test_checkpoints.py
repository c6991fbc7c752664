"""Checkpoints on disk: every value to the bit, damage found, a whole one left whatever kills the writer."""

import hashlib
import io
import math
import os
import pickle
import signal
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.errors import CheckpointError
from tasks.folder import atomic, checkpoint

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn,
]  # fmt: skip


def raw(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def same(one, other):
    """Equal in type, order of keys, and to the bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and raw(one) == raw(other)
    if isinstance(one, np.generic):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return one.hex() == other.hex()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture
def returned(tmp_path):
    """What a state is after its way to the disk and back."""

    def give(state):
        checkpoint.save(tmp_path / "a.pt", state)
        return checkpoint.load(tmp_path / "a.pt")

    return give


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_come_back_to_the_bit(returned, dtype):
    bits = torch.arange(96, dtype=torch.uint8).view(6, 16) * 5
    whole = bits > 100 if dtype is torch.bool else bits.view(dtype)
    state = {
        "whole": whole,
        "turned": whole.t(),
        "every other": whole[::2],
        "one": whole[0, 0],
        "none": whole[:0],
    }
    back = returned(state)
    assert same(back, state)
    assert back["turned"].stride() == state["turned"].stride()  # products round by how factors lie in memory


PLAIN = [
    [1, 0.1, -0.0, 2**70, True, None, "text \u00e9 \ud800", [], {}, ()],
    [math.nan, math.inf, -math.inf, 5e-324],
    {0: "a", 1.5: "b", None: "c", (1, "x"): "d", True: "e", "dict": "f", "tensor": "0"},
    {"tensor": "0"},
    ("a", [("b", (1,))]),
    torch.Size([2, 3]),
    OrderedDict([("b", 1), ("a", 2)]),
]


@pytest.mark.parametrize("value", PLAIN, ids=str)
def test_plain_values_come_back_as_they_were(returned, value):
    assert same(returned({"value": value}), {"value": value})


def test_states_of_modules_and_optimizers_come_back_with_all_that_loading_needs(returned):
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    tied = torch.nn.ModuleDict({"a": network, "b": network})  # one memory under two names
    optimizer = torch.optim.Adam(network.parameters(), amsgrad=True)
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = {"network": tied.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    back = returned(state)
    assert same(back, state)
    assert (
        back["network"]._metadata == state["network"]._metadata
    )  # versions, by which modules read old states
    tied.load_state_dict(back["network"])
    optimizer.load_state_dict(back["optimizer"])


def test_weights_can_be_read_by_torch_alone(tmp_path):
    checkpoint.save(tmp_path / "a.pt", {"weight": torch.tensor([1.5, 2.5])})
    assert torch.load(tmp_path / "a.pt", weights_only=True)["weight"].tolist() == [1.5, 2.5]


class Text(str):
    pass


REFUSED = [Text("x"), np.ones(3), np.float64(0.1), object(), lambda: 0]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_what_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"a\.pt: expected tensors.*state_dict"):
        checkpoint.save(tmp_path / "a.pt", {"a": [1, value]})
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_any_altered_or_missing_byte_is_found(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"a": torch.arange(3.0), "b": [1, "x"]})
    content = path.read_bytes()

    def refused(other):
        path.write_bytes(other)
        with pytest.raises(CheckpointError, match=r"a\.pt: expected the contents that its checksum"):
            checkpoint.load(path)

    for place in range(len(content)):
        refused(content[:place] + bytes([content[place] ^ 0b100]) + content[place + 1 :])
    for length in range(len(content)):
        refused(content[:length])
    refused(content + b"x")


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "text", "of another maker"])
def test_a_broken_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"a": torch.zeros(1000)})
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "of another maker":
        torch.save({"a": torch.zeros(1000)}, path)
    else:
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello"}[damage])
    with pytest.raises(CheckpointError, match=r"a\.pt: expected"):
        checkpoint.load(path)


class Runs:
    """Something that would run code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("made",)


def written(way):
    """The bytes of a file that would run code."""
    stream = io.BytesIO()
    if way == "pickle":
        pickle.dump({"a": Runs()}, stream, protocol=5)
    else:
        torch.save({"a": Runs()}, stream, _use_new_zipfile_serialization=way == "archive")
    return stream.getvalue()


@pytest.mark.parametrize("way", ["archive", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_although_its_checksum_is_right(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    content = written(way)
    Path("a.pt").write_bytes(content + b"\nsha256 " + hashlib.sha256(content).hexdigest().encode())
    with pytest.raises(CheckpointError, match=r"a\.pt: expected tensors and plain values"):
        checkpoint.load(Path("a.pt"))
    assert os.listdir() == ["a.pt"]


def kill(when, original):
    """A function of the system, in or after which this process is killed."""

    def call(*arguments, **options):
        if when == "after":
            original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return call


class Half:
    """A stream that writes half of what it is given; then this process is killed."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def write(self, content):
        self.stream.write(content[: len(content) // 2])
        self.stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def save(folder, moment):
    """Write twice, and be killed in the second; in a process of its own, which is changed."""
    path = folder / "a.pt"
    checkpoint.save(path, {"weight": torch.full((1000,), 10.0)})
    when, verb = moment.split()
    if verb == "write":
        vars(atomic)["open"] = lambda *arguments: Half(open(*arguments))
    else:
        setattr(os, verb, kill(when, getattr(os, verb)))
    checkpoint.save(path, {"weight": torch.full((1000,), 15.0)})


MOMENTS = {  # where kill -9 comes: what is found then
    "during write": 10,
    "before fsync": 10,
    "after fsync": 10,
    "before replace": 10,
    "after replace": 15,
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("moment", "step"), MOMENTS.items(), ids=MOMENTS)
def test_kill_9_in_the_middle_of_a_checkpoint_leaves_a_whole_one(tmp_path, moment, step):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forks beside threads
        child = os.fork()
    if not child:
        try:
            save(tmp_path, moment)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    found = checkpoint.load(tmp_path / "a.pt")
    assert same(found["weight"], torch.full((1000,), float(step)))
