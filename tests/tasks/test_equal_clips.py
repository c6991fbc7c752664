"""`--clip` bounds the gradients of every method by one rule."""

import json
from dataclasses import replace

import pytest
import torch
from toy import Toy

import tasks
from tasks.training.setup import GradientBound


class Spiky(Toy):
    """Every fourth batch has a loss, and a gradient, fifty times as large."""

    def objective(self, network, batch):
        spiky = bool((batch[1].sum() * 1e6).long() % 4 == 0)
        return (50.0 if spiky else 1.0) * super().objective(network, batch)


def lines(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Step .* gradients of about one length:zo.errors.TangentWarning")
def test_every_method_has_it_and_says_how_often(tmp_path):
    config = replace(Toy.Config(), methods=("no-gradient", "identity", "tangents"), steps=30)
    plain = tasks.run(Spiky(config), runs=tmp_path / "plain")
    bound = tasks.run(Spiky(replace(config, clip=1.0)), runs=tmp_path / "bound")
    for method in ("identity", "tangents"):
        stages = [
            [line for line in lines(run) if line["stage"].endswith(method) and "gradient_clipped" in line]
            for run in (plain, bound)
        ]
        assert bool(stages[0]) == (method == "tangents")  # whose own bound is 2
        assert 3 <= stages[1][-1]["gradient_clipped"] <= 15
        one, other = (run.network(method).state_dict() for run in (plain, bound))
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_training_that_goes_on_has_the_lengths_of_before():
    def network():
        return torch.nn.Linear(2, 1)

    def lengths(bound, values):
        left = []
        for value in values:
            net = network()
            net.weight.grad, net.bias.grad = torch.full((1, 2), value), torch.zeros(1)
            bound.apply(net)
            left.append(float(net.weight.grad.norm()))
        return left

    values = [1.0, 2.0, 9.0, 1.0, 30.0, 2.0, 5.0]
    whole, first, second = (GradientBound(1.5) for _ in range(3))
    expected = lengths(whole, values)
    before = lengths(first, values[:4])
    second.load_state_dict(first.state_dict())
    assert before + lengths(second, values[4:]) == expected and second.clipped == whole.clipped > 1
