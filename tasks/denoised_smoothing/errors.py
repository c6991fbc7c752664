"""The errors of denoised smoothing: under the root of `blackbox`, each of them also the builtin that fits.

Every message has three parts: what was expected, what came, and how to mend it.
"""

from __future__ import annotations

from blackbox.errors import BlackBoxError


class SettingError(BlackBoxError, ValueError):
    """A setting of the certification is out of its range: sigma <= 0, N < n0, alpha outside (0, 1)."""


class ImageError(BlackBoxError, ValueError):
    """Clean images are outside [0, 1], not finite, or of the wrong shape or dtype for the box."""


class LabelError(BlackBoxError, ValueError):
    """A label that the box never gives: among the data, or in an answer."""


class BoxError(BlackBoxError, TypeError):
    """The box is none that can be smoothed: not one image in, not one vector of scores or label out."""


class DenoiserError(BlackBoxError, ValueError):
    """The denoiser changes the shape of an image, or is no module."""


class PlanError(BlackBoxError, RuntimeError):
    """The planned queries do not fit into what is left of the budget; none was asked."""


class FailedQueriesError(BlackBoxError, RuntimeError):
    """More queries of an image failed than may; a server that is down must not pass for abstentions."""


class CertificateFileError(BlackBoxError, ValueError):
    """A certificate file cannot be read, or belongs to another certification."""


class ExportError(BlackBoxError, RuntimeError):
    """The exported denoiser does not give what the network gives, or cannot be exported."""
