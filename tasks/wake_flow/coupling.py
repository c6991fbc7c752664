"""`Coupling`: the coarse solver, the corrector, the reference flows, and the loss of both in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn

from simulators.wake_flow.box import WakeFlow as Solver
from tasks.problem import Data, Problem, Setup
from tasks.wake_flow import data, rollout
from tasks.wake_flow.config import Config
from tasks.wake_flow.data import Pairs, WakeData
from tasks.wake_flow.networks import Corrector, Scales, layers
from tasks.workers import group
from zo.estimators import Key


class Coupling(Problem):
    """What a corrector is trained on; how it is trained and judged stands above it."""

    Config = Config

    @cached_property
    def box(self) -> Any:  # noqa: ANN401 - in a run there are wrappers around it
        """The coarse solver; rows that it loses are NaN."""
        return self.solver

    @cached_property
    def solver(self) -> Solver:
        """The coarse solver itself; `solver.step` is differentiable."""
        return Solver(self.config.width, dt=self.config.dt, failures="keep")

    def reference(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """The solver's step, through which autograd passes."""
        return self.solver.step(velocity, reynolds)

    @cached_property
    def flows(self) -> WakeData:
        """The reference flows, from their file or made now."""
        counter = self.progress.counter("reference flows (PhiFlow)")
        flows = group.first_then_all(lambda: data.load(self.config, self.folder, counter))
        self.progress.say(f"{'Reused' if flows.reused else 'Wrote'} reference flows {flows.path}")
        return flows

    @cached_property
    def pairs(self) -> Pairs:
        """Every training frame after a solver step, beside the frame that should have come out."""
        return data.pairs(self.flows.train, self.stepped)

    @cached_property
    def stepped(self) -> Tensor:
        """Every training frame but the last of each flow, after a solver step."""
        return self.box(*data.before(self.flows.train))

    def answers(self) -> Mapping[str, tuple[Sequence[Tensor], Tensor]]:
        """The solver steps that NON's pairs are made from."""
        return {"box": (data.before(self.flows.train), self.stepped)}

    @cached_property
    def scales(self) -> Scales:
        """What normalises the networks' inputs and outputs."""
        return data.scales(self.flows.train, self.pairs)

    @cached_property
    def data(self) -> Data:
        """Windows of the training flows."""

        def train(seed: int, step: int) -> tuple[Tensor, Tensor]:
            config = self.config
            return self.flows.train.windows(Key(seed, step), config.batch, config.unroll)

        return Data(train)

    def network(self) -> Corrector:
        """The small corrector."""
        return self.corrector(large=False)

    def corrector(self, *, large: bool) -> Corrector:
        """The small or the large corrector, with weights drawn from torch's global generator."""
        config = self.config
        hidden, blocks = (config.large_channels, config.large_blocks) if large else (config.channels, 0)
        return Corrector(layers(hidden, blocks), self.scales)

    def objective(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The squared error of solver and network in turn over a window; see `rollout.window_loss`."""
        return self.loss_through(self.box)(network, batch)

    def loss_through(self, solver: rollout.Solver) -> rollout.Loss:
        """The objective with something else in the solver's place."""
        return rollout.window_loss(solver, self.scales.velocity)


def problem_of(setup: Setup) -> Coupling:
    """The setup's problem, by its own kind."""
    return cast(Coupling, setup.problem)
