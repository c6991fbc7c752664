"""OpenMDAO: a black box as a component of a model, with partial derivatives.

    solver = zo.differentiable(box, zo.CGE(mu=1e-3, central=True))
    problem.model.add_subsystem("pump", component(box, solver), promotes=["*"])

Needs the extra "openmdao".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.checks import check_count
from blackbox.errors import ConfigurationError, DtypeError, RowFailedError
from blackbox.extras import import_extra
from blackbox.function import BlackBoxFunction, check_complete
from blackbox.outside import exactly
from blackbox.spec import ArraySpec

Values = Mapping[str, Any]


def component(
    box: BlackBoxFunction,
    derivative: Callable[..., Any] | None = None,
    *,
    rows: int | None = None,
    matrix_free: bool = False,
) -> Any:
    """A black box as an `ExplicitComponent` of OpenMDAO.

    Inputs and outputs have the names and shapes of the specs; arrays of whole numbers are discrete. Partial
    derivatives are declared between arrays with differentiable specs: to OpenMDAO all others are zero. A row
    that fails, in a value or a derivative, is an `AnalysisError`, so that drivers can step back.

    The Jacobian is made of vector-Jacobian products, one for each number of the outputs, all in one call of
    `derivative`: with `zo.CGE` of central differences, each takes the base and two rows for each number of
    the inputs. Around a `Cached` box equal rows run once. To differentiate few functions of many outputs,
    take `matrix_free=True` and `problem.setup(mode="rev")`: a product costs one call with one cotangent.
    Products in forward mode, which `check_partials` asks for, make the whole Jacobian.

    Args:
        box: the black box.
        derivative: a function of the box's tensors that autograd goes through, such as `zo.differentiable`
            gives. None takes the derivative that the box has itself (`Tesseract`, `Fmu`, `UmBridge`).
        rows: how many rows the component evaluates together, in front of all shapes; None for one row,
            without an axis for it.
        matrix_free: whether products take the place of the Jacobian.

    Raises:
        ConfigurationError: `box` is no black box, or there is no derivative.
        MissingExtraError: OpenMDAO is not installed.
    """
    om = import_extra("component", "openmdao.api", "openmdao")
    if not isinstance(box, BlackBoxFunction):
        raise ConfigurationError(
            f"component, box: expected a BlackBoxFunction, got {type(box).__name__}. "
            "Make it one with blackbox.adapters.from_callable."
        )
    check_complete(box)
    if derivative is None and getattr(box, "has_derivative", False):
        derivative = getattr(box, "reference", None)
    if not callable(derivative):
        raise ConfigurationError(
            f"component, derivative: expected a function that autograd goes through, got {derivative!r}, and "
            f"{box!r} has none of its own. Such as zo.differentiable(box, zo.CGE(mu=1e-3, central=True))."
        )
    count = 1 if rows is None else check_count("component", "rows", rows)
    leading = () if rows is None else (count,)
    work = _Work(box, derivative, count, om.AnalysisError)

    class BlackBoxComponent(om.ExplicitComponent):
        """A black box."""

        def setup(self) -> None:
            for spec in box.inputs:
                if spec.floating:
                    self.add_input(spec.name, shape=(*leading, *spec.shape) or (1,))
                else:
                    self.add_discrete_input(spec.name, np.zeros((*leading, *spec.shape), spec.dtype))
            for spec in box.outputs:
                if spec.floating:
                    self.add_output(spec.name, shape=(*leading, *spec.shape) or (1,))
                else:
                    self.add_discrete_output(spec.name, np.zeros((*leading, *spec.shape), spec.dtype))

        def setup_partials(self) -> None:
            for out in work.outputs:
                for into in work.inputs:
                    if matrix_free:
                        self.declare_partials(out.name, into.name)
                    else:
                        at = _places(count, out, into)
                        self.declare_partials(out.name, into.name, rows=at[0], cols=at[1])

        def compute(
            self,
            inputs: Values,
            outputs: Any,
            discrete_inputs: Values | None = None,
            discrete_outputs: Any = None,
        ) -> None:
            for spec, array in zip(box.outputs, work.values(inputs, discrete_inputs), strict=True):
                if spec.floating:
                    outputs[spec.name] = array.reshape((*leading, *spec.shape) or (1,))
                else:
                    assert discrete_outputs is not None
                    discrete_outputs[spec.name] = array.reshape((*leading, *spec.shape))

    class WithPartials(BlackBoxComponent):
        """A black box with a Jacobian."""

        def compute_partials(
            self,
            inputs: Values,
            partials: Any,
            discrete_inputs: Values | None = None,
        ) -> None:
            for (out, into), block in work.jacobian(inputs, discrete_inputs).items():
                partials[out, into] = block.ravel()

    class WithProducts(BlackBoxComponent):
        """A black box with products of its Jacobian."""

        def compute_jacvec_product(
            self,
            inputs: Values,
            d_inputs: Any,
            d_outputs: Any,
            mode: str,
            discrete_inputs: Values | None = None,
        ) -> None:
            specs = [spec for spec in work.inputs if spec.name in d_inputs]
            arriving = {spec.name: d_outputs[spec.name] for spec in work.outputs if spec.name in d_outputs}
            if mode == "rev":
                for name, product in work.product(inputs, discrete_inputs, specs, arriving).items():
                    d_inputs[name] += product.reshape(d_inputs[name].shape)
                return
            for (out, into), block in work.jacobian(inputs, discrete_inputs).items():
                if out in arriving and into in d_inputs:
                    change = block @ np.reshape(d_inputs[into], (count, -1, 1))
                    d_outputs[out] += change.reshape(d_outputs[out].shape)

    return WithProducts() if matrix_free else WithPartials()


class _Work:
    """Values and derivatives of a box for OpenMDAO's arrays.

    Args:
        box: the black box.
        derivative: the function that autograd goes through.
        count: the number of rows.
        error: the class of error that a failed row raises.
    """

    def __init__(
        self, box: BlackBoxFunction, derivative: Callable[..., Any], count: int, error: type[Exception]
    ) -> None:
        self.box, self.derivative, self.count, self.error = box, derivative, count, error
        self.inputs = [spec for spec in box.inputs if spec.differentiable]
        self.outputs = [spec for spec in box.outputs if spec.differentiable]

    def rows(self, inputs: Values, discrete: Values | None) -> list[np.ndarray]:
        """The box's inputs, `(count, *spec.shape)`."""
        arrays = [inputs[s.name] if s.floating else (discrete or {})[s.name] for s in self.box.inputs]
        return [
            self._numbers(spec, array).reshape(self.count, *spec.shape)
            for spec, array in zip(self.box.inputs, arrays, strict=True)
        ]

    def _numbers(self, spec: ArraySpec, array: Any) -> np.ndarray:
        """An array of OpenMDAO in the spec's dtype; complex steps and 1.7 for a whole number are refused."""
        if np.iscomplexobj(array) and not np.imag(array).any():  # a complex step elsewhere in the model
            array = np.real(array)
        try:
            return exactly(array, spec.dtype or "float64")
        except (TypeError, ValueError) as error:
            raise DtypeError(
                f"{self.box!r}, input {spec.name!r}: {error}. Give numbers that the box can take; instead of "
                "a complex step take finite differences."
            ) from None

    def values(self, inputs: Values, discrete: Values | None) -> list[np.ndarray]:
        """The box's outputs, `(count, *spec.shape)`."""
        try:
            answer = self.box(*self.rows(inputs, discrete))
        except RowFailedError as error:
            raise self.error(str(error)) from error
        arrays = list(answer) if isinstance(answer, tuple) else [answer]
        self._finite(arrays, "value")
        return arrays

    def product(
        self, inputs: Values, discrete: Values | None, wanted: list[ArraySpec], arriving: Values
    ) -> dict[str, np.ndarray]:
        """The gradients of the wanted inputs, of the outputs weighted by what arrives at them."""
        cotangents = {
            spec.name: np.reshape(arriving[spec.name], (self.count, *spec.shape))
            for spec in self.outputs
            if spec.name in arriving
        }
        return self._pull_back(self.rows(inputs, discrete), cotangents, wanted)

    def jacobian(self, inputs: Values, discrete: Values | None) -> dict[tuple[str, str], np.ndarray]:
        """`(count, numbers of the output, numbers of the input)` for each pair."""
        sizes = [math.prod(spec.shape) for spec in self.outputs]
        total = sum(sizes)
        repeated = [np.repeat(array, total, axis=0) for array in self.rows(inputs, discrete)]
        one = np.tile(np.eye(total), (self.count, 1))  # of each row all cotangents, one after another
        ends = np.cumsum([0, *sizes])
        cotangents = {
            spec.name: one[:, ends[at] : ends[at + 1]].reshape(-1, *spec.shape)
            for at, spec in enumerate(self.outputs)
        }
        products = self._pull_back(repeated, cotangents, self.inputs)
        blocks = {name: array.reshape(self.count, total, -1) for name, array in products.items()}
        return {
            (out.name, name): block[:, ends[at] : ends[at + 1]]
            for at, out in enumerate(self.outputs)
            for name, block in blocks.items()
        }

    def _pull_back(
        self, rows: list[np.ndarray], cotangents: dict[str, np.ndarray], wanted: list[ArraySpec]
    ) -> dict[str, np.ndarray]:
        names = [spec.name for spec in wanted]
        if not names or not cotangents:
            return {}
        tensors = [torch.from_numpy(array) for array in rows]
        moved = [t for spec, t in zip(self.box.inputs, tensors, strict=True) if spec.name in names]
        for tensor in moved:
            tensor.requires_grad_()
        try:
            with torch.enable_grad():
                before = getattr(self.derivative, "unanswered", 0)  # of `zo.differentiable`
                answer = self.derivative(*tensors)
                outputs: list[Tensor] = list(answer) if isinstance(answer, tuple) else [answer]
                self._finite([output.detach().numpy() for output in outputs], "derivative")
                pairs = [
                    (output, torch.from_numpy(cotangents[spec.name]).to(output))
                    for spec, output in zip(self.box.outputs, outputs, strict=True)
                    if spec.name in cotangents and output.requires_grad
                ]
                if not pairs:
                    raise ConfigurationError(
                        "component, derivative: expected outputs that autograd traces to the inputs, got "
                        "none. Compute them with torch, or give zo.differentiable(box, ...)."
                    )
                products = torch.autograd.grad(
                    [output for output, _ in pairs],
                    moved,
                    [cotangent for _, cotangent in pairs],
                    allow_unused=True,
                )
        except RowFailedError as error:
            raise self.error(str(error)) from error
        if getattr(self.derivative, "unanswered", 0) != before:
            raise self.error(
                f"{self.box!r}: expected an answer near each number of the inputs, but all rows that move "
                "one failed. See the box's ledger."
            )
        order = [spec.name for spec in self.box.inputs if spec.name in names]
        zeros = [torch.zeros_like(t) if g is None else g for t, g in zip(moved, products, strict=True)]
        return {name: gradient.double().numpy() for name, gradient in zip(order, zeros, strict=True)}

    def _finite(self, arrays: list[np.ndarray], what: str) -> None:
        """Refuse a failed row: of its derivative `zo` makes zeros."""
        if not all(np.isfinite(array).all() for array in arrays):
            raise self.error(
                f"{self.box!r}: expected a {what} of every row, got a row that failed. See the box's ledger."
            )


def _places(count: int, out: ArraySpec, into: ArraySpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of rows' blocks in the Jacobian: its rows and columns, as blocks are flattened."""
    numbers, across = math.prod(out.shape), math.prod(into.shape)
    row, at, column = np.indices((count, numbers, across))
    return (row * numbers + at).ravel(), (row * across + column).ravel()
