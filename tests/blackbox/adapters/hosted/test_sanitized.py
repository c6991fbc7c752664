"""bb_host against a trainer that answers what is no answer: a sentence and status 70, and no error of memory.

C, C++ and Fortran are compiled with the sanitizers of gcc, which end a program at its first error, and with
another status.
"""

import os
import random
import socket
import subprocess
import threading
from contextlib import suppress

import numpy as np
import pytest

from blackbox.adapters.hosted import wire
from blackbox.adapters.hosted.in_thread import AskingHost
from blackbox.errors import SessionError
from tests.blackbox.adapters.hosted.programs import CLIENT

SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WELCOME = wire.WELCOME.pack(wire.MAGIC, 1, 0, 0, 0)


def entry(name=b"y", type=2, rank=1, dims=(4,)):
    return wire.ENTRY.pack(name, type, rank, *dims, *[0] * (12 - len(dims)))


def answer(kind=4, count=1, flags=0, size=32, entries=None, data=bytes(32), magic=wire.MAGIC):
    head = wire.HEADER.pack(magic, kind, count, flags, size, b"")
    return head + (entry() if entries is None else entries) + data


def refusal(size, text):
    return wire.HEADER.pack(wire.MAGIC, 5, 0, 0, size, b"") + text


ENTRIES = "expected arrays of floats in an answer"
LENGTH = "expected an answer as long as its arrays"
MEMORY = "the memory that the trainer shares"
GONE = "the trainer has gone"
ANSWERS = {
    "no array": (WELCOME, answer(count=0, entries=b"", size=0, data=b""), "answer"),
    "33 arrays": (WELCOME, answer(count=33), "at most 32 arrays"),
    "2^32 - 1 arrays": (WELCOME, answer(count=2**32 - 1), "at most 32 arrays"),
    "2^63 bytes": (WELCOME, answer(size=2**63), LENGTH),
    "2^64 - 1 bytes": (WELCOME, answer(size=2**64 - 1), LENGTH),
    "too few bytes": (WELCOME, answer(size=8, data=bytes(8)), LENGTH),
    "no bytes": (WELCOME, answer(size=0, data=b""), LENGTH),
    "too many bytes": (WELCOME, answer(size=40, data=bytes(40)), LENGTH),
    "rank 100": (WELCOME, answer(entries=entry(rank=100)), ENTRIES),
    "rank -1": (WELCOME, answer(entries=entry(rank=-1)), ENTRIES),
    "rank 2^31 - 1": (WELCOME, answer(entries=entry(rank=2**31 - 1)), ENTRIES),
    "a huge array": (WELCOME, answer(entries=entry(dims=(2**62,))), "fewer numbers|as long as"),
    "sizes beyond 2^64": (
        WELCOME,
        answer(size=0, entries=entry(rank=4, dims=4 * (2**32,))),
        "fewer numbers|as long as",
    ),
    "a negative size": (WELCOME, answer(entries=entry(dims=(-4,))), ENTRIES),
    "type 9": (WELCOME, answer(entries=entry(type=9)), ENTRIES),
    "whole numbers": (WELCOME, answer(entries=entry(type=3)), ENTRIES),
    "another shape": (WELCOME, answer(entries=entry(dims=(2, 2), rank=2)), None),
    "another name": (WELCOME, answer(entries=entry(name=b"z" * 40)), None),
    "another kind": (WELCOME, answer(kind=77), "expected an answer"),
    "another order of bytes": (WELCOME, answer(magic=0x42424831), "something else"),
    "memory that was not shared": (WELCOME, answer(flags=1, data=b""), MEMORY),
    "a refusal": (WELCOME, refusal(5, b"wrong"), "blackbox: wrong"),
    "a refusal of 2^64 - 1 bytes": (WELCOME, refusal(2**64 - 1, b"x" * 4096), "xxxx"),
    "a refusal that ends": (WELCOME, refusal(2**40, b"x"), GONE),
    "half of a header": (WELCOME, answer()[:20], GONE),
    "half of an entry": (WELCOME, answer()[:70], GONE),
    "a long welcome": (wire.WELCOME.pack(wire.MAGIC, 1, 1, 2**32 - 1, 0) + b"x" * 4096, b"", "xxxx"),
    "a long path": (wire.WELCOME.pack(wire.MAGIC, 1, 0, 2**32 - 1, 0) + b"x" * 4096, b"", MEMORY),
    "a path that ends": (wire.WELCOME.pack(wire.MAGIC, 1, 0, 9, 0) + b"x", b"", GONE),
    "memory of a device": (wire.WELCOME.pack(wire.MAGIC, 1, 0, 9, 2**63) + b"/dev/zero", b"", MEMORY),
    "memory of an empty file": (wire.WELCOME.pack(wire.MAGIC, 1, 0, 5, 4096) + b"empty", b"", MEMORY),
    "memory of no file": (wire.WELCOME.pack(wire.MAGIC, 1, 0, 4, 4096) + b"none", b"", MEMORY),
    "memory of an odd size": (wire.WELCOME.pack(wire.MAGIC, 1, 0, 3, 4099) + b"odd", b"", MEMORY),
    "a welcome of another order of bytes": (wire.WELCOME.pack(0x42424831, 1, 0, 0, 0), b"", "byte order"),
}

C = r"""
#include "bb_host.h"
int main(void) {
  double x[4] = {1, 2, 3, 4}, y[4];
  int n[] = {4};
  for (int k = 0; k < 2; k++) {
    bb_put("x", BB_DOUBLE, 1, n, x);
    if (!bb_call("f")) return 3;
    bb_get("y", BB_DOUBLE, 1, n, y);
    if (!bb_exchange("f", x, 1, n, y, 1, n)) return 3;
  }
  bb_output("last", BB_DOUBLE, 1, n, y);
  n[0] = 0;
  bb_output("empty", BB_DOUBLE, 1, n, 0);
  bb_put_copy("empty", BB_DOUBLE, 1, n, 0);
}
"""
CPP = r"""
#include "bb_host.hpp"
int main() {
  std::vector<double> x{1, 2, 3, 4}, y(4), empty;
  for (int k = 0; k < 2; k++) {
    bb::put("x", x.data(), {4});
    if (!bb::call("f")) return 3;
    bb::get("y", y.data(), {4});
    if (!bb::exchange("f", x.data(), {4}, y.data(), {4})) return 3;
  }
  bb::output("last", y.data(), {4});
  bb::output("empty", empty.data(), {0});
}
"""
FORTRAN = """
program main
  use bb_host
  implicit none
  double precision :: x(8) = 1, y(4), empty(0)
  integer :: k
  do k = 1, 2
    call bb_put("x", x(1:8:2))
    if (.not. bb_call("f")) stop 3
    call bb_get("y", y)
    if (.not. bb_exchange("f", x(1:8:2), y)) stop 3
  end do
  call bb_output("last", y)
  call bb_output("empty", empty)
end program
"""


def compiled(folder, language):
    """A program that asks four times, under sanitizers."""

    def run(*words):
        subprocess.run([*map(str, words)], cwd=folder, check=True, timeout=120)

    run("cc", "-std=c99", "-Wall", "-Wextra", "-Werror", *SANITIZED, "-c", CLIENT / "bb_host.c")
    name, text = {"c": ("main.c", C), "cpp": ("main.cpp", CPP), "fortran": ("main.f90", FORTRAN)}[language]
    (folder / name).write_text(text)
    sources = ["bb_host.o", name]
    if language == "fortran":
        sources = [CLIENT / "bb_host.f90", name, "bb_host.o"]
    compiler = {"c": "cc", "cpp": "c++", "fortran": "gfortran"}[language]
    run(compiler, *SANITIZED, f"-I{CLIENT}", *sources, "-o", "main")


def answered(folder, welcome, reply, start, half=False):
    """What `start` gives, which connects to the socket that it is given, and is answered all the same.

    Where that is half of an answer, the trainer closes.
    """
    place = folder / "socket"
    place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen(1)
    listener.settimeout(20)

    def answer_it():
        with suppress(OSError):  # it has ended
            connection, _ = listener.accept()
            with connection:
                connection.recv(wire.HELLO.size)
                connection.sendall(welcome)
                while reply and connection.recv(10**5):
                    connection.sendall(reply)
                    if half:
                        break

    thread = threading.Thread(target=answer_it)
    thread.start()
    try:
        return start(str(place))
    finally:
        thread.join(60)
        listener.close()


def ended(folder, welcome, reply, half=False):
    """Status and words of the program in a folder."""
    if (folder / "main.f90").exists() and len(reply) >= wire.HEADER.size:  # answers in its order
        reply = reply[:12] + bytes([reply[12] | wire.COLUMNS]) + reply[13:]

    def start(place):
        environment = {**os.environ, "BLACKBOX_HOST": place, "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(["./main"], cwd=folder, env=environment, capture_output=True, timeout=60)
        return done.returncode, done.stderr.decode(errors="replace")

    return answered(folder, welcome, reply, start, half)


LANGUAGES = [
    pytest.param("c", marks=pytest.mark.needs("sanitizers")),
    pytest.param("cpp", marks=pytest.mark.needs("sanitizers")),
    pytest.param("fortran", marks=pytest.mark.needs("sanitizers", "gfortran")),
]


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_no_answer_ends_a_program_in_words(tmp_path, language):
    compiled(tmp_path, language)
    (tmp_path / "empty").touch()
    (tmp_path / "odd").write_bytes(bytes(2 * 4099))
    assert ended(tmp_path, WELCOME, answer()) == (0, "")
    for kind, (welcome, reply, words) in ANSWERS.items():
        status, said = ended(tmp_path, welcome, reply, words == GONE)
        assert status == 70 and "blackbox: " in said, (kind, said)
        assert words is None or any(word in said for word in words.split("|")), (kind, said)
    draws = random.Random(0)
    for _ in range(60):
        reply = bytearray(answer())
        for _ in range(draws.randrange(1, 6)):
            reply[draws.randrange(len(reply))] = draws.randrange(256)
        status, said = ended(tmp_path, WELCOME, bytes(reply), half=True)
        assert status in (0, 70), said


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("kind", ANSWERS)
def test_what_is_no_answer_is_an_error_in_python(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "odd").write_bytes(bytes(2 * 4099))
    welcome, reply, words = ANSWERS[kind]

    def start(place):
        host = AskingHost(place)
        try:
            for _ in range(2):
                host.exchange("f", np.ones(4))
        finally:
            host.hang_up()

    if words is None or "odd" in kind:  # it takes any name, shape and size of memory
        answered(tmp_path, WELCOME, answer(), start)
    else:
        with pytest.raises(SessionError, match=words.replace("blackbox: ", "")):
            answered(tmp_path, welcome, reply, start, words == GONE)


@pytest.mark.slow
@pytest.mark.needs("sanitizers")
def test_a_part_in_cpp_says_where_it_lies_in_each_dimension(tmp_path):
    (tmp_path / "main.cpp").write_text(
        '#include "bb_host.hpp"\nint main() { double x[6]; bb::put_part("x", x, {3, 2}, {0}, {6, 2}); }\n'
    )
    subprocess.run(["cc", *SANITIZED, "-c", CLIENT / "bb_host.c"], cwd=tmp_path, check=True)
    command = ["c++", *SANITIZED, f"-I{CLIENT}", "main.cpp", "bb_host.o", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    environment = {**os.environ, "BLACKBOX_HOST": "none"}
    done = subprocess.run(
        ["./main"], cwd=tmp_path, env=environment, capture_output=True, timeout=60, text=True
    )
    status, said = done.returncode, done.stderr
    assert status == 70 and "a number for each of 2 dimensions" in said
