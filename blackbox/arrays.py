"""NumPy arrays or torch tensors in, checked rows for the box, the same kind out again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]

from blackbox.checks import nearest
from blackbox.errors import BoundsWarning, CountError, DtypeError, ShapeError
from blackbox.notices import warn
from blackbox.outside import plain, unit_of
from blackbox.spec import DTYPES, ArraySpec
from blackbox.words import counted

_is_exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.6 has none


@dataclass(frozen=True)
class RowArrays:
    """The inputs of one call as rows, and what is needed to give outputs back as the inputs came.

    Attributes:
        inputs: one detached tensor `(rows, *spec.shape)` per input; may share the caller's memory.
        leading: the caller's leading axes.
        numpy: whether the caller gave NumPy arrays.
        dtype: the float dtype for outputs whose spec leaves it open.
    """

    inputs: tuple[Tensor, ...]
    leading: tuple[int, ...]
    numpy: bool
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.inputs[0])

    @property
    def device(self) -> torch.device:
        """The device of the caller's arrays."""
        return self.inputs[0].device

    def give_back(self, outputs: tuple[Tensor, ...]) -> Any:
        """Outputs with the caller's leading axes, kind and device; one output is not in a tuple."""
        shaped = [out.reshape((*self.leading, *out.shape[1:])) for out in outputs]
        arrays = [out.numpy() for out in shaped] if self.numpy else shaped
        return arrays[0] if len(arrays) == 1 else tuple(arrays)


def in_order(
    owner: str, specs: tuple[ArraySpec, ...], arrays: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """All arrays of a call in the order of the input specs, where some came by name.

    Args:
        owner: the box's name, for messages.
        specs: the input specs.
        arrays: the arrays given by position, which are the first ones.
        named: the other arrays, by the names of their specs.

    Raises:
        CountError: a name is no input's, or an input came twice or not at all.
    """
    names = [spec.name for spec in specs]
    came_first, further_names = names[: len(arrays)], names[len(arrays) :]
    for name in named:
        if name not in names:
            raise CountError(
                f"{owner}: expected inputs named {', '.join(names)}, got {name!r}. {nearest(name, names)}"
            )
        if name in came_first:
            raise CountError(
                f"{owner}, input {name!r}: expected it once, got it as array {names.index(name) + 1} and by "
                "name. Leave one of them out."
            )
    missing = [name for name in further_names if name not in named]
    if missing:
        raise CountError(
            f"{owner}: expected {counted(len(names), 'array')} ({', '.join(names)}), got none for "
            f"{', '.join(missing)}. Give {missing[0]}=..."
        )
    return (*arrays, *(named[name] for name in further_names))


def to_rows(owner: str, specs: tuple[ArraySpec, ...], arrays: tuple[object, ...]) -> RowArrays:
    """Check the arrays of a call against the input specs and flatten their leading axes to rows.

    Args:
        owner: the box's name, for messages.
        specs: the input specs.
        arrays: the caller's arrays.

    Raises:
        CountError, DtypeError, ShapeError: the message names the input, the expectation and the array.
    """
    if len(arrays) != len(specs):
        expected = ", ".join(spec.name for spec in specs)
        raise CountError(f"{owner}: expected {counted(len(specs), 'array')} ({expected}), got {len(arrays)}.")
    numpy = _all_numpy(owner, specs, arrays)
    tensors = [_input_tensor(owner, spec, array, numpy) for spec, array in zip(specs, arrays, strict=True)]
    leading = _leading_axes(owner, specs[0], tensors[0])
    for spec, tensor in zip(specs, tensors, strict=True):
        where = f"{owner}, input {spec.name!r}"
        if tensor.device != tensors[0].device:
            raise DtypeError(
                f"{where}: expected device {tensors[0].device} as for {specs[0].name!r}, "
                f"got {tensor.device}. Move one of them with .to(device)."
            )
        axes = _leading_axes(owner, spec, tensor)
        if axes != leading:
            raise ShapeError(
                f"{where}: expected leading axes {leading} as for {specs[0].name!r}, got {axes}. "
                "Expand the smaller one; leading axes are not broadcast."
            )
    rows = math.prod(leading)
    floats = [t for spec, t in zip(specs, tensors, strict=True) if spec.differentiable] or [
        t for t in tensors if t.is_floating_point()
    ]
    dtype = torch.float32 if not floats else floats[0].dtype
    for tensor in floats[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    flat = tuple(t.reshape(rows, *spec.shape) for spec, t in zip(specs, tensors, strict=True))
    return RowArrays(flat, leading, numpy, dtype)


def as_tensor(array: object) -> Tensor:
    """A detached tensor of the array's numbers, sharing its memory where torch can.

    Raises:
        TypeError: it does not hold numbers that torch knows, has a unit, or masks some that cannot be NaN.
    """
    if isinstance(array, Tensor):
        return array.detach().resolve_neg()  # .numpy() refuses a lazily negated view
    array = plain(array)
    if any(stride < 0 for stride in array.strides):  # of a single row NumPy calls these contiguous, too
        array = array.copy()
    # torch shares plain memory only: native bytes, whole and positive strides, writable.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "A", "W"]))


def failed_outputs(
    specs: tuple[ArraySpec, ...], inputs: tuple[Tensor, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """Outputs `(rows, *spec.shape)` of rows that all failed: NaN in floats, zero elsewhere.

    Args:
        specs: the output specs.
        inputs: the rows' inputs; they give count and device.
        dtype: the dtype for specs that leave it open.
    """
    return tuple(
        torch.full(
            (len(inputs[0]), *spec.shape),
            float("nan") if spec.floating else 0,
            dtype=spec.torch_dtype or dtype,
            device=inputs[0].device,
        )
        for spec in specs
    )


def _largest(tensor: Tensor) -> Tensor:
    """The largest magnitude in a tensor, NaN where it has one: it looks at all for a twentieth of `isfinite`.

    A sum would cost as much, but it rounds, and a check that measures rounding would see it: a box that
    others wrap is looked at once more.
    """
    if not tensor.numel():
        return tensor.new_zeros(())
    low, high = tensor.aminmax()
    return torch.maximum(high, -low)


def finite_rows(tensors: tuple[Tensor, ...]) -> Tensor:
    """Say which rows hold nothing but finite numbers: `(rows,)` of bool, on the CPU."""
    ok = torch.ones(len(tensors[0]), dtype=torch.bool)
    for tensor in tensors:
        if tensor.is_floating_point() and not math.isfinite(_largest(tensor)):
            flat = tensor.reshape(len(tensor), math.prod(tensor.shape[1:]))
            finite = torch.isfinite(flat.sum(dim=1))
            doubtful = torch.nonzero(~finite).flatten()
            if len(doubtful):
                finite[doubtful] = torch.isfinite(flat[doubtful]).all(dim=1)
            ok &= finite.cpu()
    return ok


APART, BESIDE = 100.0, 10.0
MOST, FEWEST = 1024, 8
FAR = 10.0  # widths beyond its bounds, where a number seems to be in other units


def warn_of_other_units(owner: str, specs: tuple[ArraySpec, ...], inputs: tuple[Tensor, ...]) -> None:
    """Warn of numbers that lie outside of their spec's bounds by more than ten times their distance."""
    for spec, array in zip(specs, inputs, strict=True):
        low, high = spec.ends
        if not math.isfinite(high - low) or not array.numel():
            continue
        least, most = array.min().item(), array.max().item()
        if max(low - least, most - high) > FAR * (high - low):
            warn(
                f"{owner}, input {spec.name!r}: expected numbers of about {low:g} to {high:g}, got "
                f"{least:.4g} to {most:.4g} in the first call. Bring them to the units that the box knows "
                "(bytes / 255), or mend bounds= in its ArraySpec.",
                BoundsWarning,
            )


def spreads(values: Tensor) -> Tensor:
    """Standard deviations over rows, `(size,)` float64: 0 where a number is the same in all, to rounding."""
    flat = values.reshape(len(values), -1).double()
    deviations = flat.std(dim=0, correction=0)
    least = 8 * torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    return torch.where(deviations > least * flat.abs().amax(dim=0), deviations, 0.0)


def spreads_apart(spec: ArraySpec, values: Tensor) -> tuple[float, float] | None:
    """The least and the largest spread of an array's numbers over rows, where their units seem to differ.

    They seem to if four conditions hold. The spec has no scale, and one axis or none with at most 1,024
    numbers: on a grid one unit is the rule, and spreads differ by nature. There are at least 8 rows. The
    spreads are a factor of 100 or more apart, without constant numbers and a twentieth at either end. And two
    neighbours are a factor of 10 apart, which does not happen along a smooth profile.

    Args:
        spec: the spec of the array.
        values: `(rows, *spec.shape)`.

    Returns:
        The two spreads, or None.
    """
    return None if len(values) < FEWEST else apart(spec, spreads(values))


def apart(spec: ArraySpec, spreads: Tensor) -> tuple[float, float] | None:
    """`spreads_apart` for an array whose spreads `(size,)` are known."""
    if spec.scale is not None or len(spec.shape) > 1 or math.prod(spec.shape) > MOST:
        return None
    spreads = spreads[spreads > 0]
    if len(spreads) < 2:
        return None
    cut = len(spreads) // 20
    ordered = spreads.sort().values[cut : len(spreads) - cut]
    least, largest = float(ordered[0]), float(ordered[-1])
    ratio = float(spreads.log().diff().abs().max().exp())
    return (least, largest) if largest >= APART * least and ratio >= BESIDE else None


def _all_numpy(owner: str, specs: tuple[ArraySpec, ...], arrays: tuple[object, ...]) -> bool:
    for spec, array in zip(specs, arrays, strict=True):
        where = f"{owner}, input {spec.name!r}"
        if not isinstance(array, Tensor | np.ndarray | np.generic):
            raise DtypeError(
                f"{where}: expected a NumPy array or a torch tensor, got {type(array).__name__}. "
                "Wrap it in numpy.asarray or torch.as_tensor."
            )
        if isinstance(array, Tensor) and array.layout != torch.strided:
            raise DtypeError(
                f"{where}: expected a dense tensor, got layout {array.layout}. Convert it with .to_dense()."
            )
        if isinstance(array, Tensor) != isinstance(arrays[0], Tensor):
            kinds = ["a torch tensor", "a NumPy array"]
            expected, got = kinds if isinstance(arrays[0], Tensor) else kinds[::-1]
            raise DtypeError(
                f"{where}: expected {expected} as for {specs[0].name!r}, got {got}. "
                "Convert one of them with torch.from_numpy or tensor.numpy()."
            )
    return not isinstance(arrays[0], Tensor)


def _input_tensor(owner: str, spec: ArraySpec, array: object, numpy: bool) -> Tensor:
    if isinstance(array, Tensor) and is_batchedtensor(array):
        raise DtypeError(
            f"{owner}, input {spec.name!r}: expected a plain tensor, got one of torch.func.vmap. Call the "
            "box on the whole batch: any leading axes are rows."
        )
    if isinstance(array, Tensor) and (torch._C._get_tracing_state() is not None or _is_exporting()):
        raise DtypeError(
            f"{owner}, input {spec.name!r}: expected numbers, got a tensor that torch traces for an export, "
            "in which the box's answers would be constants. Export the network alone, without the box."
        )
    try:
        tensor = as_tensor(array)
    except TypeError:  # strings, objects, long doubles: no dtype of torch
        tensor = None
    if unit := unit_of(array):
        raise DtypeError(
            f"{owner}, input {spec.name!r}: expected plain numbers, got some in {unit}. Convert them to the "
            "unit that the box knows, and give their values alone."
        )
    if tensor is None or not spec.accepts(tensor.dtype):
        dtype = np.asarray(array).dtype if tensor is None else _name(tensor.dtype)
        target = spec.dtype or "float32"
        mend = f"{spec.name}.astype('{target}')" if numpy else f"{spec.name}.to(torch.{target})"
        whole = tensor is not None and spec.dtype is None and tensor.dtype in DTYPES.values()
        say = f", or say dtype='{dtype}' in its ArraySpec" if whole else ""
        raise DtypeError(
            f"{owner}, input {spec.name!r}: expected {spec.dtype or 'float32 or float64'}, got {dtype}. "
            f"Convert it first: {mend}{say}."
        )
    return tensor


def _leading_axes(owner: str, spec: ArraySpec, tensor: Tensor) -> tuple[Any, ...]:
    inner = len(spec.shape)  # axes are torch.SymInt while torch.compile traces
    shape = tuple(tensor.shape)
    if len(shape) >= inner and shape[len(shape) - inner :] == spec.shape:
        return shape[: len(shape) - inner]
    expected = "(" + ", ".join(["...", *map(str, spec.shape)]) + ")"
    message = f"{owner}, input {spec.name!r}: expected {expected}, got {shape}."
    if inner >= 2 and spec.shape[-1] != spec.shape[-2] and shape[-2:] == spec.shape[:-3:-1]:
        message += f" The last two axes look swapped: try {spec.name}.swapaxes(-1, -2)."
    else:
        message += " Leading axes are rows; the trailing axes must be those of the spec."
    raise ShapeError(message)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
