"""`Tesseract`: a Tesseract of tesseract-core as a black box whose specs are read from its schemas."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.adapters.derivative import with_derivative
from blackbox.adapters.tesseract import schema as tesseract_schema
from blackbox.adapters.tesseract.schema import Array, SchemaArray, at, mapped, put
from blackbox.checks import check_count, nearest
from blackbox.errors import ConfigurationError, NotDifferentiableError, RowFailedError
from blackbox.extras import import_extra
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.outside import exactly, plain
from blackbox.spec import check_specs
from blackbox.wrappers.identity import described

VJP = "vector_jacobian_product"


class Tesseract(BlackBoxFunction):
    """A Tesseract as a black box; needs the extra `tesseract`. A row is one `apply`.

        box = Tesseract("http://localhost:8000", failures="keep")
        box = Tesseract("my/tesseract_api.py", example={"mesh": mesh, "steps": 20}, inputs=["inlet.speed"])
        with tesseract_core.Tesseract.from_image("solver") as served:
            box = Tesseract(served)

    Inputs and outputs are the arrays of its schemas, however nested, named after their paths: `a.v` is the
    input `a_v`, `layers.[0].w` is `layers__0__w`. Arrays that the schema does not mark as differentiable have
    no derivative. A plain number that the schema requires and the example does not give is an input, too; all
    other numbers, texts and flags are the same for all rows: the example's, or the schema's defaults. Plain
    numbers among the outputs are outputs, texts are left out. Floats are converted to the schema's dtype, and
    the caller's precision comes back.

    An `apply` that raises, or gives no answer, is a failed row. Rows run one after another; a served
    Tesseract with several workers takes them side by side from `Parallel` and a thread pool.

    Where a Tesseract has the endpoint `vector_jacobian_product`, `reference` is the box with that derivative.

    Args:
        tesseract: an address, the path of a `tesseract_api.py`, whose code runs in this process, or a
            `tesseract_core.Tesseract`, which is to be served as long as the box is used. The first two can
            be sent to other processes.
        example: inputs as `apply` takes them, as many as are needed. They give the sizes that the schema
            leaves open, the lengths of its lists, the fields of a union or with a default that take part, and
            the values of fields that do not vary. Only the shape of an array among the inputs counts.
        inputs: the paths of the fields that vary by row, in the order of the box's inputs; None for all
            arrays that the schema requires or the example has.
        vectorized: True for a Tesseract whose arrays, in and out, all have an open first axis that is
            rows: one `apply` then takes all rows of a call.
        max_rows: the most rows of one `apply`, or of one product of `reference`, where `vectorized`; None
            for all.
        deterministic: False where equal inputs may give different outputs.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Raises:
        MissingExtraError: tesseract-core is not installed.
        ConfigurationError: there is no such Tesseract, a size or a value is missing, or a path is unknown.
    """

    def __init__(
        self,
        tesseract: Any,
        *,
        example: Mapping[str, Any] | None = None,
        inputs: Sequence[str] | None = None,
        vectorized: bool = False,
        max_rows: int | None = None,
        deterministic: bool = True,
        failures: Policy = "raise",
    ) -> None:
        """Read the schemas; where they leave outputs open, ask `abstract_eval`, or run the example once."""
        if max_rows is not None:
            check_count("Tesseract", "max_rows", max_rows)
        self._core = import_extra("Tesseract", "tesseract_core", "tesseract")
        self.source = tesseract if isinstance(tesseract, str | Path) else None
        self._tesseract = self._opened(tesseract)
        self.example = copy.deepcopy(dict(example or {}))
        self.vectorized, self.deterministic = vectorized, deterministic
        self.max_rows = max_rows if vectorized else 1
        self._chosen = None if inputs is None else tuple(inputs)
        self._identity: str | None = None  # of one that lives in this process nothing is known by a name
        if self.source is not None:
            content = hashlib.sha256(Path(self.source).read_bytes()).hexdigest() if self._is_file() else ""
            values = described("Tesseract, example", self.example, repr)  # repr alone cuts long arrays
            self._identity = f"{self.source} {content} {values} {vectorized}"
        schema = self._tesseract.openapi_schema["components"]["schemas"]
        self._into = self._input_fields(schema)
        self.inputs = tuple(field.spec(vectorized) for field in self._into)
        check_specs("Tesseract", "inputs", self.inputs)
        self._out = self._output_fields(schema)
        self.outputs = tuple(field.spec(vectorized) for field in self._out)
        check_specs("Tesseract", "outputs", self.outputs)
        super().__init__(failures=failures)

    @property
    def identity(self) -> str | None:
        """A cache's key for this box: address or file with its content, the example's values and settings."""
        return self._identity

    @identity.setter
    def identity(self, text: str) -> None:
        self._identity = text

    @property
    def has_derivative(self) -> bool:
        """True if it has the endpoint that `reference` needs."""
        return VJP in self._tesseract.available_endpoints

    def evaluate_rows(self, *arrays: Array) -> tuple[Array, ...]:
        """One `apply`, of all rows where `vectorized`, else of the only row."""
        result = self._ask("apply", self._payload(arrays if self.vectorized else [a[0] for a in arrays]))
        outputs = [exactly(at(result, field.keys), field.dtype) for field in self._out]
        return tuple(outputs) if self.vectorized else tuple(array[None] for array in outputs)

    def reference(self, *arrays: Any) -> Any:
        """The box's outputs, differentiable by the Tesseract's own derivative.

        For `reference` of a `tasks.Problem`, and for comparisons; its rows are not counted in the ledger.
        Fields that the schema does not mark as differentiable are constants to it.

        Raises:
            NotDifferentiableError: it has no endpoint `vector_jacobian_product`.
            RowFailedError: from backward, where that endpoint raised.
        """
        if not self.has_derivative:
            endpoints = ", ".join(self._tesseract.available_endpoints)
            raise NotDifferentiableError(
                f"{self!r}: expected the endpoint {VJP}, got {endpoints}. "
                "Train without its derivative: zo.TangentGradient, or the method tangents."
            )
        return with_derivative(self, self._pull_back, arrays)

    def _pull_back(
        self, inputs: list[Array], cotangents: dict[int, Array], wanted: list[int]
    ) -> dict[int, Array]:
        into = [self._into[place].path for place in wanted]
        fields = {self._out[place]: array for place, array in cotangents.items()}
        out = {field.path: np.asarray(array, field.dtype) for field, array in fields.items()}
        rows = range(len(inputs[0]))
        size = self.max_rows or len(rows)
        blocks = [slice(first, first + size) for first in rows[::size]] if self.vectorized else rows
        products: list[dict[str, Array]] = []
        for block in blocks:
            vectors = {path: np.asarray(array[block]) for path, array in out.items()}
            try:
                result = self._ask(VJP, self._payload([a[block] for a in inputs]), into, list(out), vectors)
            except (RuntimeError, TimeoutError) as error:
                raise RowFailedError(f"{self!r}, {VJP}: {error} See what the endpoint does.") from error
            products.append({path: plain(result[path]) for path in into})
        join = np.concatenate if self.vectorized else np.stack
        return {
            place: join([product[path] for product in products])
            for place, path in zip(wanted, into, strict=True)
        }

    def _ask(self, endpoint: str, *arguments: Any) -> dict[str, Any]:
        """An endpoint's answer; its error in one line if it gives none."""
        requests = import_extra("Tesseract", "requests", "tesseract")
        try:
            return getattr(self._tesseract, endpoint)(*arguments)
        except requests.Timeout as error:
            raise TimeoutError(f"{endpoint} gave no answer in time: {error}.") from None
        except Exception as error:
            raise RuntimeError(_said(error)[:1000]) from None

    def _payload(self, arrays: Sequence[Array]) -> dict[str, Any]:
        payload = copy.copy(self.example)
        for field, array in zip(self._into, arrays, strict=True):
            value = exactly(array, field.dtype)  # 300 would be 44 in a byte
            payload = put(payload, field.keys, value if field.is_array else value.item())
        return payload

    def _opened(self, tesseract: Any) -> Any:
        kind = self._core.Tesseract
        try:
            if isinstance(tesseract, kind):
                tesseract.openapi_schema  # noqa: B018 - it raises where nothing is served
                return tesseract
            if isinstance(tesseract, str) and tesseract.startswith(("http://", "https://")):
                served = kind.from_url(tesseract)
                served.openapi_schema  # noqa: B018
                return served
            if isinstance(tesseract, str | Path) and Path(tesseract).is_file():
                self.source = Path(tesseract).resolve()
                return kind.from_tesseract_api(self.source)
        except Exception as error:
            raise ConfigurationError(
                f"Tesseract, tesseract: expected one that can be asked, got {str(tesseract)!r} "
                f"({' '.join(str(error).split())[-300:]}). Serve it first, or mend its file."
            ) from error
        raise ConfigurationError(
            "Tesseract, tesseract: expected an address (http://...), the path of a tesseract_api.py or a "
            f"tesseract_core.Tesseract, got {tesseract!r}. An image goes through Tesseract.from_image(...)."
        )

    def _is_file(self) -> bool:
        return isinstance(self.source, Path)

    def _input_fields(self, schemas: Mapping[str, Any]) -> list[SchemaArray]:
        root = schemas["ApplyInputSchema"]["properties"]["inputs"]
        paths = self._chosen or ()
        fields = list(tesseract_schema.input_fields(root, schemas, self.example, paths))
        for field in fields:
            if field.is_array and field.in_example:  # lists that stand for arrays
                self.example = put(self.example, field.keys, np.asarray(at(self.example, field.keys)))
        by_path = {field.path: field for field in fields}
        for path in paths:
            if path not in by_path:
                raise ConfigurationError(
                    f"Tesseract, inputs: expected the paths of numbers, got {path!r}. "
                    f"{nearest(path, list(by_path))}"
                )
        if self._chosen is None:
            paths = [path for path, field in by_path.items() if field.is_array or not field.in_example]
        for path, field in by_path.items():
            if path not in paths and not field.in_example:
                raise ConfigurationError(
                    f"Tesseract, inputs: expected {path!r} among them, or a value in the example, "
                    "got neither. Add one."
                )
        for path in paths:
            by_path[path].check("input", self.vectorized, "Give example={...} with an array of that shape.")
        return [by_path[path] for path in paths]

    def _output_fields(self, schemas: Mapping[str, Any]) -> list[SchemaArray]:
        root = schemas["ApplyOutputSchema"]
        fields = tesseract_schema.output_fields(root, schemas)
        if fields is None or any(field.is_open(self.vectorized) for field in fields):
            fields = tesseract_schema.output_fields(root, schemas, self._example_outputs()) or []
        for field in fields:
            field.check("output", self.vectorized, "Give example={...} that it can run.")
        return fields

    def _example_outputs(self) -> Mapping[str, Any]:
        """Outputs of the right shapes: what `abstract_eval` says, or one run of the example."""
        inputs = [at(self.example, field.keys, field.zeros()) for field in self._into]
        try:
            payload = self._payload(inputs)
            if "abstract_eval" in self._tesseract.available_endpoints:
                return mapped(self._ask("abstract_eval", tesseract_schema.abstract(payload)))
            return self._ask("apply", payload)
        except (RuntimeError, TimeoutError, ValueError) as error:
            raise ConfigurationError(
                "Tesseract, outputs: expected sizes in its schema, or a run of the example, got "
                f"an error: {error} Give example={{...}}, whole inputs that it can run."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where it is and settings; it is opened anew."""
        if self.source is None:
            raise ConfigurationError(
                f"{self!r}: expected an address or a file to send to another process, got a Tesseract that "
                "lives in this one. Make the box from its address, Tesseract('http://...')."
            )
        names = ("example", "vectorized", "deterministic", "failures")
        settings = {name: getattr(self, name) for name in names}
        settings |= {"inputs": self._chosen, "max_rows": self.max_rows if self.vectorized else None}
        return _rebuild, (type(self), self.source, settings)

    def __repr__(self) -> str:
        """Show its place; else its title."""
        title = self._tesseract.openapi_schema.get("info", {}).get("title", "")
        return f"Tesseract({str(self.source or title)!r})"


def _rebuild(kind: type[Tesseract], source: str | Path, settings: dict[str, Any]) -> Tesseract:
    return kind(source, **settings)


def _said(error: Exception) -> str:
    """Return the message of an endpoint's error, in one line: the end, if a traceback comes with it."""
    text = str(error).rpartition("Error running Tesseract API ")[2] or type(error).__name__
    lines = text.replace("(see above for full traceback)", "").rstrip().splitlines()
    if any("Traceback" in line for line in lines):
        heads = [at for at, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
        lines = lines[heads[-1] if heads else -1 :]
    return " ".join(" ".join(lines).split())
