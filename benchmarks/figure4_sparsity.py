"""Figure 4 of DeepZero: the residual network by sparsity, beside first order that is sparse likewise.

python -m benchmarks.figure4_sparsity --preset {ci,small,paper}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.images import Group, reproduce, residual
from benchmarks.images.sizes import Preset
from benchmarks.published import FIGURE_4, FIGURE_4_DENSE

METHODS = ("deepzero", "fo-sparse-gradient", "fo-sparse-weight")
SPARSITIES = {"ci": (0.8, 0.9), "small": (0.9, 0.95, 0.99), "paper": tuple(FIGURE_4)}


def groups(preset: Preset) -> list[Group]:
    """Dense first order, then one group for each sparsity."""
    base = residual(preset)
    dense = Group(0.0, replace(base, methods=("fo",)), FIGURE_4_DENSE)
    sparse = [
        Group(sparsity, replace(base, methods=METHODS, sparsity=sparsity), FIGURE_4[sparsity])
        for sparsity in SPARSITIES[preset]
    ]
    return [dense, *sparse]


def main(words: Sequence[str] | None = None) -> None:
    """Run it; print and write the table."""
    reproduce("figure4_sparsity", "DeepZero by sparsity", "sparsity", groups, words)


if __name__ == "__main__":
    main()
