"""`Silence`: the type of a listener of progress. By itself it shows nothing; a `tasks.Progress` may."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Silence:
    """The listener that problems, methods and runs tell of their progress; the type by which it is passed.

    By itself it shows nothing, as a problem does outside of a run. A run gets a subclass, most often a
    `tasks.Progress`.
    """

    def begin(self, stage: str, steps: int, *, done: int = 0, unit: str = "step") -> None:
        """Start a stage of `steps` steps; `done` of them were done earlier."""

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """`step` steps are done."""

    def resize(self, steps: int) -> None:
        """The stage has another number of steps than it began with."""

    def end(self) -> None:
        """The stage is done, or given up."""

    def say(self, text: str) -> None:
        """A line of text that stays."""

    def counter(self, stage: str, unit: str = "step") -> Callable[[int, int], None]:
        """A callable `(done, total)` for work that counts itself, such as making reference data."""
        return lambda done, total: None

    def lesson(self, done: int, most: int) -> None:
        """`done` of at most `most` steps of a box's model learning for the first time."""
