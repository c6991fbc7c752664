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
