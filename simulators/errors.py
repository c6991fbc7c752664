"""The errors of `simulators`, beside those that `blackbox` has for bad input and bad settings."""

from __future__ import annotations

from blackbox.errors import BlackBoxError


class OperatorMismatchError(BlackBoxError, RuntimeError):
    """PhiFlow's pressure operator is not the one that our solver inverts."""


class ReferenceDataError(BlackBoxError, RuntimeError):
    """Reference data cannot be made, or a file holds other data than its name says."""


class ReferenceWarning(UserWarning):
    """A file of reference data is damaged and is made anew."""
