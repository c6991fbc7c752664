"""`zo.jax.differentiable`: JAX's own derivative, and the bits of `zo.differentiable`."""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction, Budgeted
from blackbox.errors import BudgetError, CountError, DtypeError, RowFailedError, ShapeError
from blackbox.extras import MissingExtraError
from zo.errors import ConfigurationError, DerivativeError, FailedQueriesError

CGE = zo.CGE(mu=1e-5, central=True)
ESTIMATORS = {
    "cge": lambda: dict(estimator=zo.CGE(mu=1e-3, central=True)),
    "directions": lambda: dict(estimator=zo.box_gradient.RowRGE(mu=1e-3, q=2)),
    "network": lambda: dict(tangent=zo.tangents.MLPTangent()),
}


class Pump(BlackBoxFunction):
    """Two outputs with a derivative and one without, from two inputs with and two without."""

    inputs = (
        ArraySpec("x", (3,)),
        ArraySpec("gain", ()),
        ArraySpec("k", (), "int64"),
        ArraySpec("fixed", (), differentiable=False),
    )
    outputs = (ArraySpec("y", (2,)), ArraySpec("n", (), "int64"), ArraySpec("z", ()))

    def __init__(self, failures: Any = "raise") -> None:
        super().__init__(failures=failures)
        self.calls: list[int] = []
        self.dtypes: list[str] = []

    def evaluate_rows(self, x: Any, gain: Any, k: Any, fixed: Any) -> Any:
        self.calls.append(len(x))
        self.dtypes.append(f"{x.dtype}, {k.dtype}")
        if (x > 50).any():
            raise ValueError("nine")
        y = np.stack([np.sin(x).sum(1) * gain, (x**2).sum(1) + k * fixed], 1)
        return y, k + 1, np.cos(x[:, 0])


class WidePump(Pump):
    """The same in 64 bits, whatever JAX has."""

    inputs = (
        ArraySpec("x", (3,), "float64"),
        ArraySpec("gain", (), "float64"),
        ArraySpec("k", (), "int64"),
        ArraySpec("fixed", (), "float64", differentiable=False),
    )
    outputs = (ArraySpec("y", (2,), "float64"), ArraySpec("n", (), "int64"), ArraySpec("z", (), "float64"))


class Wave(BlackBoxFunction):
    """Three numbers in, three out; NaN above nine."""

    inputs = (ArraySpec("x", (3,)),)
    outputs = (ArraySpec("y", (3,)),)

    def __init__(self, failures: Any = "keep") -> None:
        super().__init__(failures=failures)
        self.calls: list[int] = []

    def evaluate_rows(self, x: Any) -> Any:
        self.calls.append(len(x))
        return np.where(x > 9, np.nan, np.sin(x) * x[:, ::-1])


@pytest.fixture
def jax() -> Iterator[Any]:
    import jax

    before = jax.config.read("jax_enable_x64")
    yield jax
    jax.config.update("jax_enable_x64", before)


def wide(jax: Any) -> None:
    jax.config.update("jax_enable_x64", True)


def arrays_of(*leading: int, dtype: Any = np.float64) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    x, gain, fixed = (random.normal(size=(*leading, *shape)).astype(dtype) for shape in ((3,), (), ()))
    return x, gain, random.integers(0, 5, leading).astype(np.int32), fixed


def pump_in_jax(jax: Any, x: Any, gain: Any, k: Any, fixed: Any) -> Any:
    first, second = jax.numpy.sin(x).sum(-1) * gain, (x**2).sum(-1) + k * fixed
    return jax.numpy.stack([first, second], -1), k + 1, jax.numpy.cos(x[..., 0])


def loss_of(solve: Callable[..., Any], k: Any, fixed: Any) -> Callable[..., Any]:
    def loss(x: Any, gain: Any) -> Any:
        y, n, z = solve(x, gain, k, fixed)
        return (y**2).sum() + (z * n).sum()

    return loss


def close(jax: Any, results: Any, expected: Any, tolerance: float) -> None:
    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True)
    for result, wanted in pairs:
        np.testing.assert_allclose(result, wanted, rtol=tolerance, atol=tolerance)


def same_bits(jax: Any, results: Any, expected: Any) -> None:
    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True)
    for result, wanted in pairs:
        assert result.dtype == wanted.dtype
        np.testing.assert_array_equal(result, wanted)


# Against JAX's own derivative


@pytest.mark.needs("jax")
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_gradients_are_those_of_jax(jax, leading):
    wide(jax)
    x, gain, k, fixed = arrays_of(*leading)
    loss = loss_of(zo.jax.differentiable(Pump(), CGE), k, fixed)
    expected = jax.value_and_grad(loss_of(lambda *arrays: pump_in_jax(jax, *arrays), k, fixed), (0, 1))(
        x, gain
    )
    ways = {
        "eager": jax.value_and_grad(loss, (0, 1)),
        "jit of grad": jax.jit(jax.value_and_grad(loss, (0, 1))),
        "grad of jit": jax.value_and_grad(jax.jit(loss), (0, 1)),
        "checkpoint": jax.jit(jax.value_and_grad(jax.checkpoint(loss), (0, 1))),
    }
    for way in ways.values():
        close(jax, way(x, gain), expected, 1e-8)


@pytest.mark.needs("jax")
def test_vmap_adds_rows_to_one_call(jax):
    wide(jax)
    x, gain, k, fixed = arrays_of(2, 3)

    def loss(solve: Callable[..., Any]) -> Callable[..., Any]:
        def of_row(x: Any, gain: Any, k: Any, fixed: Any) -> Any:
            y, n, z = solve(x, gain, k, fixed)
            return (y**2).sum() + z * n

        return of_row

    def nested(of_row: Callable[..., Any], gain_axis: int | None) -> Callable[..., Any]:
        inner = jax.vmap(of_row, (0, None, 0, 0))
        return jax.vmap(inner, (0, gain_axis, 0, 0))

    def summed(of_rows: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arrays: of_rows(*arrays).sum()

    exact = loss(lambda *arrays: pump_in_jax(jax, *arrays))
    for gains, axis in ((gain[0, 0], None), (gain[:, 0], 0)):  # one for all rows, or one for three
        box = Pump()
        ours = loss(zo.jax.differentiable(box, CGE, check=False))
        args = x, gains, k, fixed
        for of_each in (True, False):  # grad within vmap, and around it
            box.calls.clear()
            found, expected = (
                jax.jit(nested(jax.grad(of_row, (0, 1)), axis))(*args)
                if of_each
                else jax.jit(jax.grad(summed(nested(of_row, axis)), (0, 1)))(*args)
                for of_row in (ours, exact)
            )
            close(jax, found, expected, 1e-8)
            assert box.calls == [6, 6 * 2 * 4]


@pytest.mark.needs("jax")
def test_a_jacobian_takes_a_row_for_each_output(jax):
    wide(jax)
    x, gain, k, fixed = arrays_of()
    box = Pump()
    solve = zo.jax.differentiable(box, CGE, check=False)
    found = jax.jit(jax.jacrev(lambda x: solve(x, gain, k, fixed)[0]))(x)
    expected = jax.jacfwd(lambda x: pump_in_jax(jax, x, gain, k, fixed)[0])(x)
    close(jax, found, expected, 1e-8)
    assert box.calls == [1, 2 * 2 * 3]


@pytest.mark.needs("jax")
def test_control_flow(jax):
    wide(jax)
    x = arrays_of(4)[0] / 9
    box = Wave()
    solve = zo.jax.differentiable(box, CGE, seed=0)

    def rollout(step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: jax.lax.scan(lambda x, _: (x + 0.1 * step(x), None), x, None, 5)[0].sum()

    def wave(x: Any) -> Any:
        return jax.numpy.sin(x) * x[:, ::-1]

    close(jax, jax.jit(jax.grad(rollout(solve)))(x), jax.grad(rollout(wave))(x), 1e-8)

    def either(step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: jax.lax.cond(x[0, 0] < 9, lambda x: step(x).sum(), lambda x: x.sum(), x)

    box.calls.clear()
    close(jax, jax.jit(jax.grad(either(solve)))(x), jax.grad(either(wave))(x), 1e-8)
    box.calls.clear()
    assert jax.jit(either(solve))(x + 10) == (x + 10).sum() and not box.calls


def branches(jax: Any, step: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Functions of `(2, 3)` that call a box in one branch, of whose rows some go the other way."""
    lax = jax.lax

    def either(x: Any) -> Any:
        return lax.cond(x[0, 0] > 0, lambda x: step(x).sum(), lambda x: (2 * x).sum(), x)

    def one_of_three(x: Any) -> Any:
        which = jax.numpy.clip(x[0, 0] * 9, -1, 1).astype("int32") + 1
        ways = [lambda x: (x**2).sum(), lambda x: (step(x) ** 2).sum(), lambda x: (3 * step(2 * x)).sum()]
        return lax.switch(which, ways, x)

    def in_a_rollout(x: Any) -> Any:
        def advance(x: Any, _: Any) -> Any:
            return lax.cond(x[0, 0] > 0, lambda x: x - 0.4 * step(x), lambda x: 1.1 * x, x), None

        return lax.scan(advance, x, None, 4)[0].sum()

    return {"cond": either, "switch": one_of_three, "scan": in_a_rollout}


@pytest.mark.needs("jax")
@pytest.mark.parametrize("kind", ["cond", "switch", "scan"])
@pytest.mark.parametrize("compiled", [False, True])
def test_vmap_of_branches_of_which_one_calls_the_box(jax, kind, compiled):
    """What the other way leaves to the backward pass is no row: not asked, and not learned from."""
    wide(jax)
    random = np.random.default_rng(3)
    x, box = random.normal(size=(2, 4, 2, 3)), Wave()
    solve = zo.jax.differentiable(box, CGE, seed=0)
    jax.grad(lambda x: solve(x).sum())(x[0, 0])  # from here on the number of a call is not 0

    def wave(x: Any) -> Any:
        return jax.numpy.sin(x) * x[:, ::-1]

    def mapped(step: Callable[..., Any]) -> Callable[..., Any]:
        gradient = jax.vmap(jax.vmap(jax.grad(branches(jax, step)[kind])))
        return jax.jit(gradient) if compiled else gradient

    close(jax, mapped(solve)(x), mapped(wave)(x), 1e-7)
    if kind == "cond":
        taken = int((x[..., 0, 0] > 0).sum())
        assert 0 < taken < 8 and max(box.calls) == taken * 2 * 2 * 3  # rows, signs, numbers of each
    nobody = -np.abs(x)
    box.calls.clear()
    same_bits(jax, mapped(solve)(nobody), mapped(wave)(nobody))
    assert kind == "scan" or max(box.calls) == 16  # the forward pass


@pytest.mark.needs("jax")
def test_a_tangent_learns_nothing_from_branches_that_are_not_taken(jax):
    wide(jax)
    x = np.random.default_rng(3).normal(size=(12, 1, 3))
    learned = []
    for rows in (x, x[x[:, 0, 0] > 0]):
        solve = zo.jax.differentiable(Wave(), tangent=zo.tangents.MLPTangent(), seed=0)

        def either(x: Any, solve: Any = solve) -> Any:
            return jax.lax.cond(x[0, 0] > 0, lambda x: solve(x).sum(), lambda x: x.sum(), x)

        for _ in range(3):
            gradient = jax.vmap(jax.grad(either))(rows)
        learned.append(np.asarray(gradient)[rows[:, 0, 0] > 0])
    same_bits(jax, *learned)


@pytest.mark.needs("jax")
@pytest.mark.parametrize("bits", [32, 64])
def test_the_dtype_that_is_advised_is_one_that_jax_has(jax, bits):
    jax.config.update("jax_enable_x64", bits == 64)
    for kind in ("float64", "int64"):

        class Narrow(Wave):
            inputs = outputs = (ArraySpec("x", (3,), kind),)

        solve, half = (
            zo.jax.differentiable(Pump() if kind == "int64" else Narrow(), CGE),
            np.ones(3, "float16"),
        )
        with pytest.raises(DtypeError, match=f"astype..{kind[:-2]}{bits}"):
            arrays = arrays_of()
            solve(half) if kind == "float64" else solve(arrays[0], arrays[1], half[0], arrays[3])


# Against zo.differentiable, to the bit


def by_torch(solver: Any, steps: list[Any], wider: bool = False) -> list[Any]:
    """Values of two calls one after the other, and gradients, step after step."""
    results = []
    for x, cotangent in steps:
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        inner = torch.clone(leaf.double() if wider else leaf)
        first = solver(inner)
        second = solver(first)
        v = torch.from_numpy(cotangent)
        (gradient,) = torch.autograd.grad(second, leaf, v.double() if wider else v)
        results += [second.detach().numpy(), gradient.numpy()]
    return results


def steps_of(dtype: Any, rows: int = 9) -> list[Any]:
    random = np.random.default_rng(1)
    return [tuple(random.normal(size=(rows, 3)).astype(dtype) for _ in range(2)) for _ in range(4)]


@pytest.mark.needs("jax")
@pytest.mark.filterwarnings("ignore:Wave")  # of slopes in float32, in both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("compiled", [False, True])
def test_steps_have_the_bits_of_zo_differentiable(jax, dtype, name, compiled):
    if dtype == np.float64:
        wide(jax)
    solver = zo.differentiable(Wave(), **ESTIMATORS[name](), seed=3)
    expected = by_torch(solver, steps_of(dtype))
    solve = zo.jax.differentiable(Wave(), **ESTIMATORS[name](), seed=3)

    def step(x: Any, cotangent: Any) -> Any:
        value, back = jax.vjp(lambda x: solve(solve(x)), x)
        return value, back(cotangent)[0]

    run = jax.jit(step) if compiled else step
    results = [jax.block_until_ready(run(*arrays)) for arrays in steps_of(dtype)]
    same_bits(jax, results, expected)
    assert solve.solver.counts == solver.counts and solver.counts.calls == 8
    assert solve.solver.trust == solver.trust
    ours, theirs = solve.solver.box.ledger, solver.box.ledger
    assert (ours.calls, ours.rows_run) == (theirs.calls, theirs.rows_run)


class WideWave(Wave):
    inputs = (ArraySpec("x", (3,), "float64"),)
    outputs = (ArraySpec("y", (3,), "float64"),)


@pytest.mark.needs("jax")
def test_a_box_of_64_bits_where_jax_has_32(jax):
    """Differences of answers that were rounded to float32 would be off by 1e-7 / mu."""
    mu = zo.CGE(mu=1e-6)
    box = WidePump()
    solve = zo.jax.differentiable(box, mu, seed=0)
    x, gain, k, fixed = arrays_of(4, dtype=np.float32)
    found = jax.jit(jax.grad(loss_of(solve, k, fixed), (0, 1)))(x, gain)
    assert {array.dtype for array in found} == {np.dtype(np.float32)}
    assert set(box.dtypes) == {"float64, int64"}
    y, n, z = jax.jit(solve)(x, gain, k, fixed)
    exact = box(x.astype(float), gain.astype(float), k.astype(int), fixed.astype(float))
    same_bits(jax, (y, n, z), [e.astype(d) for e, d in zip(exact, ("f4", "i4", "f4"), strict=True)])
    leaves = [torch.from_numpy(array).double().requires_grad_() for array in (x, gain)]
    solver = zo.differentiable(WidePump(), mu, seed=0)
    y, n, z = solver(*leaves, torch.from_numpy(k).long(), torch.from_numpy(fixed).double())
    arriving = [(2 * y.detach().float()).double(), n.float().double()]  # as JAX's loss has them
    expected = torch.autograd.grad([y, z], leaves, arriving)
    same_bits(jax, found, [gradient.float().numpy() for gradient in expected])
    wide(jax)
    exact = jax.grad(loss_of(lambda *arrays: pump_in_jax(jax, *arrays), k, fixed), (0, 1))(
        x.astype(float), gain.astype(float)
    )
    close(jax, found, exact, 2e-5)


# What is asked, and what is not


@pytest.mark.needs("jax")
def test_only_wanted_gradients_are_asked_for(jax):
    x, gain, k, fixed = arrays_of(4, dtype=np.float32)
    box = Pump()
    solve = zo.jax.differentiable(box, zo.CGE(mu=1e-2), check=False)

    def run(function: Callable[..., Any], *arrays: Any) -> list[int]:
        box.calls.clear()
        jax.block_until_ready(jax.jit(function)(*arrays))
        return box.calls

    assert run(lambda x: solve(x, gain, k, fixed), x) == [4]
    assert run(jax.grad(lambda x: solve(x, gain, k, fixed)[0].sum()), x) == [4, 4 * 3]
    assert run(jax.grad(lambda gain: solve(x, gain, k, fixed)[0].sum()), gain) == [4, 4]
    for unused in (
        lambda x: solve(x, gain, k, fixed)[1].sum() * x.sum(),  # a whole number
        lambda x: solve(jax.lax.stop_gradient(x), gain, k, fixed)[0].sum() * x.sum(),
        lambda x: solve(x[:1] * 0, gain[:1], k[:1], x.sum()[None])[1].sum() * x.sum(),
    ):
        assert len(run(jax.grad(unused), x)) == 1
    assert solve.solver.counts.rows == 4 * 4


@pytest.mark.needs("jax")
def test_whole_numbers_have_a_derivative_of_zero(jax):
    x, gain, k, fixed = arrays_of(4, dtype=np.float32)
    solve = zo.jax.differentiable(Pump(), zo.CGE(mu=1e-2), check=False)
    loss = lambda tree: solve(**tree)[0].sum()  # noqa: E731
    found = jax.grad(loss, allow_int=True)({"x": x, "gain": gain, "k": k, "fixed": fixed})
    assert found["k"].dtype == jax.dtypes.float0 and found["k"].shape == (4,)
    assert not found["fixed"].any() and found["x"].all()
    same_bits(jax, jax.grad(lambda x: solve(x, fixed=fixed, k=k, gain=gain)[0].sum())(x), found["x"])


@pytest.mark.needs("jax")
def test_tracing_evaluates_and_counts_nothing(jax):
    box = Wave()
    solve = zo.jax.differentiable(box, tangent=zo.tangents.KernelTangent(), seed=0)
    traced = []

    @jax.jit
    def step(x: Any) -> Any:
        traced.append(x.shape)
        return jax.grad(lambda x: solve(x).sum())(x)

    step.lower(jax.ShapeDtypeStruct((5, 3), np.float32))
    assert not box.calls and solve.solver.counts == zo.box_gradient.RowCounts()
    for rows in (2, 3, 2):  # traced anew for each shape alone; what was learned stays
        jax.block_until_ready(step(np.ones((rows, 3), np.float32)))
    assert traced == [(5, 3), (2, 3), (3, 3)] and solve.solver.counts.calls == 3
    constant = jax.jit(lambda: solve(np.ones((2, 3), np.float32)))
    box.calls.clear()
    jax.block_until_ready([constant(), constant()])
    assert box.calls == [2, 2]  # not once and for all when it was traced


@pytest.mark.needs("jax")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_policy_of_checkpoint_keeps_the_answers(jax, compiled):
    """Without it the base of each step is asked twice, and the backward pass draws by the second number."""
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    rule, kept = zo.box_gradient.RowRGE(mu=1e-2, q=1), jax.checkpoint_policies.save_only_these_names("zo.jax")

    def run(again: Callable[..., Any]) -> tuple[Any, list[int]]:
        box = Wave()
        solve = zo.jax.differentiable(box, rule, seed=0, check=False)

        def advance(x: Any, _: Any) -> Any:
            return jax.numpy.tanh(x) + 0.1 * solve(jax.numpy.cos(x)), None

        def rollout(x: Any) -> Any:
            return jax.lax.scan(again(advance), x, None, 3)[0].sum()

        run = jax.value_and_grad(rollout)
        return jax.block_until_ready((jax.jit(run) if compiled else run)(x)), box.calls

    expected, calls = run(lambda function: function)
    found, calls_with_policy = run(lambda function: jax.checkpoint(function, policy=kept))
    same_bits(jax, found, expected)
    assert calls == calls_with_policy == [4] * 6
    assert run(jax.checkpoint)[1] == [4] * 9


@pytest.mark.needs("jax")
def test_vmap_without_jit_compiles_once(jax):
    """A program for each call would slow each step down, and none of them would be given back."""
    solve = zo.jax.differentiable(Wave(), zo.CGE(mu=1e-2), seed=0, check=False)
    gradient = jax.vmap(jax.grad(lambda x: solve(x).sum()))
    x = np.ones((2, 3), np.float32)
    compiled = []

    def heard(name: str, seconds: float, **_: Any) -> None:
        if "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        gradient(x)
        first = len(compiled)
        gradient(x)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert first and len(compiled) == first


@pytest.mark.needs("jax")
@pytest.mark.filterwarnings("ignore:Wave")
def test_a_run_goes_on_from_its_state_to_the_same_bits(jax):
    def made() -> Any:
        return zo.jax.differentiable(Wave(), tangent=zo.tangents.KernelTangent(), seed=3)

    def run(solve: Any, steps: Any) -> Any:
        step = jax.jit(lambda x, v: jax.vjp(solve, x)[1](v)[0])
        return jax.block_until_ready([step(*arrays) for arrays in steps])

    steps = steps_of(np.float32)
    whole, half, other = made(), made(), made()
    expected = run(whole, steps)
    run(half, steps[:2])
    copied, pickled = copy.deepcopy(half), pickle.loads(pickle.dumps(half))
    other.solver.load_state_dict(half.solver.state_dict())
    for solve in (half, copied, pickled, other):
        same_bits(jax, run(solve, steps[2:]), expected[2:])


@pytest.mark.needs("jax")
def test_numbered_calls_draw_by_their_numbers(jax):
    """Three calls that do not depend on each other: XLA runs them in an order of its own, each time anew."""
    rule, steps = zo.box_gradient.RowRGE(mu=1e-3, q=1), steps_of(np.float32, rows=2)[:3]
    solver = zo.differentiable(Wave(), rule, seed=3, check=False)
    expected = []
    for x, v in steps:
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        (gradient,) = torch.autograd.grad(solver(leaf), leaf, torch.from_numpy(v))
        expected.append(gradient.numpy())
    solve = zo.jax.differentiable(Wave(), rule, seed=3, check=False)

    @jax.jit
    def backward(first: Any) -> Any:
        def of(number: int) -> Any:
            x, v = steps[number]
            return jax.vjp(lambda x: solve.numbered(first + number, x), jax.numpy.asarray(x))[1](v)[0]

        return [of(2), of(1), of(0)][::-1]

    for _ in range(5):
        same_bits(jax, backward(0), expected)
    assert solve.solver.counts.calls == 15
    assert any((a != b).any() for a, b in zip(backward(7), expected, strict=True))


@pytest.mark.needs("jax")
def test_one_number_for_all_rows(jax):
    solve = zo.jax.differentiable(Wave(), zo.CGE(mu=1e-2), check=False)
    x, number = np.ones((2, 3), np.float32), np.arange(2)
    same_bits(jax, jax.vmap(lambda x: solve.numbered(4, x))(x), solve(x))
    with pytest.raises(ConfigurationError, match=r"numbered: expected the number of the call, a whole one"):
        solve.numbered(0.5, x)
    for outside in (-1, 2**31 - 1):
        with pytest.raises(ConfigurationError, match=f"below 2,147,483,647, got .{outside}"):
            jax.grad(lambda x, outside=outside: solve.numbered(outside, x).sum())(x)
    with pytest.raises(jax.errors.JaxRuntimeError, match="expected one number >= 0 for all rows"):
        jax.block_until_ready(
            jax.vmap(jax.grad(lambda x, number: solve.numbered(number, x).sum()))(x, number)
        )


# Failures


@pytest.mark.needs("jax")
def test_failed_rows_have_no_gradient(jax):
    x, v = steps_of(np.float32, rows=4)[0]
    x[1] = 10
    results = []
    for compiled in (False, True):
        solve = zo.jax.differentiable(Wave(), zo.CGE(mu=1e-3), seed=0, check=False)

        def loss(x: Any, solve: Any = solve) -> Any:
            y = solve(x)
            alive = jax.numpy.isfinite(y).all(axis=1, keepdims=True)
            return jax.numpy.where(alive, y * v, 0).sum()

        value, gradient = jax.value_and_grad(jax.jit(loss) if compiled else loss)(x)
        assert np.isfinite(value) and not gradient[1].any() and gradient[np.array([0, 2, 3])].all()
        assert solve.solver.box.ledger.rows_failed == 1 and solve.solver.counts.rows == 9
        results.append(gradient)
    same_bits(jax, *results)


@pytest.mark.needs("jax")
def test_errors_of_the_box(jax):
    x, gain, k, fixed = arrays_of(4, dtype=np.float32)
    solve = zo.jax.differentiable(Pump(), zo.CGE(mu=1e-2))
    with pytest.raises(RowFailedError, match="nine"):
        solve(x + 90, gain, k, fixed)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RowFailedError: Pump: a block of 4 rows failed"):
        jax.block_until_ready(jax.jit(solve)(x + 90, gain, k, fixed))
    compiled = jax.jit(solve)
    jax.block_until_ready(compiled(x, gain, k, fixed))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="RowFailedError: Pump: a block"):
        jax.block_until_ready(compiled(x + 90, gain, k, fixed))
    box = Budgeted(Pump(), rows=10)
    solve = zo.jax.differentiable(box, zo.CGE(mu=1e-2))
    with pytest.raises(BudgetError):
        jax.grad(lambda x: solve(x, gain, k, fixed)[0].sum())(x)
    assert box.ledger.rows_run == 4
    edge = zo.jax.differentiable(Wave(), zo.CGE(mu=1e-2, central=True), max_dropped=0.0)
    with pytest.raises(FailedQueriesError):
        jax.grad(lambda x: edge(x).sum())(np.full((2, 3), 8.999, np.float32))


CALLS: dict[str, tuple[Any, type[BlackBoxError], str]] = {
    "shape": (lambda np, *a: (a[0][:, :2], *a[1:]), ShapeError, r"input 'x': expected \(\.\.\., 3\)"),
    "rows": (lambda np, *a: (a[0], a[1][:2], *a[2:]), ShapeError, "input 'gain': expected leading axes"),
    "count": (lambda np, *a: a[:3], CountError, "expected 4 arrays"),
    "whole": (lambda np, *a: (np.zeros((4, 3), int), *a[1:]), DtypeError, r"x\.astype\('float32'\)"),
    "half": (lambda np, *a: (a[0].astype("float16"), *a[1:]), DtypeError, "expected float32 or float64, got"),
    "floats": (lambda np, *a: (*a[:2], a[1], a[3]), DtypeError, r"k\.astype\('int(32|64)'\)"),
}


@pytest.mark.needs("jax")
@pytest.mark.parametrize("name", CALLS)
def test_wrong_arrays_are_refused_while_tracing(jax, name):
    change, error, words = CALLS[name]
    box = Pump()
    arrays = change(jax.numpy, *map(jax.numpy.asarray, arrays_of(4, dtype=np.float32)))
    with pytest.raises(error, match=words):
        jax.jit(zo.jax.differentiable(box, zo.CGE(mu=1e-2))).lower(*arrays)
    assert not box.calls


@pytest.mark.needs("jax")
def test_a_tree_is_given_by_name(jax):
    solve = zo.jax.differentiable(Wave(), zo.CGE(mu=1e-2), check=False)
    x = np.ones((2, 3), np.float32)
    for wrong, kind in (({"x": x}, "dict"), (None, "NoneType"), ((x, x[0]), "tuple")):
        with pytest.raises(DtypeError, match=rf"Wave: expected an array .*got {kind}\..*solve\(\*\*tree\)"):
            solve(wrong)
    same_bits(jax, solve(**{"x": x}), solve(x))


REFUSED: dict[str, Callable[..., Any]] = {
    "forward mode": lambda jax, loss, x: jax.jvp(loss, (x,), (x,)),
    "forward mode (jvp, jacfwd)": lambda jax, loss, x: jax.jit(jax.jacfwd(loss))(x),
    "hessian": lambda jax, loss, x: jax.hessian(loss)(x),
    "grad of grad": lambda jax, loss, x: jax.jit(jax.grad(lambda x: jax.grad(loss)(x).sum()))(x),
    "a derivative of its gradient": lambda jax, loss, x: jax.jvp(jax.grad(loss), (x,), (x,)),
    "pmap or shard_map": lambda jax, loss, x: jax.pmap(loss)(x[None]),
}


@pytest.mark.needs("jax")
@pytest.mark.filterwarnings("ignore:.*pmap:DeprecationWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_it_refuses(jax, what):
    solve = zo.jax.differentiable(Wave(), zo.CGE(mu=1e-2))
    words = f"expected one reverse pass over a black box, got .*{re.escape(what)}"
    with pytest.raises(DerivativeError, match=words):
        REFUSED[what](jax, lambda x: solve(x).sum(), np.ones((2, 3), np.float32))


@suppress_type_checks
def wrongly(**settings: Any) -> None:
    zo.jax.differentiable(Wave(), **settings)


def test_without_jax_it_says_what_to_install():
    with pytest.raises(MissingExtraError, match=r"zo\.jax\.differentiable: .*blackbox-coupling\[jax\]"):
        zo.jax.differentiable(Wave(), CGE)


@pytest.mark.needs("jax")
def test_settings_are_those_of_zo_differentiable(jax):
    with pytest.raises(
        ConfigurationError, match="differentiable, estimator: expected an estimator or a tangent"
    ):
        wrongly()
    with pytest.raises(ConfigurationError, match="max_rows"):
        wrongly(estimator=CGE, max_rows=0)
    solve = zo.jax.differentiable(Wave(), CGE, seed=3)
    assert repr(solve) == "JaxBox(Wave, CGE(mu=1e-05, central=True), seed=3)"


@pytest.mark.needs("jax")
def test_one_core_is_said(jax, monkeypatch):
    if not jax.config.read("jax_cpu_enable_async_dispatch"):
        return
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    with pytest.warns(RuntimeWarning, match="jax_cpu_enable_async_dispatch"):
        zo.jax.differentiable(Wave(), CGE)
