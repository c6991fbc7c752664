"""The server: what it refuses, what it holds back, how it works beside an evaluation, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import umbridge
from typeguard import suppress_type_checks

from blackbox import ArraySpec, Budgeted
from blackbox.adapters import from_callable
from blackbox.adapters.um_bridge import BusyError, ServerError, UmBridge, UnreachableError, serve, serving
from blackbox.errors import ConfigurationError
from blackbox.extras import MissingExtraError
from tests.blackbox.adapters.um_bridge.boxes import NINE, Cubes, Shapes, Waiting
from tests.blackbox.adapters.um_bridge.servers import served_elsewhere
from tests.blackbox.boxes import ErrorCase, error_table

LIMIT = 2**20 + 64 * 14  # for `Shapes`: room for what surrounds the numbers, and for 14 of them


class Client:
    """Says anything to a server, by the standard library alone."""

    def __init__(self, url: str) -> None:
        self.address = urlsplit(url)

    def say(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=20)
        try:
            data = json.dumps(body).encode() if isinstance(body, dict | list) else body
            connection.request(method or ("GET" if body is None else "POST"), path, data, headers)
            response = connection.getresponse()
            assert response.getheader("content-type") == "application/json"
            text = response.read()
            answer = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
            return response.status, answer
        finally:
            connection.close()

    def refused(self, *arguments: Any, **keywords: Any) -> tuple[int, str, str]:
        status, answer = self.say(*arguments, **keywords)
        return status, answer["error"]["type"], answer["error"]["message"]


@pytest.fixture(scope="module")
def shapes() -> Iterator[Client]:
    with serving(Shapes()) as url:
        yield Client(url)


def request(**changes: Any) -> dict[str, Any]:
    """A good one, changed."""
    return {"name": "Shapes", "input": [[0.1] * 6, [2]], "config": {}, **changes}


# What it refuses


def test_a_good_request_is_answered(shapes):
    assert shapes.say("/Evaluate", request())[0] == 200
    without = {key: value for key, value in request().items() if key != "config"}
    assert shapes.say("/Evaluate", without)[0] == 200


MALFORMED = {
    "nothing": b"",
    "half": b'{"name": "Shapes", "input": [[0.1',
    "nan": b'{"name": "Shapes", "input": [[NaN, 1, 1, 1, 1, 1], [1]]}',
    "too-large-for-a-double": b'{"name": "Shapes", "input": [[1e400, 1, 1, 1, 1, 1], [1]]}',
    "deep": b"[" * (LIMIT - 1),
    "binary": bytes(range(256)),
    "pickle": pickle.dumps(request()),
    "list": [request()],
    "number": b"1",
    "no-input": request(input=None),
    "input-text": request(input="abc"),
    "too-few": request(input=[[0.1] * 6]),
    "too-many": request(input=[[0.1] * 6, [2], [3]]),
    "short": request(input=[[0.1] * 5, [2]]),
    "long": request(input=[[0.1] * 7, [2]]),
    "unflattened": request(input=[[[0.1] * 3] * 2, [2]]),
    "scalar": request(input=[[0.1] * 6, 2]),
    "text": request(input=[["0.1"] * 6, [2]]),
    "null": request(input=[[None] * 6, [2]]),
    "object": request(input=[[0.1] * 5 + [{}], [2]]),
    "config": request(config={"level": 1}),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_gets_an_error_in_json(shapes, body):
    status, kind, message = shapes.refused("/Evaluate", body)
    assert (status, kind) == (400, "InvalidInput") and "expected" in message


@pytest.mark.parametrize(
    "path, changes, kind",
    [
        ("/Evaluate", {"name": "Other"}, "ModelNotFound"),
        ("/InputSizes", {"name": "Other"}, "ModelNotFound"),
        ("/ModelInfo", {"name": None}, "ModelNotFound"),
        ("/OutputSizes", {"config": {"level": 1}}, "InvalidInput"),
        ("/Gradient", {}, "UnsupportedFeature"),
        ("/ApplyJacobian", {}, "UnsupportedFeature"),
        ("/ApplyHessian", {}, "UnsupportedFeature"),
    ],
)
def test_a_wrong_request_says_which_part(shapes, path, changes, kind):
    status, found, message = shapes.refused(path, request(**changes))
    assert (status, found) == (400, kind)
    assert all(key in message for key in changes)


def test_only_the_paths_of_the_protocol(shapes):
    for path in ("/", "/evaluate", "/../../etc/passwd", "/Evaluate/..%2f", "/EvaluateShMem"):
        assert shapes.refused(path, request())[:2] == (404, "NotFound")
    assert shapes.refused("/Evaluate")[:2] == (405, "MethodNotAllowed")
    assert shapes.refused("/Info", request())[:2] == (405, "MethodNotAllowed")
    assert shapes.refused("/Evaluate", request(), method="PUT")[0] == 405
    assert shapes.say("/Info?a=b") == (200, {"protocolVersion": 1.0, "models": ["Shapes"]})


# What it holds back


@pytest.mark.parametrize("chunked", [False, True], ids=["length-stated", "chunked"])
@pytest.mark.parametrize("size", [LIMIT + 1, 2 * LIMIT])
def test_a_request_that_is_too_large_is_refused(shapes, chunked, size):
    padded = json.dumps(request()).encode().ljust(size)
    body = iter([padded]) if chunked else padded  # of an iterator it does not know the length
    status, kind, message = shapes.refused("/Evaluate", body)
    assert (status, kind) == (413, "RequestTooLarge") and f"{LIMIT:,}" in message
    assert shapes.say("/Evaluate", json.dumps(request()).encode().ljust(LIMIT))[0] == 200


def test_a_request_that_never_ends_is_not_read_to_its_end(shapes):
    sent = 0
    with socket.create_connection((shapes.address.hostname, shapes.address.port), timeout=20) as raw:
        raw.sendall(b"POST /Evaluate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            while sent < 2**26:  # the system's own buffers take some
                raw.sendall(b"%x\r\n%b\r\n" % (2**16, bytes(2**16)))
                sent += 2**16


def test_the_default_limit_leaves_room_for_every_good_request():
    box = from_callable(lambda x: -x, inputs=[ArraySpec("x", (50_000,))], outputs=[ArraySpec("y", (50_000,))])
    with serving({"big": box}) as url, UmBridge(url) as client:
        x = np.full((1, 50_000), -1.2345678901234567e-300)
        np.testing.assert_array_equal(client(x), -x)
        assert Client(url).refused("/Evaluate", b" " * 10**7)[0] == 413
        body = {"name": "big", "input": x.tolist()}
        assert Client(url).say("/Evaluate", json.dumps(body, indent=8).encode())[0] == 200


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("path", ["/Info", "/ModelInfo", "/Evaluate", "/Gradient"])
def test_nothing_without_the_token(path):
    box, token = Cubes(), "s3cret-token"
    with serving(box, token=token) as url:
        client = Client(url)
        body = None if path == "/Info" else {"name": "Cubes", "input": [[1.0] * 10]}
        wrong = ["", token, f"Basic {token}", "Bearer", "Bearer ", f"Bearer {token}x", f"Bearer {token[:-1]}"]
        for given in wrong:
            assert client.refused(path, body, Authorization=given)[:2] == (401, "Unauthorized")
        assert client.refused(path, body)[0] == 401
        assert client.refused(path, b" " * 10**8 if body else None)[0] == 401  # before any of it is read
        assert box.ledger.rows_asked == 0
        assert client.say(path, body, Authorization=f"bearer {token}")[0] != 401
        with pytest.raises(ServerError, match="Unauthorized"):
            UmBridge(url, token="another")
        with UmBridge(url, token=token) as right:
            np.testing.assert_array_equal(right(np.full((2, 10), 3.0)), 27)


def test_a_page_in_a_browser_cannot_reach_the_box(shapes):
    assert shapes.refused("/Evaluate", request(), Origin="http://evil.example")[:2] == (403, "Forbidden")


def test_nothing_received_is_unpickled(shapes, tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for path in ("/Evaluate", "/InputSizes"):
        assert shapes.refused(path, pickle.dumps(Trap()))[0] == 400
    assert not (tmp_path / "sprung").exists()


def test_it_listens_at_the_loopback_address_alone():
    with serving(Cubes()) as url:
        port = urlsplit(url).port
        assert urlsplit(url).hostname == "127.0.0.1"
        # 127.0.0.2 is this machine too, and would be answered by a server that listens everywhere
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)


def test_elsewhere_without_a_token_is_warned_of():
    with pytest.warns(UserWarning, match="without a token anyone"):
        with serving(Cubes(), host="0.0.0.0"):
            pass
    with serving(Cubes(), host="0.0.0.0", token="t"):  # any warning is an error here
        pass


# How it works


def test_it_describes_its_model_while_it_evaluates():
    box = Waiting()
    with serving(box) as url, UmBridge(url) as client:
        caller = threading.Thread(target=client, args=(np.ones(1),))
        caller.start()
        assert box.entered.acquire(timeout=20)
        assert Client(url).say("/InputSizes", {"name": "Waiting"}) == (200, {"inputSizes": [1]})
        assert umbridge.supported_models(url) == ["Waiting"] and box.inside == 1
        box.go_on.set()
        caller.join()


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_as_many_evaluations_at_a_time_as_it_was_told(threads):
    box = Waiting()
    with serving(box, threads=threads) as url, UmBridge(url, connections=6) as client:
        answers: list[Any] = []
        x = np.arange(6.0)[:, None]
        caller = threading.Thread(target=lambda: answers.append(client(x)))
        caller.start()
        for _ in range(threads):
            assert box.entered.acquire(timeout=20)
        assert not box.entered.acquire(timeout=0.2)
        box.go_on.set()
        caller.join()
        np.testing.assert_array_equal(answers[0], 2 * x)
        assert box.most == threads


@pytest.mark.slow
def test_a_row_that_nobody_waits_for_is_not_started():
    box = Waiting()
    with serving(box) as url:
        with UmBridge(url, failures="keep", timeout=0.5, connections=2) as client:
            assert np.isnan(client(np.array([[1.0], [2.0]]))).all()  # one inside, one queued, both too late
        with UmBridge(url) as client:
            threading.Timer(0.3, box.go_on.set).start()
            assert client(np.array([[3.0]])) == 6
    assert len(box.rows) == 2 and box.rows[1] == 3


def test_our_own_errors_reach_the_client_by_their_names():
    with serving({"cubes": Budgeted(Cubes(), rows=2)}) as url:
        client, body = Client(url), {"name": "cubes", "input": [[1.0] * 10]}
        assert [client.say("/Evaluate", body)[0] for _ in range(2)] == [200, 200]
        status, kind, message = client.refused("/Evaluate", body)
        assert (status, kind) == (500, "BudgetError") and "2 of 2 are spent" in message


def test_the_reason_of_a_failed_row_is_told_under_keep_too():
    with serving(Shapes(failures="keep")) as url:
        status, kind, message = Client(url).refused("/Evaluate", request(input=[[0.1] * 6, [NINE]]))
        assert (status, kind) == (500, "EvaluationFailed") and "ValueError: nine" in message


def test_a_fault_of_a_box_is_an_error_for_its_client_and_a_traceback_here(caplog):
    class Broken(Cubes):
        def run_rows(self, inputs: Any) -> Any:
            raise ZeroDivisionError("a wrapper with a fault")

    with serving(Broken()) as url:
        for _ in range(2):  # and the server goes on
            found = Client(url).refused("/Evaluate", {"name": "Broken", "input": [[1.0] * 10]})
            assert found == (500, "InternalError", "ZeroDivisionError: a wrapper with a fault")
    assert "a wrapper with a fault" in caplog.text


def test_several_models_on_one_server_and_each_is_checked_against_its_own_specs():
    with serving({"cubes": Cubes(), "pair": Shapes()}) as url:
        with UmBridge(url, "cubes") as cubes, UmBridge(url, "pair") as pair:
            np.testing.assert_array_equal(cubes(np.full(10, 2.0)), 8)
            assert pair(np.zeros(6), np.ones(1))[1] == 0
        with pytest.raises(ConfigurationError, match=r"got None. It has \['cubes', 'pair'\]"):
            UmBridge(url)
        body = {"name": "pair", "input": [[1.0] * 10]}
        assert "expected 2 lists (field, factor)" in Client(url).refused("/Evaluate", body)[2]


@pytest.mark.slow
def test_clients_in_threads_get_their_own_answers():
    def work(place: int) -> None:
        with UmBridge(url) as own:
            x = np.random.default_rng(place).normal(size=(20, 10))
            right[place] = all(np.array_equal(client(x), x**3) for client in (own, shared))

    right: dict[int, bool] = {}
    with serving(Cubes(), threads=2) as url, UmBridge(url, connections=2) as shared:
        threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert right == dict.fromkeys(range(6), True)


# What a connection may cost


HEADERS = b"POST /Evaluate HTTP/1.1\r\nhost: x\r\n"
HALF = {"headers": HEADERS, "body": HEADERS + b"content-length: 1000\r\n\r\n{", "nothing": b""}


@contextmanager
def half_sent(url: str, count: int, text: bytes = HEADERS) -> Iterator[list[socket.socket]]:
    """Connections that have sent no more than this."""
    address = urlsplit(url)
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=20))
            for _ in range(count)
        ]
        for each in sockets:
            with suppress(ConnectionError):  # it may have been closed for a later one
                each.sendall(text)
        yield sockets


@contextmanager
def kept_connection(url: str) -> Iterator[http.client.HTTPConnection]:
    """One that has had two answers already."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        for _ in range(2):
            connection.request("POST", "/Evaluate", json.dumps({"name": "Cubes", "input": [[1.0] * 10]}))
            assert json.loads(connection.getresponse().read())["output"] == [[1.0] * 10]
        yield connection
    finally:
        connection.close()


def is_closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the other end closes it, waiting for a time."""
    connection.settimeout(seconds)
    try:
        return connection.recv(2**16) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("text", HALF.values(), ids=HALF)
def test_half_sent_requests_do_not_hold_the_service(text):
    with serving(Cubes(), connections=20) as url, half_sent(url, 50, text) as waiting:
        with UmBridge(url) as client:  # is served although they are there, and before they are given up
            x = np.arange(30.0).reshape(3, 10)
            np.testing.assert_array_equal(client(x), x**3)
        closed = [is_closed(each, 0.05) for each in waiting]
        assert closed[:30] == [True] * 30 and sum(closed) <= 31  # those that waited longest


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("text", HALF.values(), ids=HALF)
def test_a_request_that_does_not_come_in_is_cut_off(text):
    with serving(Cubes(), request_seconds=0.4) as url, half_sent(url, 2, text) as waiting:
        assert all(is_closed(each, 20) for each in waiting)


@pytest.mark.slow
@pytest.mark.parametrize("text", [HALF["headers"], HALF["body"]], ids=["headers", "body"])
def test_the_time_runs_for_a_kept_connection_s_next_request_and_not_while_it_is_idle(text):
    with serving(Cubes(), request_seconds=0.4) as url, kept_connection(url) as kept:
        assert not is_closed(kept.sock, 0.8)
        kept.sock.sendall(text)
        assert is_closed(kept.sock, 20)


def test_a_trickle_of_headers_has_no_more_time():
    with serving(Cubes(), request_seconds=0.4) as url, half_sent(url, 1) as (slow,):
        with pytest.raises(ConnectionError):
            for _ in range(400):
                slow.sendall(b"x: y\r\n")
                threading.Event().wait(0.05)


def test_headers_have_a_limit(shapes):
    url = f"http://{shapes.address.netloc}"
    assert shapes.say("/Info", **{"x-long": "y" * 2**15})[0] == 200
    with half_sent(url, 1, b"GET /Info HTTP/1.1\r\nx: " + b"y" * (2**16 + 2**10)) as (long,):
        assert long.recv(100).startswith(b"HTTP/1.1 400")
    for piece in (b"x: y\r\n" * 1000, b"y" * 6000):  # many of them, and one that never ends
        sent = 0
        with half_sent(url, 1, b"GET /Info HTTP/1.1\r\nx: ") as (endless,), pytest.raises(ConnectionError):
            while sent < 2**26:  # the system's own buffers take some
                endless.sendall(piece)
                sent += len(piece)
    assert shapes.say("/Info")[0] == 200


def test_more_clients_at_work_than_connections_are_told():
    box = Waiting()
    with serving(box, connections=2, threads=2) as url:
        answers: list[Any] = []
        say = partial(Client(url).say, "/Evaluate", {"name": "Waiting", "input": [[1.0]]})
        callers = [threading.Thread(target=lambda: answers.append(say())) for _ in range(2)]
        for caller in callers:
            caller.start()
        for _ in callers:
            assert box.entered.acquire(timeout=20)
        with pytest.raises(BusyError, match=r"Busy.*expected at most 2 connections") as caught:
            UmBridge(url)
        assert caught.value.after == 1.0
        box.go_on.set()
        for caller in callers:
            caller.join()
        assert answers == [(200, {"output": [[2.0]]})] * 2
        UmBridge(url).close()


# How it ends


@pytest.mark.parametrize(
    "which, code, last",
    [(signal.SIGTERM, -15, ""), pytest.param(signal.SIGINT, 0, "ended\n", marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_a_stopped_server_answers_what_it_has_taken_on(which, code, last):
    with served_elsewhere("Waiting(seconds=1.0)") as (process, url):
        assert urlsplit(url).hostname == "127.0.0.1" and process.stdout is not None
        with UmBridge(url, connections=2) as client:
            answers: list[Any] = []
            caller = threading.Thread(target=lambda: answers.append(client(np.ones((2, 1)))))
            caller.start()
            threading.Event().wait(0.5)  # one row is inside, one waits for its turn
            process.send_signal(which)
            caller.join()
            np.testing.assert_array_equal(answers[0], np.full((2, 1), 2.0))
        assert process.wait(20) == code
        assert process.stdout.read() == last
        with pytest.raises(UnreachableError):
            UmBridge(url)


@pytest.mark.slow
def test_a_second_interrupt_ends_it_at_once():
    with served_elsewhere("Waiting(seconds=600.0)") as (process, url):
        with UmBridge(url, failures="keep") as client:
            caller = threading.Thread(target=client, args=(np.ones(1),))
            caller.start()
            threading.Event().wait(0.5)
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):  # it waits for the answer
                process.wait(0.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == -signal.SIGINT
            caller.join()


def test_after_serving_no_thread_is_left_and_the_port_is_free():
    before = set(threading.enumerate())
    with serving(Cubes()) as url, UmBridge(url, connections=3) as client:
        client(np.ones((5, 10)))
    assert set(threading.enumerate()) <= before
    with serving(Cubes(), port=urlsplit(url).port) as again:
        assert again == url


# Settings


@suppress_type_checks
def made(boxes: Any = None, **settings: Any) -> Any:
    with serving(Cubes() if boxes is None else boxes, **settings):
        pytest.fail("it serves")


def twice_the_port() -> Any:
    with serving(Cubes()) as url:
        serve(Cubes(), port=urlsplit(url).port)


ERRORS = [
    ErrorCase(
        "box", lambda: made(np.sin), ConfigurationError, ["BlackBoxFunction", "ufunc", "from_callable"]
    ),
    ErrorCase("name", lambda: made({"": Cubes()}), ConfigurationError, ["boxes", "['']"]),
    ErrorCase("none", lambda: made({}), ConfigurationError, ["boxes", "got []"]),
    ErrorCase("token-empty", lambda: made(token=""), ConfigurationError, ["token", "token_urlsafe"]),
    ErrorCase("token-space", lambda: made(token="a b"), ConfigurationError, ["token", "letters"]),
    ErrorCase("connections", lambda: made(connections=0), ConfigurationError, ["connections", ">= 1"]),
    ErrorCase("seconds", lambda: made(request_seconds=-1), ConfigurationError, ["request_seconds", "got -1"]),
    ErrorCase("threads", lambda: made(threads=0), ConfigurationError, ["threads", ">= 1", "got 0"]),
    ErrorCase("port-taken", twice_the_port, ConfigurationError, ["free port", "0 finds"]),
    ErrorCase("port-range", lambda: serve(Cubes(), port=70_000), ConfigurationError, ["port 70000"]),
    ErrorCase("host", lambda: serve(Cubes(), host="192.0.2.1"), ConfigurationError, ["'192.0.2.1'"]),
]


@error_table(ERRORS)
def test_refused(case):
    case.check()


@pytest.mark.parametrize("package", ["uvicorn", "starlette", "orjson"])
def test_a_missing_server_names_its_remedy(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*pip install 'blackbox-coupling\[umbridge\]'"):
        serve(Cubes(), port=0)
