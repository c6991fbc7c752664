"""A test sees the optional programs and packages that it declares, and no others that are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from tests.conftest import pytest_collection_modifyitems

ROOT = Path(__file__).parents[1]
CONFTEST = """
from tests.conftest import *
from tests.conftest import pytest_configure, pytest_make_collect_report
"""
DECLARED = """
import importlib.util
import shutil
import subprocess
import sys
import pytest

with pytest.raises(ModuleNotFoundError):  # also while this file is imported
    import mlflow

def sees_nothing():
    assert shutil.which("ngspice") is None and shutil.which("cc") is None
    with pytest.raises(FileNotFoundError):
        subprocess.run(["ngspice"])
    look = "import shutil, sys; sys.exit(shutil.which('ngspice') is not None)"
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0
    assert "mlflow" not in sys.modules and importlib.util.find_spec("mlflow") is None
    for module in ("mlflow", "mlflow.client", "brought"):
        with pytest.raises(ModuleNotFoundError) as missing:
            importlib.import_module(module)
        assert missing.value.name == module.partition(".")[0]

def test_before():
    sees_nothing()
    assert subprocess.run(["sh", "-c", "cat /dev/null | sort"]).returncode == 0

@pytest.fixture(scope="module")
def asked():
    return subprocess.run(["ngspice"], capture_output=True, text=True, check=True).stdout

@pytest.mark.needs("ngspice", "mlflow")
def test_that_declares(asked):
    import mlflow.client
    assert mlflow.client.brought.ANSWER == 42
    assert asked == "a helper of ngspice\\n"
    assert shutil.which("cc") is None

def test_behind():
    sees_nothing()

@pytest.mark.needs("tesseract")
def test_that_needs_what_an_extra_brings():
    import tesseract_core
    assert tesseract_core.behind.ANSWER == 43

@pytest.mark.needs("mlflow")
def test_that_declares_again():
    import mlflow.client
    assert shutil.which("ngspice") is None

@pytest.mark.needs("ngspice", "calculix")
def test_that_needs_what_is_not_there():
    raise AssertionError
"""
UNDECLARED = """
import pytest

@pytest.mark.skipif(True, reason="no compiler")
def test_marked():
    pass

@pytest.mark.needs("ngspice")
def test_inside():
    pytest.skip("no licence")

@pytest.fixture
def absent():
    pytest.importorskip("mlflow")

def test_of_a_fixture(absent):
    pass

@pytest.mark.needs("ngspise")
def test_misspelt():
    pass

@pytest.mark.needs("ngspice")
def test_said():
    pytest.skip("apt-get install ngspice: it does not start")
"""
WHOLE_FILE = """
import pytest
mlflow = pytest.importorskip("mlflow")
"""


@pytest.fixture
def run(tmp_path):
    """Runs pytest on a file where there are ngspice, a compiler and MLflow: its status and what it said."""
    (tmp_path / "bin").mkdir()
    for name, text in {"ngspice": "helper", "helper": "echo a helper of ngspice", "cc": "true"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    packages = {"mlflow": "Requires-Dist: brought>=1", "brought": "Requires-Dist: numpy"}
    # with the extra `runtime`, as pyproject.toml asks for it
    packages |= {
        "tesseract-core": "Requires-Dist: behind; extra == 'runtime'",
        "behind": "Requires-Dist: numpy",
    }
    for name, line in packages.items():
        (tmp_path / "packages" / f"{name}-1.0.dist-info").mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{line}\n\nName: other\n"
        (tmp_path / "packages" / f"{name}-1.0.dist-info" / "METADATA").write_text(head)
        (tmp_path / "packages" / f"{name}-1.0.dist-info" / "top_level.txt").write_text(name.replace("-", "_"))
    (tmp_path / "packages" / "mlflow").mkdir()
    (tmp_path / "packages" / "mlflow" / "__init__.py").touch()
    (tmp_path / "packages" / "mlflow" / "client.py").write_text("import brought")
    (tmp_path / "packages" / "brought.py").write_text("ANSWER = 42")
    (tmp_path / "packages" / "tesseract_core.py").write_text("import behind")
    (tmp_path / "packages" / "behind.py").write_text("ANSWER = 43")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    needs\n    gpu\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)

    def run(text, *words):
        (tmp_path / "test_one.py").write_text(text)
        own = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "packages")])}
        own |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        own |= {"BLACKBOX_TESTS_PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *words, str(tmp_path)],
            cwd=tmp_path,
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_only_what_is_declared_is_seen_and_what_is_not_there_is_skipped(run):
    status, said = run(DECLARED)
    assert status == pytest.ExitCode.OK and "5 passed, 1 skipped" in said, said
    assert "apt-get install calculix-ccx" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers",
    [[], pytest.param(["-p", "xdist", "-n", "1"], marks=pytest.mark.slow)],
    ids=["alone", "by-a-worker"],
)
def test_a_test_that_was_neither_run_nor_declared_has_failed(run, workers):
    status, said = run(UNDECLARED, *workers)
    assert status == pytest.ExitCode.TESTS_FAILED and "1 skipped" in said, said
    for name, reason in {"marked": "no compiler", "inside": "no licence", "of_a_fixture": "mlflow"}.items():
        assert f"test_{name} was neither run nor declared: it was skipped with " in said and reason in said
    assert "needs('ngspise'): expected a name of tests/needs.py: " in said


def test_a_file_that_skips_itself_has_failed(run):
    status, said = run(WHOLE_FILE)
    assert status == pytest.ExitCode.INTERRUPTED, said
    assert "test_one.py was neither run nor declared" in said


class Case:
    """As much of a test's case as is looked at when some are chosen."""

    def __init__(self, name, **markers):
        self.nodeid, self.markers, self.added = name, markers, []

    def get_closest_marker(self, name):
        return self.markers.get(name)

    def add_marker(self, marker):
        self.added.append(marker.name)


def test_of_many_cases_some_are_quick_from_the_first_to_the_last():
    five, one = pytest.mark.quick_cases(3).mark, pytest.mark.quick_cases(1).mark
    many = [Case(f"a.py::test_many[{n}]", quick_cases=five) for n in range(5)]
    few = [Case(f"a.py::test_few[{n}]", quick_cases=one) for n in range(3)]
    other = [Case("a.py::test_other"), Case("a.py::test_many[5]", quick_cases=five, slow=pytest.mark.slow)]
    pytest_collection_modifyitems(cast(Any, [*many, *few, *other]))
    assert [case.added for case in many] == [[], ["slow"], [], ["slow"], []]
    assert [case.added for case in few] == [[], ["slow"], ["slow"]]
    assert [case.added for case in other] == [[], []]
