"""The messages of UM-Bridge 1.0: JSON text, vectors of a stated size, and the token beside them.

Source: https://um-bridge-benchmarks.readthedocs.io, "Protocol". JSON and nothing else: what is received
is never unpickled or evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from blackbox.errors import ConfigurationError
from blackbox.spec import ArraySpec
from blackbox.words import counted

VERSION = 1.0
EXTRA = "umbridge"


def to_text(message: object) -> bytes:
    """JSON of a message whose arrays are C-contiguous; the caller has seen to it that numbers are finite.

    Raises:
        TypeError: it holds something that JSON has no word for.
    """
    import orjson  # optional; who makes a client or a server has asked for it

    return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)


def from_text(text: bytes) -> Any:
    """The value of a JSON text, to the letter of the standard.

    Raises:
        ValueError: it is not JSON. NaN and infinity are not, and nesting of more than 1,024 is refused.
    """
    import orjson

    return orjson.loads(text)


def longest(specs: Iterable[ArraySpec]) -> int:
    """Bytes that no message with a vector for each spec exceeds, indented or not."""
    return 2**20 + 64 * sum(math.prod(spec.shape) for spec in specs)


def vector(value: object, size: int) -> np.ndarray:
    """A list of numbers as an array `(size,)` of the dtype that holds them.

    Raises:
        ValueError: the value is no such list; the message says what was expected.
    """
    if not isinstance(value, list):
        raise ValueError(f"expected a list of {counted(size, 'number')}, got {_shown(value)}")
    if len(value) != size:
        raise ValueError(f"expected {counted(size, 'number')}, got {len(value)}")
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.empty(0)
    if array.shape != (size,) or array.dtype.kind not in "biuf":
        intruders = (number for number in value if not isinstance(number, bool | int | float))
        raise ValueError(
            f"expected {counted(size, 'number')}, got {_shown(next(intruders, 'too large a one'))} among them"
        )
    return array


def check_token(owner: str, token: object) -> None:
    """Refuse a bearer token that no header can carry (RFC 6750, section 2.1)."""
    if token is None or (isinstance(token, str) and re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token)):
        return
    # The token itself stays out of messages, which end up in logs.
    raise ConfigurationError(
        f"{owner}, token: expected letters, digits and any of -._~+/ (and = at the end), got something else. "
        "Make one with secrets.token_urlsafe()."
    )


def _shown(value: object) -> str:
    words = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return words.get(type(value), repr(value))
