"""The numbers in a Tesseract's schemas: their places in nested inputs or outputs, shapes and dtypes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blackbox.errors import ConfigurationError
from blackbox.spec import ArraySpec, identifier

Array = np.ndarray[Any, Any]
Keys = tuple[str | int, ...]
# the dtypes of a schema -> that of the spec; None is any float
_DTYPES: dict[str, str | None] = dict.fromkeys(("float16", "float32", "float64"))
_DTYPES |= dict.fromkeys(("int8", "int16", "int64", "uint16", "uint32", "uint64"), "int64")
_DTYPES |= {"int32": "int32", "uint8": "uint8", "bool": "bool"}
_NUMBERS = {"number": "float64", "integer": "int64", "boolean": "bool"}
_NOTHING: Any = object()


class DictKey(str):
    """A key of a dict whose keys the schema leaves open, which Tesseracts write `{key}`."""


@dataclass(frozen=True)
class SchemaArray:
    """An array, or a plain number, of the inputs or outputs.

    Attributes:
        path: its name as Tesseracts write it, such as `a.layers.[0].v`.
        keys: the way to it in nested dicts and lists.
        shape: its sizes, with the example's where the schema leaves them open. A size that is still open is
            None; the whole shape is None where the number of axes is open.
        dtype: the dtype of the array that the Tesseract takes or gives.
        differentiable: whether the schema marks it so.
        is_array: False for a plain number.
        in_example: whether the example has it.
        rows_first: whether the schema leaves its first axis open, so that it may be rows.
    """

    path: str
    keys: Keys
    shape: tuple[int | None, ...] | None
    dtype: str
    differentiable: bool = False
    is_array: bool = True
    in_example: bool = False
    rows_first: bool = False

    def is_open(self, vectorized: bool) -> bool:
        """Say whether a size of a row is not known."""
        return self.shape is None or None in self.shape[vectorized:]

    def check(self, kind: str, vectorized: bool, mend: str) -> None:
        """Refuse what no spec can say.

        Args:
            kind: "input" or "output".
            vectorized: whether the first axis is rows.
            mend: the last sentence of the error.

        Raises:
            ConfigurationError: no numbers, an open size, or no axis for rows.
        """
        where = f"Tesseract, {kind} {self.path!r}"
        if self.dtype not in _DTYPES:
            raise ConfigurationError(f"{where}: expected real numbers, got {self.dtype}. Leave it out.")
        if vectorized and not self.rows_first:
            raise ConfigurationError(
                f"{where}: expected an array with an open first axis, for rows, with vectorized=True, got "
                f"{self._sizes()}. Take vectorized=False, one apply a row."
            )
        if self.is_open(vectorized):
            raise ConfigurationError(
                f"{where}: expected one shape for all rows, got a ragged one, {self._sizes()} in the schema. "
                f"{mend}"
            )

    def spec(self, vectorized: bool) -> ArraySpec:
        """The spec, of a field that is checked."""
        shape = tuple(size or 1 for size in (self.shape or ())[vectorized:])
        return ArraySpec(identifier(self.path), shape, _DTYPES[self.dtype], self.differentiable)

    def zeros(self) -> Array:
        """An array of its shape; a single row where rows are open."""
        return np.zeros(tuple(size or 1 for size in self.shape or ()), self.dtype)

    def _sizes(self) -> str:
        if self.shape is None:
            return "of any number of axes"
        return f"of shape ({', '.join('any' if size is None else str(size) for size in self.shape)})"


def input_fields(
    node: Mapping[str, Any],
    schemas: Mapping[str, Any],
    example: Any,
    chosen: Sequence[str],
    keys: Keys = (),
) -> Iterator[SchemaArray]:
    """All numbers among the inputs that the schema requires, the example has or the user has chosen.

    Args:
        node: the schema of the inputs, or of the part at `keys` in them.
        schemas: the schemas that it refers to.
        example: the value there, or nothing.
        chosen: paths that the user wants, also where the schema has a default.
        keys: the present place in the inputs.

    Raises:
        ConfigurationError: a text, a list or a dict is required, and there is no example for it.
    """
    node, where = _alternative(node, schemas, example), f"Tesseract, input {path_of(keys)!r}"
    if "properties" in node and "array_flags" not in node:
        for name, inner in node["properties"].items():
            value = example.get(name, _NOTHING) if isinstance(example, Mapping) else _NOTHING
            path = path_of((*keys, name))
            is_wanted = any(f"{choice}.".startswith(f"{path}.") for choice in chosen)
            if name in node.get("required", ()) or value is not _NOTHING or is_wanted:
                yield from input_fields(inner, schemas, value, chosen, (*keys, name))
    elif isinstance(node.get("additionalProperties"), Mapping) or node.get("type") == "array":
        if example is _NOTHING:
            raise ConfigurationError(
                f"{where}: expected one shape for all rows, got an {node['type']} of any length there. "
                "Give example={...} that has it, as long as it is to be."
            )
        inner = node.get("items", node.get("additionalProperties"))
        for key, value in _members(example):
            yield from input_fields(inner, schemas, value, chosen, (*keys, key))
    elif (field := _number(node, keys, example)) is not None:
        yield field
    elif example is _NOTHING and not {"const", "default"} & set(node) and node.get("type") != "null":
        raise ConfigurationError(
            f"{where}: expected a value for what is no number, got none. Give example={{...}} with it."
        )


def output_fields(
    node: Mapping[str, Any],
    schemas: Mapping[str, Any],
    example: Any = _NOTHING,
    keys: Keys = (),
) -> list[SchemaArray] | None:
    """All numbers among the outputs; None where how many there are depends on lists and dicts.

    Args:
        node: the schema of the outputs, or of the part at `keys` in them.
        schemas: the schemas that it refers to.
        example: the value there, or nothing.
        keys: the present place in the outputs.
    """
    node = _alternative(node, schemas, example)
    if "properties" in node and "array_flags" not in node:
        inner = [
            output_fields(
                child,
                schemas,
                example.get(name, _NOTHING) if isinstance(example, Mapping) else _NOTHING,
                (*keys, name),
            )
            for name, child in node["properties"].items()
        ]
    elif isinstance(node.get("additionalProperties"), Mapping) or node.get("type") == "array":
        if example is _NOTHING:
            return None
        child = node.get("items", node.get("additionalProperties"))
        inner = [output_fields(child, schemas, value, (*keys, key)) for key, value in _members(example)]
    else:
        field = _number(node, keys, example)
        return [] if field is None else [field]
    if any(fields is None for fields in inner):
        return None
    return [field for fields in inner for field in fields or ()]


def _members(example: Any) -> Iterator[tuple[str | int, Any]]:
    """Iterate over the members of a list or dict, with their keys."""
    if isinstance(example, Mapping):
        return ((DictKey(key), value) for key, value in example.items())
    return iter(enumerate(example or ()))


def _number(node: Mapping[str, Any], keys: Keys, example: Any) -> SchemaArray | None:
    """The array or plain number that a node is."""
    in_example, path = example is not _NOTHING, path_of(keys)
    if "array_flags" not in node:
        dtype = _NUMBERS.get(node.get("type", ""))
        return (
            None
            if dtype is None
            else SchemaArray(path, keys, (), dtype, is_array=False, in_example=in_example)
        )
    sizes = node["properties"]["shape"]
    shape = None
    if "prefixItems" in sizes or sizes.get("maxItems") == 0:
        # size n is "enum": [1, n], since arrays are broadcast to it, and an open one has a minimum alone
        items = sizes.get("prefixItems", ())
        shape = tuple(max(item["enum"]) if "enum" in item else item.get("const") for item in items)
    rows_first = shape is None or shape[:1] == (None,)
    if in_example:
        actual = np.shape(example)
        if shape is None:
            shape = actual
        if len(actual) != len(shape) or any(
            n not in (None, size) for n, size in zip(shape, actual, strict=True)
        ):
            raise ConfigurationError(
                f"Tesseract, example: expected an array of shape {shape} for {path!r}, got {actual}. "
                "None is for any size."
            )
        shape = tuple(actual)
    dtype = node["properties"]["dtype"]["examples"][0]
    return SchemaArray(
        path, keys, shape, dtype, "DIFFERENTIABLE" in node["array_flags"], True, in_example, rows_first
    )


def _alternative(
    node: Mapping[str, Any],
    schemas: Mapping[str, Any],
    example: Any,
) -> Mapping[str, Any]:
    """A node without references, and of a union the one that the example is; else the first."""
    if "$ref" in node:
        return _alternative(schemas[node["$ref"].rpartition("/")[2]], schemas, example)
    union = node.get("anyOf") or node.get("oneOf")
    if not union:
        return node
    kinds = [_alternative(member, schemas, example) for member in union]
    fitting = [kind for kind in kinds if _fits(kind, example)]
    return fitting[0] if fitting else {"type": "null"}


def _fits(node: Mapping[str, Any], example: Any) -> bool:
    if example is _NOTHING:
        return node.get("type") != "null"
    if "array_flags" in node:
        return isinstance(example, np.ndarray | np.generic | list | tuple | int | float)
    kinds = {"null": type(None), "object": Mapping, "array": list | tuple, "string": str, "boolean": bool}
    kinds |= {"integer": int, "number": int | float}
    return isinstance(example, kinds.get(node.get("type", ""), object))


def path_of(keys: Keys) -> str:
    """Keys as Tesseracts write them: `[0]` for a place in a list, `{key}` for one in a dict of any keys."""
    return ".".join(_written(key) for key in keys)


def _written(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    return "{" + re.sub(r"([{}\\])", r"\\\1", key) + "}" if isinstance(key, DictKey) else key


def at(tree: Any, keys: Keys, default: Any = _NOTHING) -> Any:
    """Return the value at these keys of nested dicts and lists.

    Raises:
        ValueError: nothing is, and there is no default.
    """
    for depth, key in enumerate(keys):
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            if default is not _NOTHING:
                return default
            missing = path_of(keys[: depth + 1])
            raise ValueError(f"expected {path_of(keys)!r} among the outputs, got no {missing!r}.") from None
    return tree


def put(tree: Any, keys: Keys, value: Any) -> Any:
    """A copy of nested dicts and lists with a value at these keys; dicts on the way are made."""
    if not keys:
        return value
    if isinstance(tree, list | tuple):
        return [put(item, keys[1:], value) if n == keys[0] else item for n, item in enumerate(tree)]
    tree = tree if isinstance(tree, Mapping) else {}
    return {**tree, keys[0]: put(tree.get(keys[0]), keys[1:], value)}


def abstract(tree: Any) -> Any:
    """Inputs with the shape and dtype of each array in its place, as `abstract_eval` takes them."""
    if isinstance(tree, Mapping):
        return {key: abstract(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [abstract(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return {"shape": list(tree.shape), "dtype": str(tree.dtype)}
    return tree


def mapped(tree: Any) -> Any:
    """Return the result of `abstract_eval`, with memory-free arrays in the places of shapes and dtypes."""
    if isinstance(tree, Mapping) and set(tree) == {"shape", "dtype"}:
        return np.broadcast_to(np.zeros((), tree["dtype"]), tuple(tree["shape"]))
    if isinstance(tree, Mapping):
        return {key: mapped(value) for key, value in tree.items()}
    return [mapped(value) for value in tree] if isinstance(tree, list | tuple) else tree
