"""Checkpoints: nested states of tensors and plain values, written atomically, read with no code run.

Of a stage of a run the last few are kept (`Checkpoints`), and the newest that is whole is read.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tasks.errors import CheckpointError, CheckpointWarning, ConfigurationError
from tasks.runs import atomic

KEPT = 2
FOLDER, EVALUATIONS = "checkpoints", "evaluations"
ENDING = ".pt"
_CHECKSUM = b"\nsha256 "  # behind what torch.save wrote, which torch.load reads all the same
_TAIL = len(_CHECKSUM) + 64


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state by `torch.save`, with the SHA-256 of its bytes behind them.

    Args:
        path: Of the file, which appears as a whole or not at all.
        state: Dicts, lists and tuples of tensors, numbers, text and None, nested in any way.

    Raises:
        CheckpointError: the state holds something that could not be read back; nothing was written.
        OSError: the file cannot be written; one that was there stays as it was.
    """
    stream = io.BytesIO()
    try:
        torch.save(state, stream)
        stream.seek(0)
        refused = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        refused = [str(error)]
    if refused:
        raise CheckpointError(
            f"{path.name}: expected tensors, numbers, text, dicts and lists, got {', '.join(refused)}. "
            "Convert it in state_dict()."
        )
    content = stream.getvalue()
    atomic.write_bytes(path, content + _CHECKSUM + sha256(content).hexdigest().encode())


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, all tensors on the CPU; no code in it is run.

    Raises:
        CheckpointError: the file is missing, cut short, altered, or holds anything but tensors and plain
            values.
        OSError: the system does not let it be read.
    """
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected a checkpoint, got no such file.") from None
    content, tail = whole[:-_TAIL], whole[-_TAIL:]
    if tail != _CHECKSUM + sha256(content).hexdigest().encode():
        raise CheckpointError(
            f"{path}: expected the contents that its checksum stands for, got {len(whole):,} bytes that were "
            "cut short or altered."
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path}: expected tensors and plain values, got a file that torch does not read as such "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict of states, got {type(state).__name__}. Delete it.")
    return state


class Checkpoints:
    """Files `checkpoints/seed-0__zo-sol.step-00000012.pt` in a run folder.

    Each is written whole under a name of its own before an older one goes, so that whatever happens
    the newest or the one before it can be read.

    Args:
        folder: of the run.
        stage: its name: "seed-0/zo-sol".

    Raises:
        ConfigurationError: the stage's name could clash with another's, or leave the folder.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.stage = stage
        self.folder = folder / FOLDER
        self._name = file_name(stage)

    def path(self, step: int) -> Path:
        """The file of the checkpoint after `step` optimiser steps."""
        return self.folder / f"{self._name}.step-{step:08d}{ENDING}"

    def files(self) -> list[Path]:
        """Those that are there, the newest first."""
        return [path for _, path in sorted(self._by_step().items(), reverse=True)]

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the checkpoint after `step` steps, and only then let those go that are one too many.

        Raises:
            CheckpointError: see `checkpoint.save`.
            OSError: it cannot be written; those that were there still are.
        """
        self.folder.mkdir(exist_ok=True)
        save(self.path(step), state)
        by_step = self._by_step()
        # what lies ahead could not be read, or training would have gone on from it
        ahead = [path for other, path in by_step.items() if other > step]
        past = [by_step[other] for other in sorted(by_step, reverse=True) if other <= step]
        for path in [*ahead, *past[KEPT:]]:
            path.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None if there is none at all.

        Warns:
            CheckpointWarning: a newer one is cut short or altered; both are named.

        Raises:
            CheckpointError: there are some, and none is whole.
            OSError: the system does not let one be read.
        """
        damaged: list[str] = []
        for path in self.files():
            try:
                state = load(path)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            if damaged:
                warnings.warn(
                    f"{self.stage}: {' '.join(damaged)} Going on from the one before, {path.name}: the steps "
                    "in between are taken again, to the same weights. Look after that disk.",
                    CheckpointWarning,
                    stacklevel=2,
                )
            return state
        if damaged:
            raise CheckpointError(
                f"{self.stage}: expected one checkpoint that is whole, got {' '.join(damaged)} "
                "Delete them to train this stage anew."
            )
        return None

    def tidy(self) -> None:
        """Delete what a process that was killed while it wrote has left behind; for the lock's holder."""
        for path in atomic.leftovers(self.folder, f"{self._name}.step-"):
            path.unlink(missing_ok=True)

    def _by_step(self) -> dict[int, Path]:
        pattern = re.compile(re.escape(self._name) + rf"\.step-(\d+){re.escape(ENDING)}")
        if not self.folder.is_dir():
            return {}
        found = ((pattern.fullmatch(path.name), path) for path in self.folder.iterdir())
        return {int(match[1]): path for match, path in found if match is not None}


def file_name(stage: str) -> str:
    """The start of a stage's file names: "seed-0/zo-sol" -> "seed-0__zo-sol".

    Raises:
        ConfigurationError: it could clash with another's, or leave the folder.
    """
    part = r"[A-Za-z0-9][A-Za-z0-9.-]*"
    if not re.fullmatch(f"{part}(/{part})*", stage):
        raise ConfigurationError(
            f"expected a stage named like 'seed-0/zo-sol' (letters, digits, '-', '.', parts joined by '/'), "
            f"got {stage!r}. Rename it."
        )
    return stage.replace("/", "__")


def evaluation(folder: Path, stage: str) -> Path:
    """The file of a stage's evaluation in a run folder."""
    return folder / EVALUATIONS / f"{file_name(stage)}{ENDING}"
