"""When deepzero's set is drawn anew: every epoch, every few steps, never; a rising sparsity; a hybrid.

python -m benchmarks.dynamic_sparsity --preset {ci,small,paper}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.images import Group, reproduce, residual
from benchmarks.images.sizes import Preset, in_epochs

NOTE = (
    "The publication draws every epoch. Rising sparsities begin with all weights, so they cost more queries; "
    "hybrid has as many random directions outside the set as the set has coordinates, so twice the queries; "
    "in small 48, and six epochs in all lines."
)


def groups(preset: Preset) -> list[Group]:
    """One for each way to draw."""
    base = replace(residual(preset), methods=("deepzero",))
    if preset == "small":
        base = in_epochs(replace(base, directions=48), 6, validate_every=4)
    drawn = {
        "every epoch": base,
        "every 10 steps": replace(base, redraw="steps", redraw_steps=10),
        "every step": replace(base, redraw="steps", redraw_steps=1),
        "never": replace(base, redraw="never"),
        "hybrid": replace(base, methods=("hybrid",)),
    }
    # Over a tenth of the run: on half of all weights in the mean, it is what costs most.
    rising = {
        "linear": replace(base, gradual="linear", gradual_part=0.1),
        "cubic": replace(base, gradual="cubic", gradual_part=0.1),
    }
    if preset == "ci":
        return [Group(label, drawn[label]) for label in ("every epoch", "never")]
    return [Group(label, config) for label, config in (drawn | rising).items()]


def main(words: Sequence[str] | None = None) -> None:
    """Run it; print and write the table."""
    reproduce("dynamic_sparsity", "deepzero by when its set is drawn", "drawn", groups, words, NOTE)


if __name__ == "__main__":
    main()
