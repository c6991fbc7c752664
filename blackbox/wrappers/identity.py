"""Which black box this is: a text that two boxes share only if they give the same answers."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
from torch import Tensor

from blackbox.arrays import as_tensor
from blackbox.errors import ConfigurationError
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.wrapper import Wrapper

# What does not change a row's answer, or is told by the specs.
_ASIDE = {"_ledger", "failures", "isolates", "inputs", "outputs", "box"}
_NOBODY = (ModuleType, NoneType)  # whose method a builtin function of a module is


def identity(box: BlackBoxFunction) -> str:
    """Class, version, specs and configuration of a box, in words that are the same in every process.

    A box that has an attribute `identity` (a text) is described by it in place of its configuration;
    one with an attribute `version` by that too, since a change of code shows nowhere else. Otherwise
    every attribute of the instance counts, and must be plain data: numbers, texts, paths, arrays,
    enums, classes, functions with a name, dataclasses, and collections of them. Transparent wrappers
    are not seen.

    Raises:
        ConfigurationError: an attribute is not plain data.
    """
    while isinstance(box, Wrapper) and box.transparent:
        box = box.box
    cls, name = type(box), type(box).__name__
    given = getattr(box, "identity", None)
    if given is not None:
        if not isinstance(given, str) or not given:
            raise ConfigurationError(
                f"{box!r}, identity: expected a text, got {given!r}. "
                "Write one that changes whenever the box's answers do."
            )
        state = f"identity {given!r}"
    else:
        state = ", ".join(
            f"{key}={described(f'{name}.{key}', value)}"
            for key, value in sorted(vars(box).items())
            if key not in _ASIDE
        )
    specs = f"{box.inputs!r} -> {box.outputs!r}, arrays={box.arrays!r}"
    version = described(f"{name}.version", getattr(box, "version", None))
    inner = f" around {identity(box.box)}" if isinstance(box, Wrapper) else ""
    return f"{name_of(cls)}, version {version}, {specs}, with {state}{inner}"


def described(where: str, value: Any) -> str:  # noqa: ANN401 - one line for each kind
    """Plain data in words that are the same in every process.

    Args:
        where: how messages call it.
        value: the data.

    Raises:
        ConfigurationError: it is not plain data.
    """
    if type(value) in (type(None), bool, int, str, bytes):
        return repr(value)
    if isinstance(value, float | complex | np.generic):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, Enum):
        return f"{name_of(type(value))}.{value.name}"
    if isinstance(value, PurePath):
        return f"path {value.as_posix()!r}"
    if isinstance(value, np.ndarray | Tensor):
        return _array(where, value)
    if isinstance(value, type):
        return name_of(value)
    if isinstance(value, MethodType | BuiltinFunctionType) and not isinstance(value.__self__, _NOBODY):
        return f"method {value.__qualname__} of {described(where, value.__self__)}"
    if isinstance(value, FunctionType | BuiltinFunctionType) and "<" not in value.__qualname__:
        return f"function {name_of(value)}"
    if is_dataclass(value):
        items = (f"{f.name}={described(f'{where}.{f.name}', getattr(value, f.name))}" for f in fields(value))
        return f"{name_of(type(value))}({', '.join(items)})"
    if isinstance(value, Mapping):
        items = sorted((described(where, k), described(f"{where}[{k!r}]", v)) for k, v in value.items())
        return "{" + ", ".join(f"{k}: {v}" for k, v in items) + "}"
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return f"partial({', '.join(described(where, part) for part in parts)})"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(described(where, one) for one in value)) + "}"
    if isinstance(value, list | tuple):
        items = (described(f"{where}[{place}]", one) for place, one in enumerate(value))
        return f"{type(value).__name__}({', '.join(items)})"
    raise ConfigurationError(
        f"{where}: expected plain data, of which it can be told whether two boxes are the same, got "
        f"{type(value).__name__}. Give the object an attribute 'identity': a text that changes whenever "
        "its answers do."
    )


def _array(where: str, value: np.ndarray | Tensor) -> str:
    try:
        array = np.ascontiguousarray(as_tensor(value).cpu().numpy())
    except TypeError:
        raise ConfigurationError(
            f"{where}: expected an array of numbers, got one of {value.dtype}. "
            "Give the object an attribute 'identity': a text that changes whenever its answers do."
        ) from None
    digest = hashlib.blake2b(array.tobytes(), digest_size=20).hexdigest()
    return f"array {array.dtype} {np.shape(value)} {digest}"


def name_of(cls: type | FunctionType | BuiltinFunctionType) -> str:
    """The module and name of a class or function."""
    module = cls.__module__
    if module == "__main__":  # the same for all scripts, which may have classes of the same name
        module = PurePath(getattr(sys.modules["__main__"], "__file__", None) or module).name
    return f"{module}.{cls.__qualname__}"
