"""The denoiser as an ONNX file, run by onnxruntime."""

import sys

import numpy as np
import onnxruntime as runtime
import pytest
import torch
from torch import nn

from blackbox.adapters import OnnxModel
from blackbox.extras import MissingExtraError
from tasks.applications.denoised_smoothing.certification import export_denoiser
from tasks.errors import ProblemError
from tests.tasks.applications.denoised_smoothing.certification.classifiers import Denoiser, pictures


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    network = Denoiser().train()
    network(pictures(50))  # running statistics that are not those of the start
    path = export_denoiser(network, tmp_path_factory.mktemp("export") / "new" / "denoiser.onnx", (1, 4, 4))
    assert network.training
    return network.eval(), path


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_any_batch_gives_what_torch_gives(exported, rows):
    network, path = exported
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = pictures(rows)
    with torch.no_grad():
        truth = network(images).numpy()
    assert [item.name for item in session.get_inputs()] == ["image"]
    np.testing.assert_allclose(session.run(["denoised"], {"image": images.numpy()})[0], truth, atol=1e-5)


@pytest.mark.slow
def test_it_is_one_file_that_is_a_black_box_too(exported):
    network, path = exported
    assert [each.name for each in path.parent.iterdir()] == ["denoiser.onnx"]
    images = pictures(3)
    with torch.no_grad():
        truth = network(images)
    torch.testing.assert_close(OnnxModel(path)(images), truth, atol=1e-5, rtol=0)


class Rolling(nn.Module):
    """Gives other numbers each time."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class Bytes(nn.Module):
    """Leaves torch on the way."""

    def forward(self, x):
        return x if float(x.sum()) > 1e9 else torch.from_numpy(x.numpy() * 2)


class Wrapped(nn.Module):
    """Gives more than the images, or nothing."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, words",
    [
        (Rolling(), "agree with torch to 1e-05, .* a difference of 0"),
        pytest.param(Bytes(), "that torch.onnx can export, got Bytes", marks=pytest.mark.slow),
        (nn.Conv2d(1, 1, 3), r"gives a tensor \(2, 1, 4, 4\) .* got \(2, 1, 2, 2\) from Conv2d"),
        (nn.Conv2d(3, 3, 1), r"got an error \(RuntimeError: Given groups=1, .* from Conv2d"),
        (Wrapped(lambda x: (x,)), "got tuple from Wrapped"),
        (Wrapped(lambda x: (x, x)), "got tuple from Wrapped"),
        (Wrapped(lambda x: {"denoised": x}), "got dict from Wrapped"),
        (Wrapped(lambda x: None), "got NoneType from Wrapped"),
        (Wrapped(lambda x: x.mean(0, keepdim=True)), r"got \(1, 1, 4, 4\) from Wrapped"),
        pytest.param(
            Wrapped(lambda x: x if x.shape[0] > 1 else 2 * x), "a difference of 0", marks=pytest.mark.slow
        ),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(tmp_path, network, words):
    with pytest.raises(ProblemError, match=words):
        export_denoiser(network, tmp_path / "a.onnx", (1, 4, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_its_remedy(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*pip install 'blackbox-coupling\[export\]'"):
        export_denoiser(Denoiser(), tmp_path / "a.onnx", (1, 4, 4))
