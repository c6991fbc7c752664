"""`blackbox tesseract`: a black box as a Tesseract, three files for tesseract-core."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import numpy as np
from jinja2 import Template

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tasks.errors import ConfigurationError
from tasks.folder.machine import PACKAGE
from zo.box_gradient import DifferentiableBox

TEMPLATE = Path(__file__).parent / "templates" / "tesseract_api.txt"
Derivative = Literal["differences", "values"]
API, CONFIG, REQUIREMENTS = "tesseract_api.py", "tesseract_config.yaml", "tesseract_requirements.txt"


def write(
    box: BlackBoxFunction,
    target: str,
    arguments: Mapping[str, Any],
    folder: Path,
    *,
    derivative: Derivative = "differences",
    vectorized: bool = False,
    mu: float = 1e-3,
) -> str:
    """Write the files of a Tesseract.

    Args:
        box: the box of the target. Its specs become the schemas; a dtype of None becomes float64.
        target: the target, as `blackbox.registry.make` takes it. A file is copied into the folder.
        arguments: the arguments that make the box.
        folder: the folder; made if missing.
        derivative: "differences"; or a tangent learned from the "values" of the solves alone.
        vectorized: whether all arrays have an open first axis, which is rows.
        mu: the mu of the differences, in the scales of the inputs.

    Returns:
        Sentences that list the files, and the next commands.

    Raises:
        ConfigurationError: the box has no differentiable input or output, a name that a schema cannot have,
            or a file is there already; nothing is written.
    """
    zo.differentiable(box, zo.CGE(mu=mu))  # refuses what has no derivative
    for spec in (*box.inputs, *box.outputs):
        if spec.name.startswith(("_", "model_")):
            raise ConfigurationError(
                f"{target}, {spec.name!r}: expected a name that pydantic has not itself, got one that starts "
                "with an underscore or model_. Rename it in the spec."
            )
    code = Path(target.rpartition(":")[0]) if not target.endswith(".py") else Path(target)
    target_text = repr(target)
    if code.suffix == ".py":
        target_text = f"str(Path(__file__).parent / {target.replace(str(code), code.name, 1)!r})"
    files = [folder / name for name in (API, CONFIG, REQUIREMENTS)]
    files += [folder / code.name] if code.suffix == ".py" else []
    for path in files:
        if path.exists() and path.resolve() != code.resolve():
            raise ConfigurationError(f"{path}: expected no such file, got one. Name another folder.")
    text = Template(TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True).render(
        target=target,
        made=target_text,
        arguments=repr(dict(arguments)),
        derivative=derivative,
        vectorized=vectorized,
        mu=repr(mu),
        deterministic=box.deterministic,
        dtypes=sorted({_class(spec) for spec in (*box.inputs, *box.outputs)}),
        scales={spec.name: _scale(spec) for spec in box.inputs if spec.differentiable},
        inputs={spec.name: _kind(spec, vectorized) for spec in box.inputs},
        outputs={spec.name: _kind(spec, vectorized) for spec in box.outputs},
        first=box.inputs[0].name,
        shapes={spec.name: (spec.shape, spec.dtype or "float64") for spec in box.outputs},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / API).write_text(text, encoding="utf-8")
    (folder / CONFIG).write_text(_config(box, code), encoding="utf-8")
    (folder / REQUIREMENTS).write_text(f"{PACKAGE}  # or where it is: a wheel, a folder\n", encoding="utf-8")
    if code.suffix == ".py" and code.resolve() != (folder / code.name).resolve():
        shutil.copy(code, folder)
    return _next(box, folder, files, vectorized, mu)


def solver_of(box: BlackBoxFunction, derivative: Derivative, mu: float) -> DifferentiableBox:
    """Autograd around a box, by the derivative that the file of a Tesseract writes out."""
    if derivative == "values":
        return zo.differentiable(box, None, tangent=zo.tangents.MLPTangent())
    return zo.differentiable(box, zo.CGE(mu=mu, central=True))


def _kind(spec: ArraySpec, vectorized: bool) -> str:
    """The type of a schema's field."""
    shape = repr((None, *spec.shape) if vectorized else spec.shape)
    array = f"Array[{shape}, {_class(spec)}]"
    return f"Differentiable[{array}]" if spec.differentiable else array


def _class(spec: ArraySpec) -> str:
    """The runtime's name of a dtype."""
    return (spec.dtype or "float64").capitalize().replace("Uint", "UInt")


def _scales(spec: ArraySpec) -> np.ndarray:
    """The scale of each of an array's numbers, in its shape."""
    size = math.prod(spec.shape)
    return np.broadcast_to(1.0 if spec.scale is None else spec.scale, size).reshape(spec.shape)


def _scale(spec: ArraySpec) -> str:
    """The scale of an input's numbers, one where all have the same."""
    scales = _scales(spec)
    return repr(scales.flat[0].item() if len(np.unique(scales)) == 1 else scales.tolist())


def _config(box: BlackBoxFunction, code: Path) -> str:
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(box).__name__).lower()
    about = " ".join((type(box).__doc__ or "").split("\n\n")[0].split())
    lines = [
        f"name: {json.dumps(name)}",
        'version: "0.1.0"',
        f"description: {json.dumps(about)}",
        "build_config:",
        '  target_platform: "native"',
    ]
    if code.suffix == ".py":  # what else it imports or reads goes here, too
        lines += ["  package_data:", f"    - [{json.dumps(code.name)}, {json.dumps(code.name)}]"]
    return "\n".join(lines) + "\n"


def _next(box: BlackBoxFunction, folder: Path, files: Sequence[Path], vectorized: bool, mu: float) -> str:
    """List the written files, and the commands that come next, for inputs as large as their scales."""

    def example(spec: ArraySpec) -> Any:
        nested = (_scales(spec) if spec.floating else np.ones(spec.shape, spec.dtype)).tolist()
        return [nested] if vectorized else nested

    small = sum(math.prod(spec.shape) for spec in box.inputs) <= 20
    payload = json.dumps({"inputs": {spec.name: example(spec) for spec in box.inputs}})
    steps = [
        f" --eps-for {spec.name}={mu * _scales(spec).min():g}"
        for spec in box.inputs
        if spec.scale is not None and spec.differentiable
    ]
    here = f"TESSERACT_API_PATH={quote(str(folder / API))} tesseract-runtime"
    return (
        f"Wrote {', '.join(quote(str(path)) for path in files)}. Next:\n"
        f"  {here} check-gradients {quote(payload) if small else '@inputs.json'}{''.join(steps)}\n"
        f"  {here} serve --port 8000\n"
        f"  tesseract build {quote(str(folder))}"
    )
