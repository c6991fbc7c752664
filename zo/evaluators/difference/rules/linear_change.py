"""Whatever is linear in one tensor or in a list of them: the change goes through the function itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zo.batches import leaves, map_tensors
from zo.evaluators.difference.changes import Change, Moved, OneChannel
from zo.evaluators.difference.rule_registry import Argument, TapedCall, has_apart, has_rows, named, register
from zo.evaluators.difference.rules.subtracted import per_variant, subtracted


def linear_change(call: TapedCall, *args: Argument, **kwargs: Argument) -> Argument:
    """The function of the changes, with zeros for tensors beside them that do not move."""
    moved = list(leaves((args, kwargs), Moved))
    if not all(item.base.is_floating_point() for item in moved):
        return subtracted(call, *args, **kwargs)  # an index is among them, in which nothing is linear

    def function(*changes: Tensor) -> Argument:
        queue = list(changes)
        filled = map_tensors(lambda moved: queue.pop(0), (args, kwargs), kind=Moved)
        return call.function(*filled[0], **filled[1])

    return per_variant(function, *(item.change for item in moved))


def _joined(call: TapedCall, tensors: Argument, *args: Argument, **kwargs: Argument) -> Argument:
    """The change of joined tensors; some of them may not move."""
    return linear_change(
        call,
        [item if isinstance(item, Moved) else torch.zeros_like(item) for item in tensors],
        *args,
        **kwargs,
    )


def _channelwise(call: TapedCall, input: Moved, *args: Argument, **kwargs: Argument) -> Change:
    """The rule of functions that treat each channel of `(rows, channels, ...)` alone, as average pooling."""
    if not has_apart(call, input):
        if not has_rows(call, input):
            return linear_change(call, input, *args, **kwargs)
        change = call.function(input.change.flatten(0, 1), *args, **kwargs)  # variants among the rows
        return change.unflatten(0, (input.variants, -1))
    one = input.of
    assert isinstance(one, OneChannel)
    reached = call.function(one.values.flatten(0, 1), *args, **kwargs)
    return one.like(reached.unflatten(0, one.values.shape[:2]))


def _reshape(call: TapedCall, input: Moved, *_: Argument, **__: Argument) -> Change:
    """The output's shape behind the variants, whatever was asked for it."""
    if call.output.dtype != input.base.dtype:
        raise NotImplementedError(f"a view of its memory as {call.output.dtype}")
    one, shape = input.of, call.output.shape
    if isinstance(one, OneChannel) and one.axis < len(shape):
        outer_shape = input.base.shape[: one.axis + 1]
        if shape[: one.axis + 1] == outer_shape:  # only axes behind the channels changed
            return one.like(one.values.reshape(len(one.values), *outer_shape[:-1], 1, *shape[one.axis + 1 :]))
    return input.change.reshape(input.variants, *shape)


def _pad(
    call: TapedCall, input: Moved, pad: Argument, mode: str = "constant", value: float | None = None
) -> Change:
    """Zeros for any constant; channels that are padded move a single one up."""
    value = 0 if mode == "constant" else value
    one, pairs = input.of, list(zip(pad[::2], pad[1::2], strict=True))
    if isinstance(one, OneChannel):
        place = input.base.ndim - 1 - one.axis  # among the pairs, the last axis first
        before, after = pairs[place] if place < len(pairs) else (0, 0)
        if before >= 0 and after >= 0 and (mode == "constant" or before == after == 0):
            pads = [*pad[: 2 * place], 0, 0, *pad[2 * place + 2 :]] if place < len(pairs) else pad
            if mode == "constant":
                values = functional.pad(one.values, pads)
            else:
                values = functional.pad(one.values.flatten(0, 1), pads, mode, value).unflatten(
                    0, one.values.shape[:2]
                )
            return OneChannel(values, one.channels + before, one.axis, one.size + before + after)
    return linear_change(call, input, pad, mode, value)


def _getitem(call: TapedCall, input: Argument, index: Argument) -> Change:
    indices = index if isinstance(index, tuple) else (index,)
    if not isinstance(input, Moved) or any(isinstance(item, Moved) for item in indices):
        return subtracted(call, input, index)
    one = input.of
    if isinstance(one, OneChannel) and all(isinstance(item, slice) for item in indices):
        if len(indices) <= one.axis or indices[one.axis] == slice(None):
            return one.like(one.values[(slice(None), *indices)])
    if all(isinstance(item, slice | int) for item in indices):
        return input.change[(slice(None), *indices)]
    return linear_change(call, input, index)


def _mean_or_sum(
    call: TapedCall, input: Moved, dim: Argument = None, keepdim: bool = False, **options: Argument
) -> Change:
    """Reduce over axes; one channel stays one where its axis comes before all of them."""
    axes = range(input.base.ndim) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    axes = [axis % input.base.ndim for axis in axes] or list(range(input.base.ndim))
    one, shifted = input.of, [axis + 1 for axis in axes]
    if isinstance(one, OneChannel) and min(axes) > one.axis:
        return one.like(call.function(one.values, dim=shifted, keepdim=keepdim, **options))
    return call.function(input.change, dim=shifted, keepdim=keepdim, **options)


def _contiguous(call: TapedCall, input: Moved, *_: Argument, **__: Argument) -> Change:
    """Pass on a change through a function that changes neither values nor shape."""
    return input.of


def _cast(call: TapedCall, input: Moved, *args: Argument, **kwargs: Argument) -> Change:
    """The change in another dtype, or on another device."""
    change = input.change
    return change.to(call.output.device, torch.promote_types(change.dtype, call.output.dtype))


register(
    named(
        *("transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "adjoint"),
        *("expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "roll", "flip"),
        *("chunk", "split", "tensor_split", "unbind", "narrow", "select", "index_select", "gather"),
        *("cumsum", "tril", "triu", "diagonal", "unfold", "fold", "take_along_dim"),
    ),
    linear_change,
)
register((Tensor.T.__get__, Tensor.mT.__get__, Tensor.H.__get__), linear_change)  # pyright: ignore
register(named("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"), _joined)
register(
    named(
        *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("interpolate", "upsample"),
    ),
    _channelwise,
)
register(named("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), linear_change)
register(
    named(
        "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel"
    ),
    _reshape,
)
register(named("pad"), _pad)
register(named("__getitem__"), _getitem)
register(named("mean", "sum"), _mean_or_sum)
register(named("contiguous", "clone", "detach", "alias"), _contiguous)
register((Tensor.data.__get__,), _contiguous)  # pyright: ignore
register(named("to", "float", "double", "type_as", "cpu", "cuda"), _cast)
