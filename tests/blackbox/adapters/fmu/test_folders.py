"""The folders that FMUs are unpacked in: whose are removed, and where there are no locks."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from blackbox.adapters.fmu.instance import new_folder


@pytest.mark.slow
def test_folders_of_processes_that_were_killed_are_removed_and_no_others(tmp_path, monkeypatch):
    script = (
        "import os, signal, sys; from blackbox.adapters.fmu.instance import new_folder; made = new_folder(); "
        "print(made[0], flush=True); sys.stdin.read(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own, remove = new_folder()
    other = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    theirs = Path(other.stdout.readline().strip())
    remove_another = new_folder()[1]
    assert own.is_dir() and theirs.is_dir() and theirs.parent == tmp_path  # both are in use
    other.communicate()
    assert theirs.is_dir()  # a killed process removes nothing
    remove_last = new_folder()[1]
    assert own.is_dir() and not theirs.exists()
    for each in (remove, remove_another, remove_last):
        each()
    assert not list(tmp_path.iterdir())


def test_where_a_file_system_has_no_locks_folders_are_made_all_the_same(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("Function not implemented")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("fcntl.flock", refused)
    made = [new_folder() for _ in range(2)]
    assert all(folder.is_dir() for folder, _ in made)  # neither is taken for one that was left
    for _, remove in made:
        remove()
    assert not list(tmp_path.iterdir())


def test_a_forked_child_that_lets_go_of_a_box_leaves_its_folder_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, remove = new_folder()
    child = os.fork()
    if not child:
        try:
            remove()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert folder.is_dir()
    remove()
    assert not folder.exists()
