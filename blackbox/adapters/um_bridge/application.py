"""`application`: a black box as an ASGI application that speaks UM-Bridge 1.0."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from blackbox.adapters.um_bridge.model import RefusedError, ServedModel
from blackbox.adapters.um_bridge.protocol import from_text, to_text
from blackbox.adapters.um_bridge.settings import check_token
from blackbox.errors import ConfigurationError
from blackbox.function import BlackBoxFunction

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

UNWATCHED_SECONDS = 0.1  # quick answers are spared the cost of looking whether the client is still there
DESCRIBE = ("/ModelInfo", "/InputSizes", "/OutputSizes")
COMPUTE = ("/Evaluate", "/Gradient", "/ApplyJacobian", "/ApplyHessian")


def application(
    box: BlackBoxFunction,
    *,
    name: str | None = None,
    token: str | None = None,
    max_request_bytes: int | None = None,
    derivatives: float | None = None,
    threads: int = 1,
) -> Application:
    """A black box as an ASGI application, for `serve` or any ASGI server.

    A request is one row. Each input and output is a vector: its spec's shape, flattened in C order.
    Answers are valid JSON always; a row that failed or gave NaN, for which JSON has no word, is answered
    with an error, and our client reads that as a failed row. Evaluations run in threads of their own, so
    the server describes its model meanwhile; one that nobody waits for any more is not started. Pages in a
    browser, which could otherwise reach servers on their reader's machine, are refused.

    Args:
        box: the black box.
        name: of the model; None for the name of the box's class.
        token: requests must bear it ("Authorization: Bearer ..."); None to ask for none.
        max_request_bytes: what is longer is refused before it is read; None for what the box's
            specs can need.
        derivatives: the smoothing parameter mu, in the inputs' units, by which `/Gradient` and
            `/ApplyJacobian` are computed with central differences; None to serve none.
        threads: evaluations at a time. More than one only for a box that may be called from several
            threads at once.

    Raises:
        ConfigurationError, DefinitionError: a setting makes no sense, or the box is not complete.
    """
    check_token("serve", token)
    model = ServedModel(box, type(box).__name__ if name is None else name, derivatives)
    limit = model.longest_request if max_request_bytes is None else max_request_bytes
    for setting, value in (("max_request_bytes", limit), ("threads", threads)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(
                f"serve, {setting}: expected a whole number >= 1, got {value!r}. Leave it out."
            )
    return Application(model, token, limit, threads)


class Application:
    """The ASGI application; made by `application`, which explains its settings."""

    def __init__(self, model: ServedModel, token: str | None, max_request_bytes: int, threads: int) -> None:
        self.model = model
        self.max_request_bytes = max_request_bytes
        self._token = None if token is None else token.encode()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"serve-{model.name}")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, or the server's start and stop."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"UM-Bridge: expected a request by http, got {scope['type']}.")
        try:
            status, body = await self._answer(scope, receive)
        except RefusedError as error:
            status = error.status
            body = to_text({"error": {"type": error.kind, "message": str(error)}})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 413:
            headers.append((b"connection", b"close"))  # or what is left of the request would still be read
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Message, receive: Receive) -> tuple[int, bytes]:
        headers = dict(scope["headers"])
        self._admit(headers)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        allowed = "GET" if path == "/Info" else "POST"
        if path != "/Info" and path not in DESCRIBE + COMPUTE:
            raise RefusedError(404, "NotFound", "expected one of the paths of UM-Bridge 1.0.")
        if scope["method"] != allowed:
            raise RefusedError(405, "MethodNotAllowed", f"{path}: expected {allowed}.")
        if path == "/Info":
            return 200, to_text(self.model.info())
        text = await self._body(headers, receive)
        if path in DESCRIBE:
            return 200, to_text(self.model.describe(path, _parsed(text)))
        answer = asyncio.wrap_future(self._threads.submit(self._compute, path, text))
        del text
        await asyncio.wait({answer}, timeout=UNWATCHED_SECONDS)
        if not answer.done():
            await _while_awaited(answer, receive)
        return 200, answer.result()

    def _admit(self, headers: dict[bytes, bytes]) -> None:
        if self._token is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # Compared in constant time: an early end would tell how much of a guess is right.
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                raise RefusedError(401, "Unauthorized", "expected this server's bearer token.")
        if b"origin" in headers:
            # Any page in a browser can post to the browser's own machine; programs send no such header.
            raise RefusedError(403, "Forbidden", "expected a program, got a page in a browser.")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The request's body; one that is too long is not kept, and no more than twice the limit is read."""
        limit = self.max_request_bytes
        length = headers.get(b"content-length", b"0")
        size, pieces, more = 0, [], True
        too_long = length.isdigit() and int(length) > limit
        # Some of what is too long is read all the same: a client that is still sending sees no answer.
        while more and size <= 2 * limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(499, "ClientGone", "the request broke off.")
            piece = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(piece)
            too_long = too_long or size > limit
            if too_long:
                pieces.clear()
            else:
                pieces.append(piece)
        if too_long:
            raise RefusedError(413, "RequestTooLarge", f"expected at most {limit:,} bytes.")
        return b"".join(pieces)

    def _compute(self, path: str, text: bytes) -> bytes:
        return to_text(self.model.compute(path, _parsed(text)))

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._threads.shutdown(cancel_futures=True)  # all requests are answered by now
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


async def _while_awaited(answer: asyncio.Future[bytes], receive: Receive) -> None:
    # After the body a server has but one thing to say: that the client has gone.
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()  # and the work, if it has not begun
            raise RefusedError(499, "ClientGone", "nobody waits for the answer.")
    finally:
        gone.cancel()


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - any JSON
    try:
        return from_text(text)
    except ValueError as error:
        raise RefusedError(400, "InvalidInput", f"expected JSON, got none: {error}.") from None
