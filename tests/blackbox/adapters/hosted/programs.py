"""Small programs that call a network, in plain Python: quick to start, and without packages."""

import sys
import textwrap
from pathlib import Path

import blackbox.adapters.hosted
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted

CLIENT = Path(blackbox.adapters.hosted.__file__).parent / "client"
HEAD = f"""
import array, os, sys, time
sys.path.insert(0, {str(CLIENT)!r})
import bb_host
case = int(sys.argv[1])
def doubles(*values): return array.array("d", values)
"""
X, U = ArraySpec("x", (2,)), ArraySpec("u", (2,))
STEP = "x[0], x[1] = 0.9 * x[0] + 0.2 * x[1] + u[0], 0.8 * x[1] - 0.1 * x[0] + 0.5 * u[1]"
BEGIN = "x = doubles(1.0 + case, 2.0 - case)"
LINEAR = f"""
{BEGIN}
for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 4):
    u = bb_host.exchange("closure", x)
    if u is None: u = doubles(0.0, 0.0)
    {STEP}
"""


RAW = """
import socket, struct
def message(kind, name, entries=(), data=b"", size=None, flags=0):
    size = len(data) if size is None else size
    head = struct.pack("=4IQ40s", 0x31484242, kind, len(entries), flags, size, name)
    return head + b"".join(entries) + data
def entry(name, dims, type=2, rank=None, first=(), whole=()):
    spans = [[*span, *[0] * (4 - len(span))] for span in (dims, first, whole)]
    rank = len(dims) if rank is None else rank
    return struct.pack("=40sii4q4q4q", name, type, rank, *spans[0], *spans[1], *spans[2])
line = socket.socket(socket.AF_UNIX)
line.connect(os.environ["BLACKBOX_HOST"])
line.sendall(struct.pack("=8I", 0x31484242, 1, 0, 1, 8, 8, 0, 0))
line.recv(4096)
def ask(values=(1.0, 2.0)):
    line.sendall(message(1, b"closure", [entry(b"x", (2,))], struct.pack("2d", *values)))
    return line.recv(4096)
"""  # bytes of one's own, in the place of bb_host


def program(folder, text, name="program.py"):
    """A program's file."""
    path = folder / name
    path.write_text(HEAD + textwrap.dedent(text))
    return path


def hosted(folder, text, calls=None, arguments=(), **settings):
    """A host of a program."""
    calls = [Call("closure", sees=X, gives=U)] if calls is None else calls
    command = [sys.executable, "-I", "-S", program(folder, text), "{case}", *arguments]
    return Hosted(command, calls=calls, **settings)
