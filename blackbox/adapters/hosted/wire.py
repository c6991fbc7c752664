"""The protocol of a program and its trainer: messages over a Unix socket, large arrays in shared memory.

The program's side is client/bb_host.c. It begins with a hello, answered by a welcome, which names the shared
memory. Then it sends calls, each answered, and outputs and an end, which are not. A message is a header, an
entry for each array, and the arrays one behind the other, each padded to 8 bytes. Numbers are in the
machine's own order: a magic number at the front of all shows another.
"""

from __future__ import annotations

import math
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

MAGIC, VERSION = 0x31484242, 1
HELLO, WELCOME, HEADER = struct.Struct("=8I"), struct.Struct("=4IQ"), struct.Struct("=4IQ40s")
ENTRY = struct.Struct("=40sii4q4q4q")
CALL, OUTPUT, CLOSE, ANSWER, REFUSED = 1, 2, 3, 4, 5
SHARED, COLUMNS = 1, 2
NAME = 39  # bytes of a name
TYPES = {1: np.dtype("f4"), 2: np.dtype("f8"), 3: np.dtype("i4"), 4: np.dtype("i8"), 5: np.dtype("u1")}
CODES = {dtype: code for code, dtype in TYPES.items()}
FEW = 16384  # bytes that go through the socket all the same
ARRAYS = 32  # in a message
MOST = 2**34  # bytes of a message, above which it is none of ours


class WireError(RuntimeError):
    """The other side sent what is no message, or one of another version."""


class Gone(WireError):
    """The other side has closed the connection."""


@dataclass(frozen=True)
class Part:
    """An array of a message, or this process's part of it.

    Attributes:
        values: the numbers.
        first: the beginning of the part in the whole array; None for an array that is whole.
        whole: the shape of the whole.
    """

    values: Array
    first: tuple[int, ...] | None = None
    whole: tuple[int, ...] = ()


@dataclass(frozen=True)
class Message:
    """A message of a program.

    Attributes:
        kind: CALL, OUTPUT or CLOSE.
        name: the name of the call or the output.
        parts: the arrays by name, "" for one without.
        columns: whether the program has arrays in column order.
    """

    kind: int
    name: str
    parts: list[tuple[str, Part]]
    columns: bool


class _Entry(NamedTuple):
    """The entry of an array in a message."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    first: tuple[int, ...]
    whole: tuple[int, ...]

    @classmethod
    def of(cls, data: bytearray, place: int) -> _Entry:
        """The entry at a place."""
        name, code, rank, *sizes = ENTRY.unpack_from(data, place)
        if code not in TYPES or not 0 <= rank <= 4 or min(sizes) < 0:
            raise WireError(f"the array {_text(name)!r} has no type or shape of bb_host")
        dims, first, whole = (tuple(sizes[start : start + rank]) for start in (0, 4, 8))
        if any(whole) and any(n > most for n, most in zip(dims, whole, strict=True)):
            raise WireError(f"the array {_text(name)!r} has a part {dims}, larger than its whole {whole}")
        return cls(_text(name), TYPES[code], dims, first, whole if any(whole) else ())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self.whole or self.dims

    @property
    def padded(self) -> int:
        """The bytes that it takes in the message."""
        return -(-math.prod(self.dims) * self.dtype.itemsize // 8) * 8

    def part(self, data: memoryview, columns: bool) -> Part:
        """Return a copy of the array that begins there."""
        values = np.frombuffer(data, self.dtype, math.prod(self.dims))
        values = values.reshape(self.dims, order="F" if columns else "C").copy(order="C")
        return Part(values, self.first, self.whole) if self.whole else Part(values)


class Line:
    """The trainer's end of a connection to one process of a program.

    Args:
        connection: the connection accepted from the program.
        shared_bytes: the size of the largest message, either way, for which shared memory is worth it; 0 for
            none.
        is_wanted: says whether a message's arrays are wanted, by its kind and name, and shapes by their
            names; others are dropped, however large. It raises where the shapes are not as expected.
        timeout: the seconds that the program may take to receive an answer; None for any time.

    Attributes:
        connection: the argument `connection`; it does not block.
        rank: the process's number.
        size: how many processes there are.
        is_welcomed: whether the process has said these two.
    """

    def __init__(
        self,
        connection: socket.socket,
        shared_bytes: int,
        is_wanted: Callable[[int, str, dict[str, tuple[int, ...]]], bool],
        timeout: float | None,
    ) -> None:
        connection.setblocking(False)
        self.connection, self._is_wanted, self._timeout = connection, is_wanted, timeout
        self.rank, self.size = 0, 1
        self._shared_bytes = -(-shared_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._shared: mmap.mmap | None = None
        self._path = ""
        self._received = bytearray(65536)
        self._have, self._to_drop = 0, 0
        self.is_welcomed = False
        self._columns = False
        self._head, self._entries = b"", list[_Entry]()  # of the last message that was wanted

    def receive(self) -> Message | None:
        """The next message, once all of it is there; None as long as it is not.

        Raises:
            Gone: the program has closed the connection.
            WireError: it has sent something else.
            ValueError: `is_wanted` raises it.
        """
        while (message := self._next()) is None:
            if not self._fill():
                return None
        return message

    def _next(self) -> Message | None:
        """Parse a message from the received bytes; None where more have to come."""
        if not self.is_welcomed:
            if self._have < HELLO.size:
                return None
            self._welcome(HELLO.unpack_from(self._received))
            self._drop(HELLO.size)
        if self._to_drop:
            dropped = min(self._to_drop, self._have)
            self._drop(dropped)
            self._to_drop -= dropped
        if self._have < HEADER.size:
            return None
        magic, kind, count, flags, size, name = HEADER.unpack_from(self._received)
        if magic != MAGIC or kind not in (CALL, OUTPUT, CLOSE) or count > ARRAYS or size > MOST:
            raise WireError("the program sent something that is no message of bb_host")
        head, text = HEADER.size + count * ENTRY.size, _text(name)
        if not self._has(head):
            return None
        shared, header = bool(flags & SHARED), bytes(self._received[:head])
        self._columns = bool(flags & COLUMNS)
        if header != self._head:  # else it is as the last one, as of a program that asks the same again
            entries = [_Entry.of(self._received, place) for place in range(HEADER.size, head, ENTRY.size)]
            if size != sum(entry.padded for entry in entries):
                raise WireError("the program sent a message of another length than that of its arrays")
            if shared and (self._shared is None or size > self._shared_bytes):
                raise WireError("the program names shared memory that it has not been given")
            names = [entry.name for entry in entries]
            if len({*names}) < len(names):
                raise WireError(f"{text}: the program sent an array twice: {', '.join(names)}")
            if not self._is_wanted(kind, text, {entry.name: entry.shape for entry in entries}):
                self._drop(head)
                self._to_drop = 0 if shared else size
                return Message(kind, text, [], self._columns)
            self._head, self._entries = header, entries
        whole = head + (0 if shared else size)
        if not self._has(whole):
            return None
        source = (
            memoryview(self._shared)
            if shared and self._shared is not None
            else memoryview(self._received)[head:]
        )
        parts, place = [], 0
        for entry in self._entries:
            parts.append((entry.name, entry.part(source[place:], self._columns)))
            place += entry.padded
        del source
        self._drop(whole)
        self._unlink()  # by now the program has it, or will not have it
        return Message(kind, text, parts, self._columns)

    def _has(self, size: int) -> bool:
        """Say whether so many bytes have been received; if not, make room for them."""
        if self._have < size and len(self._received) < size:
            self._received.extend(bytes(size - len(self._received)))
        return self._have >= size

    def answer(self, arrays: Mapping[str, Array]) -> None:
        """Answer a call.

        Raises:
            Gone: the program is not there any more.
        """
        entries, datas, size = [], [], 0
        for name, values in arrays.items():
            entries.append(_entry(name, values.dtype, values.shape))
            data = values.tobytes(order="F" if self._columns else "C")
            datas.append(data + bytes(-len(data) % 8))
            size += len(datas[-1])
        shared = self._shared is not None and FEW < size <= self._shared_bytes
        flags = (SHARED if shared else 0) | (COLUMNS if self._columns else 0)
        head = HEADER.pack(MAGIC, ANSWER, len(entries), flags, size, b"")
        if shared and self._shared is not None:
            place = self._shared_bytes
            for data in datas:
                self._shared[place : place + len(data)] = data
                place += len(data)
            datas = []
        self._send(b"".join([head, *entries, *datas]))

    def refuse(self, text: str) -> None:
        """Tell the program what is wrong, which ends it; nothing where it is not there any more."""
        data = text.encode()
        try:
            if self.is_welcomed:
                self._send(HEADER.pack(MAGIC, REFUSED, 0, 0, len(data), b"") + data)
            else:
                self._send(WELCOME.pack(MAGIC, VERSION, 1, len(data), 0) + data)
        except (OSError, WireError):
            pass

    def close(self) -> None:
        """Close the connection, and let the memory go."""
        self.connection.close()
        if self._shared is not None:
            try:
                self._shared.close()
            except BufferError:  # an error's traceback may still look at it
                pass
            self._shared = None
        self._unlink()

    def _fill(self) -> bool:
        """Receive more; whether there was any."""
        if self._have == len(self._received):
            self._received.extend(bytes(len(self._received)))
        try:
            with memoryview(self._received) as view:
                got = self.connection.recv_into(view[self._have :])
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise Gone(str(error)) from None
        if not got:
            raise Gone("the program has closed its connection")
        self._have += got
        return True

    def _drop(self, size: int) -> None:
        if self._have > size:
            self._received[: self._have - size] = self._received[size : self._have]
        self._have -= size

    def _welcome(self, hello: tuple[int, ...]) -> None:
        magic, version, self.rank, self.size = hello[:4]
        if magic != MAGIC:
            swapped = magic == int.from_bytes(MAGIC.to_bytes(4, "little"), "big")
            what = "of another byte order" if swapped else "no message of bb_host"
            raise WireError(f"the program's first message is {what}")
        if version != VERSION:
            self.refuse(
                f"this trainer speaks version {VERSION} of bb_host, and the program {version}: compile "
                "it with the files that blackbox host writes"
            )
            raise WireError(
                f"the program speaks version {version} of bb_host, not {VERSION}: compile it with the files "
                "that `blackbox host` writes"
            )
        if not 0 <= self.rank < self.size <= 100_000:
            raise WireError(f"the program calls itself process {self.rank} of {self.size}")
        if self._shared_bytes > FEW:
            self._share()
        path = os.fsencode(self._path)
        self.is_welcomed = True
        self._send(WELCOME.pack(MAGIC, VERSION, 0, len(path), self._shared_bytes if path else 0) + path)

    def _share(self) -> None:
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        try:
            handle, self._path = tempfile.mkstemp(prefix="blackbox-", dir=folder)
        except OSError:  # then all goes through the socket
            return
        try:
            os.posix_fallocate(handle, 0, 2 * self._shared_bytes)
            self._shared = mmap.mmap(handle, 2 * self._shared_bytes)
        except OSError:  # full, or none of this kind
            self._unlink()
        finally:
            os.close(handle)

    def _unlink(self) -> None:
        if self._path:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
            self._path = ""

    def _send(self, data: bytes) -> None:
        try:
            sent = self.connection.send(data)  # mostly all of it
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _gone(error) from None
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, data: memoryview) -> None:
        """Wait for the program, which receives an answer before it does anything else."""
        self.connection.settimeout(self._timeout)
        try:
            self.connection.sendall(data)
        except OSError as error:
            raise _gone(error) from None
        finally:
            self.connection.setblocking(False)


def _gone(error: OSError) -> Gone:
    return Gone(f"the program has closed its connection ({error})")


@lru_cache(maxsize=256)
def _entry(name: str, dtype: np.dtype[Any], dims: tuple[int, ...]) -> bytes:
    """The entry of an array that is answered."""
    return ENTRY.pack(name.encode(), CODES[dtype], len(dims), *dims, *[0] * (12 - len(dims)))


def listen(path: str) -> socket.socket:
    """A socket that a program connects to; it does not block."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def joined(name: str, parts: Sequence[Part]) -> Array:
    """An array from the parts that several processes sent of it.

    Raises:
        WireError: they do not make up the whole, or differ where each is whole.
    """
    first = parts[0]
    if first.first is None:
        for part in parts[1:]:
            if part.first is not None or not np.array_equal(part.values, first.values, equal_nan=True):
                raise WireError(f"{name}: processes sent different whole arrays; put parts, or let one ask")
        return first.values
    if any(part.first is None or part.whole != first.whole for part in parts):
        raise WireError(f"{name}: processes sent parts of arrays of different shapes")
    whole = np.zeros(first.whole, first.values.dtype)
    mask = np.zeros(first.whole, bool)
    for part in parts:
        place = placed(part)
        if mask[place].shape != part.values.shape or mask[place].any():
            raise WireError(f"{name}: parts of processes overlap, or reach beyond the whole {first.whole}")
        whole[place], mask[place] = part.values, True
    if not mask.all():
        raise WireError(f"{name}: parts of processes leave {int((~mask).sum())} numbers of {mask.size} out")
    return whole


def placed(part: Part) -> tuple[slice, ...]:
    """Return the place of a part in the whole."""
    return tuple(slice(a, a + n) for a, n in zip(part.first or (), part.values.shape, strict=True))


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode(errors="replace")
