"""Replays draw rows anew: refused where it matters where a row stands in its batch, and nowhere else."""

from __future__ import annotations

import copy
import warnings
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn import functional

import zo
from blackbox import ArraySpec
from tests.gpu.pretended import PretendedGPU
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import ModelTangent

ROWS = 8
X = ArraySpec("x", (3,))


def answer(x):
    return torch.stack([x[:, 0].sin() + x[:, 1], x[:, 1].tanh() * x[:, 2], x[:, 2] - 0.3 * x[:, 0]], 1)


class Network(nn.Module):
    """Two layers with something between them."""

    def __init__(self, middle=lambda h: h, drawn=None, layer=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.middle, self.drawn = middle, drawn
        self.layer = layer

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = self.middle(h) if self.layer is None else self.middle(self, h)
        return self.last(h if self.drawn is None else self.drawn(h))


DRAWN = {
    "nothing drawn": None,
    "dropout": nn.Dropout(0.2),
    "functional dropout": lambda h: functional.dropout(h, 0.2),
    "noise": lambda h: h + 0.1 * torch.randn_like(h),
    "rows dropped": lambda h: h * (torch.rand(len(h), 1, dtype=h.dtype) < 0.8),
}
QUICK = ("nothing drawn", "dropout", "noise")
DRAWS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DRAWN]


def batch_of(seed: int, rows: int = ROWS):
    return weights(rows, 4, seed=seed), weights(rows, 3, seed=100 + seed)


def plain(network, batch, box):
    return (box(network(batch[0])) - batch[1]).square().mean(dim=1)


def gradient_of(network, objective=plain, **settings):
    box = FromTorch(answer, (X,), (X,))
    settings = {"tangent": ModelTangent(answer), "replays": 3, **settings}
    return zo.TangentGradient(network, lambda n, batch: objective(n, batch, box), boxes=[box], **settings)


def replayed(network):
    """Two steps, with a replay behind each."""
    gradient = gradient_of(network)
    gradient.replays()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(2):
            optimizer.zero_grad()
            gradient.backward(batch_of(seed))
            optimizer.step()
            optimizer.zero_grad()
            gradient.replay()
            optimizer.step()
    return gradient


def assert_close_to(network, true):
    gradients = [weight.grad for weight in network.parameters()]
    torch.testing.assert_close(gradients, list(true), rtol=1e-9, atol=1e-12)


RING = torch.eye(ROWS, dtype=torch.float64)
RING = RING / 2 + RING.roll(1, 0) / 3 + RING.roll(-1, 0) / 6  # each node has two neighbours
BESIDE, SHARES = weights(ROWS, 3, seed=7), torch.linspace(0.1, 3, ROWS, dtype=torch.float64)


def time_first(network, h):
    return network.layer(h[:, None].expand(-1, len(h), -1))[0][-1]  # (time, rows, channels), as many of both


BY_PLACE = {
    "targets beside the batch": (Network, lambda n, b, box: plain(n, (b[0], BESIDE), box)),
    "weights beside the batch": (Network, lambda n, b, box: plain(n, b, box) * SHARES),
    "neighbours are compared": (
        Network,
        lambda n, b, box: plain(n, b, box) + (n(b[0]) - n(b[0]).roll(1, 0)).square().mean(1),
    ),
    "all are compared with the first": (
        Network,
        lambda n, b, box: plain(n, b, box) + (b[0] - b[0][:1]).abs().mean(1),
    ),
    "a graph beside the batch": (
        Network,
        lambda n, b, box: (box(RING @ n(b[0])) - b[1]).square().mean(1),
    ),
    "nodes of a graph as rows": (lambda **kw: Network(lambda h: RING @ h, **kw), plain),
    "a time axis first": (
        lambda **kw: Network(time_first, layer=nn.LSTM(6, 6).double(), **kw),
        plain,
    ),
    "a convolution over rows": (
        lambda **kw: Network(
            lambda network, h: network.layer(h.T[None])[0].T,
            layer=nn.Conv1d(6, 6, 3, padding=1).double(),
            **kw,
        ),
        plain,
    ),
    "sums over the rows before": (lambda **kw: Network(lambda h: h.cumsum(0), **kw), plain),
    "a number of its own for each place": (
        lambda **kw: Network(lambda h: h + SHARES[: len(h), None], **kw),
        plain,
    ),
    "a norm over half of the rows": (
        lambda **kw: Network(lambda h: torch.cat([part - part.mean(0) for part in h.chunk(2)]), **kw),
        plain,
    ),
}


@pytest.mark.quick_cases(13)
@pytest.mark.parametrize("drawn", DRAWS)
@pytest.mark.parametrize("kind", BY_PLACE)
def test_what_goes_by_the_place_of_a_row_is_not_replayed_also_where_numbers_are_drawn(kind, drawn):
    make, objective = BY_PLACE[kind]
    network = make(drawn=DRAWN[drawn])
    gradient = gradient_of(network, objective)
    gradient.backward(batch_of(0))
    gradient.replays()
    before = [weight.grad.clone() for weight in network.parameters()]
    state, drawing = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with pytest.raises(
        zo.errors.TangentError, match=r"rows to keep (its loss|what it asks of .* in call 1) where"
    ):
        gradient.replay()
    torch.testing.assert_close([weight.grad for weight in network.parameters()], before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), drawing) and not gradient.counts.replays
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def half(function):
    return lambda h: 0.7 * h + 0.3 * function(h)


class Normed(nn.Module):
    """A running mean that is taken off in training, too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))
        self.features = None

    def forward(self, h):
        self.mean.lerp_(h.detach().mean(0), 0.1)
        self.features = h  # kept for whoever asks, as hooks do
        return h - self.mean


class InSingle(nn.Module):
    """A batch norm in float32 in a network of float64."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, h):
        return self.norm(h.float()).double()


def narrow(h):
    with torch.autocast("cpu", torch.bfloat16):
        return functional.linear(h.float(), torch.eye(6)).double()


def spectral():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6).double())


def attention(h):
    q = h.view(-1, 1, 2, 3)
    return functional.scaled_dot_product_attention(q, q, q, dropout_p=0.2).flatten(1)


ALIKE = {
    **DRAWN,
    "batch norm": nn.BatchNorm1d(6).double(),
    "batch norm, all steps": nn.BatchNorm1d(6, momentum=None).double(),
    "batch norm in float32": InSingle(),
    "in 16 bits": narrow,
    "a running mean, features kept": Normed(),
    "spectral norm": spectral(),
    "attention over rows": lambda h: (h @ h.T).softmax(1) @ h,
    "attention with dropout": attention,
    "several layers with dropout": lambda h: LAYERS(h.view(-1, 2, 3))[0].flatten(1),
    "mean of rows": lambda h: h - h.mean(0),
    "median of rows": lambda h: h - h.median(0).values,
    "pairs of rows mixed": half(lambda h: h[torch.randperm(len(h))]),
    "other rows against it": half(lambda h: h[torch.randint(0, len(h), (len(h),))]),
    "times of diffusion": lambda h: h * torch.randint(1, 100, (len(h), 1)) / 100,
    "Gumbel": lambda h: functional.gumbel_softmax(h, hard=True),
    "slopes drawn": lambda h: functional.rrelu(h, training=True),
    "alpha dropout": lambda h: functional.feature_alpha_dropout(h, 0.3, True),
    "drawn by chances": lambda h: h * torch.bernoulli(h.detach().sigmoid()),
    "features in another order": lambda h: h[:, torch.randperm(6)],
}
LAYERS = nn.LSTM(3, 3, 2, dropout=0.3, batch_first=True).double()


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("kind", ALIKE)
def test_what_treats_rows_alike_is_replayed_and_left_to_its_draws(kind):
    middle = ALIKE[kind]
    network = Network() if middle is None else Network(middle)
    gradient = replayed(network)
    assert gradient.counts.replays == 2


@pytest.mark.parametrize("kind", ["batch norm", "attention over rows", "mean of rows", "nothing drawn"])
def test_all_rows_of_a_window_replayed_are_autograd_s_gradient_wherever_the_weights_are(kind):
    middle = ALIKE[kind]
    network = Network() if middle is None else Network(copy.deepcopy(middle))
    gradient = gradient_of(network)
    gradient.backward(batch_of(0))
    gradient.replays()
    with torch.no_grad():
        for number, weight in enumerate(network.parameters()):
            weight += 0.2 * weights(*weight.shape, seed=number)
    network.zero_grad()
    gradient.replay()
    twin = copy.deepcopy(network)
    true = torch.autograd.grad(plain(twin, batch_of(0), answer).mean(), list(twin.parameters()))
    torch.testing.assert_close(
        [weight.grad for weight in network.parameters()], list(true), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("rows", "middle"), [(33, lambda h: h - h.mean(0)), (2, lambda h: (h @ h.T).softmax(1) @ h)]
)
def test_a_little_of_all_rows_is_no_other_order(rows, middle):
    """Of a state that goes on the network changes little, and one row little of that."""
    box = FromTorch(torch.sin, (ArraySpec("u", (96,)),), (ArraySpec("u", (96,)),))
    for seed in range(5):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(96, 16), Between(middle), nn.Dropout(0.1), nn.Linear(16, 96))
        gradient = zo.TangentGradient(
            network,
            lambda n, state: box(state + 0.1 * n(state)).square().mean(1),
            boxes=[box],
            tangent=ModelTangent(torch.sin),
        )
        gradient.backward(torch.randn(rows, 96))
        gradient.replays()
        gradient.replay()
        assert gradient.counts.replays == 1


class Between(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_state_in_a_compiled_script_is_seen():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()
            self.register_buffer("h", torch.zeros(ROWS, 3, dtype=torch.float64))

        def forward(self, x):
            h = torch.tanh(self.layer(x) + self.h.clone())
            self.h.copy_(h.detach())
            return h

    gradient = gradient_of(torch.jit.script(Scripted()))
    gradient.backward(batch_of(0))
    gradient.replays()
    with pytest.raises(zo.errors.TangentError, match=r"\.h, which holds such rows"):
        gradient.replay()


def test_weights_that_begin_at_zero_hide_nothing_for_long():
    """A layer of zeros gives each row the same; what was seen at the first replay is looked at again."""
    network = Network(lambda h: RING @ h)
    for weight in network.last.parameters():
        nn.init.zeros_(weight)
    gradient = gradient_of(network)
    gradient.replays()
    gradient.backward(batch_of(0))
    gradient.replay()
    with torch.no_grad():
        network.last.weight += weights(3, 6)
    gradient.backward(batch_of(1))
    with pytest.raises(zo.errors.TangentError, match="rows to keep what it asks of"):
        gradient.replay()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "kind", ["targets beside the batch", "nodes of a graph as rows", "a convolution over rows"]
)
@pytest.mark.parametrize("drawn", [False, True])
def test_on_a_gpu_it_is_refused_too(kind, drawn):
    make, objective = BY_PLACE[kind]
    with PretendedGPU() as gpu, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = gpu.network(make(drawn=nn.Dropout(0.2) if drawn else None).float())
        beside = {id(own): gpu.tensor(own.float()) for own in (RING, BESIDE)}
        batch = tuple(gpu.tensor(part.float()) for part in batch_of(0))
        ring, targets = beside.values()
        if kind == "nodes of a graph as rows":
            network.middle = lambda h: ring @ h
        if kind == "targets beside the batch":
            objective = lambda n, b, box: plain(n, (b[0], targets), box)  # noqa: E731
        gradient = gradient_of(network, objective)
        gradient.backward(batch)
        gradient.replays()
        with pytest.raises(zo.errors.TangentError, match=r"rows to keep (its loss|what it asks of)"):
            gradient.replay()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("kind", ["nothing drawn", "dropout", "batch norm", "noise", "attention over rows"])
def test_on_a_gpu_the_right_is_replayed(kind):
    with PretendedGPU() as gpu, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        middle = ALIKE[kind]
        network = Network() if middle is None else Network(copy.deepcopy(middle))
        gradient = gradient_of(gpu.network(network.float()))
        gradient.backward(tuple(gpu.tensor(part.float()) for part in batch_of(0)))
        gradient.replays()
        gradient.replay()
        assert gradient.counts.replays == 1


@pytest.mark.parametrize("keep", [lambda drawn: drawn < 0.2, lambda drawn: drawn > 0.6])
def test_rows_that_are_dropped_at_the_first_look_are_seen_at_the_next(keep):
    """All of them are, where one number is drawn for all: what is done to them shows at another number."""

    def dropped(h):
        return h * keep(torch.rand(len(h), 1, dtype=h.dtype))

    gradient = gradient_of(BY_PLACE["nodes of a graph as rows"][0](drawn=dropped))
    gradient.replays()
    gradient.backward(batch_of(0))
    with pytest.raises(zo.errors.TangentError, match="rows to keep what it asks of"):
        for _ in range(20):
            gradient.replay()


# State over batches


class Carries(nn.Module):
    """A recurrent network whose state goes on from batch to batch."""

    def __init__(self, how="buffer", detach=True, rows=ROWS):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.back = nn.Linear(4, 6).double(), nn.Linear(6, 6).double()
        self.out = nn.Linear(6, 3).double()
        self.how, self.detach = how, detach
        start = torch.zeros(rows, 6, dtype=torch.float64)
        if how == "buffer":
            self.register_buffer("h", start, persistent=False)
        elif how == "written":
            self.register_buffer("h", start)
        else:
            self.h = {
                "attribute": start,
                "pair": (start, start),
                "dict": {"v": start},
                "deque": deque([start], 1),
            }[how]

    def state(self):
        if self.how in ("pair", "deque"):
            return self.h[0]
        if self.how == "dict":
            return self.h["v"]
        return self.h.clone() if self.how == "written" else self.h

    def keep(self, h):
        h = h.detach() if self.detach else h
        if self.how == "written":
            self.h.copy_(h)
        elif self.how == "pair":
            self.h = (h, h)
        elif self.how == "dict":
            self.h["v"] = h
        elif self.how == "deque":
            self.h.append(h)
        else:
            self.h = h

    def forward(self, x):
        h = torch.tanh(self.inner(x) + self.back(self.state()))
        self.keep(h)
        return self.out(h)


class Queue(nn.Module):
    """Contrasts each row with the rows of batches before, as MoCo does; their order is of no account."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(4, 3).double()
        self.register_buffer("queue", weights(3 * ROWS, 3))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def state(self):
        return self.queue

    def forward(self, x):
        z = self.out(x)
        queue = self.queue.clone()
        near = (z @ queue.T).softmax(1) @ queue
        place = int(self.place)
        self.queue[place : place + len(z)] = z.detach()
        self.place[0] = (place + len(z)) % len(self.queue)
        return z - 0.3 * near


class Spiking(nn.Module):
    """A leaky neuron whose membrane goes on, as in snnTorch and spikingjelly; made with the first batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.membrane = None

    def state(self):
        return self.membrane

    def forward(self, x):
        current = self.inner(x)
        before = 0.0 if self.membrane is None else self.membrane
        potential = 0.8 * before + current
        spike = (potential > 0.2).double() + potential.sigmoid() - potential.sigmoid().detach()
        self.membrane = (potential - 0.2 * spike).detach()
        return self.out(spike)


STATEFUL = {
    **{
        how: lambda how=how: Carries(how)
        for how in ("buffer", "written", "attribute", "pair", "dict", "deque")
    },
    "not detached": lambda: Carries(detach=False),
    "queue": Queue,
    "spiking": Spiking,
    "inside": lambda: nn.Sequential(Carries(), nn.BatchNorm1d(3).double(), nn.Dropout(0.2)),
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_network_that_keeps_rows_of_its_batches_is_not_replayed_and_its_state_stays(kind):
    network = STATEFUL[kind]()
    gradient = gradient_of(network, parameters=None)
    gradient.backward(batch_of(0))
    gradient.replays()
    carrying = network[0] if kind == "inside" else network
    before = carrying.state().clone()
    with pytest.raises(zo.errors.TangentError, match=r"got \w+\.(h|queue|membrane), which holds .*replays=0"):
        gradient.replay()
    assert torch.equal(carrying.state(), before) and before.any()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_it_is_said_of_few_rows_as_well(rows):
    """Of which a replay has four and more, drawn of several batches."""
    network = Carries(rows=rows)
    gradient = gradient_of(network)
    gradient.replays()
    with pytest.raises(zo.errors.TangentError, match=r"Carries\.h, which holds such rows"):
        for seed in range(3):
            gradient.backward(batch_of(seed, rows))
            gradient.replay()


def test_state_that_goes_with_the_batch_is_replayed_as_the_error_says():
    """The gradient of all rows is autograd's with the states that they had."""

    class Step(Carries):
        def forward(self, x, h):
            return self.out(torch.tanh(self.inner(x) + self.back(h)))

    def objective(network, batch, box):
        x, y, h = batch
        return (box(network(x, h)) - y).square().mean(1)

    network = Step()
    gradient = gradient_of(network, objective)
    batches = [(*batch_of(seed), weights(ROWS, 6, seed=50 + seed)) for seed in range(2)]
    gradient.replays()
    for batch in batches:
        gradient.backward(batch)
    network.zero_grad()
    gradient.replay(rows=100)
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    true = torch.autograd.grad(objective(network, whole, answer).mean(), list(network.parameters()))
    torch.testing.assert_close(
        [weight.grad for weight in network.parameters()], list(true), rtol=1e-9, atol=1e-12
    )


def test_state_that_is_reset_for_each_batch_or_that_nobody_reads_is_replayed():
    class Reset(Carries):
        def forward(self, x):
            self.h = torch.zeros(len(x), 6, dtype=x.dtype)
            return super().forward(x)

    assert replayed(Reset()).counts.replays == 2
    assert replayed(Network(Normed())).counts.replays == 2


def test_a_graph_that_reaches_back_into_a_gradient_before_is_said():
    """Without a replay between them, too, in torch's place."""
    gradient = gradient_of(Carries(detach=False))
    gradient.backward(batch_of(0))
    with pytest.raises(zo.errors.TangentError, match=r"reaches back into a gradient before.*\.detach\(\)"):
        gradient.backward(batch_of(1))


def test_numbers_for_as_many_rows_as_a_batch_has_are_said_where_a_replay_has_others():
    """The same for each row, so that no order shows it."""
    network = Network()
    gradient = gradient_of(network, lambda n, b, box: plain(n, b, box) * torch.ones(ROWS, dtype=b[0].dtype))
    gradient.replays()
    gradient.backward(batch_of(0))
    gradient.replay()
    with pytest.raises(
        zo.errors.TangentError, match=r"for any number of rows, got RuntimeError.* of 3 instead of 8"
    ):
        gradient.replay(rows=3)
