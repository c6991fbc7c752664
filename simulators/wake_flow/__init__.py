"""The unsteady wake behind a cylinder with PhiFlow, as a black box whose rows are stepped together."""

from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.forces import Forces
from simulators.wake_flow.geometry import Channel, viscosity
from simulators.wake_flow.reference import ReferenceFlows, load_or_compute
from simulators.wake_flow.reference_settings import ReferenceSettings
from simulators.wake_flow.step import WakeStep

__all__ = [
    "Channel",
    "Forces",
    "ReferenceFlows",
    "ReferenceSettings",
    "WakeFlow",
    "WakeStep",
    "load_or_compute",
    "viscosity",
]
