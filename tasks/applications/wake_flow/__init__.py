"""Wake flow: a network corrects a coarse solver in the loop, with and without the solver's derivative.

Names are imported when they are first used: help and refusals need no solver.
"""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
