"""`CommandLine(["srun", ...])` in a real Slurm whose nodes are taken: a sentence, a timeout, no job left."""

import numpy as np
import pytest

from blackbox import ArraySpec, Budgeted
from blackbox.adapters import CommandLine
from tests.slurm import started

pytestmark = [pytest.mark.needs("slurm"), pytest.mark.slow]


@pytest.fixture(scope="module")
def full():
    """A queue of which a job that waits for nothing has both nodes, and that takes one job more."""
    with started() as slurm:
        words = ["sbatch", "--parsable", "--nodes=2", "--exclusive", "--wrap", "sleep 600"]
        job = slurm.run(*words, cwd=slurm.folder)
        slurm.wait(job.strip(), lambda known: known["JobState"] == "RUNNING")
        yield slurm


def doubled(slurm, *options, **settings):
    return CommandLine(
        ["srun", "--ntasks=1", *options, "sh", "-c", "cat x.txt"],
        inputs=[ArraySpec("x", ())],
        outputs=[ArraySpec("y", ())],
        input_templates={"x.txt": "{x}\n"},
        output_templates={"stdout.txt": "{y}"},
        environment=slurm.environment,
        failures="keep",
        **settings,
    )


def test_a_row_that_the_queue_refuses_has_failed_and_says_why(full):
    box = Budgeted(doubled(full, "--immediate=1", timeout=60), rows=5)
    assert np.isnan(box(np.array([1.0, 2.0]))).all()
    assert "Unable to allocate resources" in box.ledger.first_failure
    assert (box.ledger.rows_run, box.ledger.rows_failed, box.rows_left) == (2, 2, 3)


def test_a_row_that_waits_too_long_is_given_up_and_leaves_the_queue(full):
    box = doubled(full, timeout=5)
    assert np.isnan(box(np.array([1.0]))).all()
    assert (box.ledger.rows_run, box.ledger.rows_timed_out) == (1, 1)
    assert full.run("squeue", "--noheader", "--states=PENDING").strip() == ""


def test_it_answers_as_soon_as_there_is_room(full):
    full.run("scancel", "--state=RUNNING", "--full")
    np.testing.assert_array_equal(doubled(full, timeout=120)(np.array([1.5])), [1.5])
