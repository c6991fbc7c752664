"""What users write is read: statements in place, moved buffers, casts to another's dtype; or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zo
from tests.zo.evaluators.difference.test_difference import agree, batch, squared, step_of
from zo.estimators import Coordinates
from zo.evaluators.difference.tape_mode import NotReadable


class User(nn.Module):
    """Three layers, and what a function makes of them."""

    def __init__(self, function, **buffers) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return self.function(self, x)


def statements(net, x):
    y = net.a(x)
    F.relu_(y)
    y.mul_(2)
    y.add_(net.b(x))
    nn.ReLU6(inplace=True)(y)
    return net.c(y)


def accumulated(net, x):
    total = torch.zeros(len(x), 4, dtype=x.dtype)
    for layer in (net.a, net.b):
        total.add_(layer(x))
    return net.c(total)


def moved_buffer(net, x):
    net.scale.mul_(0.9).add_(0.3 * x.abs().mean())
    return net.c(torch.tanh(net.a(x)) * net.scale)


def permuted_dropout(net, x):
    return net.c(F.dropout(net.a(x).t(), 0.4).t())


def as_another(net, x):
    y = net.a(x)
    kept = torch.tensor([1.0, 0.5, 2.0, 0.0]).to(y)
    return net.c(y * kept.expand_as(y) + (x[:, :1] > 0).type_as(y))


def broadcast(net, x):
    y = torch.where(x[:, :1] > 0, net.a(x)[:, :1], x.new_zeros(3))
    z = net.b(x)[:, :1].masked_fill(x > 0.5, 0.3) + net.b(x)[:, 1:2].clamp(min=x)
    return net.c(net.a(x)) + y.sum(1, keepdim=True) * z.mean(1, keepdim=True)


def powers(net, x):
    return net.c(F.relu(net.a(x)) ** 1.5)


def rounded_down(net, x):
    return net.c(torch.div(net.a(x), 0.1, rounding_mode="floor"))


def compared(net, x):
    error = F.mse_loss(
        net.a(x), net.b(x), weight=torch.arange(1.0, 5.0).to(x).expand(len(x), 4), reduction="none"
    )
    return net.c(net.a(x)) * error.mean(1, keepdim=True) / net.b(x).std(0).sum()


def drawn(net, x):
    return net.c(F.gumbel_softmax(net.a(x), tau=0.7))


def attended(net, x):
    q, k = (y.view(len(x), 2, 1, 2).transpose(0, 2) for y in (net.a(x), net.b(x)))
    k = k[:, :1]
    h = F.scaled_dot_product_attention(q, k, k + 1, dropout_p=0.2, is_causal=True, enable_gqa=True)
    return net.c(h.transpose(0, 2).reshape(len(x), 4))


def masked(net, x):
    y, z = net.a(x), net.b(x)
    gate = (y > 0.1) & ~(z < -0.2) | (z == 0)
    kept = torch.where(gate, y, z).masked_fill(y >= z, 0.3)
    return net.c(kept * gate.float() + gate * z + (y > z) + gate.sum(1, keepdim=True) / 4)


def cast(net, x):
    y = net.a(x)
    coarse = (8 * y).to(torch.int32).float() + (8 * net.b(x)).long().to(x) + y.round().type(torch.float32)
    return net.c(coarse.double() / 8 + y.type_as(net.c.weight) * net.b(x).to(net.c.weight))


def largest(net, x):
    y, z = net.a(x), net.b(x)
    order = y.argsort(1)
    best = z.max(dim=1)
    picked = z.gather(1, order) + z[torch.arange(len(x))[:, None], order] + y.topk(2, 1).values.repeat(1, 2)
    return net.c(picked + best.values[:, None] + F.one_hot(best.indices, 4).type_as(y))


def chosen(net, x):
    codes = net.a(x).argmin(1)  # as a quantiser does
    return net.c(net.b(x) + F.embedding(codes, net.c.weight.t() @ net.c.weight))


def pooled(net, x):
    y, places = F.adaptive_max_pool1d(net.a(x)[:, None], 2, return_indices=True)
    z = F.adaptive_max_pool1d(net.b(x)[:, None], 2)
    return net.c(torch.cat([y + places, z * y], 2).squeeze(1))


def divided(net, x):
    infinite = torch.where(net.a(x) > 0, net.a(x) / 0, net.b(x))
    return net.c(infinite.clamp(max=2.0) * net.b(x))


READ = [
    *(masked, cast, largest, chosen),
    *(statements, accumulated, moved_buffer, permuted_dropout, as_another, broadcast, powers, rounded_down),
    *(compared, drawn, attended, pooled, divided),
]


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("function", READ, ids=lambda function: function.__name__)
def test_every_coordinate_gets_what_loop_gives(function):
    torch.manual_seed(0)
    agree(User(function, scale=1.0), zo.OutputLoss(squared), batch())


def to_view(net, x):
    total = torch.zeros(len(x), 4, dtype=x.dtype)
    total[:, :2].add_(net.a(x)[:, :2])
    return net.c(total + net.b(x))


def view_before(net, x):
    total = torch.zeros(len(x), 4, dtype=x.dtype)
    view = total[:, :1]
    total += net.a(x)
    return net.c(total) + view


def narrowed(net, x):
    y = net.a(x)
    y += net.b(x).double()
    return net.c(y)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (to_view, "written to in place"),
        (view_before, "written to in place"),
        (narrowed, "another shape or dtype"),
        (lambda net, x: net.c(net.a(x) * net.b(x).sum().item()), "else than real tensors"),
        (lambda net, x: net.c(net.a(x)) if (net.b(x) > 0).any() else net.c(net.b(x)), "else than real"),
        (lambda net, x: net.c(net.a(x).view(torch.bfloat16)[:, ::2].float()), "view of its memory"),
        (lambda net, x: net.c(F.alpha_dropout(net.a(x), 0.2, True)), "draws at random"),
        (
            lambda net, x: net.c(F.embedding(x.long().abs() % 3, net.a.weight.t(), max_norm=1.0)[:, 0]),
            "max_norm",
        ),
    ],
    ids=["view of a constant", "view before", "dtype", "a number", "a branch", "bits", "noise", "max_norm"],
)
def test_what_would_come_out_wrong_is_refused(function, words):
    torch.manual_seed(0)
    network, objective = User(function), zo.OutputLoss(squared)
    step = step_of(network, objective, batch())
    queries = Coordinates(torch.arange(step.parameters.size), torch.ones(step.parameters.size))
    with torch.no_grad(), pytest.raises(NotReadable, match=words):
        zo.evaluators.Difference().changes(step, queries, objective(network, step.batch))


def test_a_read_past_the_recorder_that_swallows_nan_is_found_by_the_losses():
    def swallowing(net, x):
        with torch._C.DisableTorchFunction():  # as in compiled code
            seen = torch.where(net.b(x) > 0, 1.0, 0.0)
        return net.c(net.a(x) + seen)

    torch.manual_seed(0)
    network, objective = User(swallowing), zo.OutputLoss(squared)
    step = step_of(network, objective, batch())
    with torch.no_grad(), pytest.raises(NotReadable, match="losses of the base when it is recorded"):
        base = objective(network, step.batch)
        zo.evaluators.Difference().changes(step, Coordinates(torch.tensor([0]), torch.ones(1)), base)


WEIGHTS = torch.tensor([0.5, 2.0])


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: F.cross_entropy(
            o, t, WEIGHTS.to(o), reduction="none", label_smoothing=0.1, ignore_index=1
        ),
        lambda o, t: F.cross_entropy(o, t, WEIGHTS.to(o), label_smoothing=0.1).expand(len(o)),
        lambda o, t: F.cross_entropy(o, F.one_hot(t, 2).to(o), WEIGHTS.to(o), label_smoothing=0.2).expand(
            len(o)
        ),
        lambda o, t: F.nll_loss(F.log_softmax(o, 1), t, WEIGHTS.to(o)).expand(len(o)),
        lambda o, t: F.binary_cross_entropy_with_logits(
            o, F.one_hot(t, 2).to(o), pos_weight=WEIGHTS.to(o), reduction="none"
        ).mean(1),
        lambda o, t: F.huber_loss(o, F.one_hot(t, 2).to(o), reduction="none").mean(1),
        lambda o, t: F.kl_div(F.log_softmax(o, 1), torch.tensor([0.3, 0.7]).to(o), reduction="none").sum(1),
    ],
    ids=["none", "mean", "probabilities", "nll", "logistic", "huber", "divergence"],
)
def test_losses_with_weights_and_smoothing(loss):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    agree(network, zo.OutputLoss(loss), (batch()[0], torch.tensor([0, 1, 1, 0, 1])))
