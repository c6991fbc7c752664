"""CIFAR-10 and CIFAR-100: their source, their archives, and their binary files."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import torch

from tasks.applications.image_classification.data.image_data import Images
from tasks.errors import DataError
from tasks.folder import atomic

TIMEOUT = 30  # seconds without an answer or a byte


@dataclass(frozen=True)
class CifarSource:
    """A data set in the binary format of its own site, https://www.cs.toronto.edu/~kriz/cifar.html.

    Attributes:
        name: its name on the command line.
        archive: the file name of the archive.
        md5: the MD5 of the archive, as published on the site.
        folder: the folder of the members in the archive.
        train, test: file names with their numbers of records.
        label_bytes: how many bytes are before the pixels of each record; the last of them is the class.
        classes: the number of classes.
        site: the address of the archive's folder.
    """

    name: str
    archive: str
    md5: str
    folder: str
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    label_bytes: int
    classes: int
    site: str = "https://www.cs.toronto.edu/~kriz"

    @property
    def url(self) -> str:
        """The URL of the archive."""
        return f"{self.site}/{self.archive}"

    @property
    def record(self) -> int:
        """Bytes of a record: labels, then 1,024 pixels of red, of green, of blue."""
        return self.label_bytes + 3 * 32 * 32

    def how_to_fetch(self, data: Path) -> str:
        """The sentences that tell how to come by the files, with and without a way to the site."""
        return (
            f"Fetch them with: blackbox data {self.name} --data {data}. Without a network here: load "
            f"{self.url} elsewhere (md5 {self.md5}), put {self.archive} into {data}, and give that command."
        )


CIFAR10 = CifarSource(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple((f"data_batch_{number}.bin", 10_000) for number in range(1, 6)),
    test=(("test_batch.bin", 10_000),),
    label_bytes=1,
    classes=10,
)
CIFAR100 = CifarSource(
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


def read(source: CifarSource, data: Path) -> tuple[Images, Images]:
    """Training and test images of a data set that lies in `data`, in the order of the files.

    Args:
        source: which one.
        data: the folder that holds the archive's folder.

    Raises:
        DataError: a file is missing, damaged or another one.
    """
    return _read(source, data, source.train), _read(source, data, source.test)


def _read(source: CifarSource, data: Path, files: Sequence[tuple[str, int]]) -> Images:
    parts, label, record = [], source.label_bytes - 1, source.record
    for name, records in files:
        path = data / source.folder / name
        if not path.is_file():
            raise DataError(
                f"{path}: expected a file of {source.name}, found none. {source.how_to_fetch(data)}"
            )
        content = np.fromfile(path, dtype=np.uint8)
        if content.size != records * record or content[label::record].max() >= source.classes:
            raise DataError(
                f"{path}: expected {records:,} records of {record:,} bytes with classes of 0 to "
                f"{source.classes - 1}, got {content.size:,} bytes that are not. It is damaged or another "
                f"file; delete it. {source.how_to_fetch(data)}"
            )
        parts.append(content.reshape(records, record))
    every = np.concatenate(parts)
    pixels = torch.from_numpy(every[:, source.label_bytes :].reshape(-1, 3, 32, 32).copy())
    return Images(pixels, torch.from_numpy(every[:, label].astype(np.int64)))


def fetch_named(name: str, data: Path) -> Path:
    """`fetch` by a name of `SOURCES`."""
    return fetch(SOURCES[name], data)


def fetch(source: CifarSource, data: Path, *, say: Callable[[str], None] = print) -> Path:
    """Have a data set's files in `data`: already there, from the archive there, or from its own site.

    The archive's checksum is compared before anything is taken out of it.

    Args:
        source: the data set.
        data: folder for archive and files; it is made.
        say: Shows a line that says what is done.

    Returns:
        The folder of the files.

    Raises:
        DataError: there is no way to the site, or what came is not what is published.
    """
    folder, archive = data / source.folder, data / source.archive
    try:
        read(source, data)
    except DataError:
        data.mkdir(parents=True, exist_ok=True)
    else:
        say(f"{folder}: all files are there.")
        return folder
    loaded = not archive.exists()
    if not loaded and not archive.is_file():  # a pipe would be waited for without end
        raise DataError(f"{archive}: expected a file, got something else of that name. Move it away.")
    if loaded:
        say(f"{source.url}: loading it.")
        _load(source, archive)
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != source.md5:
        if loaded:
            archive.unlink()
        raise DataError(
            f"{source.url if loaded else archive}: expected a file of md5 {source.md5}, got {digest}. It is "
            f"truncated or another file{', and deleted; try again' if loaded else '; delete it'}. "
            f"{source.how_to_fetch(data)}"
        )
    with tarfile.open(archive, "r:gz") as members:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
            members.extraction_filter = tarfile.data_filter
        for member in members:
            inside = (data / member.name).resolve().is_relative_to(data.resolve())
            if not inside or not (member.isfile() or member.isdir()):
                what = "no file or folder" if inside else "outside of it"
                raise DataError(
                    f"{archive}: expected files of {source.folder}, got {member.name!r}, which is {what}. "
                    f"Delete the archive. {source.how_to_fetch(data)}"
                )
            members.extract(member, data)
    say(f"{folder}: unpacked. {archive.name} may be deleted.")
    return folder


def _load(source: CifarSource, archive: Path) -> None:
    try:
        with urlopen(source.url, timeout=TIMEOUT) as answer:
            atomic.write(archive, lambda stream: shutil.copyfileobj(answer, stream))
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, HTTPError):  # it is the server's answer, too
            error.close()
        raise DataError(
            f"{source.url}: expected to load it, got {type(error).__name__} ({error}). "
            f"{source.how_to_fetch(archive.parent)}"
        ) from error
