"""`serve` and `serving`: a black box behind an HTTP server, until it is stopped."""

from __future__ import annotations

import ipaddress
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from blackbox.adapters.um_bridge.application import Application, application
from blackbox.adapters.um_bridge.protocol import EXTRA
from blackbox.errors import ConfigurationError
from blackbox.extras import import_extra
from blackbox.function import BlackBoxFunction

KEPT_SECONDS = 75  # an idle connection; shorter than most training steps would mean a new one for each


def serve(
    box: BlackBoxFunction,
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 4242,
    token: str | None = None,
    max_request_bytes: int | None = None,
    derivatives: float | None = None,
    threads: int = 1,
) -> None:
    """Serve a black box by UM-Bridge 1.0 until Ctrl-C or SIGTERM.

    On either no new connection is taken, requests that are here are answered, and then it ends. The
    server speaks plain http and is meant for one's own machine or cluster: for others put a proxy with
    https in front. Anyone who may ask may use up the box's rows.

    Args:
        box: the black box.
        name: of the model; None for the name of the box's class.
        host: the address to listen at; the default is reached from this machine alone.
        port: the port; 0 takes a free one, which is printed.
        token: as the next four, see `application`.
        max_request_bytes: the longest request.
        derivatives: mu of finite differences, or None.
        threads: evaluations at a time.

    Raises:
        ConfigurationError, DefinitionError: a setting makes no sense, the port is taken, or the box is
            not complete.
        MissingExtraError: the extra "umbridge" is not installed.
    """
    app = application(
        box,
        name=name,
        token=token,
        max_request_bytes=max_request_bytes,
        derivatives=derivatives,
        threads=threads,
    )
    server = _server(app)
    with _listen(host, port, token) as listener:
        print(f"serving {app.model.name} at {_url(listener)}", flush=True)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # it has stopped by then; the signal is only passed on


@contextmanager
def serving(
    box: BlackBoxFunction,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    **settings: Any,  # noqa: ANN401 - of application
) -> Iterator[str]:
    """Serve from a thread of this process, and give the server's address: for notebooks and tests.

        with serving(box, derivatives=1e-4) as url:
            ...

    Args:
        box: the black box.
        host: the address to listen at.
        port: the port; 0 takes a free one.
        **settings: those of `application`.

    Raises:
        As `serve`.
    """
    server = _server(application(box, **settings))
    with _listen(host, port, settings.get("token")) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name="um-bridge-server")
        thread.start()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def _server(app: Application) -> Any:  # noqa: ANN401 - of an optional package
    uvicorn = import_extra("serve", "uvicorn", EXTRA)
    import_extra("serve", "orjson", EXTRA)  # missed now, not at the first request
    config = uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEPT_SECONDS,
    )
    config.load()  # what it cannot import is missed here, not in a thread while clients wait
    return uvicorn.Server(config)


def _listen(host: str, port: int, token: str | None) -> socket.socket:
    """A listening socket, so that nothing has to be waited for before the first request."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off the delay of small packets, 40 ms, only where the protocol is named.
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
        warnings.warn(
            f"serve: {host!r} can be reached from other machines, and without a token anyone there can run "
            "the black box. Give token=, or leave host out.",
            stacklevel=3,
        )
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
