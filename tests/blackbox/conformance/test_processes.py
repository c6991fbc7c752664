"""Other processes: faults that show only there, workers that die, hang or cannot start."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blackbox.conformance import Verdict
from blackbox.conformance.concurrency import in_processes, pickled, process_safety
from tests.blackbox.conformance.broken_boxes import (
    IN_PROCESSES,
    CannotBeRebuilt,
    Good,
    Hangs,
    OneScratchFile,
    Unpicklable,
)
from tests.blackbox.conformance.probes import draws, probing

SETTINGS, REBUILT, FIRST, DIES = IN_PROCESSES


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [*(pytest.param(broken, marks=pytest.mark.slow) for broken in (SETTINGS, REBUILT, FIRST)), DIES],
    ids=["settings", "rebuilt", "first", "dies"],
)
def test_faults_that_show_only_there(broken):
    with probing(broken.make(), draws(4, 3), processes=True) as probe:
        found = process_safety(probe)
    (named,) = (finding for finding in found if finding.check == broken.check)
    assert named.verdict is broken.verdict
    for word in broken.words:
        assert word in named.sentence


@pytest.mark.slow
def test_two_processes_that_share_a_file(tmp_path):
    with probing(OneScratchFile(tmp_path / "scratch"), draws(4, 3), processes=True) as probe:
        same, safe = process_safety(probe)
    assert same.verdict is Verdict.OK
    assert safe.verdict is Verdict.FAULT
    assert "scratch folder" in safe.sentence


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_in_time():
    started = time.monotonic()
    for reply in in_processes(pickle.dumps(Hangs()), (draws(2, 3),), seconds=6):
        assert reply.answers == [] and "no answer in time" in reply.died
    assert time.monotonic() - started < 60  # not the 1000 s of the box


def test_what_cannot_be_pickled_starts_no_process(limits):
    limits(other_processes=pytest.fail)
    with probing(Unpicklable(), draws(4, 3), processes=True) as probe:
        same, safe = process_safety(probe)
    assert (same.verdict, safe.verdict) == (Verdict.WARNING, Verdict.SKIPPED)


def test_a_class_typed_into_a_script_is_no_class_elsewhere(monkeypatch):
    monkeypatch.setattr(Good, "__module__", "__main__")
    assert "__main__" in str(pickled(Good()))
    monkeypatch.undo()
    assert isinstance(pickled(CannotBeRebuilt()), bytes)


@pytest.mark.slow
def test_the_parent_s_main_is_not_run_again(tmp_path):
    """A script without a guard, as people write them: `multiprocessing` would start it once more."""
    (tmp_path / "boxes.py").write_text(
        "from tests.blackbox.conformance.broken_boxes import Good\nclass Mine(Good):\n    pass\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom boxes import Mine\n"
        "from blackbox.conformance.concurrency import in_processes, pickled\nimport numpy as np\n"
        "print('started')\n"
        "reply, _ = in_processes(pickled(Mine()), (np.zeros((2, 3), 'f4'),))\n"
        "print(reply.answers[0][0].tolist(), reply.died)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), os.getcwd()], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "started\n[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]] \n"


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
    """Else a check that was killed leaves solvers behind, which nobody ends."""
    (tmp_path / "waits.py").write_text(
        "import os, pathlib, time\n"
        "from tests.blackbox.conformance.broken_boxes import Good\n"
        "class Waits(Good):\n"
        "    def evaluate_rows(self, state):\n"
        "        pathlib.Path(__file__).with_name(f'started-{os.getpid()}').touch()\n"
        "        time.sleep(600)\n"
    )
    script = (
        "from blackbox.conformance.concurrency import in_processes, pickled\n"
        "from tests.blackbox.conformance.probes import draws\n"
        "from waits import Waits\n"
        "in_processes(pickled(Waits()), (draws(4, 3),), 600)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    parent = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path})
    try:
        workers = []
        deadline = time.monotonic() + 120
        while len(workers) < 2 and time.monotonic() < deadline and parent.poll() is None:
            workers = [int(file.name.split("-")[1]) for file in tmp_path.glob("started-*")]
            time.sleep(0.05)
        assert len(workers) == 2
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 60
    while any(map(_is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_running, workers))


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a dead one that nobody has waited for yet
