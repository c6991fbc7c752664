"""Arrays of one grid with and without an axis of channels: one grid, to the bits of `(1, *space)`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec, BlackBoxFunction, Grid
from tests.zo.row_boxes import FromTorch
from zo.tangents import AutoTangent, CallPairs
from zo.tangents.models.form import Form
from zo.tangents.models.grid.stencil import SHAPES as REACHES
from zo.tangents.models.grid.stencil import _Features
from zo.tangents.models.maps.lattice import Lattice, space_of
from zo.tangents.models.structure import structure_of

SPACE = (18, 20)
SHAPES = ((1, *SPACE), (2, *SPACE), (1, *SPACE))
NAMES = ("density", "velocity", "pressure")


def advance(density: Tensor, velocity: Tensor, pressure: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step of fields `(rows, channels, *space)` that act on one another; one axis meets its end."""
    east = torch.roll(pressure, -1, -1) - torch.roll(pressure, 1, -1)
    north = torch.diff(torch.cat([pressure[:, :, :1], pressure], 2), dim=2)
    pushed = velocity - 0.1 * torch.cat([east, north], 1)
    spread = torch.roll(density, 1, -1) - density
    return density + 0.2 * spread * velocity[:, :1], pushed, pressure - 0.1 * east * density


class Flow(BlackBoxFunction):
    """The step, with arrays of any shapes that hold the same numbers."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...], layout: Grid | str) -> None:
        super().__init__()
        self.inputs = self.outputs = tuple(
            ArraySpec(name, shape, layout=layout) for name, shape in zip(NAMES, shapes, strict=True)
        )

    def evaluate_rows(self, *arrays):
        fields = [torch.from_numpy(array).reshape(-1, *s) for array, s in zip(arrays, SHAPES, strict=True)]
        return tuple(
            after.numpy().reshape(array.shape) for after, array in zip(advance(*fields), arrays, strict=True)
        )


class Correction(nn.Module):
    """What it adds to all fields together, `(rows, 4, *space)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, fields: Tensor) -> Tensor:
        return fields + 0.1 * self.layer(fields)


def objective(step):
    """Two calls of the box, each behind the network."""

    def losses(network: nn.Module, fields: Tensor) -> Tensor:
        for _ in range(2):
            fields = torch.cat(step(*network(fields).split([1, 2, 1], 1)), 1)
        return fields.square().flatten(1).mean(1)

    return losses


def steps(shapes: tuple[tuple[int, ...], ...], layout: Grid | str, count: int) -> tuple[list[Tensor], str]:
    """The gradient of each step of training, and the tangent's repr."""
    torch.manual_seed(0)
    network, box = Correction(), Flow(shapes, layout)

    def asked(*fields: Tensor) -> tuple[Tensor, ...]:
        arrays = [field.reshape(-1, *shape) for field, shape in zip(fields, shapes, strict=True)]
        return tuple(answer.reshape(-1, *s) for answer, s in zip(box(*arrays), SHAPES, strict=True))

    gradient = zo.TangentGradient(network, objective(asked), boxes=[box], seed=0)
    made = []
    for number in range(count):
        network.zero_grad()
        batch = torch.randn(4, 4, *SPACE, generator=torch.Generator().manual_seed(number))
        gradient.backward(batch)
        made.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    return made, repr(gradient.tangents[0])


@pytest.mark.slow
def test_fields_with_and_without_channels_are_one_grid_to_the_bit():
    bare, said = steps((SPACE, (2, *SPACE), SPACE), "auto", count=2)
    same, _ = steps(SHAPES, "auto", count=2)
    assert "GridTangent" in said and "by its shape" in said
    assert all(torch.equal(one, other) for one, other in zip(bare, same, strict=True))


@pytest.mark.slow
def test_their_gradient_is_that_of_autograd():
    made, _ = steps((SPACE, (2, *SPACE), SPACE), "auto", count=12)
    torch.manual_seed(0)
    network = Correction()
    batch = torch.randn(4, 4, *SPACE, generator=torch.Generator().manual_seed(11))
    objective(advance)(network, batch).mean().backward()
    true = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert torch.cosine_similarity(made[-1], true, 0) > 0.95


@pytest.mark.parametrize(
    ("inputs", "outputs", "layout", "space"),
    [
        ([(32, 48)] * 4, [(32, 48)] * 4, "auto", "(32, 48)"),
        ([(32, 48), (3, 32, 48)], [(3, 32, 48), (32, 48)], "auto", "(32, 48)"),
        ([(33, 48), (32, 49), (32, 48)], [(33, 48), (32, 49)], "auto", "(33, 49)"),
        ([(2, 32, 48)], [(32, 48)], "auto", "(32, 48)"),
        ([(2, 8, 48)], [(8, 48)], "auto", "(8, 48)"),
        ([(32, 48)], [(2, 32, 48)], "auto", "(32, 48)"),
        ([(3, 48)], [(3, 48), (48,)], "auto", "(48,)"),
        ([(32, 48)], [(32, 48)], "grid", "(32, 48)"),
        ([(8, 48)], [(8, 48)], Grid((False, True)), "(8, 48)"),
        ([(32, 48)], [(32, 48)], Grid((True,)), "(48,)"),
        # cells and faces of a line
        ([(32,), (33,), (32,), (1,)], [(32,), (33,), (32,)], "auto", "(33,)"),
        ([(2, 32), (33,)], [(2, 32), (33,)], "auto", "(33,)"),
        ([(32,)], [(32,), (33,)], "auto", None),
        ([(32,), (33,)], [(33,)], "auto", None),
        ([(32,), (34,)], [(32,), (34,)], "auto", None),
        ([(32,), (32,)], [(32,), (32,)], "auto", None),
        ([(14,), (15,)], [(14,), (15,)], "auto", None),
        # as ever
        ([(32, 48)], [(32, 48)], "auto", None),
        ([(8, 48)] * 2, [(8, 48)] * 2, "auto", "(48,)"),
        ([(3, 32, 48)], [(3, 32, 48)], "auto", "(32, 48)"),
        ([(8, 48), (3, 8, 48)], [(8, 48)], "auto", "(48,)"),
        ([(48,)], [(48,)], "auto", None),
        ([(48,)], [(1, 48)], "auto", None),
        ([(48, 3)] * 2, [(48, 3)] * 2, "auto", None),
        ([(32, 48, 4)], [(32, 48, 4)], "auto", None),
        ([(2, 32, 48)], [(2, 32, 48), ()], "auto", None),
    ],
)
def test_what_shapes_are_taken_for(inputs, outputs, layout, space):
    before, after = (
        [ArraySpec(f"{name}{n}", shape, layout=layout) for n, shape in enumerate(shapes)]
        for name, shapes in (("x", inputs), ("y", outputs))
    )
    taken = structure_of(before, after).kind
    assert (str(space_of(after, before)) if taken == "grid" else None) == space


@pytest.mark.parametrize("shape", [(48, 3), (32, 48, 4)])
def test_channels_last_on_a_grid_are_refused(shape):
    box = Flow((shape, shape, shape), "grid")
    with pytest.raises(
        zo.errors.ConfigurationError, match=r"'density'.*channels as the first axis.*np.moveaxis"
    ):
        AutoTangent(box)


def test_a_state_keeps_what_is_said_of_a_grid():
    specs = [
        ArraySpec("u", (8, 48), layout=Grid((False, True))),
        ArraySpec("v", (8, 48), layout="grid"),
        ArraySpec("a", (3,), layout=None),
        ArraySpec("b", (3,)),
    ]
    form = Form(tuple(specs), tuple(specs[:1]), ())
    assert Form.of(form.plain()) == form


class Line(FromTorch):
    """Pressure in 20 cells and velocity on their 21 faces, pushed by a number for each row: a linear step."""

    def __init__(self) -> None:
        state = ArraySpec("pressure", (20,)), ArraySpec("velocity", (21,))
        super().__init__(self.step, (*state, ArraySpec("push", ())), state)

    @staticmethod
    def step(pressure: Tensor, velocity: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
        inner = velocity[:, 1:-1] - 0.4 * torch.diff(pressure) + 0.1 * push[:, None]
        moved = nn.functional.pad(inner, (1, 1))  # walls
        return pressure - 0.4 * torch.diff(moved), moved


def test_on_cells_and_faces_of_a_line_the_vjp_is_that_of_the_step():
    box, tangent = Line(), zo.tangents.StencilTangent(degree=1)
    assert AutoTangent(box).kind == "grid"
    draw = torch.Generator().manual_seed(0)
    arrays = [torch.randn(80, *spec.shape, generator=draw).double() for spec in box.inputs]
    v = torch.randn(80, 41, generator=draw).double()
    leaves = [array.clone().requires_grad_() for array in arrays]
    answers = torch.cat(box.step(*leaves), 1)
    true = [slope.reshape(80, -1) for slope in torch.autograd.grad(answers, leaves, v)]
    asked = torch.cat([array.reshape(80, -1) for array in arrays], 1)
    alive = torch.ones(80, dtype=torch.bool)
    pairs = CallPairs(box.inputs, box.outputs, asked, answers.detach(), alive, (None,) * 3)
    tangent.see(pairs)
    tangent.learn()
    cosines = [
        float(torch.cosine_similarity(made.flatten(), exact.flatten(), 0))
        for made, exact in zip(tangent.at(pairs).pull(v).split([20, 21, 1], 1), true, strict=True)
    ]
    assert min(cosines[:2]) > 0.999 and cosines[2] > 0.9  # a stencil pushes the faces of the walls too


@pytest.mark.parametrize("shape", [((2, 9),), ((1, 7), (2,)), ((2, 5, 6),), ((1, 4, 5, 4), (1,))])
def test_a_stencils_features_times_coefficients_are_those_of_its_features(shape):
    """Numbers of the case, walls along an axis and both derivatives are among what is compared."""
    cells, case = shape[0][1:], len(shape) > 1
    periodic = (False, True, True)[-len(cells) :]
    features = _Features.of(Lattice(shape, cells), 3, 1, periodic, REACHES[-3 if case else 2])
    draws = torch.Generator().manual_seed(0)
    channels = shape[0][0] + sum(size for (size,) in shape[1:])
    grid = torch.randn(2, channels, *cells, generator=draws, dtype=torch.float64).requires_grad_()
    coefficients = torch.randn(features.count, 2, generator=draws, dtype=torch.float64)
    whole = features(grid)
    assert whole.shape == (2, *cells, features.count)
    found = features.weighed(grid, coefficients)
    torch.testing.assert_close(found, whole @ coefficients)
    v = torch.randn(found.shape, generator=draws, dtype=torch.float64)
    (slope,) = torch.autograd.grad(whole @ coefficients, grid, v, create_graph=True)
    (back,) = torch.autograd.grad(found, grid, v, create_graph=True)
    torch.testing.assert_close(back, slope)
    twice = [torch.autograd.grad(first.square().sum(), grid)[0] for first in (slope, back)]
    torch.testing.assert_close(*twice)


def test_a_stencil_of_numbers_alone_is_their_polynomial_in_each_cell():
    """No input has cells: there are no products of cells, and y = 1 + 2 p - p^2 everywhere."""

    def level(p):
        return (1 + 2 * p - p.square())[:, :, None].expand(-1, -1, 9).contiguous()

    box = FromTorch(level, (ArraySpec("p", (1,)),), (ArraySpec("y", (1, 9), layout=Grid()),))
    tangent, draws = zo.tangents.StencilTangent(ridge=1e-12), torch.Generator().manual_seed(0)
    p = torch.randn(30, 1, generator=draws, dtype=torch.float64)
    tangent.fit(p, level(p), box=box)
    outputs = tuple(spec for spec in box.outputs)
    at = tangent.at(
        CallPairs(box.inputs, outputs, p, level(p).flatten(1), torch.ones(30, dtype=torch.bool), (None,))
    )
    torch.testing.assert_close(at.values, level(p).flatten(1), rtol=1e-6, atol=1e-6)
    pulled = at.pull(torch.ones(30, 9, dtype=torch.float64))
    torch.testing.assert_close(pulled, 9 * (2 - 2 * p), rtol=1e-5, atol=1e-5)
