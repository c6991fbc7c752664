"""`TensorBoard`: a callback that writes the metrics of a run as TensorBoard's event files too."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blackbox.extras import import_extra
from tasks.listeners.callbacks import Callback

if TYPE_CHECKING:
    from tasks.folder.run import Run
    from tasks.problem.trained import TrainingOutcome

FOLDER = "tensorboard"


class TensorBoard(Callback):
    """Event files `tensorboard/<stage>/` in the run's folder, a curve for each figure of `metrics.jsonl`.

    `tasks.run(problem, callbacks=[tasks.TensorBoard()])`, or `blackbox run PROBLEM --tensorboard`. Where one
    goes on, the files of the stage at hand are written anew from `metrics.jsonl`, so that no step is in them
    twice or missing.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        import_extra("tasks.TensorBoard", "tensorboard", "tensorboard")
        self._writers: dict[str, Any] = {}

    def on_start(self, run: Run, stage: str, step: int, steps: int) -> None:
        """Write what the run's metrics have of the stage."""
        from torch.utils.tensorboard import SummaryWriter

        folder = run.path / FOLDER / stage
        shutil.rmtree(folder, ignore_errors=True)
        self._writers[stage] = SummaryWriter(str(folder))
        for line in run.metrics(stage):
            self._write(stage, line["step"], line)

    def on_step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a step's metrics."""
        self._write(stage, step, metrics)

    def on_validation(self, stage: str, step: int, value: float) -> None:
        """Add the figure, and bring everything so far to the files."""
        self._write(stage, step, {"validation": value})
        self._writers[stage].flush()

    def on_end(self, stage: str, outcome: TrainingOutcome) -> None:
        """Write the rest."""
        self._writers.pop(stage).close()

    def _write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                self._writers[stage].add_scalar(name, value, step)
