"""The contract of code without derivatives: call, validate, count, limit."""

from blackbox.errors import (
    BlackBoxError,
    BudgetError,
    ConfigurationError,
    CountError,
    DefinitionError,
    DtypeError,
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
from blackbox.wrappers import Budgeted, Wrapper

__all__ = [
    "ArraySpec",
    "BlackBoxError",
    "BlackBoxFunction",
    "BudgetError",
    "Budgeted",
    "ConfigurationError",
    "CountError",
    "DefinitionError",
    "DtypeError",
    "FailedRow",
    "Failure",
    "InputError",
    "Ledger",
    "NonFiniteInputError",
    "Outcome",
    "OutputError",
    "Policy",
    "RowFailedError",
    "ShapeError",
    "Wrapper",
]
