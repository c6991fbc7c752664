"""`stacked` against `loop`, loss by loss: every layer type and parameter, whole networks, both modes."""

from __future__ import annotations

from collections.abc import Set

import pytest
import torch
from torch import nn

import zo
from tests.oracles.layers import LAYERS, NETWORKS, Case, squared_output
from tests.oracles.problems import perturbed_losses
from zo.estimators import Coordinates, Directions
from zo.evaluators import Loop, Perturbation, Stacked, Step
from zo.evaluators.point_rules import RULES

STEP = 0.1  # no derivative is taken, so no step is too long
MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def step_of(case: Case, dtype: torch.dtype, training: bool) -> Step:
    network, batch = case.make(dtype, training=training)
    rows = len(batch[0]) if isinstance(batch, tuple) else len(batch)
    return Step(network, zo.estimators.Parameters(network), case.objective, batch, rows)


def coordinates(parameters: zo.estimators.Parameters, most: int) -> Coordinates:
    """All entries of each tensor, or `most` of them, first and last included; steps of both signs."""
    chosen = [
        start + torch.linspace(0, tensor.numel() - 1, min(most, tensor.numel())).long()
        for start, tensor in zip(parameters.starts, parameters.tensors, strict=True)
    ]
    indices = torch.cat(chosen)
    signs = torch.arange(len(indices)) % 2 * 2 - 1
    return Coordinates(indices, (STEP * signs).to(parameters.dtype))


def directions(parameters: zo.estimators.Parameters) -> Directions:
    generator = torch.Generator().manual_seed(0)
    return Directions(STEP * torch.randn(4, parameters.size, generator=generator, dtype=parameters.dtype))


@torch.no_grad()
def compare(step: Step, perturbation: Perturbation, chunk: int, hidden: Set[int] = frozenset()) -> None:
    """Equal to rounding, for losses that are not the base's."""
    parts = [perturbation.part(start, start + chunk) for start in range(0, len(perturbation), chunk)]
    torch.manual_seed(3)  # of dropout
    truth = torch.cat([perturbed_losses(Loop(), step, part) for part in parts])
    losses_stacked = torch.cat([perturbed_losses(Stacked(), step, part) for part in parts])
    base = perturbed_losses(Loop(), step, Coordinates(torch.tensor([0]), torch.zeros(1, dtype=truth.dtype)))
    eps = torch.finfo(truth.dtype).eps
    # Some hundred additions on the way to a loss, each wrong by half a unit of numbers of its own size.
    bound = 200 * eps * (1 + truth.abs())
    assert ((losses_stacked - truth).abs() <= bound).all()
    if isinstance(perturbation, Coordinates):  # each tensor is seen: one left alone would have failed
        which, _ = step.parameters.locate(perturbation.indices)
        seen = ((truth - base).abs() > 10 * bound).any(dim=1)
        assert set(which[seen].tolist()) >= set(which.tolist()) - hidden


def biases(step: Step) -> set[int]:
    """What norms and softmax behind them may hide: biases before a batch norm, or of attention's keys."""
    return {i for i, name in enumerate(step.parameters.names) if name.endswith("bias")}


@pytest.mark.quick_cases(19)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@DTYPES
@MODES
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_every_coordinate_of_a_layer(case, training, dtype, limits):
    def refuse(*args, **kwargs):
        raise AssertionError("copies were made")

    if type(next(layer for layer in case.network().modules() if not list(layer.children()))) in RULES:
        limits(layers_copied=refuse)
    step = step_of(case, dtype, training)
    compare(step, coordinates(step.parameters, most=60), chunk=50)


@pytest.mark.quick_cases(28)
@MODES
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_directions_through_a_layer(case, training):
    step = step_of(case, torch.float64, training)
    compare(step, directions(step.parameters), chunk=3)


@pytest.mark.quick_cases(5)
@DTYPES
@MODES
@pytest.mark.parametrize("case", NETWORKS, ids=str)
def test_networks(case, training, dtype):
    step = step_of(case, dtype, training)
    compare(step, coordinates(step.parameters, most=7), chunk=40, hidden=biases(step))
    compare(step, directions(step.parameters), chunk=4)


@pytest.mark.quick_cases(4)
@MODES
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("estimator", [zo.CGE(1e-4), zo.RGE(1e-4, q=3)], ids=["cge", "rge"])
def test_recurrent_layers_fall_back_and_then_give_what_loop_gives_to_the_bit(cell, training, estimator):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = cell(3, 2, batch_first=True), nn.Linear(2, 1)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    grads = []
    for evaluator in ("loop", "stacked"):
        torch.manual_seed(0)
        network = Recurrent().double().train(training)
        gradient = zo.LossGradient(network, squared_output, estimator, evaluator=evaluator)
        batch = torch.randn(4, 5, 3).double()
        if evaluator == "stacked":
            with pytest.warns(zo.errors.EvaluatorWarning):
                gradient.backward(batch)
        else:
            gradient.backward(batch)
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.equal(*grads)
