"""What a test sees of this machine, and how a process ends that something keeps from ending.

A test sees the optional programs and packages that it declares, `@pytest.mark.needs("ngspice")`, and is
skipped where they are not installed: see `tests/needs.py`. One that is skipped for another reason has failed.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import sys
import threading
import time
from typing import Any

import pytest

from tests.limits import limits  # noqa: F401  a fixture of all tests
from tests.needs import NEEDS, Machine

PATIENCE = 120.0  # seconds after the last test
WORKERS: list[Any] = []  # pytest-xdist's, in the process that started them
MACHINE = Machine()


def pytest_configure(config: pytest.Config) -> None:
    """From here on, also while files of tests are imported, nothing optional is seen."""
    gc.disable()  # until all tests are collected
    MACHINE.begin()
    config.add_cleanup(MACHINE.end)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test with `quick_cases(n)`, n cases, evenly spread, are quick, and the others slow."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("quick_cases") and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for those in cases.values():
        marker = those[0].get_closest_marker("quick_cases")
        assert marker is not None
        quick = {round(n * (len(those) - 1) / max(1, marker.args[0] - 1)) for n in range(marker.args[0])}
        for place, item in enumerate(those):
            if place not in quick:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Bytecode of tests is kept, but none of what a test writes: it knows no edits within one second.

    What is there now stays to the end, so that the collector of garbage need not look through it each time.
    """
    sys.dont_write_bytecode = True
    gc.freeze()
    gc.enable()


def needs_of(item: pytest.Item) -> list[str]:
    """The names that a test declares."""
    return [name for marker in item.iter_markers("needs") for name in marker.args]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """A test and its fixtures, to the end of them, see what it declares."""
    names = [*needs_of(item), *(["gpu"] if item.get_closest_marker("gpu") else [])]
    MACHINE.show(name for name in names if name in NEEDS)
    try:
        return (yield)
    finally:
        MACHINE.show(())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before its fixtures are made, a test is skipped that needs what is not there."""
    for name in needs_of(item):
        if name not in NEEDS:
            pytest.fail(
                f"needs({name!r}): expected a name of tests/needs.py: {', '.join(NEEDS)}.", pytrace=False
            )
        if reason := MACHINE.missing(name):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A test that is skipped for what it has not declared has failed."""
    report = yield
    reasons = [NEEDS[name].install for name in needs_of(item) if name in NEEDS]
    return as_declared(report, reasons + [""] * bool(item.get_closest_marker("gpu")))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    """A file that skips itself declares nothing."""
    report = yield
    return as_declared(report, [])


def as_declared(report: Any, reasons: list[str]) -> Any:
    """The report, or a failure where something was skipped that these reasons do not begin."""
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        said = said.removeprefix("Skipped: ")
        if not said.startswith(tuple(reasons)):
            report.outcome = "failed"
            report.longrepr = (
                f"{report.nodeid} was neither run nor declared: it was skipped with {said!r}. Mark it "
                '@pytest.mark.needs("..."), with a name of tests/needs.py.'
            )
    return report


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Python waits for threads and processes without end: say where it waits, and fail."""

    def end() -> None:
        if "PYTEST_XDIST_WORKER" in os.environ:  # until then it waits for the others' tests
            threading.main_thread().join()
        time.sleep(PATIENCE)
        print(f"Still here {PATIENCE:g} s after the last test:", file=sys.__stderr__, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(pytest.ExitCode.TESTS_FAILED)

    threading.Thread(target=end, daemon=True).start()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: Any) -> None:
    """A worker has the same patience: pytest-xdist would kill it after ten seconds, without a word."""
    node.nodemanager.EXIT_TIMEOUT = PATIENCE + 30
    WORKERS.append(node)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Any:
    """How its workers ended is no matter to pytest-xdist: one that had to be killed fails the run."""
    result = yield  # pytest-xdist waits for them here
    ends = {node.gateway.id: node.gateway._io.wait() for node in WORKERS}
    for name, status in ends.items():
        if status:
            print(f"Worker {name} ended with status {status} after its tests.", file=sys.__stderr__)
    if any(ends.values()) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Any:
    """No test cuts the power, and to wait for the disk takes longer than most runs here do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def seeds_from_the_first() -> None:
    """Boxes without a seed are numbered by test, not by the order in which tests come to a process."""
    seeds = sys.modules.get("zo.box_gradient.seeds")
    if seeds is not None:
        seeds._count = 0
