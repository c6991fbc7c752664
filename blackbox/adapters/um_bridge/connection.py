"""A connection to one server, over urllib3: requests, answers, and the errors between them."""

from __future__ import annotations

import http.client
import io
import math
import os
import socket
from contextlib import suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any

from blackbox.adapters.um_bridge.messages import EXTRA, from_text, to_text
from blackbox.ending import ended_by, stopped
from blackbox.errors import BlackBoxError, TryAgain
from blackbox.extras import import_extra

CONNECT_SECONDS = 10.0
SLACK = 0.01  # seconds by which a clock may be early
EXCERPT = 200  # characters of what a server said, in a message
PIECE = 2**18


class ServerError(BlackBoxError, RuntimeError):
    """A server answered with an error, or with something that is no answer."""


class UnreachableError(ServerError, ConnectionError):
    """No connection could be made, so the server was not asked."""


class NoAnswerError(ServerError, TimeoutError):
    """The answer was not there in time; the server may still be at work on it."""


class BusyError(ServerError, TryAgain):
    """The server answered that it has too much to do (429 or 503); `after` has the seconds it asks for."""


class _Request:
    """A request that waits for its answer, with its deadline and its socket, so that it can be given up.

    Args:
        seconds: the seconds for the answer, from when the request has a connection; None for no limit.

    Attributes:
        end: the deadline, of `time.monotonic`; infinite for none.
    """

    def __init__(self, seconds: float | None) -> None:
        self.end = math.inf
        self._seconds = seconds
        self._socket: socket.socket | None = None

    def begin(self) -> None:
        """Start the clock; before, others of this process may have the connection, for as long as theirs."""
        if self._seconds is not None:
            self.end, self._seconds = monotonic() + self._seconds, None

    def waits_at(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.settimeout(None if self.end == math.inf else max(1e-3, self.end - monotonic()))
        if stopped():
            self.give_up()

    def give_up(self) -> None:
        """Give up from another thread: reading ends, as if the server had closed the connection."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


_request: ContextVar[_Request] = ContextVar("blackbox.adapters.um_bridge.request")


class _Bounded(io.RawIOBase):
    """A socket's data up to one deadline for all of it: a timeout of its own begins anew with each byte."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, end: float) -> None:
        self._raw, self._socket, self._end = raw, sock, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._end < math.inf:
            seconds_left = self._end - monotonic()
            if seconds_left <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(seconds_left)
        return self._raw.readinto(buffer)  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose headers and body have to be there in time together."""

    def __init__(self, sock: socket.socket, *arguments: Any, **settings: Any) -> None:
        super().__init__(sock, *arguments, **settings)
        raw: Any = self.fp.detach()  # pyright: ignore[reportAttributeAccessIssue]
        request = _request.get()
        request.waits_at(sock)
        self.fp = io.BufferedReader(_Bounded(raw, sock, request.end))


def _with_deadline(kind: Any) -> Any:
    """A class of connections whose requests are sent, and answered, before their deadline.

    urllib3 allows a request as long as a connection may take: one that is larger than the buffers would be
    given up where a server is at work on another, and reads it later.
    """

    class Deadlined(kind):
        response_class = _Response

        def connect(self) -> None:
            _request.get().begin()
            super().connect()

        def send(self, data: Any) -> None:
            _request.get().begin()
            if self.sock is None:
                self.connect()
            _request.get().waits_at(self.sock)  # pyright: ignore[reportArgumentType]
            super().send(data)

    return Deadlined


class Connection:
    """Asks one server, over connections that are kept. A copy in another process opens its own.

    Redirections are not followed, so a token goes to the server that it is for and no other.

    Args:
        url: the address of the server, "http://host:port" and any path in front of the protocol's own.
        timeout: seconds for an answer; None waits as long as it takes.
        token: the bearer token to send; None for none.
        most: the most requests at a time; further threads wait for their turn.
    """

    def __init__(self, url: str, timeout: float | None, token: str | None, most: int) -> None:
        self._settings = (url, timeout, token, most)
        self.url, self._timeout, self._token, self._most = self._settings
        self._http = import_extra("UmBridge", "urllib3", EXTRA)
        import_extra("UmBridge", "orjson", EXTRA)  # missed now, not at the first request
        self._prefix = (self._http.util.parse_url(url).path or "").rstrip("/")
        self._open()

    def __reduce__(self) -> tuple[Any, ...]:
        """The settings, the token among them."""
        return Connection, self._settings

    def ask(self, path: str, message: object = None, max_bytes: int = 2**20) -> dict[str, Any]:
        """POST a message, or GET where there is none, and read the answer.

        Args:
            path: a path of the protocol, such as "/Evaluate".
            message: the message, as `to_text` takes it.
            max_bytes: the longest answer that is read.

        Raises:
            UnreachableError, NoAnswerError, BusyError, ServerError: the message names the server.
        """
        if self._process != os.getpid():
            self._open()  # after a fork the parent's sockets are not ours: answers would get mixed up
        response, text = self._send(path, None if message is None else to_text(message), max_bytes)
        where, status = f"{self.url}{path}", response.status
        if status in (429, 503):
            seconds = response.headers.get("Retry-After", "")  # or a date, which is left alone
            raise BusyError(
                f"{where}: expected an answer, got status {status} and {_excerpt(text)!r}. Ask again later.",
                after=float(seconds) if seconds.isdecimal() else 0.0,
            )
        try:
            answer = from_text(text)
        except ValueError:
            raise ServerError(
                f"{where}: expected JSON, got status {status} and {_excerpt(text)!r}. "
                "See the server's own log; where it says nan or inf, the row failed there."
            ) from None
        if isinstance(answer, dict) and "error" in answer:
            raise ServerError(f"{where}: expected an answer, got an error: {_error(answer['error'])}")
        if status != 200 or not isinstance(answer, dict):
            raise ServerError(
                f"{where}: expected status 200 and an object, got status {status} and {_excerpt(text)!r}. "
                "See the server's own log."
            )
        return answer

    def close(self) -> None:
        """Close what is kept; a later request opens it again."""
        self._pool.close()
        self._open()

    def _open(self) -> None:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        # Keep-alive probes: a server that is switched off during an hour's evaluation is noticed.
        probes = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connect = CONNECT_SECONDS if self._timeout is None else min(self._timeout, CONNECT_SECONDS)
        self._pool = self._http.connection_from_url(
            self.url,
            maxsize=self._most,
            block=True,
            retries=False,
            headers=headers,
            socket_options=[*self._http.connection.HTTPConnection.default_socket_options, probes],
            timeout=self._http.Timeout(connect=connect, read=self._timeout),
        )
        self._pool.ConnectionCls = _with_deadline(self._pool.ConnectionCls)
        self._process = os.getpid()

    def _send(self, path: str, body: bytes | None, max_bytes: int) -> tuple[Any, bytes]:
        errors = self._http.exceptions
        method, text = "GET" if body is None else "POST", bytearray()
        request = _Request(self._timeout)
        token = _request.set(request)
        try:
            with ended_by(request.give_up):
                response = self._pool.urlopen(
                    method, self._prefix + path, body=body, redirect=False, preload_content=False
                )
                try:
                    while piece := response.read1(PIECE):
                        text += piece
                        if len(text) > max_bytes:
                            raise ServerError(
                                f"{self.url}{path}: expected an answer of at most {max_bytes:,} bytes, got "
                                "more. Look at what the server sends."
                            )
                except BaseException:
                    response.close()  # what is left of the answer must not be taken for the next one
                    raise
                finally:
                    response.release_conn()
        except (errors.NewConnectionError, errors.ConnectTimeoutError, errors.SSLError) as error:
            raise UnreachableError(
                f"{self.url}: expected a server, found none ({_reason(error)}). "
                "Start it, or mend the address."
            ) from None
        except errors.HTTPError as error:
            late = isinstance(error, errors.TimeoutError) or any(
                isinstance(part, TimeoutError) for part in error.args
            )
            if late and monotonic() > request.end - SLACK:  # before, the system has given the connection up
                raise self._late(path) from None
            raise ServerError(
                f"{self.url}{path}: expected an answer, lost the connection ({_reason(error)}). "
                "Look whether the server is still running."
            ) from None
        finally:
            _request.reset(token)
        return response, bytes(text)

    def _late(self, path: str) -> NoAnswerError:
        return NoAnswerError(
            f"{self.url}{path}: expected an answer within {self._timeout:g} s, got none. "
            "Raise timeout if the model takes longer."
        )


def _reason(error: Exception) -> str:
    """Return the operating system's message, without the library's wrapping."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return str(error) or type(error).__name__


def _error(error: object) -> str:
    if isinstance(error, dict):
        error = f"{error.get('type', 'without a type')}: {error.get('message', 'no message')}"
    return _excerpt(str(error).encode())


def _excerpt(text: bytes) -> str:
    excerpt = " ".join(text[: 4 * EXCERPT].decode("utf-8", "replace").split())
    return excerpt if len(excerpt) <= EXCERPT else excerpt[:EXCERPT] + "..."
