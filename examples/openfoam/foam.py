"""OpenFOAM's fields: values in cells, ASCII or binary; patches and all else in a file stay as they are."""

import re
from pathlib import Path

import numpy as np

COMPONENTS = {"scalar": 1, "vector": 3, "symmTensor": 6, "tensor": 9}
UNIFORM, LIST = rb"uniform\s+(\([^)]*\)|[^;\s]+)\s*;", rb"nonuniform\s+List<(\w+)>\s*(\d+)\s*\("
ENTRY = re.compile(rb"\binternalField\s+(?:" + UNIFORM + rb"|" + LIST + rb")")


def read_field(path):
    """The values of `internalField`, (cells, components); of a uniform one (1, components).

    Raises:
        ValueError: the file has no such field, or one of another precision than it says.
    """
    return _internal(Path(path))[2]


def write_field(path, values):
    """Put values (cells, components) in the place of the `internalField` of a file that is there."""
    data, (start, end), _ = _internal(Path(path))
    kind = {count: name for name, count in COMPONENTS.items()}[values.shape[1]]
    head = f"internalField nonuniform List<{kind}> {len(values)}\n(".encode()
    if _is_binary(data):
        body = np.ascontiguousarray(values, _scalar(data)).tobytes()
    else:
        left, right = ("", "") if kind == "scalar" else ("(", ")")
        body = "\n".join(f"{left}{' '.join(map(repr, row))}{right}" for row in values.tolist()).encode()
    Path(path).write_bytes(data[:start] + head + body + b")\n;" + data[end:])


def _internal(path):
    """The file's bytes, where in them the entry stands, and its values."""
    data = path.read_bytes()
    entry = ENTRY.search(data)
    if entry is None or (entry[2] or b"scalar").decode() not in COMPONENTS:
        raise ValueError(
            f"{path.name}: expected an internalField, uniform or a List<vector> or the like; found none."
        )
    if entry[1] is not None:
        value = np.array(entry[1].strip(b"()").split(), np.float64)
        return data, entry.span(), value[None]
    width, count, scalar = COMPONENTS[entry[2].decode()], int(entry[3]), _scalar(data)
    if _is_binary(data):
        end = entry.end() + count * width * scalar.itemsize
        values = np.frombuffer(data[entry.end() : end], scalar)
    else:
        end = data.rfind(b")", entry.end(), data.find(b";", entry.end()))
        values = np.array(re.sub(rb"[()]", b" ", data[entry.end() : end]).split(), np.float64)
    close = re.compile(rb"\)\s*;").match(data, end)
    if close is None or len(values) != count * width:
        raise ValueError(
            f"{path.name}: expected {count} values of {width} numbers, of {8 * scalar.itemsize} bits "
            "where binary, got other bytes. Is the field of another precision than its header says?"
        )
    return data, (entry.start(), close.end()), values.reshape(count, width).astype(np.float64)


def _is_binary(data):
    return re.search(rb"\bformat\s+binary\s*;", data) is not None


def _scalar(data):
    """The numbers' type, as `arch "LSB;label=32;scalar=64"` says; 64 bits where the header does not."""
    found = re.search(rb'\barch\s+"(LSB|MSB);[^"]*scalar=(32|64)', data)
    return (
        np.dtype("f8")
        if found is None
        else np.dtype(f"{'<' if found[1] == b'LSB' else '>'}f{int(found[2]) // 8}")
    )
