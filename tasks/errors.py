"""The errors of `tasks`: under the root of `blackbox`, each of them also the builtin that fits.

Every message has three parts: what was expected, what came, and how to mend it.
"""

from __future__ import annotations

from blackbox.errors import BlackBoxError, ConfigurationError

__all__ = [
    "CallbackWarning",
    "CheckpointError",
    "CheckpointWarning",
    "ConfigurationError",
    "DataError",
    "Interrupted",
    "NonFiniteLossError",
    "NotApplicableError",
    "ProblemError",
    "ProblemWarning",
    "RunFolderError",
    "RunLockedError",
    "SolverError",
    "StoppedInside",
    "StorageError",
    "TrustError",
    "WorkersError",
]


class ProblemError(BlackBoxError, TypeError):
    """A problem lacks a part, or a part returned what it may not."""


class NotApplicableError(BlackBoxError, ValueError):
    """A method cannot be applied to a problem, for instance since no weight has a gradient."""


class CallbackWarning(UserWarning):
    """A callback raised an exception; training goes on."""


class ProblemWarning(UserWarning):
    """A problem's parts do not fit: a reference with other values than its box, a classifier mostly wrong."""


class RunFolderError(BlackBoxError, ValueError):
    """A folder is no run, or one of its files cannot be read."""


class TrustError(RunFolderError, PermissionError):
    """A folder from elsewhere names code, and nobody said that it may be executed.

    Attributes:
        code: The code that would be executed, in words.
    """

    code = ""


class RunLockedError(BlackBoxError, RuntimeError):
    """Another process is working on the run."""


class CheckpointError(BlackBoxError, ValueError):
    """A state cannot be saved, or a checkpoint cannot be read or does not fit."""


class StorageError(BlackBoxError, OSError):
    """The disk did not take a run's state; what was on it before still is."""


class CheckpointWarning(UserWarning):
    """Training goes on from a checkpoint that is not quite what was expected."""


class DataError(BlackBoxError, ValueError):
    """A data file is missing, truncated, another one than expected, or holds what it cannot hold."""


class SolverError(BlackBoxError, RuntimeError):
    """The solver gave nothing that could be trained on."""


class NonFiniteLossError(BlackBoxError, ArithmeticError):
    """The loss of an optimiser step is NaN or infinite; training stops there."""


class WorkersError(BlackBoxError, RuntimeError):
    """Processes that work on a run together do not find each other, or one has died."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and did so after writing a checkpoint.

    Not a `BlackBoxError`: an `except Exception` on the way up would take it for a failure and go on.
    """


class StoppedInside(KeyboardInterrupt):
    """A step was asked to stop and did so between two queries; those before are in the journal."""
