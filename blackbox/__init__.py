"""The contract of code without derivatives: call, validate, count, cache, retry, spread out, limit."""

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
    OutputError,
    RowFailedError,
    ShapeError,
)
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
    "Outcome",
    "OutputError",
    "Parallel",
    "Policy",
    "RateLimited",
    "Retrying",
    "RowFailedError",
    "ShapeError",
    "Wrapper",
]
