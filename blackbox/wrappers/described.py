"""Values in words: two have the same ones only if they are the same as far as a box's answers go."""

from __future__ import annotations

import builtins
import copyreg
import functools
import hashlib
import importlib
import inspect
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterable, Set
from dataclasses import fields, is_dataclass
from enum import Enum, EnumMeta
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
    UnionType,
)
from typing import Any, ForwardRef, TypeVar, get_origin

import numpy as np
import torch
from torch import Tensor, nn

from blackbox.errors import ConfigurationError
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.code import Instructions, file_of, imported, instructions, is_users, load, name_of

_PLAIN = (NoneType, bool, int, str, bytes, type(Ellipsis), type(NotImplemented))
_NOBODY = (ModuleType, NoneType)  # whose method a builtin function of a module is
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
# What Python writes into a class, and what is words alone.
_OF_CLASSES = {
    "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__slots__",
    "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__type_params__",
    "__match_args__", "__dataclass_fields__", "__dataclass_params__", "__classdictcell__",
}  # fmt: skip
_OF_DATACLASSES = {
    "__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__setattr__",
    "__delattr__", "__replace__", "__getstate__", "__setstate__",
}  # fmt: skip
_OF_BOXES = {"inputs", "outputs", "failures", "isolates"}
_OF_MODULES = set(vars(nn.Module()))  # what every torch module has
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")

# By them code reaches what it does not name.
_BY_TEXT = (eval, exec, globals, __import__, importlib.import_module)

MEND = "Give the object, or the box itself, an attribute 'identity': a text that changes with its answers."


def described(where: str, value: Any, package: str = "") -> str:
    """A value in words that are the same in every process, and different for different values.

    Args:
        where: how messages call it.
        value: the value: plain data, arrays, tensors, modules, functions, classes, and any object that could
            be pickled, of which what pickle would keep is described.
        package: an installed package whose code is described by what it does, and not by its name alone.

    Raises:
        ConfigurationError: it cannot be described, as an open file, a generator or a handle cannot.
    """
    try:
        return _Words(package).of(where, value)
    except RecursionError:
        raise ConfigurationError(
            f"{where}: expected data that can be described, got such that are nested too deep. {MEND}"
        ) from None


class _Words:
    """One description: what has been described in it already is a number from then on, so circles end."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._seen: dict[
            int, tuple[int, Any]
        ] = {}  # with the object, whose id stays its own while it is here

    def of(self, where: str, value: Any) -> str:
        """The words of one value."""
        if type(value) in _PLAIN:
            return repr(value)
        if type(value) in (float, complex):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, np.generic):
            return f"{type(value).__name__} {_bytes(np.asarray(value).tobytes())}"
        if type(value) is tuple:  # empty ones and constants are shared by Python as it likes
            return f"tuple({self._each(where, value)})"
        if id(value) in self._seen:
            return f"#{self._seen[id(value)][0]}"
        self._seen[id(value)] = len(self._seen), value
        return self._new(where, value)

    def _new(self, where: str, value: Any) -> str:
        if isinstance(value, Enum):
            return f"{self.of(where, type(value))}.{value.name} {self.of(where, value.value)}"
        if isinstance(value, PurePath):
            return f"path {value.as_posix()!r}{content(value)}"
        if isinstance(value, np.ndarray):
            return self._array(where, value)
        if isinstance(value, Tensor):
            return _tensor(where, value)
        if inspect.isclass(value) and get_origin(value) is None:
            return self._class(where, value)
        if isinstance(value, ModuleType):
            return self._module(where, value, None, whole=True)
        if any(value is one for one in _BY_TEXT):
            raise ConfigurationError(
                f"{where}: expected code that names what it uses, got {name_of(value)}, by which it may use "
                f"anything. {MEND}"
            )
        if isinstance(value, FunctionType):
            return self._function(where, value)
        if isinstance(value, MethodType):
            return f"method {self.of(where, value.__func__)} of {self.of(where, value.__self__)}"
        if isinstance(value, BuiltinFunctionType):
            if isinstance(value.__self__, _NOBODY):
                return f"function {name_of(value)}"
            return f"method {value.__qualname__} of {self.of(where, value.__self__)}"
        if isinstance(value, UnionType | TypeVar | ForwardRef) or get_origin(value) is not None:
            return f"type {value!r}"
        if isinstance(value, _LOCKS):
            return "lock"
        if isinstance(value, BlackBoxFunction):
            from blackbox.wrappers.identity import identity  # which is made of this module's words

            return f"box {identity(value)}"
        text = getattr(value, "identity", None)
        if isinstance(value, nn.Module):
            return self._network(where, value, text if isinstance(text, str) else None)
        if isinstance(text, str) and text:
            return f"{name_of(type(value))} identity {text!r}"
        return self._holder(where, value)

    def _holder(self, where: str, value: Any) -> str:
        """What holds other values: a collection, something around a function, any other object."""
        kind = type(value)
        if kind in (dict, MappingProxyType):  # in their order, in which a box may go through them
            items = (f"{self.of(where, k)}: {self.of(f'{where}[{k!r}]', v)}" for k, v in value.items())
            return f"{{{', '.join(items)}}}"
        if kind is list:
            return f"list({self._each(where, value)})"
        if kind in (set, frozenset):  # each for itself: their order is that of the process's hashes
            items = sorted(_Words(self._package).of(where, one) for one in value)
            return f"{kind.__name__}({', '.join(items)})"
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped):  # compiled or remembering
            return f"{name_of(kind)} around {self.of(where, wrapped)}"
        return self._object(where, value)

    def _each(self, where: str, values: Iterable[Any]) -> str:
        return ", ".join(self.of(f"{where}[{place}]", one) for place, one in enumerate(values))

    # Data

    def _array(self, where: str, value: np.ndarray) -> str:
        """Numbers to the bit, as they lie in memory: the order of a sum may depend on it."""
        if isinstance(value, np.ma.MaskedArray):
            parts = (np.asarray(value.data), np.ma.getmaskarray(value), np.asarray(value.fill_value))
            return f"masked {value.hardmask} {', '.join(self.of(where, part) for part in parts)}"
        kind = "" if type(value) is np.ndarray else f" {self.of(where, type(value))}"
        if kind and not isinstance(value, np.memmap):
            kind += f" {self.of(where, getattr(value, '__dict__', None))}"
        if value.dtype.hasobject:
            return f"objects{kind} {value.dtype} {value.shape} {self.of(where, value.tolist())}"
        descr = value.dtype.descr if value.dtype.names else value.dtype.str
        return f"array{kind} {descr} {value.shape} {value.strides} {_bytes(np.ascontiguousarray(value))}"

    def _network(self, where: str, module: nn.Module, text: str | None) -> str:
        """A torch module: code, weights, hooks, what it holds beside them, and the modules inside it."""
        if text is not None:
            pairs = itertools.chain(module.named_parameters(), module.named_buffers())
            numbers = (f"{name}={_tensor(f'{where}.{name}', t)}" for name, t in pairs)
            return f"{name_of(type(module))} identity {text!r} {module.training} ({', '.join(numbers)})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigurationError(f"{where}: expected a module of Python, got a ScriptModule. {MEND}")
        weights = {**module._parameters, **module._buffers}
        numbers = (
            f"{name}={'None' if t is None else _tensor(f'{where}.{name}', t)}" for name, t in weights.items()
        )
        inside = (f"{name}={self.of(f'{where}.{name}', part)}" for name, part in module._modules.items())
        hooks = [hook for name in _HOOKS for hook in getattr(module, name).values()]
        words = [f"training {module.training}", *numbers, *inside, f"hooks {self._each(where, hooks)}"]
        other = {key: kept for key, kept in sorted(vars(module).items()) if key not in _OF_MODULES}
        words += [f"{key}={self.of(f'{where}.{key}', kept)}" for key, kept in other.items()]
        return f"{self.of(where, type(module))}({', '.join(words)})"

    def _object(self, where: str, value: Any) -> str:
        """What pickle would keep of it, slots too; what pickle refuses has state that is not seen."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            kept = value.__reduce_ex__(4) if reduce is None else reduce(value)
            if isinstance(kept, str):
                return f"{name_of(type(value))} {kept}"
            rest: tuple[Any, ...] = (*kept, None, None, None)
            make, arguments, state = rest[:3]
            items, pairs = list(rest[3] or ()), list(rest[4] or ())
        except RecursionError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"{where}: expected data of which it can be known whether two are the same, got "
                f"{type(value).__name__} ({' '.join(str(error).split())}). {MEND}"
            ) from None
        if isinstance(state, dict):
            state = dict(sorted(state.items(), key=lambda item: str(item[0])))
            state = [f"{key}={self.of(f'{where}.{key}', kept)}" for key, kept in state.items()]
        elif isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # with slots
            both = {**(state[0] or {}), **state[1]}
            state = [f"{key}={self.of(f'{where}.{key}', both[key])}" for key in sorted(both, key=str)]
        else:
            state = [self.of(where, state)]
        made = f"{self.of(where, make)}({self._each(where, arguments)})"
        return f"object {made} {', '.join(state)} {self.of(where, items)} {self.of(where, pairs)}"

    # Code

    def _function(self, where: str, function: FunctionType) -> str:
        """A function by its name; one of the user's, or without a name, by its code and all that it names."""
        module, code = function.__globals__.get("__name__") or "", instructions(function.__code__)
        file = function.__globals__.get("__file__") or function.__code__.co_filename
        users = is_users(module, None if file.startswith("<") else file, self._package)
        name = f"function {name_of(function)}"
        if not users and "<" not in function.__qualname__:
            return name
        words = [code.digest, self.of(where, [function.__defaults__, function.__kwdefaults__])]
        for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                words.append(f"{free}={self.of(f'{where}, {free!r} of its closure', cell.cell_contents)}")
            except ValueError:
                words.append(f"{free} empty")
        if users:
            attributes = {key: kept for key, kept in vars(function).items() if key != "__wrapped__"}
            words += [self.of(where, attributes)] if attributes else []
            words += self._used(where, function, code)
        return f"{name} {' '.join(words)}"

    def _used(self, where: str, function: FunctionType, code: Instructions) -> list[str]:
        """What a function of the user's reads beside its arguments: globals, and modules that it imports.

        A module that is imported inside of the function is imported here, so that it is described by what is
        in it, as one that is imported at the top is.
        """
        words = []
        known = function.__globals__
        for name in sorted(code.opaque):
            if name not in known or any(known[name] is one for one in _BY_TEXT):
                raise ConfigurationError(
                    f"{where}: expected code that names what it uses, got {function.__qualname__}, which "
                    f"uses {name} with what is no text of its own, and may use anything. {MEND}"
                )
        for free in sorted(code.names):
            if free in known and not any(known[free] is one for one in _BY_TEXT if one.__name__ == free):
                named = f"{where}, global {free!r} of {function.__qualname__}"
                words.append(f"{free}={self._global(named, free, known[free], code)}")
        patches = self._patches(f"{where}, builtins", builtins, code.names - known.keys())
        words += [patches] if patches else []
        for module, path in imported(code, known, self._package):
            words.append(content(path))
            named = f"{where}, import {module!r} of {function.__qualname__}"
            load(module)  # all of it first, since its parents have it as an attribute from then on
            for part in itertools.accumulate(module.split("."), "{}.{}".format):
                found = sys.modules.get(part)
                if found is not None:
                    words.append(self._module(named, found, code, code.bare_imports))
        return words

    def _global(self, where: str, name: str, value: object, code: Instructions) -> str:
        if isinstance(value, ModuleType):
            return self._module(where, value, code, name in code.bare)
        return self.of(where, value)

    def _module(self, where: str, module: ModuleType, code: Instructions | None, whole: bool) -> str:
        """A module by its name; one of the user's by what is used of it, or by its file if not Python.

        Args:
            where: how messages call it.
            module: the module.
            code: what uses it; None where that is not known.
            whole: whether other things of it may be used than those that the code names.
        """
        name, file = module.__name__, file_of(module.__name__)
        inside, attributes = vars(module), frozenset[str]() if code is None else code.attributes
        if not is_users(name, file, self._package):
            return f"module {name}{self._patches(where, module, attributes)}"
        if file is not None and not file.endswith(".py"):
            return f"module {name}{content(Path(file))}"
        self._seen.setdefault(id(module), (len(self._seen), module))
        words = []
        for used in sorted((attributes | {"__getattr__"}) & inside.keys()):
            kept = inside[used]
            if id(kept) in self._seen:
                if not _is_home(kept, used, name):  # a name that may come to mean another one
                    words.append(f"{used}=#{self._seen[id(kept)][0]}")
            elif code is not None:
                words.append(f"{used}={self._global(f'{where}, its {used!r}', used, kept, code)}")
        if whole:  # any of the others may be meant, or none
            for other in sorted(inside.keys() - attributes):
                if not other.startswith("__"):
                    words.append(f"{other}={self._if_possible(f'{where}, its {other!r}', inside[other])}")
        text = content(Path(file)) if code is None and file is not None else ""
        return f"module {name}{text} ({', '.join(words)})"

    def _if_possible(self, where: str, value: object) -> str:
        try:
            return self.of(where, value)
        except ConfigurationError:
            return f"some {name_of(type(value))}"

    def _patches(self, where: str, module: ModuleType, names: Set[str]) -> str:
        """The user's own functions and classes in a module that is not the user's, where they are used."""
        words = []
        for used in sorted(names & vars(module).keys()):
            kept = vars(module)[used]
            if isinstance(kept, ModuleType):
                if kept.__name__.startswith(f"{module.__name__}."):
                    words.append(self._patches(where, kept, names))
            elif isinstance(kept, FunctionType | type):
                if is_users(kept.__module__ or "", file_of(kept.__module__ or ""), self._package):
                    words.append(f" {used}={self.of(f'{where}, its {used!r}', kept)}")
        return "".join(words)

    def _class(self, where: str, cls: type, until: type | None = None) -> str:
        """A class by its name; one of the user's by what it and its parents define, up to `until`."""
        if not is_users(cls.__module__, file_of(cls.__module__), self._package):
            return f"class {name_of(cls)}"
        words = [] if type(cls) is type else [self.of(where, type(cls))]
        for parent in cls.__bases__:
            if until is None or not issubclass(until, parent):
                words.append(self.of(where, parent) if until is None else self._class(where, parent, until))
        left_out = _OF_CLASSES | (_OF_BOXES if issubclass(cls, BlackBoxFunction) else set())
        members = {name: kept for name, kept in vars(cls).items() if name not in left_out}
        if "__dataclass_params__" in vars(cls):
            members = {name: kept for name, kept in members.items() if not _is_made(name, kept)}
        if isinstance(cls, EnumMeta):
            methods = {name: kept for name, kept in members.items() if isinstance(kept, FunctionType)}
            values = {name: one.value for name, one in cls.__members__.items()}  # pyright: ignore[reportAttributeAccessIssue]
            members = {name: kept for name, kept in methods.items() if not name.startswith("_")} | values
        for name in sorted(members):
            kept = members[name]
            if not isinstance(kept, MemberDescriptorType | GetSetDescriptorType):
                words.append(f"{name}={self._member(f'{cls.__name__}.{name}', kept)}")
        if is_dataclass(cls):
            factories = {
                field.name: field.default_factory for field in fields(cls) if callable(field.default_factory)
            }
            words.append(self.of(where, factories))
        return f"class {name_of(cls)}({', '.join(words)})"

    def _member(self, where: str, value: Any) -> str:
        if isinstance(value, staticmethod | classmethod):
            return f"{type(value).__name__} {self.of(where, value.__func__)}"
        if isinstance(value, property):
            return f"property {self.of(where, [value.fget, value.fset])}"
        if isinstance(value, functools.cached_property):
            return f"property {self.of(where, value.func)}"
        return self.of(where, value)


def described_class(where: str, cls: type, package: str, until: type | None = None) -> str:
    """A class in words, as `described` has it; `until` leaves out that parent and those above it.

    Raises:
        ConfigurationError: something that its code names cannot be described.
    """
    return "" if cls is until else _Words(package)._class(where, cls, until)


def _is_made(name: str, member: object) -> bool:
    """Whether a dataclass has written this method itself, of its fields."""
    return (
        name in _OF_DATACLASSES
        and isinstance(member, FunctionType)
        and member.__code__.co_filename == "<string>"
    )


def _is_home(value: object, name: str, module: str) -> bool:
    """Whether a function or class is where it was defined, under its own name."""
    return (getattr(value, "__name__", None), getattr(value, "__module__", None)) == (name, module)


def _bytes(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()  # the fastest of the safe ones, where the processor knows it


def _tensor(where: str, tensor: Tensor) -> str:
    """Numbers to the bit, read each time: what is written by `.data` or through NumPy moves no counter."""
    head = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        if tensor.layout is torch.sparse_coo and not tensor.is_quantized:
            parts = (tensor.detach()._indices(), tensor.detach()._values())
            return f"sparse {head} {', '.join(_tensor(where, part) for part in parts)}"
        raise ConfigurationError(
            f"{where}: expected a tensor whose numbers can be read, got {head} of {tensor.layout}. {MEND}"
        )
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    plain = plain if plain.stride() == (1,) else plain.clone(memory_format=torch.contiguous_format)
    return f"tensor {head} {tensor.stride()} {_bytes(plain.view(torch.uint8).numpy())}"


_MOMENT = 2 * 10**9  # ns in which two changes of a file may have one time, on the coarsest file systems
_files: dict[
    str, tuple[tuple[int, ...], str]
] = {}  # by path: the state in which a file was last read, and its digest


def content(path: PurePath) -> str:
    """The digest of a plain file, read again only where size, time or place have changed; "" of all else."""
    try:
        status = os.stat(path)
        if not os.path.isfile(path):
            return ""
        state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        key = os.path.abspath(path)
        if key not in _files or _files[key][0] != state:
            read = time.time_ns()
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if read - max(status.st_mtime_ns, status.st_ctime_ns) < _MOMENT:
                return f" sha256 {digest}"  # what is written next may leave the file in the same state
            _files[key] = state, digest
        return f" sha256 {_files[key][1]}"
    except OSError:
        return ""
