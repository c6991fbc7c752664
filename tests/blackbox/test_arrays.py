"""What a call accepts and how arrays cross into a box and back: kinds, dtypes, strides, leading axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from blackbox import ArraySpec
from blackbox.arrays import as_tensor, failed_outputs, finite_rows, to_rows
from blackbox.calls import intercepted
from blackbox.errors import BoundsWarning, CountError, DtypeError, ShapeError
from tests.blackbox.boxes import KINDS, PAIR, STATE, EachBox, ErrorCase, RowsBox, error_table

FIELD, NUMBER = PAIR
PLACES = ["numpy", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pair_box(**keywords: Any) -> RowsBox:
    return RowsBox(lambda field, number: (field, number), PAIR, PAIR, **keywords)


def call(*arrays: Any) -> Any:
    return pair_box()(*arrays)


def typed(dtype: str, array: Any) -> Any:
    return RowsBox(lambda x: x, (ArraySpec("x", (2,), dtype),))(array)


F, N = np.zeros((4, 2, 3)), np.zeros(4)
ERRORS = [
    ErrorCase("none", lambda: call(), CountError, ["RowsBox", "expected 2 arrays (field, number)", "got 0"]),
    ErrorCase("too-many", lambda: call(F, N, N), CountError, ["expected 2", "got 3"]),
    ErrorCase(
        "unknown-name",
        lambda: pair_box()(field=F, numbers=N),
        CountError,
        ["expected inputs named field, number", "got 'numbers'", "Did you mean 'number'?"],
    ),
    ErrorCase(
        "twice", lambda: pair_box()(F, field=F, number=N), CountError, ["'field'", "as array 1 and by name"]
    ),
    ErrorCase(
        "not-at-all",
        lambda: pair_box()(number=N),
        CountError,
        ["2 arrays (field, number)", "got none for field", "Give field=..."],
    ),
    ErrorCase(
        "too-many-and-a-name", lambda: pair_box()(F, N, N, number=N), CountError, ["'number'", "as array 2"]
    ),
    ErrorCase("list", lambda: call(F, [0.0] * 4), DtypeError, ["'number'", "NumPy array", "got list"]),
    ErrorCase(
        "vmap",
        lambda: torch.func.vmap(pair_box())(torch.zeros(4, 2, 3), torch.zeros(4)),
        DtypeError,
        ["'field'", "got one of torch.func.vmap", "whole batch"],
    ),
    ErrorCase("number", lambda: call(F[0], 1.0), DtypeError, ["'number'", "got float", "asarray"]),
    ErrorCase("missing", lambda: call(None, N), DtypeError, ["'field'", "got NoneType"]),
    ErrorCase(
        "numpy-then-torch",
        lambda: call(F, torch.zeros(4)),
        DtypeError,
        ["'number'", "expected a NumPy array as for 'field'", "got a torch tensor"],
    ),
    ErrorCase(
        "torch-then-numpy",
        lambda: call(torch.zeros(4, 2, 3), N),
        DtypeError,
        ["'number'", "expected a torch tensor as for 'field'", "got a NumPy array"],
    ),
    ErrorCase(
        "other-device",
        lambda: call(torch.zeros(4, 2, 3), torch.zeros(4, device="meta")),
        DtypeError,
        ["'number'", "expected device cpu as for 'field'", "got meta"],
    ),
    ErrorCase(
        "sparse", lambda: call(torch.zeros(4, 2, 3).to_sparse(), N), DtypeError, ["'field'", "to_dense"]
    ),
    ErrorCase(
        "int-for-float",
        lambda: call(F, np.zeros(4, int)),
        DtypeError,
        ["'number'", "float32 or float64", "got int64", "number.astype('float32'), or say dtype='int64' in"],
    ),
    ErrorCase(
        "half",
        lambda: call(torch.zeros(2, 3).half(), torch.tensor(0.0)),
        DtypeError,
        ["got float16", "field.to("],
    ),
    ErrorCase("mask", lambda: call(F > 0, N), DtypeError, ["'field'", "say dtype='bool' in its ArraySpec"]),
    ErrorCase("complex", lambda: call(F + 1j, N), DtypeError, ["'field'", "got complex128"]),
    ErrorCase("object", lambda: call(F, N.astype(object)), DtypeError, ["'number'", "got object"]),
    ErrorCase("text", lambda: call(F, np.array(["a"] * 4)), DtypeError, ["'number'", "got <U1"]),
    ErrorCase("date", lambda: call(F, N.astype("M8[s]")), DtypeError, ["'number'", "got datetime64[s]"]),
    ErrorCase(
        "float64-for-float32",
        lambda: typed("float32", np.zeros(2)),
        DtypeError,
        ["'x': expected float32, got float64", "x.astype('float32')"],
    ),
    ErrorCase(
        "int64-for-int32",
        lambda: typed("int32", torch.zeros(2).long()),
        DtypeError,
        ["expected int32, got int64", "x.to(torch.int32)"],
    ),
    ErrorCase("float-for-bool", lambda: typed("bool", np.zeros(2)), DtypeError, ["expected bool"]),
    ErrorCase(
        "wrong-size",
        lambda: call(np.zeros((4, 2, 4)), N),
        ShapeError,
        ["'field'", "(..., 2, 3)", "got (4, 2, 4)", "trailing axes"],
    ),
    ErrorCase("axis-missing", lambda: call(np.zeros(3), N), ShapeError, ["'field'", "got (3,)"]),
    ErrorCase(
        "swapped", lambda: call(F.swapaxes(1, 2), N), ShapeError, ["look swapped", "field.swapaxes(-1, -2)"]
    ),
    ErrorCase(
        "leading-differ",
        lambda: call(F, np.zeros(5)),
        ShapeError,
        ["'number'", "expected leading axes (4,) as for 'field', got (5,)"],
    ),
    ErrorCase("leading-not-broadcast", lambda: call(F, np.zeros(())), ShapeError, ["'number'", "got ()"]),
]


@error_table(ERRORS)
def test_a_bad_call_is_refused_and_says_why(case):
    case.check()


def test_arrays_may_come_by_the_names_of_their_specs():
    box = RowsBox(lambda field, number: field * number[:, None, None], PAIR, (FIELD,))
    field, number = np.arange(24.0).reshape(4, 2, 3), np.arange(4.0)
    for answer in (
        box(field=field, number=number),
        box(number=number, field=field),
        box(field, number=number),
    ):
        assert (answer == field * number[:, None, None]).all()


def test_a_handler_gets_arrays_in_their_order_however_they_came():
    received: list[tuple[Any, ...]] = []
    with intercepted(lambda box, arrays: received.append(arrays)):
        pair_box()(number=N, field=F)
    assert received[0][0] is F and received[0][1] is N


@error_table(ERRORS)
def test_the_policy_keep_refuses_a_bad_call_too_and_runs_nothing(case, monkeypatch):
    boxes: list[RowsBox] = []
    init = RowsBox.__init__

    def keeping(self, *values, **keywords):
        init(self, *values, **(keywords | {"failures": "keep"}))
        boxes.append(self)

    monkeypatch.setattr(RowsBox, "__init__", keeping)
    case.check()
    assert [(box.failures, box.ledger.rows_asked, box.calls) for box in boxes] == [("keep", 0, [])]


def test_square_fields_are_never_said_to_be_swapped():
    square = RowsBox(lambda x: x, (ArraySpec("x", (2, 3, 3)),))
    with pytest.raises(ShapeError) as caught:
        square(np.zeros((4, 3, 3)))
    assert "swapped" not in str(caught.value)


@pytest.mark.quick_cases(25)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("leading", [(), (1,), (4,), (2, 3), (2, 1, 3), (0,), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@KINDS
def test_what_goes_in_comes_out(kind, arrays, place, dtype, leading):
    numpy = place == "numpy"
    device = "cpu" if numpy else place
    box = kind(lambda a, b: (a**2 + b[..., None, None], b - a.sum(-1).sum(-1)), PAIR, PAIR, arrays)
    field = torch.randn(*leading, 2, 3, dtype=dtype, generator=torch.Generator().manual_seed(1)).to(device)
    number = torch.arange(float(field[..., 0, 0].numel()), dtype=dtype, device=device).reshape(leading)
    expected = field**2 + number[..., None, None], number - field.sum((-1, -2))
    given = tuple(t.numpy() if numpy else t for t in (field, number))
    found = box(*given)
    assert isinstance(found, tuple)
    for one, truth in zip(found, expected, strict=True):
        assert isinstance(one, np.ndarray if numpy else torch.Tensor)
        tensor = torch.as_tensor(one)
        assert (tensor.dtype, tensor.device, tensor.shape) == (dtype, truth.device, truth.shape)
        torch.testing.assert_close(tensor, truth)
    assert box.ledger.rows_asked == box.ledger.rows_run == number.numel()
    wanted = torch.Tensor if arrays == "torch" else np.ndarray | np.generic
    assert all(isinstance(array, wanted) for arguments in box.calls for array in arguments)


BASE = np.arange(24.0).reshape(4, 2, 3)
STRANGE = {
    "transposed": np.asfortranarray(BASE),
    "strided": np.repeat(BASE, 2, axis=0)[::2],
    "negative-stride": BASE[::-1].copy()[::-1],
    "negative-stride-of-one-row": BASE[::-1][:1],
    "negative-strides": np.flip(np.flip(BASE).copy()),
    "big-endian": BASE.astype(">f8"),
    "big-endian-float32": BASE.astype(">f4"),
    "field-of-records": np.rec.fromarrays([BASE, BASE > 3], names="a,b")["a"],
    "broadcast": np.broadcast_to(BASE[:1], BASE.shape),
}


@pytest.mark.quick_cases(25)
@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("read_only", [False, True], ids=["", "read-only"])
@KINDS
def test_any_layout_of_numpy_memory_is_taken(kind, arrays, name, read_only):
    array = STRANGE[name].view()
    array.flags.writeable = array.flags.writeable and not read_only
    kept = array.copy()
    box = kind(lambda x: 3 * x, (FIELD,), (FIELD,), arrays)
    found = box(array)
    assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, 3 * kept)
    np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor(BASE).permute(2, 0, 1).contiguous().permute(1, 2, 0),
        lambda: torch.tensor(BASE)[:1].expand(4, 2, 3),
        lambda: torch.tensor(BASE, dtype=torch.complex128).mul(1j).conj().imag,
        lambda: torch.nn.Parameter(torch.tensor(BASE), requires_grad=False),
    ],
    ids=["permuted", "expanded", "negative-bit", "parameter"],
)
@KINDS
def test_any_layout_of_torch_memory_is_taken_and_the_box_gets_it_contiguous(kind, arrays, make):
    tensor = make()
    box = kind(lambda x: 3 * x, (FIELD,), (FIELD,), arrays)
    torch.testing.assert_close(box(tensor), 3 * tensor.detach(), rtol=0, atol=0)
    for (given,) in box.calls:
        assert given.is_contiguous() if arrays == "torch" else given.flags.c_contiguous


@pytest.mark.parametrize("value", [np.float32(3), np.float64(3), np.array(3.0), torch.tensor(3.0)])
@KINDS
def test_one_number_is_one_row(kind, arrays, value):
    box = kind(lambda x: x / 2, (NUMBER,), (NUMBER,), arrays)
    found = box(value)
    assert (found.shape, found.dtype, float(found)) == ((), value.dtype, 1.5)


INT, FLAG = ArraySpec("count", (2,), "int64"), ArraySpec("flag", (), "bool")


@KINDS
def test_integers_and_flags_go_through_unrounded(kind, arrays):
    box = kind(lambda count, flag: (count + 1, ~flag), (INT, FLAG), (INT, FLAG), arrays)
    count = np.array([[2**62, -1], [2**53 + 1, 0]])  # beyond what a float64 holds
    found = box(count, np.array([True, False]))
    np.testing.assert_array_equal(found[0], count + 1)
    np.testing.assert_array_equal(found[1], [False, True])
    assert (found[0].dtype, found[1].dtype) == (np.int64, np.bool_)


F32, F64, I64 = torch.float32, torch.float64, torch.int64


@pytest.mark.parametrize(
    "inputs, expected",
    [
        ([(True, None, F32)], F32),
        ([(True, None, F64)], F64),
        ([(True, None, F32), (True, None, F64)], F64),
        ([(True, None, F32), (False, None, F64)], F32),  # only what derivatives run along decides
        ([(False, None, F64), (True, None, F32)], F32),
        ([(False, None, F64)], F64),
        ([(True, "int64", I64), (False, "float64", F64)], F64),
        ([(True, "int64", I64)], F32),
        ([(True, "float32", F32)], F32),
    ],
)
def test_an_open_output_dtype_follows_the_differentiable_inputs(inputs, expected):
    specs = tuple(ArraySpec(f"x{i}", (), dtype, diff) for i, (diff, dtype, _) in enumerate(inputs))
    outputs = (ArraySpec("open", ()), ArraySpec("single", (), "float32"), ArraySpec("double", (), "float64"))

    def answer(*xs: np.ndarray) -> tuple[np.ndarray, ...]:
        return np.ones(len(xs[0]), "f8"), np.ones(len(xs[0]), "f4"), np.ones(len(xs[0]), "f8")

    found = RowsBox(answer, specs, outputs)(*(torch.ones(3, dtype=dtype) for _, _, dtype in inputs))
    assert [one.dtype for one in found] == [expected, F32, F64]


@pytest.mark.parametrize("precision", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", [EachBox, RowsBox])
def test_a_box_may_answer_in_any_precision(kind, precision):
    box = kind(lambda x: (x / 3).astype(precision))
    x = np.array([[1.0, 2.0]], "f4")
    np.testing.assert_array_equal(box(x), (x / 3).astype(precision).astype("f4"))


@pytest.mark.parametrize(
    "array", [np.ones(3), np.ones(3)[::-1], np.array(2.0), torch.ones(3, requires_grad=True)]
)
def test_as_tensor_gives_the_numbers_and_no_graph(array):
    tensor = as_tensor(array)
    assert not tensor.requires_grad
    np.testing.assert_array_equal(
        tensor.numpy(), torch.as_tensor(array.copy()) if isinstance(array, np.ndarray) else 1
    )


def test_as_tensor_shares_plain_memory():
    array = np.ones(3)
    as_tensor(array)[0] = 7
    assert array[0] == 7


def test_failed_outputs_are_nan_in_floats_and_zero_elsewhere():
    specs = (ArraySpec("open", (2,)), ArraySpec("single", (), "float32"), ArraySpec("k", (3,), "int32"), FLAG)
    outputs = failed_outputs(specs, (torch.zeros(5, 9),), F32)
    assert [(t.shape[1:], t.dtype) for t in outputs] == [
        ((2,), F32),
        ((), F32),
        ((3,), torch.int32),
        ((), torch.bool),
    ]
    assert all(len(t) == 5 for t in outputs)
    assert outputs[0].isnan().all() and outputs[1].isnan().all()
    assert not outputs[2].any() and not outputs[3].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_finite_rows_looks_at_every_float(bad):
    a, b = torch.zeros(4, 2, 3), torch.zeros(4)
    a[1, 1, 2] = b[3] = bad
    assert finite_rows((a, b, torch.ones(4, dtype=torch.int64))).tolist() == [True, False, True, False]


def test_rows_are_flattened_in_the_order_of_the_leading_axes():
    x = torch.arange(12.0).reshape(3, 2, 2)
    rows = to_rows("box", (STATE,), (x,))
    assert (rows.count, rows.leading, rows.numpy, rows.device.type) == (6, (3, 2), False, "cpu")
    assert torch.equal(rows.give_back(rows.inputs), x)


def test_bytes_for_a_box_of_images_are_told_at_the_first_call():
    def box(bounds: Any = (0, 1)) -> RowsBox:
        return RowsBox(lambda x: x[:, :2], (ArraySpec("x", (3,), bounds=bounds),))

    with pytest.warns(BoundsWarning, match=r"about 0 to 1, got 0 to 255.*bytes / 255"):
        box()(torch.tensor([[0.0, 7.0, 255.0]]))
    usual = box()
    usual(torch.tensor([[-0.5, 1.5, 4.0]]))  # warnings are errors in these tests
    usual(torch.tensor([[0.0, 7.0, 255.0]]))  # a training that diverges says so itself
    box((0, None))(torch.tensor([[-1e3, 0.0, 1e9]]))  # of one side no width is known


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_a_box_is_not_traced_into_an_export_as_a_constant():
    arrays = torch.zeros(4, 2, 3), torch.zeros(4)
    with pytest.raises(DtypeError, match=r"'field': .*answers would be constants.*network alone"):
        torch.jit.trace(lambda *given: pair_box()(*given), arrays, check_trace=False)
