"""DeepZero among methods that do without backpropagation, on the residual network.

python -m benchmarks.figure3_baselines --preset {ci,small,paper}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.images import Group, reproduce, residual
from benchmarks.images.baselines import BaselineConfig, WithoutBackpropagation
from benchmarks.images.sizes import Preset

METHODS = ("deepzero", "pattern-search", "align-ada", "forward-gradient", "fa", "dfa", "fo")
NOTE = (
    "The publication draws these accuracies without giving numbers; its forward gradients are of Ren et al. "
    "2022 (with local losses, and on weights), ours of Baydin et al. 2022. Pattern search has as many "
    "queries as deepzero."
)


def groups(preset: Preset) -> list[Group]:
    """All methods in one run."""
    settings = vars(replace(residual(preset), methods=METHODS))
    config = BaselineConfig(**settings, feedback_learning_rate=0.02)
    return [Group("ResNet", config, problem=WithoutBackpropagation)]


def main(words: Sequence[str] | None = None) -> None:
    """Run it; print and write the table."""
    reproduce(
        "figure3_baselines",
        "DeepZero and other methods without backpropagation",
        "network",
        groups,
        words,
        NOTE,
    )


if __name__ == "__main__":
    main()
