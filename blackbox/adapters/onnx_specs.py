"""What an ONNX file says of its inputs and outputs, as specs of a black box; and the file's checksum."""

from __future__ import annotations

import hashlib
import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.errors import ConfigurationError
from blackbox.spec import ArraySpec

# ONNX's element type -> the dtype of the array handed over, and of the spec; any float is taken for a float
_TYPES = {
    "tensor(float16)": ("float16", None),
    "tensor(float)": ("float32", None),
    "tensor(double)": ("float64", None),
    "tensor(int32)": ("int32", "int32"),
    "tensor(int64)": ("int64", "int64"),
    "tensor(uint8)": ("uint8", "uint8"),
    "tensor(bool)": ("bool", "bool"),
}
# an entry of `external_data` in a protobuf file: the key "location", then the length of the path, then it
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])")


@dataclass(frozen=True)
class OnnxArray:
    """One input or output of the file.

    Attributes:
        name: as the file has it; the spec's is a Python identifier made of it.
        dtype: of the array that onnxruntime takes or gives.
        rows: the size of the first axis; None where it is free.
        shape: the other axes; None for each that the file leaves open.
        spec_dtype: the dtype of the spec.
    """

    name: str
    dtype: np.dtype[Any]
    rows: int | None
    shape: tuple[int | None, ...]
    spec_dtype: str | None

    def spec(self) -> ArraySpec:
        """The spec, where all axes are known."""
        name = re.sub(r"\W", "_", self.name)
        name = name if name.isidentifier() and not keyword.iskeyword(name) else f"_{name}"
        return ArraySpec(name, tuple(n for n in self.shape if n is not None), self.spec_dtype)


def read(owner: str, kind: str, argument: Any) -> OnnxArray:  # noqa: ANN401 (onnxruntime's NodeArg)
    """One of a session's `get_inputs()` or `get_outputs()`.

    Args:
        owner: the box, for messages.
        kind: "input" or "output".
        argument: has `name`, `type` and `shape`.

    Raises:
        ConfigurationError: it holds something other than numbers, or has no axis for rows.
    """
    where = f"{owner}, {kind} {argument.name!r}"
    if argument.type not in _TYPES:
        raise ConfigurationError(
            f"{where}: expected one of {', '.join(_TYPES)}, got {argument.type}. "
            "Export the model with arrays of numbers alone."
        )
    if not argument.shape:
        raise ConfigurationError(
            f"{where}: expected an array with rows first, got a single number. "
            "Export the model with a batch axis on each input and output."
        )
    dtype, spec_dtype = _TYPES[argument.type]
    rows, *shape = (size if isinstance(size, int) and size >= 0 else None for size in argument.shape)
    return OnnxArray(argument.name, np.dtype(dtype), rows, tuple(shape), spec_dtype)


def checksum(path: Path) -> str:
    """SHA-256 of the file and of the files with external weights that it names, in hexadecimal."""
    content = path.read_bytes()
    total = hashlib.sha256(content)
    locations = {_text_after(content, match) for match in _LOCATION.finditer(content)}
    for location in sorted(locations):
        weights = path.parent / location.decode(errors="surrogateescape")
        if weights.is_file():
            with weights.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _text_after(content: bytes, match: re.Match[bytes]) -> bytes:
    length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(match[1]))
    text = content[match.end() : match.end() + min(length, 4096)]
    return text if b"\0" not in text else b""
