"""The certificate file: a table with Cohen's columns and ours, and beside it all that it depends on.

`NAME.tsv` has one line for each image: `idx label predict radius correct time` as in the files of Cohen et
al. (2019), then `nA pA_lower N queries failed hits`. Numbers are written in full: rounded to three digits, as
in those files, a radius of .2496 would count at .25. `NAME.json` describes the certification.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from blackbox import Ledger
from tasks.applications.denoised_smoothing.certification.algorithm import Certificate
from tasks.errors import DataError
from tasks.folder import atomic


def _seconds(text: str) -> float:
    import pandas

    return pandas.to_timedelta(text).total_seconds()


COLUMNS: dict[str, Callable[[str], Any]] = {
    "idx": int, "label": int, "predict": int, "radius": float, "correct": int, "time": _seconds,
    "nA": int, "pA_lower": float, "N": int, "queries": int, "failed": int, "hits": int,
}  # fmt: skip
_HEADER = "\t".join(COLUMNS)


class CertificateFile:
    """A table that grows by one line for each certified image, and survives any sudden end.

    Args:
        path: the path of the table. Its record is beside it, with the suffix ".json", and the box's counts
            for each image, with the suffix ".ledger".
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.record_path = self.path.with_suffix(".json")
        self.ledger_path = self.path.with_suffix(".ledger")

    def open(self, record: Mapping[str, Any]) -> list[Certificate]:
        """Begin the table, or go on with one of the same certification.

        A last line without its end, torn by a kill, is dropped from the file.

        Args:
            record: the settings that the certificates depend on, JSON values.

        Returns:
            The certificates that are there already.

        Raises:
            DataError: the file belongs to another certification, or cannot be read.
        """
        content = json.loads(json.dumps(atomic.strict(record)))
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The record first: a table without one could not be told from another's.
            atomic.write_json(self.record_path, content)
            atomic.write_bytes(self.path, _line(COLUMNS))
            return []
        try:
            recorded = dict(json.loads(self.record_path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{self.path}: expected its record {self.record_path.name} beside it, got none that can be "
                f"read ({error}). Without it the table may be anything's: move it away and certify anew."
            ) from None
        for key in [*content, *(key for key in recorded if key not in content)]:
            if recorded.get(key) != content.get(key):
                raise DataError(
                    f"{self.path}: expected certificates with {key} {content.get(key)!r}, got a file with "
                    f"{recorded.get(key)!r}. Give another file, or what this one was made with, or delete "
                    "this one."
                )
        certificates = read_certificates(self.path)
        *lines, torn = self.path.read_bytes().split(b"\n")
        if torn:
            atomic.write_bytes(self.path, b"".join(line + b"\n" for line in lines) or _line(COLUMNS))
        return certificates

    def append(self, certificate: Certificate, counts: Ledger | None = None) -> None:
        """Add a line in one write, and bring it to the disk; before it what the box has counted for it."""
        if counts is not None:  # a line of counts whose image is not in the table stands for nothing
            _write(self.ledger_path, (json.dumps({"idx": certificate.idx, **asdict(counts)}) + "\n").encode())
        _write(self.path, _line(_cells(certificate)))

    def counted(self, certificates: Iterable[Certificate]) -> Ledger:
        """Return the box's counts for some images of the table; their queries, where that is not known."""
        counts: dict[int, Ledger] = {}
        content = self.ledger_path.read_bytes() if self.ledger_path.exists() else b""
        for line in content.split(b"\n")[:-1]:
            try:
                values = json.loads(line)
                index = values.pop("idx")
                counts[index] = Ledger(**values)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        total = Ledger()
        for one in certificates:
            least = Ledger(rows_asked=one.queries, rows_run=one.queries, rows_failed=one.failed)
            total.add(counts.get(one.idx, least))
        return total


def read_certificates(path: str | os.PathLike[str]) -> list[Certificate]:
    """The certificates of a table in the order of `idx`; a torn last line is left out.

    Raises:
        DataError: there is no file, it has other columns or an `idx` twice, or a line is damaged or
            contradicts itself.
    """
    where, certificates = f"{path}", dict[int, Certificate]()
    try:
        header, *lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1] or [_HEADER]
        if header != _HEADER:
            raise ValueError(f"the columns {header[:120]!r}")
        for number, line in enumerate(lines, start=2):
            where = f"{path}, line {number}"
            cells = zip(COLUMNS.values(), line.split("\t"), strict=True)
            idx, label, predict, far, correct, *other_cells = (kind(cell) for kind, cell in cells)
            one = Certificate(idx, label, predict, far, *other_cells)
            if idx in certificates:
                raise ValueError("an idx that is there twice")
            if wrong := _contradiction(one, correct):
                raise ValueError(f"{wrong}, which no certificate has")
            certificates[idx] = one
    except (OSError, ValueError) as error:
        raise DataError(
            f"{where}: expected certificates with the columns {' '.join(COLUMNS)}, separated by tabs, got "
            f"none that can be read ({error}). Certify first, mend the path, or delete a damaged line: its "
            "image is certified anew."
        ) from None
    return [certificates[idx] for idx in sorted(certificates)]


def _contradiction(one: Certificate, correct: int) -> str:
    """Describe an impossible value in a line, by the names of its columns; "" if there is none."""
    sound = {
        f"idx {one.idx}": one.idx >= 0,
        f"radius {one.radius}": 0 <= one.radius < math.inf,
        f"correct {correct} for label {one.label} and predict {one.predict}": correct == one.correct,
        "no finite time": math.isfinite(one.seconds),
        f"nA {one.votes} of N {one.n}": 0 <= one.votes <= one.n and one.n > 0,
        f"pA_lower {one.probability}": 0 <= one.probability <= 1,
        f"failed {one.failed} of queries {one.queries}": 0 <= one.failed <= one.queries,
        f"hits {one.hits} of N {one.n}": 0 <= one.hits <= one.n,
    }
    return ", ".join(words for words, true in sound.items() if not true)


def _cells(certificate: Certificate) -> tuple[str, ...]:
    c = certificate
    seconds = str(timedelta(seconds=c.seconds))  # as in Cohen's files: 0:00:01.234567
    return (
        f"{c.idx}", f"{c.label}", f"{c.predict}", repr(float(c.radius)), f"{int(c.correct)}", seconds,
        f"{c.votes}", repr(float(c.probability)), f"{c.n}", f"{c.queries}", f"{c.failed}", f"{c.hits}",
    )  # fmt: skip


def _write(path: Path, line: bytes) -> None:
    """Add a line in one write, behind a torn one that a kill has left, and bring it to the disk."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        os.write(handle, b"\n" * (size > 0 and os.pread(handle, 1, size - 1) != b"\n") + line)
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(cells: Iterable[str]) -> bytes:
    return ("\t".join(cells) + "\n").encode()
