"""The figures that README and docs state, read where they stand, each beside what the committed results say.

No figure is written here: `in_table` and `in_text` say in which cell or words of a page one stands, and which
committed value it is.
"""

from __future__ import annotations

from benchmarks.claims.denoised_smoothing import of_denoising, of_safeguard
from benchmarks.claims.evaluators import of_evaluators
from benchmarks.claims.figures import Claim
from benchmarks.claims.image_classification import of_images
from benchmarks.claims.learned_tangents import of_learned_tangents
from benchmarks.claims.mosaic import of_mosaic
from benchmarks.claims.readme import of_readme
from benchmarks.claims.spending_rows import of_imagined_batches, of_spending_rows
from benchmarks.claims.wake_flow import of_wake_flow


def claims() -> list[Claim]:
    """All of them, in the order of the pages."""
    return [
        *of_readme(),
        *of_learned_tangents(),
        *of_spending_rows(),
        *of_imagined_batches(),
        *of_evaluators(),
        *of_wake_flow(),
        *of_denoising(),
        *of_safeguard(),
        *of_images(),
        *of_mosaic(),
    ]
