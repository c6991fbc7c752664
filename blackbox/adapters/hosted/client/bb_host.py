"""A Python program asks a network in the middle of its work, and goes on with the answer.

One file without dependencies; copy it beside your program. In the time loop:

    import bb_host

    tendency = bb_host.exchange("closure", vorticity)
    if tendency is None:  # nobody trains: the program runs as ever
        tendency = my_own_closure(vorticity)

Arrays are NumPy's, or anything with a buffer, such as `array.array`. Answers are NumPy arrays where NumPy has
been imported, else of `array.array`, one number behind the other. What goes wrong ends the program with
status 70 and a sentence on standard error. See bb_host.h, which does the same for C.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import sys
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

_line: socket.socket | None = None
_looked = 0  # the process that has looked for a trainer
_shared: mmap.mmap | None = None
_size = 0


def is_open(rank: int = 0, size: int = 1) -> bool:
    """Whether a trainer has started the program; connects to it. The others call this by themselves.

    Args:
        rank: of several processes that each ask, this one's number.
        size: how many there are.
    """
    global _line, _looked, _shared, _size
    if _looked == os.getpid():
        return _line is not None
    if _looked and _line is not None:
        _fail("a forked child asks: call from the process that opened")
    _looked = os.getpid()
    path = os.environ.get("BLACKBOX_HOST")
    if not path:
        return False
    _line = socket.socket(socket.AF_UNIX)
    try:
        _line.connect(path)
    except OSError as error:
        _fail(f"no trainer listens at BLACKBOX_HOST ({error}); unset it to run without")
    _line.sendall(HELLO.pack(MAGIC, VERSION, rank, size, struct.calcsize("l"), 8, 0, 0))
    magic, _, refused, length, shared = WELCOME.unpack(_read(WELCOME.size))
    text = _read(length).decode(errors="replace")
    if refused or magic != MAGIC:
        _fail(text or "expected a trainer of the same byte order")
    if text:
        with open(text, "r+b") as file:
            _shared, _size = mmap.mmap(file.fileno(), 2 * shared), shared
    return True


def exchange(call: str, values: Any) -> Any:
    """Ask with one array, answered by one; None where nobody trains."""
    answers = _asked(call, {"": values})
    if answers is None:
        return None
    if len(answers) != 1:
        _fail(f"exchange is for calls with one answer, got {', '.join(answers)}; take call(): {call}")
    return next(iter(answers.values()))


def call(call: str, **arrays: Any) -> dict[str, Any] | None:
    """Ask with several arrays by their names, answered by several; None where nobody trains."""
    return _asked(call, arrays)


def output(name: str, values: Any) -> None:
    """Hand over a result of the run, such as a drag."""
    if is_open():
        _send(OUTPUT, name, {name: values})


def close() -> None:
    """Say that nothing will be asked any more. The end of the program says so too."""
    global _line
    if _line is not None:
        _send(CLOSE, "", {})
        _line.close()
        _line = None


def _asked(call: str, arrays: dict[str, Any]) -> dict[str, Any] | None:
    if not is_open():
        return None
    _send(CALL, call, arrays)
    magic, kind, count, flags, size, _ = HEADER.unpack(_read(HEADER.size))
    if magic != MAGIC:
        _fail("expected an answer of the trainer, got something else")
    if kind == REFUSED:
        _fail(_read(size).decode(errors="replace"))
    entries = [ENTRY.unpack(_read(ENTRY.size)) for _ in range(count)]
    if flags & SHARED and _shared is not None:
        data = memoryview(_shared)[_size : _size + size]
    else:
        data = memoryview(_read(size))
    answers, place = {}, 0
    for name, type_, rank, *dims in entries:
        numbers = array.array(FORMATS[type_])
        wanted = numbers.itemsize
        for n in dims[:rank]:
            wanted *= n
        numbers.frombytes(data[place : place + wanted])
        place += -(-wanted // 8) * 8
        answers[name.rstrip(b"\0").decode()] = _as_array(numbers, dims[:rank])
    return answers


def _as_array(numbers: array.array[Any], dims: list[int]) -> Any:
    numpy = sys.modules.get("numpy")
    return numbers if numpy is None else numpy.frombuffer(numbers, numbers.typecode).reshape(dims)


def _send(kind: int, name: str, arrays: dict[str, Any]) -> None:
    assert _line is not None
    entries, parts, size = [], [], 0
    for key, values in arrays.items():
        view = _view(key or name, values)
        code = TYPES.get((view.format, view.itemsize))
        if code is None or view.ndim > 4:
            _fail(f"expected numbers of 1, 4 or 8 bytes in 0 to 4 dimensions, got others of: {key or name}")
        dims = [*view.shape] if view.shape else []
        entries.append(ENTRY.pack(key.encode(), code, len(dims), *dims, *[0] * (12 - len(dims))))
        data = view.tobytes()
        parts.append(data + bytes(-len(data) % 8))
        size += len(parts[-1])
    shared = _shared is not None and kind == CALL and FEW < size <= _size
    head = HEADER.pack(MAGIC, kind, len(entries), SHARED if shared else 0, size, name.encode())
    payload = b"".join(parts)
    if shared and _shared is not None:
        _shared[:size] = payload
        payload = b""
    try:
        _line.sendall(b"".join([head, *entries, payload]))
    except OSError:
        _fail("the trainer has gone, so this program ends")


def _view(name: str, values: Any) -> memoryview:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        values = numpy.asarray(values, order="C")
    elif isinstance(values, float):
        values = memoryview(array.array("d", [values])).cast("B").cast("d", [])
    try:
        return memoryview(values)
    except TypeError:
        _fail(f"expected an array, got {type(values).__name__} for: {name}")


def _read(size: int) -> bytes:
    assert _line is not None
    data = bytearray()
    while len(data) < size:
        part = _line.recv(size - len(data))
        if not part:
            _fail("the trainer has gone, so this program ends")
        data += part
    return bytes(data)


def _fail(text: str) -> NoReturn:
    sys.stdout.flush()
    print(f"blackbox: {text}", file=sys.stderr, flush=True)
    os._exit(STATUS)
