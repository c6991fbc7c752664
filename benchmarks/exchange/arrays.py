"""Arrays of doubles that a program in C sends and gets, again and again, as a solver does for its closure.

What is timed, in turn, by the program's own clock:

- *pipe ping-pong*: two processes in C, two pipes, and nothing else: what any coupling of two processes takes.
- *bb_host, messages*: `bb_exchange`, answered by the trainer's end of the line alone.
- *bb_host, a run*: `bb_exchange`, answered by what `Hosted` has for a program: shapes, finite numbers.
- *Hosted.run*: all of it, with a network that gives back what it sees; one program, and sixteen at once.
- *the network in process*: the forward of a small convolution in torch on an array of that size, no program.
- *copies*: the array there and back, by `numpy.copyto`.

Beside the time there is that of the processor, of all processes together: on a machine that has others at
work it is what holds. A rate counts both ways. Medians over rounds, in each of which all are timed.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.adapters.hosted import wire
from blackbox.adapters.hosted.program import Program, Start
from blackbox.adapters.hosted.program_call import VectorForm

SIZES = {128: 1000, 4096: 500, 2**20: 10}  # doubles in an array: exchanges
ROUNDS, AT_ONCE = 3, 16
TOGETHER = f"Hosted.run, {AT_ONCE} programs at once"
CLOCK = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
"""
PING = (
    CLOCK
    + """
static void all(int line, char *data, size_t n, int out) {
  while (n) {
    ssize_t done = out ? write(line, data, n) : read(line, data, n);
    if (done <= 0) exit(1);
    data += done;
    n -= (size_t)done;
  }
}
int main(int count, char **words) {
  size_t n = 8 * (size_t)atol(words[1]);
  int times = atoi(words[2]), there[2], back[2];
  char *data = calloc(1, n);
  if (count != 3 || !data || pipe(there) || pipe(back)) return 1;
  if (!fork()) {
    for (int k = 0; k <= times; k++) { all(there[0], data, n, 0); all(back[1], data, n, 1); }
    return 0;
  }
  double began = 0;
  for (int k = 0; k <= times; k++) {
    if (k == 1) began = now();
    all(there[1], data, n, 1);
    all(back[0], data, n, 0);
  }
  printf("%.9f\\n", now() - began);
}
"""
)
ASK = (
    CLOCK
    + """
#include "bb_host.h"
int main(int count, char **words) {
  int dims[] = {atoi(words[1])}, times = atoi(words[2]);
  double *x = malloc(sizeof(double) * dims[0]), *y = malloc(sizeof(double) * dims[0]), began = 0, took;
  if (count < 3 || !x || !y) return 1;
  for (int i = 0; i < dims[0]; i++) x[i] = i;
  for (int k = 0; k <= times; k++) {
    if (k == 1) began = now();
    if (!bb_exchange("closure", x, 1, dims, y, 1, dims)) return 1;
    x[0] += 1;
  }
  took = now() - began;
  bb_output("seconds", BB_DOUBLE, 0, NULL, &took);
  bb_close();
}
"""
)


def client_folder() -> Path:
    """Return the folder of the clients."""
    return Path(str(files("blackbox.adapters.hosted") / "client"))


def built(folder: Path) -> tuple[Path, Path]:
    """Both programs."""
    client = client_folder()
    for name, text in (("ping", PING), ("ask", ASK)):
        (folder / f"{name}.c").write_text(text)
    subprocess.run(["cc", "-O2", "ping.c", "-o", "ping"], cwd=folder, check=True)
    subprocess.run(
        ["cc", "-O2", f"-I{client}", "ask.c", client / "bb_host.c", "-o", "ask"], cwd=folder, check=True
    )
    return folder / "ping", folder / "ask"


def call_of(size: int) -> Call:
    """The call of an array of a size."""
    return Call("closure", sees=ArraySpec("x", (size,)), gives=ArraySpec("y", (size,)))


SECONDS = ArraySpec("seconds", ())


def ping(program: Path, size: int, times: int) -> float:
    """Seconds of a ping-pong of two processes."""
    words = [program, str(size), str(times)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def messages(program: Path, size: int, times: int) -> float:
    """Seconds where a program is answered by what it sent, message by message."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/bb"
        listener = wire.listen(place)
        listener.setblocking(True)
        asking = subprocess.Popen(
            [program, str(size), str(times)], env={**os.environ, "BLACKBOX_HOST": place}
        )
        connection, _ = listener.accept()
        line = wire.Line(connection, 8 * size, lambda *message: True, None)
        connection.setblocking(True)
        try:
            while (message := line.receive()) is None or message.kind == wire.CALL:
                if message is not None:
                    line.answer({"y": message.parts[0][1].values})
            return float(message.parts[0][1].values)
        finally:
            line.close()
            listener.close()
            asking.wait()


def run_alone(program: Path, size: int, times: int) -> float:
    """Seconds where a program is answered as in a run, but for torch and what is kept of rows."""
    form = VectorForm([call_of(size)], [SECONDS])
    running = Program(
        form, Start([str(program), str(size), str(times)], os.environ), 60, 8 * size, None, False
    )
    place = form.seen["closure"][0].place
    vector = running.read()
    while not running.is_at_end:
        running.answer(vector[place])
        vector = running.read()
    return float(form.outputs[0].of(vector))


def hosted(program: Path, size: int, times: int, rows: int = 1) -> float:
    """Seconds of the slowest program of a run."""
    host = Hosted([program, str(size), str(times), "{case}"], calls=[call_of(size)], outputs=[SECONDS])
    try:
        with torch.no_grad():
            run = host.run(torch.arange(rows), closure=lambda x: x, dtype=torch.float64)
        return float(run.outputs["seconds"].max())
    finally:
        host.close()


def forward(size: int, times: int) -> float:
    """Seconds of the forward of a network on an array."""
    layers = nn.Conv1d(1, 8, 5, padding=2), nn.SiLU(), nn.Conv1d(8, 1, 5, padding=2)
    network, x = nn.Sequential(*layers).double(), torch.randn(1, 1, size, dtype=torch.float64)
    return _timed(lambda: network(x), times)


def copies(size: int, times: int) -> float:
    """Seconds of the array there and back."""
    one, other = np.ones(size), np.ones(size)

    def both() -> None:
        np.copyto(other, one)
        np.copyto(one, other)

    return _timed(both, times)


def _timed(run: Callable[[], Tensor | None], times: int) -> float:
    with torch.no_grad():
        run()
        began = time.perf_counter()
        for _ in range(times):
            run()
        return time.perf_counter() - began


def measured(sizes: dict[int, int], rounds: int) -> dict[str, dict[str, Any]]:
    """By size and contender the microseconds of an exchange."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pinging, asking = built(Path(folder))
        for size, times in sizes.items():
            few = max(1, times // AT_ONCE)
            runs: dict[str, tuple[int, Callable[[], float]]] = {
                "pipe ping-pong": (times, partial(ping, pinging, size, times)),
                "bb_host, messages": (times, partial(messages, asking, size, times)),
                "bb_host, a run": (times, partial(run_alone, asking, size, times)),
                "Hosted.run": (times, partial(hosted, asking, size, times)),
                TOGETHER: (few * AT_ONCE, partial(hosted, asking, size, few, AT_ONCE)),
                "the network in process": (times, partial(forward, size, times)),
                "copies": (times, partial(copies, size, times)),
            }
            walls: dict[str, list[float]] = {name: [] for name in runs}
            processors: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(rounds):
                for name, (exchanges, run) in runs.items():
                    before = processor()
                    walls[name].append(run() / exchanges)
                    processors[name].append((processor() - before) / exchanges)
            found[str(size)] = {
                "microseconds": {name: 1e6 * statistics.median(each) for name, each in walls.items()},
                "of the processor": {
                    name: 1e6 * statistics.median(each) for name, each in processors.items()
                },
            }
    return found


def processor() -> float:
    """Seconds of all processors, of this process and those that have ended."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def table(results: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| array | | microseconds | a second | GB/s | of the processor | times the ping-pong's |\n"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |\n")
    for size, found in results.items():
        used = found["of the processor"]
        for name, micro in found["microseconds"].items():
            rate = 2 * 8 * int(size) / micro / 1e3
            lines.append(
                f"| {8 * int(size) / 1024:,.0f} KiB | {name} | {_rounded(micro)} | {_rounded(1e6 / micro)} | "
                f"{rate:.2f} | {_rounded(used[name])} | {used[name] / used['pipe ping-pong']:.2f} |\n"
            )
    return "".join(lines)


def _rounded(value: float) -> str:
    """To three digits."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return (
        f"{round(value, digits):,.{digits}f}"
        if digits
        else f"{round(value, 2 - int(math.log10(value))):,.0f}"
    )
