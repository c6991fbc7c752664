"""Everything that a GPU must show, by one command that can be stopped at any time and goes on.

    python -m benchmarks gpu                                 all parts, in the order of what they are worth
    python -m benchmarks gpu --parts tests query-speed       some of them, by name or group
    python -m benchmarks gpu --minutes 28                    no part begins that would not end by then
    python -m benchmarks gpu --device cpu --size ci          all parts, small, to see that they run

Each part runs in a process of its own for eight minutes at most and writes `results/gpu/PART.json` as it
ends, also where it is stopped. A part whose file is there, from this machine and these versions, is not run
again: delete it for that. What was stopped, or failed, is begun again, and trainings go on from their
checkpoints. The page `results/gpu/README.md` is made of the files that are there. What is not measured on a
GPU at size "small" goes to `runs/benchmarks/gpu-SIZE-DEVICE`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import protocol
from benchmarks.gpu import page
from benchmarks.gpu.parts import LIMIT, PARTS, Part, Place
from blackbox.checks import nearest
from tasks.folder import atomic
from tasks.folder.machine import machine, versions

SLACK = 5.0  # seconds that a part of just as many minutes may have less
DONE, STOPPED, FAILED = "done", "stopped", "failed"


def main(words: Sequence[str]) -> None:
    """Run the parts that are not there yet, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("ci", "small"), default="small")
    parser.add_argument("--minutes", type=float, help="of all parts together")
    parser.add_argument("--one", choices=tuple(PARTS), help=argparse.SUPPRESS)  # in a part's own process
    asked = parser.parse_args(words)
    folder = folder_of(asked.device, asked.size)
    if asked.one:
        run_here(PARTS[asked.one], Place(asked.device, asked.size, scratch_of(asked)), folder, words)
        return
    parts = chosen(parser, asked.parts)
    here = machine_with_gpu(asked.device)
    if asked.device == "cuda" and here["gpu"] == "none":
        parser.error(
            "expected a GPU that torch can use, found none (torch.cuda.is_available() is False). "
            "--device cpu --size ci shows that the parts run."
        )
    began = perf_counter()
    for part in parts:
        if is_there(folder, part, here):
            print(f"{part.name}: there already")
            continue
        left = None if asked.minutes is None else 60 * asked.minutes - (perf_counter() - began)
        if left is not None and left < 60 * part.minutes - SLACK:
            print(f"{part.name}: about {part.minutes:g} minutes, {left / 60:.1f} are left: not begun")
            continue
        limit = LIMIT if left is None else min(LIMIT, left)
        print(f"{part.name}: {part.about}", flush=True)
        options = ["--device", asked.device, "--size", asked.size]
        state, seconds = run_apart(part, options, limit, folder, here)
        print(f"{part.name}: {state} after {seconds:.0f} s", flush=True)
        page.write(folder)
    print(f"written to {page.write(folder)}")


def folder_of(device: str, size: str) -> Path:
    """Where the files of the parts are."""
    if (device, size) == ("cuda", "small"):
        return protocol.RESULTS / "gpu"
    return protocol.SCRATCH / f"gpu-{size}-{device}"


def scratch_of(asked: argparse.Namespace) -> Path:
    """Where parts keep what they have begun."""
    return protocol.SCRATCH / f"gpu-work-{asked.size}-{asked.device}"


def machine_with_gpu(device: str) -> dict[str, Any]:
    """This machine, with its GPU if that is what is measured."""
    import torch  # so that `machine` knows of a GPU

    facts: dict[str, Any] = dict(machine())
    if device == "cpu":
        facts["gpu"] = "not used"
    elif torch.cuda.is_available():
        facts["cuda"] = str(torch.version.cuda)
        facts["cudnn"] = str(torch.backends.cudnn.version())
    return facts


def chosen(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[Part]:
    """The parts of these names and groups, in the order of `PARTS`."""
    groups = {part.group for part in PARTS.values()}
    for name in names:
        if name not in PARTS and name not in groups:
            parser.error(
                f"--parts: expected names or groups, got {name!r}. {nearest(name, [*PARTS, *groups])}"
            )
    return [part for part in PARTS.values() if {part.name, part.group} & set(names)]


def is_there(folder: Path, part: Part, here: Mapping[str, Any]) -> bool:
    """Whether a part was measured to its end on this machine with these versions."""
    result = page.read(folder, part.name)
    return result is not None and (result["state"], result["machine"], result["versions"]) == (
        DONE,
        here,
        versions(),
    )


def run_apart(
    part: Part, options: Sequence[str], limit: float, folder: Path, here: Mapping[str, Any]
) -> tuple[str, float]:
    """Run a part in a process of its own, and return what it did and its seconds.

    A part that takes too long is interrupted, then killed: its file says so.
    """
    command = [sys.executable, "-m", "benchmarks", "gpu", "--one", part.name, *options]
    (folder / f"{part.name}.json").unlink(missing_ok=True)  # of an earlier run
    began = perf_counter()
    # a group of its own: what it has started is ended with it
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit)
        state = DONE if code == 0 else FAILED
    except subprocess.TimeoutExpired:
        state = STOPPED
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = perf_counter() - began
    known = (page.read(folder, part.name) or {}).get("state")  # what it has written itself
    if state == STOPPED and known is None:
        keep(part, options, {"state": STOPPED, "seconds": seconds}, folder, here)
    elif state == FAILED and known != FAILED:
        keep(
            part,
            options,
            {"state": FAILED, "error": f"its process ended with {process.returncode}"},
            folder,
            here,
        )
    return state, seconds


def run_here(part: Part, place: Place, folder: Path, words: Sequence[str]) -> None:
    """Run a part in this process, and write its file; an error is in the file too, and is raised."""
    options = [word for word in words if word not in ("--one", part.name)]
    place.scratch.mkdir(parents=True, exist_ok=True)
    here, began = machine_with_gpu(place.device), perf_counter()
    try:
        results = part.work(place)
    except KeyboardInterrupt:
        stopped = {"state": STOPPED, "seconds": perf_counter() - began}
        keep(part, options, {**stopped, **place.so_far}, folder, here)
        raise
    except Exception as error:
        said = {"state": FAILED, "error": f"{type(error).__name__}: {error}"[:2000]}
        keep(part, options, {**said, **place.so_far}, folder, here)
        raise
    keep(part, options, {"state": DONE, "seconds": perf_counter() - began, **results}, folder, here)


def keep(
    part: Part, options: Sequence[str], result: Mapping[str, Any], folder: Path, here: Mapping[str, Any]
) -> None:
    """Write the file of a part."""
    command = protocol.command("gpu", ["--parts", part.name, *options])
    content = {"command": command, "machine": here, "versions": versions(), "about": part.about, **result}
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / f"{part.name}.json", (json.dumps(content, indent=1) + "\n").encode())
