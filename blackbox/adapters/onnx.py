"""`OnnxModel`: an ONNX file run by onnxruntime as a black box whose specs are read from the file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.adapters import onnx_specs
from blackbox.adapters.onnx_specs import OnnxArray
from blackbox.checks import check_count
from blackbox.errors import ConfigurationError, OutputError
from blackbox.extras import import_extra
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec


class OnnxModel(BlackBoxFunction):
    """A model in ONNX format; needs the extra `onnx`.

    Names, shapes and dtypes of inputs and outputs come from the file; a name that is no Python identifier
    has its other characters replaced by underscores. The first axis of each must be the rows': free
    (then they run together), or fixed at 1 (then one by one). Floats are converted to what the model takes,
    and the caller's precision comes back.

    Args:
        path: the file. Files with external weights lie where it says, beside it.
        sizes: the size of each named axis other than the first that the file leaves free, such as
            `{"height": 64, "width": 64}`.
        providers: onnxruntime's execution providers, the preferred one first.
        max_rows: rows run at once; more are run in turn, which bounds the memory. None for all.
        threads: threads of one operator; None leaves that to onnxruntime. Take 1 under `Parallel`.
        deterministic: False where the model draws random numbers.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Attributes:
        checksum: SHA-256 of the file and its external weights; a copy in another process refuses to load
            a file that has changed.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ConfigurationError: the file is not there, no ONNX, or has axes without a size; a provider is not
            there; `max_rows` or `threads` is below 1.
        OutputError: in a call, an output has no rows first.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sizes: Mapping[str, int] | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        max_rows: int | None = None,
        threads: int | None = None,
        deterministic: bool = True,
        failures: Policy = "raise",
    ) -> None:
        """Load the file, read its specs and, for outputs whose shape it leaves open, run a row of zeros."""
        for name, value in (("max_rows", max_rows), ("threads", threads)):
            if value is not None:
                check_count("OnnxModel", name, value)
        if not isinstance(path, str | os.PathLike) or not Path(path).is_file():
            named = str(path) if isinstance(path, os.PathLike) else path
            raise ConfigurationError(
                f"OnnxModel, path: expected an ONNX file, got {named!r}, which is not there."
            )
        self.path, self.sizes, self.providers = Path(path).resolve(), dict(sizes or {}), tuple(providers)
        self.max_rows, self.threads, self.deterministic = max_rows, threads, deterministic
        self.checksum = onnx_specs.checksum(self.path)
        self._session = self._load()
        self._into = [onnx_specs.read(repr(self), "input", item) for item in self._session.get_inputs()]
        self._out = [onnx_specs.read(repr(self), "output", item) for item in self._session.get_outputs()]
        self._one_by_one = self._rows_are_one()
        self.inputs = tuple(array.spec() for array in self._with_sizes())
        self.outputs = self._output_specs()
        super().__init__(failures=failures)

    def evaluate_rows(self, *arrays: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """All rows: arrays `(rows, *shape)` in, `(rows, *shape)` for each output out."""
        count = len(arrays[0])
        size = 1 if self._one_by_one else self.max_rows or count
        parts = [self._run([a[first : first + size] for a in arrays]) for first in range(0, count, size)]
        return tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))

    def _run(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        feed = {
            item.name: np.ascontiguousarray(array, item.dtype)
            for item, array in zip(self._into, arrays, strict=True)
        }
        outputs = self._session.run(None, feed)
        for item, output in zip(self._out, outputs, strict=True):
            if output.shape[:1] != (len(arrays[0]),):
                raise OutputError(
                    f"{self!r}, output {item.name!r}: expected {len(arrays[0])} rows first, got shape "
                    f"{output.shape}. Export the model with the batch axis first."
                )
        return outputs

    def _load(self) -> Any:  # noqa: ANN401 (onnxruntime has no types)
        runtime = import_extra("OnnxModel", "onnxruntime", "onnx")
        there = runtime.get_available_providers()
        for provider in self.providers:
            if provider not in there:
                raise ConfigurationError(
                    f"OnnxModel, providers: expected some of {', '.join(there)}, got {provider!r}. "
                    "Take one of these, or install the onnxruntime that has it."
                )
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors; the default also prints warnings about the graph
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        for name, size in self.sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        try:
            session = runtime.InferenceSession(str(self.path), options, providers=list(self.providers))
        except Exception as error:
            raise ConfigurationError(
                f"OnnxModel, path: expected a model that onnxruntime {runtime.__version__} can run, got "
                f"{str(self.path)!r} ({' '.join(str(error).split())}). Export it anew, or update onnxruntime."
            ) from error
        # onnxruntime falls back to the CPU without an error when a provider does not start
        if session.get_providers()[: len(self.providers)] != list(self.providers):
            raise ConfigurationError(
                f"OnnxModel, providers: expected {', '.join(self.providers)}, got "
                f"{', '.join(session.get_providers())}: the first did not start. See what it printed, or "
                "take CPUExecutionProvider."
            )
        return session

    def _rows_are_one(self) -> bool:
        """Whether the file takes one row at a time; refused where it takes another fixed number."""
        for item in self._into:
            if item.rows not in (None, 1):
                raise ConfigurationError(
                    f"{self!r}, input {item.name!r}: expected a free first axis for rows, or one of size 1, "
                    f"got {item.rows}. Export the model with a dynamic batch axis."
                )
        return any(item.rows == 1 for item in self._into)

    def _with_sizes(self) -> list[OnnxArray]:
        for item, argument in zip(self._into, self._session.get_inputs(), strict=True):
            if None in item.shape:
                free = [size for size in argument.shape[1:] if not isinstance(size, int)]
                raise ConfigurationError(
                    f"{self!r}, input {item.name!r}: expected a size for each axis but the first, got "
                    f"{argument.shape}. Give sizes={{{', '.join(f'{str(name)!r}: ...' for name in free)}}}."
                )
        return self._into

    def _output_specs(self) -> tuple[ArraySpec, ...]:
        if all(None not in item.shape for item in self._out):
            return tuple(item.spec() for item in self._out)
        zeros = [
            np.zeros((1, *spec.shape), item.dtype) for item, spec in zip(self._into, self.inputs, strict=True)
        ]
        shapes = [output.shape[1:] for output in self._run(zeros)]
        return tuple(
            ArraySpec(item.spec().name, shape, item.spec_dtype)
            for item, shape in zip(self._out, shapes, strict=True)
        )

    @property
    def identity(self) -> str:
        """What a cache knows this box by: the file's content, not its place."""
        return f"sha256 {self.checksum}, sizes {sorted(self.sizes.items())}, on {', '.join(self.providers)}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle path and settings; the session is loaded anew, from a file with the same checksum."""
        settings = {
            name: getattr(self, name)
            for name in ("sizes", "providers", "max_rows", "threads", "deterministic", "failures")
        }
        return _rebuild, (type(self), self.path, settings, self.checksum)

    def __repr__(self) -> str:
        """The file, with the beginning of its checksum."""
        return f"OnnxModel({self.path.name!r}, sha256={self.checksum[:12]})"


def _rebuild(kind: type[OnnxModel], path: Path, settings: dict[str, Any], checksum: str) -> OnnxModel:
    box = kind(path, **settings)
    if box.checksum != checksum:
        raise ConfigurationError(
            f"{box!r}: expected the file that the box was made from, with checksum {checksum[:12]}. It has "
            "changed since: make the box anew."
        )
    return box
