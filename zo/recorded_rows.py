"""Rows of a box that are recorded in an HDF5 file, or bought around inputs, for a derivative to learn from.

A file has two groups, `inputs` and `outputs`, with a dataset `(rows, *shape)` for each array under its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.arrays import finite_rows, to_rows
from blackbox.hdf5 import own_part
from blackbox.wrappers.identity import identity, name_of
from blackbox.wrappers.sources import digest
from zo.errors import ConfigurationError

BLOCK = 64  # rows that are bought, and on disk, at a time
BOX = "box"  # the attribute of a file that says of which box alone its rows were bought
Arrays: TypeAlias = Any
"""An array, or a sequence of arrays: those of NumPy or torch, rows first."""


@dataclass(frozen=True)
class RecordedRows:
    """The inputs and answers of a box.

    Attributes:
        inputs: one tensor `(rows, *shape)` for each input of the box, in its order.
        outputs: the same of the outputs; NaN where a row failed.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.inputs[0])

    def of(self, places: Tensor) -> RecordedRows:
        """Some of them, by their places or by a mask."""
        inputs, outputs = (tuple(t[places] for t in both) for both in (self.inputs, self.outputs))
        return RecordedRows(inputs, outputs)

    def finite(self) -> RecordedRows:
        """Return the rows whose numbers are all finite."""
        good = finite_rows((*self.inputs, *self.outputs))
        return self.of(good.to(self.inputs[0].device))


def recorded(box: BlackBoxFunction, inputs: Arrays, outputs: Arrays) -> RecordedRows:
    """Rows that are there as arrays, checked against the box.

    Args:
        box: the box whose rows they are.
        inputs: an array `(rows, *shape)` for each of its inputs; one array where it has one.
        outputs: the same of its outputs.

    Raises:
        InputError, ConfigurationError: they do not fit the box, or each other.
    """
    rows = to_rows(repr(box), box.inputs, _several(inputs))
    answers = tuple(torch.as_tensor(array) for array in _several(outputs))
    shapes = [(rows.count, *spec.shape) for spec in box.outputs]
    if len(rows.leading) != 1 or [tuple(answer.shape) for answer in answers] != shapes:
        raise ConfigurationError(
            f"{box!r}, recorded rows: expected outputs of shapes {shapes} for inputs with one leading axis, "
            f"got {[tuple(answer.shape) for answer in answers]} for leading axes {rows.leading}. Give all of the "  # noqa: E501
            "box's arrays in its order, rows first."
        )
    return RecordedRows(rows.inputs, tuple(answer.detach().to(rows.device) for answer in answers))


def read_rows(box: BlackBoxFunction, path: str | Path) -> RecordedRows:
    """The rows of an HDF5 file, as `write_rows` writes it.

    Raises:
        ConfigurationError: there is no such file, or an array of the box is not in it.
    """
    try:
        with h5py.File(path, "r") as file:
            arrays = [
                [_dataset(path, file, kind, spec) for spec in specs]
                for kind, specs in (("inputs", box.inputs), ("outputs", box.outputs))
            ]
    except OSError as error:
        raise ConfigurationError(
            f"{path}: expected an HDF5 file with the groups inputs and outputs, got none ({error}). "
            "zo.recorded_rows.write_rows writes one."
        ) from None
    return recorded(box, *arrays)


def write_rows(box: BlackBoxFunction, path: str | os.PathLike[str], rows: RecordedRows) -> None:
    """Write rows to an HDF5 file, which `read_rows` reads; behind those that are in it already."""
    with h5py.File(path, "a") as file:
        for kind, specs, tensors in (
            ("inputs", box.inputs, rows.inputs),
            ("outputs", box.outputs, rows.outputs),
        ):
            group: Any = file.require_group(kind)
            for spec, tensor in zip(specs, tensors, strict=True):
                array = tensor.detach().cpu().numpy()
                if spec.name not in group:
                    group.create_dataset(spec.name, data=array, maxshape=(None, *spec.shape), chunks=True)
                    continue
                dataset = group[spec.name]
                dataset.resize(len(dataset) + len(array), 0)
                dataset[len(dataset) - len(array) :] = array


def buy_rows(
    box: BlackBoxFunction,
    inputs: Sequence[Tensor],
    *,
    path: str | os.PathLike[str] | None = None,
    same_box: bool = False,
) -> RecordedRows:
    """Ask a box for rows, 64 at a time; those of a block are on disk before the next one is asked for.

    What an earlier call for the same box has left in the file is not asked for again, so that a process that
    was killed goes on. Rows that failed are.

    Args:
        box: the box, whose policy says what becomes of rows that fail.
        inputs: one tensor `(rows, *shape)` for each input.
        path: an HDF5 file that the rows are written to, behind those that are in it; None for none.
        same_box: whether rows of a box with other code, values or files count as this one's.

    Raises:
        ConfigurationError: the file is there, and is no such file, or has rows of another box.
        What the box raises; what was bought before is in the file.
    """
    answers = {} if path is None else _bought(box, path, inputs, same_box)
    missing = [place for place in range(len(inputs[0])) if place not in answers]
    for first in range(0, len(missing), BLOCK):
        here = missing[first : first + BLOCK]
        some = tuple(tensor[here] for tensor in inputs)
        answer = box(*some)
        answer = answer if isinstance(answer, tuple) else (answer,)
        answers.update(zip(here, zip(*answer, strict=True), strict=True))
        if path is not None:
            write_rows(box, path, RecordedRows(some, answer))
    in_order = (answers[place] for place in range(len(inputs[0])))
    return RecordedRows(tuple(inputs), tuple(map(torch.stack, zip(*in_order, strict=True))))


def _bought(
    box: BlackBoxFunction, path: str | os.PathLike[str], inputs: Sequence[Tensor], same_box: bool
) -> dict[int, tuple[Tensor, ...]]:
    """Answers to some of the inputs, by their places, from a file of rows that were bought of this box alone.

    The file is made and marked as this box's if it is not there. One without a mark says nothing. A kill may
    have come between two arrays of a block; then that block goes.
    """
    now = digest(identity(box, lambda value: name_of(type(value))))
    try:
        with h5py.File(path, "a") as file:
            if not len(file):
                file.attrs[BOX] = now
                return {}
            if BOX not in file.attrs:
                return {}
            if str(file.attrs[BOX]) != now and not same_box:
                raise ConfigurationError(
                    f"{os.fspath(path)}: expected rows of this box, got those of one with other code, values "
                    "or files. Give another name, or same_box=True (--same-box) if it gives the same answers."
                )
            groups: Any = file
            datasets = [
                groups[kind][spec.name]
                for kind, specs in (("inputs", box.inputs), ("outputs", box.outputs))
                for spec in specs
                if f"{kind}/{spec.name}" in file
            ]
            whole = min(map(len, datasets)) if len(datasets) == len(box.inputs) + len(box.outputs) else 0
            for dataset in datasets:
                dataset.resize(whole, 0)
            if not whole:
                return {}
    except OSError as error:
        raise ConfigurationError(
            f"{os.fspath(path)}: expected an HDF5 file that bought rows can be written to, got another "
            f"({error}). Delete it, or give another name."
        ) from None
    rows = read_rows(box, Path(path)).finite()
    keys = [_bytes(rows.inputs, row) for row in range(len(rows))]
    places = {key: row for row, key in enumerate(keys)}
    rows_by_place = {place: places.get(_bytes(inputs, place)) for place in range(len(inputs[0]))}
    device = inputs[0].device
    return {
        place: tuple(tensor[row].to(device) for tensor in rows.outputs)
        for place, row in rows_by_place.items()
        if row is not None
    }


def _bytes(tensors: Sequence[Tensor], row: int) -> bytes:
    return b"".join(tensor[row].detach().cpu().numpy().tobytes() for tensor in tensors)


def inputs_around(
    box: BlackBoxFunction, around: Arrays | None, count: int, seed: int = 0
) -> tuple[Tensor, ...]:
    """Inputs to buy rows at, near those that are given.

    Of as many inputs as are wanted, or more, these are themselves the answer, evenly taken. Of fewer, they
    come first; the rest is drawn from the Gaussian of their mean and covariance, within the specs' bounds.
    What has no derivative is that of one of them, drawn.

    Args:
        box: the box.
        around: an array `(rows, *shape)` for each input, such as draws from a prior. None for usual numbers
            of the specs: uniform within `bounds`, or standard normal times `scale`.
        count: how many rows are wanted.
        seed: of all draws.

    Returns:
        One tensor `(count, *shape)` for each input.

    Raises:
        ConfigurationError: the inputs say nothing of how far to go.
    """
    generator = np.random.default_rng(seed)
    if around is None:
        return tuple(_usual(box, spec, generator, count) for spec in box.inputs)
    rows = to_rows(repr(box), box.inputs, _several(around))
    tensors = rows.inputs
    if rows.count >= count:
        places = torch.linspace(0, rows.count - 1, count).round().long()
        return tuple(tensor[places] for tensor in tensors)
    if rows.count < 2:
        raise ConfigurationError(
            f"{box!r}, around: expected at least 2 inputs, whose spread says how far to go, got "
            f"{rows.count}. Give draws from a prior, or as many as there are rows."
        )
    fresh = count - rows.count
    weights = torch.from_numpy(generator.standard_normal((fresh, rows.count))).to(tensors[0].device)
    sources = torch.from_numpy(generator.integers(0, rows.count, fresh)).to(tensors[0].device)
    return tuple(
        torch.cat([tensor, _drawn(spec, tensor, weights, sources)])
        for spec, tensor in zip(box.inputs, tensors, strict=True)
    )


def _drawn(spec: ArraySpec, tensor: Tensor, weights: Tensor, sources: Tensor) -> Tensor:
    """Rows of the Gaussian with the mean and covariance of given rows; copies of what has no derivative."""
    if not spec.differentiable:
        return tensor[sources]
    flat = tensor.reshape(len(tensor), -1).double()
    mean = flat.mean(0)
    samples = mean + weights @ (flat - mean) / (len(flat) - 1) ** 0.5
    return samples.clamp(*spec.ends).reshape(-1, *spec.shape).to(tensor.dtype)


def _usual(box: BlackBoxFunction, spec: ArraySpec, generator: np.random.Generator, count: int) -> Tensor:
    if not spec.floating or (spec.scale is None and spec.bounds is None):
        raise ConfigurationError(
            f"{box!r}, around: expected inputs, or specs with scale= or bounds=, got neither for "
            f"{spec.name!r}. Give inputs such as those that the derivative will be asked at, as draws from a prior."  # noqa: E501
        )
    return torch.from_numpy(spec.usual_numbers(generator, count)).to(spec.torch_dtype or torch.float64)


def _several(arrays: Arrays) -> tuple[Any, ...]:
    return tuple(arrays) if isinstance(arrays, list | tuple) else (arrays,)


def _dataset(path: str | Path, file: Any, kind: str, spec: ArraySpec) -> np.ndarray:
    """One array of a file, in the spec's dtype; floats of an open dtype as they are."""
    group = own_part(file, kind)
    dataset = own_part(group, spec.name) if isinstance(group, h5py.Group) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biuf":
        raise ConfigurationError(
            f"{os.fspath(path)}: expected the numbers of the array {kind}/{spec.name}, got none. Name the "
            "groups inputs and outputs, and in them the arrays as the box's specs do."
        )
    array = np.asarray(dataset[()])
    dtype = spec.dtype or (array.dtype.name if array.dtype.name in ("float32", "float64") else "float64")
    with np.errstate(invalid="ignore"):  # what is cut off is told below
        numbers = array.astype(dtype)
    if numbers.dtype.kind in "biu" and not np.array_equal(numbers, array):
        number = array[numbers != array].flat[0]
        raise ConfigurationError(
            f"{os.fspath(path)}: expected numbers of {dtype} in {kind}/{spec.name}, got {number}. Write such "
            "numbers, or give the box's spec another dtype."
        )
    return numbers
