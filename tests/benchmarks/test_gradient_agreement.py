"""The agreement of gradients: its figures against autograd and closed forms; a bent gradient shows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import zo
from benchmarks import gradient_agreement, protocol
from tasks.image_classification import ImageClassification, networks


def problem():
    network = networks.make("simple-730", 4, (1, 8, 8), width=3, seed=1)
    generator = torch.Generator().manual_seed(0)
    return network, (torch.randn(24, 1, 8, 8, generator=generator), torch.arange(24) % 4)


def test_the_smallest_preset_agrees_and_leaves_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocol, "SCRATCH", tmp_path)
    found = gradient_agreement.main(["--size", "ci", "--data", str(tmp_path)])
    saved = json.loads((tmp_path / "gradient_agreement-ci.json").read_text())
    assert [look["step"] for look in saved["looks"]] == [0, gradient_agreement.SIZES["ci"].steps]
    assert "cosine" in capsys.readouterr().out
    for look in found:
        assert look.whole["0.0005"] >= 0.999
        assert min(look.layers["0.0005"].values()) >= 0.998  # of the smallest layers what mu does is larger
        assert look.float64["0.0005"] <= 1e-3  # what mu does apart: rounding and mistakes
        # the estimate is far nearer to the quotient of its own mu than that is to the derivative
        assert max(look.float64.values()) < 1e-3
        assert all(look.float64[mu] < look.exact64[mu] / 10 for mu in look.float64)
    assert saved["looks"][1]["whole"] == found[1].whole


def test_what_mu_does_to_a_smooth_network_halves_with_it():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)
    )
    _, batch = problem()
    objective = ImageClassification.objective
    slopes = gradient_agreement.wide_slopes(network, objective, batch)
    indices = torch.arange(0, len(slopes), 5)
    off = []
    for mu in (2e-3, 1e-3):
        quotients = gradient_agreement.wide_quotients(
            network, ImageClassification.objective, batch, indices, mu
        )
        off.append(float((quotients - slopes[indices]).norm() / slopes[indices].norm()))
    assert off[1] < 0.01
    assert off[0] == pytest.approx(2 * off[1], rel=0.01)  # mu/2 times the second derivative


def test_cosines_are_those_of_numpy_and_a_bent_layer_shows():
    network, _ = problem()
    parameters = zo.estimators.Parameters(network)
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(parameters.size, generator=generator)
    found = truth.clone()
    start = parameters.starts[parameters.names.index("1.weight")]
    found[start : start + 3] *= torch.tensor([1.0, -1.0, 1.0])
    layers = gradient_agreement.by_layer(found, truth, parameters)
    assert list(layers) == ["0", "1", "6"]
    assert layers["0"] == pytest.approx(1) and layers["6"] == pytest.approx(1)
    a, b = found[start : start + 6].numpy().astype(float), truth[start : start + 6].numpy().astype(float)
    assert layers["1"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) and layers["1"] < 0.999


def test_some_weights_of_every_tensor_are_looked_at():
    network, _ = problem()
    parameters = zo.estimators.Parameters(network)
    chosen = gradient_agreement.some_of_each_layer(parameters, torch.arange(parameters.size), 2)
    which, _ = parameters.locate(chosen)
    assert which.bincount().tolist() == [2] * len(parameters.names)
    assert len(set(chosen.tolist())) == len(chosen)
