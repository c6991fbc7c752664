"""Killed and gone on with, in this process and through HTTP: nothing is paid twice, no budget exceeded."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

from blackbox import Budgeted, Cached
from blackbox.errors import BudgetError
from tasks.applications.denoised_smoothing import SmoothedClassifier
from tasks.applications.denoised_smoothing.certification import read_certificates
from tests.blackbox.adapters.um_bridge.servers import odd_server
from tests.tasks.applications.denoised_smoothing.certification import clothes
from tests.tasks.applications.denoised_smoothing.certification.classifiers import Linear, pictures
from tests.tasks.applications.denoised_smoothing.certification.clothes import (
    IMAGES,
    N0,
    N,
    Service,
    certify,
    here,
    stack,
)

pytestmark = pytest.mark.filterwarnings("ignore:with N = :UserWarning")
PLANNED = IMAGES * (N0 + N)


def plain(certificates):
    return [{k: v for k, v in vars(one).items() if k != "seconds"} for one in certificates]


class Dying(Linear):
    """Ends the process, as it were, at a certain row; the rows of that call are lost."""

    identity = "linear"

    def __init__(self, last):
        super().__init__()
        self.last = last

    def evaluate_rows(self, image):
        if self.ledger.rows_run > self.last:
            raise KeyboardInterrupt
        return super().evaluate_rows(image)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("last", [0, 30, 77])
def test_an_interrupted_certification_pays_for_no_query_twice(tmp_path, last):
    def certify_with(box, file=None):
        smoothed = SmoothedClassifier(box, sigma=0.25, block=15)
        return smoothed.certify(pictures(3), torch.zeros(3, dtype=torch.int64), 5, 25, 0.05, file=file)

    def kept(box):
        return Cached(box, tmp_path / "queries.db", block=1)

    first, second = Dying(last), Dying(10_000)
    with pytest.raises(KeyboardInterrupt):
        certify_with(kept(first), tmp_path / "a.tsv")
    found = certify_with(kept(second), tmp_path / "a.tsv")
    truth = certify_with(Dying(10_000))
    assert plain(found) == plain(truth) == plain(read_certificates(tmp_path / "a.tsv"))
    # the row that it died at was begun and not answered; every other was paid for once
    assert first.ledger.rows_run == last + 1
    assert last + second.ledger.rows_run == 3 * 30


def test_a_budget_that_ends_in_the_middle_keeps_what_was_paid_for(tmp_path):
    def certify_with(rows, box, seed=0, images=4):
        kept = Cached(Budgeted(box, rows=rows), tmp_path / "queries.db", block=25)
        labels = torch.zeros(images, dtype=torch.int64)
        return SmoothedClassifier(kept, sigma=0.25, seed=seed).certify(
            pictures(images), labels, 10, 100, 0.05
        )

    first, second, third = Linear(), Linear(), Linear()
    certify_with(110, first, seed=9, images=1)
    with pytest.raises(BudgetError):
        certify_with(329, second)
    assert second.ledger.rows_asked == 0
    # Answers with other noise are kept, which might be some of these: it starts, and ends at the budget.
    with pytest.raises(BudgetError):
        certify_with(350, second)
    assert 325 < second.ledger.rows_run <= 350
    certify_with(440, third)
    assert second.ledger.rows_run + third.ledger.rows_run == 440


@pytest.mark.slow
def test_through_a_bad_connection_the_certificates_are_the_same(tmp_path):
    service = Service()
    with odd_server(service) as server:
        box = stack(server.url, tmp_path, budget=400)
        found = certify(box, tmp_path / "a.tsv")
        assert plain(found) == plain(certify(here()))
        assert len(service.answered) == len(set(service.answered)) == PLANNED
        # the count on disk and the ledger say what the server saw, dropped and late requests included
        assert len(service.asked) > PLANNED and box.ledger.rows_run == len(service.asked)
        assert os.path.getsize(tmp_path / "queries.count") == len(service.asked)
        again = certify(box)  # no table: all from the log
        assert plain(again) == plain(found) and len(service.asked) == box.ledger.rows_run


@pytest.mark.slow
@pytest.mark.parametrize("budget", [PLANNED, PLANNED + 7])
def test_the_server_never_sees_more_requests_than_the_budget(tmp_path, budget):
    service = Service()
    with odd_server(service) as server:
        for _ in range(3):  # in vain: what was spent is not forgotten when it is started again
            with pytest.raises(BudgetError):
                certify(stack(server.url, tmp_path, budget), tmp_path / "a.tsv")
        assert len(service.asked) == budget


@pytest.mark.slow  # in one process: `test_an_interrupted_certification_pays_for_no_query_twice`
def test_killed_and_resumed_no_query_is_paid_for_twice(tmp_path):
    service, budget = Service(), 300
    with odd_server(service) as server:
        command = [sys.executable, "-m", clothes.__name__, server.url, str(tmp_path), str(budget)]
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        service.kill = lambda count: process.pid if count == 100 else None
        assert process.wait(120) == -9
        before = len(service.asked)
        assert before == 100 and len(read_certificates(tmp_path / "certificates.tsv")) == 1
        box = stack(server.url, tmp_path, budget)
        assert box.ledger.rows_run == before  # the count of the dead process
        found = certify(box, tmp_path / "certificates.tsv")
        assert plain(found) == plain(certify(here()))
        assert max(Counter(service.answered).values()) == 1 and len(service.answered) == PLANNED
        assert box.ledger.rows_run == len(service.asked) <= budget
