"""`Silence`: what a problem shows outside of a run. A run's has the same methods, see `tasks.Progress`."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Silence:
    """Shows nothing."""

    def begin(self, stage: str, steps: int, *, done: int = 0, unit: str = "step") -> None:
        """Start a stage of `steps` steps, of which `done` were done earlier."""

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """`step` steps are done."""

    def end(self) -> None:
        """The stage is done, or given up."""

    def say(self, text: str) -> None:
        """A line of text that stays."""

    def counter(self, stage: str, unit: str = "step") -> Callable[[int, int], None]:
        """A callable `(done, total)` for work that counts itself, such as making reference data."""
        return lambda done, total: None

    def lesson(self, done: int, most: int) -> None:
        """`done` of at most `most` steps of a box's model learning for the first time."""
