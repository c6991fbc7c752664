"""`Parallel` on others' executors, in scripts as users write them: MPI, executorlib, Dask, Slurm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm import started

pytestmark = pytest.mark.slow  # each starts interpreters that import torch

BOXES = """
import os
import time
import numpy as np
from blackbox import ArraySpec, BlackBoxFunction


class Square(BlackBoxFunction):
    inputs = (ArraySpec("x", (2,)),)
    outputs = (ArraySpec("y", (2,)), ArraySpec("process", (), dtype="int64"))

    def evaluate_rows(self, x):
        if (x > 100).any():
            raise ValueError("too large")
        time.sleep(0.3)  # so that one worker does not have it all before the other has begun
        return x**2, np.full(len(x), os.getpid())
"""
SCRIPT = """
import os
import numpy as np
from {module} import {kind}
from blackbox import Parallel
from squares import Square

if __name__ == "__main__":
    x = np.random.default_rng(0).normal(size=(12, 2))
    x[5, 0] = 1000
    with {kind}({settings}) as pool:
        box = Parallel(Square(failures="keep"), pool, block=2)
        y, process = box(x)
    failed = np.isnan(y).any(axis=1)
    assert failed.nonzero()[0].tolist() == [5], failed
    np.testing.assert_array_equal(y[~failed], x[~failed] ** 2)
    # a block of two that raised was run again row by row
    assert (box.ledger.rows_run, box.ledger.rows_failed) == (14, 1), box.ledger
    assert os.getpid() not in process and len(set(process[~failed])) <= 2, process
    assert "too large" in box.ledger.first_failure
    print("all as said")
"""


def run(folder, command, variables=(), script=None, **names):
    (folder / "squares.py").write_text(BOXES)
    (folder / "script.py").write_text(script or SCRIPT.format(**names))
    settings = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), str(folder)]),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    environment = os.environ | settings | dict(variables)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "all as said" in done.stdout, done.stdout + done.stderr


@pytest.mark.needs("mpi", "mpi4py")
def test_mpi4py(tmp_path):
    command = ["mpirun", "-n", "3", sys.executable, "-m", "mpi4py.futures", "script.py"]
    run(tmp_path, command, module="mpi4py.futures", kind="MPIPoolExecutor", settings="")


@pytest.mark.needs("executorlib")
def test_executorlib(tmp_path):
    settings = "max_workers=2, block_allocation=True"  # else each block starts a process of its own
    run(
        tmp_path,
        [sys.executable, "script.py"],
        module="executorlib",
        kind="SingleNodeExecutor",
        settings=settings,
    )


@pytest.mark.needs("executorlib", "slurm")
def test_executorlib_in_an_allocation_of_slurm(tmp_path):
    """Each worker is a step of srun."""
    with started() as slurm:
        run(
            tmp_path,
            ["salloc", "--ntasks", "2", "--nodes", "2", sys.executable, "script.py"],
            slurm.environment,
            module="executorlib",
            kind="SlurmJobExecutor",
            settings="max_workers=2, block_allocation=True",
        )


ARRAY = """
import subprocess
import sys
import numpy as np
from distributed import Client, LocalCluster
from blackbox import Parallel
from squares import Square

if __name__ == "__main__":
    x = np.random.default_rng(0).normal(size=(12, 2))
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as here, Client(here) as client:
        worker = f"{sys.executable} -m distributed.cli.dask_worker {here.scheduler_address} --nthreads 1 "
        worker += "--no-dashboard --death-timeout 240"
        words = ["sbatch", "--parsable", "--array=0-1", "--wrap", worker]
        job = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        client.wait_for_workers(2, timeout=240)
        with Parallel(Square(failures="keep"), client.get_executor, block=2) as box:
            y, process = box(x)
        subprocess.run(["scancel", job], check=True)
    np.testing.assert_array_equal(y, x**2)
    assert (box.ledger.rows_run, box.ledger.rows_failed) == (12, 0) and len(set(process)) == 2, process
    print("all as said")
"""


@pytest.mark.needs("slurm")
def test_dask_workers_in_a_job_array_of_slurm(tmp_path):
    with started() as slurm:
        run(tmp_path, [sys.executable, "script.py"], slurm.environment, script=ARRAY)
