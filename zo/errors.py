"""The errors and warnings of `zo`: under the root of `blackbox`, each error also a builtin."""

from __future__ import annotations

from blackbox.errors import BlackBoxError, ConfigurationError

__all__ = [
    "ConfigurationError",
    "DerivativeError",
    "EvaluatorWarning",
    "FailedBatchError",
    "FailedQueriesError",
    "KeepBestWarning",
    "LostRowsWarning",
    "NoiseWarning",
    "NonFiniteGradientError",
    "ObjectiveError",
    "ParameterError",
    "PruningWarning",
    "RanksError",
    "RanksWarning",
    "SeedWarning",
    "SlopeWarning",
    "TangentError",
    "TangentWarning",
    "UnitsWarning",
    "ZeroGradientWarning",
]


class ParameterError(BlackBoxError, ValueError):
    """The parameters to perturb are none, unknown, frozen or of a dtype too coarse to perturb."""


class ObjectiveError(BlackBoxError, ValueError):
    """The objective, or the batch it was given, does not keep to one loss per row."""


class FailedQueriesError(BlackBoxError, RuntimeError):
    """Too many queries failed for the gradient to mean anything; `LossGradient` leaves `.grad` as it was."""


class FailedBatchError(FailedQueriesError):
    """A black box failed, and no row of the batch has a loss: no gradient, `.grad` and weights as they were.

    With a batch of one row, one failed row is enough. In a loop of your own go on to the next batch, as runs
    do until ten rows in a row have failed.

    Attributes:
        rows: how many the batch has; 1 of a `NonFiniteGradientError`, which knows of one.
    """

    def __init__(self, message: str, rows: int = 1) -> None:
        super().__init__(message)
        self.rows = rows


class NonFiniteGradientError(FailedBatchError):
    """The loss of a batch is finite and its gradient is not, as where a solver answers what is absurd.

    `.grad` and weights are as they were, and tangents do not learn from answers that are far from all that
    they expect. In a loop of your own go on to the next batch, as runs do until ten such batches came one
    after another.
    """


class RanksError(BlackBoxError, RuntimeError):
    """Processes that share a step out cannot take it: one failed, died, or is about to take another step."""


class RanksWarning(UserWarning):
    """`torch.distributed` has several processes, and nobody has said whether they train together."""


class EvaluatorWarning(UserWarning):
    """A fast evaluator disagreed with `loop` or could not run, and a slower one took its place."""


class NoiseWarning(UserWarning):
    """A change by `mu` is not far above noise, that is, two evaluations at the same weights, or rounding."""


class SlopeWarning(UserWarning):
    """Finite differences are no slopes: over half of `mu` they differ, since the function curves or jumps."""


class LostRowsWarning(UserWarning):
    """Rows have losses that are not finite and are left out, though no black box failed."""


class ZeroGradientWarning(UserWarning):
    """A gradient is exactly zero everywhere: no weight that was moved changed the loss."""


class UnitsWarning(UserWarning):
    """Numbers of a box's inputs have units so different that no one `mu` is right for all of them."""


class SeedWarning(UserWarning):
    """Two boxes of one backward pass draw the same directions, which spoils the gradient through both."""


class DerivativeError(BlackBoxError, RuntimeError):
    """A derivative that function values do not give: of second order, in forward mode, or under `vmap`."""


class PruningWarning(UserWarning):
    """The scores say nothing about a layer, so its ratio means nothing either."""


class TangentError(BlackBoxError, RuntimeError):
    """A step with tangents means nothing: calls cannot be replayed, or a gradient would be lost."""


class TangentWarning(UserWarning):
    """Trust in learned tangents is lost; the message names the limit and the remedy."""


class KeepBestWarning(UserWarning):
    """No weights of a training were better on held-out data than those it started from."""
