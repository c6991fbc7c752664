"""Messages of programs that are none of bb_host: refused in words, and no larger than the specs allow."""

import socket
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from blackbox import ArraySpec
from blackbox.adapters import Call
from blackbox.adapters.hosted import wire
from blackbox.errors import RowFailedError
from tests.blackbox.adapters.hosted.programs import LINEAR, RAW, X, hosted

LAST = ArraySpec("last", (2,))


def run(host):
    with torch.no_grad():
        return host.run([0], closure=lambda x: 0.1 * x, dtype=torch.float64)


@contextmanager
def at_most(megabytes):
    """A block that takes no more memory at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


SENT = {
    "more than the call": (
        "line.sendall(message(1, b'closure', [entry(b'x', (2**29,))], size=2**32)); time.sleep(60)",
        r"x: expected the shape \(2,\), and the program sent \(536870912,\)",
    ),
    "a whole that is more": (
        "line.sendall(message(1, b'closure', [entry(b'x', (1,), first=(0,), whole=(2**33,))], bytes(8)))\n"
        "time.sleep(60)",
        r"x: expected the shape \(2,\), and the program sent \(8589934592,\)",
    ),
    "a part that is more than its whole": (
        "line.sendall(message(1, b'closure', [entry(b'x', (2**30,), first=(0,), whole=(2,))], size=2**33))\n"
        "time.sleep(60)",
        r"a part \(1073741824,\), larger than its whole \(2,\)",
    ),
    "an array twice": (
        "line.sendall(message(1, b'closure', [entry(b'x', (2,)), entry(b'x', (2,))], bytes(32)))",
        "closure: the program sent an array twice: x, x",
    ),
    "more than its arrays": (
        "line.sendall(message(1, b'closure', [entry(b'x', (2,))], size=2**33)); time.sleep(60)",
        "another length than that of its arrays",
    ),
    "less than its arrays": (
        "line.sendall(message(1, b'closure', [entry(b'x', (2,))], bytes(8))); time.sleep(60)",
        "another length than that of its arrays",
    ),
    "a rank": (
        "line.sendall(message(1, b'closure', [entry(b'x', (2,), rank=7)], bytes(16))); time.sleep(60)",
        "'x' has no type or shape of bb_host",
    ),
    "a negative whole": (
        "line.sendall(message(1, b'closure', [entry(b'x', (2,), whole=(-2,))], bytes(16))); time.sleep(60)",
        "'x' has no type or shape of bb_host",
    ),
    "memory that it has not": (
        "line.sendall(message(1, b'closure', [entry(b'x', (2,))], size=16, flags=1)); time.sleep(60)",
        "shared memory that it has not been given",
    ),
    "an output that is more": (
        "ask(); line.sendall(message(2, b'last', [entry(b'last', (2**29,))], size=2**32)); time.sleep(60)",
        r"last: expected the shape \(2,\), and the program sent \(536870912,\), after 1 call",
    ),
    "an output that is wrong, as the last before its end": (
        "ask(); line.sendall(message(2, b'last', [entry(b'last', (3,))], bytes(24)))",
        r"last: expected the shape \(2,\), and the program sent \(3,\), after 1 call",
    ),
    "parts of an output that overlap": (
        "ask()\n"
        "for k in range(9**9):\n"
        "    line.sendall(message(2, b'last', [entry(b'last', (2,), first=(k,), whole=(2,))], bytes(16)))",
        "last: parts of processes overlap",
    ),
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("kind", SENT)
def test_what_is_no_message_is_refused_before_it_is_received(tmp_path, kind):
    code, words = SENT[kind]
    with at_most(20), pytest.raises(RowFailedError, match=words):
        run(hosted(tmp_path, f"{RAW}\n{code}", outputs=[LAST]))


def test_of_an_output_the_last_is_kept_however_often_it_is_sent(tmp_path):
    text = f"{LINEAR}\nfor k in range(40): bb_host.output('last', array.array('d', [k]) * 100_000)"
    with at_most(12):  # all would be 32 MB
        result = run(hosted(tmp_path, text, outputs=[ArraySpec("last", (100_000,))]))
    assert bool((result.outputs["last"] == 39).all())


def test_a_part_of_an_output_that_is_sent_again_is_the_last(tmp_path):
    text = """
ask()
for k in range(3):
    for place in range(2):
        part = entry(b"last", (1,), first=(place,), whole=(2,))
        line.sendall(message(2, b"last", [part], struct.pack("d", 10 * k + place)))
"""
    result = run(hosted(tmp_path, RAW + text, outputs=[LAST]))
    assert result.outputs["last"].tolist() == [[20.0, 21.0]]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_an_output_that_nobody_asked_for_is_dropped(tmp_path, size):
    text = f"{LINEAR}\nbb_host.output('field', doubles(0) * {size}); bb_host.output('last', x)"
    with at_most(10):
        result = run(hosted(tmp_path, text, outputs=[LAST]))
    plain = run(hosted(tmp_path, f"{LINEAR}\nbb_host.output('last', x)", outputs=[LAST]))
    assert torch.equal(result.outputs["last"], plain.outputs["last"])


FLOODS = {
    "bytes": (
        "line.sendall(message(2, b'other', [entry(b'o', (10**9,))], size=8 * 10**9))",
        "line.sendall(b'x')",
    ),
    "outputs": ("", "line.sendall(message(2, b'other', [entry(b'o', (1,))], bytes(8)))"),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", FLOODS)
def test_a_program_that_never_stops_sending_meets_its_limit(tmp_path, kind):
    first, then = FLOODS[kind]
    host = hosted(tmp_path, f"{RAW}\n{first}\nwhile True: {then}", timeout=0.5)
    with pytest.raises(RowFailedError, match=r"0\.5 s and was killed"):
        run(host)


@pytest.mark.slow
def test_a_program_that_reads_no_answer_meets_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("blackbox.adapters.hosted.wire.FEW", 10**9)  # as where there is no shared memory
    calls = [Call("closure", sees=X, gives=ArraySpec("u", (300_000,)))]
    text = f"{RAW}\nline.sendall(message(1, b'closure', [entry(b'x', (2,))], bytes(16))); time.sleep(60)"
    host = hosted(tmp_path, text, calls, timeout=0.5)
    with pytest.raises(RowFailedError, match=r"0\.5 s and was killed"), torch.no_grad():
        host.run([0], closure=lambda x: x.new_zeros(1, 300_000), dtype=torch.float64)


def test_each_message_has_its_own_order_of_arrays():
    """Behind a message that nobody wants, one like the last wanted one was in the wrong order."""
    ours, theirs = socket.socketpair()
    line = wire.Line(ours, 0, lambda kind, name, shapes: name != "aside", None)
    values = np.arange(6.0).reshape(2, 3)

    def sent(kind, name, flags):
        entry = wire.ENTRY.pack(b"x", 2, 2, 2, 3, *[0] * 10)
        data = values.tobytes("F" if flags else "C")
        theirs.sendall(wire.HEADER.pack(wire.MAGIC, kind, 1, flags, len(data), name) + entry + data)
        message = line.receive()
        assert message is not None
        return message

    theirs.sendall(wire.HELLO.pack(wire.MAGIC, wire.VERSION, 0, 1, 0, 0, 0, 0))
    assert line.receive() is None
    for _ in range(2):
        message = sent(wire.CALL, b"f", wire.COLUMNS)
        assert message.columns and np.array_equal(message.parts[0][1].values, values)
        assert not sent(wire.OUTPUT, b"aside", 0).parts
    line.close()
    theirs.close()
