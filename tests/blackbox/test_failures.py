"""Failures say in one sentence why a row failed, with the exception's own words where there was one."""

from __future__ import annotations

import pytest

from blackbox import FailedRow, Failure


@pytest.mark.parametrize("failure", Failure)
def test_without_an_error_the_sentence_is_the_failures(failure):
    assert FailedRow(failure).sentence() == failure.value


def test_with_an_error_its_type_and_words_are_told():
    row = FailedRow(Failure.RAISED, ZeroDivisionError("no flow"))
    assert row.sentence() == f"{Failure.RAISED.value} (ZeroDivisionError: no flow)"


def test_no_two_failures_read_alike():
    assert len({failure.value for failure in Failure}) == len(Failure) == len(Failure.__members__)
