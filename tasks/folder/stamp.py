"""The stamp of a kept result of a run, a checksum: of settings, and perhaps weights and code.

A file in a run's folder outlives the weights that it was made of, where a checkpoint is deleted, and the
code, where that is edited. So it carries a stamp, and a result with another stamp is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tasks.folder.machine import PACKAGE, version
from tasks.folder.run import Run
from tasks.folder.terms import HARMLESS
from zo.batches import bits

OF = "of"  # the entry of a file with the checksum


def settings(run: Run) -> str:
    """A checksum of the run's task and settings, but for those on which no number depends."""
    config = {name: value for name, value in run.config.items() if name not in HARMLESS}
    return _sha256({"task": run.task, "config": config})


def code(run: Run) -> str:
    """A checksum of the files of code that the run names; "" where it names none."""
    versions = run.code_versions()
    return _sha256(versions) if versions else ""


def evaluation(run: Run, network: nn.Module) -> str:
    """A checksum of settings, code, the version of this package, and a network's weights and all buffers."""
    digest = sha256(f"{settings(run)} {code(run)} {version(PACKAGE)}".encode())
    state = network.state_dict()
    # outputs depend as well on buffers that are not saved, such as masks
    more_settings = {
        name: buffer for name, buffer in network.named_buffers(remove_duplicate=False) if name not in state
    }
    for name, value in (state | more_settings).items():
        if isinstance(value, torch.Tensor) and not is_lazy(value):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(bits(_plain(value).cpu()).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def fits(run: Run, kept: Mapping[str, Any], now: str) -> bool:
    """Say whether a kept result is up to date; in a finished run, which finds nothing anew, it is."""
    return run.finished or kept.get(OF) == now


def _plain(value: torch.Tensor) -> torch.Tensor:
    """The numbers as they lie in memory, also of sparse and quantized weights."""
    value = value.detach()
    if value.is_quantized:
        return value.dequantize()
    return value if value.layout is torch.strided else value.to_dense()


def _sha256(value: Mapping[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
