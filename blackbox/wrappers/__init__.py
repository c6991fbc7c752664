"""Wrappers: black boxes around black boxes, one job each, composed by nesting."""

from blackbox.wrappers.budgeted import Budgeted
from blackbox.wrappers.cached import Cached
from blackbox.wrappers.fallback import Fallback
from blackbox.wrappers.parallel import Parallel
from blackbox.wrappers.rate_limited import RateLimited
from blackbox.wrappers.retrying import Retrying
from blackbox.wrappers.wrapper import Wrapper

__all__ = ["Budgeted", "Cached", "Fallback", "Parallel", "RateLimited", "Retrying", "Wrapper"]
