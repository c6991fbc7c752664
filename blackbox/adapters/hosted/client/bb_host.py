"""A Python program asks a network in the middle of its work, and goes on with the answer.

One file without dependencies; copy it beside your program. In the time loop:

    import bb_host

    tendency = bb_host.exchange("closure", vorticity)
    if tendency is None:  # nobody trains: the program runs as ever
        tendency = my_own_closure(vorticity)

Arrays are NumPy's, or anything with a buffer, such as `array.array`. A masked number is NaN, which fails the
run; numbers with a unit are refused. Where several processes hold a field together (mpi4py), each asks with
its part and gets that of the answer:

    bb_host.is_open(rank, size)
    answers = bb_host.call("closure", x=bb_host.Part(mine, first=(0, 3 * rank), whole=(4, 6)))

Answers are NumPy arrays where NumPy has been imported, else of `array.array`, one number behind the other.
What goes wrong ends the program with status 70 and a sentence on standard error. See bb_host.h, which does
the same for C.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

MAGIC, VERSION, STATUS = 0x31484242, 1, 70
HELLO, WELCOME, HEADER = struct.Struct("=8I"), struct.Struct("=4IQ"), struct.Struct("=4IQ40s")
ENTRY = struct.Struct("=40sii4q4q4q")
CALL, OUTPUT, CLOSE, ANSWER, REFUSED = 1, 2, 3, 4, 5
SHARED = 1
FORMATS = {1: "f", 2: "d"}  # of answers
TYPES = {
    ("f", 4): 1,
    ("d", 8): 2,
    ("i", 4): 3,
    ("l", 8): 4,
    ("q", 8): 4,
    ("l", 4): 3,
    ("B", 1): 5,
    ("?", 1): 5,
}
FEW = 16384  # bytes that go through the socket all the same
MOST, WORDS = 32, 4096  # arrays of a message; bytes of the longest text that the trainer sends
NAME = 39  # bytes of the longest name


class Part:
    """A process's part of an array, in the arrays of `call`.

    Args:
        values: the part.
        first: its beginning in the whole array, counted from 0, a number for each dimension.
        whole: the shape of the whole.
    """

    def __init__(self, values: Any, first: Sequence[int], whole: Sequence[int]) -> None:
        self.values, self.first, self.whole = values, [*first], [*whole]


class Host:
    """A program's end of the line to a trainer; the functions of this module use one such object."""

    def __init__(self, path: str | None = None) -> None:
        self._path = path  # of the socket; None for that of BLACKBOX_HOST
        self._line: socket.socket | None = None
        self._looked = 0  # the process that has looked for a trainer
        self._shared: mmap.mmap | None = None
        self._size = 0

    def is_open(self, rank: int = 0, size: int = 1) -> bool:
        """Say whether a trainer has started the program, and connect to it; the other functions call this.

        Args:
            rank: the number of this process, where several processes ask.
            size: how many processes there are.
        """
        if self._looked == os.getpid():
            return self._line is not None
        if self._looked and self._line is not None:
            self._fail("a forked child asks: call from the process that opened")
        self._looked = os.getpid()
        path = self._path or os.environ.get("BLACKBOX_HOST")
        if not path:
            return False
        self._line = socket.socket(socket.AF_UNIX)
        try:
            self._line.connect(path)
        except OSError as error:
            self._fail(f"no trainer listens at BLACKBOX_HOST ({error}); unset it to run without")
        self._line.sendall(HELLO.pack(MAGIC, VERSION, rank, size, struct.calcsize("l"), 8, 0, 0))
        magic, _, refused, length, shared = WELCOME.unpack(self._read(WELCOME.size))
        if magic != MAGIC:
            self._fail("expected a trainer of the same byte order, got another")
        text = self._read(min(length, WORDS)).decode(errors="replace")
        if refused:
            self._fail(text)
        if text:
            try:
                with open(text, "r+b") as file:
                    self._shared, self._size = mmap.mmap(file.fileno(), 2 * shared), shared
            except (OSError, OverflowError, ValueError) as error:
                self._fail(f"expected the memory that the trainer shares, got none that can be used: {error}")
        return True

    def exchange(self, call: str, values: Any) -> Any:
        """Ask with one array, answered by one; None where nobody trains."""
        answers = self._asked(call, {"": values})
        if answers is None:
            return None
        if len(answers) != 1:
            self._fail(
                f"exchange is for calls with one answer, got {', '.join(answers)}; take call(): {call}"
            )
        return next(iter(answers.values()))

    def call(self, call: str, **arrays: Any) -> dict[str, Any] | None:
        """Ask with several arrays by their names, answered by several; None where nobody trains.

        An array may be a `Part`: then answers with the dimensions of the whole come back as the same part.
        """
        return self._asked(call, arrays)

    def output(self, name: str, values: Any) -> None:
        """Hand over a result of the run, such as a drag."""
        if self.is_open():
            self._send(OUTPUT, name, {name: values})

    def close(self) -> None:
        """Say that nothing will be asked any more. The end of the program says so too."""
        if self._line is not None:
            self._send(CLOSE, "", {})
            self._line.close()
            self._line = None

    def _asked(self, call: str, arrays: dict[str, Any]) -> dict[str, Any] | None:
        if not self.is_open():
            return None
        self._send(CALL, call, arrays)
        magic, kind, count, flags, size, _ = HEADER.unpack(self._read(HEADER.size))
        if magic != MAGIC:
            self._fail("expected an answer of the trainer, got something else")
        if kind == REFUSED:
            self._fail(self._read(min(size, WORDS)).decode(errors="replace"))
        if kind != ANSWER or count > MOST:
            self._fail("expected an answer of at most 32 arrays, got something else")
        entries = [self._entry(self._read(ENTRY.size)) for _ in range(count)]
        if size != sum(-(-length // 8) * 8 for _, _, _, length in entries):
            self._fail("expected an answer as long as its arrays, got another length")
        if not flags & SHARED:
            data = memoryview(self._read(size))
        elif self._shared is not None and size <= self._size:
            data = memoryview(self._shared)[self._size : self._size + size]
        else:
            self._fail("expected an answer in the memory that the trainer shares, got none")
        answers, place = {}, 0
        for name, format_, dims, length in entries:
            numbers = array.array(format_)
            numbers.frombytes(data[place : place + length])
            place += -(-length // 8) * 8
            answers[name] = self._as_array(numbers, dims)
        return answers

    def _entry(self, data: bytes) -> tuple[str, str, list[int], int]:
        """An array's name, format, shape and bytes."""
        name, type_, rank, *dims = ENTRY.unpack(data)
        if type_ not in (1, 2) or not 0 <= rank <= 4 or min(dims) < 0:
            self._fail("expected arrays of floats in an answer, got something else")
        size = 4 * type_
        for n in dims[:rank]:
            size *= n
        return name.rstrip(b"\0").decode(errors="replace"), FORMATS[type_], dims[:rank], size

    def _as_array(self, numbers: array.array, dims: list[int]) -> Any:
        numpy = sys.modules.get("numpy")
        return numbers if numpy is None else numpy.frombuffer(numbers, numbers.typecode).reshape(dims)

    def _send(self, kind: int, name: str, arrays: dict[str, Any]) -> None:
        assert self._line is not None
        entries, parts, size = [], [], 0
        for text in (name, *arrays):
            if len(text.encode()) > NAME:  # its end would be cut off
                self._fail(f"expected a name of at most {NAME} bytes, got: {text}")
        if len(arrays) > MOST:
            self._fail(f"expected at most {MOST} arrays in a call, got {len(arrays)}: {name}")
        for key, values in arrays.items():
            first, whole = [], []
            if isinstance(values, Part):
                values, first, whole = values.values, values.first, values.whole
            view = self._view(key or name, values)
            code = TYPES.get((view.format, view.itemsize))
            if code is None or view.ndim > 4:
                self._fail(
                    f"expected numbers of 1, 4 or 8 bytes in 0 to 4 dimensions, got others of: {key or name}"
                )
            dims = [*view.shape] if view.shape else []
            if whole and not len(first) == len(whole) == len(dims):
                self._fail(
                    f"expected first and whole with a number for each of {len(dims)} dimensions, got {first} "
                    f"and {whole} of: {key or name}"
                )
            spans = [[*span, *[0] * (4 - len(span))] for span in (dims, first, whole)]
            entries.append(ENTRY.pack(key.encode(), code, len(dims), *spans[0], *spans[1], *spans[2]))
            data = view.tobytes()
            parts.append(data + bytes(-len(data) % 8))
            size += len(parts[-1])
        shared = self._shared is not None and kind == CALL and FEW < size <= self._size
        head = HEADER.pack(MAGIC, kind, len(entries), SHARED if shared else 0, size, name.encode())
        payload = b"".join(parts)
        if shared and self._shared is not None:
            self._shared[:size] = payload
            payload = b""
        try:
            self._line.sendall(b"".join([head, *entries, payload]))
        except OSError:
            self._fail("the trainer has gone, so this program ends")

    def _view(self, name: str, values: Any) -> memoryview:
        numpy = sys.modules.get("numpy")
        try:
            if numpy is not None:
                values = _plain(numpy, values)
                values = numpy.asarray(values, values.dtype.newbyteorder("="), order="C")
            elif isinstance(values, float):
                values = memoryview(array.array("d", [values])).cast("B").cast("d", [])
            return memoryview(values)
        except (TypeError, ValueError, RuntimeError) as error:
            self._fail(f"expected an array of plain numbers, got {error}, for: {name}")

    def _read(self, size: int) -> bytes:
        assert self._line is not None
        data = bytearray()
        while len(data) < size:
            try:
                part = self._line.recv(min(size - len(data), 2**20))
            except OSError:
                part = b""
            if not part:
                self._fail("the trainer has gone, so this program ends")
            data += part
        return bytes(data)

    def _fail(self, text: str) -> NoReturn:
        sys.stdout.flush()
        print(f"blackbox: {text}", file=sys.stderr, flush=True)
        os._exit(STATUS)


def _plain(numpy: Any, values: Any) -> Any:
    """Numbers as NumPy has them: what is masked is NaN, and a unit, which would be dropped, is refused."""
    if type(values) is numpy.ndarray:
        return values
    unit = getattr(values, "unit", None)
    unit = getattr(values, "units", None) if unit is None else unit
    if not (unit is None or isinstance(unit, (str, bytes)) or hasattr(unit, "__len__")):
        if str(unit) not in ("", "1", "dimensionless"):
            raise TypeError(f"numbers in {unit}")
    if hasattr(values, "dims") and hasattr(values, "data"):  # xarray, around any of these
        return _plain(numpy, values.data)
    if hasattr(values, "dask"):
        return _plain(numpy, values.compute())
    if isinstance(values, (list, tuple)) and not all(isinstance(part, (int, float)) for part in values):
        return numpy.asarray([_plain(numpy, part) for part in values])
    numbers = numpy.asanyarray(values)
    mask: Any = getattr(numbers, "mask", getattr(values, "mask", None))
    numbers = numpy.asarray(numbers)
    masked = isinstance(mask, (numpy.ndarray, numpy.bool_)) and mask.any()
    return numpy.where(mask, numpy.nan, numbers) if masked else numbers


_host = Host()
is_open, exchange, call, output, close = (
    _host.is_open,
    _host.exchange,
    _host.call,
    _host.output,
    _host.close,
)
