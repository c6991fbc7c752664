"""The result of a sampling: ArviZ's `InferenceData`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch

from blackbox.extras import import_extra

BURN = 10  # one in so many of a chain's draws, the first, is left out


def arviz() -> ModuleType:
    """ArviZ, without its news of later versions.

    It notes in the user's cache on which day it told them. Where the note cannot be written, it is written
    into a folder that is deleted: the home may be read-only, or several processes may write at once.

    Raises:
        MissingExtraError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return import_extra("zo.sample", "arviz", "sample")
        except OSError:
            with _another_cache():
                return import_extra("zo.sample", "arviz", "sample")


@contextmanager
def _another_cache() -> Iterator[None]:
    """Caches of packages are meanwhile in a folder that is deleted at the end."""
    name = "XDG_CACHE_HOME"
    its_own = os.environ.get(name)
    with TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name)
            os.environ.update({name: its_own} if its_own is not None else {})


def inference_data(state: dict[str, Any], unknowns: Any, attributes: dict[str, Any]) -> Any:
    """Draws within their bounds and what was noted of each, `(chains, draws, ...)`."""
    samples = state["draws"][len(state["draws"]) // BURN :]
    notes = {name: torch.stack([draw[name] for draw in samples], 1) for name in samples[0]}
    draws = notes.pop("q")
    chains, count, size = draws.shape
    x = unknowns.bounded(draws.reshape(-1, size))[0].reshape(chains, count, size)
    stats = {name: note.numpy() for name, note in notes.items()} | {"lp": -notes["potential"].numpy()}
    return arviz().from_dict(posterior={"x": x.numpy()}, sample_stats=stats, attrs=attributes)
