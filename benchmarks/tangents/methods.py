"""The methods by name: what gives the gradient, what takes the step, and how many steps there are.

Sources of those that have no class of their own here: `no-gradient` List et al. 2024 (arXiv 2402.12971);
`identity` the Euler gradient approximation of Ouala et al. 2023 (arXiv 2311.10665), who take the derivative
of a solver's step for the identity; `rge` Nesterov and Spokoiny 2017; `sparse-cge` Chen et al. 2024
(DeepZero), with its coordinates drawn anew in each step; `row-rge` the same random directions at the box's
inputs, row by row; `ni-gbms` Arisaka and Li 2024 (arXiv 2405.02952); `evolution-30` Qiu et al. 2026 (arXiv
2509.24372). The last two have first order's rows in all; what their choice of a rate takes is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import zo
from benchmarks.tangents import control_variate, evolution, rivals, surrogates
from benchmarks.tangents.problem import BenchmarkProblem
from zo.tangents import Limits
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.structure import is_grid

COORDINATES = 24  # of sparse CGE in a step
DIRECTIONS = 8  # of RGE in a step, and the population of EGGROLL
OFF = 141  # first word of the path of a key for draws
AT_THE_INPUT = 4  # directions of RGE at the box's inputs
BUDGET = 3.0  # rows of methods that need many evaluations a step, over first order's
TRIED = (0.1, 0.3, 1.0)  # factors on the problem's learning rate
SHORTER = 4  # how many times shorter the trainings are by which a scale is chosen
RAISED = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # rates of NI-GBMS, over the problem's: it has half as many steps
STRIDES = (10.0, 30.0, 100.0, 300.0)  # of an evolution strategy, over the problem's rate for Adam


class Gradient(Protocol):
    """What fills `.grad`."""

    def backward(self, batch: Any) -> Tensor:
        """Add the gradient of a batch to `.grad`, and return the loss."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        make: (problem, network, seed, scale) -> what fills `.grad`; the scale is one of `scales`.
        rows: of a step, over those of a first-order step. A method that takes more than `budget` has so many
            fewer steps that its rows in all are `budget` times first order's.
        scales: factors on the problem's learning rate, or what else `make` takes them for, of which the best
            on another seed is taken. Methods that use the box as first order does have its learning rate.
        optimizer: "adam"; "sgd" where `.grad` is the direction of the step.
    """

    make: Callable[[BenchmarkProblem, nn.Module, int, float], Gradient]
    rows: float = 1.0
    scales: tuple[float, ...] = (1.0,)
    optimizer: str = "adam"
    shorter: int = SHORTER
    budget: float = BUDGET

    def steps(self, problem: BenchmarkProblem) -> int:
        """How many steps a training has."""
        return max(2, round(problem.steps * min(1.0, self.budget / self.rows)))


class Around:
    """Autograd through an objective in which something differentiable takes the box's place.

    Rows whose answer is not finite go on as zeros, so that they bend no gradient; their losses are left out.

    Args:
        problem: the problem.
        network: that is trained.
        solver: what takes the box's place.

    Attributes:
        rows: that it has received.
    """

    def __init__(self, problem: BenchmarkProblem, network: nn.Module, solver: Callable[..., Any]) -> None:
        self.rows = 0
        self.network, self.solver = network, solver
        self.failed = torch.zeros((), dtype=torch.bool)
        self.objective = problem.objective(self._answer)

    def backward(self, batch: Any) -> Tensor:
        """Autograd of the mean loss of a batch, which it returns."""
        self.failed = torch.zeros((), dtype=torch.bool)
        losses = self.objective(self.network, batch)
        loss = losses[~self.failed.expand(len(losses))].mean()
        if loss.requires_grad:  # without the box's derivative nothing may be left
            loss.backward()
        return loss.detach()

    def _answer(self, *arrays: Tensor) -> Any:
        self.rows += len(arrays[0])
        answer = self.solver(*arrays)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        for output in outputs:
            self.failed = self.failed | ~output.detach().reshape(len(output), -1).isfinite().all(dim=1)
        finite = tuple(torch.where(output.isfinite(), output, 0.0) for output in outputs)
        return finite if isinstance(answer, tuple) else finite[0]


def first_order(problem: BenchmarkProblem, network: nn.Module) -> Around:
    """First order: autograd through the box's differentiable twin."""
    assert problem.exact is not None
    return Around(problem, network, problem.exact)


class Perturbed(Around):
    """First order with a gradient that is off by a hundredth of its length, in a random direction.

    How far its result moves says how much of a difference between two methods means anything there.
    """

    def __init__(self, problem: BenchmarkProblem, network: nn.Module, seed: int) -> None:
        assert problem.exact is not None
        super().__init__(problem, network, problem.exact)
        self.generator = zo.estimators.Key(seed).generator(OFF)

    def backward(self, batch: Any) -> Tensor:
        """Autograd of the mean loss of a batch, then the perturbation."""
        loss = super().backward(batch)
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        noise = [torch.randn(gradient.shape, generator=self.generator) for gradient in gradients]
        length, drawn = (
            torch.linalg.vector_norm(torch.stack([part.norm() for part in parts]))
            for parts in (gradients, noise)
        )
        for gradient, part in zip(gradients, noise, strict=True):
            gradient += 0.01 * length / drawn * part
        return loss


def no_gradient(problem: BenchmarkProblem, network: nn.Module) -> Around:
    """NOG of List et al. (2024, arXiv 2402.12971): unrolled, the box's outputs cut from the graph."""
    return Around(problem, network, lambda *arrays: problem.box(*(array.detach() for array in arrays)))


def tangent_gradient(
    problem: BenchmarkProblem,
    network: nn.Module,
    seed: int,
    tangent: zo.tangents.Tangent | None,
    limits: Limits = Limits(check_every=None),  # noqa: B008 - frozen
) -> zo.TangentGradient:
    """A tangent around the problem's box; without limits, no checks."""
    return zo.TangentGradient(
        network,
        problem.objective(problem.box),
        boxes=[problem.box],
        tangent=tangent,
        seed=seed,
        limits=limits,
    )


def tangent(make: Callable[[BenchmarkProblem, int], zo.tangents.Tangent]) -> Method:
    """A tangent by name."""

    def gradient(problem: BenchmarkProblem, network: nn.Module, seed: int, scale: float) -> Gradient:
        return tangent_gradient(problem, network, seed, make(problem, seed))

    return Method(gradient)


def chosen(problem: BenchmarkProblem, network: nn.Module, seed: int) -> Gradient:
    """The library's own choice with its checks."""
    return zo.TangentGradient(network, problem.objective(problem.box), boxes=[problem.box], seed=seed)


def whole_loss(estimator: Callable[[], zo.estimators.Estimator[Any]], queries: int, **more: Any) -> Method:
    """The gradient of the weights from values of the whole loss."""

    def gradient(problem: BenchmarkProblem, network: nn.Module, seed: int, scale: float) -> Gradient:
        objective = problem.objective(problem.box)
        made = estimator()  # one by one: what a stack's checks ask for is not the method's
        return zo.LossGradient(network, objective, made, seed=seed, evaluator="loop", max_dropped=0.5)

    return Method(gradient, rows=1 + queries, scales=TRIED, **more)


def row_rge(problem: BenchmarkProblem, network: nn.Module, seed: int) -> Gradient:
    """Random directions at the box's inputs, of a twentieth of the usual number there."""
    solver = zo.differentiable(problem.box, zo.box_gradient.RowRGE(mu=0.05, q=AT_THE_INPUT), seed=seed)
    return Around(problem, network, solver)


def ni_gbms(problem: BenchmarkProblem, network: nn.Module, seed: int) -> Gradient:
    """Forward gradients at the box's inputs, the library's own choice of a tangent as control variate."""
    model = AutoTangent(problem.box, seed=seed)
    return Around(problem, network, control_variate.ForwardGradients(problem.box, model, seed))


def evolved(part: float = 1.0) -> Method:
    """An evolution strategy, on a part of each batch; its rate is chosen in whole trainings."""

    def gradient(problem: BenchmarkProblem, network: nn.Module, seed: int, scale: float) -> Gradient:
        return evolution.Evolution(problem, network, seed, part)

    rows = part * evolution.POPULATION
    return Method(gradient, rows, STRIDES, optimizer="sgd", shorter=1, budget=1.0)


def emulator(problem: BenchmarkProblem, network: nn.Module, seed: int, online: bool) -> Gradient:
    """A network of this library, as Frezat et al. would use it: on grids a convolutional one."""
    both = problem.box.inputs, problem.box.outputs
    before, after = ([spec for spec in specs if spec.differentiable] for specs in both)
    model = (
        zo.tangents.GridTangent(seed=seed) if is_grid(before, after) else zo.tangents.MLPTangent(seed=seed)
    )
    return surrogates.Emulator(problem, network, seed, model, online)


METHODS: dict[str, Method] = {
    "first-order": Method(lambda problem, network, seed, scale: first_order(problem, network)),
    "first-order-perturbed": Method(lambda problem, network, seed, scale: Perturbed(problem, network, seed)),
    "no-gradient": Method(lambda problem, network, seed, scale: no_gradient(problem, network)),
    "identity": tangent(lambda problem, seed: zo.tangents.IdentityTangent()),
    "chosen": Method(lambda problem, network, seed, scale: chosen(problem, network, seed)),
    "grid": tangent(lambda problem, seed: zo.tangents.GridTangent(seed=seed)),
    "grid-without-map": tangent(lambda problem, seed: zo.tangents.GridTangent(output_map=False, seed=seed)),
    "stencil": tangent(lambda problem, seed: zo.tangents.StencilTangent()),
    "mlp": tangent(lambda problem, seed: zo.tangents.MLPTangent(seed=seed)),
    "emulator-frozen": Method(
        lambda problem, network, seed, scale: emulator(problem, network, seed, online=False)
    ),
    "emulator-online": Method(
        lambda problem, network, seed, scale: emulator(problem, network, seed, online=True)
    ),
    "astralora": Method(
        lambda problem, network, seed, scale: tangent_gradient(
            problem, network, seed, surrogates.Astralora(problem.box, seed)
        )
    ),
    "row-rge": Method(
        lambda problem, network, seed, scale: row_rge(problem, network, seed), rows=1 + AT_THE_INPUT
    ),
    "sparse-cge": whole_loss(
        lambda: zo.CGE(mu=1e-3, sparsity=zo.RandomCoordinates(COORDINATES)), COORDINATES
    ),
    "rge": whole_loss(lambda: zo.RGE(mu=1e-3, q=DIRECTIONS), DIRECTIONS),
    "zo-muon": whole_loss(rivals.ZOMuon, rivals.ZOMuon().q, optimizer="sgd"),
    "eggroll": whole_loss(lambda: rivals.Eggroll(pairs=DIRECTIONS // 2), DIRECTIONS),
    "ni-gbms": Method(
        lambda problem, network, seed, scale: ni_gbms(problem, network, seed),
        rows=15 / 8,  # the first of eight calls depends on no weight
        scales=RAISED,
        shorter=1,
        budget=1.0,
    ),
    "evolution-30": evolved(),
    "evolution-30-quarter": evolved(part=0.25),
    "equation": tangent(lambda problem, seed: zo.tangents.EquationTangent()),
}


def fitting(problem: BenchmarkProblem) -> tuple[str, ...]:
    """The methods that can be used for a problem."""
    left_out = {"first-order", "first-order-perturbed"} if problem.exact is None else set[str]()
    states = [
        [s.shape for s in specs if s.differentiable] for specs in (problem.box.inputs, problem.box.outputs)
    ]
    if states[0] != states[1]:
        left_out.add("identity")
    outputs = [spec for spec in problem.box.outputs if spec.differentiable]
    if not is_grid([spec for spec in problem.box.inputs if spec.differentiable], outputs):
        left_out |= {"grid", "grid-without-map", "stencil", "equation"}
    return tuple(name for name in METHODS if name not in left_out)
