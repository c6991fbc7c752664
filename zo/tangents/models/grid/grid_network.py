"""`GridNetwork`: a stencil, products of two convolutions and a convolution of those, with its passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zo.tangents.models.grid.convolutions import CONVOLVED, Convolutions
from zo.tangents.models.maps.lattice import Lattice
from zo.tangents.models.passes import Passes, Slopes, Tape, bent_back

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SHORT = 2**12  # cells of a line along which a convolution is a product of matrices
PLACES = 4  # channels that say where a cell lies, learned, on a grid with walls


class GridNetwork(Passes):
    """A network from standardised flat inputs and others to the outputs' change, standardised.

    Args:
        inputs: the lattice of inputs and others.
        answered: the lattice of the outputs, on the same cells.
        width: channels of the hidden layers.
        reach: cells that a change is carried.
        periodic: which ends of the grid meet.
    """

    def __init__(
        self, inputs: Lattice, answered: Lattice, width: int, reach: int, periodic: Sequence[bool]
    ) -> None:
        super().__init__()
        self.on_grid, self.answered, self.periodic = inputs, answered, tuple(periodic)
        layer = LAYERS[len(inputs.space)]
        walls = not all(periodic)
        self.places = nn.Parameter(0.1 * torch.randn(PLACES, *inputs.space)) if walls else None
        channels = inputs.channels + (PLACES + 1 if walls else 0)
        first, last = max(1, round(0.375 * reach)), round(0.375 * reach)
        between = max(0, reach - first - last)
        self.convolve = Convolutions(len(inputs.space) == 1 and inputs.space[0] <= SHORT, periodic)
        self.linear = layer(channels, answered.channels, 2 * reach + 1)
        self.products = layer(channels, 2 * width, 2 * first + 1)
        self.bend = layer(width, width, 2 * between + 1)
        self.last = layer(width, answered.channels, 2 * last + 1, bias=False)
        for convolution in (self.linear, self.last):
            nn.init.zeros_(convolution.weight)
        nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type] # it has one

    # Passes

    def arranged(self, z: Tensor, others: Tensor) -> Tensor:
        """Inputs and others as channels on the grid."""
        x = self.on_grid.joined(torch.cat([z, others], dim=1) if others.shape[1] else z)
        return x.movedim(0, -1).contiguous() if self.convolve.line else x

    def answers(self, y: Tensor) -> Tensor:
        """The numbers that each output has in its cells."""
        return self.answered.split(y.movedim(-1, 0) if self.convolve.line else y)

    def arranged_cotangent(self, cotangent: Tensor) -> Tensor:
        """The outputs' gradient on the grid, zero where an output has no cell."""
        fields = self.answered.joined(cotangent)
        return fields.movedim(0, -1).contiguous() if self.convolve.line else fields

    def cotangent_rows(self, cotangent: Tensor) -> Tensor:
        """The rows' gradient: of an input that is the same in all cells the sum over them."""
        return self.on_grid.gathered(cotangent.movedim(-1, 0) if self.convolve.line else cotangent)

    def passed(self, x: Tensor) -> tuple[Tensor, Tape]:
        """The channels out, in each cell."""
        axis = self.convolve.channels
        first, seen_first = self._of_all(self.products, x)
        straight, bent, factor = _parts(first, axis)
        activation = torch.cat([straight, functional.silu(bent)], dim=axis)
        product = activation * factor
        inner, seen_product = self.convolve(product, self.bend.weight, self.bend.bias)
        layer = product + functional.silu(inner)
        answer, patches = self._of_all(self.linear, x)
        more, seen_hidden = self.convolve(layer, self.last.weight)
        seen_of_weights = product, seen_first, seen_product, layer, seen_hidden, patches
        return answer + more, (bent, factor, activation, inner, None, seen_of_weights)

    def back(self, tape: Tape, cotangent: Tensor, slopes: Slopes | None = None) -> Tensor | None:
        """The gradient by the channels in, or by the kernels."""
        bent, factor, activation, inner, turned, *seen_of_weights = tape
        convolve, axis = self.convolve, self.convolve.channels
        last, bend = self.last.weight, self.bend.weight
        if slopes is None:
            turned = turned or [None] * 4
            of_hidden = convolve.back(cotangent, last, turned[0])
            of_bend = bent_back(of_hidden, inner)
            of_product = of_hidden + convolve.back(of_bend, bend, turned[1])
        else:
            ((product, _, seen_product, layer, seen_hidden, _),) = seen_of_weights
            of_hidden = convolve.back_to_both(layer, seen_hidden, cotangent, last, slopes["last.weight"])
            of_bend = bent_back(of_hidden, inner)
            of_product = of_hidden + convolve.back_to_both(
                product, seen_product, of_bend, bend, slopes["bend.weight"]
            )
            convolve.to_bias(of_bend, slopes["bend.bias"])
        of_straight, of_bent = (of_product * factor).chunk(2, dim=axis)
        of_first = torch.cat([of_straight, bent_back(of_bent, bent), of_product * activation], dim=axis)
        if slopes is None:
            *_, products, linear = self._kernels_back()
            of_products = convolve.back(of_first, products, turned[2])
            return of_products + convolve.back(cotangent, linear, turned[3])
        ((_, seen_first, _, _, _, patches),) = seen_of_weights
        if self.places is not None:
            slopes["places"].zero_()
        self._weights_of_all("products", seen_first, of_first, slopes)
        self._weights_of_all("linear", patches, cotangent, slopes)
        return None

    def apart(self, tape: Tape, counts: Sequence[int]) -> list[Tape]:
        """The hidden numbers of each call."""
        rows = self.convolve.rows
        parts = zip(
            *([t.contiguous() for t in numbers.split(counts, rows)] for numbers in tape[:4]), strict=True
        )
        kernels = [self.convolve.turned(kernel) for kernel in self._kernels_back()]
        return [(*part, kernels) for part in parts]

    def _kernels_back(self) -> tuple[Tensor, ...]:
        """The kernels of the backward pass, from the outputs to the channels of the rows."""
        row_channels = slice(self.on_grid.channels)
        products, linear = self.products.weight[:, row_channels], self.linear.weight[:, row_channels]
        return self.last.weight, self.bend.weight, products, linear

    def pushed(self, tape: Tape, change: Tensor) -> Tensor:
        """Return the change of the output channels, by the derivative."""
        bent, factor, activation, inner, *_ = tape
        convolve, axis = self.convolve, self.convolve.channels
        row_channels = slice(self.on_grid.channels)
        straight, of_bent, of_factor = _parts(
            convolve(change, self.products.weight[:, row_channels])[0], axis
        )
        of_product = (
            torch.cat([straight, bent_back(of_bent, bent)], dim=axis) * factor + activation * of_factor
        )
        layer = of_product + bent_back(convolve(of_product, self.bend.weight)[0], inner)
        return convolve(change, self.linear.weight[:, row_channels])[0] + convolve(layer, self.last.weight)[0]

    def _of_all(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply a layer to the channels of the rows, and once to channels that are the same in all rows.

        On a grid with walls the latter are most of the channels.
        """
        if self.places is None:
            return self.convolve(x, layer.weight, layer.bias)
        of_rows, common = layer.weight.split([self.on_grid.channels, PLACES + 1], dim=1)
        answer, patches = self.convolve(x, of_rows)
        return answer + self.convolve(self._same(), common, layer.bias)[0], patches

    def _weights_of_all(self, name: str, patches: Tensor, cotangent: Tensor, slopes: Slopes) -> None:
        slope = slopes[f"{name}.weight"]
        self.convolve.to_bias(cotangent, slopes[f"{name}.bias"])
        if self.places is None:
            self.convolve.to_kernel(patches, cotangent, slope)
            return
        parts = [self.on_grid.channels, PLACES + 1]
        of_rows, of_shared = slope.split(parts, dim=1)
        self.convolve.to_kernel(patches, cotangent, of_rows)
        layer = self.products if name == "products" else self.linear
        same, common = self._same(), layer.weight.split(parts, dim=1)[1]
        of_all = cotangent.sum(self.convolve.rows, keepdim=True)
        patches = self.convolve(same, common)[1]
        of_same = self.convolve.back_to_both(same, patches, of_all, common, of_shared)
        slopes["places"].add_(of_same.squeeze(self.convolve.rows)[:PLACES])

    def _same(self) -> Tensor:
        """The channels that are the same in all rows: where a cell lies, and that there is one."""
        assert self.places is not None
        return torch.cat([self.places, torch.ones_like(self.places[:1])]).unsqueeze(self.convolve.rows)

    # Patches

    def on_patches(
        self, x: Tensor, places: Sequence[Sequence[Tensor]], inside: Tensor, edges: Sequence[int]
    ) -> Tensor:
        """The channels out on patches alone, whose neighbouring cells are known, with a graph of the weights.

        Args:
            x: standardised channels `(patches, channels, *cells)`, `halo` cells more on each side.
            places: the cells of each patch along each axis.
            inside: `(patches, 1, *cells)`, 1 for cells of the grid, 0 beyond its walls.
            edges: cells of a patch along each axis.

        Returns:
            `(patches, channels, *edges)`, standardised.
        """
        if self.places is not None:
            lengths = self.places.shape[1:]
            same = []
            for cells in places:
                cropped = self.places
                for axis, (along_it, length) in enumerate(zip(cells, lengths, strict=True)):
                    cropped = cropped.index_select(axis + 1, along_it.clamp(0, length - 1))
                same.append(cropped)
            x = torch.cat([x, torch.stack(same) * inside, inside], dim=1)
        convolve = CONVOLVED[x.ndim - 2]
        straight, bent, factor = _parts(convolve(x, self.products.weight, self.products.bias), 1)
        layer = torch.cat([straight, functional.silu(bent)], dim=1) * factor
        layer = layer * _middle(inside, layer.shape[2:])  # beyond walls hidden numbers are zero, too
        bent = convolve(layer, self.bend.weight, self.bend.bias)
        layer = (_middle(layer, bent.shape[2:]) + functional.silu(bent)) * _middle(inside, bent.shape[2:])
        straight = convolve(x, self.linear.weight, self.linear.bias)
        return _middle(straight, edges) + _middle(convolve(layer, self.last.weight), edges)

    @property
    def halo(self) -> int:
        """Cells around a patch that its answer depends on."""
        layers = (self.products, self.bend, self.last)
        return max(self.linear.weight.shape[2] // 2, sum(layer.weight.shape[2] // 2 for layer in layers))


def _parts(layer: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two quarters of the first layer's channels, one of them to be bent, and the half that is a factor."""
    width = layer.shape[channels] // 2
    straight, bent, factor = layer.split([width // 2, width - width // 2, width], dim=channels)
    return straight, bent, factor


def _middle(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """The cells in the middle, of `(..., *cells)`."""
    for axis, length in enumerate(lengths, start=x.ndim - len(lengths)):
        x = x.narrow(axis, (x.shape[axis] - length) // 2, length)
    return x
