"""Simulators that can only be reset and stepped, as black boxes."""

from blackbox.adapters.session.environment import Environment, SessionCounts
from blackbox.adapters.session.gymnasium import Gymnasium
from blackbox.adapters.session.session import Session, SessionStart

__all__ = ["Environment", "Gymnasium", "Session", "SessionCounts", "SessionStart"]
