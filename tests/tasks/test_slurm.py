"""The recipes of pages under a real Slurm: scripts and their signals, the ranks of srun, an array of jobs.

The pages are docs/guide/cluster.md and docs/howto/queue.md.
"""

import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tasks
from blackbox.named_code import VARIABLE
from tests.slurm import free_ports, started
from tests.tasks.shared_runs import PROGRAM, outcome
from tests.tasks.test_cluster import lines_of, the_script

pytestmark = [pytest.mark.needs("slurm"), pytest.mark.slow]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guide/cluster.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def slurm():
    with started() as queue:
        yield queue


@pytest.fixture
def programs(tmp_path):
    """What the page's script calls, with the tests' problem; the environment of a job."""
    place = tmp_path / "bin"
    place.mkdir()
    bash = shutil.which("bash")
    for name, command in {"blackbox": PROGRAM, "torchrun": "-m torch.distributed.run"}.items():
        (place / name).write_text(f'#!{bash}\nexec {sys.executable} {command} "$@"\n')
        (place / name).chmod(0o755)
    return {
        "PATH": f"{place}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PORT": str(free_ports(1)[0]),
    }


def submit(slurm, programs, folder, *options, task="shared"):
    """The page's script with another task; the number of its job."""
    text = re.sub(r"^task=\(.*\)", f"task=({task})", the_script(), flags=re.MULTILINE)
    text = re.sub(r"^processes=\d+", "processes=2", text, flags=re.MULTILINE)
    (folder / "job.sh").write_text(text)
    words = ("sbatch", "--parsable", "--cpus-per-task=2", *options, "job.sh")
    return slurm.run(*words, cwd=folder, **programs).strip()


def ended(slurm, number, folder):
    """Wait for a job; the folder of its run, moved to where `outcome` looks for it."""
    known = slurm.wait(number, lambda job: job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
    log = (folder / f"slurm-{number}.out").read_text()
    assert known["JobState"] == "COMPLETED", f"{known}\n{log}"
    (folder / "a").mkdir()
    (folder / "runs" / f"job-{number}").rename(folder / "a" / "runs")
    return known, log


def test_the_page_s_script_runs_on_two_nodes(slurm, programs, truth, tmp_path):
    number = submit(slurm, programs, tmp_path)
    known, _ = ended(slurm, number, tmp_path)
    assert (known["NumNodes"], known["Restarts"]) == ("2", "0")
    assert outcome(tmp_path / "a") == truth


@pytest.mark.timeout(1500)  # Slurm looks at the time every half minute, and the job starts twice
def test_a_job_that_is_told_its_time_is_up_goes_on_to_the_same_bits(slurm, programs, truth, tmp_path):
    """Slurm itself sends the signal; the job then puts itself into the queue again."""
    options = ("--time=60", "--signal=USR1@60", "--nodes=1")
    number = submit(slurm, programs, tmp_path, *options, task="shared --pause 20")
    slurm.wait(number, lambda job: lines_of(tmp_path / "runs") >= 2)
    hours, minutes, seconds = map(int, slurm.job(number)["RunTime"].split(":"))
    limit = 60 * hours + minutes + math.ceil((seconds + 75) / 60)
    slurm.run("scontrol", "update", f"JobId={number}", f"TimeLimit={limit}")  # it is up in 75 to 135 s
    # requeued, and all of its first processes gone
    slurm.wait(number, lambda job: job["Restarts"] == "1" and job["JobState"] == "PENDING")
    stopped = (tmp_path / f"slurm-{number}.out").read_text()
    assert len(re.findall(r"Stopped at step \d+ of 12", stopped)) == 1, stopped
    assert not list(tmp_path.glob("runs/*/*/result.json"))
    # Slurm waits for two minutes before it starts such a job again
    slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now", "TimeLimit=60")
    known, log = ended(slurm, number, tmp_path)
    assert known["Restarts"] == "1" and "12 of 12" in log, log
    assert outcome(tmp_path / "a") == truth


def test_two_ranks_of_srun_train_to_the_bits_of_one(slurm, programs, truth, tmp_path):
    """Without torchrun, as the page says."""
    (command,) = re.findall(r"^    (srun --ntasks.*(?:\n     .*)*)", PAGE, flags=re.MULTILINE)
    (tmp_path / "a").mkdir()
    command = command.replace("run TASK", "run shared").replace("--ntasks 16", "--ntasks 2 --nodes 2")
    slurm.run("bash", "-c", command, cwd=tmp_path / "a", **programs)
    assert outcome(tmp_path / "a") == truth


def the_array_script():
    """The script of docs/howto/queue.md."""
    page = (ROOT / "docs/howto/queue.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"script = r'''(#!/bin/bash.*?)'''", page, flags=re.DOTALL)
    return script


@pytest.fixture
def pond(tmp_path, monkeypatch):
    """A folder with the page's script and its problem, and the environment of its jobs."""
    monkeypatch.delenv(VARIABLE, raising=False)  # tells of the `pond` that a test before has loaded
    place = tmp_path / "bin"
    place.mkdir()
    (place / "blackbox").write_text(
        f'#!{shutil.which("bash")}\nexec {sys.executable} -m blackbox_coupling "$@"\n'
    )
    (place / "blackbox").chmod(0o755)
    environment = {
        "PATH": f"{place}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    subprocess.run(
        [place / "blackbox", "new", "pond"], cwd=tmp_path, env=os.environ | environment, check=True
    )
    (tmp_path / "job.sh").write_text(the_array_script())
    return environment


def steps_of(folder, job):
    lines = [path.read_text().splitlines() for path in folder.glob(f"runs/{job}/*/metrics.jsonl")]
    return len(lines[0]) if lines else 0


@pytest.mark.timeout(1500)
def test_an_array_of_the_page_goes_on_after_a_signal_to_the_same_bits(slurm, pond, tmp_path):
    def submit():
        return slurm.run("sbatch", "--parsable", "job.sh", cwd=tmp_path, **pond).strip()

    def ended(job):
        done = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        return slurm.wait(job, lambda known: known["JobState"] in done, seconds=600)

    stopped, undisturbed = submit(), submit()
    slurm.wait(f"{stopped}_0", lambda job: steps_of(tmp_path, f"{stopped}-0") >= 5, seconds=600)
    slurm.run("scancel", "--signal=USR1", f"{stopped}_0")  # what --signal=USR1@300 sends, to the steps alone
    slurm.wait(f"{stopped}_0", lambda job: job["JobState"] == "PENDING" and job["Restarts"] == "1")
    assert "Stopped at step" in (tmp_path / f"{stopped}-0.log").read_text()
    slurm.run("scontrol", "update", f"JobId={stopped}_0", "StartTime=now")
    for job, restarts in ((f"{stopped}_0", "1"), (f"{stopped}_1", "0"), (f"{undisturbed}_0", "0")):
        known = ended(job)
        assert (known["JobState"], known["Restarts"]) == ("COMPLETED", restarts), str(known)
    networks = []
    for job in (stopped, undisturbed):
        (folder,) = tmp_path.glob(f"runs/{job}-0/*")
        networks.append(tasks.load(folder, trust=True).network("tangents").state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[1])


@pytest.mark.timeout(1500)
def test_a_job_of_the_page_that_is_cancelled_stays_away_and_goes_on_by_hand(slurm, pond, tmp_path):
    number = slurm.run("sbatch", "--parsable", "--array=0", "job.sh", cwd=tmp_path, **pond).strip()
    slurm.wait(f"{number}_0", lambda job: steps_of(tmp_path, f"{number}-0") >= 5, seconds=600)
    slurm.run("scancel", number)
    known = slurm.wait(f"{number}_0", lambda job: job["JobState"] == "CANCELLED" and "EndTime" in job)
    time.sleep(15)
    known = slurm.job(f"{number}_0")
    assert (known["JobState"], known["Restarts"]) == ("CANCELLED", "0"), known
    (folder,) = tmp_path.glob(f"runs/{number}-0/*")
    assert "Stopped at step" in (tmp_path / f"{number}-0.log").read_text()
    resume = [tmp_path / "bin" / "blackbox", "resume", folder]
    subprocess.run(resume, cwd=tmp_path, env=os.environ | pond, check=True)
    assert (folder / "result.json").is_file()
