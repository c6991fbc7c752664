"""The group of processes that work on this run together; a process alone needs none of it.

Every process does all of the run, to the same bits, but for the queries of gradients that are given
`process_group()`, which are shared out. The first one has the run's folder; the others work in a folder of
their own, which begins with the same files and is deleted in the end. So a task needs not know of them.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from blackbox.terminal import say
from tasks.errors import WorkersError
from tasks.workers import launch

if TYPE_CHECKING:
    import torch.distributed as dist

TIMEOUT = 1800.0  # seconds that the others wait for a process, which may have the longest share
_LONG = timedelta(days=7)  # for what the first process does while the others have nothing to do
_SILENT = 5.0  # seconds of waiting of which nothing is said
_ALONE = "If this is the only one, take both variables away: unset RANK WORLD_SIZE."
_LEFT_OUT = "journal", "answers", "calls", "tensorboard", ".lock"  # what only a run's first process reads

Value = TypeVar("Value")


@dataclass
class Group:
    """The processes that can talk to each other now.

    Attributes:
        waiting: The group of `torch.distributed` for long waits, and for messages in words.
        first_folder: In other processes than the first: the folder of its run, where they can reach it.
    """

    waiting: Any
    first_folder: Path | None = None


_group: ContextVar[Group | None] = ContextVar("group", default=None)  # None for a process alone


def is_member() -> bool:
    """Say whether torchrun, or `blackbox run --workers`, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def rank() -> int:
    """Return this process's rank; 0 alone."""
    return int(os.environ["RANK"]) if is_member() else 0


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[None]:
    """A block in which the processes that were started together can talk to each other.

    Args:
        timeout: seconds after which one that does not answer is given up.

    Raises:
        WorkersError: they did not find each other.
    """
    if not is_member():
        _say_where_many_are_alone()
        yield
        return
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # gloo beside NCCL: messages lie in the CPU's memory
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    arguments: dict[str, Any] = {}
    group = Group(None)
    launch.watch(lambda: group.first_folder)
    launch.meet(timeout)
    file = launch.store()
    if file is not None:  # ports that are free now may be taken a moment later
        size = int(os.environ["WORLD_SIZE"])
        arguments = {"init_method": f"file://{file}", "rank": rank(), "world_size": size}
    try:
        if not arguments:
            text = (
                f"blackbox: process {rank()} waits for the others of {os.environ['WORLD_SIZE']} that the "
                f"environment says there are (RANK, WORLD_SIZE). {_ALONE}"
            )
            said_later = threading.Timer(_SILENT, say, (text, sys.stderr))
            said_later.daemon = True
            said_later.start()
            try:
                rendezvous, number, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))  # pyright: ignore[reportPrivateImportUsage]
            finally:
                said_later.cancel()
            # torchrun's store outlives a restart, with the addresses of the processes before
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(attempt, rendezvous)  # pyright: ignore[reportPrivateImportUsage]
            arguments = {"store": store, "rank": number, "world_size": size}
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **arguments)
        group.waiting = dist.new_group(timeout=_LONG, backend="gloo")
    except (RuntimeError, ValueError) as error:
        raise WorkersError(
            f"Process {rank()}: expected to find {os.environ['WORLD_SIZE']} processes of this run, got "
            f"{' '.join(str(error).split())[:300]!r}. Are all of them started, and reach MASTER_ADDR? "
            f"{_ALONE}"
        ) from error
    token = _group.set(group)
    try:
        with warnings.catch_warnings():
            if rank() > 0:  # the first process says what all would
                warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        _group.reset(token)
        dist.destroy_process_group()


def _say_where_many_are_alone() -> None:
    """Say that each task of a step of Slurm trains for itself, which spends all rows as many times."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and os.environ.get("SLURM_PROCID") == "0":
        say(
            f"blackbox: srun started {tasks} tasks, and each makes a run of its own and asks for all of its "
            "rows. For one run: srun --ntasks=1. To share its queries: --workers, or RANK and WORLD_SIZE.",
            sys.stderr,
        )


def process_group() -> dist.ProcessGroup | None:
    """Return the group in which gradients of `zo` share out queries; None for a process alone."""
    if _group.get() is None:
        return None
    import torch.distributed as dist

    return dist.group.WORLD


def any_of(flag: bool) -> bool:
    """Say whether it is true in some process; all ask at the same place."""
    return bool(total(int(flag))[0])


def wait_for_all() -> None:
    """Go on when all processes are here."""
    any_of(False)


def total(*counts: int) -> list[int]:
    """Each count summed over the processes; all ask at the same place.

    Raises:
        WorkersError: one does not answer.
    """
    if _group.get() is None:
        return list(counts)
    import torch
    import torch.distributed as dist

    summed = torch.tensor(counts)
    with _answering():
        dist.all_reduce(summed)
    return summed.tolist()


def of_all(value: Value) -> list[Value]:
    """Return each process's value, by rank; all ask at the same place.

    Args:
        value: Something small that can be pickled.

    Raises:
        WorkersError: one does not answer.
    """
    if (group := _group.get()) is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size()
    with _answering():
        dist.all_gather_object(values, value, group=group.waiting)
    return values


def first_then_all(work: Callable[[], Value]) -> Value:
    """Work that leaves a file for the next one who does it: the first process, and then the others."""
    if (group := _group.get()) is None:
        return work()
    import torch.distributed as dist

    result = work() if rank() == 0 else None
    with _answering():
        dist.barrier(group.waiting)
    return work() if result is None else result


@contextmanager
def shared_folder(made: Callable[[], Path]) -> Iterator[Path]:
    """The folder of the run that the first process makes or opens; in the others a copy, deleted in the end.

    Args:
        made: makes or opens it; called in the first process only.

    Raises:
        WorkersError: the first process could not; the others raise it.
    """
    if (group := _group.get()) is None:
        yield made()
        return
    import torch
    import torch.distributed as dist

    message: list[Any] = [None]
    if rank() == 0:
        try:
            run_folder = made()
            message = [(_files(run_folder), torch.get_rng_state(), str(run_folder.resolve()))]
        finally:
            with _answering():
                dist.broadcast_object_list(message, src=0, group=group.waiting)
        yield run_folder
        return
    with _answering():
        dist.broadcast_object_list(message, src=0, group=group.waiting)
    if message[0] is None:
        raise WorkersError("Expected a run of the first process, got none: see what it says.")
    with TemporaryDirectory(prefix="blackbox-") as name:
        folder, (files, generator, first) = Path(name), message[0]
        group.first_folder = Path(first) if (Path(first) / "config.json").exists() else None
        torch.set_rng_state(generator)  # each process begins with another
        for file, content in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (folder / "checkpoints").mkdir(exist_ok=True)
        yield folder


def _files(folder: Path) -> dict[str, bytes]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path): (folder / path).read_bytes() for path in paths if path.parts[0] not in _LEFT_OUT}


def journal_folder(folder: Path) -> Path:
    """The folder whose journal the first process reads: its own, or this one's where that is out of reach."""
    group = _group.get()
    return folder if group is None or group.first_folder is None else group.first_folder


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkersError(
            f"Process {rank()} expected an answer of all {os.environ['WORLD_SIZE']} processes of this run, "
            f"got {' '.join(str(error).split())[:300]!r}. One has died or hangs; its own output says more."
        ) from error
