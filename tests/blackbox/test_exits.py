"""A box that ends Python (`sys.exit`, argparse, a cancelled task) has a failed row, wherever it runs."""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import loky
import numpy as np
import pytest

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.adapters import CommandLine, from_callable
from blackbox.errors import ExecutorError, RowFailedError
from blackbox.wrappers import Parallel, Retrying
from tests.blackbox.wrappers import troubled

X, Y = (ArraySpec("x", ()),), (ArraySpec("y", ()),)
WAYS = {
    "exit": lambda: sys.exit(0),
    "exit-3": lambda: sys.exit(3),
    "words": lambda: sys.exit("no licence"),
    "argparse": lambda: argparse.ArgumentParser().parse_args(["--nothing"]),
    "generator": lambda: (_ for _ in ()).throw(GeneratorExit("over")),
    "cancelled": lambda: asyncio.run(cancelled()),
}


async def cancelled() -> None:
    raise asyncio.CancelledError("too late")


def ending(x: Any, way: str = "exit") -> Any:
    if x == 1:
        WAYS[way]()
    return 2 * x


class Each(BlackBoxFunction):
    inputs, outputs = X, Y

    def evaluate(self, x: Any) -> Any:
        return ending(x)


class Rows(BlackBoxFunction):
    inputs, outputs = X, Y

    def evaluate_rows(self, x: Any) -> Any:
        if (x == 1).any():
            sys.exit()
        return 2 * x


class Unmakable(Each):
    """Cannot be made anew in a worker: what it imports there ends the process."""

    def __reduce__(self) -> Any:
        return sys.exit, (0,)


def processes() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([troubled.__name__, __name__])
    return ProcessPoolExecutor(1, mp_context=context)


X3 = np.arange(3.0)
KEPT = np.array([0, np.nan, 4.0])


@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_ends_python_has_failed(way):
    box = from_callable(partial(ending, way=way), inputs=X, outputs=Y, failures="keep")
    np.testing.assert_array_equal(box(X3), KEPT)
    box.failures = "raise"
    with pytest.raises(
        RowFailedError, match=r"the box (called sys.exit|raised (GeneratorExit|CancelledError))"
    ):
        box(X3)


STACKS = {
    "each": Each,
    "rows": Rows,
    "retrying": lambda: Retrying(Rows(), attempts=2),
    "threads": lambda: Parallel(Each(), lambda: ThreadPoolExecutor(2)),
    "processes": lambda: Parallel(Rows(), processes, block=2),
    "loky": lambda: Parallel(Rows(), lambda: loky.get_reusable_executor(1, timeout=60), block=2),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) if name == "loky" else name for name in STACKS]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", SLOW)
def test_in_every_stack(name):
    box = STACKS[name]()
    box.failures = "keep"
    np.testing.assert_array_equal(box(X3), KEPT)
    assert "sys.exit" in str(box.ledger.first_failure)
    box.failures = "raise"
    with pytest.raises(RowFailedError, match="called sys"):
        box(X3)
    if isinstance(box, Parallel):
        box.close()


@pytest.mark.slow
def test_a_box_that_ends_the_worker_that_makes_it_is_an_error():
    with (
        Parallel(Unmakable(failures="keep"), processes) as box,
        pytest.raises(ExecutorError, match="called sys"),
    ):
        box(X3)


def exiting(path: Path) -> Any:
    sys.exit(0)


def test_a_function_that_reads_a_programs_file():
    box = CommandLine(
        ["cp", "x", "y"],
        X,
        Y,
        input_templates={"x": "{x}"},
        output_files={"y": ("y", exiting)},
        failures="keep",
    )
    assert np.isnan(box(X3)).all()


def test_the_users_wish_to_stop_stays_one():
    def stop(x: Any) -> Any:
        raise KeyboardInterrupt

    box = from_callable(stop, inputs=X, outputs=Y, failures="keep")
    with pytest.raises(KeyboardInterrupt):
        box(X3)
