"""`python -m benchmarks exchange`: a step of columns gives the network's answer, whoever asks for it."""

from __future__ import annotations

import pytest
import torch

from benchmarks import exchange
from benchmarks.exchange import columns

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # which FTorch reads


@pytest.fixture(autouse=True)
def one_thread():
    """As in the benchmark: with more, layers as small as these wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.needs("cc", "gfortran")
def test_a_step_of_columns_is_timed_for_clients_in_c_and_fortran(capsys):
    """Answers of all are compared with the network's in there."""
    found = columns.measured(1, 1, None)
    assert "without --ftorch DIR, an installed FTorch, its row is left out" in capsys.readouterr().out
    assert {"client in C", "client in Fortran", "16 clients in C at once"} <= set(found["milliseconds"])
    assert list(found) == ["milliseconds", "of the processor"]
    assert all(value > 0 for values in found.values() for value in values.values())
    assert "| client in Fortran | " in columns.table(found)


@pytest.mark.needs("cc")
def test_another_answer_than_the_network_s_is_no_figure(monkeypatch):
    monkeypatch.setattr(columns, "seen_at", lambda step: torch.ones(columns.COLUMNS, columns.SEEN).double())
    with pytest.raises(RuntimeError, match="the network's answer from client in C"):
        columns.measured(1, 1, None)


def test_a_folder_without_ftorch_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        exchange.main(["--size", "ci", "--ftorch", str(tmp_path)])
    assert "expected a folder with lib/libftorch.so" in capsys.readouterr().err
