"""Wrappers: black boxes around black boxes, one job each, composed by nesting."""

from blackbox.wrappers.budgeted import Budgeted
from blackbox.wrappers.wrapper import Wrapper

__all__ = ["Budgeted", "Wrapper"]
