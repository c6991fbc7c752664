"""The identity of a black box: a text that two boxes share only if they give the same answers."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import os
import sys
import textwrap
import threading
from abc import ABC
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any, Generic, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from blackbox.errors import ConfigurationError
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.sources import MEND, content, digest, imports, owner, source
from blackbox.wrappers.wrapper import Wrapper

Leave: TypeAlias = Callable[[object], str]

# What does not change a row's answer, or is in the specs already.
_ASIDE = {"_ledger", "failures", "isolates", "inputs", "outputs", "_abc_impl"}
_PLAIN = (NoneType, bool, int, float, complex, bytes, type(Ellipsis), range, slice, Decimal, Fraction, date)
_TYPES = (np.generic, np.dtype, torch.dtype, torch.device)
_QUIET = (type(threading.Lock()), type(threading.RLock()), logging.Logger)  # they change no answer
_SLOTS = (MemberDescriptorType, GetSetDescriptorType)
_ROOTS = (object, ABC, Generic, Protocol)
_OF_MODULES = set(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
_MADE_OF = {
    property: ("fget", "fset"),
    functools.cached_property: ("func",),
    functools.partial: ("func", "args", "keywords"),
    MethodType: ("__func__", "__self__"),
}


def identity(box: BlackBoxFunction, leave: Leave | None = None) -> str:
    """The class and specs of a box in words, and digests of its code and values; the same in each process.

    Code counts by whole files: the files of the class, of its parents, of functions that the box holds, and
    of the user's modules that these import. Installed packages, Python and this library do not count, nor do
    their versions. A function of a notebook counts by its text.

    Values are the attributes of the box and of its class, values in closures and defaults, and the globals
    that functions name: numbers, texts, arrays, weights, functions, and objects of the user's own classes. A
    path or text that names a file counts with the file's content; a folder counts by its name. The variables
    that the box names in `environment_variables` count with their values. Transparent wrappers are not seen.

    An attribute `identity`, a text or a tuple of values, stands for all of that in the class that sets it.

    Args:
        box: the black box.
        leave: gives the words for a value that cannot be described; None to refuse it.

    Raises:
        ConfigurationError: something cannot be described, and there is no `leave`.
    """
    return joined(parts(box, leave))


def joined(words: dict[str, str]) -> str:
    """One text of a box's parts."""
    return "box 3: " + ", ".join(f"{key}={words[key]}" for key in sorted(words))


def parts(
    box: BlackBoxFunction, leave: Leave | None = None, only: Collection[str] | None = None
) -> dict[str, str]:
    """Describe the parts of `identity` by name: class and specs in words, a digest of each other part.

    Args:
        box: the box.
        leave: as for `identity`.
        only: the names of the parts to compute; None for all.

    Raises:
        ConfigurationError: a part cannot be described, and there is no `leave`.
    """
    while isinstance(box, Wrapper) and box.transparent:
        box = box.box
    cls, own_identity = type(box), getattr(box, "identity", None)
    values: dict[str, Any] = {"code": cls} | {f".{key}": attribute for key, attribute in _state(box).items()}
    if isinstance(own_identity, str | tuple):
        values = {"identity": own_identity} if _stands(box) else {**values, "identity": own_identity}
    values["version"] = getattr(box, "version", None)
    values["environment"] = {key: os.environ.get(key) for key in box.environment_variables}
    words = {"class": name_of(cls), "specs": f"{box.inputs!r} -> {box.outputs!r}, arrays={box.arrays!r}"}
    for key, value in values.items():
        if only is None or key in only:
            where = cls.__name__ + (key if key[0] == "." else f", {key}")
            words[key] = digest(described(where, value, leave))
    return words


def described(where: str, value: Any, leave: Leave | None = None) -> str:
    """A value in words that are the same in every process, and different for different values.

    Args:
        where: the name of the value in messages.
        value: the value.
        leave: gives the words for a value that cannot be described; None to refuse it.

    Raises:
        ConfigurationError: it cannot be described, as an open file, a generator or a handle cannot.
    """
    try:
        return _Words(leave).of(where, value)
    except RecursionError:
        raise ConfigurationError(
            f"{where}: expected values that can be described, got some that are nested too deep. {MEND}"
        ) from None


def name_of(value: Any) -> str:
    """The module and name of a class or function."""
    module = str(value.__module__)
    if module in ("__main__", "__mp_main__"):  # the same for all scripts, which may have classes of one name
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").name
    return f"{module}.{value.__qualname__}"


def _stands(box: BlackBoxFunction) -> bool:
    """Say whether the box's own text is its whole identity: no subclass of the user's may have added more."""
    below = itertools.takewhile(lambda cls: "identity" not in vars(cls), type(box).__mro__)
    return "identity" in vars(box) or all(_owner(cls) == "ours" for cls in below)


def _owner(value: type | FunctionType) -> str:
    return owner(value.__module__, getattr(sys.modules.get(value.__module__), "__file__", None))


def _is_users(known: Mapping[str, Any]) -> bool:
    """Say whether a module is the user's, by its globals."""
    return owner(str(known.get("__name__")), known.get("__file__")) == "users"


def _state(value: object) -> dict[str, Any]:
    """Return the contents of an object, in its dictionary and in slots."""
    state: Any = object.__getstate__(value) or {}  # pyright: ignore[reportAttributeAccessIssue]
    state = {**(state[0] or {}), **state[1]} if isinstance(state, tuple) else state
    return {key: attribute for key, attribute in state.items() if key not in _ASIDE}


class _Words:
    """One description: what has been described in it already is a number from then on, so circles end."""

    def __init__(self, leave: Leave | None) -> None:
        self._leave = leave
        self._objects: dict[int, tuple[int, Any]] = {}  # with the object, whose id stays its own meanwhile

    def of(self, where: str, value: Any) -> str:
        """The words of one value."""
        kind = type(value)
        if kind is str:
            return f"{value!r}{content(value)}"
        if kind in _PLAIN or isinstance(value, _TYPES):
            return f"{kind.__name__} {value!r}"
        if isinstance(value, _QUIET):
            return kind.__name__
        if kind is tuple:  # empty ones and constants are shared by Python as it likes
            return f"tuple {self._each(where, value)}"
        if id(value) in self._objects:
            return f"#{self._objects[id(value)][0]}"
        self._objects[id(value)] = len(self._objects), value
        return self._data(where, value) or self._code(where, value) or self._object(where, value)

    def _refused(self, where: str, value: object, why: str = "") -> str:
        if self._leave is not None:
            return f"left {self._leave(value)}"
        raise ConfigurationError(
            f"{where}: expected numbers, texts, arrays, weights, paths, functions, or objects of classes of "
            f"yours, got {type(value).__name__}{why}. {MEND}"
        )

    def _each(self, where: str, values: Iterable[Any]) -> str:
        return f"({', '.join(self.of(f'{where}[{place}]', one) for place, one in enumerate(values))})"

    def _named(self, where: str, values: Mapping[str, Any]) -> str:
        return f"({', '.join(f'{key}=' + self.of(f'{where}{key}', values[key]) for key in sorted(values))})"

    def _data(self, where: str, value: Any) -> str:
        """Collections, arrays, weights and paths."""
        kind = type(value)
        if kind in (dict, OrderedDict, MappingProxyType):  # in their order, in which a box may read them
            items = (f"{self.of(where, k)}: {self.of(f'{where}[{k!r}]', v)}" for k, v in value.items())
            return f"{kind.__name__} {{{', '.join(items)}}}"
        if kind is list:
            return f"list {self._each(where, value)}"
        if kind in (set, frozenset):  # each for itself: their order is that of the process's hashes
            one_by_one = (_Words(self._leave).of(where, one) for one in value)
            return f"{kind.__name__} {sorted(one_by_one)}"
        if isinstance(value, PurePath):
            return f"path {value.as_posix()!r}{content(value)}"
        if kind in (np.ndarray, np.memmap):
            numbers = value.tolist() if value.dtype.hasobject else np.ascontiguousarray(value)
            words = self.of(where, numbers) if value.dtype.hasobject else digest(numbers)
            return f"array {value.dtype.descr} {value.shape} {value.strides} {words}"
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
                return self._refused(where, value, f" of {value.layout} on {value.device.type}")
            # read each time: what is written by `.data` or through NumPy moves no counter
            plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            plain = plain if plain.stride() == (1,) else plain.clone(memory_format=torch.contiguous_format)
            place = f"{tuple(value.shape)} {value.stride()} on {value.device.type}"
            return f"tensor {value.dtype} {place} {digest(plain.view(torch.uint8).numpy())}"
        return ""

    def _object(self, where: str, value: Any) -> str:
        """An object by its class and attributes: a torch module, or one of the user's or of ours."""
        kind = type(value)
        if isinstance(value, BlackBoxFunction):
            return f"box {joined(parts(value, self._leave))}"
        head = self.of(where, kind)
        if isinstance(value, Enum):
            return f"{head}.{value.name} {self.of(where, value.value)}"
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return f"{head} {self._each(where, value)}"
        if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            hooks = [*value._forward_pre_hooks.values(), *value._forward_hooks.values()]
            attributes = {key: attribute for key, attribute in vars(value).items() if key not in _OF_MODULES}
            return f"{head} {self._named(f'{where}.', {**attributes, 'hooks of it': hooks})}"
        if all(one in _ROOTS or _owner(one) != "installed" for one in kind.__mro__):
            return f"object {head} {self._named(f'{where}.', _state(value))}"
        return self._refused(where, value)

    # Code

    def _code(self, where: str, value: Any) -> str:
        if isinstance(value, ModuleType):
            return f"module {(_is_users(vars(value)) and source(vars(value))) or value.__name__}"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, FunctionType):
            return self._function(where, value)
        for kind, names in _MADE_OF.items():
            if isinstance(value, kind):
                return f"{kind.__name__} {self._each(where, [getattr(value, name) for name in names])}"
        if isinstance(value, BuiltinFunctionType):
            free = isinstance(value.__self__, ModuleType | NoneType)
            return f"function {name_of(value)}{'' if free else self.of(where, value.__self__)}"
        if isinstance(value, np.ufunc):
            return f"ufunc {value.__name__}"
        wrapped = getattr(value, "__wrapped__", None)  # of what is compiled, or remembers
        return f"{name_of(type(value))} around {self.of(where, wrapped)}" if callable(wrapped) else ""

    def _class(self, cls: type) -> str:
        """A class by its name; one of the user's with its parents, functions and values."""
        if _owner(cls) != "users" or hasattr(cls, "_fields"):
            return f"class {name_of(cls)}"
        if issubclass(cls, BlackBoxFunction) and isinstance(vars(cls).get("identity"), str):
            return f"class {name_of(cls)} {vars(cls)['identity']!r}"  # which stands for it
        attributes = dict[str, Any]()
        for name, member in vars(cls).items():
            if isinstance(member, FunctionType) or callable(getattr(member, "__wrapped__", None)):
                code = getattr(inspect.unwrap(member), "__code__", None)  # a dataclass makes some functions
                if not (is_dataclass(cls) and code is not None and code.co_filename.startswith("<")):
                    attributes[name] = member
            elif not name.startswith("__") and name not in _ASIDE and not isinstance(member, _SLOTS):
                attributes[name] = member
        parents = self._each(cls.__name__, cls.__bases__)
        return f"class {name_of(cls)} {parents} {self._named(f'{cls.__name__}.', attributes)}"

    def _function(self, where: str, function: FunctionType) -> str:
        """A function by its name; one of the user's by its source, and by the values that it reads."""
        code, global_names = function.__code__, function.__globals__
        users = _is_users(global_names)
        if not users and "<" not in function.__qualname__ and _owner(function) != "users":
            return f"function {name_of(function)}"
        text = _text(function) if users else str(global_names.get("__name__"))
        if text is None:
            return self._refused(where, function, f" {function.__qualname__!r} without a source file")
        columns = [place[2:] for place in code.co_positions()]  # of several on a line, which it is
        parts_of_function = {
            "defaults": (function.__defaults__, function.__kwdefaults__),
            "attributes": vars(function),
        }
        for free, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # not assigned yet
                parts_of_function[f"{free!r} of its closure"] = cell.cell_contents
        if users:
            parts_of_function |= self._read("global ", global_names, _names(code))
        words = f"{name_of(function)} {digest(text)} {digest(repr(columns))}"
        return f"function {words} {self._named(f'{where}, ', parts_of_function)}"

    def _read(self, where: str, known: dict[str, Any], names: set[str]) -> dict[str, Any]:
        """Find the globals that code reads of a module, and of the user's modules among them."""
        values = {f"{where}{name!r}": known[name] for name in names & known.keys() if name[:2] != "__"}
        for key, value in list(values.items()):
            if isinstance(value, ModuleType) and _is_users(vars(value)):
                values |= self._read(f"{key}, its ", vars(value), names - {value.__name__.rpartition(".")[2]})
        return values


# By the id of a function's code, which stays its own while it is here: a module that is loaded anew leaves
# the functions of before as they were.
_texts: dict[int, tuple[CodeType, str | None]] = {}


def _text(function: FunctionType) -> str | None:
    """Return the result of `_new_text` from the process's first look at this code."""
    code = function.__code__
    if id(code) not in _texts:
        _texts[id(code)] = code, _new_text(function)
    return _texts[id(code)][1]


def _new_text(function: FunctionType) -> str | None:
    """The digest of a function's file and its line, or its text in a notebook; None if there is neither."""
    code, global_names = function.__code__, function.__globals__
    text = None if code.co_filename.startswith("<") else source(global_names)
    if text is not None:
        return f"{text} {code.co_firstlineno}"
    try:
        text = textwrap.dedent(inspect.getsource(function))
        text += "".join(content(file) for _, file in imports(text, str(global_names.get("__name__"))))
    except SyntaxError:  # part of an expression, which imports nothing
        pass
    except (OSError, TypeError):
        return None
    return text


def _names(code: CodeType) -> set[str]:
    inner = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inner)
