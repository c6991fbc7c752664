"""`blackbox host`: the files of a program's side, and a program that runs with a trained network."""

import subprocess
import warnings

import numpy as np
import pytest
import torch

from blackbox.adapters import OnnxModel
from tasks.errors import CheckpointWarning
from tasks.rows.kept_answers import KeptAnswers
from tests.blackbox.adapters.hosted.programs import LINEAR, hosted

ENDS = ("c", "f90", "h", "hpp", "py")


def test_it_writes_what_a_program_needs(toy, tmp_path, capsys):
    assert toy("host", str(tmp_path / "bb")) == 0
    assert sorted(path.name for path in (tmp_path / "bb").iterdir()) == [
        "bb_host.c",
        "bb_host.f90",
        "bb_host.h",
        "bb_host.hpp",
        "bb_host.py",
    ]
    assert "bb_exchange" in capsys.readouterr().out
    assert toy("host", str(tmp_path / "bb")) == 0  # again: they are the same
    (tmp_path / "bb" / "bb_host.c").write_text("mine")
    assert toy("host", str(tmp_path / "bb")) == 2
    assert (tmp_path / "bb" / "bb_host.c").read_text() == "mine"


def test_nothing_is_written_into_the_folder_of_a_run(toy, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "begun.json").touch()
    assert toy("host", "run") == 2
    assert "got the run run alone" in capsys.readouterr().err
    assert not (tmp_path / "run" / "bb_host.h").exists()


def test_a_program_may_have_checkpoints_of_its_own(toy, tmp_path):
    (tmp_path / "ocean" / "checkpoints").mkdir(parents=True)
    assert toy("host", "ocean") == 0
    assert (tmp_path / "ocean" / "bb_host.h").is_file()


def test_a_program_takes_serve(toy, tmp_path, capsys):
    assert toy("host", str(tmp_path), "ocean") == 2
    assert "--serve" in capsys.readouterr().err


def test_a_run_that_was_killed_begins_programs_again(tmp_path):
    """Answers that a run has kept go on from programs that have ended with the process before."""
    network, runs = torch.nn.Linear(2, 2), []
    for calls in (2, 4):  # up to a kill, and after it
        host, answered = hosted(tmp_path, LINEAR), KeptAnswers("step", tmp_path)
        with answered.used(), torch.no_grad():
            runs.append(host.run([0, 1], calls=calls, closure=network).closure.x)
            answered.write()
        host.close()
    assert torch.equal(runs[0], runs[1][:, :3])


@pytest.mark.slow
@pytest.mark.needs("cc")
@pytest.mark.filterwarnings("ignore:Step 1. expected the response")  # three steps are too few to know it
def test_a_trained_network_answers_the_program(toy, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert toy("new", "my-rod", "--kind", "hosted") == 0
    subprocess.run(["make", "-s", "-f", "my_rod.mk"], check=True)
    assert toy("run", "my_rod.py", "--steps", "3", "--batch", "2", "--methods", "none", "tangents") == 0
    (run,) = (tmp_path / "runs").iterdir()
    from tasks import load

    finished = load(run)
    network, host = finished.network("tangents"), finished.problem.box
    capfd.readouterr()
    from my_rod import profiles

    np.savetxt(tmp_path / "start.txt", profiles()[7])
    assert toy("host", "--serve", str(run), "--", "./my_rod_program", "start.txt", "20") == 0
    *numbers, words = capfd.readouterr().out.splitlines()
    last = host.run([7], calls=20, flux=network.requires_grad_(False)).flux.temperature[0, -1]
    assert np.allclose([float(number) for number in numbers], last, atol=1e-6)
    assert words == "20 calls answered by the network of tangents, seed 0."
    for ending in ("pt", "onnx"):
        assert toy("host", str(run), "--export", f"net.{ending}") == 0
    x = torch.linspace(0.5, 1.5, 32).view(2, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is to end
        written = torch.jit.load("net.pt")(x)
    torch.testing.assert_close(written, network(x))
    answer = OnnxModel("net.onnx")(x)
    torch.testing.assert_close(answer, network(x), rtol=1e-5, atol=1e-6)
    assert toy("host", str(run), "--export", "net.txt") == 2

    (run / "result.json").unlink()  # as if it had been stopped right before: its last checkpoint has it
    capfd.readouterr()
    with pytest.warns(CheckpointWarning, match="that by step 3 of 3"):
        assert toy("host", "--serve", str(run), "--", "./my_rod_program", "start.txt", "20") == 0
    *earlier, words = capfd.readouterr().out.splitlines()
    assert earlier == numbers
    assert words == "20 calls answered by the network of tangents, seed 0."
    assert toy("host", "--serve", str(run), "--method", "identity", "--", "./my_rod_program") == 2
    assert "expected one of the methods tangents and of the seeds" in " ".join(capfd.readouterr().err.split())
