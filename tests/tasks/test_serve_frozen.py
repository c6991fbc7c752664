"""`blackbox serve` with a frozen derivative: learned, read from rows, read from its file, and refused."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.error
import urllib.request

import h5py
import numpy as np
import pytest

BOXES = """
import time
from pathlib import Path
import numpy as np
from blackbox import ArraySpec, BlackBoxFunction

class Banana(BlackBoxFunction):
    inputs = (ArraySpec("x", (2,), dtype="float64"),)
    outputs = (ArraySpec("y", (2,), dtype="float64"),)

    def evaluate_rows(self, x):
        while len(x) > 1 and Path("hold").exists():
            time.sleep(0.01)
        with open("rows.txt", "a") as file:
            file.write("row " * len(x))
        return np.stack([x[:, 0], x[:, 1] + x[:, 0] ** 2], 1)

class Tired(Banana):
    def evaluate_rows(self, x):
        if Path("rows.txt").exists():
            raise KeyboardInterrupt
        return super().evaluate_rows(x)

class Broken(Banana):
    def evaluate_rows(self, x):
        return np.full((len(x), 2), np.nan)
"""


@pytest.fixture
def boxes(tmp_path):
    """The boxes in a file, and draws beside it; how many rows they were asked."""
    (tmp_path / "bananas.py").write_text(BOXES)
    np.save(tmp_path / "draws.npy", np.random.default_rng(0).normal(size=(60, 2)))

    def asked():
        file = tmp_path / "rows.txt"
        return file.read_text().count("row") if file.exists() else 0

    return asked


def until_frozen(box, **settings):
    """Serve nothing, until the derivative is there."""
    while (box if hasattr(box, "info") else next(iter(box.values()))).info is None:
        time.sleep(0.01)


def write_rows(path, x, y):
    with h5py.File(path, "w") as file:
        file["inputs/x"], file["outputs/y"] = x, y


def address(process):
    while not (
        said := re.fullmatch(r"serving \S+ at (http://127\.0\.0\.1:\d+)/?\n", process.stdout.readline())
    ):
        assert process.poll() is None, process.stderr.read()
    return said[1]


def gradient(url):
    asked = {"name": "Banana", "input": [[0.5, -1]], "sens": [1, 2], "outWrt": 0, "inWrt": 0}
    request = urllib.request.Request(f"{url}/Gradient", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def stop(process):
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130)


@pytest.mark.slow
def test_gradients_are_refused_until_they_are_frozen_and_a_second_start_takes_no_row(
    start_toy, tmp_path, boxes
):
    (tmp_path / "hold").touch()
    words = ("serve", "bananas.py:Banana", "--port", "0", "--frozen", "banana.pt")
    process = start_toy(*words, "--learn", "60", "--around", "draws.npy")
    url = address(process)
    with pytest.raises(urllib.error.HTTPError) as refused:
        gradient(url)
    assert b"expected a derivative that is frozen, got none yet" in refused.value.read()
    (tmp_path / "hold").unlink()
    assert re.match(r"frozen: .* learned from 48 rows; .* on 12 held-out rows: y ", process.stdout.readline())
    first = gradient(url)
    np.testing.assert_allclose(json.loads(first)["output"], [3, 2], atol=0.05)  # v0 + 2 x0 v1, v1
    stop(process)
    again = start_toy(*words, "--learn", "60", "--around", "draws.npy")
    assert again.stdout.readline().startswith("frozen: ")
    assert "was there, so nothing is learned" in again.stdout.readline()
    assert gradient(address(again)) == first and boxes() == 60
    stop(again)


@pytest.fixture
def served(monkeypatch):
    """What is served, in place of serving it."""
    from blackbox.adapters import um_bridge

    served = []
    monkeypatch.setattr(um_bridge, "serve", lambda box, **settings: served.append(box) or until_frozen(box))
    return served


@pytest.mark.slow
def test_a_file_of_rows_costs_none(toy, tmp_path, boxes, served):
    x = np.random.default_rng(1).normal(size=(60, 2))
    write_rows(tmp_path / "rows.h5", x, x @ [[1, 0], [0, 2]])
    assert toy("serve", "bananas.py:Banana", "--from", "rows.h5") == 0
    solver = served[0]["Banana"]
    np.testing.assert_allclose(solver.vjp(x[:1], np.ones((1, 2))), [[1, 2]], atol=1e-4)
    assert boxes() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "wide.h5"], "input 'x': expected (..., 2), got (60, 3)"),
        (["--from", "nowhere.h5"], "expected an HDF5 file with the groups inputs and outputs, got none"),
        (["--learn", "60", "--around", "wide.npy"], "input 'x': expected (..., 2), got (60, 3)"),
        (["--learn", "60", "--around", "nowhere.npy"], "--around: expected a file of inputs"),
        (["--learn", "60"], "around: expected inputs, or specs with scale= or bounds=, got neither for 'x'"),
        (
            ["--from", "wide.h5", "--learn", "60"],
            "expected either --learn ROWS --around FILE, or --from FILE",
        ),
        (
            ["--frozen", "nowhere.pt"],
            "expected either --learn ROWS --around FILE, or --from FILE, got neither",
        ),
        (["--frozen", "wide.npy"], "expected a frozen derivative, got something else"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_anything_is_served(
    toy, tmp_path, capsys, boxes, served, words, said
):
    x = np.zeros((60, 3))
    write_rows(tmp_path / "wide.h5", x, x[:, :2])
    np.save(tmp_path / "wide.npy", x)
    assert toy("serve", "bananas.py:Banana", *words) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())
    assert served == [] and boxes() == 0


@pytest.mark.usefixtures("boxes", "served")
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["usual", "background"])
def test_what_goes_wrong_while_it_learns_ends_the_server(toy, capsys, handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert toy("serve", "bananas.py:Broken", "--learn", "60", "--around", "draws.npy") in (1, 2)
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "expected at least 10 with finite numbers, got 0" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("served")
def test_rows_that_were_bought_before_it_ended_are_in_a_file_beside_the_derivative(toy, tmp_path, boxes):
    words = ("--learn", "100", "--around", "draws.npy", "--frozen", "banana.pt")
    toy("serve", "bananas.py:Tired", *words)
    with h5py.File(tmp_path / "banana.pt.rows.h5") as file:
        assert len(file["outputs/y"]) == boxes() == 64
