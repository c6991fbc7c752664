"""Tangents that say something else than the one they are made of, in tests."""

from zo.tangents import Linearised


class Instead(Linearised):
    """What a tangent says at some rows, but for what is given: a function of what it says itself."""

    def __init__(self, at, *, push=None, pull=None, values=None):
        super().__init__(at.rows)
        self.at, self.functions = at, {"push": push, "pull": pull, "values": values}

    def _instead(self, name, said):
        function = self.functions[name]
        return said if function is None else function(said)

    @property
    def values(self):
        return self._instead("values", self.at.values)

    def push(self, d):
        return self._instead("push", self.at.push(d))

    def pull(self, v):
        return self._instead("pull", self.at.pull(v))

    def to(self, z, others):
        return self.at.to(z, others)


def answers(tangent, **functions):
    """Have a tangent say something else, from now on, at all rows."""
    at_each = tangent.at_each
    tangent.at_each = lambda calls: [Instead(at, **functions) for at in at_each(calls)]
    tangent.at = lambda rows: tangent.at_each([rows])[0]
