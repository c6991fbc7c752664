"""Sparse sets of a run, and what is left alone outside them."""

from __future__ import annotations

import json
import math

import pytest
import torch

import zo
from tasks.applications.image_classification import networks, sparse_set
from tasks.applications.image_classification.config import ZerothOrder
from tasks.applications.image_classification.methods import METHODS
from tests.tasks.applications.image_classification.small import made_setup, train


def test_biases_and_norms_are_dense():
    network = networks.make("simple-730", 4, (1, 8, 8), width=3)
    assert sparse_set.dense_names(network) == ["0.bias", "1.weight", "1.bias", "6.bias"]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("ratios", ["zo-grasp", "grasp", "magnitude", "uniform"])
def test_ratios_are_kept_with_the_run_and_add_up_to_the_sparsity(tmp_path, ratios):
    its = made_setup(tmp_path, ratios=ratios, network="resnet8", width=4)
    network, (rule, queries) = its.network, sparse_set.sparse_set(its)
    kept = sum(layer.kept for layer in rule.ratios.layers)
    wanted = sparse_set.coordinates(network, its.config)
    # "uniform" rounds in each of the eight scored layers
    assert kept == wanted if ratios != "uniform" else abs(kept - wanted) <= 8
    assert rule.count(zo.estimators.Parameters(network)) == kept
    assert all(layer.kept >= 1 for layer in rule.ratios.layers)
    saved = json.loads((its.run.path / "layer_ratios-seed-0.json").read_text())
    assert saved["queries"] == queries
    assert (queries > 0) == (ratios == "zo-grasp")
    assert sparse_set.sparse_set(its) == (rule, queries)  # read, not found again


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"redraw": "epoch"}, [0, 0, 0, 0, 4]),  # 64 images in batches of 16: four steps an epoch
        ({"redraw": "steps", "redraw_steps": 2}, [0, 0, 2, 2, 4]),
        ({"redraw": "never"}, [0, 0, 0, 0, 0]),
    ],
)
def test_when_sets_are_drawn_anew(tmp_path, settings, same):
    its = made_setup(tmp_path, ratios="uniform", **settings)
    parameters, rule = zo.estimators.Parameters(its.network), sparse_set.sparse_set(its)[0]
    sets = [rule.draw(parameters, zo.estimators.Key(0, step)).tolist() for step in range(5)]
    assert [sets.index(each) for each in sets] == same


def test_a_pruned_network_stays_pruned_to_the_bit(tmp_path):
    its = made_setup(tmp_path, "fo-sparse-weight")
    mask = sparse_set.grasp_mask(its)
    trained = train(its)
    weights = torch.nn.utils.parameters_to_vector(trained.network.parameters())
    assert not weights[~mask].any()
    assert trained.outcome.step == its.steps
    scored = sum(t.numel() for t in its.network.parameters() if t.ndim > 1)
    assert int((~mask).sum()) == scored - round((1 - its.config.sparsity) * scored)


def test_all_methods_of_a_seed_see_the_same_batches_and_first_weights(tmp_path):
    its, other = made_setup(tmp_path / "a", "fo"), made_setup(tmp_path / "b", "deepzero")
    for one, two in zip(its.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(one, two)
    for step in (0, 3, 9):
        assert torch.equal(its.batch(step)[0], other.batch(step)[0])


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("method", METHODS)
def test_running_statistics_move_once_a_step(tmp_path, method):
    trained = train(made_setup(tmp_path, method, steps=4))
    # the weights that validated best are loaded at the end
    assert int(trained.network[1].num_batches_tracked) == trained.outcome.best_step
    assert trained.outcome.step == 4


def test_a_pruned_networks_mask_drops_what_grasp_scores_highest(tmp_path):
    its = made_setup(tmp_path)
    mask = sparse_set.grasp_mask(its)
    network, (pixels, labels) = its.network.double(), its.problem.scoring_batch(its.seed)
    named = dict(network.named_parameters())
    loss = torch.nn.functional.cross_entropy(network(pixels.double()), labels)
    scored = [name for name, tensor in named.items() if tensor.ndim > 1]
    slopes = torch.autograd.grad(loss, [named[name] for name in scored], create_graph=True)
    # H g is the gradient of g.g / 2
    products = torch.autograd.grad(
        torch.stack([slope.square().sum() for slope in slopes]).sum() / 2, [named[name] for name in scored]
    )
    scores = {name: -named[name].detach() * p for name, p in zip(scored, products, strict=True)}
    kept = dict(zip(named, zo.estimators.Parameters(network).split(mask), strict=True))
    assert all(kept[name].all() for name in named if name not in scored)
    removed = torch.cat([scores[name][~kept[name]] for name in scored])
    inside = torch.cat([scores[name][kept[name]] for name in scored])
    assert float(inside.max()) <= float(removed.min()) + 1e-6 * float(inside.abs().max())


def test_the_mask_is_kept_with_the_run_and_holds_at_every_step(tmp_path, monkeypatch):
    its, seen = made_setup(tmp_path, "fo-sparse-weight"), []
    step = torch.optim.SGD.step

    def watched(self, *arguments):
        done = step(self, *arguments)
        seen.append(torch.cat([w.detach().flatten() for w in self.param_groups[0]["params"]]))
        return done

    mask = sparse_set.grasp_mask(its)
    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    train(its)
    assert len(seen) == its.steps and not any(weights[~mask].any() for weights in seen)
    assert (seen[-1][mask] != seen[0][mask]).any()
    monkeypatch.setattr(sparse_set, "grasp_mask", lambda *_: pytest.fail("found again"))
    assert torch.equal(sparse_set.kept_mask(its), mask)


def test_no_layer_falls_below_a_tenth_of_an_even_share(tmp_path):
    its = made_setup(tmp_path, ratios="magnitude", network="resnet8", width=6, sparsity=0.8)
    network = its.network
    name, least = "5.conv2.weight", 0
    with torch.no_grad():
        tensor = dict(network.named_parameters())[name]
        tensor *= 1e-6  # the last ones by magnitude
        least = math.ceil(0.1 * (1 - 0.8) * tensor.numel())
    layer = next(x for x in sparse_set.sparse_set(its)[0].ratios.layers if x.name == name)
    assert layer.kept == least > 1


def test_scores_are_asked_for_with_the_settings_of_the_run(tmp_path, monkeypatch):
    asked = {}

    def watched(method, *_, **settings):
        asked.update(settings, method=method)
        raise InterruptedError

    monkeypatch.setattr(zo.pruning, "scores", watched)
    its = made_setup(tmp_path, zeroth_order=ZerothOrder(mu=2e-3), pruning_directions=7)
    with pytest.raises(InterruptedError):
        sparse_set.sparse_set(its)
    assert (asked["method"], asked["mu"], asked["q"]) == ("zo-grasp", 2e-3, 7)


@pytest.mark.slow
def test_what_a_network_keeps_fixed_is_in_no_set(tmp_path):
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    own = {"network": f"{tmp_path / 'own.py'}:make", "width": None, "sparsity": 0.5}
    own["zeroth_order"] = ZerothOrder(coordinates=9)
    for method in ("deepzero", "fo-sparse-gradient", "fo-sparse-weight", "rge"):
        its = made_setup(tmp_path / method, method, steps=4, **own)
        trained = train(its)
        assert trained.network.fixed.tolist() == [1.0, 2.0, 3.0], method
        assert trained.outcome.step == its.steps
        # a bias in the set whole, half of the matrix
        assert sparse_set.coordinates(its.network, its.config) == 10 + 64 * 10 // 2


OWN = """
import torch

class Fixed(torch.nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.fixed = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
        self.layer = torch.nn.Linear(features, classes)

    def forward(self, images):
        return self.layer(images.flatten(1)) * self.fixed.mean()

def make(classes, image_shape):
    return Fixed(image_shape[0] * image_shape[1] * image_shape[2], classes)
"""


def test_scores_decide_at_sparsity_099_too(tmp_path):
    """A floor of one percent of each layer would leave nothing to distribute there."""
    its = made_setup(tmp_path, sparsity=0.99, ratios="magnitude", network="resnet8", width=8)
    network = its.network
    with torch.no_grad():
        network.get_parameter("4.conv1.weight").mul_(100.0)
    layers = {layer.name: layer for layer in sparse_set.sparse_set(its)[0].ratios.layers}
    size, scored = 16 * 8 * 9, sum(t.numel() for t in network.parameters() if t.ndim > 1)
    assert layers["4.conv1.weight"].size == size
    # all that the floors of the seven other layers, a tenth of a percent each, leave
    others = [layer.kept for name, layer in layers.items() if name != "4.conv1.weight" and layer.size > 72]
    assert layers["4.conv1.weight"].kept > 0.8 * 0.01 * scored
    assert max(kept for kept in others if kept < 64) <= 10
