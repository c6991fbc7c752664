"""`MadeOnce`: a method that is called once, when it is first needed; then the attribute is its result."""

from __future__ import annotations

from collections.abc import Callable
from inspect import getattr_static
from typing import Any

from tasks.errors import ProblemError
from tasks.problem.anew import ASSIGNED


class OfParent:
    """The values of `super().box` and `super().data` in a subclass: methods, to be called."""

    def __init__(self, name: str, method: Callable[[], Any]) -> None:
        self._name, self._method = name, method

    def __call__(self) -> Any:
        """Return the result of the parent's method."""
        return self._method()

    def __getattr__(self, name: str) -> Any:
        raise ProblemError(
            f"super().{self._name}.{name}: expected a call, super().{self._name}(), got the method itself. "
            "Write its brackets: of a parent class it is a method from version 0.3.0 on."
        )


class MadeOnce:
    """A problem's method `box` or `data`: `self.box` is the box itself, made when it is first asked for.

    `super().box()` is the method of the class above, as everywhere in Python: it makes another.

    Args:
        method: The method, of the problem alone.
        make: `make(problem, method)` calls it, and gives what the attribute is from then on.
    """

    def __init__(self, method: Callable[[Any], Any], make: Callable[[Any, Callable[[], Any]], Any]) -> None:
        self.method, self._make, self.__doc__ = method, make, method.__doc__
        self._name = method.__name__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, problem: Any, kind: type | None = None) -> Any:
        """Return the method's result; the method itself where a subclass asks for its parent's."""
        if problem is None:
            return self
        method = self.method.__get__(problem, kind)
        if getattr_static(type(problem), self._name) is not self:
            return OfParent(self._name, method)
        assigned = vars(problem).get(ASSIGNED, set())
        value = vars(problem)[self._name] = self._make(problem, method)
        vars(problem)[ASSIGNED] = assigned  # what the method has set it sets in a run too
        return value
