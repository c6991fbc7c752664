"""deepzero and exact gradients on its sets by number of training images, and by batch size, at equal cost.

python -m benchmarks.scaling_laws --preset {ci,small,paper}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.images import Group, reproduce, residual
from benchmarks.images.sizes import Preset, in_epochs, passes

IMAGES = {"ci": (64,), "small": (150, 300, 600, 1200), "paper": (5000, 10_000, 20_000, 45_000)}
BATCHES = {"ci": (32,), "small": (8, 16, 64, 128), "paper": (64, 128, 512)}
NOTE = (
    "The publication has no such numbers. A step costs coordinates times batch, so all lines cost the same: "
    "with fewer images there are more epochs, and with smaller batches more steps. Small: six epochs of all."
)


def groups(preset: Preset) -> list[Group]:
    """One for each number of images, then one for each batch size."""
    base = replace(residual(preset), methods=("deepzero", "fo-sparse-gradient"))
    if preset == "small":  # two million queries otherwise
        base = in_epochs(base, 6, validate_every=4)
    found = [Group(f"{count:,} images", replace(base, train_images=count)) for count in IMAGES[preset]]
    epochs = passes(base)
    for size in BATCHES[preset]:
        config = in_epochs(replace(base, batch=size), epochs, warm_up=epochs * base.warm_up)
        found.append(Group(f"batch {size}", config))
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Run it; print and write the table."""
    reproduce("scaling_laws", "deepzero by data and by batch", "what changes", groups, words, NOTE)


if __name__ == "__main__":
    main()
