"""Load the archive of a data set from its own site, compare its checksum, and unpack it."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from tasks.errors import DataError
from tasks.image_classification.data.cifar import Source

TIMEOUT = 30  # seconds without an answer or a byte


def fetch(source: Source, data: Path, *, say: Callable[[str], None] = print) -> Path:
    """Have a data set's files in `data`: already there, from the archive there, or from its own site.

    The archive's checksum is compared before anything is taken out of it.

    Args:
        source: the data set.
        data: folder for archive and files; it is made.
        say: told what is done.

    Returns:
        The folder of the files.

    Raises:
        DataError: there is no way to the site, or what came is not what is published.
    """
    folder = data / source.folder
    files = {data / name: size for name, size in source.sizes.items()}
    if all(path.is_file() and path.stat().st_size == size for path, size in files.items()):
        say(f"{folder}: all files are there.")
        return folder
    data.mkdir(parents=True, exist_ok=True)
    archive = data / source.archive
    if not archive.exists():
        say(f"{source.url}: loading it.")
        _download(source, archive)
    elif (found := _md5(archive)) != source.md5:
        raise DataError(
            f"{archive}: expected md5 {source.md5}, got {found}. It is truncated or another file; delete it. "
            f"{source.how_to_fetch(data)}"
        )
    with tarfile.open(archive, "r:gz") as members:
        # asked for by name where Python has it: from 3.11.4 on
        members.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        members.extractall(data)
    say(f"{folder}: {len(files)} files. {archive.name} may be deleted.")
    return folder


def _download(source: Source, archive: Path) -> None:
    """Load the archive under another name, and give it its own if it is the archive."""
    part = archive.with_name(f"{archive.name}.part")
    try:
        with urlopen(source.url, timeout=TIMEOUT) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (OSError, http.client.HTTPException) as error:
        part.unlink(missing_ok=True)
        if isinstance(error, HTTPError):  # it is the server's answer, too
            error.close()
        raise DataError(
            f"{source.url}: expected to load it, got {type(error).__name__} ({error}). "
            f"{source.without_network(archive.parent)}"
        ) from error
    if (found := _md5(part)) != source.md5:
        part.unlink()
        raise DataError(
            f"{source.url}: expected a file of md5 {source.md5}, got another ({found}). What came is "
            f"deleted; try again. {source.without_network(archive.parent)}"
        )
    part.replace(archive)


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
