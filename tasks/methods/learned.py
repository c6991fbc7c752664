"""The gradient of methods by learned tangents, with a run's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import zo
from tasks.configuration import Config
from tasks.training.setup import Setup


def tangent_gradient(
    setup: Setup,
    tangent: zo.tangents.Tangent | Sequence[zo.tangents.Tangent] | None,
    kind: type[zo.TangentGradient] = zo.TangentGradient,
    **settings: Any,
) -> zo.TangentGradient:
    """A gradient by tangents with the run's settings.

    Args:
        setup: What the method was given.
        tangent: Stands for the boxes, one or one for each; the default ones if None.
        kind: Its class.
        **settings: What the class takes, in the place of the run's settings too.
    """
    config = setup.config
    of_run: dict[str, Any] = {
        "boxes": setup.boxes,
        "tangent": tangent,
        "seed": setup.seed,
        "steps": setup.steps,
        "process_group": None,  # the run's own boxes share their rows
        "limits": limits_of(config),
    }
    return kind(setup.network, setup.objective, **(of_run | settings))


def limits_of(config: Config) -> zo.tangents.Limits:
    """A run's limits; where rows are counted the first step is checked, not the first five."""
    limits = zo.tangents.Limits(replays=config.replays)
    if config.clip is not None:
        limits = replace(limits, clip=config.clip)
    return limits if config.rows is None else replace(limits, early=1)
