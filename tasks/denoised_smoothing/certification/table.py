"""The certificate file: a table with Cohen's columns and ours, and beside it what it hangs on.

`NAME.tsv` has one line for each image: `idx label predict radius correct time` as in the files of Cohen et
al. (2019), then `nA pA_lower N queries failed hits`. Numbers are written in full: rounded to three digits, as
in those files, a radius of .2496 would count at .25. `NAME.json` says what was certified and how.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tasks.denoised_smoothing.certification.algorithm import Certificate
from tasks.errors import DataError
from tasks.runs import atomic

COLUMNS = (
    "idx", "label", "predict", "radius", "correct", "time", "nA", "pA_lower", "N", "queries", "failed",
    "hits",
)  # fmt: skip


class CertificateFile:
    """A table that grows by one line for each certified image, and survives any sudden end.

    Args:
        path: of the table; its record is beside it, with the suffix ".json".
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.record_path = self.path.with_suffix(".json")

    def open(self, record: Mapping[str, Any]) -> list[Certificate]:
        """Begin the table, or go on with one of the same certification.

        A last line without its end, torn by a kill, is dropped from the file.

        Args:
            record: what the certificates hang on, JSON values.

        Returns:
            The certificates that are there already.

        Raises:
            DataError: the file belongs to another certification, or cannot be read.
        """
        wanted = json.loads(json.dumps(atomic.strict(record)))
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The record first: a table without one could not be told from another's.
            atomic.write_json(self.record_path, wanted)
            atomic.write_bytes(self.path, _line(COLUMNS))
            return []
        found = self.record()
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            if found.get(key) != wanted.get(key):
                raise DataError(
                    f"{self.path}: expected certificates with {key} {wanted.get(key)!r}, got a file with "
                    f"{found.get(key)!r}. Give another file, or the settings that this one was made with."
                )
        certificates = read_certificates(self.path)
        *lines, torn = self.path.read_bytes().split(b"\n")
        if torn:
            atomic.write_bytes(self.path, b"".join(line + b"\n" for line in lines) or _line(COLUMNS))
        return certificates

    def append(self, certificate: Certificate) -> None:
        """Add a line in one write, and bring it to the disk."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, _line(_cells(certificate)))
            os.fsync(handle)
        finally:
            os.close(handle)

    def record(self) -> dict[str, Any]:
        """What the certificates hang on: method, sigma, n0, n, alpha, clamp, box, denoiser, seed, ...

        Raises:
            DataError: there is no record beside the table, or it cannot be read.
        """
        try:
            found = json.loads(self.record_path.read_bytes())
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: expected its record {self.record_path.name} beside it, got none that can be "
                f"read ({error}). Without it the table may be anything's: move it away and certify anew."
            ) from None
        return found


def read_certificates(path: str | os.PathLike[str]) -> list[Certificate]:
    """The certificates of a table in the order of `idx`; a torn last line is left out.

    Raises:
        DataError: there is no file, it has other columns, or a line is damaged, contradicts
            itself or has an `idx` that another line has.
    """
    path = Path(path)
    try:
        *lines, _torn = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected a table of certificates, got none that can be read ({error}). "
            "Certify first, or mend the path."
        ) from None
    if not lines:
        return []
    if tuple(lines[0].split("\t")) != COLUMNS:
        raise DataError(
            f"{path}: expected the columns {' '.join(COLUMNS)}, separated by tabs, got {lines[0][:120]!r}. "
            "Files of other programs are read with those columns alone."
        )
    found: dict[int, Certificate] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            certificate = _parsed(line)
            if certificate.idx in found:
                raise ValueError(f"idx {certificate.idx} is there twice")
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: expected a certificate, got {line[:120]!r} ({error}). "
                "Delete that line, and the image is certified anew."
            ) from None
        found[certificate.idx] = certificate
    return [found[idx] for idx in sorted(found)]


def _cells(certificate: Certificate) -> tuple[str, ...]:
    c = certificate
    seconds = str(timedelta(seconds=c.seconds))  # as in Cohen's files: 0:00:01.234567
    return (
        f"{c.idx}", f"{c.label}", f"{c.predict}", repr(float(c.radius)), f"{int(c.correct)}", seconds,
        f"{c.votes}", repr(float(c.probability)), f"{c.n}", f"{c.queries}", f"{c.failed}", f"{c.hits}",
    )  # fmt: skip


def _line(cells: Sequence[str]) -> bytes:
    return ("\t".join(cells) + "\n").encode()


def _parsed(line: str) -> Certificate:
    cells = dict(zip(COLUMNS, line.split("\t"), strict=True))
    certificate = Certificate(
        idx=int(cells["idx"]),
        label=int(cells["label"]),
        predict=int(cells["predict"]),
        radius=float(cells["radius"]),
        seconds=_seconds(cells["time"]),
        votes=int(cells["nA"]),
        probability=float(cells["pA_lower"]),
        n=int(cells["N"]),
        queries=int(cells["queries"]),
        failed=int(cells["failed"]),
        hits=int(cells["hits"]),
    )
    counts = certificate.votes, certificate.hits
    if not (0 <= certificate.radius < math.inf and all(0 <= count <= certificate.n for count in counts)):
        raise ValueError("a radius or a count out of range")
    if int(cells["correct"]) != certificate.correct:
        raise ValueError("correct contradicts label and predict")
    return certificate


def _seconds(text: str) -> float:
    days, _, clock = text.rpartition(", ")  # "1 day, 2:03:04.5"
    hours, minutes, seconds = clock.split(":")
    whole = int(days.split()[0]) * 86400 if days else 0
    return whole + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
