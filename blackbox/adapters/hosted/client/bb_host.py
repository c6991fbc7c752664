"""A Python program asks a network in the middle of its work, and goes on with the answer.

One file without dependencies; copy it beside your program. In the time loop:

    import bb_host

    tendency = bb_host.exchange("closure", vorticity)
    if tendency is None:  # nobody trains: the program runs as ever
        tendency = my_own_closure(vorticity)

Arrays are NumPy's, or anything with a buffer, such as `array.array`. Where several processes hold a field
together (mpi4py), each asks with its part and gets that of the answer:

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
FORMATS = {1: "f", 2: "d", 3: "i", 4: "q", 5: "B"}
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


class Part:
    """A process's part of an array, in the arrays of `call`.

    Args:
        values: the part.
        first: where it begins in the whole array, counted from 0, a number for each dimension.
        whole: the shape of the whole.
    """

    def __init__(self, values: Any, first: Sequence[int], whole: Sequence[int]) -> None:
        self.values, self.first, self.whole = values, [*first], [*whole]


class Host:
    """A program's end of the line to a trainer; the functions of this module are those of one of them."""

    def __init__(self, path: str | None = None) -> None:
        self._path = path  # of the socket; None for that of BLACKBOX_HOST
        self._line: socket.socket | None = None
        self._looked = 0  # the process that has looked for a trainer
        self._shared: mmap.mmap | None = None
        self._size = 0

    def is_open(self, rank: int = 0, size: int = 1) -> bool:
        """Whether a trainer has started the program; connects to it. The others call this by themselves.

        Args:
            rank: of several processes that each ask, this one's number.
            size: how many there are.
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
        text = self._read(length).decode(errors="replace")
        if refused or magic != MAGIC:
            self._fail(text or "expected a trainer of the same byte order")
        if text:
            with open(text, "r+b") as file:
                self._shared, self._size = mmap.mmap(file.fileno(), 2 * shared), shared
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
            self._fail(self._read(size).decode(errors="replace"))
        entries = [ENTRY.unpack(self._read(ENTRY.size)) for _ in range(count)]
        if flags & SHARED and self._shared is not None:
            data = memoryview(self._shared)[self._size : self._size + size]
        else:
            data = memoryview(self._read(size))
        answers, place = {}, 0
        for name, type_, rank, *dims in entries:
            numbers = array.array(FORMATS[type_])
            wanted = numbers.itemsize
            for n in dims[:rank]:
                wanted *= n
            numbers.frombytes(data[place : place + wanted])
            place += -(-wanted // 8) * 8
            answers[name.rstrip(b"\0").decode()] = self._as_array(numbers, dims[:rank])
        return answers

    def _as_array(self, numbers: array.array, dims: list[int]) -> Any:
        numpy = sys.modules.get("numpy")
        return numbers if numpy is None else numpy.frombuffer(numbers, numbers.typecode).reshape(dims)

    def _send(self, kind: int, name: str, arrays: dict[str, Any]) -> None:
        assert self._line is not None
        entries, parts, size = [], [], 0
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
        if numpy is not None:
            values = numpy.asarray(values, order="C")
        elif isinstance(values, float):
            values = memoryview(array.array("d", [values])).cast("B").cast("d", [])
        try:
            return memoryview(values)
        except TypeError:
            self._fail(f"expected an array, got {type(values).__name__} for: {name}")

    def _read(self, size: int) -> bytes:
        assert self._line is not None
        data = bytearray()
        while len(data) < size:
            try:
                part = self._line.recv(size - len(data))
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


_host = Host()
is_open, exchange, call, output, close = (
    _host.is_open,
    _host.exchange,
    _host.call,
    _host.output,
    _host.close,
)
