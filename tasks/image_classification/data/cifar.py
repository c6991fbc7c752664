"""CIFAR-10 and CIFAR-100: where they come from, what their archives hold, and their binary files.

Records are one or two label bytes and 3,072 pixels; they are checked while they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tasks.errors import DataError
from tasks.image_classification.data.images import Images


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
    return Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))


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


SITE = "https://www.cs.toronto.edu/~kriz"
RECORD_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Source:
    """A data set in the binary format of its own site, https://www.cs.toronto.edu/~kriz/cifar.html.

    Attributes:
        name: on the command line.
        archive: file name of the archive.
        md5: of the archive, as published on the site.
        folder: of the members in the archive.
        train, test: file names with their numbers of records.
        label_bytes: before the pixels of each record; the last of them is the class.
        classes: number of classes.
        site: where the archive lies.
    """

    name: str
    archive: str
    md5: str
    folder: str
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    label_bytes: int
    classes: int
    site: str = SITE

    @property
    def url(self) -> str:
        """Of the archive."""
        return f"{self.site}/{self.archive}"

    @property
    def record(self) -> int:
        """Bytes of a record: labels, then 1,024 pixels of red, of green, of blue."""
        return self.label_bytes + RECORD_PIXELS

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by its name in the archive."""
        return {f"{self.folder}/{name}": records * self.record for name, records in (*self.train, *self.test)}

    def how_to_fetch(self, data: Path) -> str:
        """The sentences that tell how to come by the files."""
        return f"Fetch them with: blackbox data {self.name} --data {data}. {self.without_network(data)}"

    def without_network(self, data: Path) -> str:
        """The sentence for those whose machine has no way to the site."""
        return (
            f"Without a network here: load {self.url} elsewhere (md5 {self.md5}), put {self.archive} into "
            f"{data}, and give: blackbox data {self.name} --data {data}"
        )


CIFAR10 = Source(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple((f"data_batch_{number}.bin", 10_000) for number in range(1, 6)),
    test=(("test_batch.bin", 10_000),),
    label_bytes=1,
    classes=10,
)
CIFAR100 = Source(
    name="cifar100",
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train=(("train.bin", 50_000),),
    test=(("test.bin", 10_000),),
    label_bytes=2,  # of the 20 coarse classes, which is not used, and of the 100 fine ones
    classes=100,
)
SOURCES = {source.name: source for source in (CIFAR10, CIFAR100)}
