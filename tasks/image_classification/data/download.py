"""Fetch an archive by `pooch`, from where it broke off, and take out of it what is expected, no more."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from blackbox.extras import import_extra
from tasks.errors import DataError
from tasks.image_classification.data.cifar import Source

CHUNK = 1 << 18  # bytes read from the network at a time
TIMEOUT = 30  # seconds without an answer or a byte


def fetch(source: Source, data: Path, *, say: Callable[[str], None] = print) -> Path:
    """Have a data set's files in `data`: already there, from the archive there, or from its own site.

    A download that breaks off leaves `ARCHIVE.part`; the next one goes on from its end. The archive's
    checksum is compared before anything is taken out of it.

    Args:
        source: the data set.
        data: folder for archive and files; it is made.
        say: told what is done.

    Returns:
        The folder of the files.

    Raises:
        DataError: there is no way to the site, or what came is not what is published.
        MissingExtraError: something must be loaded, and `pooch` is not installed.
    """
    folder = data / source.folder
    if all(_size(data / name) == size for name, size in source.sizes.items()):
        say(f"{folder}: all files are there.")
        return folder
    data.mkdir(parents=True, exist_ok=True)
    archive = data / source.archive
    if not archive.exists():
        _download(source, data, say)
    _check(source, archive)
    extract(source, archive, data)
    say(f"{folder}: {len(source.sizes)} files. {archive.name} may be deleted.")
    return folder


def _download(source: Source, data: Path, say: Callable[[str], None]) -> None:
    pooch = import_extra("blackbox data", "pooch", "data")
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(
            source.url,
            known_hash=f"md5:{source.md5}",
            fname=source.archive,
            path=data,
            downloader=_Resuming(source, data, say),
        )
    except DataError:  # of `_Resuming`
        raise
    except ValueError as error:  # pooch's word for another checksum; its own copy is gone, as ours must be
        _part(source, data).unlink(missing_ok=True)
        raise DataError(
            f"{source.url}: expected a file of md5 {source.md5}, got another ({error}). What came is "
            f"deleted; try again. {source.without_network(data)}"
        ) from error
    _part(source, data).unlink(missing_ok=True)


class _Resuming:
    """A downloader for pooch, whose own begin from the first byte: it asks for what the part file lacks."""

    def __init__(self, source: Source, data: Path, say: Callable[[str], None]) -> None:
        self.source, self.data, self.say = source, data, say
        self.part = _part(source, data)

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:  # noqa: ANN401
        """Bring the part file to its end and copy it to pooch's own, whose checksum pooch compares."""
        requests = import_extra("blackbox data", "requests", "data")
        try:
            self._load(requests, url)
        except requests.RequestException as error:
            kept = f"{_size(self.part) or 0:,} bytes are kept; the next attempt goes on from there."
            raise DataError(
                f"{url}: expected to load it, got {type(error).__name__} ({error}). {kept} "
                f"{self.source.without_network(self.data)}"
            ) from error
        with self.part.open("rb") as file:
            _copy(file, Path(output_file))

    def _load(self, requests: Any, url: str) -> None:  # noqa: ANN401
        done = _size(self.part) or 0
        # identity: with a compressed answer, places in the file would not be places in the stream
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is left to load; if it is not the file, its checksum tells
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            self.say(f"{url}: " + (f"going on from byte {done:,}." if resumed else "loading it."))
            with self.part.open("ab" if resumed else "wb") as file:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
            expected = answer.headers.get("Content-Length")
        came = (_size(self.part) or 0) - (done if resumed else 0)
        if expected is not None and came != int(expected):
            raise requests.ConnectionError(f"it broke off after {came:,} of {int(expected):,} bytes")


def _check(source: Source, archive: Path) -> None:
    with archive.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != source.md5:
        raise DataError(
            f"{archive}: expected md5 {source.md5}, got {md5}. It is truncated or another file; delete it. "
            f"{source.how_to_fetch(archive.parent)}"
        )


def extract(source: Source, archive: Path, data: Path) -> None:
    """Write the expected files of an archive, each of its expected size, to `data`; the rest is left.

    Raises:
        DataError: it is no archive, or a file in it is missing, of another size, or no plain file.
    """
    mend = f"Delete {archive}. {source.how_to_fetch(data)}"
    left = source.sizes
    (data / source.folder).mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                name = member.name.removeprefix("./")
                if name not in left:  # also whatever would lead out of the folder
                    continue
                size = left.pop(name)
                content = members.extractfile(member) if member.isreg() else None
                if content is None or member.size != size:
                    raise DataError(
                        f"{archive}, {name}: expected a plain file of {size:,} bytes, got one of "
                        f"{member.size:,} (type {member.type!r}). {mend}"
                    )
                _copy(content, data / name)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive}: expected a readable .tar.gz, got {error}. {mend}") from error
    if left:
        raise DataError(f"{archive}: expected {', '.join(left)} in it, found none. {mend}")


def _copy(file: IO[bytes], path: Path) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.new")
    with part.open("wb") as copy:
        shutil.copyfileobj(file, copy)
    part.replace(path)


def _part(source: Source, data: Path) -> Path:
    return data / f"{source.archive}.part"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
