"""Tangents on meshes against boxes of their own form, adjoints by linear algebra, and finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.interpolate import LinearNDInterpolator
from scipy.sparse.linalg import spsolve

import zo
from blackbox import ArraySpec, Mesh
from tests.oracles.test_value_tangents import cosine, learn
from tests.zo.linearised import Instead
from tests.zo.row_boxes import FromTorch
from zo.errors import TangentError
from zo.tangents import AutoTangent, CallPairs
from zo.tangents.models.form import Form
from zo.tangents.models.lessons import listening
from zo.tangents.models.mesh.graph import FlowFit, GraphForm
from zo.tangents.models.mesh.mesh_fit import Fit
from zo.tangents.models.mesh.mesh_form import MeshForm, MeshMatrices
from zo.tangents.models.mesh.mesh_operators import Elements, incidence
from zo.tangents.models.mesh.rows_on_mesh import RowsOnMesh

SIDE = 9
NODES = SIDE * SIDE


def sheet(fixed=None) -> Mesh:
    """Triangles of a square whose inner nodes are moved a little."""
    generator = np.random.default_rng(0)
    line = np.linspace(0, 1, SIDE)
    places = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    inner = ((places > 0) & (places < 1)).all(axis=1)
    places[inner] += generator.uniform(-0.02, 0.02, (inner.sum(), 2))
    corners = np.arange(NODES).reshape(SIDE, SIDE)
    a, b, c, d = (
        corner.ravel() for corner in (corners[:-1, :-1], corners[:-1, 1:], corners[1:, :-1], corners[1:, 1:])
    )
    triangles = np.concatenate([np.stack([a, b, d], axis=1), np.stack([a, d, c], axis=1)])
    return Mesh(triangles=triangles, coordinates=places, fixed=fixed)


MESH = sheet()
GRAPH = Mesh(edges=MESH.links(), nodes=NODES)
P1 = Elements.of(MESH)


def dense(matrix) -> torch.Tensor:
    return torch.from_numpy(matrix.toarray())


def smooth(rows: int, seed: int = 0) -> torch.Tensor:
    """Fields of a few waves, `(rows, nodes)`."""
    generator = np.random.default_rng(seed)
    waves = generator.normal(size=(2, 40)) * 5
    fields = (
        generator.normal(size=(rows, 40)) @ np.cos(MESH.coordinates @ waves + generator.uniform(0, 6, 40)).T
    )
    return torch.from_numpy(fields / 4)


def pairs_of(inputs, outputs, arrays, y) -> CallPairs:
    z = torch.cat([a.flatten(1) for a, s in zip(arrays, inputs, strict=True) if s.differentiable], dim=1)
    y = y.flatten(1)
    return CallPairs(
        tuple(s for s in inputs if s.differentiable),
        outputs,
        z,
        y,
        torch.ones(len(z), dtype=torch.bool),
        tuple(None if s.differentiable else a for a, s in zip(arrays, inputs, strict=True)),
    )


def heat_system() -> tuple[torch.Tensor, torch.Tensor]:
    """(M + K) and M of a step with anisotropic diffusion, convection and decay."""
    mass = P1.mass()
    stiff = 0.004 * P1.stiffness(0, 0) + 0.007 * P1.stiffness(1, 1) + 0.05 * P1.convection(0) + 0.3 * mass
    return dense(mass + stiff), dense(mass)


def implicit_heat(u: torch.Tensor) -> torch.Tensor:
    left, mass = heat_system()
    return torch.linalg.solve(left, mass @ u.T).T + 0.3


def network() -> tuple[torch.Tensor, torch.Tensor]:
    """(C + L) and C of a step of flows with unequal conductances and capacities."""
    generator = np.random.default_rng(3)
    difference = incidence(GRAPH.links(), NODES)
    conductance = sparse.diags_array(np.exp(0.5 * generator.normal(size=difference.shape[0])))
    capacity = sparse.diags_array(np.exp(0.3 * generator.normal(size=NODES)))
    return dense(capacity + 0.5 * difference.T @ conductance @ difference), dense(capacity)


def pipes(u: torch.Tensor) -> torch.Tensor:
    left, capacity = network()
    return torch.linalg.solve(left, capacity @ u.T).T


def true_vjp(function, arrays, v) -> torch.Tensor:
    leaves = [a.clone().requires_grad_() for a in arrays]
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(function(*leaves), leaves, v)], dim=1)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("make", "mesh", "function", "rows"),
    [(zo.tangents.MeshTangent, MESH, implicit_heat, 16), (zo.tangents.GraphTangent, GRAPH, pipes, 64)],
    ids=["mesh", "graph"],
)
def test_a_box_of_the_models_own_form_has_its_vjp(make, mesh, function, rows):
    spec = (ArraySpec("u", (NODES,), layout=mesh),)
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(rows, NODES, generator=generator, dtype=torch.float64)
    z = smooth(rows) if mesh is MESH else smooth(rows) + 0.3 * rough
    tangent = make()
    learn(tangent, pairs_of(spec, spec, (z,), function(z)))
    new = smooth(3, seed=8)
    v = torch.randn(3, NODES, generator=generator, dtype=torch.float64)
    pulled = tangent.at(pairs_of(spec, spec, (new,), function(new))).pull(v)
    assert cosine(pulled, true_vjp(function, (new,), v)) > 0.999
    assert tangent.measured["error"] < 0.1


def vortices() -> torch.Tensor:
    """A call's matrix: two vortices carry a tracer, twice along its characteristics by interpolation."""
    places = MESH.coordinates
    velocity = np.zeros_like(places)
    for centre, strength in (((0.3, 0.35), 0.1), ((0.7, 0.75), -0.1)):
        away = places - centre
        size = strength * np.exp(-(away**2).sum(axis=1, keepdims=True) / 0.08)
        velocity += size * np.stack([-away[:, 1], away[:, 0]], axis=1) / 0.2
    back = np.clip(places - velocity, 0, 1)
    once = torch.from_numpy(LinearNDInterpolator(places, np.eye(NODES))(back))
    return once @ once


@pytest.mark.slow
def test_convection_over_elements_by_another_discretisation_has_its_vjp():
    """The truth is a dense matrix; the identity's cosine says how much there is to be learned."""
    step = vortices()
    spec = (ArraySpec("u", (NODES,), layout=MESH),)
    z, v = smooth(24), torch.randn(24, NODES, dtype=torch.float64)
    tangent = zo.tangents.MeshTangent()
    pairs = pairs_of(spec, spec, (z,), z @ step.T)
    learn(tangent, pairs)
    assert tangent.measured["degree"] >= 6
    assert cosine(v, v @ step) < 0.75
    assert cosine(tangent.at(pairs).pull(v), v @ step) > 0.85


@pytest.mark.slow
def test_a_grid_with_holes_is_learned_from_as_a_mesh():
    kept = np.ones((9, 9), dtype=bool)
    kept[3:5, 4:7] = False
    mesh = Mesh.of_grid(kept)
    difference = incidence(np.array([[a, b] for a, b in mesh.links().tolist()]), mesh.size)
    beside = np.abs(difference @ np.argwhere(kept)).sum(axis=1) == 1  # five points, no diagonals
    lattice = dense(difference[beside].T @ difference[beside])
    step = torch.linalg.matrix_exp(-0.5 * lattice)
    z = smooth(24)[:, torch.from_numpy(kept.ravel())]
    spec = (ArraySpec("u", (mesh.size,), layout=mesh),)
    pairs = pairs_of(spec, spec, (z,), z @ step.T)
    tangent = AutoTangent(box_of(spec, spec))
    learn(tangent, pairs)
    v = torch.randn(24, mesh.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert tangent.kind == "mesh"
    assert cosine(tangent.at(pairs).pull(v), v @ step) > 0.95  # other draws give .969 to .972


def test_coefficients_by_cell_are_sums_of_the_single_matrices():
    generator = np.random.default_rng(1)
    cells = len(P1.volume)
    tensor, velocity = generator.normal(size=(cells, 2, 2)), generator.normal(size=(cells, 2))
    reaction = generator.normal(size=cells)
    wanted = P1.mass(reaction) + sum(P1.convection(a, velocity[:, a]) for a in range(2))
    wanted = wanted + sum(P1.stiffness(a, b, tensor[:, a, b]) for a, b in np.ndindex(2, 2))
    assert np.allclose(P1.operator(tensor, velocity, reaction).toarray(), wanted.toarray())


@pytest.mark.slow
def test_loads_are_answered_by_displacements_of_several_fields():
    """K y = M f with a clamped side, two fields a node, another name and other units: a static box."""
    mass, a, b, c, d = (
        dense(matrix) for matrix in (P1.mass(), *(P1.stiffness(*p) for p in np.ndindex(2, 2)))
    )
    clamped = torch.from_numpy(MESH.coordinates[:, 0] < 1e-9)
    free = (~clamped).repeat(2)
    left = torch.cat(
        [torch.cat([a + 0.4 * d, 0.3 * b + 0.4 * c], 1), torch.cat([0.3 * c + 0.4 * b, d + 0.4 * a], 1)]
    )
    left, right = left[free][:, free], torch.block_diag(mass, mass)[free]

    def answer(load):  # (rows, nodes, 2)
        flat = load.movedim(2, 1).flatten(1)
        displacements = torch.zeros(len(load), 2 * NODES, dtype=load.dtype)
        displacements[:, free] = torch.linalg.solve(left, right @ flat.T).T
        return 1e-3 * displacements.reshape(len(load), 2, NODES).movedim(1, 2)

    inputs = (ArraySpec("load", (NODES, 2), layout=MESH),)
    outputs = (ArraySpec("displacement", (NODES, 2), layout=MESH),)
    load = torch.stack([smooth(24), smooth(24, 1)], dim=2)
    tangent = zo.tangents.MeshTangent()
    learn(tangent, pairs_of(inputs, outputs, (load,), answer(load)))
    v = torch.randn(24, NODES, 2, dtype=torch.float64)
    pulled = tangent.at(pairs_of(inputs, outputs, (load,), answer(load))).pull(v.flatten(1))
    assert cosine(pulled, true_vjp(answer, (load,), v)) > 0.999


def test_two_answers_that_follow_no_input_are_as_right_in_all_rows_as_in_those_held_out():
    difference = dense(incidence(MESH.links(), NODES))
    smoothing = torch.linalg.inv(torch.eye(NODES, dtype=torch.float64) + 0.3 * difference.T @ difference)

    def box(u):
        return torch.cat([u @ smoothing + 0.05 * u**2, u @ smoothing @ smoothing], dim=1)

    inputs = (ArraySpec("u", (NODES,), layout=MESH),)
    outputs = tuple(ArraySpec(name, (NODES,), layout=MESH) for name in ("v", "w"))
    u = 2 * smooth(16, 1)
    tangent, pairs = zo.tangents.MeshTangent(), pairs_of(inputs, outputs, (u,), box(u))
    learn(tangent, pairs)
    at = tangent.at(pairs)
    missed = float((at.values - pairs.y).norm() / (pairs.y - pairs.y.mean(0)).norm())
    assert missed < 1.5 * tangent.measured["error"] < 0.15
    v = torch.randn(16, 2 * NODES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert cosine(at.pull(v), true_vjp(box, (u,), v)) > 0.95


@pytest.mark.slow
def test_numbers_that_lie_on_no_node_stand_beside_the_step():
    """A control vector that heats places, a factor without a gradient, and a source on the nodes."""
    shapes = smooth(3, seed=5)

    def box(u, control, power, source):
        return (
            implicit_heat(u)
            + control @ shapes
            + 0.2 * power[:, None] * shapes[0]
            + 0.1 * implicit_heat(source)
        )

    inputs = (
        ArraySpec("u", (NODES,), layout=MESH),
        ArraySpec("control", (3,)),
        ArraySpec("power", (), differentiable=False),
        ArraySpec("source", (NODES,), layout=MESH),
    )
    generator = torch.Generator().manual_seed(0)
    arrays = (
        smooth(32),
        torch.randn(32, 3, generator=generator, dtype=torch.float64),
        torch.randn(32, generator=generator, dtype=torch.float64),
        smooth(32, seed=9),
    )
    tangent = zo.tangents.MeshTangent()
    pairs = pairs_of(inputs, inputs[:1], arrays, box(*arrays))
    learn(tangent, pairs)
    v = torch.randn(32, NODES, dtype=torch.float64)
    truth = true_vjp(lambda u, c, s: box(u, c, arrays[2], s), (arrays[0], arrays[1], arrays[3]), v)
    pulled = tangent.at(pairs).pull(v)
    for part in (slice(NODES), slice(NODES, NODES + 3), slice(NODES + 3, None)):
        assert cosine(pulled[:, part], truth[:, part]) > 0.99


def bent(u, source):
    """Reaction and a flux that depends on the state, so that the model takes products of fields."""
    left, mass = heat_system()
    u = u + 0.1 * (u - u**3) + 0.05 * source
    for _ in range(2):
        u = torch.linalg.solve((left + mass) / 2, mass @ u.T).T
    return u


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("make", [zo.tangents.MeshTangent, zo.tangents.GraphTangent])
def test_the_vjp_is_that_of_the_fitted_values(make, limits):
    limits(graph_iterations=4)
    inputs = (ArraySpec("u", (1, NODES), layout=MESH), ArraySpec("source", (NODES,), layout=MESH))
    arrays = smooth(12)[:, None], smooth(12, 4)
    pairs = pairs_of(inputs, inputs[:1], arrays, bent(arrays[0][:, 0], arrays[1])[:, None])
    tangent = make()
    learn(tangent, pairs)
    none = pairs.z[:, :0]
    d = torch.randn(*pairs.z.shape, dtype=torch.float64)
    ahead, behind = (tangent.values(pairs.z + sign * 1e-5 * d, none) for sign in (1, -1))
    pushed = tangent.at(pairs).push(d)
    assert torch.allclose((ahead - behind) / 2e-5, pushed, atol=1e-6)
    v = torch.randn(12, NODES, dtype=torch.float64)
    assert float((tangent.at(pairs).pull(v) * d).sum()) == pytest.approx(float((pushed * v).sum()), rel=1e-9)
    z = (pairs.z + 0.01).requires_grad_()
    change = tangent.at(pairs).to(z, (None, None))
    (slope,) = torch.autograd.grad(change, z, v)
    assert torch.allclose(change, tangent.values(z, none) - tangent.values(pairs.z, none))
    assert cosine(slope, tangent.at(pairs).pull(v)) > 0.9


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("make", [zo.tangents.MeshTangent, zo.tangents.GraphTangent])
def test_a_state_goes_on_to_the_same_bits(make, limits):
    limits(graph_iterations=4)
    spec = (ArraySpec("u", (NODES,), layout=MESH),)
    calls = [pairs_of(spec, spec, (z,), implicit_heat(z)) for z in (smooth(10), smooth(10, 1))]
    first, fresh = make(), make()
    assert fresh.state_dict() == {"form": None}
    learn(first, calls[0])
    state = copy.deepcopy(first.state_dict())
    fresh.load_state_dict(state)
    v = torch.randn(10, NODES, dtype=torch.float64)
    for pairs in calls:
        assert torch.equal(first.at(pairs).pull(v), fresh.at(pairs).pull(v))
        assert torch.equal(first.at(pairs).values, fresh.at(pairs).values)
        for tangent in (first, fresh):
            learn(tangent, pairs)
    fresh.load_state_dict({"form": None})
    assert not fresh.knows


def test_a_gradient_on_a_mesh_can_be_copied_and_both_go_on_to_the_same_bits():
    spec = ArraySpec("u", (NODES,), layout=MESH)
    box = box_of((spec,), (spec,))
    torch.manual_seed(0)
    network = torch.nn.Linear(3, NODES).double()
    gradient = zo.TangentGradient(
        network, lambda network, rows: box(network(rows)).square().mean(dim=1), boxes=[box], seed=0
    )
    batches = torch.randn(3, 4, 3, dtype=torch.float64)
    for batch in batches[:2]:
        gradient.backward(batch)
    twin = copy.deepcopy(gradient)
    for one in (gradient, twin):
        one.network.zero_grad()
        one.backward(batches[2])
    assert network.weight.grad is not None and network.weight.grad.any()
    assert twin.network is not network and torch.equal(twin.network.weight.grad, network.weight.grad)


def test_nodes_with_a_prescribed_output_have_no_derivative():
    """Found where outputs never change; the others' derivative is as of the box that holds them."""
    edge = torch.from_numpy(MESH.coordinates[:, 1] < 1e-9)
    left, mass = heat_system()

    def box(u):
        u = torch.where(edge, torch.full_like(u, 2.0), u)
        right = (mass @ u.T).T
        system = left.clone()
        system[edge] = torch.eye(NODES, dtype=u.dtype)[edge]
        return torch.linalg.solve(system, torch.where(edge, u, right).T).T

    spec = (ArraySpec("u", (NODES,), layout=MESH),)
    z, v = smooth(16), torch.randn(16, NODES, dtype=torch.float64)
    tangent = zo.tangents.MeshTangent()
    pairs = pairs_of(spec, spec, (z,), box(z))
    learn(tangent, pairs)
    pulled = tangent.at(pairs).pull(v)
    assert float(pulled[:, edge].abs().max()) == 0
    assert cosine(pulled, true_vjp(box, (z,), v)) > 0.999


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("make", [zo.tangents.MeshTangent, zo.tangents.GraphTangent])
def test_each_fit_says_how_far_it_is(make, limits):
    """A lesson without a fit says nothing, and the last number is never above that of all."""
    limits(graph_iterations=4)
    spec, heard = (ArraySpec("u", (NODES,), layout=MESH if make is zo.tangents.MeshTangent else GRAPH),), []
    tangent = make()
    with listening(lambda *far: heard.append(far)):
        for lesson, fits in enumerate((True, True, False, True, False)):
            heard.clear()
            z = smooth(12, seed=lesson)
            learn(tangent, pairs_of(spec, spec, (z,), implicit_heat(z)))
            done, most = [far for far, _ in heard], [all_of_it for _, all_of_it in heard]
            assert bool(heard) == fits and sorted(done) == list(done)
            assert not fits or (done[0] == 0 and len(done) > 2 and done[-1] == max(most) == min(most))


@pytest.mark.parametrize("make", [zo.tangents.MeshTangent, zo.tangents.GraphTangent])
def test_what_is_not_on_the_mesh_is_refused(make):
    bare = (ArraySpec("u", (NODES,)),)
    with pytest.raises(zo.errors.ConfigurationError, match=r"outputs on one mesh.*layout=blackbox\.Mesh"):
        learn(make(), pairs_of(bare, bare, (smooth(4),), smooth(4)))
    on_mesh = (ArraySpec("u", (NODES,), layout=MESH),)
    control = (ArraySpec("control", (3,)),)
    with pytest.raises(
        zo.errors.ConfigurationError, match=r"at least one input, with the 81 nodes.*MLPTangent"
    ):
        learn(make(), pairs_of(control, on_mesh, (torch.randn(4, 3).double(),), smooth(4)))
    with pytest.raises(zo.errors.ConfigurationError, match=r"mesh: expected a blackbox\.Mesh"):
        make("plate")
    with pytest.raises(zo.errors.ConfigurationError, match="ridge"):
        make(ridge=-1.0)


def test_meshes_without_what_a_tangent_needs_are_refused():
    with pytest.raises(zo.errors.ConfigurationError, match=r"triangles in two dimensions.*GraphTangent"):
        zo.tangents.MeshTangent(GRAPH)
    with pytest.raises(zo.errors.ConfigurationError, match=r"edges between different nodes.*MLPTangent"):
        zo.tangents.GraphTangent(Mesh(edges=np.zeros((0, 2), dtype=int), nodes=3))


def box_of(inputs, outputs) -> FromTorch:
    return FromTorch(lambda *arrays: arrays[0], tuple(inputs), tuple(outputs))


U = ArraySpec("u", (NODES,), layout=MESH)


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ((U,), (U,), ["AutoTangent(MeshTangent(None", "MLPTangent", "Mesh(81 nodes", "as its specs say"]),
        (
            (ArraySpec("h", (NODES,), layout=GRAPH),) * 1,
            (ArraySpec("h", (NODES,), layout=GRAPH),),
            ["(GraphTangent("],
        ),
        ((ArraySpec("c", (3,)),), (U,), ["AutoTangent(KernelTangent", "no input lies on"]),
        ((U,), (U, ArraySpec("drag", ())), ["AutoTangent(MLPTangent", "not all outputs lie on one"]),
        (
            (ArraySpec("u", (1, 16)),),
            (ArraySpec("u", (1, 16)),),
            ["GridTangent", "a grid by its shape (1, 16)"],
        ),
        (
            (ArraySpec("u", (1, 16), layout=None),) * 1,
            (ArraySpec("u", (1, 16), layout=None),),
            ["(KernelTangent", "no grid"],
        ),
        (
            (ArraySpec("u", (8,), layout="grid"),),
            (ArraySpec("u", (8,), layout="grid"),),
            ["GridTangent", "specs say"],
        ),
        ((ArraySpec("u", (8,)),), (ArraySpec("u", (8,)),), ["(KernelTangent", "by its shape (8,)"]),
        (
            (ArraySpec("u", (8,)),),
            (ArraySpec("u", (8,)), ArraySpec("power", (2,))),
            ["(KernelTangent", "tables of numbers by their shapes (8,), (2,); if one is a grid"],
        ),
    ],
)
def test_the_layout_chooses_the_kind_and_the_repr_says_why(inputs, outputs, words):
    said = repr(AutoTangent(box_of(inputs, outputs)))
    assert all(word in said for word in words), said


def test_a_grid_whose_ends_meet_is_told_so():
    from blackbox import Grid

    spec = ArraySpec("u", (1, 24), layout=Grid(periodic=True))
    said = repr(AutoTangent(box_of([spec], [spec])))
    assert (
        "GridTangent(channels=24, periodic=True" in said and "StencilTangent(degree=3, periodic=True" in said
    )
    with pytest.raises(zo.errors.ConfigurationError, match="to lie on one grid"):
        AutoTangent(box_of([spec], [spec, ArraySpec("v", (3, 7, 9), layout="grid")]))


@pytest.mark.parametrize("layout", ["auto", None])
def test_what_is_advised_for_an_output_off_the_grid_is_taken(layout):
    """`layout=None` was the advice, and was refused with the same advice again."""
    line, drag = ArraySpec("u", (24,), layout="grid"), ArraySpec("drag", (), layout=layout)
    told = r"'drag' \(\)\. Say differentiable=False.*leave layout"
    with pytest.raises(zo.errors.ConfigurationError, match=told):
        AutoTangent(box_of([line], [line, drag]))
    no_gradient = ArraySpec("drag", (), layout=layout, differentiable=False)
    assert "GridTangent" in repr(AutoTangent(box_of([line], [line, no_gradient])))
    no_layout = ArraySpec("u", (24,))
    said = repr(AutoTangent(box_of([no_layout], [no_layout, drag])))
    assert "MLPTangent" in said and "GridTangent" not in said


@pytest.mark.parametrize(
    ("mesh", "function", "kind"),
    [(MESH, implicit_heat, "mesh"), pytest.param(GRAPH, pipes, "graph", marks=pytest.mark.slow)],
)
def test_a_field_is_found_through_two_calls(mesh, function, kind):
    """Training of a number at each node through `TangentGradient`, without a setting."""
    spec = (ArraySpec("u", (NODES,), layout=mesh),)
    box = FromTorch(function, spec, spec)
    goal = smooth(1, seed=2)[0]
    states = smooth(8)
    wanted = function(function(states + goal))

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.field = torch.nn.Parameter(torch.zeros(NODES, dtype=torch.float64))

        def forward(self, u):
            return u + self.field

    def objective(network, batch):
        u, y = batch
        return (box(box(network(u))) - y).square().mean(dim=1)

    network = Field()
    gradient = zo.TangentGradient(network, objective, boxes=[box], seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.2)
    losses = []
    for _ in range(24):
        optimizer.zero_grad()
        losses.append(float(gradient.backward((states, wanted))))
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]
    assert gradient.tangents[0].kind == kind and not gradient.watch.lost


def test_another_kind_takes_over_where_the_mesh_fails(monkeypatch):
    spec = (ArraySpec("u", (NODES,), layout=MESH),)
    tangent = AutoTangent(FromTorch(implicit_heat, spec, spec))
    learn(tangent, pairs_of(spec, spec, (smooth(10),), implicit_heat(smooth(10))))
    assert "twice the rows" in tangent.improve()
    assert "MLPTangent" in tangent.improve() and list(tangent.models) == ["mesh", "mlp"]
    mesh = tangent.models["mesh"]
    at = mesh.at
    monkeypatch.setattr(mesh, "at", lambda rows: Instead(at(rows), values=lambda _: 9 + rows.y))
    learn(tangent, pairs_of(spec, spec, (smooth(10, seed=1),), implicit_heat(smooth(10, seed=1))))
    assert tangent.kind == "mlp"


def test_a_constant_box_has_no_derivative_and_no_failure():
    spec = (ArraySpec("u", (NODES,), layout=MESH),)
    tangent = AutoTangent(FromTorch(torch.zeros_like, spec, spec))
    pairs = pairs_of(spec, spec, (smooth(10),), torch.zeros(10, NODES))
    learn(tangent, pairs)
    assert tangent.kind == "mesh"
    assert float(tangent.at(pairs).values.abs().max()) < 1e-6


def test_where_no_step_can_be_fitted_the_next_kind_begins_and_that_is_said(monkeypatch):
    def fails(*_: object) -> None:
        raise TangentError("no step")

    monkeypatch.setattr(zo.tangents.MeshTangent, "fitted", fails)
    spec = (ArraySpec("u", (NODES,), layout=MESH),)
    tangent = AutoTangent(FromTorch(implicit_heat, spec, spec))
    pairs = pairs_of(spec, spec, (smooth(10),), implicit_heat(smooth(10)))
    with pytest.warns(zo.TangentWarning, match=r"no step MLPTangent\(.* takes over from MeshTangent"):
        learn(tangent, pairs)
    assert tangent.kind == "mlp" and tangent.model.knows
    alone = zo.tangents.MeshTangent()
    with pytest.raises(TangentError, match="no step"):
        learn(alone, pairs)


def test_tetrahedra_and_rows_that_failed():
    """A cube of tetrahedra; a row that is not finite is left out."""
    line = np.arange(4)
    places = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3) / 3
    number = np.arange(64).reshape(4, 4, 4)
    cells = []
    for i, j, k in np.ndindex(3, 3, 3):
        c = number[i : i + 2, j : j + 2, k : k + 2].ravel()
        cells += [[c[0], c[7], c[a], c[b]] for a, b in ((1, 3), (3, 2), (2, 6), (6, 4), (4, 5), (5, 1))]
    mesh = Mesh(tetrahedra=cells, coordinates=places)
    elements = Elements.of(mesh)
    assert elements.mass().sum() == pytest.approx(1.0) and np.allclose(
        elements.stiffness(0, 0).sum(axis=1), 0
    )
    stiff = sum(elements.stiffness(a, a) for a in range(3))
    left = (elements.mass() + 0.02 * stiff).tocsc()
    z = torch.randn(20, 64, dtype=torch.float64)
    y = torch.from_numpy(spsolve(left, elements.mass() @ z.numpy().T).T.copy())
    spec = (ArraySpec("u", (64,), layout=mesh),)
    tangent = zo.tangents.MeshTangent()
    spoiled = y.clone()
    spoiled[3] = float("nan")
    learn(tangent, pairs_of(spec, spec, (z,), spoiled))
    v = torch.randn(20, 64, dtype=torch.float64)
    truth = torch.from_numpy(elements.mass() @ spsolve(left.T.tocsc(), v.numpy().T)).T
    assert cosine(tangent.at(pairs_of(spec, spec, (z,), y)).pull(v), truth) > 0.999


def fit_of(inputs, outputs, arrays, y, steps, products) -> Fit:
    """Of a plain form, by all rows."""
    tangent = zo.tangents.MeshTangent()
    pairs = pairs_of(inputs, outputs, arrays, y)
    learn(tangent, pairs)
    units = {name: each.numpy() for name, each in tangent.state_dict()["fit"]["units"].items()}
    rows = RowsOnMesh.of("Test", Form(inputs, outputs, ()), MESH).read(
        units, pairs.z.numpy(), np.zeros((len(y), 0)), pairs.y.numpy()
    )
    form = MeshForm(
        MeshMatrices(Elements.of(MESH)), 0, steps, products, (), rows.carried, rows.extras.shape[1]
    )
    return Fit(form, rows, 1e-4)


@pytest.mark.slow
def test_the_cost_of_a_fit_has_the_slope_of_its_differences():
    """With what rough waves that stay add to it."""
    spec = (ArraySpec("u", (NODES,), layout=MESH),)
    z = smooth(8)
    fit = fit_of(spec, spec, (z,), (z + torch.sin(z)) / 2, 2, "nodes")
    theta = fit.first() + 1e-3
    theta[1] = 0.55
    _, slope = fit.sloped(theta)
    for own in range(len(theta)):
        ahead, behind = (fit.cost(theta + sign * 1e-6 * np.eye(len(theta))[own])[0] for sign in (1, -1))
        assert slope[own] == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_the_cost_of_flows_has_the_slope_of_its_differences():
    """Of steps with sources and cubes along edges, at numbers of no symmetry."""
    spec = (ArraySpec("h", (NODES,), layout=GRAPH),)
    z = smooth(4)
    tangent = zo.tangents.GraphTangent()
    pairs = pairs_of(spec, spec, (z,), (z + torch.sin(z)) / 2)
    learn(tangent, pairs)
    units = {name: unit.numpy() for name, unit in tangent.state_dict()["fit"]["units"].items()}
    rows = RowsOnMesh.of("Test", Form(spec, spec, ()), GRAPH).read(
        units, pairs.z.numpy(), np.zeros((len(z), 0)), pairs.y.numpy()
    )
    flows = GraphForm(GRAPH.links(), NODES, 2, True, True, rows.carried, rows.extras.shape[1])
    fit = FlowFit(flows, rows, 1e-3)
    theta = flows.start() + 0.1 * np.random.default_rng(2).normal(size=sum(flows.sizes))
    _, slope = fit.sloped(theta)
    for place in range(0, len(theta), 7):
        step = 1e-6 * np.eye(len(theta))[place]
        ahead, behind = (fit.cost(theta + sign * step)[0] for sign in (1, -1))
        assert slope[place] == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-7)


def test_rough_waves_that_stay_cost_something_unless_convection_differs_from_place_to_place():
    spec = (ArraySpec("u", (NODES,), layout=MESH),)
    z = smooth(8)
    fit = fit_of(spec, spec, (z,), z / 2, 2, "none")
    theta = fit.form.start()
    costs = []
    for implicit in (0.5, 0.6, 0.75, 1.0):
        theta[1] = implicit
        costs.append(fit._ringing(theta)[0])
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0
    convection = [own for own, kind in enumerate(fit.form.kinds) if kind[2][0] == "convection"]
    along = Fit(replace(fit.form, varied=tuple(convection)), fit.rows, 1e-4)
    theta[1] = 0.5
    assert along._ringing(theta)[0] == 0


NOISE = torch.randn(10, NODES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def of_constant(make, stiff, power, dtype):
    """The gradient by a field and a number that are constant, beside a load that varies."""
    specs = tuple(ArraySpec(name, (NODES,), layout=MESH) for name in ("load", "stiff", "u"))
    inputs = (*specs[:2], ArraySpec("power", (1,)))
    arrays = [part.to(dtype) for part in (smooth(10), stiff, power)]
    pairs = pairs_of(inputs, specs[2:], arrays, implicit_heat(smooth(10)).to(dtype))
    tangent = make(MESH)
    learn(tangent, pairs)
    return tangent.at(pairs).pull(torch.ones_like(pairs.y)).double()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("make", [zo.tangents.MeshTangent, zo.tangents.GraphTangent])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e-16), (torch.float32, 1e-7)])
def test_what_varies_by_rounding_alone_counts_as_constant(make, dtype, size, limits, monkeypatch):
    limits(graph_iterations=4)
    monkeypatch.setattr("zo.tangents.models.mesh.mesh.VARIED", ())
    monkeypatch.setattr("zo.tangents.models.mesh.mesh.STATIC", ((1, "none"),))
    monkeypatch.setattr("zo.tangents.models.mesh.graph.FORMS", ((1, False, False),))
    same = of_constant(make, torch.full((10, NODES), 0.1), torch.full((10, 1), 1e5), dtype)
    varied = 0.1 * (1 + size * NOISE), 1e5 * (1 + size * NOISE[:, :1])
    rounded = of_constant(make, *varied, dtype)
    assert rounded.isfinite().all()
    for part in (slice(NODES, 2 * NODES), slice(2 * NODES, None)):
        assert float(rounded[:, part].norm()) <= float(same[:, part].norm()) * 1.01 + 1e-9


@pytest.mark.parametrize("size", [0.0, 1e-16])
def test_of_one_density_everywhere_no_step_is_fitted_to_its_rounding(size):
    """Sums of equal numbers have rounding too: of .1 the mean is not .1."""
    density = 0.1 * (1 + size * NOISE[:1])
    tangent = zo.tangents.MeshTangent(MESH)
    with pytest.raises(TangentError, match="a step that can be solved"):
        learn(
            tangent,
            pairs_of(
                (ArraySpec("density", (NODES,), layout=MESH),),
                (ArraySpec("u", (NODES,), layout=MESH),),
                (density,),
                smooth(1),
            ),
        )
