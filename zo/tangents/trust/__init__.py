"""Trust: when the tangents of a gradient are not trusted any more, and what is done about it.

`evidence` has what a step has shown, `figures` the `thresholds` that this may break, `verdict` what follows,
and `words` the warnings. `TrustWatch` takes them from step to step, and begins remedies where trust is lost.
"""

from zo.tangents.trust.evidence import Check, is_flat
from zo.tangents.trust.figures import metrics
from zo.tangents.trust.limits import Limits
from zo.tangents.trust.watch import TrustWatch

__all__ = ["Check", "Limits", "TrustWatch", "is_flat", "metrics"]
