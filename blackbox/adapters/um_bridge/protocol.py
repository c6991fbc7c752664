"""The messages of UM-Bridge 1.0: JSON text to values and back, and vectors of a stated size.

Source: https://um-bridge-benchmarks.readthedocs.io, "Protocol". JSON and nothing else: what is received
is never unpickled or evaluated.
"""

from __future__ import annotations

import json
import re
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from blackbox.extras import import_extra

VERSION = 1.0
EXTRA = "umbridge"

# Room for the text of one number, with indentation, and for what surrounds the numbers.
BYTES_PER_NUMBER = 64
BYTES_BESIDE = 2**20

# Servers that print Python or C++ values for JSON: nan, inf, -nan and, from NumPy 2, np.float64(1.5).
# Strings come first, so that a word in a message stays as it is.
_WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|np\.float\d+\(([^()]*)\)|-?\b(nan|inf)\b', re.IGNORECASE)


def to_text(message: object) -> bytes:
    """JSON of a message whose arrays are C-contiguous; the caller has seen to it that numbers are finite.

    Raises:
        TypeError: it holds something that JSON has no word for.
    """
    orjson = _orjson()
    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)


def from_text(text: bytes) -> Any:  # noqa: ANN401 - any JSON
    """The value of a JSON text, to the letter of the standard.

    Raises:
        ValueError: it is not JSON; NaN and infinity, or a nesting of more than 1,024, are not.
    """
    return _orjson().loads(text)


def from_loose_text(text: bytes) -> Any:  # noqa: ANN401 - any JSON
    """The value of what real servers send for JSON, with `nan`, `NaN`, `inf`, `Infinity` as floats.

    Raises:
        ValueError: it is not even that.
    """
    try:
        return from_text(text)
    except ValueError:
        pass  # the slow way, a hundredth of its speed
    try:
        return json.loads(_WORDS.sub(_as_json, text.decode("utf-8", "replace")))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def vector(value: object, size: int, null_is_nan: bool = False) -> np.ndarray:
    """A list of numbers as an array `(size,)` of the dtype that holds them.

    Args:
        value: what was received.
        size: how many numbers are expected.
        null_is_nan: read null as NaN, which is how some servers write it.

    Raises:
        ValueError: what was expected and what came.
    """
    if not isinstance(value, list):
        raise ValueError(f"expected a list of {size} numbers, got {_describe(value)}")
    if len(value) != size:
        raise ValueError(f"expected {size} numbers, got {len(value)}")
    if null_is_nan and None in value:
        value = [float("nan") if number is None else number for number in value]
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.empty(0)
    if array.shape != (size,) or array.dtype.kind not in "biuf":
        bad = next(
            (number for number in value if not isinstance(number, bool | int | float)), "a mixture of numbers"
        )
        raise ValueError(f"expected {size} numbers, got {_describe(bad)} among them")
    return array


@cache
def _orjson() -> ModuleType:
    return import_extra("UM-Bridge", "orjson", EXTRA)


def _as_json(found: re.Match[str]) -> str:
    if found.group(0).startswith('"'):
        return found.group(0)
    word = (found.group(1) or found.group(0)).lower()
    if word.lstrip("-") == "nan":
        return "NaN"  # -nan too, which C prints
    return word.replace("inf", "Infinity") if word.lstrip("-") == "inf" else word


def _describe(value: object) -> str:
    words = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return words.get(type(value), repr(value))
