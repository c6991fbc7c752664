"""Sets of coordinates: how many in each layer, when drawn anew; and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from typeguard import suppress_type_checks

import zo
from zo import estimators

RATIOS = {"0.weight": 0.25, "0.bias": 1.0, "1.weight": 0.5}


@pytest.fixture
def parameters() -> zo.estimators.Parameters:
    return zo.estimators.Parameters(
        nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 3, bias=False))
    )  # 80 + 8 + 24


def counts(parameters, indices) -> list[int]:
    return torch.bincount(parameters.locate(indices)[0], minlength=len(parameters.names)).tolist()


def test_each_layer_has_its_part_at_random_and_dense_ones_are_whole(parameters):
    sparsity = zo.estimators.LayerwiseCoordinates(RATIOS)
    sets = [sparsity.draw(parameters, zo.estimators.Key(0, step)) for step in range(50)]
    for chosen in sets:
        assert counts(parameters, chosen) == [20, 8, 12]
        assert (chosen[1:] > chosen[:-1]).all()
    assert len({tuple(chosen.tolist()) for chosen in sets}) == 50
    assert sparsity.count(parameters) == 40


def test_inside_a_layer_every_coordinate_is_as_likely(parameters):
    """Chi-square of 2,000 draws of 12 out of 24, less spread than multinomial; 1 - 1e-6 of 23 degrees: 74."""
    seen = torch.zeros(parameters.size)
    for step in range(2000):
        seen[zo.estimators.LayerwiseCoordinates(RATIOS).draw(parameters, zo.estimators.Key(1, step))] += 1
    last = seen[88:]
    assert ((last - 1000) ** 2 / 1000).sum() < 74
    assert (seen[80:88] == 2000).all()


@pytest.mark.parametrize(("every", "changes"), [(1, [1, 2, 3, 4, 5]), (3, [3]), (None, [])])
def test_sets_change_when_they_should(parameters, every, changes):
    sparsity = zo.estimators.LayerwiseCoordinates(RATIOS, every=every)
    sets = [tuple(sparsity.draw(parameters, zo.estimators.Key(0, step)).tolist()) for step in range(6)]
    assert [step for step in range(1, 6) if sets[step] != sets[step - 1]] == changes


def test_fixed_coordinates(parameters):
    fixed = zo.estimators.FixedCoordinates(torch.tensor([7, 3, 100]))
    assert fixed.draw(parameters, zo.estimators.Key(0, 5)).tolist() == [3, 7, 100]


SETS = [
    zo.RandomCoordinates(7),
    zo.estimators.LayerwiseCoordinates(RATIOS, every=2),
    zo.estimators.FixedCoordinates(torch.arange(4)),
]
ESTIMATORS = [zo.CGE(1e-3), zo.RGE(1e-3, q=5)]
ESTIMATORS += [zo.RGE(1e-3, q=5, central=True, sparsity=s) for s in SETS]
ESTIMATORS += [zo.CGE(1e-3, s, central=True) for s in SETS]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=range(len(ESTIMATORS)))
def test_the_cost_is_known_before_the_step(parameters, estimator):
    for step in (0, 2, 9):
        planned = estimator.plan(parameters, zo.estimators.Key(0, step))
        assert estimator.queries(parameters, step) == planned.queries
        assert len(planned.chunk(0, planned.queries)) == planned.queries


class Chosen:
    """A user's own rule, wrong."""

    def __init__(self, *indices: int) -> None:
        self.indices = indices

    def count(self, parameters, step: int = 0) -> int:
        return len(self.indices)

    def draw(self, parameters, key):
        return torch.tensor(self.indices, dtype=torch.int64)


def planned(make):
    return lambda: make().plan(zo.estimators.Parameters(nn.Linear(3, 1)), zo.estimators.Key(0))


def cge(sparsity):
    return lambda: zo.CGE(1e-3, sparsity)


LINEAR = {"weight": 0.5, "bias": 1.0}
BAD = [
    (planned(cge(Chosen())), ["Chosen", "empty", "lower the sparsity"]),
    (planned(cge(Chosen(1, 1))), ["ascending", "[1, 1]"]),
    (planned(cge(Chosen(2, 4))), ["[0, 4)", "[2, 4]"]),
    (planned(cge(Chosen(-1, 2))), ["[-1, 2]"]),
    (planned(lambda: zo.RGE(1e-3, 1, sparsity=Chosen())), ["empty"]),
    (planned(cge(zo.estimators.LayerwiseCoordinates({"weight": 0.0, "bias": 0.0}))), ["Layerwise", "empty"]),
    (planned(cge(zo.estimators.LayerwiseCoordinates({"weight": 0.5}))), ["none for bias", "dense"]),
    (lambda: zo.estimators.FixedCoordinates(torch.zeros(0, dtype=torch.int64)), ["at least one", "(0,)"]),
    (lambda: zo.estimators.FixedCoordinates(torch.ones(3, dtype=torch.bool)), ["int64", "bool", "nonzero"]),
    (lambda: zo.estimators.FixedCoordinates([0, 3]), ["expected a tensor", "got list"]),  # pyright: ignore
    (lambda: zo.estimators.LayerwiseCoordinates({"weight": 1.5}), ["[0, 1]", "1.5", "'weight'"]),
    (lambda: zo.estimators.LayerwiseCoordinates(LINEAR, every=0), ["every", ">= 1", "0"]),
    (lambda: zo.RGE(1e-3, q=0), ["q", ">= 1", "0"]),
]


@pytest.mark.parametrize(("act", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_is_a_named_error(act, words):
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError) as raised:
        act()
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_a_mu_lost_in_rounding_is_refused_by_name(scheme):
    """Without this, 0 / 0 put NaN into the gradient."""
    network = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1))
    nn.init.constant_(network[1].weight, 4096.0)
    with pytest.raises(zo.errors.ConfigurationError, match=r"1e-05.*'1\.weight'.*4\.1e\+03"):
        zo.CGE(1e-5, central=scheme != "forward").plan(
            zo.estimators.Parameters(network), zo.estimators.Key(0)
        )


def test_directions_below_the_rounding_are_refused_and_the_sphere_says_why():
    parameters = zo.estimators.Parameters(nn.Linear(400, 250))
    nn.init.constant_(parameters.tensors[0], 1.0)
    zo.RGE(1e-5, q=1).plan(parameters, zo.estimators.Key(0))
    with pytest.raises(zo.errors.ConfigurationError, match=r"3\.2e-08 for 'weight'.*square root"):
        zo.RGE(1e-5, q=1, distribution="sphere").plan(parameters, zo.estimators.Key(0))


@dataclass(frozen=True)
class EachOnce(estimators.Perturbations):
    """A step of .1 for each coordinate, the last one first."""

    size: int

    @property
    def queries(self) -> int:
        return self.size

    def chunk(self, start: int, stop: int) -> estimators.Coordinates:
        indices = torch.arange(self.size).flip(0)[start:stop]
        return estimators.Coordinates(indices, torch.full((len(indices),), 0.1).double())


class Backwards(estimators.Estimator[EachOnce]):
    def queries(self, parameters: estimators.Parameters, step: int = 0) -> int:
        return parameters.size

    def plan(self, parameters: estimators.Parameters, key: estimators.Key) -> EachOnce:
        return EachOnce(parameters.size)

    def reduce(self, planned: EachOnce, differences: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.where(valid, differences / 0.1, 0.0).flip(0)


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_an_estimator_of_ones_own_is_made_of_what_the_package_exports(evaluator):
    network, x = nn.Linear(3, 2).double(), torch.linspace(-1, 1, 12).double().view(4, 3)

    def objective(network, batch):
        return network(batch).sum(dim=1)

    gradient = zo.LossGradient(
        network, lambda n, b: n(b).sum(dim=1), Backwards(), evaluator=evaluator, chunk=3
    )
    gradient.backward(x)
    assert torch.allclose(network.weight.grad, x.mean(dim=0).expand(2, 3), atol=1e-12)
    assert torch.allclose(network.bias.grad, torch.ones(2).double())
