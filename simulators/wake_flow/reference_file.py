"""One HDF5 file of reference data: written whole or not at all, read only if it is what it should be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from simulators.errors import ReferenceDataError

STORAGE: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}  # with a checksum


def read(path: Path, expected: Mapping[str, Any], shape: tuple[int, ...]) -> torch.Tensor | None:
    """The frames in a file, or None where it is damaged.

    Args:
        path: the file.
        expected: the attributes that it must have.
        shape: of the frames, `(reynolds, frames, 2, height, width)`.

    Raises:
        ReferenceDataError: it is sound and holds other data than its name says.
    """
    try:
        with h5py.File(path, "r") as file:
            found = {name: _plain(file.attrs[name]) for name in expected}
            frames = np.asarray(file["frames"], np.float32)
    except (OSError, KeyError):
        return None
    wrong = [name for name, value in expected.items() if found[name] != _plain(value)]
    if wrong:
        raise ReferenceDataError(
            f"{path}: expected {wrong[0]} = {expected[wrong[0]]!r}, as its name says, "
            f"got {found[wrong[0]]!r}. "
            "The file was renamed or edited: delete it, and it is computed again."
        )
    return torch.from_numpy(frames) if frames.shape == shape else None


def write(path: Path, frames: torch.Tensor, attributes: Mapping[str, Any]) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # in a folder of its own, not by mkstemp: that makes files which no other user may read
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=path.stem, suffix=".partial") as folder:
        whole = Path(folder) / path.name
        with h5py.File(whole, "w") as file:
            file.create_dataset("frames", data=frames.numpy(), **STORAGE)
            file.attrs.update(attributes)
        os.replace(whole, path)


def _plain(value: Any) -> Any:  # noqa: ANN401
    return np.asarray(value).tolist()
