"""Networks by name, a user's own ones, and the words of what is refused."""

import pytest
import torch

from tasks.applications.image_classification import networks
from tasks.errors import ConfigurationError

OWN = """
import torch
from torch import nn

class Flat(nn.Module):
    def __init__(self, classes, image_shape):
        super().__init__()
        channels, height, width = image_shape
        self.linear = nn.Linear(channels * height * width, classes)
        self.normed = nn.BatchNorm1d(classes)
    def forward(self, x):
        return self.normed(self.linear(x.flatten(1)))

def flat(classes, image_shape):
    return Flat(classes, image_shape)

def short(classes, image_shape):
    return Flat(classes + 1, image_shape)

def pair(classes, image_shape):
    class Pair(Flat):
        def forward(self, x):
            return x, x
    return Pair(classes, image_shape)

def number(classes, image_shape):
    return 3

made = nn.Linear(2, 2)
value = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    path = tmp_path / f"own_networks_{abs(hash(tmp_path))}.py"
    path.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def test_a_network_of_ones_own_by_file_or_module(own):
    by_file = networks.make(f"{own}:flat", 4, (2, 5, 6), seed=1)
    by_module = networks.make(f"{own.stem}:Flat", 4, (2, 5, 6), seed=1)
    assert by_file.training and by_file.normed.num_batches_tracked == 0  # the trial left no trace
    assert by_file(torch.zeros(3, 2, 5, 6)).shape == (3, 4)
    assert torch.equal(by_file.linear.weight, by_module.linear.weight)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet21", ["depth", "6n + 2", "21", "20 and 26"]),
        ("resnet2", ["depth", "got 2", "8 and 14"]),
        ("resnte20", ["'resnte20'", "Did you mean 'resnet20'?"]),
        ("simple-700", ["'simple-700'", "Did you mean 'simple-"]),
        ("alexnet", ["'alexnet'", "module:function"]),
        ("no_such_module:network", ["no_such_module", "found none"]),
        ("{own}:falt", ["'falt'", "Did you mean 'flat'?"]),
        ("{own}", ["file.py:function", "got no function"]),
        ("{own}:value", ["function that makes a network", "got int"]),
        ("{own}:made", ["function that makes a network", "got Linear"]),
        ("{own}:number", ["torch.nn.Module", "got int"]),
        ("{own}:short", ["(2, 4)", "(2, 5)", "one logit for each class"]),
        ("{own}:pair", ["(2, 4)", "got tuple"]),
    ],
)
def test_what_is_no_network_is_refused_with_a_mend(own, name, words):
    with pytest.raises(ConfigurationError) as refused:
        networks.make(name.format(own=own), 4, (2, 5, 6))
    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "torch.nn:Flatten", "width": 4}, ["width", "in the function"]),
    ],
)
def test_what_fits_no_network_is_refused_with_a_mend(arguments, words):
    with pytest.raises(ConfigurationError) as refused:
        networks.make(**({"name": "resnet20"} | arguments))
    assert [word for word in words if word not in str(refused.value)] == []
