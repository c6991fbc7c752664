"""Runs in Jupyter: a notebook is executed, and what stands below its cells is looked at."""

import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from tests.tasks.test_html_report import read

PROBLEM = '''
import signal
import torch
import tasks
from tasks.configuration import ZerothOrder
from blackbox import ArraySpec, BlackBoxFunction

TWO = ZerothOrder(directions=2)

class Box(BlackBoxFunction):
    inputs = (ArraySpec("z", shape=(3,)),)
    outputs = (ArraySpec("y", shape=(3,)),)

    def evaluate_rows(self, z):
        return torch.as_tensor(z).tanh().numpy()

class Steering(tasks.Problem):
    """A network steers a box."""

    stop_at = None

    def box(self):
        return Box()

    def network(self):
        return torch.nn.Linear(3, 3)

    def data(self):
        wanted = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) - 0.5

        def train(seed, step):
            if (seed, step) == Steering.stop_at:
                signal.raise_signal(signal.SIGINT)  # as Jupyter's stop button does
            return wanted[:8]

        return tasks.Data(train, wanted[8:16], wanted[16:])

    def objective(self, network, wanted):
        return (self.box(network(wanted)) - wanted).square().mean(dim=1)
'''
RUN = 'run = tasks.run(Steering(), methods=["none", "rge"], steps=300, seeds=2, zeroth_order=TWO)\nrun'
STOPPED = """
Steering.stop_at = (1, 40)
tasks.run(Steering(), methods=["none", "rge"], steps=300, seeds=2, zeroth_order=TWO, runs="stopped")
"""
RESUMED = """
from pathlib import Path
Steering.stop_at = None
(folder,) = Path("stopped").iterdir()
again = tasks.run(Steering(), methods=["none", "rge"], steps=300, zeroth_order=TWO, resume=folder)
(again.table["test loss"] == run.table["test loss"]).all()
"""
CELLS = (
    PROBLEM,
    RUN,
    "run.table",
    "run.metrics",
    'run.network("rge", seed=1)',
    "run.report.name",
    STOPPED,
    RESUMED,
)
CELLS += ("tasks.load(run.path)", 'tasks.load(run.path).network("rge")', "print(run)")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """What stands below each cell."""
    folder = tmp_path_factory.mktemp("notebook")
    book = new_notebook(cells=[new_code_cell(cell) for cell in CELLS])
    client = NotebookClient(
        book,
        timeout=300,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    nbformat.validate(book)
    return [cell.outputs for cell in book.cells]


def result(outputs):
    """What the cell's last line gave."""
    (found,) = [output for output in outputs if output.output_type == "execute_result"]
    return found.data


def progress(outputs):
    """The one output in which progress was shown."""
    (found,) = [output for output in outputs if output.output_type == "display_data"]
    return found.data


@pytest.mark.slow
def test_progress_is_one_output_however_many_steps(cells):
    assert [output.output_type for output in cells[1]] == ["display_data", "execute_result"]
    text = progress(cells[1])["text/plain"]
    assert "Run folder: runs/steering-" in text
    assert "seed-1/rge: step 300 of 300, loss" in text
    assert text.count("\n") < 12
    html = progress(cells[1])["text/html"]
    read(html)
    assert "<progress" not in html  # of the end there is no bar left


@pytest.mark.slow
def test_a_problem_of_a_notebook_says_how_it_is_resumed(cells):
    text = progress(cells[1])["text/plain"]
    assert re.search(r"repeat the call of tasks.run with resume='\S+/runs/steering-", text)


@pytest.mark.slow
def test_the_table_is_html_and_text(cells):
    found = result(cells[1])
    read(found["text/html"])
    for kind in ("text/plain", "text/html"):
        for word in ("method", "test loss", "none", "rge", "±", "steering-own-"):
            assert word in found[kind]
    assert "<th>test loss</th>" in found["text/html"]
    assert cells[10][0].text.strip() == found["text/plain"]


@pytest.mark.slow
def test_frames_network_and_report_are_at_hand(cells):
    assert "test loss" in result(cells[2])["text/html"] and "4 rows" not in result(cells[2])["text/plain"]
    assert "seed-0/rge" in result(cells[3])["text/html"]
    assert result(cells[4])["text/plain"].startswith("Linear(")
    assert result(cells[5])["text/plain"] == "'report.html'"


@pytest.mark.slow
def test_a_cell_that_was_stopped_goes_on_to_the_same_figures(cells):
    (stop,) = [output for output in cells[6] if output.output_type == "error"]
    assert stop.ename == "Interrupted"
    assert "Stopped at step 41 of 300 of seed-1/rge" in stop.evalue
    assert "repeat the call of tasks.run with resume=" in progress(cells[6])["text/plain"]
    assert result(cells[7])["text/plain"] in ("True", "np.True_")


@pytest.mark.slow
def test_a_loaded_run_has_its_table_and_says_why_it_has_no_network(cells):
    assert result(cells[8]) == result(cells[1])
    (error,) = cells[9]
    assert error.ename == "ProblemError"
    assert "repeat the call of tasks.run with resume=" in error.evalue
