"""The methods by name: what each trains by, what it costs, and what it refuses.

Who writes one finds here what it is made of: a `Method` with its `Cost`, the `Setup` that it is given, and
`train`.
"""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
