import os

import pytest

from blackbox.adapters.command import files, process
from blackbox.errors import ConfigurationError


@pytest.mark.parametrize("name, plain", [("a.npy", "a.npy"), ("a//b/./c", "a/b/c"), ("..a", "..a")])
def test_names_inside_the_folder(name, plain):
    assert files.checked_name("here", name) == plain


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../../b", "a/..", "/etc/passwd", "//a", "a\0b", None, 3, b"a"]
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ConfigurationError, match="here: expected the name of a file in the run's own folder"):
        files.checked_name("here", name)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_text("password")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_plain_files_and_links_inside_are_opened(folder):
    (folder / "results").mkdir()
    (folder / "results" / "10").write_text("5")
    (folder / "latest").symlink_to("results")
    assert files.output(folder, "results/10").read_text() == "5"
    assert files.output(folder, "latest/10").read_text() == "5"


@pytest.mark.parametrize(
    "make, name, words",
    [
        (lambda run: (run / "a").symlink_to("../secret"), "a", "leads out"),
        (lambda run: (run / "a").symlink_to(run.parent / "secret"), "a", "leads out"),
        (lambda run: (run / "a").symlink_to(".."), "a/secret", "leads out"),
        (lambda run: (run / "a").symlink_to("/dev/zero"), "a", "leads out"),
        (lambda run: (run / "a").symlink_to("a"), "a", "expected the program to write a"),
        (lambda run: (run / "a").symlink_to("nothing"), "a", "expected the program to write a"),
        (lambda run: (run / "b").touch(), "a", "to write a, found only b"),
        (lambda run: (run / "a").mkdir(), "a", "plain file"),
        (lambda run: os.mkfifo(run / "a"), "a", "plain file"),
    ],
)
def test_other_files_are_refused(folder, make, name, words):
    make(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        files.output(folder, name)


def test_a_folder_beside_with_a_longer_name_is_outside(folder):
    (folder.parent / "run-2").mkdir()
    (folder.parent / "run-2" / "a").touch()
    (folder / "a").symlink_to("../run-2/a")
    with pytest.raises(ValueError, match="leads out"):
        files.output(folder, "a")


def test_files_and_folders_are_copied(tmp_path, folder):
    (tmp_path / "case" / "system").mkdir(parents=True)
    (tmp_path / "case" / "system" / "dict").write_text("x")
    files.copy_into(folder, "sub/case", tmp_path / "case")
    files.copy_into(folder, "deep/secret", tmp_path / "secret")
    (folder / "sub/case/system/dict").write_text("changed by the program")
    assert (tmp_path / "case/system/dict").read_text() == "x"
    assert (folder / "deep/secret").read_text() == "password"


def test_the_folder_is_removed_with_everything_in_it_but_what_it_links_to(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with process.scratch_folder(tmp_path, False) as folder:
        (folder / "closed").mkdir()
        (folder / "closed" / "file").touch()
        (folder / "closed").chmod(0)
        (folder / "link").symlink_to(tmp_path / "precious")
        (folder / "read" / "only").mkdir(parents=True)
        (folder / "read" / "only" / "file").touch()
        (folder / "read" / "only").chmod(0o500)
        (folder / "read").chmod(0o500)
        folder.chmod(0o500)
    assert not folder.exists()
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.parametrize("keep", [False, True])
def test_the_folder_of_a_failed_run_is_kept_on_request_and_named(tmp_path, keep):
    with pytest.raises(ValueError) as caught, process.scratch_folder(tmp_path, keep) as folder:
        raise ValueError("no good.")
    assert folder.exists() == keep
    assert str(caught.value) == (f"no good. The run's folder: {folder}" if keep else "no good.")
    assert (folder.stat().st_mode & 0o777 == 0o700) if keep else True  # nobody else looks in


def test_an_interrupted_run_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), process.scratch_folder(tmp_path, True):
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())
