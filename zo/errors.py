"""The errors and warnings of `zo`: one root, each error also the builtin that it refines."""

from __future__ import annotations


class ZeroOrderError(Exception):
    """Root of everything that this package raises on purpose."""


class ConfigurationError(ZeroOrderError, ValueError):
    """A setting of an estimator, an evaluator or a gradient is out of its range."""


class ParameterError(ZeroOrderError, ValueError):
    """The parameters to perturb are none, unknown, frozen or of a dtype too coarse to perturb."""


class ObjectiveError(ZeroOrderError, ValueError):
    """The objective, or the batch it was given, does not keep to one loss per row."""


class FailedQueriesError(ZeroOrderError, RuntimeError):
    """Too many queries failed for the gradient to mean anything; `LossGradient` leaves `.grad` as it was."""


class RanksError(ZeroOrderError, RuntimeError):
    """Processes that share a step out cannot take it: one failed, died, or is about to take another step."""


class EvaluatorWarning(UserWarning):
    """A fast evaluator disagreed with `loop` or could not run, and `loop` took its place."""


class ZeroGradientWarning(UserWarning):
    """A gradient is exactly zero everywhere, as of a box that does not depend on its inputs."""


class DerivativeError(ZeroOrderError, RuntimeError):
    """A derivative that function values do not give: of second order, in forward mode, or under `vmap`."""


class PruningWarning(UserWarning):
    """The scores say nothing about a layer, so its ratio means nothing either."""


class TangentError(ZeroOrderError, RuntimeError):
    """A step with tangents means nothing: calls that cannot be replayed, or a gradient that is not finite."""


class TangentWarning(UserWarning):
    """Tangents predict the black boxes badly, and no more probes are allowed."""


class KeepBestWarning(UserWarning):
    """No weights of a training were better on held-out data than those it started from."""
