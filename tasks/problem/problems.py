"""Problems by name: shipped ones, those of installed packages, and classes in the user's own files."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from blackbox import registry
from blackbox.checks import nearest
from tasks.configuration import names, trust
from tasks.errors import ConfigurationError, ProblemError
from tasks.problem import anew
from tasks.problem.posterior import Posterior
from tasks.problem.problem import Problem

Kind = TypeVar("Kind", Problem, Posterior)

_loading = ContextVar("loading", default=False)


def find(target: str) -> tuple[type[Problem], str]:
    """The problem that a target means, and where it is; see `found`."""
    return found(target, Problem)


def found(target: str, base: type[Kind]) -> tuple[type[Kind], str]:
    """The problem that a name, `module:Class` or `file.py:Class` means; `file.py` alone means its only one.

    Code of the file or module is executed.

    Args:
        target: The text.
        base: The class whose subclasses are wanted: `tasks.Problem` or `tasks.Posterior`.

    Returns:
        The class, and its place as a run's `config.json` has it: files by their absolute path.

    Raises:
        ConfigurationError: There is no such name, file or class.
        ProblemError: The class is no subclass of `base`.
    """
    names.check_single(target, "blackbox.tasks")
    code = trust.problem(target)
    kind = _class_of(code, base)
    if code.target.attribute:
        return kind, str(code)
    name = next(name for name, value in vars(sys.modules[kind.__module__]).items() if value is kind)
    return kind, f"{code.target.place}:{name}"


def load(code: trust.Shipped | trust.Named) -> type[Problem]:
    """The class of a problem; code of its file or module is executed, see `found`."""
    return _class_of(code, Problem)


def _class_of(code: trust.Shipped | trust.Named, base: type[Kind]) -> type[Kind]:
    target, problems = code.target, names.problems()
    if isinstance(target.place, str) and not target.attribute:
        raise ConfigurationError(
            f"{target.place!r}: expected a problem's name, module:Class or file.py:Class. "
            f"{nearest(target.place, problems)}"
        )
    with executing():
        if target.attribute:
            kind = registry.find(target, problems, base)
        else:
            kind = registry.only_class(target, base, f"tasks.{base.__name__}")
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        option = "" if base is Problem else " --kind posterior"
        raise ProblemError(
            f"{target}: expected a subclass of tasks.{base.__name__}, got "
            f"{getattr(kind, '__name__', kind)!r}. `blackbox new NAME{option}` writes an example."
        )
    if base is Problem:
        anew.refuse_construction(kind, Problem)
    return kind


def made_anew(problem: Problem, **settings: Any) -> Problem:
    """A new object of a problem's class with its settings, without box or data: a run's own.

    Args:
        problem: The user's problem.
        **settings: Settings that depart from its own.

    Raises:
        ProblemError: It is no problem, or has more than its class, its settings and its folder.
    """
    if not isinstance(problem, Problem):
        raise ProblemError(f"expected a tasks.Problem to run, got {problem!r}. Give an object: Name().")
    anew.refuse_construction(type(problem), Problem)
    anew.refuse_state(problem)
    return type(problem)(problem.config, folder=problem.folder, **settings)


def shipped(where: str) -> type[Problem] | None:
    """The class of a problem of this package, by where it is; None for any other, whose code does not run."""
    return load(trust.problem(where)) if where in names.PROBLEMS.values() else None


def where_is(kind: type[Problem]) -> str:
    """Return the place of a class, as `find` takes it; "" for one that no other process finds."""
    for where in names.PROBLEMS.values():
        if where == f"{kind.__module__}:{kind.__qualname__}":
            return where
    module = sys.modules.get(kind.__module__)
    path = getattr(module, "__file__", None)
    if path is None or _by_name(module, kind.__qualname__) is not kind:  # such as one that a function made
        return ""
    if kind.__module__ == "__main__" or "." not in kind.__module__:
        return f"{Path(path).resolve()}:{kind.__qualname__}"
    return f"{kind.__module__}:{kind.__qualname__}"


def _by_name(module: object, qualname: str) -> object:
    try:
        return attrgetter(qualname)(module)
    except AttributeError:
        return None


def refuse_while_executing(what: str) -> None:
    """Refuse what must not happen while a problem's file is executed to find its class.

    Raises:
        ProblemError: It is.
    """
    if _loading.get():
        raise ProblemError(
            f"{what}: expected to be called by a script, but the script is being executed to find its "
            'problem. Put it under `if __name__ == "__main__":`.'
        )


@contextmanager
def executing() -> Iterator[None]:
    """A block in which a problem's file is executed."""
    token = _loading.set(True)
    try:
        yield
    finally:
        _loading.reset(token)
