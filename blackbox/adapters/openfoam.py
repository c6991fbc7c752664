"""Fields of OpenFOAM, for the functions that `CommandLine` writes and reads files by.

    def write_velocity(path, velocity):             # (cells, 3)
        openfoam.write_field(path, velocity)

    box = CommandLine(["icoFoam"], ..., copies={"0": "case/0", ...},
                      input_files={"velocity": ("0/U", write_velocity)},
                      output_files={"after": ("0.2/U", partial(openfoam.read_field, cells=256))})

What is read and replaced is `internalField`, the values in the cells, as text or binary and of the precision
that the file's header says. Patches and all else in a file stay as they are, to the byte.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.outside import exactly

Array = np.ndarray[Any, Any]
COMPONENTS = {"scalar": 1, "vector": 3, "symmTensor": 6, "tensor": 9}
_UNIFORM, _LIST = rb"uniform\s+(\([^)]*\)|[^;\s]+)\s*;", rb"nonuniform\s+List<(\w+)>\s*(\d+)\s*\("
_ENTRY = rb"\binternalField\s+(?:" + _UNIFORM + rb"|" + _LIST + rb")"
_PART = re.compile(rb"//[^\n]*|/\*[\s\S]*?\*/|" + _ENTRY)  # comments, which may hold another entry


def read_field(path: str | os.PathLike[str], cells: int | None = None) -> Array:
    """The values of `internalField`, (cells, components).

    OpenFOAM writes a field as `uniform` wherever all cells have the same value, and such a file does not say
    how many they are. With `cells` the value comes as often as that; without it once: (1, components).

    Raises:
        ValueError: the file has no such field, one of another precision than its header says, or one with
            another number of cells than `cells`.
    """
    field = _internal_field(Path(path))
    if field.uniform:
        return np.repeat(field.values, 1 if cells is None else cells, axis=0)
    if cells is not None and len(field.values) != cells:
        raise ValueError(
            f"{Path(path).name}: expected {cells} cells, got {len(field.values)}. Is it of another mesh? "
            "Give `cells` as the mesh has them."
        )
    return field.values


def write_field(path: str | os.PathLike[str], values: Any) -> None:
    """Put values (cells, components) in the place of the `internalField` of a file that is there.

    Components are 1 (a scalar), 3 (a vector), 6 (a symmetric tensor) or 9 (a tensor).

    Raises:
        TypeError: the values are no real numbers.
        ValueError: the values have another shape, or the file has no field that could be replaced.
    """
    values = exactly(values, np.float64)
    kinds = {count: name for name, count in COMPONENTS.items()}
    if values.ndim != 2 or values.shape[1] not in kinds:
        raise ValueError(
            f"{Path(path).name}: expected values (cells, components) with 1, 3, 6 or 9 components, got shape "
            f"{values.shape}. Reshape them; a scalar has one component."
        )
    field = _internal_field(Path(path))
    kind = kinds[values.shape[1]]
    head = f"internalField nonuniform List<{kind}> {len(values)}\n(".encode()
    if _is_binary(field.file):
        body = np.ascontiguousarray(values, _scalar(field.file)).tobytes()
    else:
        left, right = ("", "") if kind == "scalar" else ("(", ")")
        body = "\n".join(f"{left}{' '.join(map(repr, row))}{right}" for row in values.tolist()).encode()
    Path(path).write_bytes(field.file[: field.start] + head + body + b")\n;" + field.file[field.end :])


@dataclass(frozen=True)
class _InternalField:
    """An `internalField` with its place in its file.

    Attributes:
        file: the file's bytes.
        start: the place in them where the entry begins.
        end: the place where it ends.
        values: `(cells, components)`; for a uniform field `(1, components)`.
        uniform: whether one value is for all cells.
    """

    file: bytes
    start: int
    end: int
    values: Array
    uniform: bool


def _internal_field(path: Path) -> _InternalField:
    data = path.read_bytes()
    entry = next((part for part in _PART.finditer(data) if part[0].startswith(b"internalField")), None)
    if entry is None or (entry[2] or b"scalar").decode() not in COMPONENTS:
        raise ValueError(
            f"{path.name}: expected an internalField, uniform or a List<vector> or the like; found none. "
            "Have the program write the field, and not compressed (writeCompression off)."
        )
    if entry[1] is not None:
        value = np.array(entry[1].strip(b"()").split(), np.float64)
        return _InternalField(data, *entry.span(), value[None], uniform=True)
    width, count, scalar = COMPONENTS[entry[2].decode()], int(entry[3]), _scalar(data)
    if _is_binary(data):
        end = entry.end() + count * width * scalar.itemsize
        values = np.frombuffer(data[entry.end() : end], np.uint8)
        values = values[: len(values) // scalar.itemsize * scalar.itemsize].view(scalar)
    else:
        end = data.rfind(b")", entry.end(), data.find(b";", entry.end()))
        values = np.array(re.sub(rb"[()]", b" ", data[entry.end() : end]).split(), np.float64)
    close = re.compile(rb"\)\s*;").match(data, end)
    if close is None or len(values) != count * width:
        raise ValueError(
            f"{path.name}: expected {count} values of {width} numbers, of {8 * scalar.itemsize} bits "
            "where binary, got other bytes. Is the field of another precision than its header says?"
        )
    values = values.reshape(count, width).astype(np.float64)
    return _InternalField(data, entry.start(), close.end(), values, uniform=False)


def _is_binary(data: bytes) -> bool:
    return re.search(rb"\bformat\s+binary\s*;", data) is not None


def _scalar(data: bytes) -> np.dtype[Any]:
    """The numbers' type, as `arch "LSB;label=32;scalar=64"` says; 64 bits where the header does not."""
    arch = re.search(rb'\barch\s+"(LSB|MSB);[^"]*scalar=(32|64)', data)
    if arch is None:
        return np.dtype("f8")
    return np.dtype(f"{'<' if arch[1] == b'LSB' else '>'}f{int(arch[2]) // 8}")
