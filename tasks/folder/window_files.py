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
from urllib.parse import quote

from tasks.errors import CheckpointError
from tasks.folder import checkpoint
from zo.batches import tensors

LARGE = 2**20  # bytes of a window; a smaller one stays in the checkpoint, where it costs no file
_SUM = "sha256"


class WindowFiles:
    """The files of a training's windows.

    Args:
        folder: the folder of these files alone, `checkpoints/seed-0__tangents.windows`; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sums: dict[Path, str] = {}  # of the files that are known to be right

    def put(self, state: Mapping[str, Any], *, finished: bool = False) -> dict[str, Any]:
        """Write the windows that have no file yet.

        Args:
            state: the state of a training's parts, by name.
            finished: whether the training is finished, so that no window is needed any more.

        Returns:
            The state with references in the place of large windows.

        Raises:
            OSError: the disk did not take one.
        """
        sums: dict[Path, str] = {}

        def put(part: str, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [] if finished else [self._reference(part, window, sums) for window in windows]

        small_state = _changed(state, put)
        self._sums = sums
        return small_state

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state that `put` was given.

        Raises:
            CheckpointError: a window's file is missing, damaged, or not the one that the checkpoint names.
        """
        self._sums.clear()
        return _changed(state, self._take)

    def tidy(self) -> None:
        """Remove what the checkpoint does not name; once that is on the disk."""
        for path in self._folder.glob(f"*{checkpoint.ENDING}"):
            if path not in self._sums:
                path.unlink(missing_ok=True)

    def _path(self, part: str, step: int) -> Path:
        """Return a window's path: two parts of a training, such as two gradients, may have the same step."""
        return self._folder / f"{quote(part, safe='')}-step-{step}{checkpoint.ENDING}"

    def _reference(self, part: str, window: dict[str, Any], sums: dict[Path, str]) -> dict[str, Any]:
        if sum(tensor.nbytes for tensor in tensors(window)) < LARGE:
            return window
        step = window["step"]
        path = self._path(part, step)
        if path in self._sums:
            sums[path] = self._sums[path]
        else:
            self._folder.mkdir(exist_ok=True)
            sums[path] = checkpoint.save(path, window)
        return {"step": step, _SUM: sums[path]}

    def _take(self, part: str, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            self._window(part, window) if window.keys() == {"step", _SUM} else window for window in windows
        ]

    def _window(self, part: str, reference: Mapping[str, Any]) -> dict[str, Any]:
        path = self._path(part, reference["step"])
        window, digest = checkpoint.load_with_sum(path)
        if digest != reference[_SUM]:
            raise CheckpointError(
                f"{path}: expected the window that the checkpoint names, got another file. Look "
                "whether files of two runs were mixed."
            )
        self._sums[path] = digest
        return window


def _changed(
    state: Mapping[str, Any], change: Callable[[str, list[dict[str, Any]]], list[dict[str, Any]]]
) -> dict[str, Any]:
    """The state with the windows of each part that has some changed, which is given by name."""
    new_state = dict(state)
    for name, part in state.items():
        windows = part.get("windows") if isinstance(part, Mapping) else None
        if isinstance(windows, Mapping) and isinstance(windows.get("windows"), list):
            new_state[name] = {**part, "windows": {**windows, "windows": change(name, windows["windows"])}}
    return new_state
