"""Checkpoints: a nested state of tensors and plain values, written atomically, read with no code run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import CheckpointError
from tasks.runs import atomic

_PLAIN = (bool, int, float, str, type(None))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, dicts, lists and tuples of them) to `path`.

    Raises:
        CheckpointError: the state holds something that `load` would refuse; nothing was written.
    """
    _check(state, path.name)
    atomic.write(path, lambda stream: torch.save(state, stream))


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, all tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, cut short, or holds anything but tensors and plain values.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken zip, a broken pickle and a missing file have no common root
        raise CheckpointError(
            f"{path}: expected a checkpoint, got a file that cannot be read ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}). "
            "Delete it to start this stage anew."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict of states, got {type(state).__name__}. Delete it.")
    return state


def _check(value: object, where: str) -> None:
    """Refuse at saving time what would only be noticed when the run is to be resumed."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key, f"{where}, key {key!r}")
            _check(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):  # type: ignore[arg-type]
            _check(item, f"{where}[{index}]")
    # exact types: numpy.float64 passes isinstance(value, float) and is refused by weights_only
    elif not (isinstance(value, Tensor | torch.Size) or type(value) in _PLAIN):
        raise CheckpointError(
            f"{where}: expected a tensor, number, text, dict or list, got {type(value).__module__}."
            f"{type(value).__name__}. Convert it in state_dict()."
        )
