"""Checkpoints: nested states of tensors and plain values, written atomically, read with no code run."""

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

from tasks.errors import CheckpointError, ConfigurationError
from tasks.folder import atomic

FOLDER, EVALUATIONS = "checkpoints", "evaluations"
ENDING = ".pt"
_CHECKSUM = b"\nsha256 "  # behind what torch.save wrote, which torch.load reads all the same
_TAIL = len(_CHECKSUM) + 64


def save(path: Path, state: Mapping[str, Any]) -> str:
    """Write a state by `torch.save`, with the SHA-256 of its bytes behind them.

    Args:
        path: The path of the file, which appears as a whole or not at all.
        state: Dicts, lists and tuples of tensors, numbers, text and None, nested in any way.

    Returns:
        The SHA-256, in hexadecimal digits.

    Raises:
        CheckpointError: the state holds something that could not be read back; nothing was written.
        OSError: the file cannot be written; an old file stays as it was.
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
    digest = sha256(content).hexdigest()
    atomic.write_bytes(path, content + _CHECKSUM + digest.encode())
    return digest


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; as `load_with_sum`."""
    return load_with_sum(path)[0]


def load_with_sum(path: Path) -> tuple[dict[str, Any], str]:
    """Read what `save` wrote, all tensors on the CPU; no code in it is run.

    Returns:
        The state, and what `save` returned.

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
    digest = sha256(content).hexdigest()
    if tail != _CHECKSUM + digest.encode():
        raise CheckpointError(
            f"{path}: expected the contents that its checksum stands for, got {len(whole):,} bytes that were "
            "cut short or altered."
        )
    try:
        with warnings.catch_warnings():  # of torch about a file that is none of its own
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of a file that someone made, torch raises whatever comes up
        raise CheckpointError(
            f"{path}: expected tensors and plain values, got a file that torch does not read as such "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict of states, got {type(state).__name__}. Delete it.")
    return state, digest


def windows_of(path: Path) -> Path:
    """The folder of large windows that a stage's checkpoint names: `checkpoints/seed-0__tangents.windows`."""
    return path.with_name(f"{path.name.removesuffix(ENDING)}.windows")


def of_stage(folder: Path, stage: str) -> Path:
    """The file of a stage's checkpoint in a run folder: `checkpoints/seed-0__zo-sol.pt`.

    Args:
        folder: the folder of the run.
        stage: the name of the stage: "seed-0/zo-sol".

    Raises:
        ConfigurationError: the stage's name could clash with another's, or leave the folder.
    """
    return folder / FOLDER / f"{file_name(stage)}{ENDING}"


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


def load_evaluation(folder: Path, stage: str) -> dict[str, Any]:
    """Load a stage's `Problem.evaluate`: figures, fields (arrays as tensors), failed, ledger and by_row.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = evaluation(folder, stage)
    content = {"failed": {}, "by_row": (), **load(path)}  # those of older versions lack some
    parts: list[Any] = [content.get(name) for name in ("figures", "fields", "ledger", "failed")]
    if not (
        all(isinstance(part, dict) for part in parts)
        and all(
            isinstance(array, torch.Tensor) and array.layout is torch.strided for array in parts[1].values()
        )
        and all(isinstance(name, str) for part in parts for name in part)
        and all(
            isinstance(parts[2].get(name, 0), int) for name in ("rows_run", "rows_failed", "rows_skipped")
        )
        and isinstance(content["by_row"], tuple)
        and all(value is None or isinstance(value, float) for value in content["by_row"])
    ):
        raise CheckpointError(
            f"{path}: expected the figures and arrays of an evaluation, got others. Delete it: an unfinished "
            "run evaluates again."
        )
    return content


def evaluation(folder: Path, stage: str) -> Path:
    """The file of a stage's evaluation in a run folder."""
    return folder / EVALUATIONS / f"{file_name(stage)}{ENDING}"
