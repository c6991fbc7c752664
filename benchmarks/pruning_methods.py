"""deepzero with layer ratios by other scores: what ZO-GraSP is worth.

python -m benchmarks.pruning_methods --preset {ci,small,paper}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args, get_type_hints

from benchmarks.images import Group, reproduce, residual
from benchmarks.images.sizes import Preset, in_epochs
from tasks.image_classification.config import Config

NOTE = (
    "We know of no such published numbers. fo-sparse-gradient beside deepzero says how much of a difference "
    "is due to the ratios alone. Small: six epochs of all."
)


def groups(preset: Preset) -> list[Group]:
    """One for each score."""
    base = replace(residual(preset), methods=("deepzero", "fo-sparse-gradient"))
    if preset == "small":
        base = in_epochs(base, 6, validate_every=4)
    chosen = ("zo-grasp", "uniform") if preset == "ci" else get_args(get_type_hints(Config)["ratios"])
    return [Group(ratios, replace(base, ratios=ratios)) for ratios in chosen]


def main(words: Sequence[str] | None = None) -> None:
    """Run it; print and write the table."""
    reproduce("pruning_methods", "deepzero by the score of its layer ratios", "score", groups, words, NOTE)


if __name__ == "__main__":
    main()
