"""`blackbox tesseract`: what it writes, run by tesseract-core, held to its own check and to autograd."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.needs("tesseract")


def load(path):
    """A file as tesseract-core reads it."""
    from tesseract_core.runtime.core import load_module_from_path

    return load_module_from_path(path)


# thickness in nanometres beside a concentration: eighteen orders of magnitude apart
BOX = '''
import numpy as np
from blackbox import ArraySpec, BlackBoxFunction


class Cell(BlackBoxFunction):
    """A solar cell of sorts.

    Not a real one.
    """

    inputs = (
        ArraySpec("thickness", (2,), scale=1e-9),
        ArraySpec("doping", (), scale=1e15),
        ArraySpec("kind", (), dtype="int64"),
    )
    outputs = (ArraySpec("current", (2,)), ArraySpec("voltage", ()), ArraySpec("layers", (), dtype="int64"))

    def __init__(self, gain=1.0, noise=0.0):
        self.gain, self.noise = gain, noise
        self.deterministic = noise == 0
        super().__init__()

    def evaluate_rows(self, thickness, doping, kind):
        a, b = thickness * 1e9, doping[:, None] / 1e15
        if (a < 0).any():
            raise ValueError("thickness is negative")
        current = self.gain * np.sin(a) * b + kind[:, None] * a[:, ::-1]
        current = current + self.noise * np.random.standard_normal(current.shape)
        return current, (a * b).prod(axis=1), kind + 1
'''
GAIN = 2.0
CHECK = 2 * 2  # rows of a gradient that is checked: of two queries, on both sides at half of their step
INPUTS = {"thickness": [0.8e-9, 1.7e-9], "doping": 1.3e15, "kind": 2}


def truth(thickness, doping, kind):
    """What the box computes, in torch, of one row."""
    a, b = thickness * 1e9, doping / 1e15
    return GAIN * torch.sin(a) * b + kind * a.flip(-1), (a * b).prod(-1)


@pytest.fixture
def write(toy, tmp_path, capsys):
    """`write(option, ...)` runs the command in an empty folder, and gives the module and what was said."""
    (tmp_path / "cells.py").write_text(BOX)

    def run(*options):
        assert toy("tesseract", "cells.py:Cell", "out", f"gain={GAIN}", *options) == 0
        said = capsys.readouterr().out
        return load(tmp_path / "out" / "tesseract_api.py"), said

    return run


def gradients_checked(module, inputs, seed=0):
    """What tesseract-core's own check fails, of how many checks."""
    from tesseract_core.runtime.testing import finite_differences as checks

    steps = {"thickness": 1e-13, "doping": 1e11}
    ((_, failures, count),) = checks.check_gradients(
        module, {"inputs": inputs}, eps=steps, max_evals=8, seed=seed, show_progress=False
    )
    return failures, count


def vjp(module, inputs, cotangents, wanted=("thickness", "doping")):
    given = module.InputSchema(**inputs)
    return module.vector_jacobian_product(given, set(wanted), set(cotangents), cotangents)


def test_its_derivative_passes_tesseract_cores_own_check_and_no_row_is_solved_twice(write):
    module, _ = write()
    failures, count = gradients_checked(module, INPUTS)
    assert not failures and count >= 8
    # the check's own differences at its smaller steps, and the base, and two rows for each of three numbers
    asked = module.box.ledger.rows_run
    current, voltage = np.array([0.3, -2.0]), np.array(1.5)
    found = vjp(module, INPUTS, {"current": current, "voltage": voltage})
    assert module.box.ledger.rows_run == asked  # other cotangents: no new row
    thickness, doping = (torch.tensor(INPUTS[n], dtype=torch.float64, requires_grad=True) for n in found)
    one, other = truth(
        *(dict(zip(found, (thickness, doping), strict=True))[n] for n in ("thickness", "doping")), 2
    )
    ((one * torch.tensor(current)).sum() + other * 1.5).backward()
    for name, wanted in zip(found, (thickness, doping), strict=True):
        np.testing.assert_allclose(found[name], wanted.grad, rtol=1e-5)


def test_a_first_solve_and_a_gradient_take_one_row_and_two_for_each_number(write):
    module, _ = write()
    outputs = module.apply(module.InputSchema(**INPUTS))
    assert module.box.ledger.rows_run == 1
    assert outputs.layers == 3 and outputs.voltage == pytest.approx(0.8 * 1.7 * 1.3**2)
    vjp(module, INPUTS, {"voltage": np.array(1.0)})
    assert module.box.ledger.rows_run == 1 + 2 * 3 + CHECK
    vjp(module, INPUTS, {"current": np.ones(2)}, wanted=["doping"])
    assert module.box.ledger.rows_run == 1 + 2 * 3 + CHECK


def test_rows_are_the_first_axis_where_it_is_asked_for(write):
    module, _ = write("--vectorized")
    rng = np.random.default_rng(0)
    inputs = {
        "thickness": rng.uniform(0.5, 2, (3, 2)) * 1e-9,
        "doping": rng.uniform(0.5, 2, 3) * 1e15,
        "kind": [1, 2, 3],
    }
    failures, _ = gradients_checked(module, inputs)
    assert not failures
    abstract = module.abstract_eval(module.InputSchema(**inputs))
    outputs = module.apply(module.InputSchema(**inputs)).model_dump()
    assert {name: value.shape for name, value in outputs.items()} == {n: s.shape for n, s in abstract.items()}


@pytest.mark.slow  # it fits a network
def test_a_tangent_learned_from_the_solves_takes_no_row_beside_them(write, capsys):
    module, _ = write("--derivative", "values", "--vectorized")
    rng = np.random.default_rng(0)

    def states():
        thickness = np.array(INPUTS["thickness"]) * (1 + 0.1 * rng.normal(size=(8, 2)))
        return {"thickness": thickness, "doping": 1e15 * (1.3 + 0.1 * rng.normal(size=8)), "kind": [2] * 8}

    for call in range(1, 41):
        inputs = states()
        module.apply(module.InputSchema(**inputs))
        vjp(module, inputs, {"voltage": np.ones(8)})
        assert module.box.ledger.rows_run == 8 * call  # the solve that apply has made
    inputs = states()
    a, b = inputs["thickness"] * 1e9, inputs["doping"][:, None] / 1e15
    found = vjp(module, inputs, {"voltage": np.ones(8)})["thickness"]
    wanted = a[:, ::-1] * b**2 * 1e9
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)
    said = re.findall(r"tangent: \[(.*)\]", capsys.readouterr().out)
    assert said[0] == "None" and float(said[-1]) < 0.15  # nothing to predict by, then outputs it had not seen


def test_a_noisy_box_is_right_within_its_noise(toy, tmp_path):
    (tmp_path / "cells.py").write_text(BOX)
    words = ["cells.py:Cell", "out", f"gain={GAIN}", "noise=1e-4", "--mu", "0.1"]
    assert toy("tesseract", *words) == 0
    module = load(tmp_path / "out" / "tesseract_api.py")
    assert not hasattr(module, "Cached")  # two answers to one question: nothing to keep
    found = vjp(module, INPUTS, {"current": np.array([1.0, 0.0])})["thickness"]
    wanted = np.array([GAIN * 1.3 * np.cos(0.8), 2.0]) * 1e9
    # noise 1e-4 over a step of .2, five times its standard deviation, and the third derivative's part
    assert (np.abs(found - wanted) < (5 * 1e-4 * 2**0.5 / 0.2 + GAIN * 1.3 * 0.1**2 / 6) * 1e9).all()


def test_a_solve_that_fails_is_an_error(write):
    module, _ = write()
    bad = {**INPUTS, "thickness": [-1e-9, 1e-9]}
    with pytest.raises(Exception, match="thickness is negative"):
        module.apply(module.InputSchema(**bad))
    near = {**INPUTS, "thickness": [1e-13, 1e-9]}  # the solve itself works, a row of the differences does not
    with pytest.raises(Exception, match="thickness is negative"):
        vjp(module, near, {"voltage": np.array(1.0)})


def test_it_comes_back_as_the_box_that_it_was(write, tmp_path):
    from blackbox.adapters import Tesseract

    write()
    sys.path.insert(0, str(tmp_path / "out"))
    try:
        from cells import Cell  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(tmp_path / "out"))
    box, back = Cell(gain=GAIN), Tesseract(tmp_path / "out" / "tesseract_api.py")
    assert [(s.name, s.shape, s.dtype) for s in back.inputs] == [
        (s.name, s.shape, s.dtype) for s in box.inputs
    ]
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.5, 2, (4, 2)) * 1e-9, rng.uniform(0.5, 2, 4) * 1e15, np.arange(4)
    for one, other in zip(back(*rows), box(*rows), strict=True):
        np.testing.assert_array_equal(one, other)
    inputs = [torch.tensor(rows[0], requires_grad=True), torch.tensor(rows[1]), torch.tensor(rows[2])]
    back.reference(*inputs)[1].sum().backward()
    wanted = rows[0][:, ::-1] * 1e9 * (rows[1][:, None] / 1e15) ** 2 * 1e9
    np.testing.assert_allclose(inputs[0].grad, wanted, rtol=1e-6)


TYPED = """
from blackbox import ArraySpec, BlackBoxFunction


class Valve(BlackBoxFunction):
    inputs = (ArraySpec("x", (2,), "float32"), ArraySpec("open", (), "bool"), ArraySpec("k", (2,), "uint8"))
    outputs = (ArraySpec("y", (2,), "float32"), ArraySpec("shut", (), "bool"))

    def evaluate(self, x, open, k):
        return x**2 * (2 if open else 1) + k.astype(x.dtype), not open
"""


def test_a_box_with_arrays_of_every_kind_comes_back_too(toy, tmp_path, capsys):
    from blackbox.adapters import Tesseract

    (tmp_path / "valves.py").write_text(TYPED)
    assert toy("tesseract", "valves.py:Valve", "out") == 0
    assert '"open": true' in capsys.readouterr().out
    box = Tesseract(tmp_path / "out" / "tesseract_api.py")
    assert [spec.dtype for spec in box.inputs[1:]] == ["bool", "uint8"]
    x = torch.tensor([[0.5, 1.0], [0.5, 1.0]], requires_grad=True)
    y, shut = box.reference(x, torch.tensor([True, False]), torch.tensor([[3, 255]] * 2, dtype=torch.uint8))
    y.sum().backward()
    np.testing.assert_allclose(y.detach(), [[3.5, 257.0], [3.25, 256.0]])
    assert shut.tolist() == [False, True]
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, [[2.0, 4.0], [1.0, 2.0]], rtol=0.05)  # in float32, beside 255


@pytest.mark.slow  # it starts tesseract-core's own command
def test_the_commands_that_it_prints_work(write, tmp_path):
    _, said = write()
    check, *_ = re.findall(r"^  (TESSERACT_API_PATH.*)$", said, flags=re.MULTILINE)
    setting, *words = shlex.split(check)
    name, path = setting.split("=")
    command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    settings = {name: path, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0 and "0 failures" in run.stdout + run.stderr, run.stdout + run.stderr


def test_its_configuration_is_one_that_tesseract_core_reads(write, tmp_path):
    from tesseract_core.sdk import api_parse as api

    write()
    api.validate_tesseract_api(tmp_path / "out")
    config = api.get_config(tmp_path / "out")
    assert config.name == "cell" and config.description == "A solar cell of sorts."
    assert [str(source) for source, _ in config.build_config.package_data or ()] == ["cells.py"]
    assert (tmp_path / "out" / "cells.py").read_text() == BOX


def test_what_cannot_be_written_is_refused(toy, write, tmp_path, capsys):
    write()
    assert toy("tesseract", "cells.py:Cell", "out") == 2
    assert "expected no such file, got one" in capsys.readouterr().err
    (tmp_path / "others.py").write_text(BOX.replace('"thickness"', '"model_a"'))
    assert toy("tesseract", "others.py:Cell", "other") == 2
    assert "expected a name that pydantic has not itself" in capsys.readouterr().err
    (tmp_path / "flat.py").write_text(re.sub(r", scale=1e-9|, scale=1e15", ", differentiable=False", BOX))
    assert toy("tesseract", "flat.py:Cell", "other") == 2
    assert "Cell: expected a differentiable input" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_inputs_that_it_prints_are_as_large_as_their_scales(write):
    _, said = write()
    payload = json.loads(re.search(r"'(\{.*\})'", said)[1])["inputs"]
    assert payload == {"thickness": [1e-9, 1e-9], "doping": 1e15, "kind": 1}
    assert "--eps-for thickness=1e-12 --eps-for doping=1e+12" in said
