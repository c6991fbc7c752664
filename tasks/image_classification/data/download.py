"""Load an archive, from where it broke off, and take out of it what is expected, no more."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        MissingExtraError: something must be loaded, and `requests` is not installed.
    """
    folder = data / source.folder
    if all(_size(data / name) == size for name, size in source.sizes.items()):
        say(f"{folder}: all files are there.")
        return folder
    data.mkdir(parents=True, exist_ok=True)
    archive = data / source.archive
    if not archive.exists():
        _download(source, data, say)
    elif (found := _md5(archive)) != source.md5:
        raise DataError(
            f"{archive}: expected md5 {source.md5}, got {found}. It is truncated or another file; delete it. "
            f"{source.how_to_fetch(data)}"
        )
    extract(source, archive, data)
    say(f"{folder}: {len(source.sizes)} files. {archive.name} may be deleted.")
    return folder


def _download(source: Source, data: Path, say: Callable[[str], None]) -> None:
    """Bring the part file to its end, and give it the archive's name if it is the archive."""
    requests = import_extra("blackbox data", "requests", "data")
    part = data / f"{source.archive}.part"
    try:
        _load(requests, source.url, part, say)
    except requests.RequestException as error:
        raise DataError(
            f"{source.url}: expected to load it, got {type(error).__name__} ({error}). {_size(part) or 0:,} "
            f"bytes are kept; the next attempt goes on from there. {source.without_network(data)}"
        ) from error
    if (found := _md5(part)) != source.md5:
        part.unlink()
        raise DataError(
            f"{source.url}: expected a file of md5 {source.md5}, got another ({found}). What came is "
            f"deleted; try again. {source.without_network(data)}"
        )
    part.replace(data / source.archive)


def _load(requests: Any, url: str, part: Path, say: Callable[[str], None]) -> None:  # noqa: ANN401
    done = _size(part) or 0
    # identity: with a compressed answer, places in the file would not be places in the stream
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left to load; if it is not the file, its checksum tells
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        say(f"{url}: " + (f"going on from byte {done:,}." if resumed else "loading it."))
        with part.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
        expected = answer.headers.get("Content-Length")
    came = (_size(part) or 0) - (done if resumed else 0)
    if expected is not None and came != int(expected):
        raise requests.ConnectionError(f"it broke off after {came:,} of {int(expected):,} bytes")


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def extract(source: Source, archive: Path, data: Path) -> None:
    """Write the expected files of an archive to `data`; the rest is left.

    Raises:
        DataError: it is no archive, or a file is not in it.
    """
    mend = f"Delete {archive}. {source.how_to_fetch(data)}"
    left = source.sizes
    (data / source.folder).mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                name = member.name.removeprefix("./")
                content = members.extractfile(member) if name in left and member.isreg() else None
                if content is None:  # also whatever would lead out of the folder
                    continue
                del left[name]
                part = data / f"{name}.new"  # a file is written whole or not at all
                with part.open("wb") as copy:
                    shutil.copyfileobj(content, copy)
                part.replace(data / name)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive}: expected a readable .tar.gz, got {error}. {mend}") from error
    if left:
        raise DataError(f"{archive}: expected {', '.join(left)} in it, found none. {mend}")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
