"""Real disks that go wrong under a run: a small tmpfs that fills up, a folder that becomes read-only."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import UNSHARE
from tests.tasks.test_cli import figures, only_run

pytestmark = [pytest.mark.needs("mounts"), pytest.mark.slow]
HERE = Path(__file__).parent

# each step of a run has its lines of metrics at once: by them the shell knows where the run is
SCRIPT = """
lines() { cat runs/*/metrics.jsonl 2>/dev/null | wc -l; }
at_line() { while [ "$(lines)" -lt "$1" ] && kill -0 "$2" 2>/dev/null; do sleep 0.02; done; }
toy() { "$PYTHON" "$PROGRAM" "$@"; }
"""


@pytest.fixture
def in_own_mounts(tmp_path):
    """Runs a shell script where it may mount: gives its output."""

    def run(script):
        own = {"PYTHON": sys.executable, "PROGRAM": str(HERE / "toy_cli.py"), "OMP_NUM_THREADS": "1"}
        own |= {"PYTHONPATH": f"{HERE.parent.parent}:{HERE}"}
        return subprocess.run(
            [*UNSHARE, "bash", "-c", SCRIPT + script],
            cwd=tmp_path,
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


FULL = """
mkdir runs && mount -t tmpfs -o size=1m none runs
toy run toy --pause 0.1 2>said & at_line 8 $!
cat /dev/zero > runs/filler 2>/dev/null  # the rest of the file system
wait $!; echo "status $?"
rm runs/filler
toy resume runs/toy-* && cp -r runs kept
"""
READ_ONLY = """
toy run toy --pause 0.1 2>said & at_line 8 $!
folder=$(echo runs/toy-*)
mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder"
wait $!; echo "status $?"
toy resume "$folder" 2>again; echo "status $?"
cp -r runs kept && umount "$folder"
"""


def test_a_full_file_system_stops_a_run_that_goes_on_when_there_is_space(in_own_mounts, toy, tmp_path):
    assert toy("run", "toy", "--runs", "truth") == 0
    done = in_own_mounts(FULL)
    said = (tmp_path / "said").read_text()
    assert "status 1" in done.stdout and done.returncode == 0, (done, said)
    assert re.search(
        r"blackbox: \S+: expected to write .*, got 'No space left on device'\. Free some space there\. "
        r".* Resume with: blackbox resume runs/toy-",
        said,
    ), said
    (run,) = (tmp_path / "kept").glob("toy-*")
    (truth,) = (tmp_path / "truth").iterdir()
    assert figures(run) == figures(truth)


def test_a_folder_that_becomes_read_only_stops_a_run_whose_copy_goes_on(in_own_mounts, toy, tmp_path):
    assert toy("run", "toy", "--runs", "truth") == 0
    done = in_own_mounts(READ_ONLY)
    said, again = (tmp_path / "said").read_text(), (tmp_path / "again").read_text()
    assert done.stdout.count("status 1\n") == 2 and done.returncode == 0, (done, said, again)
    mend = "Make it writable, or copy the run's folder elsewhere and resume that one."
    for text in (said, again):
        assert "'Read-only file system'" in text and mend in text, text
        assert "Resume with: blackbox resume" in text, text
    (copy,) = (tmp_path / "kept").glob("toy-*")
    assert toy("resume", str(copy)) == 0
    (truth,) = (tmp_path / "truth").iterdir()
    assert figures(copy) == figures(truth) and only_run(tmp_path).name == copy.name
