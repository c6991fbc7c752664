"""Failures say in one sentence why a row failed, and tell it to who listens."""

from __future__ import annotations

import json
import pickle
import re
import threading
from typing import Any

import numpy as np
import pytest
import torch

from blackbox import ArraySpec, Retrying
from blackbox.errors import RowFailedError, TryAgain
from blackbox.failures import FailedRow, Failure, inputs_in_short, noted
from tests.blackbox.boxes import Doubling, EachBox, RowsBox


@pytest.mark.parametrize("failure", Failure)
def test_without_an_error_the_sentence_is_the_failures(failure):
    assert FailedRow(failure).sentence() == failure.value


def test_with_an_error_its_type_and_words_are_told():
    row = FailedRow(Failure.RAISED, ZeroDivisionError("no flow"))
    assert row.sentence() == f"{Failure.RAISED.value} (ZeroDivisionError: no flow)"
    assert (row.cause(), FailedRow(Failure.LOST).cause()) == ("ZeroDivisionError", "lost")


def test_no_two_failures_read_the_same():
    assert len({failure.value for failure in Failure}) == len(Failure) == len(Failure.__members__)


def mistyped(state: Any) -> Any:
    return np.linalg.nrom(state)


@pytest.mark.parametrize("kind", [EachBox, RowsBox])
def test_a_typo_under_keep_is_told_as_its_attribute_error(kind):
    box = kind(mistyped, failures="keep")
    with noted() as causes:
        assert np.isnan(box(np.ones((4, 2)))).all()
    assert len(causes) == 1 and isinstance(causes[0].error, AttributeError)
    for told in (causes[0].sentence(), box.ledger.first_failure):
        assert "AttributeError" in told and "nrom" in told
    twin = pickle.loads(pickle.dumps(box.ledger))
    assert twin == box.ledger and twin.causes == {"AttributeError": 4}


def faulty(state: Any) -> Any:
    if state[0] == 1:
        raise ValueError("first")
    if state[0] == 2:
        raise KeyError("second")
    return state / 0 if state[0] == 3 else state


def call(box: Any, *first: float) -> None:
    with np.errstate(all="ignore"):
        box(np.array([[x, 1.0] for x in first]))


def test_each_cause_of_a_call_is_noted_once_in_the_order_of_rows():
    box = EachBox(faulty, failures="keep")
    call(box, 1)
    with noted() as outer:
        call(box, 0, 2, 1, 2, np.nan)
        with noted() as inner:
            call(box, 3)
            with pytest.raises(RowFailedError):
                call(EachBox(faulty), 1)
    call(box, 2)
    assert [row.cause() for row in outer] == ["KeyError", "ValueError", "skipped", "not_finite", "ValueError"]
    assert inner == outer[3:]


def test_a_note_says_which_row_of_which_box_it_was_and_what_the_row_was_given():
    box = EachBox(faulty, failures="keep")
    with noted() as causes:
        call(box, 0, 2, np.nan, 3)
    assert [row.where for row in causes] == [
        "EachBox, row 1 (state=[2, 1])",
        "EachBox, row 3 (state=[3, 1]), output 'state'",
        "",  # what was skipped has no finite inputs to tell
    ]
    assert causes[0].sentence_with_inputs() == f"{causes[0].where}: {causes[0].sentence()}"
    assert causes[2].sentence_with_inputs() == causes[2].sentence()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_few_numbers_are_told_so_that_the_row_can_be_run_again(dtype):
    torch.manual_seed(0)
    values = {name: torch.randn(2, *shape, dtype=dtype) for name, shape in (("p", ()), ("few", (2, 4)))}
    specs = [ArraySpec("p", ()), ArraySpec("few", (2, 4)), ArraySpec("many", (9,)), ArraySpec("count", (1,))]
    inputs = [*values.values(), torch.ones(2, 9, dtype=dtype), torch.tensor([[3], [12]])]
    said = inputs_in_short(specs, inputs, 1)
    assert said.endswith("]], many: 9 numbers from 1 to 1, count=12")
    found = re.fullmatch(r"p=(\S+), few=(.*), many.*", said)
    assert found is not None
    for text, array in zip(found.groups(), values.values(), strict=True):
        again = torch.tensor(json.loads(text), dtype=dtype)
        assert again.shape == array[1].shape and torch.equal(again, array[1])


def test_notes_are_bounded():
    box = EachBox(faulty, failures="keep")
    with noted() as causes:
        for _ in range(150):
            call(box, 1)
    assert len(causes) == 100


def test_threads_do_not_hear_each_other():
    box, together, heard = EachBox(faulty, failures="keep"), threading.Barrier(2, timeout=60), {}

    def work(first: float) -> None:
        with noted() as causes:
            for _ in range(10):
                together.wait()
                call(box, first)
            heard[first] = {row.cause() for row in causes}

    threads = [threading.Thread(target=work, args=(first,)) for first in (1.0, 2.0)]
    with noted() as here:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert heard == {1.0: {"ValueError"}, 2.0: {"KeyError"}} and here == []


def test_what_a_retrying_mends_is_not_noted_and_shows_in_the_ledger():
    asked = []

    def busy(state: Any) -> Any:
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionError("busy")
        return state

    box = Retrying(EachBox(busy), attempts=3)
    with noted() as causes:
        call(box, 5)
    assert causes == []
    ledger = box.ledger
    assert (ledger.rows_retried, ledger.rows_failed, ledger.causes) == (2, 0, {"ConnectionError": 2})
    assert "busy" in ledger.first_failure


def test_try_again_keeps_its_seconds_on_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(TryAgain("the licence is in use", after=30)))
    assert (error.after, str(error)) == (30, "the licence is in use")
    assert str(TryAgain(after=2.5)) == "try again after 2.5 s"


def test_a_box_that_asks_to_try_again_is_not_asked_at_once_for_halves_of_the_block():
    def refuses(state: Any) -> Any:
        raise TryAgain(after=1)

    box = RowsBox(refuses, failures="keep")
    with noted() as causes:
        assert np.isnan(box(np.ones((8, 2)))).all()
    assert len(box.calls) == 1 and causes[0].cause() == "TryAgain"
    assert (Doubling()(np.ones((1, 2))) == 2).all()
