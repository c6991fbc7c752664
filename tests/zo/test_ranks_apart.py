"""Processes of `torch.distributed` of which nobody has said whether they train together: a warning."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec
from blackbox.adapters import from_callable
from tests.zo.ranks import results_by_rank
from zo.errors import RanksWarning

X = ArraySpec("x", (2,), dtype="float64")
MU = 1e-6


def make_box():
    return from_callable(lambda x: x.sin() + x, inputs=[X], outputs=[X], vectorized=True, arrays="torch")


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 2).double()


def batch_of(step: int, rows: int = 8) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def step_of(kind: str, box, network: nn.Module, **settings):
    """A function of a batch that takes a step with a gradient of some kind."""

    def objective(network, batch):
        return (box(network(batch)) - batch).square().mean(1)

    if kind == "values":
        return zo.LossGradient(network, objective, zo.CGE(MU, central=True), **settings).backward
    gradient = zo.TangentGradient(network, objective, boxes=[box], **settings)
    if kind == "population":
        return zo.Population(gradient, torch.optim.SGD(network.parameters(), 0.01)).step
    return gradient.backward


def said(kind: str, **settings) -> int:
    """How often two steps say that processes train apart."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = step_of(kind, make_box(), make_network(), **settings)
        for number in range(2):
            step(batch_of(number))
    return sum(issubclass(warning.category, RanksWarning) for warning in caught)


KINDS = ["values", "tangents", "population"]
QUICK = ["values", "tangents", pytest.param("population", marks=pytest.mark.slow)]


@pytest.fixture
def one_of_two():
    """This process is one of two; the other one only seems to be there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", QUICK)
def test_a_world_of_two_without_a_word_of_the_user_is_warned_of_once(kind, one_of_two):
    assert said(kind) == 1
    assert said(kind, process_group=None) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_alone_hears_nothing(kind):
    assert said(kind) == 0


@pytest.mark.parametrize(("kind", "mend"), [("values", r"group\.WORLD"), ("tangents", r"SharedRows\(")])
def test_the_warning_says_what_to_do(kind, mend, one_of_two):
    words = rf"the 2 processes.*whole batch and .*{mend}.*process_group=None.*all_reduce"
    with pytest.warns(RanksWarning, match=words):
        step_of(kind, make_box(), make_network())(batch_of(0))


def test_tangents_refuse_a_group_and_name_the_box_that_shares_rows(one_of_two):
    group: Any = dist.group.WORLD
    words = r"process_group: expected None, got .*SharedRows\(box, group, block=n\)"
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError, match=words):
        step_of("tangents", make_box(), make_network(), process_group=group)


def test_a_box_that_autograd_goes_through_is_averaged_by_who_averages_gradients(one_of_two):
    """`DistributedDataParallel` does, and torch itself says nothing of other networks."""
    solver, network = (
        zo.differentiable(make_box(), zo.box_gradient.RowRGE(mu=1e-3, q=2), seed=0),
        make_network(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver(network(batch_of(0))).sum().backward()


def in_step(groups):
    """Four processes ask a shared box for the same rows."""
    results = {}
    for kind in ("values", "tangents"):
        box, network = zo.execution.SharedRows(make_box(), groups[4]), make_network()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RanksWarning)
            step_of(kind, box, network)(batch_of(0))
        results["in step", kind] = network.weight.grad
    return results


def averaged(groups):
    """Each takes its own rows, and then the mean of all gradients, of all four or of DDP's two."""
    rank, network = groups["rank"], make_network()
    step_of("values", make_box(), network, process_group=None)(batch_of(0)[2 * rank : 2 * rank + 2])
    grad = network.get_parameter("weight").grad
    assert grad is not None
    dist.all_reduce(grad)
    return {"averaged": grad / 4}


def by_ddp(groups):
    """Autograd through a box, in `DistributedDataParallel`."""
    network = nn.parallel.DistributedDataParallel(make_network(), process_group=groups[4])
    solver = zo.differentiable(make_box(), zo.CGE(MU, central=True), seed=groups["rank"])
    batch = batch_of(0)[2 * groups["rank"] :][:2]
    (solver(network(batch)) - batch).square().mean(1).mean().backward()
    return {"by ddp": network.module.weight.grad}


def apart(groups):
    with pytest.warns(RanksWarning, match="the 4 processes"):
        step_of("tangents", make_box(), make_network())(batch_of(groups["rank"]))
    return {}


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """By rank, what the cases gave."""
    return results_by_rank((in_step, averaged, by_ddp, apart), tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["averaged", "by ddp", ("in step", "values")])
def test_gradients_that_processes_average_are_autograds_and_no_warning_comes(name, by_rank):
    network, batch = make_network(), batch_of(0)
    z = network(batch)
    (z.sin() + z - batch).square().mean().backward()
    for results in by_rank:
        assert torch.equal(results[name], by_rank[0][name])
        torch.testing.assert_close(results[name], network.weight.grad, rtol=1e-5, atol=1e-8)
