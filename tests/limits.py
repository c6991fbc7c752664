"""Sizes at which the library takes another way, by names of their own: small tests can take it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

WHERE = {
    "activations_followed": "zo.evaluators.difference.evaluator.LARGE",  # numbers
    "contest_steps": "zo.tangents.models.automatic.CONTEST",
    "graph_iterations": "zo.tangents.models.graph.ITERATIONS",
    "map_numbers": "zo.tangents.models.values.MAP_SIZE",
    "patch_cells": "zo.tangents.models.grid.CELLS",  # beyond, models learn on patches
    "patch_edges": "zo.tangents.models.grid.EDGES",  # by the number of axes
    "reach_samples": "zo.tangents.models.reach.SAMPLES",
    "row_cells": "zo.tangents.models.values.LARGE",
    "rows_at_once": "zo.tangents.models.values.BLOCK",  # numbers
    "shown_at_once": "zo.tangents.quality.TOGETHER",  # numbers
    "window_bytes": "zo.tangents.models.rows.MOST_BYTES",  # of one model
    "windows_bytes": "zo.tangents.gradient.MOST_BYTES",  # of all models
}


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets some of them, by name, until the test ends."""

    def set_to(**sizes: Any) -> None:
        for name, size in sizes.items():
            monkeypatch.setattr(WHERE[name], size)

    return set_to
