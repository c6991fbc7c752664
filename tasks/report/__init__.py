"""The report of a run, the same for every problem.

Names are imported when they are first used: matplotlib takes a second, and help and refusals draw nothing.
"""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
