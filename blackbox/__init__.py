"""The contract of code without derivatives: call, validate, count, cache, retry, spread out, limit."""

from importlib import import_module
from typing import TYPE_CHECKING

import blackbox_coupling  # noqa: F401  which names files that are in the way of a package
from blackbox.errors import (
    BlackBoxError,
    BoundsWarning,
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
    SessionError,
    ShapeError,
    TryAgain,
)

if TYPE_CHECKING:
    from blackbox.failures import FailedRow, Failure, Outcome, Policy
    from blackbox.function import BlackBoxFunction
    from blackbox.layout import Grid, Mesh
    from blackbox.ledger import Ledger
    from blackbox.spec import ArraySpec
    from blackbox.wrappers import Budgeted, Cached, Fallback, Parallel, RateLimited, Retrying, Wrapper

__all__ = [
    "ArraySpec",
    "BlackBoxError",
    "BlackBoxFunction",
    "BoundsWarning",
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
    "Grid",
    "InputError",
    "Ledger",
    "Mesh",
    "NonFiniteInputError",
    "NotDifferentiableError",
    "Outcome",
    "OutputError",
    "Parallel",
    "Policy",
    "RateLimited",
    "Retrying",
    "RowFailedError",
    "SessionError",
    "ShapeError",
    "TryAgain",
    "Wrapper",
]

# Imported when first asked for: all packages have their errors from here, also a command line that answers
# --help, for which torch would take seconds.
_LATER = ("failures", "layout", "spec", "ledger", "function", "wrappers")


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in (import_module(f"blackbox.{later}") for later in _LATER):
            if hasattr(module, name):
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module 'blackbox' has no attribute {name!r}")
