"""A Tesseract whose first axis is rows, with no endpoint but `apply`; lists and dicts of any length."""

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64


class InputSchema(BaseModel):
    x: Differentiable[Array[(None, 2), Float64]]
    layers: list[Array[(None,), Float64]] = []
    named: dict[str, Float64] = {}


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]
    parts: list[Array[(None,), Float64]]


def apply(inputs: InputSchema) -> OutputSchema:
    x = np.asarray(inputs.x)
    if (x[:, 0] > 100).any():
        raise ValueError("x is too large")
    y = np.sin(x[:, 0]) + 0.5 * x[:, 1] + sum(np.sum(layer) for layer in inputs.layers)
    return OutputSchema(y=y + sum(inputs.named.values()), parts=[x[:, 0], x[:, 1]])
