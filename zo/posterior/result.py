"""The result of a sampling: ArviZ's `InferenceData`."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import torch

from blackbox.extras import import_extra

BURN = 10  # one in so many of a chain's draws, the first, is left out


def arviz() -> ModuleType:
    """ArviZ, without its news of later versions.

    Raises:
        MissingExtraError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return import_extra("zo.sample", "arviz", "sample")


def inference_data(state: dict[str, Any], unknowns: Any, attributes: dict[str, Any]) -> Any:
    """Draws within their bounds and what was noted of each, `(chains, draws, ...)`."""
    samples = state["draws"][len(state["draws"]) // BURN :]
    notes = {name: torch.stack([draw[name] for draw in samples], 1) for name in samples[0]}
    draws = notes.pop("q")
    chains, count, size = draws.shape
    x = unknowns.bounded(draws.reshape(-1, size))[0].reshape(chains, count, size)
    stats = {name: note.numpy() for name, note in notes.items()} | {"lp": -notes["potential"].numpy()}
    return arviz().from_dict(posterior={"x": x.numpy()}, sample_stats=stats, attrs=attributes)
