"""Functions that are recorded as what they are made of: those that draw at random, and some in Python."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zo.evaluators.difference.rule_registry import RULES, named

_QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def decomposed(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Another way to write a function, in functions that are all recorded; None where there is none."""
    if function in _DRAWING:
        return _DRAWING[function]
    in_python = inspect.isfunction(function) and function.__module__ == functional.__name__
    return _body(function) if in_python and function not in RULES else None


def _body(function: FunctionType) -> Callable[..., Any]:
    """A function as it is written, without its question whether someone else answers the call.

    Nor is it asked by functions that this one chooses between, as pooling does, and that would ask for it.
    """
    namespace = {**function.__globals__, **dict.fromkeys(_QUESTIONS, lambda *_: False)}
    closure = function.__closure__ and tuple(
        CellType(_body(cell.cell_contents)) if inspect.isfunction(cell.cell_contents) else cell
        for cell in function.__closure__
    )
    body = FunctionType(function.__code__, namespace, None, function.__defaults__, closure)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _dropout(
    function: Callable[..., Tensor],
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    """The product with its mask, which is drawn in the order of memory, as torch does."""
    return input * function(torch.ones_like(input), p, training) if training else input


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T scale + mask) v; dropout draws its mask as torch's own does: once, over the weights."""
    if enable_gqa:
        heads = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(heads, -3), value.repeat_interleave(heads, -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    if is_causal:
        length, size = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(length, size, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
    weights = torch.softmax(scores if attn_mask is None else scores + attn_mask, -1)
    return torch.matmul(functional.dropout(weights, dropout_p, dropout_p > 0), value)


_DRAWING: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.scaled_dot_product_attention: _attention,
    **{
        drawing: partial(_dropout, drawing)
        for drawing in named("dropout", "dropout1d", "dropout2d", "dropout3d")
    },
}
