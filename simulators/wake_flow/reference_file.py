"""Arrays of reference flows in HDF5, a dataset for each flow; a file is whole or not there.

It is read only if it is what its name says: attributes and checksums are compared.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
import torch
from torch import Tensor

from blackbox.hdf5 import own_part
from blackbox.notices import warn
from simulators.errors import ReferenceDataError, ReferenceWarning

STORAGE: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}  # with a checksum
TOGETHER = 16  # frames compressed together
FLOWS = "flows"  # the group with a dataset for each flow
SHA256 = "sha256"  # of the flows' bytes: HDF5's checksums cover no metadata, by which they are found and read


def load_or_make(
    path: Path, attributes: Mapping[str, Any], shape: tuple[int, ...], make: Callable[[], Tensor]
) -> tuple[Tensor, bool]:
    """The array in a file, made and written where there is none; of several processes one makes it.

    Args:
        path: the file.
        attributes: what the array depends on; a file must have them.
        shape: `(flows, frames, ...)`.
        make: makes it, float32.

    Returns:
        The array, and whether it was there already.

    Raises:
        ReferenceDataError: the file is sound and holds other data than its name says.

    Warns:
        ReferenceWarning: the file is damaged, and is made again.
    """
    array = read(path, attributes, shape)
    if array is not None:
        return array, True
    with alone(path):
        array = read(path, attributes, shape)  # made while this process waited?
        if array is not None:
            return array, True
        if path.exists():
            warn(f"{path} is damaged and is computed again.", ReferenceWarning)
        made = make()
        write(path, made, attributes)
        part_of(path).unlink(missing_ok=True)
    return made, False


def part_of(path: Path) -> Path:
    """The file of a computation that has not ended, beside the one that it is for."""
    return path.with_suffix(".part.npz")


def write_part(path: Path, done: int, velocity: Tensor, kept: Sequence[Tensor]) -> None:
    """Write how far a computation is: steps done, the velocity, and what was kept of frames so far."""
    frames = torch.stack(list(kept)) if kept else torch.empty(0)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(temporary, "wb") as stream:
        np.savez(stream, done=done, velocity=velocity.numpy(), frames=frames.numpy())
    os.replace(temporary, path)


def read_part(path: Path) -> tuple[int, Tensor, list[Tensor]] | None:
    """What `write_part` wrote; None where there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            done, velocity, frames = int(archive["done"]), archive["velocity"], archive["frames"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return done, torch.from_numpy(velocity), list(torch.from_numpy(frames))


def read(path: Path, expected: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor | None:
    """The array in a file, or None where it is damaged or not there.

    Args:
        path: the file.
        expected: the attributes that it must have.
        shape: of the array, `(flows, frames, ...)`.

    Raises:
        ReferenceDataError: it is sound and holds other data than its name says.
    """
    names = [_name(place) for place in range(shape[0])]
    if not path.is_file():  # a pipe would be waited for without end
        return None
    try:
        with h5py.File(path, "r") as file:
            check_attributes(path, file, expected)
            flows = own_part(file, FLOWS)
            parts: list[Any] = []
            if isinstance(flows, h5py.Group) and sorted(flows) == names:
                parts = [own_part(flows, name) for name in names]
            if not parts or any(part is None or part.shape != shape[1:] for part in parts):
                return None
            frames = np.empty(shape, np.float32)
            for whole, part in zip(frames, parts, strict=True):
                part.read_direct(whole)
            if _plain(file.attrs[SHA256]) != _sha256(frames):
                return None
    except ReferenceDataError:
        raise
    # What h5py raises of damaged metadata, and of other things under our names.
    except (OSError, KeyError, RuntimeError, ValueError, AttributeError, TypeError):
        return None
    return torch.from_numpy(frames)


def write(path: Path, frames: Tensor, attributes: Mapping[str, Any]) -> None:
    """Write `(flows, frames, ...)` and what they depend on; the file appears whole or not at all."""
    # in a folder of its own, not by mkstemp: that makes files which no other user may read
    for left in path.parent.glob(
        f"{escape(path.name)}.*.partial"
    ):  # by a process that was killed; see `alone`
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.", suffix=".partial") as folder:
        whole = Path(folder) / path.name
        chunks = (min(frames.shape[1], TOGETHER), *frames.shape[2:])
        with h5py.File(whole, "w") as file:
            for place, flow in enumerate(frames.numpy()):
                file.create_dataset(f"{FLOWS}/{_name(place)}", data=flow, chunks=chunks, **STORAGE)
            file.attrs.update({**attributes, SHA256: _sha256(frames.numpy())})
        os.replace(whole, path)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process makes this file; freed by the system however a process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with open(lock, "a+", encoding="utf-8") as stream:  # which of a pipe waits for no reader
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
        # Who waits for the lock removed here finds the file made, and needs none.
        lock.unlink(missing_ok=True)


def _name(place: int) -> str:
    return f"{place:04d}"  # names sort as places do


def check_attributes(path: Path, file: h5py.File, expected: Mapping[str, Any]) -> None:
    """Refuse a file that was made otherwise (ReferenceDataError); KeyError where an attribute is missing."""
    attributes = {name: _plain(file.attrs[name]) for name in expected}
    wrong = [name for name, value in expected.items() if attributes[name] != _plain(value)]
    if wrong:
        raise ReferenceDataError(
            f"{path}: expected {wrong[0]} = {expected[wrong[0]]!r}, as its name says, "
            f"got {attributes[wrong[0]]!r}. "
            "The file was renamed or edited: delete it, and it is computed again."
        )


def _sha256(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()
