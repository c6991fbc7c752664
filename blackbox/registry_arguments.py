"""Arguments of a black box as words of a command line: `width=32 advection=mac-cormack`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Union, get_args, get_origin

from blackbox.checks import nearest
from blackbox.errors import ConfigurationError

_SCALARS = (bool, int, float, str, type(None))
_OF_PYTHON = {"True": True, "False": False, "None": None}  # as text, "False" would pass for true


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Words `key=value` as keyword arguments: JSON's numbers, true, false, null and "text", or plain text.

    True, False and None are what they are in Python.

    Raises:
        ConfigurationError: a word has no name before "=", or a list or an object behind it; or a name is
            there twice.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.replace("-", "_")
        if not equals or not key.isidentifier():
            raise ConfigurationError(
                f"{word!r}: expected an argument of the black box, such as width=32. Write name=value."
            )
        if key in arguments:
            raise ConfigurationError(f"{key}: expected one value, got a second, {value!r}. Leave one out.")
        arguments[key] = _scalar(key, value)
    return arguments


def call(target: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """`make(**arguments)`, after the names and the plain types among the arguments have been checked.

    Raises:
        ConfigurationError: an argument is unknown, missing or of another type.
    """
    try:
        if inspect.isclass(make) and inspect.isfunction(make.__init__):
            # not of the class: that of a black box which has no __init__ of its own takes anything
            signature = inspect.signature(partial(make.__init__, None))
        else:
            signature = inspect.signature(make)
    except ValueError:  # such as dict, which says nothing of what it takes
        raise ConfigurationError(
            f"{target}: expected something that makes a black box, got {make!r}. Name a subclass of "
            "BlackBoxFunction, or a function that returns an instance of one."
        ) from None
    parameters = {
        name: item
        for name, item in signature.parameters.items()
        if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
    }
    open_ended = any(item.kind is item.VAR_KEYWORD for item in signature.parameters.values())
    for name, value in arguments.items():
        if name not in parameters:
            if open_ended:
                continue
            mend = nearest(name, parameters, "It takes")
            raise ConfigurationError(f"{target}: expected no argument {name!r}. {mend}")
        hint = _hints(make).get(name, Any)
        if not _fits(value, hint):
            raise ConfigurationError(
                f"{target}, {name}: expected {_words(hint)}, got {json.dumps(value)}. Correct the value."
            )
    missing = [
        name
        for name, item in parameters.items()
        if item.default is inspect.Parameter.empty and name not in arguments
    ]
    if missing:
        raise ConfigurationError(
            f"{target}: expected a value for {', '.join(missing)}, got none. Add {missing[0]}=VALUE."
        )
    return make(**arguments)


def _scalar(key: str, text: str) -> Any:
    if text in _OF_PYTHON:
        return _OF_PYTHON[text]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or numbers and lists beyond what Python reads
        return text
    if isinstance(value, list | dict):
        raise ConfigurationError(
            f"{key}: expected a number, true, false, null or text, got {text}. For more than that write a "
            "function that makes the black box, and name it as file.py:function."
        )
    return value


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    sources: list[Any] = [make.__init__ if inspect.isclass(make) else make]
    if dataclasses.is_dataclass(make):
        sources.append(make)  # whose fields may have been written in several modules
    for source in sources:
        with suppress(Exception):  # names that only a type checker imports: the function checks for itself
            return typing.get_type_hints(source)
    return {}


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a value is of an annotated type; annotations that are not plain are left to the callee."""
    choices = _choices(hint)
    if not all(choice in _SCALARS or _is_collection(choice) for choice in choices):
        return True
    if isinstance(value, str) and any(choice not in _SCALARS for choice in choices):
        return True  # a text is a sequence of texts, too
    return type(value) in choices or (type(value) is int and float in choices)


def _is_collection(hint: Any) -> bool:
    """Say whether a hint is a list, a mapping or the like, which no number, true, false or null is."""
    kind = get_origin(hint) or hint
    return inspect.isclass(kind) and (issubclass(kind, Collection) or kind is Iterable) and kind is not str


def _words(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return " or ".join(names.get(choice, "a list or a mapping") for choice in _choices(hint))
