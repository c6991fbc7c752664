"""The client: what real servers send, what breaks on the way, several servers, its settings."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import Ledger, Retrying
from blackbox.adapters.um_bridge import (
    BusyError,
    NoAnswerError,
    ServerError,
    UmBridge,
    UnreachableError,
    connection,
)
from blackbox.errors import ConfigurationError, NonFiniteInputError, RowFailedError, TryAgain
from blackbox.extras import MissingExtraError
from blackbox.failures import FailedRow, Failure
from blackbox.wrappers.identity import identity
from tests.blackbox.adapters.um_bridge.servers import Handler, OddServer, doubling, odd_server, saying
from tests.blackbox.boxes import ErrorCase, error_table
from tests.waiting import interrupted_once, wait_until

X = np.array([[1.0, 2.0]])
NAN = float("nan")


def asked(evaluate: Any, **settings: Any) -> tuple[Any, FailedRow | None]:
    """The answer to one row, and how it failed."""
    with odd_server(evaluate) as server, UmBridge(server.url, **settings) as box:
        outcome = box.run_rows((torch.from_numpy(X),))
    return outcome.outputs[0].tolist()[0], outcome.failed.get(0)


# What real servers send


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"output": [[1.5, 2.5]]}', [1.5, 2.5]),
        ('{"output": [[1, 2]] }', [1, 2]),
        ('\n {\n  "output": [\n   [1.0,\n 2e0]], "note": "nan and inf stay \\" words"}', [1, 2]),
    ],
)
def test_what_real_servers_send_is_read(text, expected):
    found, failed = asked(saying(text))
    np.testing.assert_array_equal(found, expected)
    assert failed is None


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "text, status, words",
    [
        ("500 Internal Server Error\n\nServer got itself in trouble", 500, ["status 500", "in trouble"]),
        ("<html>Bad gateway</html>", 502, ["expected JSON", "502", "<html>"]),
        ("", 200, ["expected JSON", "status 200"]),
        ('{"output": [[1.0, 2.0]]}', 500, ["expected status 200", "got status 500"]),
        (
            '{"error": {"type": "InvalidInput", "message": "no such mesh"}}',
            400,
            ["InvalidInput: no such mesh"],
        ),
        ('{"error": {"type": "Odd", "message": "with status 200"}}', 200, ["Odd: with status 200"]),
        ('{"error": "a plain word"}', 400, ["a plain word"]),
        ("[[1.0, 2.0]]", 200, ["an object"]),
        ('{"result": [[1.0, 2.0]]}', 200, ["expected 1 lists of numbers, got no list"]),
        ('{"output": [1.0, 2.0]}', 200, ["expected 1 lists of numbers, got 2"]),
        ('{"output": [[1.0, 2.0], [3.0]]}', 200, ["expected 1 lists", "got 2"]),
        ('{"output": [[1.0]]}', 200, ["expected 2 numbers, got 1"]),
        ('{"output": [[1.0, "2.0"]]}', 200, ["expected 2 numbers, got a string"]),
        ('{"output": [[1.0, [2.0]]]}', 200, ["expected 2 numbers, got a list"]),
        ('{"output": [{"0": 1.0}]}', 200, ["got an object"]),
        ('{"output": [[null, 1.0]]}', 200, ["expected 2 numbers, got null"]),  # NaN of C++ servers
        (
            '{"output": [[nan, 1.0]]}',
            200,
            ["expected JSON", "[[nan, 1.0]]", "the row failed there"],
        ),  # Python's
        ('{"output": [[-Infinity, 1.0]]}', 200, ["expected JSON", "-Infinity"]),
        ('{"output": [[1e999, 1.0]]}', 200, ["expected JSON", "1e999"]),
        ("[" * 100_000, 200, ["expected JSON"]),
        ('{"output": [[1.0, 2.0' + " " * 2**21, 200, ["at most 1,048,704 bytes"]),
        (pickle.dumps({"output": [[1.0, 2.0]]}), 200, ["expected JSON"]),
    ],
)
def test_what_is_no_answer_is_a_failed_row(text, status, words):
    _, failed = asked(saying(text, status))
    assert failed is not None and type(failed.error) is ServerError
    for word in ["/Evaluate", *words]:
        assert word in str(failed.error)
    assert len(str(failed.error)) < 600  # however much the server sent


@pytest.mark.parametrize("status, header, after", [(503, "2", 2.0), (429, "x", 0.0), (503, None, 0.0)])
def test_a_busy_server_says_when_to_ask_again(status, header, after):
    def busy(handler: Any) -> None:
        handler.send_response(status)
        if header is not None:
            handler.send_header("Retry-After", header)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    _, failed = asked(busy)
    assert failed is not None and isinstance(failed.error, BusyError) and isinstance(failed.error, TryAgain)
    assert failed.error.after == after and f"status {status}" in str(failed.error)


def test_nothing_that_a_server_sends_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    _, failed = asked(saying(pickle.dumps(Trap())))
    assert failed is not None and not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()  # so the trap does work


def test_a_redirection_is_not_followed():
    def elsewhere(handler: Any) -> None:
        handler.send_response(307)
        handler.send_header("Location", f"{handler.server.url}/Evaluate?again")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with odd_server(elsewhere) as server, UmBridge(server.url, failures="keep", token="secret") as box:
        assert np.isnan(box(X)).all()
        assert len(server.asked) == 1


# What breaks on the way


def broken_off(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"output": [[1.0')
    handler.close_connection = True


def silent(handler: Any) -> None:
    handler.close_connection = True


def late(handler: Any) -> None:
    time.sleep(1.5)


def trickling(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(15):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "evaluate, error, words",
    [
        (broken_off, ServerError, "lost the connection"),
        (silent, ServerError, "lost the connection"),
        (late, NoAnswerError, "within 0.3 s"),
        pytest.param(trickling, NoAnswerError, "within 0.3 s", marks=pytest.mark.slow),
    ],
)
def test_a_broken_answer_is_a_failed_row(evaluate, error, words):
    with odd_server(evaluate) as server, UmBridge(server.url, timeout=0.3) as box:
        failed = box.run_rows((torch.from_numpy(X),)).failed[0]
        assert type(failed.error) is error and words in str(failed.error)
        assert failed.failure is (Failure.TIMED_OUT if error is NoAnswerError else Failure.RAISED)
        assert len(server.asked) == 1
        server.evaluate = doubling  # the next row is not spoiled by the last one's remains
        np.testing.assert_array_equal(box(X), 2 * X)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("part", ["headers", "body"])
def test_an_answer_that_trickles_in_is_cut_off_when_its_time_is_up(part):
    sent = []

    def drop_by_drop(handler: Any) -> None:
        start = b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 1000\r\n\r\n" if part == "body" else b"")
        try:
            handler.wfile.write(start)
            for number in range(300):
                handler.wfile.write(b" " if part == "body" else b"X-Line: 1\r\n")
                sent.append(number)
                time.sleep(0.02)
        except OSError:  # the client has hung up
            pass
        handler.close_connection = True

    with odd_server(drop_by_drop) as server, UmBridge(server.url, timeout=0.3) as box:
        failed = box.run_rows((torch.from_numpy(X),)).failed[0]
        assert type(failed.error) is NoAnswerError and "within 0.3 s" in str(failed.error)
        server.evaluate = doubling
        np.testing.assert_array_equal(box(X), 2 * X)
    assert 0 < len(sent) < 300


class ReadingLate(Handler):
    """Reads a question after a while, as a server that is at work on another one."""

    def do_POST(self) -> None:
        if self.path == "/Evaluate":
            time.sleep(0.8)
        super().do_POST()


def test_a_large_request_has_as_long_as_its_answer_where_a_server_reads_it_late(monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.2)
    large = {"settings": "x" * 2**25}  # more than the buffers on the way hold
    with odd_server(doubling) as server:
        server.RequestHandlerClass = ReadingLate
        with UmBridge(server.url, config=large, timeout=None) as box:
            np.testing.assert_array_equal(box(X), 2 * X)
        with UmBridge(server.url, config=large, timeout=0.4) as box:
            failed = box.run_rows((torch.from_numpy(X),)).failed[0]
        assert type(failed.error) is NoAnswerError and "within 0.4 s" in str(failed.error)


@pytest.mark.parametrize("timeout", [None, 3600])
def test_a_connection_that_the_system_gives_up_before_any_time_is_up_is_lost(monkeypatch, timeout):
    with odd_server(doubling) as server, UmBridge(server.url, timeout=timeout) as box:
        readinto, client = socket.SocketIO.readinto, threading.get_ident()

        def given_up(raw: socket.SocketIO, buffer: Any) -> int | None:
            if threading.get_ident() == client:
                raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
            return readinto(raw, buffer)

        monkeypatch.setattr(socket.SocketIO, "readinto", given_up)
        failed = box.run_rows((torch.from_numpy(X),)).failed[0]
    assert type(failed.error) is ServerError and "lost the connection" in str(failed.error)


@pytest.mark.slow
def test_a_server_that_closes_kept_connections_is_asked_on_a_new_one():
    def once(handler: Any) -> None:
        doubling(handler)
        handler.close_connection = True  # and does not say so

    with odd_server(once) as server, UmBridge(server.url) as box:
        x = np.arange(20.0).reshape(10, 2)
        for row in x:
            time.sleep(0.05)  # until it is closed
            np.testing.assert_array_equal(box(row), 2 * row)
        assert server.asked == x.tolist()


def test_every_request_is_counted():
    def every_other(handler: Any) -> None:
        if len(handler.server.asked) % 2:
            doubling(handler)
        else:
            handler.close_connection = True  # seen, perhaps worked on, and never answered

    with odd_server(every_other) as server, UmBridge(server.url, failures="keep") as box:
        x = np.arange(12.0).reshape(6, 2)
        y = Retrying(box, attempts=4)(x)
        np.testing.assert_array_equal(y, 2 * x)
        assert box.ledger.rows_run == len(server.asked) > 6


def test_rows_that_are_not_finite_are_not_sent():
    with odd_server(doubling) as server, UmBridge(server.url) as box:
        x = np.array([[1.0, NAN], [1.0, 2.0]])
        with pytest.raises(NonFiniteInputError):
            box(x)
        box.failures = "keep"
        np.testing.assert_array_equal(box(x), [[NAN, NAN], [2, 4]])
        assert server.asked == [[1.0, 2.0]] and box.ledger.rows_skipped == 1


# Several rows at a time


def test_rows_are_asked_for_at_the_same_time_and_keep_their_order():
    meeting = threading.Barrier(4)  # passes only if four rows are with the server at once

    def together(handler: Any) -> None:
        meeting.wait(20)
        doubling(handler)

    x = np.arange(16.0).reshape(8, 2)
    with odd_server(together) as server, UmBridge(server.url, connections=4) as box:
        np.testing.assert_array_equal(box(x), 2 * x)
        assert sorted(server.asked) == x.tolist()
        server.evaluate = minus
        np.testing.assert_array_equal(box(x), -x)
        assert box.ledger == Ledger(2, 16, 16, seconds=box.ledger.seconds)


def minus(handler: Any) -> None:
    """The first rows take the longest."""
    time.sleep(max(0.0, 0.02 - handler.given[0] / 1000))
    handler.send(json.dumps({"output": [[-v for v in handler.given]]}).encode())


@pytest.mark.parametrize("connections", [1, 3])
def test_a_server_that_went_away_is_a_failed_row_each_and_was_not_asked(connections):
    x = np.arange(10.0).reshape(5, 2)
    with odd_server(doubling) as server:
        box = UmBridge(server.url, connections=connections, failures="keep")
        box.close()  # a thread of the server goes on with a connection that is kept
    failed = box.run_rows((torch.from_numpy(x),)).failed
    assert len(failed) == 5 and all(type(why.error) is UnreachableError for why in failed.values())
    assert box.ledger.rows_run == 0


def test_the_first_interrupt_gives_up_requests_that_wait():
    rows = torch.arange(12.0).reshape(6, 2).double()
    with odd_server(Handler.wait_in_vain) as server, UmBridge(server.url, connections=2) as box:
        before_it = threading.active_count()
        with interrupted_once(lambda: len(server.asked) == 2), pytest.raises(KeyboardInterrupt):
            box.run_rows((rows,))
        assert len(server.asked) == 2  # the others were not begun
        wait_until(lambda: threading.active_count() <= before_it + 2)  # the server's own, for its connections
        server.evaluate = doubling
        outcome = box.run_rows((rows,))
        assert outcome.failed == {}
        assert torch.equal(outcome.outputs[0], 2 * rows)


def test_after_a_fork_a_child_opens_its_own_connections():
    with odd_server(doubling) as server, UmBridge(server.url) as box:
        np.testing.assert_array_equal(box(X), 2 * X)
        seen: set[Any] = set()
        server.evaluate = lambda handler: (seen.add(handler.client_address), doubling(handler))[1]
        np.testing.assert_array_equal(box(X), 2 * X)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, b"ok" if np.array_equal(box(3 * X), 6 * X) else b"no")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0 and os.read(read, 2) == b"ok"
        np.testing.assert_array_equal(box(X), 2 * X)
        assert len(seen) == 2
        os.close(read)
        os.close(write)


def test_boxes_are_the_same_to_a_cache_where_address_model_and_config_are():
    with odd_server(doubling) as one, odd_server(doubling) as two:
        boxes = [
            UmBridge(one.url),
            UmBridge(one.url, "odd", {}, token="t", timeout=5.0, connections=2, failures="keep"),
            UmBridge(one.url, config={"level": 1}),
            UmBridge(two.url),
        ]
        first, same, *others = [identity(box) for box in boxes]
        assert first == same and len({first, *others}) == 3
        assert identity(pickle.loads(pickle.dumps(boxes[0]))) == first
        for box in boxes:
            box.close()


@pytest.mark.parametrize("connections", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_under_raise_no_row_is_started_after_one_that_failed(connections):
    def third_fails(handler: Any) -> None:
        if handler.given[0] == 4:
            handler.send(b"sorry", 500)
        else:
            doubling(handler)

    x = np.arange(60.0).reshape(30, 2)
    with odd_server(third_fails) as server, UmBridge(server.url, connections=connections) as box:
        with pytest.raises(RowFailedError, match=r"row 2 failed.*sorry"):
            box(x)
        assert len(server.asked) == box.ledger.rows_run < 3 + 5 * connections
        assert box.ledger.rows_failed == 1
        box.isolates = True  # as wrappers set it that have to know of every row
        outcome = box.run_rows((torch.from_numpy(x),))
        assert list(outcome.failed) == [2]
        assert torch.equal(outcome.outputs[0][3:], torch.from_numpy(2 * x[3:]))


@pytest.mark.slow
def test_a_call_from_several_threads_mixes_nothing_up():
    def work(place: int) -> None:
        x = np.arange(20.0).reshape(10, 2) + 100 * place
        answers[place] = np.array_equal(box(x), -x)

    answers: dict[int, bool] = {}
    with odd_server(minus) as server, UmBridge(server.url, connections=2) as box:
        threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == dict.fromkeys(range(4), True)


def test_a_row_that_waits_for_its_turn_among_threads_has_its_time_from_then_on():
    def slow(handler: Handler) -> None:
        time.sleep(0.25)
        doubling(handler)

    with odd_server(slow) as server, UmBridge(server.url, timeout=0.5) as box:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda place: box(X + place), range(4)))
    np.testing.assert_array_equal(answers, [2 * (X + place) for place in range(4)])


# Settings


@suppress_type_checks
def made(*arguments: Any, **settings: Any) -> Any:
    return UmBridge(*arguments, **settings)


def against(sizes: bytes = OddServer.sizes, **settings: Any) -> Any:
    with odd_server(doubling) as server:
        server.sizes = sizes
        return UmBridge(server.url, **settings)


URL = "http://127.0.0.1:9"
ERRORS = [
    ErrorCase(
        "scheme", lambda: made("localhost:4242"), ConfigurationError, ["http://localhost", "'localhost:"]
    ),
    ErrorCase("file", lambda: made("file:///etc/passwd"), ConfigurationError, ["http://localhost"]),
    ErrorCase("query", lambda: made(URL + "?a=b"), ConfigurationError, ["?a=b"]),
    ErrorCase(
        "password", lambda: made("http://me:word@host"), ConfigurationError, ["no password", "host", "token="]
    ),
    ErrorCase("port", lambda: made("http://host:99999"), ConfigurationError, ["http://localhost", ":99999'"]),
    ErrorCase("port-name", lambda: made("http://host:http"), ConfigurationError, ["'http://host:http'"]),
    ErrorCase("space", lambda: made("http://my host:4242"), ConfigurationError, ["'http://my host:4242'"]),
    ErrorCase("bracket", lambda: made("http://[::1:4242"), ConfigurationError, ["'http://[::1:4242'"]),
    ErrorCase("no-word", lambda: made("http://me:word@[host"), ConfigurationError, ["got one with an @."]),
    ErrorCase("timeout", lambda: made(URL, timeout=0), ConfigurationError, ["timeout", "> 0", "got 0"]),
    ErrorCase("nan", lambda: made(URL, timeout=NAN), ConfigurationError, ["timeout", "nan"]),
    ErrorCase("number", lambda: made(3), ConfigurationError, ["url", "got 3"]),
    ErrorCase("several", lambda: made([URL, URL]), ConfigurationError, ["url", "a load balancer"]),
    ErrorCase("text", lambda: made(URL, timeout="3"), ConfigurationError, ["timeout", "got '3'"]),
    ErrorCase("true", lambda: made(URL, timeout=True), ConfigurationError, ["timeout", "got True"]),
    ErrorCase("list", lambda: made(URL, None, [1]), ConfigurationError, ["config", "a dictionary"]),
    ErrorCase("config-nan", lambda: made(URL, None, {"a": NAN}), ConfigurationError, ["config", "JSON"]),
    ErrorCase("connections", lambda: made(URL, connections=0), ConfigurationError, [">= 1", "got 0"]),
    ErrorCase("token", lambda: made(URL, token="a\r\nb"), ConfigurationError, ["token", "token_urlsafe"]),
    ErrorCase("config", lambda: made(URL, None, {"a": {1}}), ConfigurationError, ["config", "JSON"]),
    ErrorCase("nobody", lambda: made(URL), UnreachableError, [URL, "found none"]),
    ErrorCase("name", lambda: against(name="other"), ConfigurationError, ["'other'", "['odd']"]),
    ErrorCase("no-sizes", lambda: against(b'{"outputSizes": []}'), ServerError, ["/OutputSizes", "got []"]),
    ErrorCase("half", lambda: against(b'{"outputSizes": [1.5]}'), ServerError, ["whole numbers >= 1", "1.5"]),
    ErrorCase("no-json", lambda: against(b'{"outputSizes": [inf]}'), ServerError, ["expected JSON", "inf"]),
]


@pytest.mark.quick_cases(11)
@error_table(ERRORS)
def test_refused(case):
    case.check()


def test_a_password_is_in_no_message_and_a_token_in_no_repr():
    with pytest.raises(ConfigurationError) as caught:
        made("http://me:word@host")
    assert "word@" not in str(caught.value)
    with odd_server(doubling) as server, UmBridge(server.url, token="secret") as box:
        assert repr(box) == f"UmBridge('{server.url}', 'odd')"
        server.evaluate = saying("no", 500)
        assert "secret" not in str(box.run_rows((torch.from_numpy(X),)).failed[0].error)


@pytest.mark.parametrize("package", ["urllib3", "orjson"])
def test_a_missing_extra_names_its_remedy(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*pip install 'blackbox-coupling\[umbridge\]'"):
        made(URL)


def test_a_prefix_in_the_address_is_kept():
    class Behind(Handler):
        def parse_request(self) -> bool:
            parsed = super().parse_request()
            paths.append(self.path)
            self.path = self.path.removeprefix("/models/a")
            return parsed

    paths: list[str] = []
    with odd_server(doubling) as server:
        server.RequestHandlerClass = Behind
        with UmBridge(server.url + "/models/a/") as box:
            np.testing.assert_array_equal(box(X), 2 * X)
    assert paths[0] == "/models/a/Info" and paths[-1] == "/models/a/Evaluate"
