"""One root for the errors of all packages, and for each kind of fault one name that also is the builtin.

Every message has three parts: what was expected, what came, and how to mend it.
"""

from __future__ import annotations


class BlackBoxError(Exception):
    """Root of everything that `blackbox`, `zo`, `simulators` and `tasks` raise on purpose."""


class DefinitionError(BlackBoxError, TypeError):
    """A subclass of `BlackBoxFunction` is not complete, or its specs make no sense."""


class ConfigurationError(BlackBoxError, ValueError):
    """A setting is unknown, of the wrong type or out of its range, in whichever package."""


class InputError(BlackBoxError, ValueError):
    """A value that the black box cannot take; root of the four below."""


class CountError(InputError, TypeError):
    """Too many or too few arrays in a call, one that came twice, or one by a name that no input has."""


class ShapeError(InputError):
    """An input's trailing axes differ from its spec, or leading axes differ between inputs."""


class DtypeError(InputError, TypeError):
    """An input is no array, or an array of the wrong dtype, kind or device."""


class NonFiniteInputError(InputError):
    """An input holds NaN or infinity while failures are to be raised."""


class BoundsWarning(UserWarning):
    """The first inputs of a box lie far outside of its spec's bounds."""


class PrecisionWarning(UserWarning):
    """A box gives float64 answers whose differences are lost where they become float32."""


class WaitWarning(UserWarning):
    """A box asks to be left alone for longer than `Retrying` would wait of its own accord."""


class NotDifferentiableError(BlackBoxError, RuntimeError):
    """A tensor that requires a gradient is given to a black box, which would cut it from the graph."""


class OutputError(BlackBoxError, RuntimeError):
    """The black box's result breaks its own output specs: a fault of the box, not of a row."""


class TryAgain(BlackBoxError, RuntimeError):
    """Raised by a box for a row that it cannot take now, and may take later: a busy server, a licence in use.

    Args:
        message: the reason why the box cannot take the row.
        after: seconds that the box asks to be left alone; `Retrying` and `RateLimited` wait that long.
    """

    def __init__(self, message: str = "", *, after: float = 0.0) -> None:
        super().__init__(message or f"try again after {after:g} s")
        self.after = after


class RowFailedError(BlackBoxError, RuntimeError):
    """A row raised or came back non-finite while failures are to be raised."""


class NoRowLeftError(RowFailedError):
    """All rows of a program's run failed: no row says how long the arrays are that were to be kept as NaN.

    Raised while failures are to be kept, where such an array is asked for. Gradients of `zo` and runs of
    `tasks` take all rows of the batch for failed then.
    """


class BudgetError(BlackBoxError, RuntimeError):
    """A call would run more rows than the budget has left; none of it was run.

    Attributes:
        enough: A budget that would do, where that is known.
    """

    enough: int | None = None


class SessionError(BlackBoxError, RuntimeError):
    """A simulator that cannot be set cannot go on from a row: its inputs are no answer that it gave."""


class ExecutorError(BlackBoxError, RuntimeError):
    """The executor of a `Parallel` broke or was shut down, and there is no other to go on with."""
