"""A Tesseract as a black box: what its schemas become, rows, failures, its own derivative, refusals."""

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from blackbox import Cached
from blackbox.adapters import Tesseract
from blackbox.errors import ConfigurationError, NotDifferentiableError, OutputError, RowFailedError

pytestmark = pytest.mark.needs("tesseract")

HERE = Path(__file__).parent
HEATER, ROWS = HERE / "heater.py", HERE / "rows.py"
EXAMPLE = {"loads": np.ones((4, 3))}


def core():
    """The class of tesseract-core."""
    from tesseract_core import Tesseract

    return Tesseract


@pytest.fixture(scope="module")
def heater():
    """Read once: tesseract-core builds its schemas anew each time."""
    return core().from_tesseract_api(HEATER)


@pytest.fixture(scope="module")
def in_rows():
    return core().from_tesseract_api(ROWS)


def specs(box):
    return [(spec.name, spec.shape, spec.dtype, spec.differentiable) for spec in (*box.inputs, *box.outputs)]


def heater_rows(count, seed=0):
    """thickness, conductivity, loads, count, ambient"""
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(0.5, 1.5, (count, 2)),
        rng.uniform(0.5, 1.5, count),
        rng.uniform(0.5, 1.5, (count, 4, 3)),
        rng.integers(1, 4, count).astype(np.int32),
        rng.normal(size=count),
    )


def heated(thickness, conductivity, loads, count, ambient):
    """What `heater.py` computes, in torch or NumPy, for all rows; its conductivity is in float32."""
    field = conductivity[:, None, None] * loads**2 / thickness.sum(1)[:, None, None] + ambient[:, None, None]
    return field, field.sum((1, 2)) * count


def test_nested_schemas_are_named_inputs_and_outputs(heater):
    box = Tesseract(heater, example=EXAMPLE)
    assert specs(box) == [
        ("wall_thickness", (2,), None, True),
        ("wall_conductivity", (), None, True),
        ("loads", (4, 3), None, True),
        ("count", (), "int32", False),
        ("ambient", (), None, False),  # a plain number that is required
        ("field", (4, 3), None, True),  # its size from abstract_eval
        ("total", (), None, True),
        ("iterations", (), "int64", False),
    ]
    rows = heater_rows(3)
    field, total, iterations = box(*rows)
    truth, whole = heated(rows[0], np.float32(rows[1]), *rows[2:])
    np.testing.assert_allclose(field, truth, rtol=1e-6)
    np.testing.assert_allclose(total, whole, rtol=1e-6)
    assert iterations.tolist() == [4, 4, 4] and box.ledger.rows_run == 3


def test_what_is_chosen_varies_and_the_example_has_the_rest(heater):
    thickness, _, loads, *_ = (array[:1] for array in heater_rows(1))
    example = {
        "wall": {"thickness": thickness[0].tolist(), "conductivity": 2.0},
        "loads": loads[0],
        "count": 2,
        "ambient": 1.5,
        "label": "x",
    }
    box = Tesseract(heater, example=example, inputs=["exponent", "wall.thickness"])
    assert [spec.name for spec in box.inputs] == ["exponent", "wall_thickness"]
    found = box(np.array([2.0, 3.0]), np.repeat(thickness, 2, axis=0))[0]
    truth = [2.0 * loads[0] ** power / thickness.sum() + 1.5 for power in (2, 3)]
    np.testing.assert_allclose(found, truth, rtol=1e-12)
    assert example["wall"]["thickness"] == thickness[0].tolist()  # the caller's own is as it was
    given = Tesseract(heater, example={**example, "spare": [1, 2]})
    assert "spare" in [spec.name for spec in given.inputs]  # an optional array that the example has


def test_rows_go_together_where_the_first_axis_is_rows(in_rows):
    box = Tesseract(
        in_rows, example={"x": np.zeros((1, 2))}, inputs=["x"], vectorized=True, max_rows=4, failures="keep"
    )
    assert specs(box) == [
        ("x", (2,), None, True),
        ("y", (), None, True),
        ("parts__0_", (), None, False),
        ("parts__1_", (), None, False),
    ]
    x = np.random.default_rng(0).normal(size=(10, 2))
    y, first, second = box(x)
    np.testing.assert_allclose(y, np.sin(x[:, 0]) + 0.5 * x[:, 1], rtol=1e-14)
    np.testing.assert_array_equal(np.stack([first, second], 1), x)
    x[3, 0] = 101
    y = box(x)[0]
    assert np.flatnonzero(np.isnan(y)).tolist() == [3] and "x is too large" in box.ledger.first_failure


def test_lists_and_dicts_are_as_long_as_the_examples(in_rows):
    example = {"x": np.zeros((1, 2)), "layers": [np.zeros(2), np.zeros(3)], "named": {"a.b": 1.0, "c}": 2.0}}
    box = Tesseract(in_rows, example=example)
    assert [spec.name for spec in box.inputs] == [
        "x",
        "layers__0_",
        "layers__1_",
        "named__a_b_",
        "named__c___",
    ]
    (y,) = box(np.zeros((1, 1, 2)), np.ones((1, 2)), np.ones((1, 3)), np.array([10.0]), np.array([20.0]))[0]
    assert y.tolist() == [2 + 3 + 10 + 20]


def test_an_apply_that_raises_is_a_failed_row(heater):
    box = Tesseract(heater, example=EXAMPLE, failures="keep")
    rows = heater_rows(3)
    rows[1][1] = -1
    total = box(*rows)[1]
    assert np.isnan(total).tolist() == [False, True, False]
    assert box.ledger.first_failure.endswith("(RuntimeError: apply: conductivity is negative)")
    with pytest.raises(RowFailedError, match=r"row 1 failed.*conductivity is negative"):
        Tesseract(heater, example=EXAMPLE)(*rows)


def test_its_own_derivative_is_the_reference(heater, in_rows):
    box = Tesseract(heater, example=EXAMPLE)
    assert box.has_derivative
    rows = heater_rows(3, seed=1)
    tensors = [torch.tensor(a, requires_grad=a.dtype == np.float64) for a in rows]
    weights = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    field, total, iterations = box.reference(*tensors)
    ((field.square().sum((1, 2)) + total) * weights).sum().backward()
    assert not iterations.requires_grad and tensors[4].grad is None  # no Differentiable: constants to it
    own = [torch.tensor(a, requires_grad=a.dtype == np.float64) for a in rows]
    truth, whole = heated(*own)
    ((truth.square().sum((1, 2)) + whole) * weights).sum().backward()
    for found, wanted in zip(tensors[:3], own[:3], strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-9)
    assert box.ledger.rows_run == 0  # who trains by a reference counts its rows
    with pytest.raises(NotDifferentiableError, match="expected the endpoint vector_jacobian_product"):
        Tesseract(in_rows, example={"x": np.zeros((1, 2))}).reference(torch.zeros(1, 1, 2))


NARROW = """
from pydantic import BaseModel
from tesseract_core.runtime import Array, Float64, Int8, UInt16

class InputSchema(BaseModel):
    n: Array[(2,), Int8]
    m: UInt16

class OutputSchema(BaseModel):
    y: Array[(2,), Float64]

def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=inputs.n.astype(float) + float(inputs.m))
"""


def test_a_whole_number_that_the_dtype_of_its_field_cannot_hold_is_a_failed_row(tmp_path):
    """A byte would take 300 as 44."""
    (tmp_path / "tesseract_api.py").write_text(NARROW)
    box = Tesseract(tmp_path / "tesseract_api.py", failures="keep")
    y = box(np.array([[1, -2], [300, 1], [1, 1]]), np.array([3, 0, -1]))
    np.testing.assert_array_equal(y, [[4, 1], [np.nan] * 2, [np.nan] * 2])
    assert "expected numbers that int8 can hold, got 300" in box.ledger.first_failure


IN_BLOCKS = """
import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64

class InputSchema(BaseModel):
    x: Differentiable[Array[(None, 2), Float64]]

class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]

def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=np.sin(inputs.x).prod(1))

def vector_jacobian_product(inputs: InputSchema, vjp_inputs, vjp_outputs, cotangent_vector):
    if len(inputs.x) > 4:
        raise ValueError("too many rows for its memory")
    return {"x": cotangent_vector["y"][:, None] * np.cos(inputs.x) * np.sin(inputs.x)[:, ::-1]}
"""


def test_a_derivative_of_rows_together_takes_no_more_of_them_than_an_apply(tmp_path):
    (tmp_path / "tesseract_api.py").write_text(IN_BLOCKS)
    box = Tesseract(tmp_path / "tesseract_api.py", vectorized=True, max_rows=4)
    x = torch.linspace(0, 2, 20, dtype=torch.float64).reshape(10, 2).requires_grad_()
    (found,) = torch.autograd.grad(box.reference(x).exp().sum(), x)
    (truth,) = torch.autograd.grad(x.sin().prod(1).exp().sum(), x)
    torch.testing.assert_close(found, truth)


def test_a_cache_tells_long_examples_apart_that_differ_in_the_middle(tmp_path):
    rows = [array for number, array in enumerate(heater_rows(2)) if number != 2]
    inputs = ["wall.thickness", "wall.conductivity", "count", "ambient"]
    for middle in (1.0, 2.0):
        loads = np.ones((400, 3))
        loads[200] = middle
        box = Cached(Tesseract(HEATER, example={"loads": loads}, inputs=inputs), tmp_path / "answers")
        field, *_ = heated(rows[0], rows[1], np.stack([loads] * 2), rows[2], rows[3])
        np.testing.assert_allclose(box(*rows)[0], field, rtol=1e-5)  # its conductivity is in float32


def test_one_in_a_file_goes_to_other_processes_and_one_in_memory_does_not():
    box = Tesseract(HEATER, example=EXAMPLE)
    copied = pickle.loads(pickle.dumps(box))
    rows = heater_rows(2)
    np.testing.assert_array_equal(copied(*rows)[0], box(*rows)[0])
    assert copied.identity == box.identity
    memory = Tesseract(core().from_tesseract_api(HEATER), example=EXAMPLE)
    np.testing.assert_array_equal(memory(*rows)[0], box(*rows)[0])
    with pytest.raises(ConfigurationError, match="expected an address or a file to send"):
        pickle.dumps(memory)


@pytest.mark.slow  # it starts a server
def test_a_served_one_answers_as_its_file_does():
    with core().from_source(HEATER, python_executable=sys.executable) as served:
        box, file = Tesseract(served, example=EXAMPLE), Tesseract(HEATER, example=EXAMPLE)
        url = Tesseract(served._client.url, example=EXAMPLE, failures="keep")
        rows = heater_rows(3)
        for found in (box(*rows), url(*rows)):
            for one, other in zip(found, file(*rows), strict=True):
                np.testing.assert_array_equal(one, other)
        tensors = [torch.tensor(a, requires_grad=a.dtype == np.float64) for a in rows]
        others = [torch.tensor(a, requires_grad=a.dtype == np.float64) for a in rows]
        url.reference(*tensors)[1].sum().backward()
        file.reference(*others)[1].sum().backward()
        for one, other in zip(tensors[:3], others[:3], strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)
        rows[1][1] = -1
        assert np.isnan(url(*rows)[1]).tolist() == [False, True, False]
        assert "conductivity is negative" in url.ledger.first_failure
    assert np.isnan(url(*rows)[1]).all()  # it is gone: rows that fail


@pytest.mark.parametrize(
    ("which", "settings", "words"),
    [
        (
            "heater",
            {},
            r"input 'loads': expected one shape for all rows, got a ragged one, of shape \(any, 3\)",
        ),
        (
            "in_rows",
            {"inputs": ["layers"]},
            "'layers': expected one shape for all rows, got an array of any len",
        ),
        ("heater", {"example": EXAMPLE, "inputs": ["lods"]}, "got 'lods'. Did you mean 'loads'"),
        ("heater", {"example": EXAMPLE, "inputs": ["loads"]}, "expected 'wall.thickness' among them"),
        ("heater", {"example": {"loads": np.ones((4, 2))}}, r"array of shape \(None, 3\).*got \(4, 2\)"),
        (
            "heater",
            {"example": EXAMPLE, "vectorized": True},
            "'wall.thickness': expected an array with an open",
        ),
        ("in_rows", {"example": {"x": np.full((1, 2), 101.0)}}, "got an error: apply: x is too large"),
    ],
)
def test_what_has_no_one_shape_is_refused_in_a_sentence(request, which, settings, words):
    with pytest.raises(ConfigurationError, match=words) as refusal:
        Tesseract(request.getfixturevalue(which), **settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("place", [HERE / "none.py", "http://127.0.0.1:9", 3])
def test_what_is_not_there_is_refused(place):
    with pytest.raises(ConfigurationError, match=r"Tesseract, tesseract: expected .*, got"):
        Tesseract(place)


def test_outputs_that_change_their_shape_are_an_error_of_the_box(tmp_path):
    text = ROWS.read_text().replace("y=y +", "y=y[: 1 + int(x[0, 0])] +")
    (tmp_path / "ragged.py").write_text(text)
    box = Tesseract(tmp_path / "ragged.py", example={"x": np.zeros((3, 2))}, inputs=["x"])
    with pytest.raises(OutputError, match="output 'y': expected shape"):
        box(np.full((1, 3, 2), 2.0))


def test_the_block_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (HERE.parents[3] / "docs" / "guide" / "black_boxes.md").read_text(encoding="utf-8")
    code, *_ = re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tesseract_api.py").write_text(HEATER.read_text())
    scope: dict = {}
    exec(compile(code, "docs/guide/black_boxes.md", "exec"), scope)
    assert "('wall_thickness', (2,))" in capsys.readouterr().out
    assert all(row.grad is not None for row in scope["rows"][:3])
