"""A process that does not end after its tests fails them, and says where it hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = """
import tests.conftest
from tests.conftest import pytest_sessionfinish, pytest_testnodeready, pytest_unconfigure

tests.conftest.PATIENCE = 0.5
"""
TESTS = """
import threading

def wait_without_end():
    threading.Event().wait()

def test_that_passes():
    threading.Thread(target={target}).start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "by-a-worker"])
@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "ends"])
def test_a_process_that_hangs_after_its_tests_fails_them(tmp_path, hangs, workers):
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "conftest.py").write_text(CONFTEST)
    target = "wait_without_end" if hangs else "int"
    (tmp_path / "test_one.py").write_text(TESTS.format(target=target))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=100", *workers, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == (pytest.ExitCode.TESTS_FAILED if hangs else pytest.ExitCode.OK)
    assert ("wait_without_end" in done.stderr) == hangs
