"""Every error has the root, is exported, is a builtin too, and is provoked by a table of these tests."""

from __future__ import annotations

import builtins
import inspect

import pytest

import blackbox
from blackbox import BlackBoxError, errors
from blackbox.errors import InputError, NoRowLeftError, TryAgain
from tests.blackbox import test_arrays, test_calls, test_function, test_running, test_spec
from tests.blackbox.adapters.session import test_session
from tests.blackbox.wrappers import test_budgeted, test_parallel, test_wrapper

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value)]
NAMED = [kind for kind in CLASSES if issubclass(kind, Exception) and not issubclass(kind, Warning)]
ROOTS = {BlackBoxError, InputError}  # for except clauses; what is raised is more exact
RAISED_BY_BOXES = {TryAgain}
RAISED_BY_HOSTS = {NoRowLeftError}  # provoked in `adapters/hosted/test_hosted.py`
TABLES = [
    test_arrays.ERRORS,
    test_calls.ERRORS,
    test_function.DEFINITION_ERRORS,
    test_function.ROW_ERRORS,
    test_running.ERRORS,
    test_spec.ERRORS,
    test_budgeted.ERRORS,
    test_wrapper.ERRORS,
    test_parallel.ERRORS,
    test_session.ERRORS,
]
PROVOKED = {case.error for table in TABLES for case in table}


@pytest.mark.parametrize("error", NAMED, ids=lambda error: error.__name__)
def test_each_error(error):
    assert issubclass(error, BlackBoxError)
    assert getattr(blackbox, error.__name__) is error and error.__name__ in blackbox.__all__
    assert error.__doc__ and error.__module__ == errors.__name__
    builtin = [base for base in error.__mro__ if getattr(builtins, base.__name__, None) is base]
    assert set(builtin) - {Exception, BaseException, object} or error is BlackBoxError
    assert error in PROVOKED or error in ROOTS | RAISED_BY_BOXES | RAISED_BY_HOSTS


def test_the_roots_are_provoked_by_their_children_alone():
    assert not PROVOKED & ROOTS
    assert all(any(issubclass(error, root) for error in PROVOKED) for root in ROOTS)


def test_what_is_exported_is_there():
    assert sorted(blackbox.__all__) == blackbox.__all__ and all(
        hasattr(blackbox, n) for n in blackbox.__all__
    )
