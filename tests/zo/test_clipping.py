"""Gradients that are far longer than those before are shortened, and no others."""

import math
import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.learners import learner
from tests.zo.linearised import Instead
from tests.zo.row_boxes import FromTorch
from zo.tangents.step.clipping import REMEMBERED, Clipping

X = (ArraySpec("x", (2,)),)


def lengths(clip, several):
    """What is left of gradients of these lengths, in two tensors each."""
    clipping, kept_lengths = Clipping(clip), []
    for length in several:
        gradients = torch.full((3,), 0.6 * length / math.sqrt(3)), torch.full((1, 2), 0.8 * length / 2**0.5)
        clipping.remember(gradients)
        kept, shortened = clipping.shortened(gradients)
        left = torch.cat([part.flatten() for part in kept])
        whole = torch.cat([part.flatten() for part in gradients])
        if length:
            assert torch.cosine_similarity(left, whole, dim=0) > 1 - 1e-6
        assert shortened == (not torch.equal(left, whole))
        kept_lengths.append(round(float(left.norm()), 4))
    return kept_lengths


@torch.no_grad()
def test_the_gradients_of_weights_are_shortened_in_place():
    weights, clipping, left = (
        [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1, 2))],
        Clipping(2.0),
        [],
    )
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    for length in (1.0, 1.0, 2.0, 100.0, 3.0):
        weights[0].grad = torch.full((3,), 0.6 * length / math.sqrt(3))
        weights[1].grad = torch.full((1, 2), 0.8 * length / 2**0.5)
        longer = clipping.shorten([*weights, frozen])
        left.append(round(float(torch.cat([w.grad.flatten() for w in weights]).norm()), 4))
        assert longer == (left[-1] < length)
    assert left == [1.0, 1.0, 2.0, 3.0, 3.0] and frozen.grad is None


def test_what_is_longer_than_a_multiple_of_the_median_is_as_long_as_that():
    assert lengths(2.0, [1.0, 1.0, 2.0, 100.0, 3.0]) == [1.0, 1.0, 2.0, 3.0, 3.0]  # 2 (1 + 2) / 2 of four
    assert lengths(5.0, [1.0, 4.0, 60.0]) == [1.0, 4.0, 20.0]
    assert lengths(None, [1.0, 1.0, 1e9]) == [1.0, 1.0, 1e9]


def test_zero_is_no_length_and_a_new_level_is_taken_up():
    assert lengths(2.0, [0.0, 0.0, 5.0, 0.0, 5.0]) == [0.0, 0.0, 5.0, 0.0, 5.0]
    risen = lengths(2.0, [1.0] * REMEMBERED + [10.0] * REMEMBERED)
    assert risen[REMEMBERED] == 2.0 and risen[-1] == 10.0


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x)


class Wild(zo.tangents.MLPTangent):
    """Is wrong by a factor in one step."""

    factor = 1.0

    def at_each(self, calls):
        return [Instead(at, pull=lambda v: self.factor * v) for at in super().at_each(calls)]


def descend(steps, wild_at=None, **settings):
    """The gradients of some steps, each of another batch."""
    box, network = FromTorch(torch.sin, X, X), Network()
    tangent = learner(Wild, 8, first_steps=3, steps_per_step=1)
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (box(net(x)) - 0.3).square().mean(dim=1),
        boxes=[box],
        tangent=tangent,
        trust_policy=zo.tangents.TrustPolicy(check_every=None),
        **settings,
    )
    gradients = []
    for step in range(steps):
        gradient.tangents[0].factor = 1e3 if step == wild_at else 1.0
        network.zero_grad()
        gradient.backward(torch.randn(6, 2, generator=torch.Generator().manual_seed(step)))
        gradients.append(torch.cat([p.grad.flatten().clone() for p in network.parameters()]))
    return gradients, gradient


def test_a_tangent_that_is_wrong_by_a_thousand_in_one_step_adds_twice_the_median():
    calm, _ = descend(6)
    wild, gradient = descend(6, wild_at=5)
    median = torch.stack([g.norm() for g in [*calm[:5], 1e3 * calm[5]]]).quantile(0.5)
    assert torch.allclose(wild[5], 2 * median * calm[5] / calm[5].norm(), rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(calm[:5], wild[:5], strict=True))
    assert gradient.counts.clipped == 1 == gradient.metrics()["clipped"]
    free, gradient = descend(6, wild_at=5, clip=None)
    assert torch.allclose(free[5], 1e3 * calm[5], rtol=1e-4) and gradient.counts.clipped == 0


def test_a_replay_is_shortened_too_and_both_are_the_same_after_a_resume():
    _, gradient = descend(4, clip=1.0)
    gradient.replays()
    gradient.tangents[0].factor = 1.0
    network = gradient.network
    network.zero_grad()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.5
    gradient.replay()
    long = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    _, other = descend(1, clip=1.0)
    other.load_state_dict(gradient.state_dict())
    assert other.state_dict()["clipping"] == gradient.state_dict()["clipping"]
    bound = torch.tensor(gradient.state_dict()["clipping"]["lengths"]).quantile(0.5)
    assert torch.isclose(long, bound.float(), rtol=1e-5)


def test_a_derivative_that_is_given_is_never_shortened():
    box, network = FromTorch(torch.sin, X, X), Network()
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (box(net(x)) - 0.3).square().mean(dim=1),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(torch.sin),
        clip=1.0,
    )
    for seed, size in enumerate((1e-3, 1.0)):
        network.zero_grad()
        x = size * torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.0 + 3.0 * size)
        gradient.backward(x)
        loss = (torch.sin(network(x)) - 0.3).square().mean(dim=1).mean()
        true = torch.autograd.grad(loss, list(network.parameters()))
        for parameter, expected in zip(network.parameters(), true, strict=True):
            assert torch.allclose(parameter.grad, expected, atol=1e-6)
    assert gradient.counts.clipped == 0


@pytest.mark.parametrize("clip", [0.5, math.nan, "2"])
def test_a_bound_below_the_median_is_refused(clip):
    with pytest.raises(
        zo.errors.ConfigurationError, match="TangentGradient, clip: expected a finite number >= 1"
    ):
        descend(0, clip=clip)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("sizes", "times"), [((1.0, 1.0, 100.0), 1), ((1.0, 1.0, 3.0), 0)])
def test_losses_of_different_sizes_that_take_turns_are_said_once(sizes, times):
    """Two losses that are added up in one `.grad`: the larger one was shortened to a fiftieth for good."""
    box, network, turn = FromTorch(torch.sin, X, X), Network(), [0]

    def objective(net, x):
        return sizes[turn[0] % len(sizes)] * (box(net(x)) - 0.3).square().mean(dim=1)

    gradient = zo.TangentGradient(network, objective, boxes=[box], seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for turn[0] in range(45):
            gradient.backward(torch.randn(6, 2, generator=torch.Generator().manual_seed(turn[0])))
    said = [str(warning.message) for warning in caught if "take turns" in str(warning.message)]
    assert len(said) == times


def accumulated(clip, sizes, zero, steps=12, hook=None):
    """What is said where micro-batches with targets of these sizes make one step of an optimiser."""
    box, network = FromTorch(torch.sin, X, X), Network()
    gradient = zo.TangentGradient(
        network,
        lambda net, batch: (box(net(batch[0])) - batch[1]).square().mean(dim=1),
        boxes=[box],
        tangent=learner(zo.tangents.MLPTangent, 8, first_steps=3, steps_per_step=1),
        trust_policy=zo.tangents.TrustPolicy(check_every=None),
        clip=clip,
    )
    draws = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            zero(network)
            for size in sizes:
                x, y = (torch.randn(8, 2, generator=draws) for _ in range(2))
                gradient.backward((x, size * y))
                if hook is not None:
                    hook(network)
    words = [str(warning.message) for warning in said if "added up" in str(warning.message)]
    return words, gradient.counts.clipped


def to_none(network):
    network.zero_grad()


def to_zero(network):
    network.zero_grad(set_to_none=False)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("zero", [to_none, to_zero])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 30), (30, 1, 1, 1), (1, 30)])
def test_a_shortened_gradient_among_several_that_are_added_up_is_said_once(sizes, zero):
    words, clipped = accumulated(2.0, sizes, zero)
    assert clipped > 3 and len(words) == 1 and "clip=None" in words[0]


def bounded(network):
    nn.utils.clip_grad_norm_(network.parameters(), 1e-3)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("clip", "sizes", "zero", "hook"),
    [
        (2.0, (1, 1, 1), to_none, None),
        (None, (1, 1, 1, 30), to_none, None),
        (2.0, (1,), to_none, None),
        (2.0, (1, 30), to_none, to_none),
        (2.0, (1, 30), to_none, to_zero),
        (2.0, (1, 30), to_none, bounded),
    ],
    ids=["equal sizes", "no bound", "one batch", "a step each", "zeros between", "bounded between"],
)
def test_gradients_that_are_not_shortened_or_not_added_up_are_not_said(clip, sizes, zero, hook):
    if clip is not None and sizes == (1, 1, 1):
        clip = 5.0  # of some equal batches in a hundred a gradient is twice as long
    words, clipped = accumulated(clip, sizes, zero, hook=hook)
    assert not words
    assert (clipped > 0) == (30 in sizes and clip is not None)


# What is cut off, and goes one way


def rare(steps, seed, size):
    """Gradients in the order of steps: one in ten pulls fifteen times as much, against the others."""
    draws = torch.Generator().manual_seed(seed)
    way = torch.randn(size, generator=draws) / size**0.5
    for _ in range(steps):
        pull = -15.0 if torch.rand((), generator=draws) < 0.1 else 1.0
        yield pull * way + 0.3 * torch.randn(size, generator=draws) / size**0.5


def chaotic(steps, seed, size):
    """Gradients of lengths with a heavy tail, which go anywhere."""
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        length = float(torch.randn((), generator=draws).mul(1.5).exp())
        yield length * torch.randn(size, generator=draws) / size**0.5


def weighed(gradients, clipping):
    """At which steps the bound was raised."""
    raised = []
    for step, gradient in enumerate(gradients):
        clipping.remember([gradient])
        notice = clipping.weigh([gradient], step)
        if notice is not None:
            assert notice.words.startswith(f"Step {step + 1}: ")
            raised.append(step)
    return raised


@pytest.mark.parametrize("size", [7, 5000])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_cut_off_and_goes_one_way_raises_the_bound(seed, size):
    clipping = Clipping(2.0)
    raised = weighed(rare(200, seed, size), clipping)
    assert len(raised) == 1 and raised[0] < 120 and 10 < clipping.multiple < 30
    for gradient in rare(100, seed + 50, size):
        clipping.remember([gradient])
        (kept,), _ = clipping.shortened([gradient])
        assert kept.norm() > 0.5 * gradient.norm()


@pytest.mark.parametrize("size", [7, 5000])
@pytest.mark.parametrize("seed", range(3))
def test_a_heavy_tail_that_goes_anywhere_stays_shortened(seed, size):
    clipping = Clipping(2.0)
    assert weighed(chaotic(400, seed, size), clipping) == [] and clipping.multiple == 2.0


def test_long_gradients_that_go_where_the_others_go_stay_shortened():
    """As in front of a loss that falls: they would change nothing but the length of a step."""
    clipping = Clipping(2.0)
    assert weighed((abs(float(g[0])) * torch.ones(7) for g in rare(300, 0, 7)), clipping) == []


def test_what_was_cut_off_is_in_the_state():
    gradients = list(rare(200, 0, 5000))
    whole, first, second = Clipping(2.0), Clipping(2.0), Clipping(2.0)
    (raised,) = weighed(gradients, whole)
    assert weighed(gradients[: raised - 1], first) == []
    second.load_state_dict(first.state_dict())
    assert weighed(gradients[raised - 1 :], second) == [1]
    assert second.multiple == whole.multiple
    third = Clipping(2.0)
    third.load_state_dict(second.state_dict())
    assert third.multiple == whole.multiple
    none = Clipping(None)
    none.load_state_dict(second.state_dict())
    assert none.multiple is None  # what a gradient is made with goes before its state


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_rows_of_a_rare_class_one_by_one_count_as_their_weights_say(seed):
    """One row in ten, with a weight by which both classes count the same; first order has no bound."""
    generator = torch.Generator().manual_seed(21)
    maps = [torch.randn(shape, generator=generator) for shape in ((2, 8), (8, 1))]

    def response(x):
        return torch.sin(x @ maps[0].to(x)) @ maps[1].to(x) / 3

    box = FromTorch(response, X, (ArraySpec("y", (1,)),))

    def objective(net, batch, called=box):
        x, is_rare = batch
        weight, wanted = torch.where(is_rare > 0, 5.0, 0.55), torch.where(is_rare > 0, 0.5, -0.5)
        return (weight * (called(net(x)) - wanted).square()).mean(dim=1)

    def drawn(number, rows=1):
        draws = torch.Generator().manual_seed(1000 * seed + number)
        return 2 * torch.rand(rows, 2, generator=draws) - 1, (
            torch.rand(rows, 1, generator=draws) < 0.1
        ) * 1.0

    ends = {}
    for way in ("learned", "first order"):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        gradient = zo.TangentGradient(network, objective, boxes=[box], seed=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(250):
                optimizer.zero_grad()
                if way == "learned":
                    gradient.backward(drawn(step))
                else:
                    objective(network, drawn(step), response).mean().backward()
                optimizer.step()
        with torch.no_grad():
            ends[way] = float(objective(network, drawn(-1, 4000), response).mean())
        said = [str(warning.message) for warning in caught if "all in one direction" in str(warning.message)]
        assert len(said) == (way == "learned")
    assert ends["learned"] < 1.1 * ends["first order"]


def test_a_state_from_before_a_layer_was_unfrozen_goes_on():
    box = FromTorch(torch.sin, X, (ArraySpec("y", (2,)),))
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    network[0].requires_grad_(False)

    def gradient():
        chosen = [name for name, weight in network.named_parameters() if weight.requires_grad]
        tangent = zo.tangents.MLPTangent(8)  # of gradients by values the long ones are shortened
        return zo.TangentGradient(
            network, lambda n, x: box(n(x)).sum(dim=1), boxes=[box], tangent=tangent, parameters=chosen
        )

    before = gradient()
    for step in range(3):
        before.backward(torch.randn(4, 2, generator=torch.Generator().manual_seed(step)))
    network[0].requires_grad_(True)
    after = gradient()
    after.load_state_dict(before.state_dict())
    network.zero_grad()
    after.backward(torch.randn(4, 2, generator=torch.Generator().manual_seed(3)))
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in network[0].parameters())
