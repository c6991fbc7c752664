"""`serve` and `serving`: black boxes behind an HTTP server, until it is stopped."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from typing import Any

from blackbox.adapters.um_bridge.messages import EXTRA, check_token
from blackbox.adapters.um_bridge.served_model import Derivative, ServedModel
from blackbox.checks import check_count, check_positive
from blackbox.errors import ConfigurationError
from blackbox.extras import import_extra
from blackbox.function import BlackBoxFunction
from blackbox.notices import warn
from blackbox.terminal import say

Boxes = BlackBoxFunction | Mapping[str, BlackBoxFunction]
Derivatives = Derivative | Mapping[str, Derivative] | None


def serve(
    boxes: Boxes,
    *,
    derivative: Derivatives = None,
    host: str = "127.0.0.1",
    port: int = 4242,
    token: str | None = None,
    threads: int = 1,
    request_seconds: float = 30.0,
    connections: int = 256,
) -> None:
    """Serve one black box, or several by name, by UM-Bridge 1.0 until Ctrl-C or SIGTERM.

    A request is one row. Each input and output is a vector: its spec's shape, flattened in C order.
    Answers are always valid JSON. A row that failed or gave NaN, which JSON does not have, is answered with
    an error, and our client reads that as a failed row. Evaluations run in threads of their own, so the
    server describes its models meanwhile. An evaluation that nobody waits for any more is not started. The
    box (`Parallel`, `CommandLine`) and the client limit the time of an evaluation.

        solver = zo.differentiable(box, zo.CGE(mu=1e-3, central=True))
        serve(box, derivative=solver)

    `Gradient` is served where the box has a derivative of its own (`Tesseract`, `Fmu`, `UmBridge`) or where
    one is given. Clients take it for exact: give one that is good enough for them. Each request costs the
    rows of a forward and a backward pass; a `Cached` box solves none twice.

    At the first signal no new connection is taken, the requests at hand are answered, and then the server
    ends; a second Ctrl-C kills the process. The server speaks plain http and is meant for one's own machine
    or cluster: for others put a proxy with https in front. Anyone who may ask may use up the boxes' rows.
    Pages in a browser, which could otherwise reach servers on their reader's machine, are refused.

    Args:
        boxes: the black box, which is served by the name of its class, or a mapping of names to boxes.
        derivative: the source of gradients: a function of the box's tensors that autograd goes through; or a
            mapping of names to such functions. It is asked by one thread at a time. None serves the boxes'
            own derivatives, if they have any.
        host: the address to listen at; the default is reached from this machine alone.
        port: the port; 0 takes a free one, which is printed.
        token: the token that requests must bear ("Authorization: Bearer ..."); None asks for none.
        threads: the most evaluations at a time. Take more than one only for boxes that may be called from
            several threads at once.
        request_seconds: the seconds after which a request that is still coming in is cut off.
        connections: the most connections at a time. For one more, the connection that has sent no whole
            request for longest is closed; where all wait for answers the new one is refused.

    Raises:
        ConfigurationError, DefinitionError: a setting makes no sense, the port is taken, or a box is
            not complete.
        MissingExtraError: the extra "umbridge" is not installed.
    """
    settings = (token, threads, request_seconds, connections)
    with _prepared(boxes, derivative, host, port, *settings) as (server, listener, names):
        say(f"serving {', '.join(names)} at {_url(listener)}")
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # it has stopped by then; the signal is only passed on


@contextmanager
def serving(
    boxes: Boxes,
    *,
    derivative: Derivatives = None,
    host: str = "127.0.0.1",
    port: int = 0,
    **settings: Any,
) -> Iterator[str]:
    """Serve from a thread of this process, and give the server's address: for notebooks and tests.

        with serving(box) as url:
            ...

    Args:
        boxes: the black box, or a mapping of names to boxes.
        derivative: the source of gradients, as for `serve`.
        host: the address to listen at.
        port: the port; 0 takes a free one.
        **settings: the settings of `serve`.

    Raises:
        ConfigurationError, DefinitionError, MissingExtraError: for the reasons that `serve` gives.
    """
    with _prepared(boxes, derivative, host, port, **settings) as (server, listener, _):
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name="um-bridge-server")
        thread.start()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _prepared(
    boxes: Boxes,
    derivative: Derivatives,
    host: str,
    port: int,
    token: str | None = None,
    threads: int = 1,
    request_seconds: float = 30.0,
    connections: int = 256,
) -> Iterator[tuple[Any, socket.socket, list[str]]]:
    """A server that can be run, its listening socket, and the names of its models."""
    for package in ("orjson", "starlette", "uvicorn"):
        import_extra("serve", package, EXTRA)  # missed now, not at the first request
    from blackbox.adapters.um_bridge import web

    check_token("serve", token)
    named = boxes if isinstance(boxes, Mapping) else {type(boxes).__name__: boxes}
    derivatives = derivative if isinstance(derivative, Mapping) else dict.fromkeys(named, derivative)
    if unknown := [name for name in derivatives if name not in named]:
        raise ConfigurationError(
            f"serve, derivative: expected names of {list(named)}, got {unknown}. "
            "Name the boxes that are served."
        )
    if derivative is not None and not isinstance(derivative, Mapping) and len(named) > 1:
        raise ConfigurationError(
            f"serve, derivative: expected a mapping of names for the {len(named)} boxes, got one for all. "
            "Give {name: derivative}."
        )
    models = {name: ServedModel(box, derivatives.get(name)) for name, box in named.items()}
    if not models or not all(isinstance(name, str) and name for name in models):
        raise ConfigurationError(f"serve, boxes: expected boxes by names, got {list(models)!r}. Name each.")
    application = web.Application(models, token, check_count("serve", "threads", threads))
    try:
        with _listen(host, port, token) as listener:
            server = web.Server(
                application,
                check_count("serve", "connections", connections),
                check_positive("serve", "request_seconds", request_seconds),
            )
            yield server, listener, list(models)
    finally:
        application.close()


def _listen(host: str, port: int, token: str | None) -> socket.socket:
    """A listening socket, so that nothing has to be waited for before the first request."""
    # asyncio turns off the delay of small packets, 40 ms, only where the protocol is named.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # a port is free again as soon as its server has ended
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(
            f"serve: expected an address of this machine with a free port, got {host!r}, port {port} "
            f"({error}). Take another port; 0 finds a free one."
        ) from None
    address = ipaddress.ip_address(listener.getsockname()[0])
    if token is None and not address.is_loopback:
        warn(
            f"serve: {host!r} can be reached from other machines, and without a token anyone there can run "
            "the black box. Give token=, or leave host out.",
            UserWarning,
        )
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
