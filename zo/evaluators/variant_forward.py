"""Replacement forwards: a layer that treats each block of rows with its own variant of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from zo.batches import emptied, filled
from zo.evaluators.evaluator import Unservable
from zo.evaluators.forwards import Forward
from zo.evaluators.point_rules import RULES, PointChanges
from zo.evaluators.versions import renew


class Blocks:
    """The rows of one call of the objective: `variants` blocks of equally many.

    Attributes:
        variants: the number of variants.
        rows: the number of rows of all variants together.
    """

    def __init__(self, variants: int, rows: int) -> None:
        self.variants = variants
        self.rows = rows
        self._inside = False  # a vmap over the variants: modules in there see the rows of one

    def with_points(
        self, module: nn.Module, changes: Mapping[str, PointChanges], forward: Forward
    ) -> Forward:
        """Shared weights on all rows, then the layer's rule for each changed parameter.

        Args:
            module: a module of a type that has rules.
            changes: the changes, by the parameter's name in the module.
            forward: the forward of the module itself.
        """
        rule = RULES[type(module)]

        def replacement(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            y = forward(input, *args, **kwargs)
            if self._inside:
                return y
            self._refuse_other_rows(type(module).__name__, input)
            for name, change in changes.items():
                rule.add(module, name, change, input, y, self.variants)
            return y

        return replacement

    def with_batch_statistics(
        self, module: _BatchNorm, copies: Mapping[str, Tensor], forward: Forward
    ) -> Forward:
        """Batch norm over the rows of each variant: to it the channels of all variants are just channels.

        Running statistics are not touched.

        Args:
            module: a batch norm that uses the batch's statistics, in one, two or three dimensions.
            copies: changed weight and bias, `(variants, channels)`.
            forward: the forward of the module itself.
        """
        affine = [
            None if shared is None else copies.get(name, shared.detach().expand(self.variants, -1)).flatten()
            for name, shared in (("weight", module.weight), ("bias", module.bias))
        ]

        def replacement(input: Tensor) -> Tensor:
            if self._inside:
                return forward(input)
            self._refuse_other_rows(type(module).__name__, input)
            wide = input.unflatten(0, (self.variants, -1)).transpose(0, 1).flatten(1, 2)
            y = functional.batch_norm(wide, None, None, *affine, training=True, eps=module.eps)
            return y.unflatten(1, (self.variants, -1)).transpose(0, 1).flatten(0, 1)

        return replacement

    def with_one_draw(self, forward: Forward) -> Forward:
        """Dropout with one mask for all variants, which is what ones become.

        Args:
            forward: the forward of the dropout itself.
        """

        def replacement(input: Tensor) -> Tensor:
            if self._inside:
                return forward(input)
            self._refuse_other_rows("dropout", input)
            blocks = input.unflatten(0, (self.variants, -1))
            return (blocks * forward(torch.ones_like(blocks[0]))).flatten(0, 1)

        return replacement

    def with_copies(self, module: nn.Module, copies: Mapping[str, Tensor], forward: Forward) -> Forward:
        """`torch.func.vmap` over copies of the variants' parameters; serves any module vmap can take.

        Random layers draw one mask for all variants. In training buffers are copied too, so that running
        statistics stay.

        Args:
            module: any module.
            copies: changed parameters by their dotted name inside the module, `(variants, *shape)`.
            forward: the forward of the module itself.
        """
        bare = _Bare(module, forward)
        state = {f"module.{name}": tensor for name, tensor in copies.items()}
        for name, buffer in module.named_buffers() if module.training else ():
            if buffer.layout is torch.strided:  # a sparse one is no statistic, and torch cannot expand it
                state[f"module.{name}"] = buffer.expand(self.variants, *buffer.shape).clone()

        def replacement(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return forward(*args, **kwargs)
            blocks: list[Tensor] = []
            call = emptied((args, kwargs), blocks, self._block)
            if not blocks:
                raise Unservable(
                    f"{type(module).__name__}: expected an input with {self.rows} rows first, got none. "
                    "Use evaluator='loop', or keep rows first."
                )
            results: list[Any] = []  # what is no tensor cannot leave a vmap

            def one(state: dict[str, Tensor], blocks: list[Tensor]) -> list[Tensor]:
                # Tied names are all in the state; tied anew they would count as given twice.
                arguments = filled(call, blocks)
                for tensor in state.values():
                    renew(tensor)
                result = functional_call(bare, state, arguments[0], arguments[1], tie_weights=False)
                tensors: list[Tensor] = []
                results.append(emptied(result, tensors, lambda tensor: tensor))
                return tensors

            self._inside = True
            try:
                with warnings.catch_warnings():  # slow inside is still faster than loop, and as right
                    warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                    stacked = vmap(one, randomness="same")(state, blocks)
            finally:
                self._inside = False
            return filled(results[0], [tensor.flatten(0, 1) for tensor in stacked])

        return replacement

    def with_copies_in_turn(
        self, module: nn.Module, copies: Mapping[str, Tensor], forward: Forward
    ) -> Forward:
        """Run one variant after another: vmap makes grouped convolutions, half as fast or less on a CPU.

        For modules that take one tensor and give one; arguments as for `with_copies`.
        """
        bare = _Bare(module, forward)
        states = [{f"module.{name}": copy[i] for name, copy in copies.items()} for i in range(self.variants)]

        def replacement(input: Tensor, *args: Any) -> Tensor:
            if self._inside:
                return forward(input, *args)
            self._refuse_other_rows(type(module).__name__, input)
            blocks = zip(states, input.unflatten(0, (self.variants, -1)), strict=True)
            return torch.cat([functional_call(bare, state, (block, *args)) for state, block in blocks])

        return replacement

    def _block(self, tensor: Tensor) -> Tensor | None:
        """`(variants, rows, ...)`, or None for what has no rows, such as an attention mask."""
        if tensor.ndim == 0 or tensor.shape[0] % self.rows:
            return None
        return tensor.unflatten(0, (self.variants, -1))

    def _refuse_other_rows(self, name: str, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[0] % self.rows:
            raise Unservable(
                f"{name}: expected an input with a multiple of {self.rows} rows first, got "
                f"shape {tuple(x.shape)}. Use evaluator='loop', or keep rows first."
            )


class _Bare(nn.Module):
    """A module without its hooks and without the replacement of its forward: `functional_call` on it."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module = module
        self._original = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._original(*args, **kwargs)
