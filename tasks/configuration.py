"""Configurations: frozen dataclasses to JSON and back, strictly.

What JSON cannot say (a tuple, a path) is restored from the annotations of the dataclass.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tasks.errors import ConfigurationError

C = TypeVar("C")
_NONE = type(None)


def to_dict(configuration: object) -> dict[str, Any]:
    """A dataclass as JSON values: nested dataclasses become objects, tuples lists, paths strings.

    Raises:
        ConfigurationError: a value has no JSON form.
    """
    name = type(configuration).__name__
    if not dataclasses.is_dataclass(configuration) or isinstance(configuration, type):
        raise ConfigurationError(f"expected an instance of a dataclass, got {configuration!r}.")
    return {
        field.name: _to_json(getattr(configuration, field.name), f"{name}.{field.name}")
        for field in dataclasses.fields(configuration)
    }


def from_dict(kind: type[C], values: Mapping[str, Any], where: str | None = None) -> C:
    """The dataclass `kind` from what `to_dict` gave; settings that are left out take their defaults.

    Args:
        kind: a dataclass.
        values: setting -> JSON value.
        where: how messages call the place; the name of the dataclass if not given.

    Raises:
        ConfigurationError: a setting is unknown (the nearest name is given), missing without a
            default, or of another type than its annotation.
    """
    where = where or kind.__name__
    if not dataclasses.is_dataclass(kind):
        raise ConfigurationError(f"{where}: expected a dataclass to read into, got {kind!r}.")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for name in values:
        if name not in fields:
            raise ConfigurationError(f"{where}: no setting is named {name!r}. {nearest(name, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigurationError(f"{where}: expected a value for {name!r}, got none. Add it.")
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{name: _read(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence that helps someone who wrote `name` and meant one of `names`."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"The names are {', '.join(known)}."


def _to_json(value: object, where: str) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    # exact types: numpy.float64 is a float for isinstance, and its repr or sum differs between versions
    if type(value) in (bool, int, float, str, _NONE):
        return value
    raise ConfigurationError(
        f"{where}: expected a number, text, path, tuple or dataclass, got {value!r} "
        f"({type(value).__name__}), which JSON cannot hold. Use a plain Python value."
    )


def _read(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    """`value` as the annotation `hint` wants it, or an error that names both."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _read(arguments[0], value, where)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, where)
    if origin is Literal:
        # 1 == True and 1 == 1.0: compare types as well
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _mismatch(where, " or ".join(map(repr, arguments)), value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise _mismatch(where, "an object with settings", value)
        return from_dict(hint, value, where)
    reader = _READERS.get(origin or hint)
    if reader is None:
        raise ConfigurationError(
            f"{where}: the annotation {hint!r} is none that can be read from JSON. Use bool, int, float, "
            "str, Path, Literal, tuple, list, dict, a union of these or a dataclass."
        )
    return reader(arguments, value, where)


def _read_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:  # noqa: ANN401
    # exact matches first, or 3 would become 3.0 in float | int
    for choice in sorted(choices, key=lambda choice: choice is not type(value)):
        try:
            return _read(choice, value, where)
        except ConfigurationError:
            continue
    names = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise _mismatch(where, names.replace("NoneType", "null"), value)


def _read_plain(kind: type) -> Callable[[tuple[Any, ...], Any, str], Any]:
    def read(_: tuple[Any, ...], value: Any, where: str) -> Any:  # noqa: ANN401
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise _mismatch(where, "null" if kind is _NONE else kind.__name__, value)
        return value

    return read


def _read_path(_: tuple[Any, ...], value: Any, where: str) -> Path:  # noqa: ANN401
    if not isinstance(value, str):
        raise _mismatch(where, "a path", value)
    return Path(value)


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:  # noqa: ANN401
    items = _read_list((Any,), value, where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(items)
    arguments = arguments or (Any,) * len(items)
    if len(items) != len(arguments):
        raise _mismatch(where, f"{len(arguments)} values", value)
    pairs = enumerate(zip(arguments, items, strict=True))
    return tuple(_read(hint, item, f"{where}[{index}]") for index, (hint, item) in pairs)


def _read_list(arguments: tuple[Any, ...], value: Any, where: str) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list | tuple):
        raise _mismatch(where, "a list", value)
    hint = arguments[0] if arguments else Any
    return [_read(hint, item, f"{where}[{index}]") for index, item in enumerate(value)]


def _read_dict(arguments: tuple[Any, ...], value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _mismatch(where, "an object with text keys", value)
    hint = arguments[1] if arguments else Any
    return {key: _read(hint, item, f"{where}[{key!r}]") for key, item in value.items()}


def _mismatch(where: str, expected: str, value: object) -> ConfigurationError:
    return ConfigurationError(
        f"{where}: expected {expected}, got {value!r} ({type(value).__name__}). Correct the value."
    )


_READERS: dict[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    **{kind: _read_plain(kind) for kind in (bool, int, float, str, _NONE)},
    Path: _read_path,
    tuple: _read_tuple,
    list: _read_list,
    dict: _read_dict,
}
