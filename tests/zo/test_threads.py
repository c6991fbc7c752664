"""Threads that share torch's generators: dropout draws the base's masks in all queries, or a step is refused.

The loss is linear in the weights, so the derivative by a weight is the mean of its input behind the mask:
a number below one here. With other masks in a query it is a difference of losses over mu, far above that.
"""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch
from zo.evaluators.generators import WatchedDraws, states
from zo.evaluators.hidden_weights import hidden as hidden_weights

ROWS, INPUTS = 32, 20


def trained(number, evaluator, dropout, steps=12, after=None):
    """The largest error of a step's gradient by a weight that is the same in all masks, and what was said."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(ROWS, INPUTS, generator=generator)
    network = nn.Sequential(nn.Dropout(dropout), nn.Linear(INPUTS, 1, bias=False))
    gradient = zo.LossGradient(
        network, lambda n, b: n(b)[:, 0], zo.CGE(mu=1e-2), evaluator=evaluator, seed=number
    )
    largest = 0.0
    for step in range(steps):
        if after is not None and step == 2:
            after()
        network.zero_grad()
        gradient.backward(x)
        # the mean of 32 numbers of order one, each either left out or divided by 1 - p
        largest = max(largest, float(network[1].weight.grad.abs().max()))
    return largest, gradient


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
@pytest.mark.parametrize("dropouts", [(0.3, 0.3), (0.3, 0.0), (0.0, 0.0)])
def test_two_trainings_in_two_threads_do_not_spoil_each_other(evaluator, dropouts):
    largest, gate = {}, threading.Barrier(2)

    def train(number):
        gate.wait()
        largest[number] = trained(number, evaluator, dropouts[number])

    threads = [threading.Thread(target=train, args=(number,)) for number in range(2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert sorted(largest) == [0, 1]
    assert all(size < 1.5 for size, _ in largest.values())
    assert not [str(warning.message) for warning in said]


# an evaluator that meets others' masks is left for `loop` in that step, which is right
@pytest.mark.quick_cases(2)
@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
@pytest.mark.parametrize("pause", [0.0, 0.003])
def test_what_another_thread_draws_is_noticed(evaluator, pause):
    """Queries are evaluated again, and a step in which none is left alone is refused."""
    stop = threading.Event()

    def draw():
        while not stop.wait(pause):
            torch.rand(3)

    stranger = threading.Thread(target=draw)
    try:
        largest, _ = trained(0, evaluator, 0.3, after=stranger.start)
        assert largest < 1.5
    except zo.errors.ObjectiveError as error:
        assert "torch.Generator()" in str(error)
    finally:
        stop.set()
        stranger.join()


@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
@pytest.mark.parametrize("pauses", ["in base and queries", "in the base"])
def test_another_thread_that_draws_as_much_in_each_evaluation_is_noticed(evaluator, pauses):
    """Behind the masks in the base and before them in the queries: all end in the same state."""
    evaluations = []

    class Interrupted(nn.Module):
        def forward(self, x):
            def stranger():
                thread = threading.Thread(target=torch.rand, args=(3,))
                thread.start()
                thread.join()

            evaluations.append(None)
            early = len(evaluations) > 1 and pauses == "in base and queries"
            if early:
                stranger()
            x = nn.functional.dropout(x, 0.3, self.training)
            if len(evaluations) == 1:
                stranger()
            return x

    network = nn.Sequential(Interrupted(), nn.Dropout(0.3), nn.Linear(INPUTS, 1, bias=False))
    gradient = zo.LossGradient(network, lambda n, b: n(b)[:, 0], zo.CGE(mu=1e-2), evaluator=evaluator, seed=0)
    x = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(0))
    alive, idle = threading.Event(), threading.Thread(target=lambda: alive.wait(60))
    idle.start()
    try:
        gradient.backward(x)  # the step is taken again, and rightly
        assert float(network[2].weight.grad.abs().max()) < 1.5
    finally:
        alive.set()
        idle.join()


def test_what_is_watched_draws_the_numbers_that_it_draws_unwatched():
    def drawn():
        torch.manual_seed(0)
        ones = torch.ones(40)
        return [
            *(torch.rand(7), torch.randn(7), torch.randn(33), torch.randint(9, (5,)), torch.randperm(6)),
            *(nn.functional.dropout(ones, 0.3), torch.bernoulli(ones / 2), torch.normal(ones, ones)),
            *(torch.randn_like(ones), nn.functional.rrelu(-ones, training=True), torch.multinomial(ones, 3)),
        ]

    expected, end = drawn(), torch.get_rng_state()
    torch.manual_seed(0)
    watched, before = WatchedDraws(), states()
    with watched:
        seen = drawn()
    assert all(map(torch.equal, expected, seen)) and torch.equal(end, torch.get_rng_state())
    assert len(watched.names) == len(expected) and watched.alone(before, states())


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_a_network_that_draws_nothing_minds_no_draws(evaluator):
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            torch.rand(3)

    stranger = threading.Thread(target=draw)
    try:
        largest, gradient = trained(0, evaluator, 0.0, after=stranger.start)
    finally:
        stop.set()
        stranger.join()
    assert largest < 1.5 and gradient.counts.dropped == 0


@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")  # it reads its weight outside of a layer
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_draws_whose_number_depends_on_the_weights_are_no_other_threads(evaluator):
    """As rejection sampling has it, or a box that draws for each row that it gets."""

    class Rejecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x):
            torch.rand(len(x) + int(float(self.layer.weight.detach().sum()) * 1e4) % 7)
            return self.layer(x)

    torch.manual_seed(0)
    network, x = Rejecting().double(), torch.randn(4, 3).double()
    network(x).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    zo.LossGradient(
        network, lambda n, b: n(b).square()[:, 0], zo.CGE(1e-5, central=True), evaluator=evaluator
    ).backward(x)
    for parameter, exact in zip(network.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, exact, rtol=1e-4)


D = torch.distributions
REJECTING = {
    "poisson": torch.poisson,
    "binomial": lambda r: D.Binomial(200, r / (1 + r)).sample(),
    "beta": lambda r: D.Beta(r, r + 1).sample(),
    "dirichlet": lambda r: D.Dirichlet(torch.stack([r, r + 1], -1)).sample()[:, 0] * r,
    "von Mises": lambda r: D.VonMises(0 * r, r).sample(),
}


@pytest.mark.quick_cases(2)
@pytest.mark.filterwarnings("ignore")  # counts come in steps, and are not stacked
@pytest.mark.parametrize("evaluator", ["loop", "auto"])
@pytest.mark.parametrize("draw", REJECTING.values(), ids=REJECTING)
@pytest.mark.parametrize("others", [False, True])
def test_draws_by_rejection_begin_from_the_same_state_in_each_query(draw, evaluator, others):
    """Central differences by hand, each from the state that the step began with."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 1), nn.Softplus()).double()
    x, mu = torch.randn(8, 3).double(), 0.1

    def objective(n, b):
        return (draw(20 * n(b)[:, 0] + 0.5) - 5).square()

    alive, idle = threading.Event(), threading.Thread(target=lambda: alive.wait(60))
    if others:
        idle.start()
    try:
        begin = torch.get_rng_state()
        zo.LossGradient(network, objective, zo.CGE(mu, central=True), evaluator=evaluator, seed=0).backward(x)
        end = torch.get_rng_state()
    finally:
        alive.set()
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            values, slopes = parameter.view(-1), parameter.grad.view(-1)
            for place, value in enumerate(values.tolist()):
                losses = []
                for step in (mu, -mu):
                    values[place] = value + step
                    torch.set_rng_state(begin)
                    losses.append(float(objective(network, x).mean()))
                values[place] = value
                assert float(slopes[place]) == pytest.approx((losses[0] - losses[1]) / (2 * mu), rel=1e-5)
        torch.set_rng_state(begin)
        objective(network, x)
    assert torch.equal(end, torch.get_rng_state())


def test_a_generator_given_by_place_is_handed_on():
    own = torch.Generator().manual_seed(1)
    expected = torch.poisson(torch.full((9,), 20.0), torch.Generator().manual_seed(1))
    with WatchedDraws() as watched:
        seen = torch.poisson(torch.full((9,), 20.0), own)
    assert torch.equal(seen, expected) and not watched.names


def by_tangents(number, dropout, gate, left):
    """Trainings through a box of sines: each step evaluates the objective with draws, some of them twice."""
    torch.manual_seed(number)
    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)).double()
    specs = (ArraySpec("x", (1,)),), (ArraySpec("y", (1,)),)
    box = FromTorch(torch.sin, *specs)
    gradient = zo.TangentGradient(
        network, lambda n, w: (box(n(w)) - w).square().mean(dim=1), boxes=[box], seed=number
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    gate.wait()  # what makes a network draws too
    for step in range(8):
        optimizer.zero_grad()
        gradient.backward(torch.rand(16, 1, generator=torch.Generator().manual_seed(step)).double())
        optimizer.step()
        for _ in range(gradient.replays()):
            optimizer.zero_grad()
            gradient.replay()
            optimizer.step()
    left[number] = gradient


@pytest.mark.quick_cases(1)
@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
@pytest.mark.parametrize("dropouts", [(0.5, 0.5, 0.5), (0.5, 0.5, 0.0)])
def test_trainings_by_tangents_in_threads_do_not_spoil_each_other(dropouts):
    """The second evaluation of a first step draws what the base drew, or the step would be refused."""
    gate, left = threading.Barrier(len(dropouts)), {}
    threads = [
        threading.Thread(target=by_tangents, args=(number, dropout, gate, left))
        for number, dropout in enumerate(dropouts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(left) == list(range(len(dropouts)))
    assert all(gradient.counts.checks >= 1 for gradient in left.values())


def test_hidden_weights_of_one_thread_are_no_other_threads():
    """Blocks that overlap, and end as they began: autograd's engine is as it was behind both."""
    engine = vars(torch.autograd)["_engine_run_backward"]
    networks = [nn.Linear(3, 1).double() for _ in range(2)]
    begun, ended, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with hidden_weights(networks[1].parameters()):
            begun.set()
            ended.wait(60)
            x = torch.ones(3, dtype=torch.float64, requires_grad=True)
            seen.append(torch.autograd.grad((x**3).sum(), x)[0])

    thread = threading.Thread(target=other)
    with hidden_weights(networks[0].parameters()):
        thread.start()
        begun.wait(60)
        x = torch.ones(2, dtype=torch.float64, requires_grad=True)
        # a backward pass here shows the weights of this block while it runs, and none of the other's
        shown = [networks[1].weight.isnan().all(), networks[0].weight.isnan().all()]
        x.register_hook(lambda _: shown.extend(n.weight.isnan().any() for n in networks))
        torch.autograd.grad((x**2).sum(), x)
    ended.set()
    thread.join(60)
    assert [bool(one) for one in shown] == [True, True, False, True]
    assert torch.equal(seen[0], 3 * torch.ones(3, dtype=torch.float64))
    assert vars(torch.autograd)["_engine_run_backward"] is engine
    assert all(bool(network.weight.isfinite().all()) for network in networks)
