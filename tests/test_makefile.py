"""`make demo` where a folder has a name of several words, and once more when all is there."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
STUB = '#!/bin/sh\necho "$(basename "$0") $*" >> calls\n'


def test_the_demo_runs_twice_without_installing_twice_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "Größe und Maß"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("python", "blackbox"):
        program = folder / ".venv" / "bin" / name
        program.write_text(STUB)
        program.chmod(0o755)
    for _ in range(2):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(["make", "demo"], cwd=folder, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    calls = (folder / "calls").read_text().splitlines()
    assert calls.count("blackbox run wake-flow --preset demo") == 2
    assert len([call for call in calls if "pip install" in call]) == 1
