"""`OnnxModel`: an ONNX file run by onnxruntime as a black box whose specs are read from the file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.adapters.rebuilt import rebuilt
from blackbox.checks import check_count
from blackbox.errors import ConfigurationError
from blackbox.extras import import_extra
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec, identifier

# ONNX's element type -> the dtype of the array handed over, and of the spec; any float is taken for a float
_TYPES = {
    "tensor(float16)": ("float16", None),
    "tensor(float)": ("float32", None),
    "tensor(double)": ("float64", None),
    "tensor(int32)": ("int32", "int32"),
    "tensor(int64)": ("int64", "int64"),
    "tensor(uint8)": ("uint8", "uint8"),
    "tensor(bool)": ("bool", "bool"),
}
# an entry of `external_data` in a protobuf file: the key "location", then the length of the path, then it
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])")


class OnnxModel(BlackBoxFunction):
    """A model in ONNX format; needs the extra `onnx`.

    Names, shapes and dtypes of inputs and outputs come from the file. In a name that is not a Python
    identifier, all other characters are replaced by underscores. The first axis of each array must be the
    rows: free (then they run together), or fixed at 1 (then one by one). Floats are converted to the model's
    dtype, and back to the caller's precision.

    Args:
        path: the ONNX file. Files with external weights must be where it expects them.
        sizes: the size of each named axis that the file leaves free, except the first axis, such as
            `{"height": 64, "width": 64}`.
        providers: onnxruntime's execution providers, the preferred one first.
        max_rows: the most rows that run at once, which limits memory; None for all rows of a call.
        threads: the threads of one operator; None leaves that to onnxruntime. Use 1 under `Parallel`.
        deterministic: False if the model draws random numbers.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Attributes:
        checksum: SHA-256 of the file and its external weights. A copy in another process refuses to load a
            file that has changed.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ConfigurationError: the file does not exist, is not an ONNX file, or has axes without a size; a
            provider is not available; `max_rows` or `threads` is below 1.
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
                f"OnnxModel, path: expected an ONNX file, got {named!r}, which does not exist."
            )
        self.path, self.sizes, self.providers = Path(path).resolve(), dict(sizes or {}), tuple(providers)
        self.max_rows, self.threads, self.deterministic = max_rows, threads, deterministic
        self.checksum = checksum_of(self.path)
        self._session = self._load()
        self._into = [OnnxArray.read(repr(self), "input", item) for item in self._session.get_inputs()]
        self._out = [OnnxArray.read(repr(self), "output", item) for item in self._session.get_outputs()]
        self._check_inputs()
        if any(item.rows == 1 for item in self._into):  # the file takes one row at a time
            self.max_rows = 1
        self.inputs = tuple(item.spec() for item in self._into)
        self.outputs = self._output_specs()
        super().__init__(failures=failures)

    def evaluate_rows(self, *arrays: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """All rows: arrays `(rows, *shape)` in, `(rows, *shape)` for each output out."""
        feed = {
            item.name: np.ascontiguousarray(array, item.dtype)
            for item, array in zip(self._into, arrays, strict=True)
        }
        return tuple(self._session.run(None, feed))

    def _load(self) -> Any:
        runtime = import_extra("OnnxModel", "onnxruntime", "onnx")
        available = runtime.get_available_providers()
        for provider in self.providers:
            if provider not in available:
                raise ConfigurationError(
                    f"OnnxModel, providers: expected some of {', '.join(available)}, got {provider!r}. "
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

    def _check_inputs(self) -> None:
        for item, argument in zip(self._into, self._session.get_inputs(), strict=True):
            where = f"{self!r}, input {item.name!r}"
            if item.rows not in (None, 1):
                raise ConfigurationError(
                    f"{where}: expected a free first axis for rows, or one of size 1, got {item.rows}. "
                    "Export the model with a dynamic batch axis."
                )
            if None in item.shape:
                free = [size for size in argument.shape[1:] if not isinstance(size, int)]
                raise ConfigurationError(
                    f"{where}: expected a size for each axis but the first, got {argument.shape}. "
                    f"Give sizes={{{', '.join(f'{str(name)!r}: ...' for name in free)}}}."
                )

    def _output_specs(self) -> tuple[ArraySpec, ...]:
        if all(None not in item.shape for item in self._out):
            return tuple(item.spec() for item in self._out)
        zeros = [
            np.zeros((1, *spec.shape), item.dtype) for item, spec in zip(self._into, self.inputs, strict=True)
        ]
        shapes = [output.shape[1:] for output in self.evaluate_rows(*zeros)]
        return tuple(
            ArraySpec(item.spec().name, shape, item.spec_dtype)
            for item, shape in zip(self._out, shapes, strict=True)
        )

    @property
    def identity(self) -> str:
        """A cache's key for this box: the file's content, not its location."""
        return f"sha256 {self.checksum}, sizes {sorted(self.sizes.items())}, on {', '.join(self.providers)}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle path and settings; the session is loaded anew, from a file with the same checksum."""
        settings = {
            name: getattr(self, name)
            for name in ("sizes", "providers", "max_rows", "threads", "deterministic", "failures")
        }
        return rebuilt, (type(self), self.path, settings, self.checksum)

    def __repr__(self) -> str:
        """The file, with the beginning of its checksum."""
        return f"OnnxModel({self.path.name!r}, sha256={self.checksum[:12]})"


@dataclass(frozen=True)
class OnnxArray:
    """One input or output, as the file describes it.

    Attributes:
        name: its name in the file; the spec's name is a Python identifier made of it.
        dtype: the dtype of the array that onnxruntime takes or gives.
        rows: the size of the first axis; None where it is free.
        shape: the sizes of the other axes; None for each that the file leaves open.
        spec_dtype: the dtype of the spec; None for any float.
    """

    name: str
    dtype: np.dtype[Any]
    rows: int | None
    shape: tuple[int | None, ...]
    spec_dtype: str | None

    @classmethod
    def read(cls, owner: str, kind: str, argument: Any) -> OnnxArray:
        """One of a session's `get_inputs()` or `get_outputs()`.

        Args:
            owner: the black box, as messages name it.
            kind: "input" or "output".
            argument: an object with `name`, `type` and `shape`.

        Raises:
            ConfigurationError: the array holds something other than numbers, or has no axis for rows.
        """
        where = f"{owner}, {kind} {argument.name!r}"
        if argument.type not in _TYPES:
            raise ConfigurationError(
                f"{where}: expected one of {', '.join(_TYPES)}, got {argument.type}. "
                "Export the model with arrays of numbers alone."
            )
        if not argument.shape:
            raise ConfigurationError(
                f"{where}: expected an array with rows first, got a single number. "
                "Export the model with a batch axis on each input and output."
            )
        dtype, spec_dtype = _TYPES[argument.type]
        rows, *shape = (size if isinstance(size, int) and size >= 0 else None for size in argument.shape)
        return cls(argument.name, np.dtype(dtype), rows, tuple(shape), spec_dtype)

    def spec(self) -> ArraySpec:
        """The spec, where all axes are known."""
        shape = tuple(n for n in self.shape if n is not None)
        return ArraySpec(identifier(self.name), shape, self.spec_dtype)


def checksum_of(path: Path) -> str:
    """SHA-256 of the file and of the files with external weights that it names, in hexadecimal."""
    content = path.read_bytes()
    total = hashlib.sha256(content)
    locations = {_text_after(content, match) for match in _LOCATION.finditer(content)}
    for location in sorted(locations):
        weights = path.parent / location.decode(errors="surrogateescape")
        if weights.is_file():
            with weights.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _text_after(content: bytes, match: re.Match[bytes]) -> bytes:
    length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(match[1]))
    text = content[match.end() : match.end() + min(length, 4096)]
    return text if b"\0" not in text else b""
