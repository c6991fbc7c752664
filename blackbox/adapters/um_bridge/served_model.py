"""The served model: a black box by the terms of UM-Bridge, its requests checked, its answers finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.um_bridge.messages import longest, vector
from blackbox.arrays import as_tensor
from blackbox.errors import BlackBoxError, ConfigurationError
from blackbox.function import BlackBoxFunction, check_complete
from blackbox.outside import exactly
from blackbox.running import mark_non_finite
from blackbox.spec import ArraySpec

Derivative = Callable[..., Any]
"""A function of a box's tensors, with rows in front, that autograd goes through to the outputs."""


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
        derivative: the source of gradients; None for the box's own derivative, if it has one. A given one is
            asked by one thread at a time: it may learn, and number its calls.

    Raises:
        ConfigurationError, DefinitionError: it is no black box, or not complete, or `derivative` no function.
    """

    def __init__(self, box: BlackBoxFunction, derivative: Derivative | None = None) -> None:
        if not isinstance(box, BlackBoxFunction):
            raise ConfigurationError(
                f"serve, box: expected a BlackBoxFunction, got {type(box).__name__}. "
                "Make it one with blackbox.adapters.from_callable."
            )
        check_complete(box)
        if derivative is not None and not callable(derivative):
            raise ConfigurationError(
                "serve, derivative: expected a function that autograd goes through, got "
                f"{type(derivative).__name__}. Such as zo.differentiable(box, zo.CGE(mu=1e-3, central=True))."
            )
        self._alone: AbstractContextManager[object] = nullcontext() if derivative is None else Lock()
        # a box with products of its own, which cost no row, and which says how wrong they are
        self.frozen: Any = box if derivative is None and hasattr(box, "hessian_action") else None
        if derivative is None and getattr(box, "has_derivative", False):
            derivative = getattr(box, "reference", None)
        self.derivative = derivative
        self.box = box
        self.longest_request = longest(box.inputs + box.outputs)

    def describe(self, path: str) -> dict[str, Any]:
        """`/ModelInfo`, `/InputSizes`, `/OutputSizes`: no row is run."""
        if path == "/ModelInfo":
            # Estimates pass for exact at a client: whoever serves has to ask for them.
            derivative = {} if self.frozen is None else {"derivative": self.frozen.derivative_info}
            # which model it will be, and so whether it bends, is not known before it is frozen
            hessian = bool(derivative) and derivative["derivative"].get("hessian", True)
            derivative_endpoints = {"ApplyJacobian": bool(derivative), "ApplyHessian": hessian}
            return {
                "support": {
                    "Evaluate": True,
                    "Gradient": self.derivative is not None,
                    **derivative_endpoints,
                },
                **derivative,
            }
        if path == "/InputSizes":
            return {"inputSizes": [_size(spec) for spec in self.box.inputs]}
        return {"outputSizes": [_size(spec) for spec in self.box.outputs]}

    def evaluate(self, request: dict[str, Any]) -> dict[str, Any]:
        """`/Evaluate`: one row is run.

        Raises:
            RefusedError: the request is not one, or the row failed; NaN and infinity have no word in JSON.
        """
        row = self._row(request)
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

    def gradient(self, request: dict[str, Any]) -> dict[str, Any]:
        """`/Gradient`: the vector-Jacobian product of one output and one input.

        Raises:
            RefusedError: the request is not one, there is no such derivative, or the row failed. Of a failed
                row `zo` makes zeros, which would pass for a gradient.
        """
        if self.frozen is not None:
            return self.product("/Gradient", request)
        if self.derivative is None:
            raise RefusedError(400, "UnsupportedFeature", "Gradient is not supported by this model.")
        out = _place(request, "outWrt", self.box.outputs)
        into = _place(request, "inWrt", self.box.inputs)
        row, spec = list(self._row(request)), self.box.outputs[out]
        try:
            sens = vector(request.get("sens"), _size(spec)).astype(np.float64).reshape(1, *spec.shape)
            if not np.isfinite(sens).all():
                raise ValueError("expected finite numbers, got others")
        except ValueError as error:
            raise RefusedError(400, "InvalidInput", f"sens: {error}.") from None
        row[into].requires_grad_()
        try:
            with self._alone, torch.enable_grad():
                before = getattr(self.derivative, "unanswered", 0)  # of `zo.differentiable`
                answer = self.derivative(*row)
                outputs: tuple[Tensor, ...] = answer if isinstance(answer, tuple) else (answer,)
                if not all(bool(torch.isfinite(output).all()) for output in outputs):
                    raise RefusedError(500, "EvaluationFailed", "expected a row with an answer, it failed.")
                if not any(output.requires_grad for output in outputs):
                    name = self.box.inputs[into].name
                    raise RefusedError(
                        500, "NoDerivative", f"expected outputs that autograd traces to {name!r}, got none."
                    )
                cotangent = torch.from_numpy(sens).to(outputs[out])
                product = None
                if outputs[out].requires_grad:
                    (product,) = torch.autograd.grad(outputs[out], row[into], cotangent, allow_unused=True)
                if getattr(self.derivative, "unanswered", 0) != before:
                    name = self.box.inputs[into].name
                    raise RefusedError(
                        500,
                        "EvaluationFailed",
                        f"expected an answer near each number of {name!r}, all rows that move one failed.",
                    )
        except RefusedError:
            raise
        except BlackBoxError as error:
            raise RefusedError(500, type(error).__name__, str(error)) from None
        gradient = (torch.zeros_like(row[into]) if product is None else product).detach()
        if not torch.isfinite(gradient).all():
            raise RefusedError(500, "EvaluationFailed", "expected a finite gradient, got another.")
        return {"output": _vector(gradient[0].numpy())}

    @property
    def headers(self) -> dict[str, str]:
        """The error of a frozen derivative, by output, for the answers that have one."""
        derivative_info = {} if self.frozen is None else self.frozen.derivative_info
        errors = ", ".join(f"{name}={error:.3g}" for name, error in derivative_info.get("errors", {}).items())
        return {"derivative-error": errors, "derivative-rows": str(derivative_info["rows"])} if errors else {}

    def product(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """`/Gradient`, `/ApplyJacobian` or `/ApplyHessian` of a frozen derivative; no row is run.

        Raises:
            RefusedError: the request is not one, nothing is frozen yet, or the model has no such derivative.
        """
        if self.frozen is None:
            raise RefusedError(400, "UnsupportedFeature", f"{path[1:]} is not supported by this model.")
        inputs, outputs = self.box.inputs, self.box.outputs
        hessian = path == "/ApplyHessian"
        out = _place(request, "outWrt", outputs)
        into = _place(request, "inWrt1" if hessian else "inWrt", inputs)
        along = _place(request, "inWrt2", inputs) if hessian else into
        row = self._row(request)
        cotangents: list[Tensor | None] = [None] * len(outputs)
        changes: list[Tensor | None] = [None] * len(inputs)
        if path != "/ApplyJacobian":
            cotangents[out] = _direction(request, "sens", outputs[out])
        if path != "/Gradient":
            changes[along] = _direction(request, "vec", inputs[along])
        try:
            if path == "/Gradient":
                answer, place = self.frozen.vjp(row, cotangents), into
            elif path == "/ApplyJacobian":
                answer, place = self.frozen.jvp(row, changes), out
            else:
                answer, place = self.frozen.hessian_action(row, cotangents, changes), into
        except BlackBoxError as error:
            raise RefusedError(500, type(error).__name__, str(error)) from None
        product = answer[place] if isinstance(answer, tuple) else answer
        if not torch.isfinite(product).all():
            raise RefusedError(500, "EvaluationFailed", "expected a finite product, got another.")
        return {"output": _vector(product[0].numpy())}

    def _row(self, request: dict[str, Any]) -> tuple[Tensor, ...]:
        """The inputs of a request, one row of each."""
        specs, vectors = self.box.inputs, request.get("input")
        if not isinstance(vectors, list) or len(vectors) != len(specs):
            count = len(vectors) if isinstance(vectors, list) else "none"
            lists = f"{len(specs)} lists ({', '.join(spec.name for spec in specs)})"
            raise RefusedError(400, "InvalidInput", f"input: expected {lists}, got {count}.")
        return tuple(
            as_tensor(_input(spec, values))[None] for spec, values in zip(specs, vectors, strict=True)
        )


def _place(request: dict[str, Any], key: str, specs: Sequence[ArraySpec]) -> int:
    """The place of an input or output that a derivative is asked of."""
    place = request.get(key)
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(specs):
        raise RefusedError(400, "InvalidInput", f"{key}: expected a number below {len(specs)}.")
    if not specs[place].differentiable:
        sentence = f"{key}: expected an array with a derivative, {specs[place].name!r} has none."
        raise RefusedError(400, "UnsupportedFeature", sentence)
    return place


def _direction(request: dict[str, Any], key: str, spec: ArraySpec) -> Tensor:
    """A request's cotangent or change, one row of the spec's shape."""
    try:
        values = vector(request.get(key), _size(spec)).astype(np.float64).reshape(1, *spec.shape)
        if not np.isfinite(values).all():
            raise ValueError("expected finite numbers, got others")
    except ValueError as error:
        raise RefusedError(400, "InvalidInput", f"{key}: {error}.") from None
    return torch.from_numpy(values)


def _input(spec: ArraySpec, values: object) -> np.ndarray:
    """A request's vector in the spec's shape and dtype, which must be able to hold its numbers."""
    try:
        numbers = vector(values, _size(spec))
        array = exactly(numbers, spec.dtype or "float64")
        if not np.isfinite(array).all():
            raise ValueError(f"expected numbers that {array.dtype} can hold, got others")
    except ValueError as error:
        raise RefusedError(400, "InvalidInput", f"input {spec.name!r}: {error}.") from None
    return array.reshape(spec.shape)


def _vector(array: np.ndarray) -> np.ndarray:
    """The array as a flat float64 vector, which JSON gives back to the bit; integers stay integers."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.astype(np.float64 if flat.dtype.kind == "f" else np.int64)


def _size(spec: ArraySpec) -> int:
    return math.prod(spec.shape)
