"""A file of answers by key: SQLite, checked when read, shared by any number of processes."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

from blackbox.errors import ConfigurationError
from blackbox.notices import Notices

_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, -- digest of box and input
    box BLOB NOT NULL,    -- digest of the box's identity, a key of boxes
    answer BLOB NOT NULL,
    checksum BLOB NOT NULL, -- of key and answer
    stored REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0) -- seconds since 1970
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS boxes (box BLOB PRIMARY KEY, identity TEXT NOT NULL) WITHOUT ROWID;
"""
_FAULTS = (sqlite3.DatabaseError, UnicodeDecodeError)  # the second where SQLite quotes what is damaged
_PATIENCE = 60.0  # seconds to wait for another process that writes
_AT_ONCE = 500  # keys in one statement; SQLite's oldest limit is 999
MARK = 0x62627833  # "bbx3", in the file's header: whose database this is
_EARLIER = 0x62626F78  # "bbox": its boxes are known by other words, and some by the values that they hold


def digest(*parts: bytes) -> bytes:
    """A digest of parts and of where each ends."""
    state = blake2b(digest_size=32)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


class AnswerFile:
    """Answers on disk; what is damaged reads as missing, with one warning.

    SQLite and not a file for each answer: a run asks for millions of small ones, a row is stored
    whole or not at all even if the process is killed, and processes wait for each other. Its journal
    is a write-ahead log, which needs shared memory between the processes: they must be on one
    machine, and the file on a disk of its own and not on a network's.

    Args:
        path: the file; it and its folder are made if missing.

    Raises:
        ConfigurationError: the file is something else, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._open: sqlite3.Connection | None = None
        self._owner = 0
        self._notices = Notices()
        with self._lock:
            self._connection()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The answers that are there and undamaged."""
        answers: dict[bytes, bytes] = {}
        damaged, key_set = 0, set(keys)
        for start in range(0, len(keys), _AT_ONCE):
            some = list(keys[start : start + _AT_ONCE])
            marks = ",".join("?" * len(some))
            try:
                with self._lock:
                    rows = (
                        self._connection()
                        .execute(f"SELECT key, answer, checksum FROM answers WHERE key IN ({marks})", some)
                        .fetchall()
                    )
            except _FAULTS as error:
                self._warn(f"cannot be read ({error})", "Its answers are asked for again.")
                return answers
            for key, answer, checksum in rows:
                # of a damaged index any key comes back
                whole = isinstance(answer, bytes) and key in key_set
                if whole and checksum == digest(key, answer):
                    answers[key] = answer
                else:
                    damaged += 1
        self.tell_damaged(damaged)
        return answers

    def tell_damaged(self, count: int) -> None:
        """Warn of damaged answers, once, if there are any."""
        if count:
            self._warn(f"holds {count} damaged answers", "They are asked for again.")

    def count(self, box: bytes) -> int:
        """Count the answers of this box."""
        try:
            with self._lock:
                cursor = self._connection().execute("SELECT count(*) FROM answers WHERE box = ?", (box,))
                return int(cursor.fetchone()[0])
        except _FAULTS as error:
            self._warn(f"cannot be read ({error})", "Its answers are asked for again.")
            return 0

    def write(self, box: bytes, identity: str, answers: Mapping[bytes, bytes]) -> None:
        """Store answers, all or none; on the disk when this returns."""
        rows = [(key, box, answer, digest(key, answer)) for key, answer in answers.items()]
        try:
            with self._lock, self._connection() as transaction:
                transaction.execute("INSERT OR IGNORE INTO boxes VALUES (?, ?)", (box, identity))
                transaction.executemany(
                    "INSERT OR REPLACE INTO answers (key, box, answer, checksum) VALUES (?, ?, ?, ?)", rows
                )
        except _FAULTS as error:  # the answers are paid for: they are given, if not kept
            self._warn(f"cannot be written ({error})", "Answers are not kept. Mend the disk or the file.")

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._open is not None and self._owner == os.getpid():
                self._open.close()
            self._open = None

    def _connection(self) -> sqlite3.Connection:
        # A connection must not cross a fork, so a child opens its own.
        if self._open is None or self._owner != os.getpid():
            self._open, self._owner = self._connect(), os.getpid()
        return self._open

    def _connect(self) -> sqlite3.Connection:
        until = time.monotonic() + _PATIENCE
        while True:
            connection = None
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self.path, timeout=_PATIENCE, check_same_thread=False)
                _prepare(connection)
                return connection
            except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
                if connection is not None:
                    connection.close()
                # Two that make the file at once: SQLite refuses one of them without waiting.
                if "locked" in str(error) and time.monotonic() < until:
                    time.sleep(0.01)
                    continue
                raise ConfigurationError(
                    f"Cached, path: expected a file of answers or none yet, got {str(self.path)!r} "
                    f"({error}). Choose another path, or move that file away."
                ) from error

    def _warn(self, what: str, then: str) -> None:
        self._notices.once("damaged", f"Cached: {str(self.path)!r} {what}. {then}")

    def __del__(self) -> None:
        """Close what is open."""
        if getattr(self, "_open", None) is not None:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """The path alone: each process opens the file for itself."""
        return AnswerFile, (self.path,)


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables where there are none; refuse a database that is not ours."""
    # In one statement, so that another process's tables are not seen without its mark.
    look = "SELECT application_id, (SELECT count(*) FROM sqlite_master) FROM pragma_application_id"
    mark, tables = connection.execute(look).fetchone()
    if mark == _EARLIER:
        raise sqlite3.DatabaseError("it is of blackbox 0.2, whose answers are of no use here: delete it")
    if mark != MARK and tables:
        raise sqlite3.DatabaseError("it belongs to another program")
    foreign_object = connection.execute(
        "SELECT type, name FROM sqlite_master WHERE type != 'table'"
    ).fetchone()
    if foreign_object is not None:  # a view may have no end, a trigger may take what is stored
        raise sqlite3.DatabaseError(
            f"it holds the {foreign_object[0]} {foreign_object[1]!r}, as no file of answers does"
        )
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # an answer that was paid for outlives a power cut
    if mark != MARK:
        connection.executescript(f"BEGIN IMMEDIATE; PRAGMA application_id={MARK}; {_TABLE} COMMIT;")
