"""Windows of a training that are large, each in a file of its own, which checkpoints name.

What `zo.TangentGradient` recorded in a step never changes, and of a large state it is large: up to 1 GiB in
all. In the checkpoint itself it would be written again each time; here each window is written once, and
removed when the checkpoint no longer names it. In the place of such a window a checkpoint has its step and
the SHA-256 of its file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.runs import checkpoint
from zo.batches import tensors

LARGE = 2**20  # bytes of a window; a smaller one stays in the checkpoint, where it costs no file
_SUM = "sha256"


class WindowFiles:
    """The files of a training's windows.

    Args:
        folder: of these files alone, `checkpoints/seed-0__tangents.windows`; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sums: dict[int, str] = {}  # of the files that are known to be right, by step

    def put(self, state: Mapping[str, Any], *, finished: bool = False) -> dict[str, Any]:
        """Write the windows that have no file yet.

        Args:
            state: of a training's parts, by name.
            finished: whether the training is, and no window is needed any more.

        Returns:
            The state with references in the place of large windows.

        Raises:
            OSError: the disk did not take one.
        """
        return _changed(state, self._none if finished else self._put)

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state that `put` was given.

        Raises:
            CheckpointError: a window's file is missing, damaged, or not the one that the checkpoint names.
        """
        self._sums.clear()
        return _changed(state, self._take)

    def tidy(self) -> None:
        """Remove what the checkpoint does not name; once that is on the disk."""
        named = {self._path(step) for step in self._sums}
        for path in self._folder.glob(f"*{checkpoint.ENDING}"):
            if path not in named:
                path.unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step}{checkpoint.ENDING}"

    def _put(self, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sums: dict[int, str] = {}
        kept = [self._reference(window, sums) for window in windows]
        self._sums = sums
        return kept

    def _none(self, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._sums = {}
        return windows[:0]

    def _reference(self, window: dict[str, Any], sums: dict[int, str]) -> dict[str, Any]:
        if sum(tensor.nbytes for tensor in tensors(window)) < LARGE:
            return window
        step = window["step"]
        if step in self._sums:
            sums[step] = self._sums[step]
        else:
            self._folder.mkdir(exist_ok=True)
            sums[step] = checkpoint.save(self._path(step), window)
        return {"step": step, _SUM: sums[step]}

    def _take(self, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._window(window) if window.keys() == {"step", _SUM} else window for window in windows]

    def _window(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        step = reference["step"]
        window, found = checkpoint.load_with_sum(self._path(step))
        if found != reference[_SUM]:
            raise CheckpointError(
                f"{self._path(step)}: expected the window that the checkpoint names, got another file. Look "
                "whether files of two runs were mixed."
            )
        self._sums[step] = found
        return window


def _changed(
    state: Mapping[str, Any], change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> dict[str, Any]:
    """The state with the windows of the part that has some changed."""
    made = dict(state)
    for name, part in state.items():
        windows = part.get("windows") if isinstance(part, Mapping) else None
        if isinstance(windows, Mapping) and isinstance(windows.get("windows"), list):
            made[name] = {**part, "windows": {**windows, "windows": change(windows["windows"])}}
    return made
