"""Programs drawn at random: fast evaluators against `loop`, and gradients around boxes against autograd.

What each layer does by itself, and some networks, others test. Here operations meet that nobody thought of
together. An error is an answer; a wrong gradient is none.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zo
from blackbox import ArraySpec
from tasks.methods import AutogradGradient
from tests.zo.row_boxes import FromTorch


def seeds(count: int) -> list[Any]:
    """The first five always; all with the slow tests."""
    return [pytest.param(seed, marks=[pytest.mark.slow] if seed > 4 else []) for seed in range(count)]


Op = Callable[["Program", Tensor, Tensor, int], Tensor]

C, H, W = 4, 5, 6  # of every tensor of a program behind its rows

LAYERS: dict[str, Callable[[random.Random], nn.Module]] = {
    "conv": lambda r: nn.Conv2d(C, C, 3, padding=1, groups=r.choice([1, 2, 4]), bias=r.random() < 0.5),
    "wrapped": lambda r: nn.Conv2d(C, C, 3, padding=1, padding_mode=r.choice(["circular", "replicate"])),
    "transposed": lambda r: nn.ConvTranspose2d(C, C, 3, padding=1),
    "linear": lambda r: nn.Linear(W, W),
    "batch norm": lambda r: nn.BatchNorm2d(C, momentum=r.choice([0.1, None]), affine=r.random() < 0.8),
    "no statistics": lambda r: nn.BatchNorm2d(C, track_running_stats=False),
    "norm": lambda r: r.choice([nn.GroupNorm(2, C), nn.LayerNorm([H, W]), nn.InstanceNorm2d(C, affine=True)]),
    "activation": lambda r: r.choice([nn.GELU(), nn.Softplus(), nn.PReLU(C), nn.Softmax(1), nn.Hardswish()]),
    "relu": lambda r: nn.ReLU(inplace=r.random() < 0.6),
    "dropout": lambda r: r.choice([nn.Dropout(0.3), nn.Dropout(0.3, inplace=True), nn.Dropout2d(0.3)]),
    "pool": lambda r: r.choice([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)]),
    "weight norm": lambda r: nn.utils.parametrizations.weight_norm(nn.Conv2d(C, C, 1)),
    "frozen": lambda r: nn.Conv2d(C, C, 1).requires_grad_(False),
}


def _written(a: Tensor, b: Tensor) -> Tensor:
    a = a.clone()
    a[:, 0] = b[:, 1]
    a[..., 0] *= 2
    return a


def _through_a_view(a: Tensor, b: Tensor) -> Tensor:
    a[:, 1].mul_(1.5)
    return a


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: a + b,
    "sum in place": lambda a, b: a.add_(b),
    "product": lambda a, b: a * b.tanh(),
    "joined": lambda a, b: torch.cat([a[:, :2], b[:, 2:]], 1),
    "split": lambda a, b: a.chunk(2, 1)[0].repeat(1, 2, 1, 1) * b,
    "rolled": lambda a, b: a.roll((1, 2), (1, 2)),
    "cumulated": lambda a, b: a.cumsum(-1) / W,
    "where": lambda a, b: torch.where(a > 0, a, b),
    "masked in place": lambda a, b: a.masked_fill_(b > 0.5, 0.1),
    "spectrum": lambda a, b: torch.fft.irfft(0.7 * torch.fft.rfft(a, dim=-1), n=W, dim=-1),
    "matrices": lambda a, b: ((a.flatten(2) @ b.flatten(2).mT / 5) @ a.flatten(2) / 5).view_as(a),
    "attention": lambda a, b: F.scaled_dot_product_attention(a, b, a),
    "gathered": lambda a, b: a.gather(-1, b.argsort(-1)),
    "written": _written,
    "through a view": _through_a_view,
    "less the mean of the rows": lambda a, b: a - a.mean(0, keepdim=True),
    "less a row": lambda a, b: a + 0.3 * b.flip(0),
    "scaled by all rows": lambda a, b: a / (a.abs().max() + 1),
    "noise": lambda a, b: a + 0.1 * torch.randn_like(a),
    "more by rows": lambda a, b: a * torch.arange(1.0, len(a) + 1).to(a).view(-1, 1, 1, 1),
}


class Program(nn.Module):
    """Operations one after another, each on what one or two before it gave."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.layers, self.own, self.code = nn.ModuleList(), nn.ParameterList(), []
        self.seen = nn.Buffer(torch.zeros(C, 1, 1))
        kinds = [*LAYERS, *FUNCTIONS, "again", "tied", "scale", "matrix", "average", "penalty"]
        for number in range(draw.randint(2, 7)):
            kind = draw.choice(kinds if number else ["conv", "linear", "wrapped", "scale", "matrix"])
            if kind == "again" and self.layers:
                self.code.append(("layer", draw.randrange(len(self.layers)), number))
                continue
            if kind in LAYERS or kind in ("tied", "penalty"):
                self.layers.append(LAYERS[kind](draw) if kind in LAYERS else self._tied())
                place = len(self.layers) - 1
                kind = kind if kind == "penalty" else "layer"
            else:
                place = draw.randint(max(0, number - 1), number)
            if kind in ("scale", "matrix"):
                self.own.append(nn.Parameter(torch.randn(C, 1, 1) if kind == "scale" else torch.randn(C, C)))
                place = len(self.own) - 1
            self.code.append((kind, place, draw.randint(0, number)))

    def _tied(self) -> nn.Module:
        new = nn.Conv2d(C, C, 1)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.weight.shape == new.weight.shape:
                new.weight = layer.weight
        return new

    def forward(self, x: Tensor) -> Tensor:
        pool = [x.clone()]
        for kind, place, other in self.code:
            a, b = pool[-1], pool[other]
            if kind == "layer":
                a = self.layers[place](a)
            elif kind == "penalty":
                a = self.layers[place](a) * self.layers[place].weight.square().sum()
            elif kind == "scale":
                a = a * self.own[place]
            elif kind == "matrix":
                a = torch.einsum("nchw,cd->ndhw", a, self.own[place]) / 2
            elif kind == "average":
                if self.training:
                    self.seen.mul_(0.9).add_(0.1 * a.detach().mean((0, 2, 3)).view(C, 1, 1))
                a = a - self.seen
            else:
                a = FUNCTIONS.get(kind, torch.add)(a, b)
            pool.append(a)
        return pool[-1].mean((2, 3))


def spread(output: Tensor, _: object) -> Tensor:
    return (output - torch.linspace(-1, 1, C).to(output)).square().mean(1)


ALONE = zo.OutputLoss(spread, inputs=lambda batch: batch, targets=lambda batch: None)


def trained(network: nn.Module, batches: list[Tensor], estimator, evaluator, chunk) -> list[Tensor]:
    """The gradients of some steps; between them the weights move, the same way whatever was found."""
    torch.manual_seed(5)  # of dropout
    network = copy.deepcopy(network)
    gradient = zo.LossGradient(network, ALONE, estimator, evaluator=evaluator, chunk=chunk, seed=1)
    grads = []
    for batch in batches:
        network.zero_grad()
        gradient.backward(batch)
        grads.append(torch.cat([tensor.grad.flatten() for tensor in gradient.parameters.tensors]))
        with torch.no_grad():
            for tensor in gradient.parameters.tensors:
                tensor -= 0.01 * torch.sin(100 * tensor).sign()
    return grads


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("seed", seeds(40))
def test_fast_evaluators_give_the_gradients_of_loop(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    network = Program(draw).double().train(draw.random() < 0.6)
    batches = [torch.randn(3, C, H, W).double() for _ in range(3)]
    mu, chunk = 1e-5, draw.choice([None, 5, 16])
    estimator = draw.choice([zo.CGE(mu=mu), zo.CGE(mu=mu, central=True), zo.RGE(mu=mu, q=6)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.errors.EvaluatorWarning)  # a slower one is right too
        truth = trained(network, batches, estimator, "loop", chunk)
        for evaluator in ("stacked", "difference"):
            for grad, expected in zip(
                trained(network, batches, estimator, evaluator, chunk), truth, strict=True
            ):
                # losses of order one, good to some 1e-15 over steps of 1e-5
                assert (grad - expected).norm() <= 1e-6 * expected.norm() + 1e-8


D = 4  # numbers of a state


def forced(s: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    return (s * (1 + p[..., None])).tanh() + 0.1 * s.flip(-1), s.square().sum(-1) * p


def steered(s: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return s.cos() * w + 0.1 * k.to(s)[..., None], (s > 0).sum(-1)


def advanced(x: Tensor) -> Tensor:
    return torch.sin(1.3 * x) + 0.2 * x.roll(1, -1) * x


TWINS = (advanced, forced, steered)
MODELS = (advanced, forced, lambda *arrays: steered(*arrays)[0])  # of the outputs that have a derivative
SPECS = (
    ((ArraySpec("x", (D,)),), (ArraySpec("y", (D,)),)),
    (
        (ArraySpec("s", (D,)), ArraySpec("p", (), differentiable=False)),
        (ArraySpec("s", (D,)), ArraySpec("drag", ())),
    ),
    (
        (ArraySpec("s", (D,)), ArraySpec("k", (), "int64"), ArraySpec("w", (D,))),
        (ArraySpec("s", (D,)), ArraySpec("n", (), "int64")),
    ),
)


def limited(function, limit):
    """The same, with rows that fail: NaN where the first input is large."""

    def call(*arrays):
        outputs = function(*arrays)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        bad = arrays[0].detach().abs().amax(-1) > limit
        outputs = tuple(
            torch.where(bad.view(bad.shape + (1,) * (t.ndim - bad.ndim)), torch.nan, t)
            if t.is_floating_point()
            else t
            for t in outputs
        )
        first, *more = outputs
        return outputs if more else first

    return call


class Corrector(nn.Module):
    """A network, a parameter that is a box's input itself, and a gain."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        middle = draw.choice([nn.Tanh(), nn.LayerNorm(6), nn.Dropout(0.3), nn.BatchNorm1d(6)])
        self.body = nn.Sequential(nn.Linear(D, 6), middle, nn.GELU(), nn.Linear(6, D))
        self.gain = nn.Linear(D, 1)
        self.theta = nn.Parameter(torch.rand(D) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


ACTS = (
    *("network", "box", "forced", "drag", "steered", "own input", "product", "written"),
    *("detached", "no graph", "two at once", "twice", "unused", "filled", "penalty", "unrolled", "narrow"),
    *("expanded", "gain", "rows turned", "some rows", "twice the rows"),
)
MIX = {"rows turned", "some rows", "twice the rows"}  # a failed row is another's then


def chain(code, boxes):
    """The objective that a list of acts is."""

    def objective(network: Any, batch: Any) -> Tensor:
        x, p, k = batch["x"], batch["p"], batch["k"]
        loss, pool = torch.zeros(len(x), dtype=x.dtype), [x]
        for act, weight, other in code:
            s, t = pool[-1], pool[int(other * len(pool))]
            y = s
            if act == "network":
                y = s + 0.3 * network(s)
            elif act == "box":
                y = boxes[0](s)
            elif act in ("forced", "drag"):
                y, drag = boxes[1](s, p)
                y, loss = (y * drag[:, None].tanh(), loss) if act == "drag" else (y, loss + 0.1 * drag)
            elif act in ("steered", "own input"):
                y, n = boxes[2](s, k, t if act == "steered" else network.theta.expand(len(x), -1))
                y = y * (1 + 0.1 * n[:, None])
            elif act == "product":
                y = s * t.tanh()
            elif act == "written":
                y = boxes[0](s).clone()
                y += t
                y[:, 0] *= 2
            elif act == "detached":
                y = boxes[0](s.detach()) + s
            elif act == "no graph":
                with torch.no_grad():
                    y = boxes[0](s)
                y = y * s
            elif act == "two at once":
                y = boxes[0](torch.stack([s, t], 1)).sum(1)
            elif act == "twice":
                y = boxes[0](s)
                y = y * y + y
            elif act == "unused":
                boxes[1](s, p)
            elif act == "filled":
                y = boxes[0](s)
                y = torch.where(y.isfinite(), y, s)
            elif act == "penalty":
                loss = loss + 0.01 * network.body[0].weight.square().sum() * x.mean(1)
            elif act == "unrolled":
                for _ in range(3):
                    y = boxes[0](y + 0.1 * network(y))
            elif act == "narrow":
                y = boxes[0](s.float()).to(s)
            elif act == "expanded":
                y = boxes[0](s.mean(1, keepdim=True).expand(-1, D))
            elif act == "gain":
                y = s * network.gain(x)
            elif act == "rows turned":
                y = boxes[0](s.flip(0)).flip(0) + 0.1 * s
            elif act == "some rows":
                y = torch.cat([boxes[0](s[:1]), s[1:]])
            elif act == "twice the rows":
                y = sum(boxes[0](torch.cat([s, t])).chunk(2))
            pool.append(3 * torch.tanh(y / 3))
            loss = loss + weight * (pool[-1] - 0.3).square().mean(1)
        return loss

    return objective


def around(kind: str, network: nn.Module, code, limit: float, batch) -> Tensor:
    """The gradient of a way around the boxes, in a copy of the network; an error passes."""
    boxes = [FromTorch(limited(twin, limit), *specs) for twin, specs in zip(TWINS, SPECS, strict=True)]
    objective, copied = chain(code, boxes), copy.deepcopy(network)
    exact = [zo.tangents.ModelTangent(model) for model in MODELS]
    torch.manual_seed(7)
    if kind == "differentiable":
        stands = [zo.differentiable(b, tangent=t, seed=1) for b, t in zip(boxes, exact, strict=True)]
        gradient = AutogradGradient(copied, objective, dict(zip(boxes, stands, strict=True)))
    else:
        gradient = zo.TangentGradient(copied, objective, boxes=boxes, tangent=exact)
    gradient.backward(batch)
    return flat(copied)


def flat(network: nn.Module) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()]
    )


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("seed", seeds(80))
@pytest.mark.filterwarnings("ignore::zo.TangentWarning", "ignore::zo.errors.ZeroGradientWarning")
def test_with_exact_tangents_gradients_around_boxes_are_those_of_autograd(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    limit = draw.choice([torch.inf, torch.inf, 1.9, 2.4])
    code = [(draw.choice(ACTS), draw.random(), draw.random()) for _ in range(draw.randint(2, 7))]
    network = Corrector(draw).double().train(draw.random() < 0.5)
    batch = {
        "x": torch.randn(6, D).double(), "p": torch.rand(6).double(), "k": torch.randint(0, 3, (6,))
    }  # fmt: skip
    objective, copied = chain(code, [limited(twin, limit) for twin in TWINS]), copy.deepcopy(network)
    torch.manual_seed(7)
    with torch.no_grad():
        alive = objective(copy.deepcopy(copied), batch).isfinite()
    acts = {act for act, _, _ in code}
    if not alive.any() or (not alive.all() and acts & MIX):
        return  # nothing to compare with
    # a row that survived in the place of each that failed: what is drawn for the others stays the same
    source = torch.where(alive, torch.arange(6), int(alive.nonzero()[0]))
    torch.manual_seed(7)
    losses = objective(copied, {name: rows[source] for name, rows in batch.items()})
    if not losses.isfinite().all() or not losses.requires_grad:
        return
    losses[alive].mean().backward()
    expected, tolerance = flat(copied), 1e-5 if "narrow" in acts else 1e-9
    drawn = network.training and any(isinstance(m, nn.Dropout | nn.BatchNorm1d) for m in network.modules())
    kinds = ["tangents"]
    kinds += [] if drawn and not alive.all() else ["differentiable"]  # leaves failed rows out, and draws anew
    for kind in kinds:
        try:
            grad = around(kind, network, code, limit, batch)
        except (zo.errors.TangentError, zo.errors.FailedQueriesError):
            continue  # said, not silently wrong
        assert (grad - expected).norm() <= tolerance * expected.norm() + 1e-12, kind
