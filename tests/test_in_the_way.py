"""A file with a package's name is named where a script asks it for what the package has, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(tmp_path):
    """Runs a script beside files of a user's: what it printed, and its last words."""

    def run(text, **files):
        for name, content in files.items():
            (tmp_path / f"{name}.py").write_text(content)
        (tmp_path / "train.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "train.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "BLACKBOX_NAMED_CODE": "{}"},
            capture_output=True,
            text=True,
        )
        return done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import tasks\nimport blackbox\nclass Mine(tasks.Problem): pass", "AttributeError"),
        ("import blackbox\nfrom tasks import Problem", "ImportError"),
        ("import simulators\nimport tasks.running.start", "ModuleNotFoundError"),
    ],
    ids=["attribute", "name", "module"],
)
def test_the_file_that_is_in_the_way_of_tasks_is_named(script, tmp_path, text, error):
    _, said = script(text, tasks="def work(): pass")
    assert said.splitlines()[-1].startswith(error)
    (told,) = [line for line in said.splitlines() if "expected the package of blackbox-coupling" in line]
    assert "RuntimeWarning: tasks: expected" in told and "Rename" in told
    assert f"got {tmp_path / 'tasks.py'}, which" in told


@pytest.mark.slow
def test_the_file_that_is_in_the_way_of_what_a_package_needs_is_named(script, tmp_path):
    _, said = script("import zo", blackbox="")
    expected = "ImportError: blackbox: expected the package of blackbox-coupling, got "
    assert said.splitlines()[-1].startswith(expected)
    assert str(tmp_path / "blackbox.py") in said.splitlines()[-1]


def test_a_user_s_own_tasks_are_let_alone(script):
    own = "def work(): return 'done'"
    assert script("import blackbox, tasks\nprint(tasks.work())", tasks=own) == ("done\n", "")
    has_run = "def run(): return 'done'"
    assert script("import blackbox, tasks\nprint(tasks.run())", tasks=has_run) == ("done\n", "")
    for text in (
        "tasks.wrok",
        "from tasks import wrok",
        "{}['Problem']",
    ):
        _, said = script(f"import blackbox, tasks\n{text}", tasks=own)
        assert "Error" in said.splitlines()[-1] and "blackbox-coupling" not in said


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("tasks", [None, "def work(): pass"], ids=["nothing", "a file"])
def test_an_import_changes_no_hook_and_no_variable(script, tasks):
    look = """import os, sys
def state(): return sys.excepthook, dict(os.environ), sys.path[:], sys.meta_path[:]
before = state()
import blackbox, simulators
print(state() == before)"""
    files = {} if tasks is None else {"tasks": tasks}
    assert script(look, other="", zoo="", **files) == ("True\n", "")


LEFT = "import sys, blackbox_coupling as b; b.leave_the_current_folder(); print(*sys.path, sep='\\n')"


@pytest.mark.parametrize("options", [("-c", LEFT), ("-m", "leaving"), ("-P", "-c", LEFT)], ids=" ".join)
def test_what_is_another_folder_in_each_folder_is_taken_off_the_path(tmp_path, options):
    (tmp_path / "leaving.py").write_text(LEFT)
    (tmp_path / "below").mkdir()
    meant = str(tmp_path / "meant")
    for path in (f"{ROOT}:{meant}", f"{ROOT}::below:.:{meant}", f"{ROOT}:{meant}:"):
        done = subprocess.run(
            [sys.executable, *options],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        left = done.stdout.splitlines()
        assert {str(ROOT), meant} < set(left)
        assert all(os.path.isabs(part) or not (tmp_path / part).exists() for part in left)
        assert not {str(tmp_path), str(tmp_path / "below"), ""} & set(left)


def test_a_folder_that_is_written_out_stays_on_the_path_where_one_works_in_it(tmp_path):
    path = f"{ROOT}:{tmp_path}"
    left = subprocess.check_output(
        [sys.executable, "-c", LEFT], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, text=True
    )
    assert str(tmp_path) in left.splitlines()


def test_python_m_blackbox_is_the_command(tmp_path):
    words = [sys.executable, "-m", "blackbox"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.check_output([*words, "--version"], cwd=tmp_path, env=env, text=True)
    assert said.startswith("blackbox-coupling ")
