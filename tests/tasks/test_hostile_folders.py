"""Commands in a downloaded folder: what they look for there is neither executed nor waited for."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tasks.command import commands
from tests.tasks.hostile import KINDS, Folder

BLACKBOX = [str(Path(sysconfig.get_path("scripts")) / "blackbox")]  # of an editable install
SETTINGS = ("--methods", "none", "fo", "--steps", "1", "--network", "simple-730", "--train-images", "64")
SIZES = ("--test-images", "20", "--validation-images", "20", "--width", "None")
COMMANDS = [
    ("run", "image-classification", *SETTINGS, *SIZES),
    ("run", "image-classification", "--dry-run", *SETTINGS, *SIZES),
    ("run", "wake-flow", "--help"),
    ("resume", "finished"),
    ("resume", "begun"),
    ("report", "finished"),
    ("report", "finished", "--export"),
    ("compare", "finished", "begun"),
    ("compare", "finished", "finished"),
    ("check", "lorenz-96", "--rows", "60"),
    ("check", "heat", "--rows", "60", "--no-processes"),
    ("tesseract", "lorenz-96", "written"),
    ("host", "written"),
    ("host", "finished", "--export", "network.pt"),
    ("new", "pump"),
    ("new", "pump", "--kind", "hosted"),
    ("new", "tea", "--kind", "posterior"),
    ("sample", "--help"),
    ("list",),
    ("info",),
    ("--version",),
    ("--help",),
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of a shipped problem that is finished, and one that has just begun."""
    place = tmp_path_factory.mktemp("runs")
    subprocess.run(
        [*BLACKBOX, *COMMANDS[0], "--runs", str(place / "runs")], cwd=place, check=True, capture_output=True
    )
    (finished,) = (place / "runs").iterdir()
    finished = finished.rename(place / "finished")
    begun = Path(shutil.copytree(finished, place / "begun"))
    for path in begun.iterdir():
        if path.name not in ("config.json", "begun.json", "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (begun / "checkpoints").iterdir():
        path.unlink()
    subprocess.run(
        [*BLACKBOX, "new", "tea", "--kind", "posterior"], cwd=place, check=True, capture_output=True
    )
    return [finished, begun, place / "tea.py"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("words", [("list",), ("--version",)], ids=" ".join)
def test_a_quick_command_fires_no_trap(tmp_path, words):
    assert Folder(tmp_path, BLACKBOX, []).broken(*words) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_fires_a_trap(tmp_path, runs, words):
    assert Folder(tmp_path, BLACKBOX, runs).broken(*words) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(
    "words", [("report", "finished"), ("check", "lorenz-96", "--rows", "60")], ids=" ".join
)
def test_no_kind_of_trap_fires(tmp_path, runs, words, kind):
    assert Folder(tmp_path, BLACKBOX, runs).broken(*words, kind=kind) == []


def test_each_command_is_among_them():
    without_end, asks_the_net = "serve", "data"
    assert {words[0] for words in COMMANDS} >= commands._COMMANDS.keys() - {without_end, asks_the_net}


def test_the_watch_sees_a_folder_on_the_path(tmp_path):
    """Or the others would pass whatever happened."""
    script = [sys.executable, "-P", "-c", "try: import no_such_module_anywhere\nexcept ImportError: pass"]
    folder = Folder(tmp_path, script, [], PYTHONPATH=str(tmp_path / "download"))
    broken = " ".join(folder.broken())
    for word in ("PATH", "READ", "EXECUTED", "FIRED: ['no_such_module_anywhere'"):
        assert word in broken
