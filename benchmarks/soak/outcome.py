"""What a run came to, to the bit: final checkpoints, metrics and result, without clocks and costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.runs import checkpoint
from tasks.runs.folder import Run

CLOCK = ("seconds", "costs")  # names of what is measured in seconds
# What all processes ran, in which each one's bases, checks and repetitions count, and so how many there were.
SPENT = ("rows", "failed", "queries", "images")
PACE = "seconds_left"  # a line of the metrics with it is one a minute


def of(run: Path) -> dict[str, str]:
    """Name -> digest: of each tensor and number of the final checkpoints, of the metrics, of the table.

    The table's figures include those of the evaluation, on test data.
    """
    found: dict[str, str] = {}
    for path in final_checkpoints(run):
        content = checkpoint.load(path)
        stage = path.name.partition(".")[0]
        for name in ("state", "best", "outcome"):
            found |= _digests(f"{stage}/{name}", content[name])
    lines = [_timeless(line) for line in Run.open(run).metrics() if PACE not in line]
    for stage in sorted({line["stage"] for line in lines}):
        own = [line for line in lines if line["stage"] == stage]
        found[f"metrics of {stage}"] = _digest(json.dumps(own, sort_keys=True).encode())
    table = json.loads((run / "result.json").read_text())["table"]
    found["result"] = _digest(json.dumps([_timeless(row) for row in table], sort_keys=True).encode())
    return found


def final_checkpoints(run: Path) -> list[Path]:
    """The newest of each stage."""
    newest: dict[str, Path] = {}
    for path in sorted((run / "checkpoints").glob("*.safetensors")):
        newest[path.name.partition(".step-")[0]] = path
    return list(newest.values())


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Names of what is not the same."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _digests(name: str, value: Any) -> dict[str, str]:  # noqa: ANN401
    if isinstance(value, Mapping):
        parts = [_digests(f"{name}/{key}", item) for key, item in value.items() if _counts(key)]
        return {key: digest for part in parts for key, digest in part.items()}
    if isinstance(value, list | tuple):
        parts = [_digests(f"{name}/{place}", item) for place, item in enumerate(value)]
        return {key: digest for part in parts for key, digest in part.items()}
    if isinstance(value, Tensor):
        content = value.contiguous().flatten().numpy().tobytes()
        return {name: _digest(f"{value.dtype} {tuple(value.shape)}".encode() + content)}
    return {name: _digest(repr(value).encode())}


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _timeless(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that count, in nested ones too."""
    return {
        name: _timeless(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if _counts(name)
    }


def _counts(name: object) -> bool:
    first = str(name).partition(" ")[0].rstrip(":")  # "failed solver rows", "queries: training"
    return name not in CLOCK and first not in SPENT
