"""Networks that evaluators of many variants at once, or of one after another, trip over.

They draw random numbers beside their own weights, let rows interact by hand, write weights in a forward,
change between steps, or depend on the number of rows. All of them have a gradient, which finite differences
of one network at a time give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tests.networks.case import INPUTS, ROWS, WIDTH, Case, around, weighted_error


class OwnWeight(nn.Module):
    """A gain and an offset for each feature, and something done to the features in the same forward.

    When a chunk moves this module's weights, an evaluator may take special care of its forward; when a chunk
    moves weights of other layers, the same forward runs on the rows of all variants.
    """

    def __init__(self, done: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))
        self.offset = nn.Parameter(torch.zeros(WIDTH))
        self.done = done

    def forward(self, x: Tensor) -> Tensor:
        return self.done(x) * self.gain + self.offset


def centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=0)


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + 0.1).sqrt()


def cumulative(x: Tensor) -> Tensor:
    return x.cumsum(dim=0)


def sorted_rows(x: Tensor) -> Tensor:
    return x.sort(dim=0).values


def scaled_by_largest(x: Tensor) -> Tensor:
    return x / x.abs().amax(dim=0)


def strongest_rows(x: Tensor) -> Tensor:
    """All rows but the three of largest norm are halved."""
    kept = x.square().sum(dim=1).topk(3).indices
    return 0.5 * x + 0.5 * torch.zeros_like(x).index_copy(0, kept, x[kept])


def attending_over_rows(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.T, dim=1) @ x


def next_row(x: Tensor) -> Tensor:
    return x + 0.5 * x.roll(1, 0)


def opposite_row(x: Tensor) -> Tensor:
    return x + 0.5 * x.flip(0)


def against_the_first(x: Tensor) -> Tensor:
    return x - 0.5 * x[:1]


def against_the_last(x: Tensor) -> Tensor:
    return x - 0.5 * x[-1:]


def halves_mixed(x: Tensor) -> Tensor:
    first, second = x.chunk(2)
    return torch.cat([first + 0.3 * second, second - 0.3 * first])


def numbered(x: Tensor) -> Tensor:
    return x * torch.linspace(0.5, 1.5, len(x), dtype=x.dtype)[:, None]


def centred_if_many(x: Tensor) -> Tensor:
    """Only for more rows than a step's batch has, as where code takes a short cut for large inputs."""
    return x - x.mean(dim=0) if len(x) > 2 * ROWS else x


def noisy(x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn_like(x)


def uniformly_noisy(x: Tensor) -> Tensor:
    """From uniform numbers, of which a longer draw begins with those of a shorter one."""
    return x * (0.7 + 0.6 * torch.rand_like(x))


def noisy_once(x: Tensor) -> Tensor:
    """One number for the whole batch, drawn after some that are drawn for each row."""
    dropped = F.dropout(x, 0.2)
    return dropped * (1 + 0.3 * torch.rand(()))


class LocalReparameterisation(nn.Module):
    """Kingma et al. 2015: the layer draws its outputs, by the mean and the variance that its weights give."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(0.4 * torch.randn(WIDTH, WIDTH))
        self.log_variance = nn.Parameter(torch.full((WIDTH, WIDTH), -2.0))

    def forward(self, x: Tensor) -> Tensor:
        m, v = x @ self.mean, x.square() @ self.log_variance.exp()
        return m + v.sqrt() * torch.randn_like(m)


class DropoutInside(nn.Module):
    """A product with its own weight, and dropout by the function behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.5 * torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x @ self.w, 0.4, self.training)


class HandWrittenBatchNorm(nn.Module):
    """Statistics of the batch by hand, with own weights, and running ones in buffers that are assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("running", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=0)
        self.running = 0.9 * self.running + 0.1 * mean
        return (x - mean) / (x.var(dim=0) + 1e-3).sqrt() * self.weight + self.bias


class MomentumEncoder(nn.Module):
    """A frozen encoder that follows the trained one, written at each forward, beside which outputs are put.

    `write` is how: in place under `no_grad`, by `.data`, or as a whole.
    """

    def __init__(self, write: str) -> None:
        super().__init__()
        self.encoder, self.slow = nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, WIDTH).requires_grad_(False)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.write = write

    @torch.no_grad()
    def follow(self) -> None:
        for slow, fast in zip(self.slow.parameters(), self.encoder.parameters(), strict=True):
            if self.write == "in place":
                slow.mul_(0.7).add_(fast, alpha=0.3)
            elif self.write == "copied":
                slow.copy_(0.7 * slow + 0.3 * fast)
            else:
                slow.data = 0.7 * slow.data + 0.3 * fast.data

    def forward(self, x: Tensor) -> Tensor:
        self.follow()
        return self.head(torch.tanh(self.encoder(x))) - torch.tanh(self.slow(x))


class UnitNorm(nn.Module):
    """Its own forward scales its trained weight to length one, as users do after a step."""

    def __init__(self, *, by_data: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.by_data = by_data

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        written = self.weight.data if self.by_data else self.weight
        written.div_(written.norm())
        return x @ self.weight


def normalised(network: nn.Module, step: int) -> None:
    """As its forward will find it, so that only queries make it anything else."""
    for module in network.modules():
        if isinstance(module, UnitNorm):
            module.weight.data.div_(module.weight.data.norm())


class DropPath(nn.Module):
    """Huang et al. 2016: a residual branch that each row takes at random, at a rate that someone sets."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        branch = self.scale * torch.tanh(self.branch(x))
        if self.rate > 0:
            kept = torch.empty(len(x), 1, dtype=x.dtype).bernoulli_(1 - self.rate)
            branch = branch * kept / (1 - self.rate)
        return x + branch


class CountingDropPath(DropPath):
    """The same, at a rate that rises with the number of forwards, which is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("forwards", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.rate = 0.4 * (int(self.forwards) > 1)
        self.forwards += 1
        return super().forward(x)


def rate_rises(network: nn.Module, step: int) -> None:
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 0.4 * (step > 1)
        if isinstance(module, nn.Dropout):
            module.p = 0.4 * (step > 1)


class RisingFunctionalDropout(DropPath):
    """Dropout by the function, in the forward that owns a weight, at a rate that rises from 0."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.scale * torch.tanh(self.branch(x)), self.rate, self.training)


class ReZero(nn.Module):
    """Bachlechner et al. 2021: `x + alpha * branch(x)`, where alpha starts at zero and hides the branch."""

    def __init__(self, branch: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.0))
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.branch(self.inner(x))


def alpha_learned(network: nn.Module, step: int) -> None:
    """What training would do: after some steps the branch is there."""
    for module in network.modules():
        if isinstance(module, ReZero):
            module.alpha.data.fill_(0.6 * (step > 1))


class RisingMixture(nn.Module):
    """`x + strength * done(x)`, without weights, and with a strength that the training loop raises from 0."""

    def __init__(self, done: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.done = done
        self.strength = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.strength * self.done(x) if self.strength > 0 else x


def strength_rises(network: nn.Module, step: int) -> None:
    for module in network.modules():
        if isinstance(module, RisingMixture):
            module.strength = 0.6 * (step > 1)


class SleepingBranch(nn.Module):
    """Which way it goes depends on the values; the last batch goes where rows are centred."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (centred(x) if x.abs().mean() > 5 else torch.tanh(x))


class Louder(nn.Module):
    """Scales inputs by a factor that the training loop raises."""

    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def louder(network: nn.Module, step: int) -> None:
    for module in network.modules():
        if isinstance(module, Louder):
            module.factor = 1.0 + 30 * (step > 1)


class KeepsFeatures(nn.Module):
    """Adds half of what it gave at the forward before, in an attribute that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        mixed = h if self.last is None else h + 0.5 * self.last.mean(dim=0)
        self.last = h.detach()
        return mixed


class Prototypes(nn.Module):
    """Compares rows with prototypes that pass through the same encoder, in another number than rows."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
        self.scale = nn.Parameter(torch.tensor(0.8))
        self.register_buffer("prototypes", torch.randn(count, INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.encoder(x) @ self.encoder(self.prototypes).T


class GroupMeans(nn.Module):
    """Rows are put in four groups by their first feature, and compared with the mean of their group."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(INPUTS, WIDTH)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        group = (2 * torch.sigmoid(3 * x[:, 0])).long()
        h = torch.tanh(self.inner(x))
        sums = h.new_zeros(2, WIDTH).index_add(0, group, h)
        counts = h.new_zeros(2).index_add(0, group, h.new_ones(len(h)))
        return self.gain * (h - (sums / counts.clamp(min=1)[:, None])[group])


class WritesInput(nn.Module):
    """Normalises its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(INPUTS, 2)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.9).add_(0.1)
        return self.inner(x)


class PreHook(nn.Module):
    """A hook makes the layer's weight from two parameters before each forward, as the old weight norm did."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(WIDTH, WIDTH)
        weight = layer.weight.detach().clone()
        del layer.weight
        layer.register_parameter("direction", nn.Parameter(weight))
        layer.register_parameter("length", nn.Parameter(torch.ones(WIDTH, 1)))
        layer.weight = weight
        layer.register_forward_pre_hook(self.make_weight)
        self.layer = layer

    @staticmethod
    def make_weight(layer: nn.Module, inputs: Any) -> None:
        layer.weight = layer.length * layer.direction / layer.direction.norm(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class MixingHook(nn.Module):
    """A hook on a layer with weights centres its output over the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.layer.register_forward_hook(self.centre)

    @staticmethod
    def centre(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return centred(output)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class FrozenStatistics(nn.Module):
    """A frozen part that is left in training mode: dropout by the function and statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(standardised(self.layer(x)), 0.2, self.training)


class WeightAsOutput(nn.Module):
    """Gives codes of the rows, which are weights themselves: a view of them."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(ROWS, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.codes[: len(x)]


def penalised(network: nn.Module, batch: Any) -> Tensor:
    penalty = sum(p.square().sum() for p in network.parameters())
    return weighted_error(network(batch[0]), batch[1]) + 0.01 * penalty


def functional_weights(network: nn.Module, batch: Any) -> Tensor:
    """The network at weights that are computed from its own."""
    shrunk = {name: 0.9 * p + 0.1 * p.square() for name, p in network.named_parameters()}
    return weighted_error(functional_call(network, shrunk, (batch[0],)), batch[1])


def after_a_step(network: nn.Module, batch: Any) -> Tensor:
    """Finn et al. 2017: the loss after a step of gradient descent on half of the rows."""
    weights = dict(network.named_parameters())
    with torch.enable_grad():
        half = batch[0][: len(batch[0]) // 2]
        inner = functional_call(network, weights, (half,)).square().mean()
        slopes = torch.autograd.grad(inner, list(weights.values()))
    stepped = {name: w - 0.1 * s for (name, w), s in zip(weights.items(), slopes, strict=True)}
    return weighted_error(functional_call(network, stepped, (batch[0],)), batch[1])


def relative_to_the_batch(network: nn.Module, batch: Any) -> Tensor:
    loss = weighted_error(network(batch[0]), batch[1])
    return loss.square() / loss.mean()


def by_row_number(network: nn.Module, batch: Any) -> Tensor:
    loss = weighted_error(network(batch[0]), batch[1])
    return loss * torch.arange(1, len(loss) + 1, dtype=loss.dtype)


def hardest_rows(network: nn.Module, batch: Any) -> Tensor:
    """Only the three rows of the largest loss count."""
    loss = weighted_error(network(batch[0]), batch[1])
    return loss * (loss >= loss.topk(3).values[-1])


def contrastive(network: nn.Module, batch: Any) -> Tensor:
    """van den Oord et al. 2018: each row is told from all others of the batch."""
    z = F.normalize(network(batch[0]), dim=1)
    other = F.normalize(network(batch[0] + 0.3), dim=1)
    return F.cross_entropy(z @ other.T / 0.5, torch.arange(len(z)), reduction="none")


def stopped(network: nn.Module, batch: Any) -> Tensor:
    """Each output is compared with a detached one: function values see the whole derivative all the same."""
    y = network(batch[0])
    return weighted_error(y - 0.5 * network(batch[0].flip(1)).detach(), batch[1])


def mlp() -> nn.Module:
    return around(nn.LayerNorm(WIDTH))


OVER_ROWS = [
    *(centred, standardised, cumulative, sorted_rows, scaled_by_largest, strongest_rows, attending_over_rows),
    *(next_row, opposite_row, against_the_first, against_the_last, halves_mixed, numbered, centred_if_many),
]
DRAWING = [noisy, uniformly_noisy, noisy_once]
# A variant that moves nothing may be the base among others, by its place or because their changes cancel.
HIDDEN_FROM_THE_BASE = [centred, next_row, opposite_row, against_the_first, against_the_last]

TREACHEROUS = [
    *(Case(done.__name__, lambda done=done: around(OwnWeight(done))) for done in [*OVER_ROWS, *DRAWING]),
    Case("local reparameterisation", lambda: around(LocalReparameterisation(), nn.Tanh())),
    Case("dropout inside the owner", lambda: around(DropoutInside(), nn.Tanh())),
    Case("batch norm by hand", lambda: around(HandWrittenBatchNorm())),
    *(
        Case(f"momentum encoder, {write}", lambda write=write: MomentumEncoder(write), excuse="error")
        for write in ("in place", "copied", "by data")
    ),
    Case("unit norm, in place", lambda: around(UnitNorm(by_data=False)), before=normalised, excuse="error"),
    Case("unit norm, by data", lambda: around(UnitNorm(by_data=True)), before=normalised, excuse="error"),
    Case("rising drop path", lambda: around(DropPath()), before=rate_rises, steps=3),
    Case("rising drop path, counted", lambda: around(CountingDropPath()), steps=3),
    Case(
        "rising dropout", lambda: around(nn.Dropout(0.0), nn.Linear(WIDTH, WIDTH)), before=rate_rises, steps=3
    ),
    Case(
        "rising dropout by the function",
        lambda: around(RisingFunctionalDropout()),
        before=rate_rises,
        steps=3,
    ),
    *(
        Case(
            f"rezero around {done.__name__}",
            lambda done=done: around(ReZero(done)),
            before=alpha_learned,
            steps=3,
        )
        for done in (centred, sorted_rows, cumulative, noisy, against_the_first)
    ),
    *(
        Case(
            f"rising {done.__name__}",
            lambda done=done: around(RisingMixture(done)),
            before=strength_rises,
            steps=3,
        )
        for done in [*HIDDEN_FROM_THE_BASE, cumulative, numbered, halves_mixed, centred_if_many]
    ),
    Case("sleeping branch", lambda: around(Louder(), SleepingBranch()), before=louder, steps=3),
    Case("keeps its features", lambda: around(KeepsFeatures()), excuse="warning"),
    Case("few prototypes", lambda: Prototypes(5)),
    Case("as many prototypes as rows of two variants", lambda: Prototypes(2 * ROWS)),
    Case("group means", lambda: nn.Sequential(GroupMeans(), nn.Linear(WIDTH, 2))),
    Case("writes its input", lambda: nn.Sequential(WritesInput(), nn.Linear(2, 2)), excuse="warning"),
    Case("pre-hook that makes the weight", lambda: around(PreHook())),
    Case("hook that mixes rows", lambda: around(MixingHook())),
    Case("frozen statistics and dropout", lambda: around(FrozenStatistics())),
    Case("weights as output", WeightAsOutput),
    *(
        Case(objective.__name__, mlp, objective=objective)
        for objective in (
            *(penalised, functional_weights, after_a_step, relative_to_the_batch, by_row_number),
            *(hardest_rows, contrastive, stopped),
        )
    ),
]
