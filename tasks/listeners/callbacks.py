"""`Callback`: what else is to happen while a run trains: a tracking server, a message, a picture.

class Print(tasks.Callback):
    def on_validation(self, stage, step, value):
        print(stage, step, value)

tasks.run(Brusselator(), callbacks=[Print()])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.errors import CallbackWarning
from tasks.folder.result import Result
from tasks.folder.run import Run
from tasks.problem.trained import TrainingOutcome


class Callback:
    """The methods called while a run trains; a subclass has those that it needs.

    Give it to `tasks.run(..., callbacks=[...])`, or name it in the problem's class, `callbacks = (Print(),)`,
    and `blackbox run` and `blackbox resume` use it too. Of several processes the first one alone calls it.

    A run that was stopped goes on from its last checkpoint: the steps since then are reported again, after an
    `on_start` that says from where. A stage that was finished before is not reported again.

    Attributes:
        strict: Whether an exception in the callback ends the run. If not, it is a `CallbackWarning`, once in
            a run for each kind of exception, and training goes on; where `on_start` raised it, the callback
            is not called any more in that stage.
    """

    strict: bool = False

    def on_start(self, run: Run, stage: str, step: int, steps: int) -> None:
        """A stage begins or goes on.

        Args:
            run: Its folder (`run.path`), problem (`run.task`), settings (`run.config`).
            stage: Method and seed: "seed-0/tangents".
            step: Optimiser steps done before.
            steps: Optimiser steps of the whole stage.
        """

    def on_step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """`step` optimiser steps are done; `metrics` is the last one's line: `loss`, `rows`, `queries`..."""

    def on_validation(self, stage: str, step: int, value: float) -> None:
        """Validation gave `value` after `step` optimiser steps; NaN where it failed."""

    def on_end(self, stage: str, outcome: TrainingOutcome) -> None:
        """A stage is finished; the outcome has steps, seconds, the best validation, and the ledger."""

    def on_result(self, run: Run, result: Result) -> None:
        """The run is finished: `result.table` has a row for each method and seed."""


class Listeners:
    """The callbacks of a run, called one after the other; their exceptions end no training, unless strict.

    Args:
        run: The run that has them; a warning of an exception is given once in a run.
    """

    def __init__(self, run: Run) -> None:
        self._callbacks: Sequence[Callback] = run.here.callbacks
        self._notices = run.here.callbacks_said
        self._deaf: set[int] = set()  # whose `on_start` raised: of the stage they know nothing

    def tell(self, name: str, *arguments: Any) -> None:
        """Call the method of that name of each callback."""
        for number, callback in enumerate(self._callbacks):
            if number in self._deaf:
                continue
            try:
                getattr(callback, name)(*arguments)
            except Exception as error:
                if callback.strict:
                    raise
                if name == "on_start":
                    self._deaf.add(number)
                message = " ".join(str(error).split()).rstrip(".")
                self._notices.once(
                    f"{number} {type(error).__name__}",
                    f"{type(callback).__name__}.{name}: expected it to return, got "
                    f"{type(error).__name__}: {message}. Training goes on; further ones of this kind are "
                    "not shown. Set `strict = True` in the class to end the run instead.",
                    CallbackWarning,
                )
