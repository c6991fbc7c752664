"""Wake flow: a network corrects a coarse solver in the loop, with and without the solver's derivative.

Names are imported when they are first used: help and refusals need no solver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.applications.wake_flow.diagnostics import Gauges, kinetic_energy, stability
    from tasks.applications.wake_flow.networks import Corrector, NoCorrector, Scales
    from tasks.applications.wake_flow.pictures import turned, vorticity
    from tasks.applications.wake_flow.problem import WakeFlow
    from tasks.applications.wake_flow.rollout import rollout_errors, window_loss

_NAMES = {  # by module
    "diagnostics": ("Gauges", "kinetic_energy", "stability"),
    "networks": ("Corrector", "NoCorrector", "Scales"),
    "pictures": ("turned", "vorticity"),
    "problem": ("WakeFlow",),
    "rollout": ("rollout_errors", "window_loss"),
}

__all__ = [
    "Corrector",
    "Gauges",
    "NoCorrector",
    "Scales",
    "WakeFlow",
    "kinetic_energy",
    "rollout_errors",
    "stability",
    "turned",
    "vorticity",
    "window_loss",
]


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"tasks.applications.wake_flow.{module}"), name)
    raise AttributeError(f"module 'tasks.applications.wake_flow' has no attribute {name!r}")
