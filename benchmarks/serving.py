"""Calls per second of a served black box, beside the `umbridge` package's.

    python -m benchmarks serving --size ci       few calls
    python -m benchmarks serving --size small    the committed figures

Needs `pip install -e '.[benchmark]'`. Both servers double a vector of d numbers, each in a process of its
own on this machine, one evaluation at a time; all pairs of server and client run in turn, and their answers
must be equal. What counts is the ratio, and on a machine with other work the CPU time of client and server:
the two processes of a pair share its cores with whatever else runs. Linux only, which says what a process
has used.
Writes `benchmarks/results/serving.json`.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import protocol
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.adapters.um_bridge import UmBridge, UnreachableError, serve
from tasks.runs.machine import version

SIZES: dict[str, tuple[dict[int, int], int]] = {  # calls of a round by d, and rounds
    "ci": ({10: 4}, 1),
    "small": ({10: 100, 1_000: 100, 100_000: 4}, 7),
}
PACKAGES = ("umbridge", "aiohttp", "requests", "starlette", "uvicorn", "h11", "urllib3", "orjson")
OURS, THEIRS = "ours", "umbridge"


class Doubling(BlackBoxFunction):
    """Twice the input, d numbers."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.inputs = (ArraySpec("x", (d,)),)
        self.outputs = (ArraySpec("y", (d,)),)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        """One row."""
        return 2 * x


def main(words: Sequence[str]) -> None:
    """Measure, print and write."""
    parser = protocol.options("serving", __doc__, SIZES)
    size = parser.parse_args(words).size
    numbers, rounds = SIZES[size]
    table = [row for d, calls in numbers.items() for row in rates(d, calls, rounds)]
    names = f"{'server':9s} {'client':9s} {'calls/s':>9s} {'CPU ms':>8s} {'both':>8s}"
    print(f"{'d':>7s}  {names}  times umbridge's pair")
    for row in table:
        pair = f"{row['d']:7d}  {row['server']:9s} {row['client']:9s}"
        ratio = row["times umbridge's server and client"]
        server, client = (row[f"milliseconds of the {side}'s CPU a call"] for side in ("server", "client"))
        print(f"{pair} {row['calls per second']:9.1f} {server:8.2f} {server + client:8.2f}  {ratio:8.2f}")
    packages = {package: version(package) for package in PACKAGES}
    results = {"packages": packages, "rates": table}
    protocol.write("serving", words, results, protocol.path("serving", size))


def rates(d: int, calls: int, rounds: int) -> list[dict[str, Any]]:
    """Calls per second of the four pairs of server and client."""
    x = np.random.default_rng(d).normal(size=(calls, d))
    with running(serve_ours, d) as ours, running(serve_theirs, d) as theirs:
        servers = {OURS: ours, THEIRS: theirs}
        makers: dict[str, Callable[[str, np.ndarray], Callable[[], Any]]]
        makers = {OURS: our_client, THEIRS: their_client}
        runs = {(s, c): make(url, x) for s, (_, url) in servers.items() for c, make in makers.items()}
        for pair, run in runs.items():
            if not np.array_equal(run(), 2 * x):
                raise RuntimeError(f"{pair}: expected twice the input, got something else.")
        named = {f"{server} {client}": run for (server, client), run in runs.items()}
        seconds = {pair: found.median for pair, found in protocol.spreads(named, rounds).items()}
        used = {pair: cpu_seconds(servers[pair[0]][0], run, calls) for pair, run in runs.items()}
    base = seconds[f"{THEIRS} {THEIRS}"]
    return [
        {
            "d": d,
            "server": server,
            "client": client,
            "calls per second": calls / seconds[f"{server} {client}"],
            "milliseconds of the server's CPU a call": 1e3 * used[server, client][0],
            "milliseconds of the client's CPU a call": 1e3 * used[server, client][1],
            "times umbridge's server and client": base / seconds[f"{server} {client}"],
            "times umbridge's server, same client": seconds[f"{THEIRS} {client}"]
            / seconds[f"{server} {client}"],
        }
        for server, client in runs
    ]


def our_client(url: str, x: np.ndarray) -> Callable[[], Any]:
    """All rows in one call, one after another over one kept connection."""
    return partial(UmBridge(url), x)


def their_client(url: str, x: np.ndarray) -> Callable[[], Any]:
    """A call a row, as the package's users make them."""
    import umbridge

    model = umbridge.HTTPModel(url, "Doubling")
    return lambda: np.array([model([row.tolist()])[0] for row in x])


def cpu_seconds(process: int, run: Callable[[], object], calls: int, rounds: int = 3) -> tuple[float, float]:
    """What the threads of a server and this process use of a CPU for one call, the mean of a few rounds."""

    def used() -> int:
        threads = Path(f"/proc/{process}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)

    server, client = used(), time.process_time()
    for _ in range(rounds):
        run()
    return (used() - server) / 1e9 / rounds / calls, (time.process_time() - client) / rounds / calls


@contextmanager
def running(target: Callable[[int, int], None], d: int) -> Iterator[tuple[int, str]]:
    """A server in a process of its own: its id and address, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=target, args=(d, port))
    process.start()
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, 60)
        yield process.pid or 0, url
    finally:
        process.terminate()
        process.join()


def wait_for(url: str, seconds: float) -> None:
    """Until a server answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            UmBridge(url).close()
            return
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def serve_ours(d: int, port: int) -> None:
    """Our server."""
    serve(Doubling(d), port=port)


def serve_theirs(d: int, port: int) -> None:
    """The package's, its model as fast as NumPy makes it."""
    import umbridge
    from aiohttp import web

    class Model(umbridge.Model):
        def get_input_sizes(self, config: Any) -> list[int]:  # noqa: ANN401
            return [d]

        def get_output_sizes(self, config: Any) -> list[int]:  # noqa: ANN401
            return [d]

        def __call__(self, parameters: Any, config: Any = None) -> list[list[float]]:  # noqa: ANN401
            return [(2 * np.asarray(parameters[0])).tolist()]

        def supports_evaluate(self) -> bool:
            return True

    # The package listens at every address of the machine and has no setting for it.
    web.run_app = partial(web.run_app, host="127.0.0.1", print=None)
    umbridge.serve_models([Model("Doubling")], port)
