"""What is served: a black box by the terms of UM-Bridge, its requests checked, its answers finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from blackbox.adapters.um_bridge.messages import longest, vector
from blackbox.arrays import as_tensor
from blackbox.definition import check_complete
from blackbox.errors import BlackBoxError, ConfigurationError
from blackbox.function import BlackBoxFunction
from blackbox.running import mark_non_finite
from blackbox.spec import ArraySpec


class RefusedError(BlackBoxError):
    """A request that gets an error for an answer: its HTTP status, UM-Bridge's type of error, a sentence."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class ServedModel:
    """A black box whose arrays go in and out as one vector each, flattened in C order.

    Args:
        box: the black box.

    Raises:
        ConfigurationError, DefinitionError: it is no black box, or not complete.
    """

    def __init__(self, box: BlackBoxFunction) -> None:
        if not isinstance(box, BlackBoxFunction):
            raise ConfigurationError(
                f"serve, box: expected a BlackBoxFunction, got {type(box).__name__}. "
                "Make it one with blackbox.adapters.from_callable."
            )
        check_complete(box)
        self.box = box
        self.longest_request = longest(box.inputs + box.outputs)

    def describe(self, path: str) -> dict[str, Any]:
        """`/ModelInfo`, `/InputSizes`, `/OutputSizes`: no row is run."""
        if path == "/ModelInfo":
            # Differences with one mu for all inputs would pass for exact: they are the client's to take.
            others = dict.fromkeys(("Gradient", "ApplyJacobian", "ApplyHessian"), False)
            return {"support": {"Evaluate": True, **others}}
        if path == "/InputSizes":
            return {"inputSizes": [_size(spec) for spec in self.box.inputs]}
        return {"outputSizes": [_size(spec) for spec in self.box.outputs]}

    def evaluate(self, request: dict[str, Any]) -> dict[str, Any]:
        """`/Evaluate`: one row is run.

        Raises:
            RefusedError: the request is not one, or the row failed; NaN and infinity have no word in JSON.
        """
        specs, given = self.box.inputs, request.get("input")
        if not isinstance(given, list) or len(given) != len(specs):
            found = len(given) if isinstance(given, list) else "none"
            lists = f"{len(specs)} lists ({', '.join(spec.name for spec in specs)})"
            raise RefusedError(400, "InvalidInput", f"input: expected {lists}, got {found}.")
        row = tuple(as_tensor(_input(spec, values))[None] for spec, values in zip(specs, given, strict=True))
        try:
            # By run_rows, as wrappers do: of a failed row the reason is known under "keep" too, and what
            # checks its arguments, as a call does, takes three times as long as a quick box.
            self.box.ledger.count(calls=1, rows_asked=1)
            outcome = mark_non_finite(self.box.run_rows(row))
        except BlackBoxError as error:
            raise RefusedError(500, type(error).__name__, str(error)) from None
        self.box.ledger.count_failed(outcome.failed)
        for why in outcome.failed.values():
            raise RefusedError(500, "EvaluationFailed", f"{why.sentence()}.")
        return {"output": [_vector(output[0].numpy()) for output in outcome.outputs]}


def _input(spec: ArraySpec, values: object) -> np.ndarray:
    """A request's vector in the spec's shape and dtype, which must be able to hold its numbers."""
    try:
        given = vector(values, _size(spec))
        dtype = np.dtype(spec.dtype or "float64")
        with np.errstate(over="ignore", invalid="ignore"):
            array = given.astype(dtype)
        exact = spec.floating or np.array_equal(array.astype(given.dtype), given)
        if not exact or not np.isfinite(array).all():
            raise ValueError(f"expected numbers that {dtype} can hold, got others")
    except ValueError as error:
        raise RefusedError(400, "InvalidInput", f"input {spec.name!r}: {error}.") from None
    return array.reshape(spec.shape)


def _vector(array: np.ndarray) -> np.ndarray:
    """The array as a flat float64 vector, which JSON gives back to the bit; integers stay integers."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.astype(np.float64 if flat.dtype.kind == "f" else np.int64)


def _size(spec: ArraySpec) -> int:
    return math.prod(spec.shape)
