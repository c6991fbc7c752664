"""A black box as a component of OpenMDAO, judged by OpenMDAO's own checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.adapters.openmdao import component
from blackbox.errors import ConfigurationError, DtypeError
from blackbox.extras import MissingExtraError

NINE = 9.0


class Pump(BlackBoxFunction):
    """Two inputs with a derivative, a whole number and a float without."""

    inputs = (
        ArraySpec("speed", (2, 2)),
        ArraySpec("load", ()),
        ArraySpec("stages", (), "int64"),
        ArraySpec("fixed", (), differentiable=False),
    )
    outputs = (ArraySpec("power", ()), ArraySpec("flow", (3,)), ArraySpec("parts", (), "int64"))
    noise = 0.0

    def evaluate_rows(self, speed: Any, load: Any, stages: Any, fixed: Any) -> Any:
        if (load == NINE).any():
            raise ValueError("nine")
        flat = speed.reshape(len(speed), 4)
        power = (flat**2).sum(1) * load + np.floor(fixed)
        flow = np.stack([np.sin(flat[:, 0]) * load, flat[:, 1] * flat[:, 2], stages * flat[:, 3]], 1)
        shake = np.random.default_rng(int(1e9 * abs(flat.sum())) % 2**32).standard_normal(flow.shape)
        return power, flow + self.noise * shake, stages + 1


class NoisyPump(Pump):
    """Which measures to six digits or so."""

    noise = 1e-6


SPEED = np.array([[0.3, -1.2], [0.7, 2.0]])


def exact(speed: Any, load: Any, stages: Any, fixed: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Pump` in torch."""
    flat = speed.flatten(1)
    parts = [flat[:, 0].sin() * load, flat[:, 1] * flat[:, 2], stages * flat[:, 3]]
    return (flat**2).sum(1) * load + fixed.floor(), torch.stack(parts, 1), stages + 1


def problem_of(made: Any, mode: str = "auto", rows: int | None = None) -> Any:
    import openmdao.api as om

    problem = om.Problem(reports=False)
    problem.model.add_subsystem("pump", made, promotes=["*"])
    problem.setup(mode=mode, force_alloc_complex=False)
    repeat = () if rows is None else (rows,)
    stretch = np.ones(repeat) if rows is None else np.linspace(0.5, 1.5, rows)
    problem.set_val("speed", SPEED * stretch[..., None, None])
    problem.set_val("load", 0.8 * stretch)
    problem.set_val("fixed", 0.5 * stretch)
    problem["stages"] = np.full(repeat, 3)
    problem.run_model()
    return problem


def derivative_of(kind: str, box: BlackBoxFunction) -> Any:
    return exact if kind == "exact" else zo.differentiable(box, zo.CGE(mu=1e-4, central=True), seed=0)


@pytest.mark.needs("openmdao")
@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("matrix_free", [False, True])
@pytest.mark.parametrize("kind", ["exact", "estimated"])
def test_openmdao_s_own_check_of_partials(kind, matrix_free, rows):
    from openmdao.utils.assert_utils import assert_check_partials

    box = Pump()
    made = component(box, derivative_of(kind, box), rows=rows, matrix_free=matrix_free)
    problem = problem_of(made, rows=rows)
    shape = () if rows is None else (rows,)
    assert problem.get_val("flow").shape == (*shape, 3)
    assert np.array_equal(problem["parts"], np.full(shape, 4))
    found = problem.check_partials(out_stream=None, method="fd", form="central", step=1e-5)
    assert {("power", "speed"), ("flow", "load")} <= set(found["pump"])
    assert_check_partials(found, atol=1e-6, rtol=1e-6)


@pytest.mark.needs("openmdao")
def test_a_noisy_box_passes_within_its_noise_and_not_below_it():
    from openmdao.utils.assert_utils import assert_check_partials

    box = NoisyPump()
    problem = problem_of(component(box, zo.differentiable(box, zo.CGE(mu=1e-2, central=True), seed=0)))
    found = problem.check_partials(out_stream=None, method="fd", form="central", step=1e-2)
    assert_check_partials(found, atol=1e-2, rtol=1e-2)  # 1e-6 over 1e-2, and curvature
    with pytest.raises(ValueError, match="flow"):
        assert_check_partials(found, atol=1e-9, rtol=1e-9)


@pytest.mark.needs("openmdao")
@pytest.mark.parametrize("mode", ["fwd", "rev"])
@pytest.mark.parametrize("matrix_free", [False, True])
def test_totals_are_those_of_torch(mode, matrix_free):
    box = Pump()
    made = component(box, derivative_of("estimated", box), matrix_free=matrix_free)
    totals = problem_of(made, mode).compute_totals(["power", "flow"], ["speed", "load"])
    speed = torch.from_numpy(SPEED)[None].requires_grad_()
    load = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    power, flow, _ = exact(speed, load, torch.tensor([3]), torch.tensor([0.5]))
    for name, output in (("power", power), ("flow", flow)):
        for place, number in enumerate(output.ravel()):
            slopes = torch.autograd.grad(number, [speed, load], retain_graph=True, allow_unused=True)
            for into, slope in zip(("speed", "load"), slopes, strict=True):
                wanted = np.zeros(totals[name, into].shape[1]) if slope is None else slope.numpy().ravel()
                np.testing.assert_allclose(totals[name, into][place], wanted, atol=1e-7)


@pytest.mark.needs("openmdao")
def test_in_reverse_without_a_matrix_a_function_of_interest_costs_one_product():
    box = Pump()
    solver = zo.differentiable(box, zo.CGE(mu=1e-4, central=True), seed=0, check=False)
    problem = problem_of(component(box, solver, matrix_free=True), "rev")
    before = box.ledger.rows_run
    problem.compute_totals(["power"], ["speed", "load"])
    assert box.ledger.rows_run - before == 1 + 2 * 5


@pytest.mark.needs("openmdao")
def test_an_optimiser_finds_the_least_power():
    import openmdao.api as om

    box = Pump()
    problem = om.Problem(reports=False)
    problem.model.add_subsystem("pump", component(box, derivative_of("estimated", box)), promotes=["*"])
    problem.model.add_design_var("speed", lower=-3, upper=3)
    problem.model.add_objective("power")
    problem.driver = om.ScipyOptimizeDriver(optimizer="SLSQP", disp=False)
    problem.setup()
    problem.set_val("speed", SPEED)
    problem.set_val("load", 0.8)
    problem.run_driver()
    np.testing.assert_allclose(problem.get_val("speed"), 0, atol=1e-4)


@pytest.mark.needs("openmdao")
@pytest.mark.parametrize("failures", ["raise", "keep"])
def test_a_failed_row_is_an_analysis_error(failures):
    import openmdao.api as om

    box = Pump(failures=failures)
    problem = problem_of(component(box, derivative_of("estimated", box)))
    problem.set_val("load", NINE)
    with pytest.raises(om.AnalysisError, match="nine" if failures == "raise" else "a row that failed"):
        problem.run_model()
    with pytest.raises(om.AnalysisError):
        problem.compute_totals(["power"], ["load"])


class OnlyThisLoad(Pump):
    """Whose load cannot be moved."""

    def evaluate_rows(self, speed: Any, load: Any, stages: Any, fixed: Any) -> Any:
        power, flow, parts = super().evaluate_rows(speed, load, stages, fixed)
        return np.where(load == 0.8, power, np.nan), flow, parts


@pytest.mark.needs("openmdao")
def test_a_number_beside_which_all_rows_fail_is_no_partial_of_zero():
    import openmdao.api as om

    box = OnlyThisLoad(failures="keep")
    solver = zo.differentiable(box, zo.CGE(mu=1e-3, central=True), max_dropped=0.9)
    problem = problem_of(component(box, solver))
    with pytest.raises(om.AnalysisError, match="near each number"):
        problem.compute_totals(["power"], ["load"])


@suppress_type_checks
def make(*arguments: Any, **settings: Any) -> None:
    component(*arguments, **settings)


@pytest.mark.needs("openmdao")
def test_what_it_refuses():
    for arguments, settings, words in [
        ((np.sin, exact), {}, "component, box: expected a BlackBoxFunction, got ufunc"),
        ((Pump(),), {}, r"component, derivative: .*none of its own.*zo\.differentiable"),
        ((Pump(), 3), {}, "expected a function that autograd goes through, got 3"),
        ((Pump(), exact), {"rows": 0}, "rows"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            make(*arguments, **settings)
    problem = problem_of(component(Pump(), lambda *arrays: tuple(each.detach() for each in exact(*arrays))))
    with pytest.raises(ConfigurationError, match="autograd traces to the inputs"):
        problem.compute_totals(["power"], ["load"])


def test_without_openmdao_the_error_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"blackbox-coupling\[openmdao\]"):
        component(Pump(), exact)


@pytest.mark.needs("openmdao")
@pytest.mark.parametrize(("name", "value"), [("stages", 3.7), ("load", 0.8 + 1e-20j)])
def test_numbers_of_openmdao_that_a_box_cannot_take_are_refused(name, value):
    import openmdao.api as om

    made = component(Pump(), exact)
    problem = om.Problem(reports=False)
    problem.model.add_subsystem("pump", made, promotes=["*"])
    problem.setup(force_alloc_complex=True)
    problem["stages"] = 3
    problem.run_model()
    problem.set_complex_step_mode(name == "load")
    problem.run_model()  # a step of others
    problem[name] = value
    with pytest.raises(DtypeError, match=f"input '{name}': expected"):
        problem.run_model()
