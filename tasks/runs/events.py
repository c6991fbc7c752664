"""TensorBoard event files of a run, beside its `metrics.jsonl`: a choice, with a package of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blackbox.extras import import_extra

FOLDER = "tensorboard"


class Events:
    """Event files `tensorboard/<stage>/`, a curve for each figure of a stage.

    Args:
        folder: of the run.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        import_extra("--tensorboard", "tensorboard", "tensorboard")
        from torch.utils import tensorboard

        self._folder = folder / FOLDER
        self._folder.mkdir(exist_ok=True)  # by which a resumed run knows to go on with it
        self._make = tensorboard.SummaryWriter
        self._writers: dict[str, Any] = {}

    def log(self, stage: str, step: int, values: Mapping[str, float | int | str]) -> None:
        """Add the numbers of a line of metrics."""
        if stage not in self._writers:
            self._writers[stage] = self._make(str(self._folder / stage))
        for name, value in values.items():
            if not isinstance(value, str):
                self._writers[stage].add_scalar(name, value, step)

    def restart(self, stage: str, step: int) -> None:
        """What was written of a stage past `step` does not count any more: it is trained anew from there."""
        if stage in self._writers:
            self._writers.pop(stage).close()
        if (self._folder / stage).is_dir():
            self._writers[stage] = self._make(str(self._folder / stage), purge_step=step + 1)

    def flush(self) -> None:
        """Bring what was logged to the files."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Write the rest and close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
