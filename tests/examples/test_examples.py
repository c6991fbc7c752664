"""The examples at their smallest size, each where its program is installed, against what is known."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from blackbox import Budgeted
from blackbox.conformance import check_black_box
from tests.needs import NEEDS
from zo.posterior.inference_data import arviz

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = {  # an example, and what it needs
    "ngspice": ("ngspice",),
    "fortran": ("gfortran",),
    "lorenz96": ("gfortran", "cc"),
    "quasigeostrophic": ("fftw", "cc"),
    "calculix": ("calculix",),
    "openfoam": ("openfoam",),
    "openfoam_closure": ("openfoam sources", "cc"),
    "lammps": ("lammps",),
    "hopper": ("hopper",),
    "mujoco": ("mujoco",),
    "scikit_fem": ("scikit-fem",),
    "sumo": ("sumo", "libsumo"),
    "cantera": ("cantera",),
    "epanet": ("wntr",),
    "pybamm": ("pybamm",),
}

POSTERIORS = {"ngspice_posterior": ("ngspice",)}  # which `blackbox sample` draws


def needs(name):
    return pytest.mark.needs(*(PROGRAMS | POSTERIORS)[name])


def problem_of(name, monkeypatch):
    """The example's file as a module of its own name: all are called problem.py."""
    monkeypatch.syspath_prepend(EXAMPLES / name)
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "problem.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def command(*arguments, folder, **variables):
    done = subprocess.run(
        [sys.executable, ROOT / "blackbox_coupling.py", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def run(name, folder, *settings, **variables):
    """The table of a run of the preset ci."""
    place = EXAMPLES / name / "problem.py"
    command("run", place, "--preset", "ci", "--runs", folder / "runs", *settings, folder=folder, **variables)
    (made,) = (folder / "runs").iterdir()
    assert (made / "report.html").is_file() and (made / "picture-1.png").is_file()
    return {line["method"]: line for line in json.loads((made / "result.json").read_text())["table"]}


def test_each_example_is_in_the_list_and_has_what_an_example_has():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in EXAMPLES.glob("*/problem.py")}
    assert folders == set(PROGRAMS | POSTERIORS)
    for name in folders:
        page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
        assert NEEDS[(PROGRAMS | POSTERIORS)[name][0]].install in page
        assert f"blackbox {'run' if name in PROGRAMS else 'sample'} examples/{name}/problem.py" in page
        assert f"]({name}/README.md)" in listed and "@" not in page + listed
        if name in POSTERIORS:
            assert f"({name}/picture.png)" in listed and (EXAMPLES / name / "picture.png").is_file()
            continue
        measured = list((EXAMPLES / name).glob("*.json"))
        assert (
            bool(measured)
            == (EXAMPLES / name / "picture.png").is_file()
            == (f"({name}/picture.png)" in listed)
        )
        for result in (EXAMPLES / name).glob("*.json"):
            assert "/tmp" not in result.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in PROGRAMS])
def test_an_example_runs_to_its_report(tmp_path, name):
    table = run(name, tmp_path)
    for method, line in table.items():
        assert np.isfinite(line["value"]), method
        without = ("none",) if name == "openfoam_closure" else ("none", "offline")
        assert (line["rows"] == 0) == (method in without)
        if name != "lammps":
            assert line["ledger"]["rows_failed"] == 0, line["ledger"]["first_failure"]


@needs("ngspice_posterior")
def test_the_measured_filter_is_what_two_resonators_do(monkeypatch):
    """By nodal analysis in complex numbers, and the noise is of the size that the potential expects."""
    module = problem_of("ngspice_posterior", monkeypatch)
    answer = module.filter_by_ngspice()(module.BUILT[None])[0]
    w = 2j * np.pi * answer[:, 0].numpy()
    l1, c1, l2, c2, cc = module.BUILT.numpy() * [1e-6, 1e-9, 1e-6, 1e-9, 1e-9]
    one = 1 / 1000 + 1 / (w * l1 + 0.6) + w * (c1 + cc)
    two = 1 / 300 + 1 / (w * l2 + 0.6) + w * (c2 + cc)
    gain = (1 / 1000) * w * cc / (one * two - (w * cc) ** 2)
    np.testing.assert_allclose(answer[:, 1], 20 * np.log10(abs(gain)), atol=1e-4)
    off = (module.Parts().measured - answer[:, 1]) / module.NOISE
    assert 0.7 < off.std() < 1.3


@pytest.mark.slow
@needs("ngspice_posterior")
def test_the_posterior_of_the_filter_s_parts_holds_what_it_is_built_of(tmp_path, monkeypatch):
    """Each part within four standard deviations, and the product that sets the resonance within 1 %."""
    place = EXAMPLES / "ngspice_posterior" / "problem.py"
    words = ("--rows", "700", "--learn", "400", "--chains", "4", "--out", tmp_path / "drawn")
    command("sample", place, *words, folder=tmp_path)
    draws = arviz().from_netcdf(tmp_path / "drawn" / "posterior.nc").posterior["x"].values.reshape(-1, 5)
    built = problem_of("ngspice_posterior", monkeypatch).BUILT.numpy()
    assert (np.abs(draws.mean(0) - built) < 4 * draws.std(0)).all()
    assert abs((draws[:, 0] * draws[:, 1]).mean() / (built[0] * built[1]) - 1) < 0.01


@needs("ngspice")
def test_the_filter_s_twin_is_what_ngspice_computes(monkeypatch):
    module = problem_of("ngspice", monkeypatch)
    logs = 0.5 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    edge, load = torch.tensor([3e5, 1e6, 3e6]), torch.tensor([25.0, 50.0, 100.0])
    given = logs, edge, load, torch.stack((0.1 * edge, 2.5 * edge), dim=1)
    found, twin = module.ladder()(*given), module.FilterDesign().reference(*given)
    torch.testing.assert_close(found, twin, rtol=1e-5, atol=1e-4)


@needs("fortran")
def test_the_slab_s_twin_is_what_the_fortran_code_computes(monkeypatch):
    module = problem_of("fortran", monkeypatch)
    random = torch.Generator().manual_seed(0)
    given = 0.3 + 0.5 * torch.rand(4, 10, generator=random), 2 * torch.rand(4, 8, generator=random)
    for found, twin in zip(module.Slab()(*given), module.Heating().reference(*given), strict=True):
        torch.testing.assert_close(found, twin, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs("fortran")
def test_the_check_finds_the_common_block(monkeypatch):
    module = problem_of("fortran", monkeypatch)
    random = np.random.default_rng(0)
    samples = random.uniform(0.3, 0.8, (32, 10)), random.uniform(0, 2, (32, 8))
    seen = []
    for seed in range(5):  # one check sees it nineteen times in twenty
        report = check_black_box(module.Slab(), samples, processes=False, seed=seed)
        seen += [line.sentence for line in report.findings if line.check == "thread safety"]
    assert len(seen) == 5 and any("disturb each other" in sentence for sentence in seen), seen


@pytest.mark.slow
@needs("fortran")
def test_processes_do_not_share_the_common_block(tmp_path):
    """A run on processes is the run without any, to the bit."""
    alone, pool = (
        run("fortran", tmp_path / pool, "--methods", "tangents", "--pool", pool)
        for pool in ("none", "processes")
        if (tmp_path / pool).mkdir() is None
    )
    assert alone["tangents"]["value"] == pool["tangents"]["value"]


@needs("calculix")
def test_the_plate_bends_as_a_beam_does(monkeypatch):
    """The tip of a cantilever: bending and shear, by Timoshenko."""
    module = problem_of("calculix", monkeypatch)
    force = np.zeros((1, len(module.EDGE), 2))
    tip = [place for place, node in enumerate(module.EDGE) if module.NODES[node][0] == module.NX]
    force[0, tip, 1] = 1000.0 / len(tip)
    thick = 2.0
    moved = module.bracket()(np.full((1, len(module.NODES)), thick), force)[0, module.EDGE][tip, 2].mean()
    inertia, area, shear = thick * 20.0**3 / 12, thick * 20.0, 210000 / 2 / 1.3
    beam = 1000 * 100.0**3 / (3 * 210000 * inertia) + 1.2 * 1000 * 100.0 / (shear * area)
    assert moved == pytest.approx(beam, rel=0.1)  # a coarse mesh is too stiff


@needs("scikit_fem")
def test_the_plate_s_adjoint_is_that_of_differences_and_flat_fields_only_cool(monkeypatch):
    module = problem_of("scikit_fem", monkeypatch)
    box = module.Conduction(module.plate(60))
    random = np.random.default_rng(0)
    at, way, cotangent = random.random(box.mesh.nodes), *random.standard_normal((2, box.mesh.nodes))

    def answer(field):
        return box.step(field)[1][box.nodes]

    slope = (answer(at + 1e-6 * way) - answer(at - 1e-6 * way)) @ cotangent / 2e-6
    assert box.vjp(at, cotangent) @ way == pytest.approx(slope, rel=1e-6)
    flat = np.full((1, box.mesh.nodes), 0.7, dtype=np.float32)
    np.testing.assert_allclose(box(flat), flat / (1 + module.LOSS * module.INTERVAL), rtol=1e-6)


@needs("mujoco")
def test_the_pendulum_moves_as_its_equation_says_in_whatever_order_it_is_asked(monkeypatch):
    from scipy.integrate import solve_ivp

    module = problem_of("mujoco", monkeypatch)
    box, random = module.Pendulum(), np.random.default_rng(0)
    states, torques = random.uniform(-3, 3, (6, 2)), random.uniform(-3, 3, (6, 1))
    found = box(states, torques)
    np.testing.assert_array_equal(box(states[::-1].copy(), torques[::-1].copy())[::-1], found)
    # a sphere of 1 kg at .5 m, a rod of .1 kg along the way
    inertia = 0.5**2 + 0.4 * 0.06**2 + 0.1 * 0.5**2 / 3
    weight = 9.81 * (0.5 + 0.1 * 0.25)

    def moves(_, state, torque):
        return state[1], (weight * np.sin(state[0]) + torque - 0.05 * state[1]) / inertia

    for state, torque, came in zip(states, torques, found, strict=True):
        seconds = module.INSIDE * box.model.opt.timestep
        exact = solve_ivp(moves, (0, seconds), state, args=(float(torque[0]),), rtol=1e-9).y[:, -1]
        np.testing.assert_allclose(came, exact, atol=0.04)  # steps of .01 s are of first order
        _, by_state, by_torque = box.derivative(state, torque)
        for way in np.eye(3):
            plus, minus = (
                box.evaluate(state + sign * 1e-5 * way[:2], torque + sign * 1e-5 * way[2:])
                for sign in (1, -1)
            )
            slope = by_state @ way[:2] + by_torque @ way[2:]
            np.testing.assert_allclose(slope, (plus - minus) / 2e-5, rtol=1e-5, atol=1e-6)


@needs("hopper")
def test_a_hopper_gets_the_rewards_that_gymnasium_gives_by_hand(monkeypatch):
    import gymnasium

    module = problem_of("hopper", monkeypatch)
    problem = module.Hopping(calls=5)
    torch.manual_seed(0)
    network = problem.network()
    with torch.no_grad():
        found = problem.rewards(network, torch.tensor([3, 8]), 0.0)
        for column, seed in enumerate((3, 8)):
            environment = gymnasium.make("Hopper-v5")
            observation, _ = environment.reset(seed=seed)
            for row in range(5):
                action = network(torch.from_numpy(observation)[None].float() / 2).tanh()[0].numpy()
                observation, reward, *_ = environment.step(action)
                assert float(found[row, column]) == pytest.approx(reward, rel=1e-6)


def test_webster_s_cycle_is_the_textbook_s(monkeypatch):
    """(1.5 L + 5) / (1 - Y) with L = 6 s lost in two yellow phases; of its green each road has its share."""
    module = problem_of("sumo", monkeypatch)
    greens = module.webster(torch.tensor([[0.15, 0.10]])).exp()
    torch.testing.assert_close(greens, torch.tensor([[13.2, 8.8]]))  # Y = .5, a cycle of 28 s


@pytest.mark.slow
@needs("openfoam")
def test_a_case_that_diverges_at_once_loses_its_row_alone(tmp_path, monkeypatch):
    module = problem_of("openfoam", monkeypatch)
    velocity = torch.zeros(3, 2, module.COARSE, module.COARSE)
    velocity[1] = 1e30 * torch.randn(velocity[1].shape, generator=torch.Generator().manual_seed(0))
    box = module.cavity(tmp_path, module.COARSE, 0.05)
    found = box(velocity, torch.ones(3))
    assert found.isnan().flatten(1).any(dim=1).tolist() == [False, True, False]
    assert (box.ledger.rows_run, box.ledger.rows_failed) == (3, 1)
    assert "icoFoam was ended by SIGFPE" in box.ledger.first_failure
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.needs("openfoam sources", "cc", "mpi")
def test_pisofoam_asks_for_what_it_was_given_and_alone_it_does_what_it_did(tmp_path, monkeypatch):
    module = problem_of("openfoam_closure", monkeypatch)
    y, x = (np.mgrid[: module.LINES, : module.COLUMNS] + 0.5) / module.COARSE
    fluid = module.FLUID.reshape(module.LINES, module.COLUMNS)
    velocity = fluid * np.stack([1 + 0.1 * np.sin(x), 0.1 * np.cos(y)])
    made = module.case(
        tmp_path / "case", module.COARSE, 100, module.STEP, 3 * module.STEP, module.STEP, "upwind", 1e-10
    )
    module.start(made, module.COARSE, velocity, 0 * x)

    def runs(command, force):
        call = module.Call(
            "closure",
            sees=module.ArraySpec("velocity", velocity.shape),
            gives=module.ArraySpec("force", velocity.shape),
        )
        copies = {part.name: part for part in made.iterdir()}
        host = module.Hosted(command, calls=[call], copies=copies, environment=module.ROOT, timeout=60)
        return host.run([0], dtype=torch.float64, closure=force).closure.velocity[0].numpy()

    def pushed(seen):
        return 0.2 * torch.as_tensor(fluid * np.stack([np.sin(x * y), np.cos(x - y)]))[None]

    seen = runs(["pisoFoam"], lambda seen: 0 * seen)
    np.testing.assert_allclose(seen[0], velocity, rtol=0, atol=1e-12)
    words = {"cwd": made, "env": os.environ | module.ROOT, "check": True, "capture_output": True}
    subprocess.run(["pisoFoam"], **words)
    for step in (1, 2):  # nobody trains: the same flow
        alone = module.read(made, f"{step * module.STEP:g}/U", module.COARSE)[:2]
        np.testing.assert_allclose(alone, seen[step], rtol=0, atol=1e-9)
    one = runs(["pisoFoam"], pushed)
    assert np.abs(one[2] - seen[2]).max() > 0.02
    subprocess.run(["decomposePar", "-time", "0"], **words)
    launch = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", shutil.which("pisoFoam")]
    two = runs([*launch, "-parallel"], pushed)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-6)  # the solvers' ends differ


@pytest.mark.slow
@needs("openfoam")
def test_a_large_cavity_is_stepped_and_corrected_once():
    """With 16 x 16 cells, for time; the correction is one step towards what a faster lid makes."""
    program = EXAMPLES / "openfoam" / "million.py"
    done = subprocess.run(
        [sys.executable, program, "--cells", "16"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1].removeprefix("result "))
    assert told["cells"] == 256
    assert told["loss after"] < told["loss before"]


@pytest.mark.slow
@needs("lammps")
def test_no_row_is_lost_or_counted_twice_where_many_fail(tmp_path, monkeypatch):
    """The ledger counts the processes that a program in lmp's place counts itself."""
    counter = tmp_path / "bin" / "lmp"
    counter.parent.mkdir()
    counter.write_text(f'#!/bin/sh\necho run >> {tmp_path}/started\nexec {shutil.which("lmp")} "$@"\n')
    counter.chmod(0o755)
    monkeypatch.setenv("PATH", f"{counter.parent}:{os.environ['PATH']}")
    module = problem_of("lammps", monkeypatch)
    problem = module.Pressure(folder=tmp_path / "data")
    density, temperature = torch.linspace(0.5, 1.4, 12), torch.full((12,), 1.8)
    box = Budgeted(problem.box, rows=40)
    first = box(density, temperature)
    failed = int(first.isnan().any(dim=1).sum())
    assert 1 <= failed < 12
    assert box.ledger.rows_failed == failed and "Lost atoms" in box.ledger.first_failure
    assert box.ledger.rows_run == len((tmp_path / "started").read_text().split()) == 12 == 40 - box.rows_left
    again = Budgeted(module.Pressure(folder=tmp_path / "data").box, rows=failed)  # as after a kill
    torch.testing.assert_close(again(density, temperature), first, equal_nan=True, rtol=0, atol=0)
    started = len((tmp_path / "started").read_text().split())
    assert started == 12 + again.ledger.rows_run and again.ledger.rows_cached + again.ledger.rows_run == 12


@needs("cantera")
def test_the_burner_is_a_stirred_reactor(monkeypatch):
    """Balances of species and enthalpy at constant pressure, by another integrator."""
    module = problem_of("cantera", monkeypatch)
    import cantera
    from scipy.integrate import solve_ivp

    box, gas, feed = module.Burner(), *(cantera.Solution(module.MECHANISM) for _ in range(2))
    fuel, flow, (kelvin, lost) = 0.6, 2e-3, (310.0, 0.08)
    feed.TP = kelvin, cantera.one_atm
    feed.set_equivalence_ratio(fuel, module.FUEL, module.AIR)
    feed.TP = kelvin, cantera.one_atm

    def change(_, state):
        gas.TPY = state[0], cantera.one_atm, state[1:]
        mass = 1e-6 * gas.density
        reacts = gas.net_production_rates * gas.molecular_weights / gas.density
        species = flow / mass * (feed.Y - state[1:]) + reacts
        each = gas.partial_molar_enthalpies / gas.molecular_weights  # of a species in a kg
        heat = flow / mass * (feed.enthalpy_mass - gas.enthalpy_mass) - lost * (state[0] - 300) / mass
        return np.array([(heat - each @ species) / gas.cp_mass, *species])

    first = np.array(box.burnt(0.6))
    fractions = dict(zip(module.SPECIES, first[1:], strict=True)) | {"N2": 1 - first[1:].sum()}
    gas.TPY = 1000 * first[0], cantera.one_atm, fractions
    exact = solve_ivp(change, (0, module.SECONDS), [gas.T, *gas.Y], method="BDF", rtol=1e-6, atol=1e-12).y[
        :, -1
    ]
    found = box.evaluate(first, fuel, 1000 * flow, (kelvin, lost))
    wanted = [exact[0] / 1000, *(exact[1 + gas.species_index(name)] for name in module.SPECIES)]
    assert (np.abs(found - wanted) < 1e-2 * module.SPREAD).all()


@needs("epanet")
@pytest.mark.filterwarnings("ignore")  # wntr's own
def test_an_hour_is_what_another_solver_makes_of_it(monkeypatch):
    """wntr has a simulator of its own, in Python, beside EPANET."""
    module = problem_of("epanet", monkeypatch)
    import wntr

    box = module.Hour()
    levels, speeds, hour, thirst = np.array([5.0, 8.0, 8.5]), np.ones(2), 9, 1.1  # it knows no other speeds
    found, energy, pressures = box.evaluate(levels, speeds, thirst * box.patterns[:, hour])
    town = wntr.network.WaterNetworkModel(str(Path(box.folder.name, "net.inp")))
    for name, level in zip(module.TANKS, levels, strict=True):
        town.get_node(name).init_level = level
    town.get_link("10").initial_status = "Open"
    town.options.hydraulic.demand_multiplier, town.options.time.pattern_start = thirst, 3600 * hour
    town.options.time.duration, town.options.time.hydraulic_timestep = 3600, 900
    town.options.time.report_timestep = 900
    other = wntr.sim.WNTRSimulator(town).run_sim()
    pressure = other.node["pressure"]
    users = [name for name, node in town.junctions() if node.base_demand > 0]
    last = pressure.loc[3600, list(module.TANKS)]
    flow, head = other.link["flowrate"], other.node["head"]
    power = sum(
        flow[name] * (head[town.get_link(name).end_node_name] - head[town.get_link(name).start_node_name])
        for name in module.PUMPS
    )
    np.testing.assert_allclose(found, last, atol=1e-3)
    np.testing.assert_allclose(pressures, pressure[users].iloc[:4].min(), atol=0.03)
    np.testing.assert_allclose(energy.sum(), 9.81 / 0.75 * power.iloc[:4].mean(), rtol=0.02)


@pytest.mark.slow
@needs("pybamm")
@pytest.mark.filterwarnings("ignore")  # PyBaMM's own
def test_two_minutes_of_a_cell_are_what_pybamm_solves_and_their_adjoint_is_right(monkeypatch):
    module = problem_of("pybamm", monkeypatch)
    import pybamm

    box = module.Cell()
    charge, first = next(iter(box.firsts.items()))
    _, seen = box.evaluate(first, 6.0, 298.15, 10.0)
    parameters = pybamm.ParameterValues("OKane2022")
    parameters.update({module.CURRENT: -6.0, module.OUTSIDE: 298.15, module.COOLING: 10.0})
    model = pybamm.lithium_ion.SPMe({"thermal": "lumped"})
    simulation = pybamm.Simulation(model, parameter_values=parameters, var_pts=module.POINTS)
    solved = simulation.solve([0, module.SECONDS], initial_soc=charge)
    wanted = [solved[name].entries[..., -1].item() for name in module.SEEN]
    np.testing.assert_allclose(seen, wanted, rtol=1e-3, atol=1e-4)

    random = torch.Generator().manual_seed(0)
    inputs = torch.tensor(first)[None].requires_grad_(), torch.tensor([6.0]).double().requires_grad_()
    rest = torch.tensor([298.15]).double(), torch.tensor([10.0]).double()
    along = torch.randn(inputs[0].shape, generator=random, dtype=torch.float64)

    def value(state, current):
        after, seen = module._Adjoint.apply(box, state, current, *rest)
        return after.sum() + seen.sum()

    gradients = torch.autograd.grad(value(*inputs), inputs)
    for own, moved in zip(gradients, ((along, 0.0), (0.0, 1.0)), strict=True):
        with torch.no_grad():
            there, back = (
                value(*(x + sign * 1e-4 * d for x, d in zip(inputs, moved, strict=True))) for sign in (1, -1)
            )
        direction = moved[0] if torch.is_tensor(moved[0]) else 1.0
        assert (own * direction).sum().item() == pytest.approx((there - back).item() / 2e-4, rel=1e-4)
