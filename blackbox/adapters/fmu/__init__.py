"""The shelf of FMUs: functional mock-up units as black boxes."""

from blackbox.adapters.fmu.fmu import Fmu

__all__ = ["Fmu"]
