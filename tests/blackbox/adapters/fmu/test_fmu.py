"""FMUs of both versions against what their models compute; failed steps, instances, derivatives, refusals."""

import gc
import multiprocessing
import pickle
import re
import shutil
import subprocess
import warnings
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import zo
from blackbox import Cached, Parallel
from blackbox.adapters import Fmu
from blackbox.adapters.fmu import fmu as fmu_adapter
from blackbox.conformance import check_black_box
from blackbox.errors import ConfigurationError, NotDifferentiableError

pytestmark = pytest.mark.needs("fmpy", "cc")
HERE = Path(__file__).parent
STEP = 0.125  # of decay's default experiment


def decayed(k, x0, u, count=1, steps=8):
    """What `decay.c` computes: y after each step, with u held over the steps of each of its values."""
    x, found = x0, []
    for step in range(steps):
        now = u[step * u.shape[0] // steps]
        x = x + STEP * count * (now - k * x)
        found.append(x + np.sin(k) * now)
    return np.array(found)


def oscillated(stiffness, force):
    """What `oscillator.py` computes, at each of its ten steps."""
    x, v, found = np.array([1.0, -1.0]), np.zeros(2), []
    for step in range(10):
        v = v + 0.1 * (force[step * len(force) // 10] - stiffness * x)
        x = x + 0.1 * v
        found.append(x)
    return np.array(found)


def test_fmi_2_is_stepped_driven_and_read_as_said(decay):
    box = Fmu(decay, times=[0.5, 1.0], parameters=["tank.k[1]", "x0", "count"])
    assert [(spec.name, spec.shape, spec.dtype) for spec in (*box.inputs, *box.outputs)] == [
        ("tank_k_1_", (), None),
        ("x0", (), None),
        ("count", (), "int32"),
        ("u", (2,), None),
        ("y", (2,), None),
    ]
    assert box.units == {"tank_k_1_": "1/s", "x0": "m"}
    assert box.inputs[1].scale == (2.0,) and box.inputs[0].scale is None  # the nominal value of its type
    k, x0, count, u = (
        np.array([0.5, 2.0]),
        np.array([1.0, -3.0]),
        np.int32([1, 2]),
        np.array([[1, -1], [2, 0.0]]),
    )
    y = box(k, x0, count, u)
    for row in range(2):
        truth = decayed(k[row], x0[row], u[row], count[row])
        # at the end of the first interval its own u still holds
        np.testing.assert_allclose(y[row], truth[[3, 7]], rtol=1e-14)
    assert box.ledger.rows_run == 2 and box.ledger.rows_failed == 0


@pytest.mark.needs("pythonfmu3")
def test_fmi_3_with_arrays(oscillator):
    box = Fmu(oscillator, times=np.linspace(0.1, 1, 10), parameters=["stiffness"], input_times=[0, 0.5])
    assert [spec.shape for spec in (*box.inputs, *box.outputs)] == [(2,), (2,), (10, 2)]
    assert box.units == {"force": "N"}
    rng = np.random.default_rng(0)
    stiffness, force = rng.uniform(0.5, 4, (3, 2)), rng.normal(size=(3, 2))
    truth = [oscillated(*row) for row in zip(stiffness, force, strict=True)]
    np.testing.assert_allclose(box(stiffness, force), truth, rtol=1e-14)
    last = Fmu(oscillator, times=1.0, parameters=["stiffness"])  # one time: neither has a time axis
    assert [spec.shape for spec in (*last.inputs, *last.outputs)] == [(2,), (), (2,)]
    np.testing.assert_array_equal(last(stiffness, force[:, 0]), box(stiffness, force[:, [0, 0]])[:, -1])


@pytest.mark.needs("pythonfmu3")
def test_a_step_that_fails_at_random_loses_its_row_alone(oscillator):
    sound = Fmu(oscillator, times=1.0, parameters=["seed", "stiffness"])
    box = Fmu(
        oscillator,
        times=1.0,
        parameters=["seed", "stiffness"],
        start_values={"failing": 0.1, "dying": 0.02},
        failures="keep",
    )
    rng = np.random.default_rng(1)
    rows = (np.arange(60), rng.uniform(0.5, 4, (60, 2)), rng.normal(size=60))
    found, truth = box(*rows), sound(*rows)
    failed = np.isnan(found).any(axis=1)
    assert 20 < failed.sum() < 55  # of 60, at one in ten steps of ten
    np.testing.assert_array_equal(found[~failed], truth[~failed])
    ledger = box.ledger
    assert (ledger.rows_asked, ledger.rows_run, ledger.rows_failed) == (60, 60, failed.sum())
    np.testing.assert_array_equal(np.isnan(box(*rows)).any(axis=1), failed)
    last = Fmu(oscillator, times=0.1, parameters=[], start_values={"dying": 1.0}, failures="keep")
    assert np.isnan(last(np.zeros(2))).all() and "the spring broke" in last.ledger.first_failure


@pytest.mark.parametrize("sticky", [False, True])
def test_an_instance_is_reset_after_an_error_and_replaced_where_that_fails(decay, sticky):
    box = Fmu(decay, times=1.0, parameters=["tank.k[1]"], start_values={"sticky": sticky}, failures="keep")
    k, u = np.array([0.5, -1.0, 0.5, 101.0, 0.5]), np.ones(5)
    y = box(k, u)
    np.testing.assert_array_equal(np.isnan(y), k != 0.5)
    assert len(set(y[k == 0.5])) == 1 and y[0] == pytest.approx(decayed(0.5, 1.0, np.ones(1))[-1], rel=1e-14)
    assert "k is negative" in box.ledger.first_failure and box.ledger.rows_failed == 2


def forgetful(decay, folder, later=False):
    """`decay.c` whose reset leaves the state x where it was; or does so from the fifth reset on."""
    source = (HERE / "decay.c").read_text()
    before = "((Decay *)c)->x = ((Decay *)c)->real[X0];"
    assert before in source and "    start(d);\n    return fmi2OK;" in source
    source = source.replace(before, "")
    start = "if (resets++ < 4) start(d);" if later else ""
    source = source.replace(
        "    start(d);\n    return fmi2OK;", f"    static int resets; {start}\n    return fmi2OK;"
    )
    return with_source(decay, folder, source)


def with_source(decay, folder, source):
    """The FMU `decay` of another source."""
    import fmpy

    headers = Path(fmpy.__file__).parent / "c-code"
    (folder / "decay.c").write_text(source)
    library = folder / "decay.so"
    command = ["cc", "-shared", "-fPIC", "-O1", f"-I{headers}", folder / "decay.c", "-o", library, "-lm"]
    subprocess.run(command, check=True)

    def change(name, content):
        return name, library.read_bytes() if name.endswith(".so") else content

    return rewritten(decay, folder, change)


def without_start(u):
    """What `decay.c` computes with its own start of x = 1 and k = .5."""
    return decayed(0.5, 1.0, u)[-1]


def test_a_reset_that_forgets_is_found_at_its_first_row_and_replaced_by_new_instances(decay, tmp_path):
    path = forgetful(decay, tmp_path)
    u = np.random.default_rng(5).normal(size=6)
    truth = [without_start(np.array([value])) for value in u]
    box = Fmu(path, times=1.0)
    with pytest.warns(
        RuntimeWarning, match=r"a reset that puts back all .* y differs by [0-9.e-]+\. From here"
    ) as said:
        y = box(u)
    np.testing.assert_allclose(y, truth, rtol=1e-14)  # the row that found it, too
    assert len(said) == 1 and box.ledger.rows_run == 6 and not box.reset
    assert not pickle.loads(pickle.dumps(box)).reset
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(Fmu(path, times=1.0, reset=False)(u), y)
        # who says that answers differ is not told that they do
        assert not np.allclose(Fmu(path, times=1.0, deterministic=False)(u), truth)


def test_a_reset_that_forgets_later_is_found_and_says_how_many_rows_may_be_wrong(decay, tmp_path):
    box = Fmu(forgetful(decay, tmp_path, later=True), times=1.0)
    u = np.random.default_rng(6).normal(size=40)
    truth = [without_start(np.array([value])) for value in u]
    with pytest.warns(RuntimeWarning, match=r"Up to (3|7|15) rows before this one may be wrong"):
        y = box(u)
    wrong = ~np.isclose(y, truth, rtol=1e-14, atol=0)
    assert wrong.sum() <= 15 and not wrong[20:].any()


def test_new_instances_that_differ_are_told(decay, tmp_path):
    source = (HERE / "decay.c").read_text()
    before = "->x = ((Decay *)c)->real[X0];"
    assert before in source
    clock = "struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); ((Decay *)c)->x += t.tv_nsec;"
    source = source.replace(before, f"{before} {clock}")
    path = with_source(decay, tmp_path, f"#include <time.h>\n{source}")
    box = Fmu(path, times=1.0)
    with pytest.warns(RuntimeWarning, match="expected equal answers to equal inputs, .* deterministic=False"):
        box(np.zeros(3))
    assert box.reset and box.ledger.rows_run == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Fmu(path, times=1.0, deterministic=False)(np.zeros(3))


def test_comparisons_grow_as_a_logarithm_and_are_no_rows(decay, monkeypatch):
    box = Fmu(decay, times=1.0)
    made = []
    instance = fmu_adapter.Instance
    monkeypatch.setattr(fmu_adapter, "Instance", lambda *a: made.append(1) or instance(*a))
    box(np.zeros(100))
    assert box.ledger.rows_run == 100
    assert len(made) == 7  # after 1, 2, 4, ..., 64 rows


def test_a_comparison_that_cannot_be_made_takes_no_answer_away(decay, monkeypatch):
    box = Fmu(decay, times=1.0)

    def refused(*_):
        raise RuntimeError("out of licences")

    monkeypatch.setattr(box, "_by_a_new_instance", refused)
    y = box(np.zeros(3))
    assert np.isfinite(y).all() and len(set(y)) == 1 and box.ledger.rows_failed == 0


def test_an_fmu_is_heard_whatever_others_were_made_and_went_since(decay):
    """FMPy has one logger in a process for FMI 2, that of the last instance, and calls it once it is gone."""
    made = {k: Fmu(decay, times=1.0, parameters=["tank.k[1]"], failures="keep") for k in (-1.0, 101.0, 0.5)}
    made[-1.0](np.array([-1.0]), np.ones(1))
    assert "It said: k is negative: -1" in made[-1.0].ledger.first_failure
    del made[0.5]  # the last one
    gc.collect()
    made[101.0](np.array([101.0]), np.ones(1))
    assert "It said: k is too large" in made[101.0].ledger.first_failure


def test_an_fmu_that_logs_only_when_it_is_asked_to_is_asked_once_it_fails(decay, tmp_path):
    """An FMU of pythonfmu does so too, for FMI 2."""
    source = (HERE / "decay.c").read_text()
    for before, after in (
        ("int count,", "int logging, count,"),
        ("start(d);\n    return d;", "d->logging = logging, start(d);\n    return d;"),
        ("    d->log(", "    if (d->logging) d->log("),
    ):
        assert before in source
        source = source.replace(before, after)
    path = with_source(decay, tmp_path, source)
    box = Fmu(path, times=1.0, parameters=["tank.k[1]"], failures="keep")
    y = box(np.array([0.5, -1.0, 0.5, -2.0]), np.zeros(4))
    truth = decayed(0.5, 1.0, np.zeros(1))[-1]
    np.testing.assert_allclose(y, [truth, np.nan, truth, np.nan], rtol=1e-14)
    assert "It said: k is negative: -1" in box.ledger.first_failure
    assert box.ledger.rows_run == 4 and box.ledger.causes == {"RuntimeError": 2}


def test_an_fmu_that_gives_no_instance_is_asked_why(decay, tmp_path):
    before = "    Decay *d = calloc(1, sizeof *d);\n    d->log = "
    after = """
    if (logging) functions->logger(functions->componentEnvironment, name, fmi2Error, "", "no %s", "licence");
    return 0;
    """
    source = (HERE / "decay.c").read_text()
    assert before in source
    with pytest.raises(ConfigurationError, match=r"can be instantiated, got: .* It said: no licence"):
        Fmu(with_source(decay, tmp_path, source.replace(before, after + before)), times=1.0)


def test_a_cache_tells_long_times_apart_that_differ_in_the_middle(decay, tmp_path):
    k, u = 0.01, np.ones((1, 1))
    every = decayed(k, 1.0, u[0], steps=2400)
    for later in (0, 1):
        reads = np.arange(2, 2402, 2)
        reads[600] += later
        box = Fmu(decay, times=STEP * reads, parameters=["tank.k[1]", "x0"], input_times=[0.0])
        found = Cached(box, tmp_path / "answers")(np.array([k]), np.ones(1), u)
        np.testing.assert_allclose(found[0], every[reads - 1], rtol=1e-9)


def test_threads_have_instances_of_their_own_and_copies_load_theirs(decay):
    box = Fmu(decay, times=[0.5, 1.0], parameters=["tank.k[1]"])
    rng = np.random.default_rng(2)
    rows = rng.uniform(0.1, 2, 40), rng.normal(size=(40, 2))
    whole = box(*rows)
    spread = Parallel(box, lambda: ThreadPoolExecutor(3), block=2)
    np.testing.assert_array_equal(spread(*rows), whole)
    copied = pickle.loads(pickle.dumps(box))
    np.testing.assert_array_equal(copied(*rows), whole)
    assert copied.identity == box.identity
    folder = copied._folder
    assert folder.is_dir()
    del copied
    gc.collect()
    assert not folder.exists()


@pytest.mark.slow
def test_a_step_that_never_ends_is_given_up_with_its_process(decay):
    """As the docstring says: in processes, with a timeout."""
    spawn = multiprocessing.get_context("spawn")
    fmu = Fmu(decay, times=[0.5, 1.0], parameters=["tank.k[1]", "x0"], inputs=[], failures="keep")
    with Parallel(fmu, lambda: ProcessPoolExecutor(1, mp_context=spawn), timeout=60) as box:
        y = box(np.array([0.5, 1e5, 0.25]), np.ones(3))
        np.testing.assert_allclose(y[[0, 2], -1], [decayed(k, 1.0, np.zeros(1))[-1] for k in (0.5, 0.25)])
        assert np.isnan(y[1]).all()
        assert box.ledger.rows_timed_out == box.ledger.rows_failed == 1
    assert not multiprocessing.active_children()


def test_the_projects_own_check_finds_no_fault(decay):
    box = Fmu(decay, times=[0.5, 1.0], parameters=["tank.k[1]"])
    rng = np.random.default_rng(3)
    report = check_black_box(
        box, [rng.uniform(0.1, 2, 24), rng.normal(size=(24, 2))], rows=600, processes=False, seed=1
    )
    assert not report.faults, str(report)


def test_differences_through_the_steps_are_the_models_derivative(decay):
    box = Fmu(decay, times=1.0, parameters=["tank.k[1]", "x0"])
    inputs = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.5, 1.5, -1.0)]
    zo.differentiable(box, zo.CGE(mu=1e-5, central=True))(*inputs).sum().backward()
    k, x0, u = (value.detach().clone().requires_grad_() for value in inputs)
    x = x0
    for _ in range(8):
        x = x + STEP * (u - k * x)
    (x + torch.sin(k) * u).sum().backward()
    for found, truth in zip(inputs, (k, x0, u), strict=True):
        torch.testing.assert_close(found.grad, truth.grad, rtol=1e-8, atol=0)


def test_directional_derivatives_are_the_reference_at_one_instant(decay):
    box = Fmu(decay, times=None, parameters=["tank.k[1]", "x0"])
    assert box.has_derivative
    values = np.random.default_rng(4).normal(size=(3, 5))
    inputs = [torch.tensor(row, requires_grad=True) for row in values]
    weights = torch.tensor([1.0, 0.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    y = box.reference(*inputs)
    (y.square() * weights).sum().backward()
    k, x0, u = (torch.tensor(row, requires_grad=True) for row in values)
    truth = x0 + torch.sin(k) * u
    (truth.square() * weights).sum().backward()
    torch.testing.assert_close(y, truth)
    for found, wanted in zip(inputs, (k, x0, u), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)
    assert box.ledger.rows_run == 0  # who trains by a reference counts its rows
    with pytest.raises(NotDifferentiableError, match="single instants, over steps"):
        Fmu(decay, times=1.0).reference(inputs[2])


def mixed(a, u, w):
    """What `mixer.c` computes: y and z."""
    return torch.tanh(torch.einsum("rij,rj->ri", a, u)) * w[:, None], w * u.square().sum(1) + a[:, 1, 2]


@pytest.mark.parametrize("outputs", [["y", "signs", "z"], ["z", "y"], ["z"]])
def test_directional_derivatives_of_fmi_3_with_arrays(mixer, outputs):
    box = Fmu(mixer, times=None, parameters=["a"], outputs=outputs)
    assert box.has_derivative and box.units["u"] == "kg/s"
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 2, 3), (4, 3), (4,))
    inputs = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    inputs[2] = inputs[2].float().double()  # w has 32 bits
    weights = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    gradients = []
    for function in (box.reference, mixed):
        given = [value.clone().requires_grad_() for value in inputs]
        found = function(*given)
        names = outputs if function == box.reference else ["y", "z"]
        by_name = dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))
        loss = by_name["z"].square().sum()
        if "signs" in outputs:  # else there is an output that the loss does not use
            loss = loss + (by_name["y"] * weights).sum()
        gradients.append(torch.autograd.grad(loss, given))
    for found, truth in zip(*gradients, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)  # z has 32 bits


@pytest.mark.needs("pythonfmu3")
def test_an_fmu_without_derivatives_is_no_reference(oscillator):
    with pytest.raises(NotDifferentiableError, match="an FMU that provides none"):
        Fmu(oscillator, times=None).reference(torch.zeros(2))


def rewritten(path, folder, change):
    """The FMU with its files changed: `change(name, content)` gives another name and content."""
    copy = folder / "changed.fmu"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as changed:
        for name in archive.namelist():
            changed.writestr(*change(name, archive.read(name)))
    return copy


REFUSED = {
    "windows": (
        lambda name, content: (name.replace("linux64/decay.so", "win64/decay.dll"), content),
        r"expected an FMU for linux64, got changed.fmu for win64\. Export it for this platform",
    ),
    "sources": (
        lambda name, content: (name.replace("binaries/linux64/decay.so", "sources/decay.c"), content),
        r"got changed.fmu for C sources\. Build it from them: fmpy compile",
    ),
    "model exchange": (
        lambda name, content: (name, content.replace(b"CoSimulation", b"ModelExchange")),
        r"expected an FMU of FMI 2 or 3 with co-simulation, got FMI 2.0 without",
    ),
    "no description": (
        lambda name, content: (name.replace("modelDescription", "m"), content),
        "expected an FMU",
    ),
    "no library": (
        lambda name, content: (name, b"" if name.endswith(".so") else content),
        "expected an FMU that can be instantiated",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_fmu_that_cannot_run_here_is_refused_in_a_sentence(decay, tmp_path, case):
    change, words = REFUSED[case]
    before = Path.cwd()
    with pytest.raises(ConfigurationError, match=words) as refusal:
        Fmu(rewritten(decay, tmp_path, change), times=1.0)
    assert "\n" not in str(refusal.value) and Path.cwd() == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"times": 0.3}, "a whole number of steps of 0.125 after 0, got 0.3"),
        ({"times": [1.0, 0.5]}, "times that rise"),
        ({"times": "1"}, "times: expected finite numbers, got '1'"),
        ({"times": float("nan")}, "times: expected finite numbers, got nan"),
        ({"times": []}, r"times: expected finite numbers, got \[\]"),
        ({"times": [[0.5, 1.0]]}, "times: expected finite numbers, got"),
        ({"times": [0.5, 0.5 + 1e-9]}, "times at least a step of 0.125 apart"),
        ({"times": 1.0, "input_times": [0, 0.5, 0.5 + 1e-9]}, "input_times: .* a step of 0.125 apart"),
        ({"times": 1.0, "start": "0"}, "start: expected a finite number, got '0'"),
        ({"times": 1.0, "tolerance": -1}, "tolerance: expected a finite number > 0, got -1"),
        ({"times": 1.0, "inputs": "u"}, "inputs: expected a list of names, got 'u'"),
        ({"times": 1.0, "step": -1.0}, "step: expected"),
        ({"times": 1.0, "step": 0}, "step: expected"),
        ({"times": 1.0, "input_times": [0.5]}, "expected 0 first"),
        ({"times": 1.0, "input_times": [0, 500]}, "expected times before 1, when it ends, got 500"),
        ({"times": [0.5, 1.0], "input_times": [0, 0.5, 1]}, "expected times before 1, when it ends, got 1"),
        ({"times": None, "input_times": [0, 1]}, "expected times before 0, when it ends, got 1"),
        ({"times": 1.0, "inputs": []}, "expected something to set and something to read, got 0 inputs"),
        ({"times": 1.0, "parameters": ["x"]}, "expected variables of the FMU, got 'x'. Did you mean 'x0'"),
        ({"times": 1.0, "parameters": ["label"]}, "expected numbers, got 'label', of type String"),
        ({"times": 1.0, "inputs": ["y"]}, "can be set, got 'y', whose causality is 'output'"),
        ({"times": [0.5, 1.0], "inputs": ["u", "x0"]}, "over time, got 'x0', of variability 'fixed'"),
        ({"times": 1.0, "start_values": {"u": 3.0}}, "whose values no row gives, got 'u'"),
        ({"times": 1.0, "parameters": ["x0"], "start_values": {"x0": 3.0}}, "no row gives, got 'x0'"),
        ({"times": 1.0, "start_values": {"x0": [1, 2]}}, r"'x0' shape \(\) .* got \[1, 2\] \(shape"),
        ({"times": 1.0, "start_values": {"x0": "3"}}, "'x0' .* of type Real, got '3' .expected real numbers"),
        ({"times": 1.0, "start_values": {"count": 2.5}}, "'count' .* got 2.5 .expected whole numbers"),
        ({"times": 1.0, "start_values": {"sticky": 2}}, "'sticky' .* that bool can hold, got 2"),
        ({"times": 1.0, "start_values": {"label": 3}}, "'label' .* of type String, got 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(decay, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        Fmu(decay, **settings)


@pytest.mark.parametrize(("kind", "number"), [("Int8", 300), ("UInt16", -1)])
def test_a_whole_number_that_the_type_of_its_variable_cannot_hold_fails_its_row(
    mixer, tmp_path, kind, number
):
    """A byte would take 300 as 44."""
    variable = f'<{kind} name="n" valueReference="9" causality="parameter" variability="tunable" start="1"/>'

    def change(name, content):
        return name, content.replace(b"</ModelVariables>", f"{variable}</ModelVariables>".encode())

    box = Fmu(rewritten(mixer, tmp_path, change), times=None, parameters=["n"], inputs=[], failures="keep")
    assert np.isnan(box(np.array([7, number]))[0]).any(axis=1).tolist() == [False, True]
    assert f"expected numbers that {kind.lower()} can hold, got {number}" in box.ledger.first_failure


def test_a_start_value_has_the_shape_of_its_array(mixer):
    """An FMU reads as many numbers as it has, also behind the end of those that it is given."""
    a = np.arange(6.0).reshape(2, 3)
    y, *_ = Fmu(mixer, times=None, start_values={"a": a})(np.full((1, 3), 0.1), np.ones(1))
    np.testing.assert_allclose(y, np.tanh(a.sum(1) * 0.1)[None], rtol=1e-14)
    for wrong in ([1.0], np.zeros(7), 1.0):
        with pytest.raises(ConfigurationError, match=r"for 'a' shape \(2, 3\) of type Float64"):
            Fmu(mixer, times=None, start_values={"a": wrong})


def test_a_structural_parameter_is_refused(mixer):
    with pytest.raises(ConfigurationError, match="can be set, got 'size', whose causality is 'structural"):
        Fmu(mixer, times=None, start_values={"size": 4})


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="expected a path that exists"):
        Fmu(tmp_path / "none.fmu", times=1.0)


def test_an_extracted_fmu_is_refused(decay, tmp_path):
    with zipfile.ZipFile(decay) as archive:
        archive.extractall(tmp_path)
    with pytest.raises(ConfigurationError, match=r"expected an FMU, got '.*' \(.*[Dd]irectory"):
        Fmu(tmp_path, times=1.0)


class Unsearched(list):
    """A list in which nothing may be searched for, since that takes as long as it is."""

    def __contains__(self, _):
        raise AssertionError("searched")

    def __getitem__(self, place):
        return (
            Unsearched(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)
        )


def test_a_step_takes_no_longer_where_there_are_many(decay):
    """A row with reads and inputs at each of 30,000 steps took 50 s, nearly all of it in searches."""
    box = Fmu(decay, times=STEP * np.arange(1, 9))
    box._reads, box._changes = Unsearched(box._reads), Unsearched(box._changes)
    u = np.random.default_rng(0).normal(size=8)
    np.testing.assert_allclose(box(u[None])[0], decayed(0.5, 1.0, u), rtol=1e-14)


def test_the_block_of_the_page_runs(decay, tmp_path, monkeypatch):
    page = (Path(__file__).parents[4] / "docs" / "guide" / "black_boxes.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL) if "Fmu(" in block]
    monkeypatch.chdir(tmp_path)
    shutil.copy(decay, "tank.fmu")
    scope: dict = {}
    exec(compile(code, "docs/guide/black_boxes.md", "exec"), scope)
    np.testing.assert_allclose(scope["y"][1], decayed(2.0, 1.0, np.ones(4))[1::2], rtol=1e-14)
