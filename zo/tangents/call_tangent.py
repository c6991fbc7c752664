"""`CallTangent`: the base of tangents as 0.3 had them, given a call's pairs each time; deprecated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from blackbox.notices import warn
from zo.tangents.record.pairs import CallPairs, all_listed
from zo.tangents.tangent import Linearised, Tangent

SEE = "see docs/howto/move_a_tangent.md"


class CallTangent(Tangent):
    """A tangent with the methods of 0.3: `apply`, `vjp`, `predict_values`, `see`, `observe`. Deprecated.

    It goes with the version after the next: see docs/howto/move_a_tangent.md. Who overrides `learn` beside
    `observe` calls `super().learn(steps)`.
    """

    _asked_by_call = True
    _calls: tuple[CallPairs, ...] = ()  # of this step, for `observe`

    @abstractmethod
    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """J d at `pairs.z`."""

    @abstractmethod
    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """J^T times the gradient of the outputs."""

    def predict_values(self, pairs: CallPairs) -> Tensor | None:
        """The outputs at `pairs.z`; the prior's where there is one."""
        prior = self._prior()
        return None if prior is None else prior.at(pairs).values

    def observe(self, pairs: CallPairs) -> None:
        """Learn from the pairs of all calls of a step, listed."""

    def linearise(self, calls: Sequence[CallPairs]) -> None:
        """Prepare for `vjp` and `apply` at some calls."""

    def response(self, pairs: CallPairs, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """How the outputs change from `pairs.z` to z."""
        return Linearised.to(self.at(pairs), z, others)

    def at(self, rows: CallPairs) -> Linearised:
        """What these methods say at some rows."""
        return _AtCall(rows, self)

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The same, after `linearise`."""
        self.linearise(calls)
        return super().at_each(calls)

    def __init_subclass__(cls, **settings: Any) -> None:
        """Have `see` keep what `observe` will be given."""
        super().__init_subclass__(**settings)
        warn(f"{cls.__name__}: CallTangent has the methods of 0.3 and goes; {SEE}.", DeprecationWarning)
        if "see" in vars(cls):
            cls.see = _keeping(cls.see)

    def see(self, rows: CallPairs) -> None:
        """Look at rows, and keep them for `observe`."""
        super().see(rows)
        self._calls = (*(earlier for earlier in self._calls if len(earlier.d) and earlier is not rows), rows)

    def learn(self, steps: int | None = None) -> None:
        """Have the prior learn, and `observe` what was seen."""
        super().learn(steps)
        calls, self._calls = self._calls, ()
        if calls:
            self.observe(all_listed(calls))


def _keeping(see: Any) -> Any:
    def seen(self: CallTangent, rows: CallPairs) -> None:
        CallTangent.see(self, rows)
        see(self, rows)

    return seen


class _AtCall(Linearised):
    """The methods of a `CallTangent` at one call."""

    def __init__(self, rows: CallPairs, tangent: CallTangent) -> None:
        super().__init__(rows)
        self._tangent = tangent

    @property
    def values(self) -> Tensor | None:
        return self._tangent.predict_values(self.rows)

    def push(self, d: Tensor) -> Tensor:
        return self._tangent.apply(self.rows, d)

    def pull(self, v: Tensor) -> Tensor:
        return self._tangent.vjp(self.rows, v)

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        return self._tangent.response(self.rows, z, others)
