"""`ArraySpec`: the name, shape and dtype of one input or output of a black box."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from blackbox.errors import DefinitionError
from blackbox.layout import Layout, checked_layout

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "int32", "int64", "uint8", "bool")}


@dataclass(frozen=True)
class ArraySpec:
    """One array of a black box, without its leading axes (those are rows, any number of them).

    Args:
        name: a Python identifier; error messages use it.
        shape: sizes of the trailing axes of one row; `()` for a number per row.
        dtype: "float32", "float64", "int32", "int64", "uint8" or "bool"; arrays must then have exactly this
            dtype. None, the default, accepts both floats, and the outputs have the dtype of the inputs.
        differentiable: False for an input that needs no derivative (a Reynolds number, a label); integers
            never have one.
        scale: the size of a usual change of the array's numbers in their own units, one for all or one for
            each in the array's shape. Gradients at the box's inputs (`zo.differentiable`) move each number by
            mu times its scale. None, the default, means 1 there, and lets learned tangents measure it.
        layout: the meaning of the axes, for learned tangents: a `Mesh`, if one axis counts its nodes; "grid"
            or `Grid(periodic=...)` for cells of a regular grid, with or without a first axis of channels;
            None for neither, as in a table of numbers. "auto", the default, depends on the shape:
            `(channels, *space)` is a grid, and so is `(*space)` beside such an array or another of its shape;
            all else is neither. Channels come first: turn arrays in the box where they are last.
        modelled: False for an array without derivative that identifies a row's run and is no part of the
            simulation: a history, a key, a seed. Learned tangents then do not see it.
        bounds: the lowest and the highest usual number in the array, such as (0, 1) for images, and (0, None)
            for one side alone. A number may lie beyond them, and the box is asked for it as it is. Our own
            draws keep within: a dither (`zo.TangentGradient`) takes no number out of the bounds, nor further
            out one that lies beyond, and a check without given samples draws its own there. Steps of mu do
            not look at them. A box warns (`BoundsWarning`) if numbers of its first call lie beyond by more
            than ten times the distance of the two, as bytes of 0 to 255 do.
        copy_of: for an output, the name of the input that it copies, such as an action that is handed on to
            the next call. Learned tangents then have its derivative, and learn nothing of it.

    Raises:
        DefinitionError: the values are inconsistent.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None
    differentiable: bool = True
    scale: float | Sequence[Any] | None = None
    layout: Layout | str = "auto"
    modelled: bool = field(default=True, repr=False)  # says nothing of the answers: no part of an identity
    bounds: tuple[float | None, float | None] | None = field(default=None, repr=False)  # nor does this
    copy_of: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check and normalise, so that a wrong spec fails where it is written."""
        if not isinstance(self.name, str) or not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise DefinitionError(
                f"ArraySpec name: expected a Python identifier, got {self.name!r}. "
                "Use letters, digits and underscores, such as 'velocity'."
            )
        if not isinstance(self.shape, Sequence) or isinstance(self.shape, str):
            raise DefinitionError(
                f"ArraySpec {self.name!r}, shape: expected a tuple of sizes, got {self.shape!r}. "
                "A single number per row has shape ()."
            )
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in self.shape):
            raise DefinitionError(
                f"ArraySpec {self.name!r}, shape: expected positive whole sizes, got {tuple(self.shape)}. "
                "Leave the leading (row) axes out of the spec."
            )
        if self.dtype is not None and (not isinstance(self.dtype, str) or self.dtype not in DTYPES):
            raise DefinitionError(
                f"ArraySpec {self.name!r}, dtype: expected None or one of {', '.join(DTYPES)}, "
                f"got {self.dtype!r}. Write its name as a string, or None for any float."
            )
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.scale is not None:
            scale = np.asarray(self.scale, dtype=np.float64)
            if scale.size not in (1, math.prod(self.shape)) or not (np.isfinite(scale) & (scale > 0)).all():
                raise DefinitionError(
                    f"ArraySpec {self.name!r}, scale: expected a positive number, or as many in the shape "
                    f"{self.shape}, got {self.scale!r}. Give the size of a usual change, or leave it out."
                )
            # A tuple of all numbers: specs are compared and hashed.
            object.__setattr__(
                self, "scale", tuple(np.broadcast_to(scale.flatten(), math.prod(self.shape)).tolist())
            )
        if self.bounds is not None:
            object.__setattr__(self, "bounds", self._checked_bounds())
        if not self.floating:
            object.__setattr__(self, "differentiable", False)
        object.__setattr__(self, "layout", checked_layout(self.name, self.shape, self.layout))
        if self.differentiable and not self.modelled:
            raise DefinitionError(
                f"ArraySpec {self.name!r}, modelled: expected False only without a derivative, got an input "
                "that has one, which a model of the box has to see. Add differentiable=False."
            )

    def _checked_bounds(self) -> tuple[float | None, float | None] | None:
        """Both as floats, None for infinity.

        Raises:
            DefinitionError: they are not two, or not in order.
        """
        low, high = math.nan, math.nan
        with suppress(TypeError, ValueError):
            low, high = (
                sign * math.inf if end is None else float(end)
                for end, sign in zip(self.bounds or (), (-1, 1), strict=True)
            )
        if not low < high:
            raise DefinitionError(
                f"ArraySpec {self.name!r}, bounds: expected the lowest and the highest usual number, "
                f"such as (0, 1), or (0, None), got {self.bounds!r}. Give two that hold for all numbers of "
                "the array, the lower one first, or leave them out."
            )
        low, high = (end if math.isfinite(end) else None for end in (low, high))
        return None if low is None and high is None else (low, high)

    @property
    def ends(self) -> tuple[float, float]:
        """The bounds as two numbers, infinite on a side without one."""
        low, high = self.bounds or (None, None)
        return -math.inf if low is None else low, math.inf if high is None else high

    @property
    def floating(self) -> bool:
        """True if the array holds floats, so that a failed row can be marked by NaN."""
        return self.dtype is None or self.dtype.startswith("float")

    @property
    def context(self) -> bool:
        """True if a model of the box sees the input beside those that carry a gradient."""
        return self.modelled and not self.differentiable

    @property
    def learned(self) -> bool:
        """True if it carries a gradient that a model of the box has to know."""
        return self.differentiable and self.copy_of is None

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype as torch names it; None if any float will do."""
        return None if self.dtype is None else DTYPES[self.dtype]

    def usual_numbers(self, generator: np.random.Generator, *leading: int) -> np.ndarray:
        """Floats for who is given none: standard normal times the scale; those of bounds keep within them.

        Args:
            generator: draws them.
            leading: the leading axes.
        """
        (low, high), shape = self.ends, (*leading, *self.shape)
        if math.isfinite(low) and math.isfinite(high):
            return np.asarray(generator.uniform(low, high, shape))
        numbers = np.asarray(generator.standard_normal(shape))
        numbers = numbers if self.scale is None else numbers * np.reshape(self.scale, self.shape)
        if self.bounds is None:
            return numbers
        return np.asarray(low + abs(numbers) if math.isfinite(low) else high - abs(numbers))

    def accepts(self, dtype: torch.dtype) -> bool:
        """Say whether an array of this dtype satisfies the spec."""
        if self.dtype is None:
            return dtype in (torch.float32, torch.float64)
        return dtype == self.torch_dtype


def none_differentiable(kind: str, specs: Sequence[ArraySpec]) -> str:
    """Explain why no input or no output of a box has a derivative, and how to mend it.

    Args:
        kind: "input" or "output".
        specs: The inputs or outputs; none is differentiable.
    """
    named = ", ".join(f"{spec.name} ({spec.dtype or 'differentiable=False'})" for spec in specs)
    whole = [spec.name for spec in specs if not spec.floating]
    mend = "Leave out differentiable=False where the gradient is to go through."
    if whole and kind == "output":
        mend = (
            "Whole numbers, such as labels, have none: leave dtype out of the spec, and return them as "
            f"floats, {whole[0]}.astype('float32'). A student or long finite differences learn from them."
        )
    elif whole:
        mend = "Whole numbers cannot be moved a little: declare those that the network sets as floats."
    return f"expected a differentiable {kind}, found none among {named}. {mend}"


def identifier(name: str) -> str:
    """A name for a spec, made of one that need be no Python identifier, such as `body.v[1]` of a file."""
    name = re.sub(r"\W", "_", name)
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"_{name}"


def check_specs(owner: str, field: str, specs: object) -> None:
    """Refuse anything but a non-empty tuple of differently named specs.

    Args:
        owner: the class's name, for the message.
        field: "inputs" or "outputs".
        specs: the attribute of the class with that name.

    Raises:
        DefinitionError: the specs are no such tuple; the message names `owner`.
    """
    if not isinstance(specs, tuple) or not specs or not all(isinstance(s, ArraySpec) for s in specs):
        raise DefinitionError(
            f"{owner}.{field}: expected a non-empty tuple of ArraySpec, got {specs!r}. "
            f'Write {field} = (ArraySpec("name", shape=(...)),), with the trailing comma.'
        )
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise DefinitionError(f"{owner}.{field}: expected different names, got {names}. Rename one.")
