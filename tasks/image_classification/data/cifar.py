"""CIFAR's binary files: records of one or two label bytes and 3,072 pixels, checked while they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tasks.errors import DataError
from tasks.image_classification.data.images import Images
from tasks.image_classification.data.sources import Source


def read(source: Source, data: Path) -> tuple[Images, Images]:
    """Training and test images of a data set that lies in `data`, in the order of the files.

    Args:
        source: which one.
        data: the folder that holds the archive's folder.

    Raises:
        DataError: a file is missing, truncated or another one, or holds a class that there is not.
    """
    folder = data / source.folder
    return _read_files(source, data, folder, source.train), _read_files(source, data, folder, source.test)


def _read_files(source: Source, data: Path, folder: Path, files: Sequence[tuple[str, int]]) -> Images:
    parts = [read_file(folder / name, records, source, data) for name, records in files]
    every = Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))
    counts = torch.bincount(every.labels, minlength=source.classes)
    # Every class is there equally often; a file of zeros, or one that stands in for another, is found so.
    odd = torch.nonzero(counts != len(every) // source.classes).flatten()
    if len(odd) and source.balanced:
        first = int(odd[0])
        raise DataError(
            f"{folder}: expected {len(every) // source.classes:,} images of each class in "
            f"{', '.join(name for name, _ in files)}, got {int(counts[first]):,} of class {first} "
            f"({len(odd)} classes of {source.classes} are so). Delete the folder. {source.how_to_fetch(data)}"
        )
    return every


def read_file(path: Path, records: int, source: Source, data: Path) -> Images:
    """The images of one file.

    Args:
        path: of the file.
        records: how many it must hold.
        source: the data set that it belongs to.
        data: where the archive would go, for the message.

    Raises:
        DataError: the file is missing, truncated or another one, or holds a class that there is not.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a file of {source.name}, found none. {source.how_to_fetch(data)}")
    size, expected = path.stat().st_size, records * source.record
    if size != expected:
        whole, rest = divmod(size, source.record)
        came = f"{size:,} bytes ({whole:,} records" + (f" and {rest:,} bytes)" if rest else ")")
        what = "It is truncated" if size < expected else "It is another file"
        raise DataError(
            f"{path}: expected {records:,} records of {source.record:,} bytes, {expected:,} in all, got "
            f"{came}. {what}; delete it. {source.how_to_fetch(data)}"
        )
    content = np.fromfile(path, dtype=np.uint8).reshape(records, source.record)
    labels = content[:, source.label_bytes - 1]
    wrong = np.flatnonzero(labels >= source.classes)
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"{path}, record {first:,}: expected a class of 0 to {source.classes - 1}, got {labels[first]} "
            f"({wrong.size:,} records of {records:,} are so). It is no file of {source.name}; delete it. "
            f"{source.how_to_fetch(data)}"
        )
    pixels = torch.from_numpy(content[:, source.label_bytes :].reshape(records, 3, 32, 32).copy())
    return Images(pixels, torch.from_numpy(labels.astype(np.int64)))
