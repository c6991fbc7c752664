"""The server: what it refuses, what it holds back, how it works beside an evaluation, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import umbridge
from typeguard import suppress_type_checks

from blackbox import ArraySpec, Budgeted, ConfigurationError
from blackbox.adapters import from_callable
from blackbox.adapters.um_bridge import ServerError, UmBridge, UnreachableError, application, serve, serving
from blackbox.extras import MissingExtraError
from tests.blackbox.adapters.um_bridge.boxes import Cubes, Shapes, Typed, Waiting
from tests.blackbox.adapters.um_bridge.servers import served_elsewhere
from tests.blackbox.boxes import ErrorCase, error_table

LIMIT = 4096


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
    with serving(Shapes(), derivatives=1e-4, max_request_bytes=LIMIT) as url:
        yield Client(url)


def request(**changes: Any) -> dict[str, Any]:
    """A good one, changed."""
    good = {
        "name": "Shapes",
        "input": [[0.1] * 6, [2]],
        "outWrt": 0,
        "inWrt": 0,
        "sens": [1] * 6,
        "config": {},
    }
    return {**good, "vec": [1.0] * 6, **changes}


# What it refuses


@pytest.mark.parametrize("path", ["/Evaluate", "/Gradient", "/ApplyJacobian"])
def test_a_good_request_is_answered(shapes, path):
    assert shapes.say(path, request())[0] == 200
    without = {key: value for key, value in request().items() if key != "config"}
    assert shapes.say(path, without)[0] == 200


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
        ("/Gradient", {"outWrt": 2}, "InvalidInput"),
        ("/Gradient", {"outWrt": -1}, "InvalidInput"),
        ("/Gradient", {"inWrt": True}, "InvalidInput"),
        ("/Gradient", {"inWrt": "0"}, "InvalidInput"),
        ("/Gradient", {"sens": [1.0] * 5}, "InvalidInput"),
        ("/Gradient", {"sens": "abcdef"}, "InvalidInput"),
        ("/ApplyJacobian", {"vec": [1.0]}, "InvalidInput"),
        ("/ApplyJacobian", {"vec": None}, "InvalidInput"),
        ("/ApplyHessian", {}, "UnsupportedFeature"),
    ],
)
def test_a_wrong_request_says_which_part(shapes, path, changes, kind):
    status, found, message = shapes.refused(path, request(**changes))
    assert (status, found) == (400, kind)
    assert all(key in message for key in changes if key in ("outWrt", "inWrt", "sens", "vec", "config"))


def test_only_the_paths_of_the_protocol(shapes):
    for path in ("/", "/evaluate", "/../../etc/passwd", "/Evaluate/..%2f", "/EvaluateShMem"):
        assert shapes.refused(path, request())[:2] == (404, "NotFound")
    assert shapes.refused("/Evaluate")[:2] == (405, "MethodNotAllowed")
    assert shapes.refused("/Info", request())[:2] == (405, "MethodNotAllowed")
    assert shapes.refused("/Evaluate", request(), method="PUT")[0] == 405
    assert shapes.say("/Info?a=b") == (200, {"protocolVersion": 1.0, "models": ["Shapes"]})


def test_derivatives_only_when_asked_for_and_where_there_are_some():
    with serving(Shapes()) as url:
        assert not umbridge.HTTPModel(url, "Shapes").supports_gradient()
        assert Client(url).refused("/Gradient", request())[:2] == (400, "UnsupportedFeature")
    with serving(Typed(), derivatives=1e-3) as url:
        body = {"name": "Typed", "input": [[1, 2], [1], [1, 2], [1]], "outWrt": 0, "inWrt": 1, "sens": [1, 1]}
        status, kind, message = Client(url).refused("/Gradient", body)
        assert (status, kind) == (400, "UnsupportedFeature") and "'whole'" in message
        # single precision cannot move 1e6 by 1e-3 / 2, and its steps are what is divided by
        body |= {"inWrt": 0, "input": [[1e6, 1], [1], [1, 2], [1]]}
        status, kind, message = Client(url).refused("/Gradient", body)
        assert status == 400 and "'single'" in message and "Raise mu" in message
        body["input"][0] = [1000.0, 1]
        assert Client(url).say("/Gradient", body)[1]["output"] == [1.0, 1.0]


# What it holds back


@pytest.mark.parametrize("chunked", [False, True], ids=["length-stated", "chunked"])
@pytest.mark.parametrize("size", [LIMIT + 1, 2 * LIMIT, 3 * LIMIT])
def test_a_request_that_is_too_large_is_refused(shapes, chunked, size):
    padded = json.dumps(request()).encode().ljust(size)
    body = iter([padded]) if chunked else padded  # of an iterator it does not know the length
    status, kind, message = shapes.refused("/Evaluate", body)
    assert (status, kind) == (413, "RequestTooLarge") and "4,096" in message
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
    with serving(box, name="big", derivatives=1.0) as url, UmBridge(url) as client:
        x = np.full((1, 50_000), -1.2345678901234567e-300)
        np.testing.assert_array_equal(client(x), -x)
        assert Client(url).refused("/Evaluate", b" " * 10**7)[0] == 413
        body = {"name": "big", "input": x.tolist(), "outWrt": 0, "inWrt": 0, "vec": x[0].tolist()}
        assert Client(url).say("/ApplyJacobian", json.dumps(body, indent=8).encode())[0] == 200


@pytest.mark.parametrize("path", ["/Info", "/ModelInfo", "/Evaluate", "/Gradient", "/nowhere"])
def test_nothing_without_the_token(path):
    box, token = Cubes(), "s3cret-token"
    with serving(box, token=token, derivatives=1e-3) as url:
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


@pytest.mark.parametrize("threads", [1, 3])
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
    with serving(Budgeted(Cubes(), rows=2), name="cubes") as url:
        client, body = Client(url), {"name": "cubes", "input": [[1.0] * 10]}
        assert [client.say("/Evaluate", body)[0] for _ in range(2)] == [200, 200]
        status, kind, message = client.refused("/Evaluate", body)
        assert (status, kind) == (500, "BudgetError") and "2 of 2 are spent" in message


def test_a_vector_of_very_unequal_numbers_is_no_obstacle():
    x, vec = np.arange(1.0, 11), 10.0 ** np.arange(5, -25, -3)
    body = {"name": "Cubes", "input": [x.tolist()], "outWrt": 0, "inWrt": 0, "vec": vec.tolist()}
    with serving(Cubes(), derivatives=1e-4) as url:
        found = Client(url).say("/ApplyJacobian", body)[1]["output"]
    # largest first, the error of rounding is eps x^3 / mu times the largest of vec
    np.testing.assert_allclose(found, 3 * x**2 * vec, rtol=1e-7, atol=2.3e-16 * 1e3 / 1e-4 * vec[0])


def test_gradients_in_blocks_are_the_same(monkeypatch):
    from blackbox.adapters.um_bridge import finite_differences

    body = {"name": "Cubes", "input": [list(range(10))], "outWrt": 0, "inWrt": 0, "sens": [1.0] * 10}
    box = Cubes()
    with serving(box, derivatives=1e-3) as url:
        whole = Client(url).say("/Gradient", body)[1]["output"]
        monkeypatch.setattr(finite_differences, "NUMBERS_PER_CALL", 60)  # three coordinates a call
        assert Client(url).say("/Gradient", body)[1]["output"] == whole
    assert box.ledger.calls == 1 + 4
    # (x + mu)^3 - (x - mu)^3 over 2 mu is 3 x^2 + mu^2
    np.testing.assert_allclose(whole, 3.0 * np.arange(10) ** 2 + 1e-6, atol=1e-9)


# How it ends


@pytest.mark.parametrize("which, code, last", [(signal.SIGINT, 0, "ended\n"), (signal.SIGTERM, -15, "")])
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


def test_after_serving_no_thread_is_left_and_the_port_is_free():
    before = set(threading.enumerate())
    with serving(Cubes()) as url, UmBridge(url, connections=3) as client:
        client(np.ones((5, 10)))
    assert set(threading.enumerate()) <= before
    with serving(Cubes(), port=urlsplit(url).port) as again:
        assert again == url


# Settings


@suppress_type_checks
def made(box: Any = None, **settings: Any) -> Any:
    return application(Cubes() if box is None else box, **settings)


def twice_the_port() -> Any:
    with serving(Cubes()) as url:
        serve(Cubes(), port=urlsplit(url).port)


ERRORS = [
    ErrorCase(
        "box", lambda: made(np.sin), ConfigurationError, ["BlackBoxFunction", "ufunc", "from_callable"]
    ),
    ErrorCase("name", lambda: made(name=""), ConfigurationError, ["name", "got ''"]),
    ErrorCase("token-empty", lambda: made(token=""), ConfigurationError, ["token", "token_urlsafe"]),
    ErrorCase("token-space", lambda: made(token="a b"), ConfigurationError, ["token", "letters"]),
    ErrorCase("mu", lambda: made(derivatives=0), ConfigurationError, ["derivatives", "mu > 0", "got 0"]),
    ErrorCase("mu-nan", lambda: made(derivatives=float("nan")), ConfigurationError, ["mu > 0", "nan"]),
    ErrorCase("bytes", lambda: made(max_request_bytes=0), ConfigurationError, ["max_request_bytes", ">= 1"]),
    ErrorCase("threads", lambda: made(threads=0), ConfigurationError, ["threads", ">= 1", "got 0"]),
    ErrorCase("port-taken", twice_the_port, ConfigurationError, ["free port", "0 finds"]),
    ErrorCase("port-range", lambda: serve(Cubes(), port=70_000), ConfigurationError, ["port 70000"]),
    ErrorCase("host", lambda: serve(Cubes(), host="192.0.2.1"), ConfigurationError, ["'192.0.2.1'"]),
]


@error_table(ERRORS)
def test_refused(case):
    case.check()


def test_a_missing_server_names_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"uvicorn.*pip install 'blackbox-coupling\[umbridge\]'"):
        serve(Cubes(), port=0)
