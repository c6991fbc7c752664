"""The web side of `serve`: routes by Starlette, HTTP by uvicorn and h11, and the limits that they leave open.

Measured, one kept connection, d = 10: uvicorn's two parsers take .35 (httptools) and .40 ms of CPU a call,
hypercorn .55. Of the first two h11 limits the size of headers; httptools has no such limit, and 800 MB of
headers took 800 MB. Only hypercorn times headers, by the same setting as idle connections, which training
needs to be kept for longer than headers may take.
"""

from __future__ import annotations

import asyncio
import hmac
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from blackbox.adapters.um_bridge.messages import VERSION, from_text, to_text
from blackbox.adapters.um_bridge.served_model import RefusedError, ServedModel

DESCRIBE = ("/ModelInfo", "/InputSizes", "/OutputSizes")
PRODUCTS = ("/ApplyJacobian", "/ApplyHessian")
MAX_HEADER_BYTES = 2**16
INCOMPLETE = (h11.IDLE, h11.SEND_BODY)  # nothing of a request is here, or only a part
KEPT_SECONDS = 75  # an idle connection; shorter than most training steps would mean a new one for each


class Application:
    """The answers on the protocol's paths; `asgi` is the application. `serve` explains the settings."""

    def __init__(self, models: Mapping[str, ServedModel], token: str | None, threads: int) -> None:
        self.models = models
        self._token = None if token is None else token.encode()
        self._limit = max(model.longest_request for model in models.values())
        self._free = asyncio.Semaphore(threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="um-bridge")
        self.asgi = Starlette(
            routes=[
                Route("/Evaluate", self._evaluate, methods=["POST"]),  # the first is found the soonest
                Route("/Gradient", self._evaluate, methods=["POST"]),
                Route("/Info", self._info, methods=["GET"]),
                *(Route(path, self._describe, methods=["POST"]) for path in DESCRIBE),
                *(Route(path, self._evaluate, methods=["POST"]) for path in PRODUCTS),
            ],
            exception_handlers={
                RefusedError: _refused,
                HTTPException: _not_found,
                ClientDisconnect: _gone,
                Exception: _failed,
            },
        )

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def _info(self, request: Request) -> Response:
        self._admit(request)
        return _json({"protocolVersion": VERSION, "models": list(self.models)})

    async def _describe(self, request: Request) -> Response:
        self._admit(request)
        model, _ = self._read(await self._text(request))
        return _json(model.describe(request.scope["path"]))

    async def _evaluate(self, request: Request) -> Response:
        self._admit(request)
        text = await self._text(request)
        path = request.scope["path"]

        def work() -> tuple[bytes, dict[str, str]]:
            model, message = self._read(text)
            if path == "/Evaluate":
                return to_text(model.evaluate(message)), {}
            answer = model.gradient(message) if path == "/Gradient" else model.product(path, message)
            return to_text(answer), model.headers

        queued = self._free.locked()
        async with self._free:
            if queued and await request.is_disconnected():  # nobody waits for its answer any more
                raise ClientDisconnect
            answer, headers = await asyncio.wrap_future(self._threads.submit(work))
            return Response(answer, headers=headers, media_type="application/json")

    def _admit(self, request: Request) -> None:
        if self._token is not None:
            scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
            # Compared in constant time: an early end would tell how much of a guess is right.
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                credentials.strip().encode(), self._token
            ):
                raise RefusedError(401, "Unauthorized", "expected this server's bearer token.")
        if "origin" in request.headers:
            # Any page in a browser can post to the browser's own machine; programs send no such header.
            raise RefusedError(403, "Forbidden", "expected a program, got a page in a browser.")

    async def _text(self, request: Request) -> bytes:
        """The request's body; of one that is too long no more than the limit is kept."""
        text, size = bytearray(), 0
        async for piece in request.stream():
            size += len(piece)
            if size <= self._limit:
                text += piece
            elif size > 2 * self._limit:  # some is read all the same: who is still sending sees no answer
                break
        if size > self._limit:
            raise RefusedError(413, "RequestTooLarge", f"expected at most {self._limit:,} bytes.")
        return bytes(text)

    def _read(self, text: bytes) -> tuple[ServedModel, dict[str, Any]]:
        """The model that a message is for, and the message."""
        try:
            message = from_text(text)
        except ValueError as error:
            raise RefusedError(400, "InvalidInput", f"expected JSON, got none: {error}.") from None
        if not isinstance(message, dict):
            raise RefusedError(400, "InvalidInput", "expected a JSON object. Send one with name and input.")
        name = message.get("name")
        if not isinstance(name, str) or name not in self.models:
            raise RefusedError(400, "ModelNotFound", f"name: expected one of {list(self.models)}.")
        if message.get("config"):  # a setting that is not obeyed must not pass for one that is
            raise RefusedError(400, "InvalidInput", "expected an empty config. This model has no settings.")
        return self.models[name], message


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with a limit of the time that a request may take to come in, and of connections.

    uvicorn waits for headers without end, and its `limit_concurrency` counts connections without a request as
    busy: 900 half-sent requests stopped all service. Here such a connection is closed when its time is over.
    It is closed earlier, the one that has waited longest first, when there are too many. Where all of them
    have sent a request, the new one is refused.
    """

    def __init__(self, *arguments: Any, seconds: float, most: int, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._seconds, self._most = seconds, most
        self._late: asyncio.TimerHandle | None = None
        self._since = 0.0

    def connection_made(self, transport: Any) -> None:
        """Close another connection if there are too many."""
        super().connection_made(transport)
        self._time()
        connections: list[Any] = [
            connection for connection in self.connections if not connection.transport.is_closing()
        ]
        waiting = [
            connection
            for connection in connections
            if connection is not self and connection.conn.their_state in INCOMPLETE
        ]
        if len(connections) > self._most and waiting:
            min(waiting, key=lambda connection: connection._since).transport.abort()
        elif len(connections) > self._most:
            self.app: Any = _error(503, "Busy", f"expected at most {self._most} connections at a time.")

    def data_received(self, data: bytes) -> None:
        """Time a request from its first byte to its last."""
        super().data_received(data)
        if self.conn.their_state not in INCOMPLETE:
            self._stop()
        elif self._late is None:
            self._time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock of the request."""
        self._stop()
        super().connection_lost(exc)

    def _time(self) -> None:
        self._since = self.loop.time()
        self._late = self.loop.call_later(self._seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """Ends at the first Ctrl-C or SIGTERM when requests are answered; a second Ctrl-C kills the process."""

    def __init__(self, application: Application, connections: int, request_seconds: float) -> None:
        protocol: Any = partial(LimitedProtocol, seconds=request_seconds, most=connections)
        config = uvicorn.Config(
            application.asgi,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEPT_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Handle a signal: a second one is left to the system."""
        super().handle_exit(sig, frame)
        # uvicorn's own second one would end the server and then wait for the threads of evaluations.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _json(message: object) -> Response:
    return Response(to_text(message), media_type="application/json")


# Coroutines all: Starlette would give each plain function a thread.


async def _refused(_: Request, error: Any) -> Response:
    return _error(error.status, error.kind, str(error))


async def _not_found(_: Request, error: Any) -> Response:
    return _error(error.status_code, error.detail.replace(" ", ""), "expected what UM-Bridge 1.0 has.")


async def _gone(*_: object) -> Response:
    return Response(status_code=499)  # which nobody will read


async def _failed(_: Request, error: Exception) -> Response:  # uvicorn logs it
    return _error(500, "InternalError", f"{type(error).__name__}: {error}")


def _error(status: int, kind: str, message: str) -> Response:
    text = to_text({"error": {"type": kind, "message": message}})
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if status in (413, 503):
        headers["connection"] = "close"  # or what is left of the request would still be read
    if status == 503:
        headers["retry-after"] = "1"
    return Response(text, status, headers, "application/json")
