"""Servers to test against: the `umbridge` package's in a process of its own, and one that says anything."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from tests.blackbox.adapters.um_bridge import umbridge_models


@contextmanager
def umbridge_server() -> Iterator[str]:
    """`umbridge.serve_models` with the models of `umbridge_models`, on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, umbridge_models.__file__, str(listener.fileno())]
        process = subprocess.Popen(
            command,
            pass_fds=[listener.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.kill()
            process.wait()


@contextmanager
def served_elsewhere(box: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A box of `boxes.py` behind `serve` in a process of its own; process and address."""
    code = (
        "from blackbox.adapters.um_bridge import serve\n"
        "from tests.blackbox.adapters.um_bridge.boxes import *\n"
        f"serve({box}, port=0)\n"
        "print('ended')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


class Handler(BaseHTTPRequestHandler):
    """A model of two numbers in, two out; what it answers to /Evaluate is up to the test."""

    protocol_version = "HTTP/1.1"
    server: Any
    given: list[float]

    def do_GET(self) -> None:
        self.send(b'{"protocolVersion": 1.0, "models": ["odd"]}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = {
            "/ModelInfo": b'{"support": {"Evaluate": true, "Gradient": false}}',
            "/InputSizes": b'{"inputSizes": [2]}',
            "/OutputSizes": b'{"outputSizes": [2.0]}',
        }
        if self.path in known:
            self.send(self.server.sizes if self.path == "/OutputSizes" else known[self.path])
        else:
            self.given = json.loads(body)["input"][0]
            self.server.asked.append(self.given)
            self.server.evaluate(self)

    def send(self, body: bytes, status: int = 200, content_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def wait_in_vain(self) -> None:
        """No answer for as long as the client waits for one, however long that is."""
        self.connection.settimeout(60)
        self.connection.recv(1)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class OddServer(ThreadingHTTPServer):
    """Keeps what it was asked."""

    daemon_threads = True
    asked: list[list[float]]
    sizes = b'{"outputSizes": [2.0]}'
    evaluate: Callable[[Handler], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


@contextmanager
def odd_server(evaluate: Callable[[Handler], None]) -> Iterator[OddServer]:
    """A server on a free port that answers /Evaluate as the function does."""
    server = OddServer(("127.0.0.1", 0), Handler)
    server.evaluate, server.asked = evaluate, []
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def saying(
    text: str | bytes, status: int = 200, content_type: str = "text/plain"
) -> Callable[[Handler], None]:
    """Always this answer."""
    body = text.encode() if isinstance(text, str) else text
    return lambda handler: handler.send(body, status, content_type)


def doubling(handler: Handler) -> None:
    """A model that works: twice the input."""
    handler.send(json.dumps({"output": [[2 * x for x in handler.given]]}).encode())
