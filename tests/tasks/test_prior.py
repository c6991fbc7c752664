"""In runs: a twin under what tangents learn, declared by the problem."""

from __future__ import annotations

import pytest
import torch

import tasks
from tasks.methods.through_boxes import tangents_of_boxes
from tests.tasks.toy import Toy


class WithTwin(Toy):
    """The toy, and a function that equals its box."""

    def prior(self, box):
        assert box == "box"

        def twin(x):
            ASKED.append(len(x))
            return 2 * x - 1

        return twin


ASKED: list[int] = []


@pytest.mark.parametrize("method", ["tangents", pytest.param("population", marks=pytest.mark.slow)])
def test_a_run_of_a_problem_with_a_twin_uses_it_with_no_further_flag(method, tmp_path, limits):
    limits(updates_of_a_population=60)
    ASKED.clear()
    run = tasks.run(WithTwin(), runs=tmp_path, progress=tasks.Progress(), methods=[method], steps=6)
    assert ASKED
    assert torch.isfinite(torch.tensor(run.result.table[-1].value))


def test_the_plan_says_that_there_is_a_prior():
    (said,) = tangents_of_boxes(WithTwin())
    assert "above a prior" in said
    (said,) = tangents_of_boxes(Toy())
    assert "prior" not in said
