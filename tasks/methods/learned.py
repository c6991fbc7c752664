"""The gradient of methods by learned tangents, with a run's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zo
from tasks.training.setup import Setup


def tangent_gradient(
    setup: Setup,
    tangent: zo.tangents.Tangent | Sequence[zo.tangents.Tangent] | None,
    probes: int = 0,
    kind: type[zo.TangentGradient] | None = None,
    **settings: Any,
) -> zo.TangentGradient:
    """A gradient by tangents with the run's settings.

    Args:
        setup: What the method was given.
        tangent: Stands for the boxes, one or one for each; the default ones if None.
        probes: Moved copies of the network beside it.
        kind: Its class; if None the plain one, where neither probes nor chunks are asked for.
        **settings: What the class takes, in the place of the run's settings too.
    """
    config = setup.config
    of_run: dict[str, Any] = {
        "boxes": setup.boxes,
        "tangent": tangent,
        "seed": setup.seed,
        "replays": config.replays,
        "steps": setup.steps,
        "process_group": None,  # the run's own boxes share their rows
    }
    if config.clip is not None:
        of_run["clip"] = config.clip
    # without a chunk base and probes run together, also where there are several processes: the same bits
    if config.chunk is not None:
        of_run |= {"chunk": config.chunk, "process_group": setup.process_group}
    if probes:
        of_run["probes"] = probes
    if kind is None:
        kind = zo.ProbedGradient if {"chunk", "probes"} & of_run.keys() else zo.TangentGradient
    return kind(setup.network, setup.objective, **(of_run | settings))
