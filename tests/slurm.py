"""A Slurm of two nodes on this machine, started from a folder of its own, for the tests that need a queue."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.needs import NEEDS

# no control groups, no plugin that needs rights beyond one's own; both nodes are this machine
SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_min_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=1000
NodeName={host}-b NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=1000
PartitionName=all Nodes={host},{host}-b Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """The queue: its commands, with what their environment has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words, cwd=None, timeout=300, **environment):
        """What a command prints."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=os.environ | self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number):
        """What the queue knows of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number, wanted, seconds=240):
        """Until what the queue knows of a job is as wanted."""
        until = time.monotonic() + seconds
        while not wanted(known := self.job(number)):
            assert time.monotonic() < until, known
            time.sleep(0.2)
        return known


@contextmanager
def started():
    """A `Slurm` that takes jobs, for tests that declare it; they are skipped where it does not start."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # the path of a socket has to be short
    slurm, daemons = Slurm(folder), []
    environment = os.environ | slurm.environment

    def start(name, *words):
        with open(folder / f"{len(daemons)}-{name}.log", "w") as log:
            daemons.append(
                subprocess.Popen([name, *map(str, words)], env=environment, stdout=log, stderr=log)
            )

    try:
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        (folder / "state").mkdir()
        host = socket.gethostname().split(".")[0]
        settings = {"folder": folder, "user": getpass.getuser(), "host": host, "ports": free_ports(3)}
        (folder / "slurm.conf").write_text(SETTINGS.format(**settings))
        files = {"socket": "sock", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        start("munged", "--foreground", "--force", *(f"--{k}={folder}/munge.{v}" for k, v in files.items()))
        _wait(lambda: (folder / "munge.sock").exists(), daemons, folder)
        start("slurmctld", "-D")
        for node in (host, f"{host}-b"):
            start("slurmd", "-D", "-N", node)
        _wait(lambda: _idle(environment) == 2, daemons, folder)
        yield slurm
    finally:
        subprocess.run(
            ["scancel", "--full", "--user", getpass.getuser()], env=environment, capture_output=True
        )
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count):
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _idle(environment):
    said = subprocess.run(["sinfo", "-N", "-h", "-o", "%t"], env=environment, capture_output=True, text=True)
    return said.stdout.split().count("idle")


def _wait(ready, daemons, folder):
    until = time.monotonic() + 30
    while not ready():
        if time.monotonic() > until or any(daemon.poll() is not None for daemon in daemons):
            last = {log.name: log.read_text(errors="replace")[-300:] for log in sorted(folder.glob("*.log"))}
            pytest.skip(f"{NEEDS['slurm'].install}: it does not start here: {last}")
        time.sleep(0.1)
