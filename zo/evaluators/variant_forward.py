"""Replacement forwards: a layer that treats each block of rows with its own variant of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, vmap

from zo.batches import map_tensors
from zo.evaluators.point_rules import RULES, PointChanges

Forward = Callable[..., Any]


class NotStackable(RuntimeError):
    """A layer does not have its rows first, so variants cannot be told apart; `loop` takes over."""


class _Bare(nn.Module):
    """A module without its hooks and without the replacement of its forward: `functional_call` on it."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module = module
        self._original = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return self._original(*args, **kwargs)


def with_points(
    module: nn.Module, changes: dict[str, PointChanges], forward: Forward, variants: int, rows: int
) -> Forward:
    """Shared weights on all rows, then the rule of the layer's type for each changed parameter.

    Args:
        module: of a type in `RULES`.
        changes: by the parameter's name in the module.
        forward: the module's own.
        variants: blocks that the rows fall into.
        rows: rows of all variants together.
    """
    rule = RULES[type(module)]

    def replacement(x: Tensor) -> Tensor:
        if x.ndim == 0 or x.shape[0] % rows:
            raise NotStackable(f"expected a multiple of {rows} rows first, got shape {tuple(x.shape)}")
        y = forward(x).contiguous()
        for name, change in changes.items():
            rule(module, name, change, x, y, variants)
        return y

    return replacement


def with_copies(
    module: nn.Module, stacked: dict[str, Tensor], forward: Forward, variants: int, rows: int
) -> Forward:
    """`torch.func.vmap` over copies of what differs between variants; serves any module vmap can take.

    Random layers draw one mask for all variants; buffers are copies, so running statistics stay.

    Args:
        module: any.
        stacked: changed parameters by their dotted name inside the module, `(variants, *shape)`.
        forward: the module's own.
        variants: blocks that the rows fall into.
        rows: rows of all variants together.
    """
    bare = _Bare(module, forward)
    state = {f"module.{name}": tensor for name, tensor in stacked.items()}
    for name, buffer in module.named_buffers():
        state[f"module.{name}"] = buffer.expand(variants, *buffer.shape).clone()

    def replacement(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        blocks: list[Tensor] = []

        def take(tensor: Tensor) -> Any:  # noqa: ANN401
            if tensor.ndim == 0 or tensor.shape[0] % rows:
                return tensor
            blocks.append(tensor.reshape(variants, -1, *tensor.shape[1:]))
            return _Slot(len(blocks) - 1)

        slots = map_tensors(take, (args, kwargs))
        if not blocks:
            raise NotStackable(f"expected an input with a multiple of {rows} rows first, got none")

        def one(state: dict[str, Tensor], blocks: list[Tensor]) -> Any:  # noqa: ANN401
            own_args, own_kwargs = _fill(slots, blocks)
            return functional_call(bare, state, own_args, own_kwargs)

        result = vmap(one, randomness="same")(state, blocks)
        return map_tensors(lambda tensor: tensor.flatten(0, 1), result)

    return replacement


class _Slot(int):
    """Place of a tensor that has rows, among the arguments of a call."""


def _fill(slots: Any, blocks: list[Tensor]) -> Any:  # noqa: ANN401
    if isinstance(slots, _Slot):
        return blocks[slots]
    if isinstance(slots, dict):
        return {key: _fill(value, blocks) for key, value in slots.items()}
    if isinstance(slots, tuple | list):
        return type(slots)(_fill(value, blocks) for value in slots)
    return slots


def copies_with_points(tensor: Tensor, changes: PointChanges, variants: int) -> Tensor:
    """A copy of a parameter for each variant, its own entry changed: `(variants, *shape)`."""
    stacked = tensor.detach().expand(variants, *tensor.shape).clone()
    stacked.view(variants, -1)[changes.variants, changes.entries] += changes.steps
    return stacked


def differs_by_variant(module: nn.Module) -> bool:
    """Whether a module mixes rows or draws at random, so that variants must pass it apart even unchanged."""
    mixes = isinstance(module, nn.modules.batchnorm._NormBase) and (
        module.training or module.running_mean is None
    )
    return mixes or (isinstance(module, nn.modules.dropout._DropoutNd) and module.training)


def to_module(changes: PointChanges, tensor: Tensor) -> PointChanges:
    """The same changes on the device and in the dtype of the parameter."""
    device = tensor.device
    return PointChanges(
        changes.variants.to(device), changes.entries.to(device), changes.steps.to(device, tensor.dtype)
    )
