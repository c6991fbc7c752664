"""A Tesseract as people write them: nested schemas, settings with defaults, a derivative of its own."""

from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float32, Float64, Int32, ShapeDType


class Wall(BaseModel):
    thickness: Differentiable[Array[(2,), Float64]]
    conductivity: Differentiable[Float32]


class InputSchema(BaseModel):
    wall: Wall
    loads: Differentiable[Array[(None, 3), Float64]]
    count: Int32
    ambient: float
    label: str = "heater"
    exponent: float = 2.0
    spare: Array[(2,), Float64] | None = None


class OutputSchema(BaseModel):
    field: Differentiable[Array[(None, 3), Float64]]
    total: Differentiable[Float64]
    iterations: int
    note: str


def heat(inputs: InputSchema) -> tuple[Any, Any]:
    """The field and its sum."""
    wall = inputs.wall
    field = (
        wall.conductivity * np.asarray(inputs.loads) ** inputs.exponent / wall.thickness.sum()
        + inputs.ambient
    )
    return field, field.sum() * inputs.count


def apply(inputs: InputSchema) -> OutputSchema:
    if inputs.wall.conductivity < 0:
        raise ValueError("conductivity is negative")
    field, total = heat(inputs)
    return OutputSchema(field=field, total=total, iterations=len(field), note=inputs.label)


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    shape = abstract_inputs.loads.shape
    return {
        "field": ShapeDType(shape=shape, dtype="float64"),
        "total": ShapeDType(shape=(), dtype="float64"),
        "iterations": shape[0],
        "note": "",
    }


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    arriving = np.zeros(inputs.loads.shape)
    if "field" in vjp_outputs:
        arriving = arriving + cotangent_vector["field"]
    if "total" in vjp_outputs:
        arriving = arriving + inputs.count * cotangent_vector["total"]
    rise, thickness = heat(inputs)[0] - inputs.ambient, inputs.wall.thickness.sum()
    found = {
        "wall.thickness": -np.full(2, (arriving * rise).sum() / thickness),
        "wall.conductivity": np.float32((arriving * rise).sum() / inputs.wall.conductivity),
        "loads": arriving * rise * inputs.exponent / inputs.loads,
    }
    return {path: found[path] for path in vjp_inputs}
