"""The contract of code without derivatives: call, validate, count, cache, retry, spread out, limit.

Names are imported when they are first used: all packages have their errors from `blackbox.errors`, also a
command line that answers --help, for which torch would take seconds.
"""

import blackbox_coupling  # noqa: F401  which names files that are in the way of a package
from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__, parts=("errors", "failures", "wrappers"))
