"""The Slurm scripts of the pages under stand-ins for srun and scontrol; signals to ranks."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tasks.shared_runs import PROGRAM, finished, outcome
from tests.tasks.test_cli import only_run, wait_for

ROOT = Path(__file__).parents[2]
# as the page's: its processes get SIGUSR1, torchrun itself does not mind it
IGNORING = ("bash", "-c", 'trap "" USR1; exec "$@"', "shell")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")


def the_script():
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/guide/cluster.md").read_text(), flags=re.DOTALL)
    return block


def test_the_script_is_whole_and_asks_for_the_signal_in_time():
    done = subprocess.run(["bash", "-n"], input=the_script(), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", the_script(), flags=re.MULTILINE))
    # without "B:" the signal goes to the processes that srun started, not to the script
    assert options["signal"].startswith("USR1@") and "requeue" in options
    assert options["ntasks-per-node"] == "1"


@pytest.mark.parametrize(("page", "job"), [("resume", "77"), ("queue", "70_1")])
@pytest.mark.parametrize(("status", "queued"), [(0, False), (2, False), (130, True), (143, True)])
def test_a_job_is_queued_again_only_where_it_was_stopped(tmp_path, page, job, status, queued):
    """The script gives its own number: 70 is that of the array, and of one of its tasks too."""
    text = (ROOT / f"docs/howto/{page}.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"(?:```bash\n|r''')(#!/bin/bash.*?)(?:```|''')", text, flags=re.DOTALL)
    stands = {"srun": f'[ "$1" = --ntasks=1 ] && exit {status}', "scontrol": "echo $* > said"}
    for name, line in stands.items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{line}\n")
        (tmp_path / name).chmod(0o755)
    known = {"SLURM_JOB_ID": "70" if page == "queue" else "77", "SLURM_ARRAY_JOB_ID": "70"}
    known |= {"SLURM_ARRAY_TASK_ID": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ | known)
    assert done.returncode == (0 if queued else status)
    said = tmp_path / "said"
    assert (said.read_text() if said.exists() else None) == (f"requeue {job}\n" if queued else None)


SRUN = """#!{bash}
# one task on each node, and its status
for node in $(seq "$SLURM_NNODES"); do SLURM_NODEID=$((node - 1)) "$@" & all+=" $!"; done
echo "$all" > tasks.pid
for task in $all; do wait "$task" || status=$?; done
exit "${{status:-0}}"
"""
SCONTROL = """#!{bash}
if [ "$1" = requeue ]; then echo "$2" >> requeued; else echo 127.0.0.1; fi
"""
BLACKBOX = """#!{bash}
exec {python} {program} "$@"
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts the page's script as Slurm would, with the tests' task: `slurm(2, "pause 0.1")` -> Popen."""
    place = tmp_path / "bin"
    place.mkdir()
    words = {"bash": shutil.which("bash"), "python": sys.executable, "program": PROGRAM}
    torchrun = f'#!{words["bash"]}\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "blackbox": BLACKBOX}.items():
        (place / name).write_text(text.format(**words))
    (place / "torchrun").write_text(torchrun)
    for path in place.iterdir():
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    started = []

    def start(nodes, *settings):
        task = " ".join(["shared", *settings])
        text, changed = re.subn(r"^task=\(.*\)", f"task=({task})", the_script(), flags=re.MULTILINE)
        text, counted = re.subn(r"^processes=\d+", "processes=2", text, flags=re.MULTILINE)
        assert changed == counted == 1
        own = {"SLURM_JOB_ID": "77", "SLURM_NNODES": str(nodes), "SLURM_JOB_NODELIST": "n[1-2]"}
        own |= {"PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        own |= {"GLOO_SOCKET_IFNAME": "lo", "PORT": str(free_port())}
        process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=tmp_path,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for pid in [process.pid, *descendants(process.pid)]:
            try_to_signal(pid, signal.SIGKILL)
        process.communicate()


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def try_to_signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def descendants(pid):
    """Children of a process and theirs."""
    try:
        own = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [grandchild for child in own for grandchild in descendants(child)]


def lines_of(root):
    return sum(path.read_bytes().count(b"\n") for path in root.glob("**/metrics.jsonl"))


@pytest.mark.slow
def test_the_script_runs_a_task_on_two_nodes(slurm, truth, tmp_path):
    process = slurm(2)
    finished(process)
    (run,) = (tmp_path / "runs" / "job-77").iterdir()
    assert (run / "result.json").exists() and not (tmp_path / "requeued").exists()
    place = tmp_path / "a"
    place.mkdir()
    (tmp_path / "runs" / "job-77").rename(place / "runs")
    assert outcome(place) == truth


@pytest.mark.slow
def test_the_script_stops_in_time_is_queued_again_and_goes_on(slurm, truth, tmp_path):
    process = slurm(1, "--pause", "0.5")
    wait_for(lambda: lines_of(tmp_path / "runs") >= 2, process, 200)
    # to every process of the step, torchrun among them, as Slurm does
    tasks = [int(word) for word in (tmp_path / "tasks.pid").read_text().split()]
    for pid in [pid for task in tasks for pid in [task, *descendants(task)]]:
        os.kill(pid, signal.SIGUSR1)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert len(re.findall(r"Stopped at step \d+ of 12 .* Resume with: blackbox resume \S+", err)) == 1
    assert "Going on with" not in out  # torchrun has not started it again
    assert (tmp_path / "requeued").read_text() == "77\n"
    (run,) = (tmp_path / "runs" / "job-77").iterdir()
    assert not (run / "result.json").exists()
    finished(slurm(1))
    assert (tmp_path / "requeued").read_text() == "77\n"  # once: now it is finished
    place = tmp_path / "a"
    place.mkdir()
    (tmp_path / "runs" / "job-77").rename(place / "runs")
    assert outcome(place) == truth


@pytest.mark.slow
def test_torchrun_passes_sigterm_on_and_the_run_goes_on_alone(shared, truth, tmp_path):
    words = ("run", "shared", "--pause", "0.5")
    process = shared("a", *words, before=(*IGNORING, *TORCHRUN, "--standalone", "--max-restarts=2"))
    wait_for(lambda: lines_of(tmp_path / "a") >= 2, process, 200)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert process.returncode not in (0, None)
    (command,) = set(re.findall(r"Resume with: blackbox resume (\S+)", err))
    finished(shared("a", "resume", command))
    assert outcome(tmp_path / "a") == truth


@pytest.mark.slow
def test_where_the_first_worker_is_killed_the_other_stops_and_the_run_goes_on(shared, truth, tmp_path):
    process = shared("a", "run", "shared", "--workers", "2", "--pause", "0.5", "--validate-every", "1")
    wait_for(lambda: lines_of(tmp_path / "a") >= 2, process, 200)
    (other,) = descendants(process.pid)
    process.kill()
    process.wait()
    until = time.monotonic() + 100
    while Path(f"/proc/{other}").exists():
        assert time.monotonic() < until, "it goes on"
        time.sleep(0.05)
    path = only_run(tmp_path / "a")
    assert not (path / "result.json").exists() and any((path / "checkpoints").iterdir())
    finished(shared("a", "resume", str(path.relative_to(tmp_path / "a"))))
    assert outcome(tmp_path / "a") == truth
