"""The toy problems in the table of problems, a run to write to, and ways to start the console script."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

# `tasks` is imported in the fixtures: this file is read before typeguard is set up


@dataclass(frozen=True)
class Settings:
    steps: int = 3


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory):
    """Secrets of the tests, not of the one who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="package", autouse=True)
def drawing():
    """Pictures are files of one dot: to draw takes longer than most runs here. `with drawing():` draws."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    def dot(figure, path, **settings):
        imsave(path, np.ones((1, 1, 3)), format=settings.get("format"))

    @contextmanager
    def drawing():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", whole)
            yield

    whole = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", dot)
        yield drawing


@pytest.fixture(scope="module")
def drawn(drawing):
    """All pictures of this file's tests are drawn."""
    with drawing():
        yield


@pytest.fixture(autouse=True)
def no_time_passes(limits):
    """Or a slow machine would write checkpoints that a fast one does not; tests of that have a clock."""
    limits(clock_of_writes=lambda: 0.0)


@pytest.fixture
def run(tmp_path):
    from tasks import Run
    from tasks.folder.terms import Terms

    return Run.create(tmp_path / "runs", Terms("toy", "demo", Settings(), [0]))


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The console script in this process: `toy("run", "toy", ...)` -> exit status; cwd is empty."""
    from tasks.command import cli
    from tasks.configuration import names

    monkeypatch.setitem(names.PROBLEMS, "toy", "toy:Toy")
    monkeypatch.chdir(tmp_path)
    return lambda *words: cli.main(list(words))


@pytest.fixture
def start_toy(tmp_path):
    """The console script in a process of its own: `start_toy("run", "toy", ...)` -> Popen."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, str(HERE / "toy_cli.py"), *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(HERE.parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def shared(tmp_path):
    """The console script in a process of its own, in a folder: `shared("a", "run", ...)` -> Popen."""
    started = []

    def start(name, *words, before=(sys.executable,), **environment):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        environment = {"PYTHONPATH": f"{HERE.parent.parent}", "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(
            [*before, str(HERE / "toy_cli.py"), *words],
            cwd=folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """What one process comes to with the problem whose queries are shared out."""
    from tests.tasks.shared_runs import outcome

    folder = tmp_path_factory.mktemp("truth")
    environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(HERE / "toy_cli.py"), "run", "shared"],
        cwd=folder,
        env=environment,
        check=True,
    )
    return outcome(folder)
