"""`CommandLine(["mpirun", ...])` with a real MPI program: answers, aborts, hangs, nothing left behind."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters import CommandLine

pytestmark = [pytest.mark.needs("mpi"), pytest.mark.slow]  # a run of several processes for each row
# Open MPI's mpirun refuses root, and more ranks than cores, unless it is told
SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("mpi") / "sum"
    subprocess.run(["mpicc", "-O1", Path(__file__).parent / "sum.c", "-o", path, "-lm"], check=True)
    return path


def integral(program, **settings):
    return CommandLine(
        ["mpirun", "-n", "3", program],
        inputs=[ArraySpec("a", ())],
        outputs=[ArraySpec("whole", ()), ArraySpec("ranks", (), dtype="int64")],
        input_templates={"case.txt": "a = {a}\n"},
        output_templates={"stdout.txt": "integral: {whole} of {ranks} ranks"},
        environment=SETTINGS,
        **settings,
    )


def running(program):
    """The processes of the program."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found += [name] if os.readlink(f"/proc/{name}/exe") == str(program) else []
            except OSError:  # it has ended, or is another user's
                pass
    return found


def test_ranks_share_a_row(program):
    a = np.array([0.5, 3.0])
    whole, ranks = integral(program, timeout=600)(a)
    cells = (np.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(whole, np.sin(a[:, None] * cells).mean(axis=1), rtol=1e-13)
    assert ranks.tolist() == [3, 3]


def test_an_abort_or_a_hang_loses_its_row_and_leaves_no_rank(program):
    box = integral(program, timeout=60, failures="keep")
    whole = box(np.array([1.0, -1.0, 101.0]))[0]
    assert np.isnan(whole).tolist() == [False, True, True] and not running(program)
    assert box.ledger.causes == {"RuntimeError": 1, "timed_out": 1}
    assert (box.ledger.rows_run, box.ledger.rows_failed) == (3, 2)
