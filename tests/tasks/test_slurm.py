"""The recipes of docs/guide/cluster.md under a real Slurm: the script, its signal, the ranks of srun."""

import math
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

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
