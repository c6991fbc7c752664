"""The ways to train a problem's network, by name; and `Setup`, from which a method of one's own is made.

def trust_region(setup: tasks.Setup) -> tasks.Trained:
    gradient = zo.LossGradient(setup.network, setup.objective, MyEstimator(), seed=setup.seed)
    return setup.descend(gradient)

class Brusselator(tasks.Problem):
    methods = {"trust-region": tasks.Method("My own estimator.", trust_region)}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction
from blackbox.checks import nearest
from tasks.autograd import AutogradGradient, Stand, values_alone
from tasks.errors import ConfigurationError
from tasks.problem import Problem
from tasks.progress import Progress
from tasks.reference import compare, with_derivative
from tasks.runs.folder import Run, stage_name
from tasks.stage import Stateful, TrainingOutcome
from tasks.training import train
from tasks.workers import group
from zo.batches import count_rows
from zo.estimators import Parameters

MOST_ROWS = 3.5  # in first-order steps: what zo.TangentGradient keeps to by default


class Gradient(Protocol):
    """What fills `.grad`: of `zo`, `AutogradGradient`, or of one's own."""

    def backward(self, batch: Any, /) -> Tensor:  # noqa: ANN401
        """Add the gradient at a batch to `.grad`; the mean loss, detached."""
        ...

    def metrics(self) -> dict[str, float]:
        """Plain numbers for the log; `queries` and `dropped` are shown."""
        ...

    def state_dict(self) -> Any:  # noqa: ANN401
        """For the checkpoint."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:  # noqa: ANN401
        """From the checkpoint."""
        ...


@dataclass(frozen=True)
class Trained:
    """A network with the weights that validation chose, and what its training took.

    Attributes:
        network: The trained network.
        outcome: Of the stage: steps, seconds, validation, and the ledger of its optimiser steps.
        queries: Perturbed objectives (of `row-rge`, perturbed rows).
        dropped: Of those the ones that failed.
        figures: Further figures for the table.
    """

    network: nn.Module
    outcome: TrainingOutcome
    queries: int = 0
    dropped: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What the steps of a method ask for, before any is taken.

    Attributes:
        evaluations: Of the objective, of base and queries together.
        queries: Perturbed objectives among them.
        most: Evaluations where a method takes more when it has to; None for never.
    """

    evaluations: float = 0.0
    queries: int = 0
    most: float | None = None


@dataclass(frozen=True)
class Setup:
    """What a method has to train one network with: all methods of a seed are given the same.

    Use `dataclasses.replace(setup, steps=..., network=...)` to depart from it.

    Attributes:
        problem: What is trained, its boxes in the run's wrappers.
        run: Where metrics and checkpoints go.
        name: Of the method.
        seed: Of the run's seeds; all draws depend on it.
        network: With this seed's first weights; the method trains it in place.
        steps: Optimiser steps.
        batch: The training batch of a step, from 0.
        objective: `objective(network, batch) -> Tensor (rows,)`.
        learning_rate: At the start; it follows the configuration's schedule.
        validate: By which weights are chosen; None to keep the last.
        progress: What the user sees.
        trained: What the methods before have trained with this seed.
    """

    problem: Problem
    run: Run
    name: str
    seed: int
    network: nn.Module
    steps: int
    batch: Callable[[int], Any]
    objective: Callable[[nn.Module, Any], Tensor]
    learning_rate: float
    validate: Callable[[nn.Module], float | None] | None
    progress: Progress
    trained: Mapping[str, Trained]

    @property
    def config(self) -> Any:  # noqa: ANN401
        """The problem's settings."""
        return self.problem.config

    @property
    def boxes(self) -> list[BlackBoxFunction]:
        """The problem's boxes."""
        return list(self.problem.boxes.values())

    @property
    def stage(self) -> str:
        """The method's name in the run's metrics and checkpoints: "seed-0/sparse-cge"."""
        return stage_name(self.seed, self.name)

    @property
    def process_group(self) -> Any:  # noqa: ANN401
        """Of the processes that work on the run; None for one alone."""
        return group.process_group()

    def descend(
        self,
        gradient: Gradient,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        rate: Callable[[int], float] | None = None,
        update: Callable[[int], None] | None = None,
        judged: nn.Module | None = None,
        state: Mapping[str, Stateful] | None = None,
        figures: Callable[[], Mapping[str, float]] = dict,
        validate_every: int | None = None,
        surrogate: Gradient | None = None,
        begin: Callable[[], None] | None = None,
    ) -> Trained:
        """Take the steps that are left along a gradient: the loop of every method.

        Args:
            gradient: Of `network`'s weights.
            optimizer: Adam if None.
            rate: The learning rate of a step; the configuration's schedule if None.
            update: What step i does with `.grad`; `optimizer.step()` if None.
            judged: What is validated and kept, such as a running mean of the weights; `network` if None.
            state: Further things that steps change, for the checkpoint.
            figures: Further numbers for each step's line of metrics.
            validate_every: Optimiser steps between validations; the configuration's if None.
            surrogate: What fills `.grad` before `gradient` does, which corrects it (`zo.ControlVariate`,
                `zo.SurrogateFilled`).
            begin: What is done once before the first step, such as a check; not in a run that goes on.
        """
        config, network = self.config, self.network
        chosen = network if judged is None else judged
        adam = torch.optim.Adam(network.parameters()) if optimizer is None else optimizer
        each = self._rate if rate is None else rate
        validate = self.validate

        def step(i: int) -> dict[str, float]:
            for weights in adam.param_groups:
                weights["lr"] = each(i)
            adam.zero_grad()
            batch = self.batch(i)
            if surrogate is not None:
                surrogate.backward(batch)
            loss = gradient.backward(batch)
            if update is None:
                adam.step()
            else:
                update(i)
            told = {
                f"gradient_{name}": value for name, value in gradient.metrics().items() if name not in SHOWN
            }
            shown = {name: gradient.metrics().get(name, 0.0) for name in ("queries", "dropped")}
            if not self.boxes:  # one evaluation of the objective for each step, and one for each query
                shown["rows"] = int(i + 1 + shown["queries"]) * count_rows(batch)
            return {"loss": loss.item(), **shown, **told, **figures()}

        def judge() -> float:
            value = None if validate is None else validate(chosen)
            return math.nan if value is None else value

        kept = {"network": network, "optimizer": adam, "gradient": gradient, **(state or {})}
        if chosen is not network:
            kept["judged"] = chosen
        if surrogate is not None:
            kept["surrogate"] = surrogate
        outcome = train(
            self.run,
            self.stage,
            steps=self.steps,
            step=step,
            state=kept,
            model="network" if chosen is network else "judged",
            validate=None if validate is None else judge,
            validate_every=validate_every or config.validate_every,
            checkpoint_every=config.checkpoint_every,
            progress=self.progress,
            boxes=self.boxes,
            begin=begin,
        )
        counts = gradient.metrics()
        return Trained(chosen, outcome, int(counts.get("queries", 0)), int(counts.get("dropped", 0)))

    def _rate(self, step: int) -> float:
        if self.config.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


SHOWN = (
    "queries",
    "dropped",
    "steps",
    "rows",
)  # of a gradient's metrics: those that have a name of their own


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        about: What it is, in one sentence.
        train: Trains `setup.network`.
        cost: What so many steps ask for; None where that is not known beforehand.
        needs_reference: Whether it takes the problem's `reference`.
        needs_box: Whether it puts something in the place of the problem's boxes.
    """

    about: str
    train: Callable[[Setup], Trained]
    cost: Callable[[Problem, int], Cost] | None = None
    needs_reference: bool = False
    needs_box: bool = False


def none(setup: Setup) -> Trained:
    """The start: nothing is trained."""
    return Trained(setup.network, TrainingOutcome(setup.stage))


def no_gradient(setup: Setup) -> Trained:
    """Unrolled through the box, the gradient cut there (NOG): is the box's derivative needed at all?"""
    return setup.descend(_by_autograd(setup, values_alone))


def identity(setup: Setup) -> Trained:
    """The box's derivative is taken to be one; for boxes whose outputs have the shapes of their inputs."""
    return setup.descend(
        _by_autograd(setup, lambda box: zo.differentiable(box, tangent=zo.IdentityTangent(), seed=setup.seed))
    )


def row_rge(setup: Setup) -> Trained:
    """Autograd around the box, whose derivative each row estimates along random directions of its own."""
    config = setup.config
    rule = zo.RowRGE(config.input_mu, config.input_directions, central=config.central)
    return setup.descend(_by_autograd(setup, lambda box: zo.differentiable(box, rule, seed=setup.seed)))


def first_order(setup: Setup) -> Trained:
    """Autograd through the problem's `reference`, in the box's place; first their values are compared."""
    reference: Stand = getattr(setup.problem, "reference")  # noqa: B009 - optional, so the class has none
    boxes = setup.problem.boxes
    references = {
        box: reference if len(boxes) == 1 else partial(reference, name) for name, box in boxes.items()
    }
    stands = {box: with_derivative(box, stand) for box, stand in references.items()}
    return setup.descend(
        AutogradGradient(setup.network, setup.objective, stands),
        begin=lambda: compare(setup.network, setup.objective, setup.batch(0), references),
    )


def student(setup: Setup) -> Trained:
    """Autograd around a network that learns the box's values, from the rows of training alone."""

    def stand(box: BlackBoxFunction) -> Stand:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(setup.seed)
            network = student_network(box)
        return zo.differentiable(box, tangent=zo.StudentTangent(network, loss="squared"), seed=setup.seed)

    return setup.descend(_by_autograd(setup, stand))


def tangents(setup: Setup) -> Trained:
    """Autograd around a linear model of the box, learned from what it answers a few moved copies."""
    config = setup.config
    # without a chunk base and probes run together, also where there are several processes: the same bits
    shares = None if config.chunk is None else setup.process_group
    gradient = zo.TangentGradient(
        setup.network,
        setup.objective,
        boxes=setup.boxes,
        probes=config.probes,
        max_rows=config.max_rows,
        seed=setup.seed,
        chunk=config.chunk,
        process_group=shares,
    )
    return setup.descend(gradient)


def cge(setup: Setup) -> Trained:
    """Finite differences of the whole loss, one weight after another."""
    return setup.descend(loss_gradient(setup, _every(setup.problem, setup.network)))


def sparse_cge(setup: Setup) -> Trained:
    """Finite differences of the whole loss in some weights, drawn anew every step."""
    return setup.descend(loss_gradient(setup, _sparse(setup.problem, setup.network)))


def rge(setup: Setup) -> Trained:
    """Finite differences of the whole loss along random directions in all weights."""
    return setup.descend(loss_gradient(setup, _random(setup.problem, setup.network)))


def hybrid(setup: Setup) -> Trained:
    """Finite differences in some weights one by one, and along random directions in all others."""
    return setup.descend(loss_gradient(setup, _both(setup.problem, setup.network)))


def loss_gradient(
    setup: Setup, estimator: zo.estimators.Estimator[Any], evaluator: str = "auto"
) -> zo.LossGradient:
    """A `zo.LossGradient` with the run's settings."""
    return zo.LossGradient(
        setup.network,
        setup.objective,
        estimator,
        evaluator=evaluator,
        seed=setup.seed,
        chunk=setup.config.chunk,
        process_group=setup.process_group,
    )


def student_network(box: BlackBoxFunction, width: int = 128) -> nn.Module:
    """From a box's differentiable inputs to its outputs, for boxes of a few hundred numbers."""
    size_in = sum(math.prod(spec.shape) for spec in box.inputs if spec.differentiable)
    size_out = sum(math.prod(spec.shape) for spec in box.outputs)
    layers = (
        nn.Linear(size_in, width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, size_out),
    )
    shapes = [tuple(spec.shape) for spec in box.outputs]
    if len(shapes) > 1 or sum(spec.differentiable for spec in box.inputs) > 1:
        return nn.Sequential(*layers)
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, shapes[0] or (1,)))


def _by_autograd(setup: Setup, stand: Callable[[BlackBoxFunction], Stand]) -> AutogradGradient:
    return AutogradGradient(setup.network, setup.objective, {box: stand(box) for box in setup.boxes})


def _sparse(problem: Problem, network: nn.Module) -> zo.CGE:
    config, size = problem.config, Parameters(network).size
    return zo.CGE(config.mu, zo.RandomCoordinates(min(config.coordinates, size)), central=config.central)


def _every(problem: Problem, network: nn.Module) -> zo.CGE:
    return zo.CGE(problem.config.mu, central=problem.config.central)


def _random(problem: Problem, network: nn.Module) -> zo.RGE:
    config = problem.config
    return zo.RGE(config.mu, config.directions, central=config.central)


def _both(problem: Problem, network: nn.Module) -> zo.Hybrid:
    return zo.Hybrid(_sparse(problem, network), _random(problem, network))


def cost_of_queries(gradient: zo.LossGradient, steps: int) -> Cost:
    """Of a gradient of the whole loss, with the queries by which it is checked, which it may not need all."""
    queries = steps * gradient.queries() + gradient.most_checks(steps)
    return Cost(steps + queries, queries)


def _cost_of(estimator: Callable[[Problem, nn.Module], zo.estimators.Estimator[Any]]) -> Any:  # noqa: ANN401
    def cost(problem: Problem, steps: int) -> Cost:
        network = problem.network()
        gradient = zo.LossGradient(
            network, problem.objective, estimator(problem, network), chunk=problem.config.chunk
        )
        return cost_of_queries(gradient, steps)

    return cost


def _cost_of_probes(problem: Problem, steps: int) -> Cost:
    config = problem.config
    policy = zo.tangents.TrustPolicy()
    checks = sum(policy.checks(step) for step in range(steps))
    queries = steps * config.probes + checks
    least = steps + queries
    return Cost(least, queries, max(least, steps * (config.max_rows or MOST_ROWS)))


def _cost_of_rows(problem: Problem, steps: int) -> Cost:
    config = problem.config
    return Cost(steps * (1 + config.input_directions * (2 if config.central else 1)))


def _cost_of_reference(problem: Problem, steps: int) -> Cost:
    return Cost(steps + 1)  # one to compare


def _cost_of_base(problem: Problem, steps: int) -> Cost:
    return Cost(steps)


METHODS: dict[str, Method] = {
    "none": Method("The start: nothing is trained.", none, lambda problem, steps: Cost()),
    "no-gradient": Method(
        "Unrolled through the box, the gradient cut there.", no_gradient, _cost_of_base, needs_box=True
    ),
    "identity": Method("As if the box's derivative were one.", identity, _cost_of_base, needs_box=True),
    "tangents": Method(
        "Autograd around a linear model of the box, learned from probes.",
        tangents,
        _cost_of_probes,
        needs_box=True,
    ),
    "student": Method(
        "Autograd around a network that learns the box's values.", student, _cost_of_base, needs_box=True
    ),
    "sparse-cge": Method(
        "Finite differences in some weights, drawn anew every step.", sparse_cge, _cost_of(_sparse)
    ),
    "cge": Method("Finite differences in every weight.", cge, _cost_of(_every)),
    "rge": Method("Finite differences along random directions.", rge, _cost_of(_random)),
    "hybrid": Method("Some weights one by one, the others along random directions.", hybrid, _cost_of(_both)),
    "row-rge": Method(
        "Autograd around the box, differences at its inputs.", row_rge, _cost_of_rows, needs_box=True
    ),
    "first-order": Method(
        "Autograd through the problem's reference.",
        first_order,
        _cost_of_reference,
        needs_reference=True,
        needs_box=True,
    ),
}


def methods_of(problem: Problem | type[Problem]) -> dict[str, Method]:
    """All methods of a problem by name: its own first; not those that need a reference or box it has not."""
    shared = {
        name: method
        for name, method in METHODS.items()
        if not (method.needs_reference and not problem.has_reference())
        and not (method.needs_box and problem.has_no_box())
    }
    return {
        **problem.methods,
        **{name: method for name, method in shared.items() if name not in problem.methods},
    }


def chosen(problem: Problem) -> dict[str, Method]:
    """The methods that the configuration names, in its order.

    Raises:
        ConfigurationError: One is unknown, named twice, or needs a reference that the problem has not.
    """
    names = problem.config.methods
    known = {**METHODS, **problem.methods}  # what is known and not to be had is refused with its reason
    known |= {name: found for name in names if (found := problem.variant(name)) is not None}
    for place, name in enumerate(names):
        if name not in known:
            raise ConfigurationError(
                f"methods: expected methods of {problem.name()}, got {name!r}. {nearest(name, known)}"
            )
        if name in names[:place]:
            raise ConfigurationError(
                f"methods: expected every method once, got {name!r} twice. Leave one out."
            )
        if known[name].needs_box and not problem.boxes:
            raise ConfigurationError(
                f"methods: expected methods without a black box, of which {problem.name()} has none, got "
                f"{name!r}, which puts something in its place. Leave it out."
            )
        if known[name].needs_reference and not problem.has_reference():
            raise ConfigurationError(
                f"methods: expected {type(problem).__name__} to give reference(self, *inputs), the box "
                f"with a derivative, which {name} takes; it has none. Leave {name} out, or add it."
            )
    if not names:
        raise ConfigurationError(
            "methods: expected at least one method, got none. Name some after --methods."
        )
    return {name: known[name] for name in names}
