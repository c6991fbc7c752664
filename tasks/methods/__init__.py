"""The methods by name, with their training, their cost, and their refusals.

The parts of a method of one's own are here, too: a `Method` with its `Cost`, the `Setup` that it gets, and
`train`.
"""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
