"""Pruning: the network stays untouched; ratios, ties, minimum, dense layers, warnings and refusals."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from torch import nn

import zo
from tests.zo.boxes import Sine
from zo import pruning

BATCH = (torch.linspace(-1, 1, 40).view(10, 4), torch.arange(10) % 3)


def objective(network, batch):
    x, y = batch
    return nn.functional.cross_entropy(network(x), y, reduction="none")


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def scores_of(values: dict[str, list[float]], removes="smallest", seed=0) -> pruning.Scores:
    """Scores by hand."""
    network = nn.ParameterDict({name: torch.ones(len(v)) for name, v in values.items()})
    parameters = zo.estimators.Parameters(network)
    flat = torch.tensor([x for name in parameters.names for x in values[name]])
    return pruning.Scores("by hand", flat, removes, parameters, seed=seed)


@pytest.mark.parametrize("method", pruning.METHODS)
def test_scoring_leaves_the_network_as_it_was(method):
    network = make()
    network[0].weight.grad = torch.full((6, 4), 7.0)
    grad, state = network[0].weight.grad, {k: v.clone() for k, v in network.state_dict().items()}
    network[4].bias.requires_grad_(False)
    random = torch.get_rng_state()
    scores = pruning.scores(
        method,
        network,
        objective,
        BATCH,
        parameters=["*"],
        q=5,
        evaluator="stacked",
    )
    assert scores.method == method and scores.values.shape == (63,)
    assert scores.values.isfinite().all() and scores.values.unique().numel() > 10
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert network[0].weight.grad is grad and network[4].weight.grad is None
    assert [p.requires_grad for p in network.parameters()] == [True] * 5 + [False]
    assert torch.equal(torch.get_rng_state(), random)


def test_scores_depend_on_the_seed_alone():
    def values(seed: int) -> torch.Tensor:
        return pruning.scores("zo-grasp", make(), objective, BATCH, q=3, seed=seed, evaluator="loop").values

    assert torch.equal(values(1), values(1))
    assert not torch.equal(values(1), values(2))


def test_magnitude_and_cost():
    network = make()
    scores = pruning.scores("magnitude", network)
    assert torch.equal(scores.values, torch.cat([p.detach().flatten().abs() for p in network.parameters()]))
    assert scores.queries == 0
    scores = pruning.scores("zo-grasp", network, objective, BATCH, q=7, evaluator="loop")
    plain = zo.LossGradient(network, objective, zo.RGE(5e-3, 7), evaluator="loop", seed=0)
    assert 2 * 7 <= scores.queries <= 2 * (7 + plain.most_checks(1))


def test_zo_scores_go_through_a_black_box_and_autograd_ones_say_that_they_cannot():
    box, network = Sine(), nn.Linear(4, 4)

    def through(network, batch):
        return box(network(batch).detach()).square().mean(dim=1)

    scores = pruning.scores("zo-grasp", network, through, BATCH[0], q=4)
    assert scores.values.isfinite().all() and box.ledger.rows_run > 0
    with pytest.raises(zo.errors.ConfigurationError, match=r"without a graph.*'zo-grasp'"):
        pruning.scores("grasp", network, through, BATCH[0])


@pytest.mark.parametrize("method", ["zo-grasp", "grasp"])
def test_a_closure_is_an_objective(method):
    def values(objective, batch=None) -> torch.Tensor:
        return pruning.scores(method, network, objective, batch, q=3, evaluator="loop").values

    network = make()
    torch.manual_seed(0)
    expected = values(objective, BATCH)
    torch.manual_seed(0)  # for the dropout
    assert torch.equal(values(lambda: objective(network, BATCH)), expected)


def test_a_linear_loss_has_no_curvature():
    scores = pruning.scores("grasp", nn.Linear(4, 1), lambda n, b: n(b)[:, 0], BATCH[0])
    assert (scores.values == 0).all()


def test_lost_queries_are_an_error_unless_allowed():
    network, box = nn.Linear(4, 4).double(), Sine(limit=2.0)
    nn.init.zeros_(network.weight)
    nn.init.constant_(network.bias, 1.999)

    def through(network, batch):
        return box(network(batch)).square().mean(dim=1)

    batch, estimator = torch.zeros(3, 4).double(), zo.CGE(1e-2)
    score = lambda **k: pruning.scores("zo-grasp", network, through, batch, estimator=estimator, **k)  # noqa: E731
    with pytest.raises(zo.errors.FailedQueriesError):
        score()
    with pytest.warns(zo.errors.ZeroGradientWarning):
        assert (score(max_dropped=0.5).values == 0).all()  # weights are zero, bias queries are lost


class Killed(Exception):
    """As a process is, at some moment."""


class Kept:
    """A journal that outlives processes, each of which is killed after a few new entries."""

    def __init__(self) -> None:
        self.entries, self.left = {}, 0

    def get(self, key):
        return self.entries.get(key)

    def put(self, key, value):
        self.entries[key] = value
        self.left -= 1
        if self.left < 0:
            raise Killed


def test_scoring_that_is_killed_again_and_again_gets_ahead_to_the_same_bits():
    box, journal, kills = Sine(), Kept(), 0

    def through(network, batch):
        return box(network(batch)).square().mean(dim=1)

    def score(**settings) -> pruning.Scores:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2))
        return pruning.scores(
            "zo-grasp", network, through, BATCH[0], q=6, evaluator="loop", chunk=1, **settings
        )

    undisturbed = score()
    before = box.ledger.rows_run
    while True:
        journal.left = 2
        try:
            scores = score(journal=journal)
            break
        except Killed:
            kills += 1
    assert kills >= 2 * 6 // 3
    assert torch.equal(scores.values, undisturbed.values)
    assert scores.queries == undisturbed.queries
    # No query of a plan twice: each process evaluates the bases that it starts from, and what checks ask.
    again = box.ledger.rows_run - 2 * before
    assert 10 * kills <= again <= 10 * 2 * 3 * kills


@pytest.mark.parametrize("removes", ["largest", "smallest"])
def test_ratios_are_those_of_the_global_ranking(removes):
    """Signed values: the ranking is by value, not by absolute value, as GraSP's must be."""
    sign = -1 if removes == "largest" else 1
    values = {"a": [5.0, 4.0, -9.0, -8.0], "b": [3.0, -7.0], "c": [2.0, 1.0, -6.0, -5.0]}
    scores = scores_of({name: [sign * x for x in v] for name, v in values.items()}, removes)
    ratios = pruning.layer_ratios(scores, 0.5, minimum=0.0)
    assert dict(ratios) == {"a": 0.5, "b": 0.5, "c": 0.5}
    mask = pruning.kept_weights(scores, 0.5, minimum=0.0)
    assert mask.tolist() == [True, True, False, False, True, False, True, True, False, False]
    # Of three that stay each layer has one, though a has the two best: none is cut off.
    assert dict(pruning.layer_ratios(scores, 0.7, minimum=0.0)) == {"a": 0.25, "b": 0.5, "c": 0.25}


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 0.94])
def test_the_minimum_is_kept_and_the_total_with_it(sparsity):
    scores = scores_of(
        {"a": [float(i) for i in range(100, 300)], "b": [float(i) for i in range(100)], "c": [0.5]}
    )
    ratios = pruning.layer_ratios(scores, sparsity, minimum=0.05)
    kept = {layer.name: layer.kept for layer in ratios.layers}
    assert sum(kept.values()) == round((1 - sparsity) * 301)
    assert kept["b"] >= 5 and kept["c"] == 1 and kept["a"] >= 10
    if sparsity >= 0.9:
        assert kept["b"] == 5
        mask = pruning.kept_weights(scores, sparsity, minimum=0.05)
        assert mask[190:200].all() and mask[295:300].all()  # the best of each


def test_ties_are_broken_at_random_by_the_seed_not_by_the_order_of_layers():
    """300 equal scores, half kept: hypergeometric, standard deviation 3.7 of 100 in each layer."""
    scores = [
        scores_of({"a": [1.0] * 100, "b": [1.0] * 100, "c": [1.0] * 100}, seed=seed) for seed in (0, 0, 1)
    ]
    masks = [pruning.kept_weights(s, 0.5) for s in scores]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert all(abs(int(part.sum()) - 50) < 20 for part in masks[0].split(100))


def test_dense_layers_are_not_scored_and_have_ratio_one():
    network = make()
    scores = pruning.scores("magnitude", network, dense=["*.bias", nn.BatchNorm1d, "4.*"])
    assert scores.parameters.names == ("0.weight",)
    ratios = pruning.layer_ratios(scores, 0.5)
    assert dict(ratios) == {
        "0.weight": 0.5, "0.bias": 1.0, "1.weight": 1.0, "1.bias": 1.0, "4.weight": 1.0, "4.bias": 1.0
    }  # fmt: skip
    sparsity = zo.estimators.LayerwiseCoordinates(ratios, every=10)
    assert sparsity.count(zo.estimators.Parameters(network)) == 12 + 6 + 12 + 18 + 3


def test_a_layer_before_a_zeroed_last_one_is_named_and_keeps_its_minimum():
    network = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 3))
    nn.init.zeros_(network[2].weight)
    scores = pruning.scores("grasp", network, objective, BATCH, parameters=["0.weight", "2.*"])
    with pytest.warns(zo.errors.PruningWarning, match=r"grasp.*2\.weight.*exactly zero"):
        pruning.layer_ratios(scores, 0.9)
    scores = scores_of({"first": [0.0] * 200, "last": [1.0, 2.0, 3.0]})
    with pytest.warns(zo.errors.PruningWarning, match=r"none in first:"):
        ratios = pruning.layer_ratios(scores, 0.98, minimum=0.02)
    assert ratios["first"] == 4 / 200 and ratios["last"] == 1 / 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruning.layer_ratios(pruning.scores("magnitude", make(), dense="1.*"), 0.5)


def test_ratios_are_saved_read_and_printed():
    ratios = pruning.layer_ratios(scores_of({"body": [3.0, 2.0, 1.0, 0.5], "head": [5.0, 4.0]}), 0.5)
    assert pruning.LayerRatios.from_dict(json.loads(json.dumps(ratios.to_dict()))) == ratios
    lines = str(ratios).splitlines()
    assert lines[0] == "by hand, sparsity 0.5"
    assert [line.split() for line in lines[1:]] == [
        ["layer", "weights", "kept", "ratio"],
        ["body", "4", "1", "0.250"],
        ["head", "2", "2", "1.000"],
        ["all", "6", "3", "0.500"],
    ]
    with pytest.raises(KeyError):
        ratios["tail"]


SCORES = scores_of({"a": [1.0, 2.0, 3.0, 4.0]})
RATIOS = {"method": "x", "sparsity": 0.5, "layers": [{"name": "a", "size": 2, "kept": 3}]}
BAD = [
    (lambda: pruning.layer_ratios(SCORES, 1.0), ["sparsity", "[0, 1)", "1.0"]),
    (lambda: pruning.layer_ratios(SCORES, -0.1), ["sparsity", "[0, 1)", "-0.1"]),
    (lambda: pruning.layer_ratios(SCORES, math.nan), ["sparsity", "nan"]),
    (lambda: pruning.layer_ratios(SCORES, 0.9, minimum=0.2), ["minimum", "0.1", "0.2"]),
    (lambda: pruning.layer_ratios(SCORES, 0.5, minimum=-0.2), ["minimum", "-0.2"]),
    (lambda: pruning.scores("zo-grsp", make(), objective, BATCH), ["'zo-grsp'", "Did you mean 'zo-grasp'"]),
    (lambda: pruning.scores("zo-grasp", make(), objective), ["batch", "'zo-grasp'", "None"]),
    (lambda: pruning.scores("grasp", make(), batch=BATCH), ["objective", "'grasp'"]),
    (lambda: pruning.scores("zo-grasp", make(), objective, BATCH, q=0), ["q", ">= 1"]),
    (lambda: pruning.scores("zo-grasp", make(), objective, BATCH, mu=0.0), ["mu", "> 0"]),
    (lambda: pruning.scores("zo-grasp", make(), objective, BATCH, q=1, step=-1.0), ["step", "-1.0"]),
    (lambda: pruning.scores("magnitude", make(), dense=["*"]), ["dense", "something to score"]),
    (lambda: scores_of({"a": [1.0, math.nan], "b": [1.0]}), ["finite", "'a'"]),
    (lambda: pruning.LayerRatios.from_dict({"method": "x"}), ["sparsity and layers", "to_dict"]),
    (lambda: pruning.LayerRatios.from_dict(RATIOS), ["kept <= size"]),
    *(
        (
            lambda m=m: pruning.scores(m, make(), objective, BATCH, max_droped=0.1),
            ["max_droped", "Did you mean 'max_dropped'"],
        )
        for m in pruning.METHODS
    ),
]


@pytest.mark.parametrize(("act", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_is_a_named_error(act, words):
    with pytest.raises(zo.errors.ConfigurationError) as raised:
        act()
    for word in words:
        assert word in str(raised.value)
