import pickle
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as runtime
import pytest
import torch
from onnx import TensorProto, helper
from typeguard import suppress_type_checks

from blackbox import ArraySpec
from blackbox.adapters import OnnxModel
from blackbox.conformance import check_black_box
from blackbox.errors import ConfigurationError, OutputError
from blackbox.extras import MissingExtraError
from blackbox.wrappers.identity import identity
from tests.blackbox.adapters.training import function, gradient_error, loss_drop

FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64


def save(path, nodes, inputs, outputs, weights=None, **settings):
    """Write a model; `inputs` and `outputs` are (name, type, shape)."""
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(
        [helper.make_node(kind, into.split(), out.split(), **more) for kind, into, out, more in nodes],
        "graph",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path, **settings)
    return path


def function_file(path, rows="batch"):
    """`training.function` in ONNX's operators, in double precision."""
    nodes = [
        ("Split", "x", "a b", {"axis": 1}),
        ("Sin", "a", "s", {}),
        ("Mul", "b half", "h", {}),
        ("Add", "s h", "first", {}),
        ("Mul", "a b", "ab", {}),
        ("Add", "ab b", "second", {}),
        ("Concat", "first second", "y", {"axis": 1}),
    ]
    weights = {"half": np.array(0.5)}
    return save(path, nodes, [("x", DOUBLE, [rows, 2])], [("y", DOUBLE, [rows, 2])], weights)


def scaled_file(path, second=3, **settings):
    """x * (2, second)."""
    weights, shape = np.array([2, second], np.float32), ["n", 2]
    return save(path, [("Mul", "x w", "y", {})], [("x", FLOAT, shape)], [("y", FLOAT, shape)], {"w": weights},
                **settings)  # fmt: skip


@pytest.fixture
def function_box(tmp_path):
    return OnnxModel(function_file(tmp_path / "function.onnx"), threads=1)


@pytest.mark.slow
def test_a_network_is_trained_through_it(function_box):
    assert gradient_error(function_box) < 1e-5
    assert loss_drop(function_box, steps=200, rows=16) > 100


def test_the_project_s_own_check_finds_nothing_wrong(function_box):
    report = check_black_box(function_box, processes=False, seed=1)
    assert not report.faults, str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_specs_come_from_the_file_and_the_precision_from_the_caller(function_box, dtype):
    assert function_box.inputs == (ArraySpec("x", (2,)),)
    assert function_box.outputs == (ArraySpec("y", (2,)),)
    x = torch.randn(3, 4, 2, dtype=dtype)
    y = function_box(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, function(x.double()).to(dtype), rtol=0, atol=1e-7)


@pytest.mark.parametrize("rows, max_rows, sizes", [("n", None, [5]), ("n", 2, [2, 2, 1]), (1, None, [1] * 5)])
def test_rows_run_together_in_chunks_or_one_by_one_as_the_file_takes_them(
    tmp_path, monkeypatch, rows, max_rows, sizes
):
    box = OnnxModel(function_file(tmp_path / "f.onnx", rows), max_rows=max_rows)
    found, run = [], box.evaluate_rows
    monkeypatch.setattr(box, "evaluate_rows", lambda x: (found.append(len(x)), run(x))[1])
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(box(x), function(x), rtol=1e-14, atol=1e-14)
    assert found == sizes


def test_names_that_python_does_not_have_integers_numbers_and_several_outputs(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [("Add", "in.1 2nd", "sum", {}), ("Identity", "lambda", "same", {})],
        [("in.1", INT64, ["n", 3]), ("2nd", INT64, ["n", 3]), ("lambda", FLOAT, ["n"])],
        [("sum", INT64, ["n", 3]), ("same", FLOAT, ["n"])],
    )
    box = OnnxModel(path)
    assert [spec.name for spec in box.inputs] == ["in_1", "_2nd", "_lambda"]
    assert box.inputs[0].dtype == "int64" and box.inputs[2].shape == ()
    a = np.arange(12).reshape(4, 3)
    total, same = box(a, a, np.ones(4))
    np.testing.assert_array_equal(total, 2 * a)
    assert same.dtype == np.float64 and same.tolist() == [1] * 4


def test_half_precision_is_converted(tmp_path):
    shape = ["n", 2]
    half = TensorProto.FLOAT16
    path = save(tmp_path / "h.onnx", [("Add", "x x", "y", {})], [("x", half, shape)], [("y", half, shape)])
    assert OnnxModel(path)(np.array([[0.5, 0.25]])).tolist() == [[1, 0.5]]


def test_free_axes_get_sizes_and_outputs_left_open_are_found_by_a_run(tmp_path):
    path = save(
        tmp_path / "pool.onnx",
        [("AveragePool", "image", "small", {"kernel_shape": [2, 2], "strides": [2, 2]})],
        [("image", FLOAT, ["n", 1, "height", "width"])],
        [("small", FLOAT, ["n", 1, "h", "w"])],
    )
    with pytest.raises(ConfigurationError, match=r"sizes=\{'height': ..., 'width': ...\}"):
        OnnxModel(path)
    box = OnnxModel(path, sizes={"height": 4, "width": 6})
    assert box.inputs[0].shape == (1, 4, 6) and box.outputs[0].shape == (1, 2, 3)
    image = torch.randn(5, 1, 4, 6)
    torch.testing.assert_close(box(image), torch.nn.functional.avg_pool2d(image, 2))
    assert pickle.loads(pickle.dumps(box)).outputs == box.outputs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_a_network_exported_by_torch(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).eval()
    path = tmp_path / "network.onnx"
    rows = torch.export.Dim("rows")
    torch.onnx.export(
        network, (torch.randn(2, 3),), path, dynamo=True, input_names=["x"], output_names=["y"],
        dynamic_shapes=({0: rows},), verbose=False,
    )  # fmt: skip
    x = torch.randn(7, 3)
    torch.testing.assert_close(OnnxModel(path)(x), network(x).detach(), rtol=1e-5, atol=1e-6)


def test_a_copy_in_another_process_refuses_a_file_that_has_changed(tmp_path):
    path = scaled_file(tmp_path / "m.onnx")
    content = pickle.dumps(OnnxModel(path))
    assert pickle.loads(content)(np.ones((1, 2))).tolist() == [[2, 3]]
    scaled_file(path, 4)
    with pytest.raises(ConfigurationError, match="changed since"):
        pickle.loads(content)


def test_its_identity_is_that_of_its_numbers_wherever_they_are(tmp_path):
    def box(folder, last):
        (tmp_path / folder).mkdir()
        settings = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        return OnnxModel(scaled_file(tmp_path / folder / "m.onnx", last, **settings))

    first, copy, other = box("a", 3), box("b", 3), box("c", 4)
    assert (tmp_path / "a" / "weights.bin").stat().st_size == 8
    assert (tmp_path / "a" / "m.onnx").read_bytes() == (tmp_path / "c" / "m.onnx").read_bytes()
    assert identity(first) == identity(copy) != identity(other)
    assert other(np.ones((1, 2))).tolist() == [[2, 4]]


def test_without_the_extra_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = scaled_file(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blackbox-coupling\[onnx\]'") as caught:
        OnnxModel(path)
    assert isinstance(caught.value, ImportError)


def text_file(path):
    path.write_text("no model")
    return path


def fixed(path):
    return function_file(path, rows=4)


def strings(path):
    kind = TensorProto.STRING
    return save(path, [("Identity", "x", "y", {})], [("x", kind, ["n"])], [("y", kind, ["n"])])


def number(path):
    return save(path, [("Identity", "x", "y", {})], [("x", FLOAT, [])], [("y", FLOAT, [])])


def folder(path):
    path.mkdir()
    return path


WRONG = [  # (what makes the file, settings, words of the message)
    (lambda path: path, {}, ["m.onnx", "does not exist"]),
    (folder, {}, ["does not exist"]),
    (lambda path: 3, {}, ["expected an ONNX file, got 3"]),
    (text_file, {}, [f"onnxruntime {runtime.__version__}", "Export it anew"]),
    (fixed, {}, ["input 'x'", "got 4", "dynamic batch axis"]),
    (strings, {}, ["input 'x'", "tensor(string)"]),
    (number, {}, ["input 'x'", "single number", "batch axis"]),
    (scaled_file, {"providers": ["AbacusProvider"]}, ["AbacusProvider", "CPUExecutionProvider"]),
    (scaled_file, {"max_rows": 0}, ["max_rows", "got 0"]),
    (scaled_file, {"threads": 1.5}, ["threads", "got 1.5"]),
]


@pytest.mark.parametrize("file, settings, words", WRONG, ids=[" ".join(words[:2]) for *_, words in WRONG])
def test_wrong_files_and_settings_are_refused(tmp_path, file, settings, words):
    with suppress_type_checks(), pytest.raises(ConfigurationError) as caught:
        OnnxModel(file(Path(tmp_path / "m.onnx")), **settings)
    for word in words:
        assert word in str(caught.value)


def test_a_sum_over_the_rows_is_no_answer(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [("ReduceSum", "x", "y", {"keepdims": 1})],
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["m", 1])],
    )
    with pytest.raises(OutputError, match=r"expected shape \(3, 1\), got \(1, 1\)"):
        OnnxModel(path)(np.ones((3, 2)))
