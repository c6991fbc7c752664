"""The contract of code without derivatives: call, validate, count, cache, retry, spread out, limit."""

from importlib import import_module
from typing import TYPE_CHECKING

from blackbox.errors import (
    BlackBoxError,
    BudgetError,
    ConfigurationError,
    CountError,
    DefinitionError,
    DtypeError,
    ExecutorError,
    InputError,
    NonFiniteInputError,
    NotDifferentiableError,
    OutputError,
    RowFailedError,
    ShapeError,
    TryAgain,
)

if TYPE_CHECKING:
    from blackbox.failures import FailedRow, Failure, Outcome, Policy
    from blackbox.function import BlackBoxFunction
    from blackbox.ledger import Ledger
    from blackbox.spec import ArraySpec
    from blackbox.wrappers import Budgeted, Cached, Fallback, Parallel, RateLimited, Retrying, Wrapper

__all__ = [
    "ArraySpec",
    "BlackBoxError",
    "BlackBoxFunction",
    "BudgetError",
    "Budgeted",
    "Cached",
    "ConfigurationError",
    "CountError",
    "DefinitionError",
    "DtypeError",
    "ExecutorError",
    "FailedRow",
    "Failure",
    "Fallback",
    "InputError",
    "Ledger",
    "NonFiniteInputError",
    "NotDifferentiableError",
    "Outcome",
    "OutputError",
    "Parallel",
    "Policy",
    "RateLimited",
    "Retrying",
    "RowFailedError",
    "ShapeError",
    "TryAgain",
    "Wrapper",
]

# Imported when first asked for: all packages have their errors from here, also a command line that answers
# --help, for which torch would take seconds.
_MODULES = {
    "ArraySpec": "spec",
    "BlackBoxFunction": "function",
    "Budgeted": "wrappers",
    "Cached": "wrappers",
    "FailedRow": "failures",
    "Failure": "failures",
    "Fallback": "wrappers",
    "Ledger": "ledger",
    "Outcome": "failures",
    "Parallel": "wrappers",
    "Policy": "failures",
    "RateLimited": "wrappers",
    "Retrying": "wrappers",
    "Wrapper": "wrappers",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'blackbox' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"blackbox.{_MODULES[name]}"), name)
    return found
