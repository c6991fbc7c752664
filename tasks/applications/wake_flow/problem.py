"""`WakeFlow`: a corrector of a coarse solver, its reference flows, and its evaluation and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from simulators.wake_flow.box import WakeFlow as Solver
from simulators.wake_flow.geometry import Channel
from tasks.applications.wake_flow import data, evaluation, rollout, trajectories
from tasks.applications.wake_flow.config import IN_LOOP, PRESETS, Config, family_of
from tasks.applications.wake_flow.data import Pairs, WakeData
from tasks.applications.wake_flow.looks import LOOKS
from tasks.applications.wake_flow.methods import METHODS, variant
from tasks.applications.wake_flow.networks import Corrector, Scales, layers
from tasks.folder.run import Run
from tasks.problem.data import Data
from tasks.problem.method import Method
from tasks.problem.problem import Problem
from tasks.problem.trained import Trained
from tasks.workers import group
from zo.estimators import Key

if TYPE_CHECKING:
    from tasks.report.findings import Findings
    from tasks.report.html_report import Block


class WakeFlow(Problem):
    """A network corrects a coarse solver of the wake behind a cylinder as it runs.

    Compared are the solver alone (SRC), a network trained without the solver in the loop (NON), and in the
    loop: with learned tangents of the solver (TAN-SOL), its own derivative (FO-SOL), or values of the whole
    loss alone (ZO-SOL).
    """

    Config = Config
    presets = PRESETS
    methods = METHODS
    looks = LOOKS
    units: ClassVar = {
        **dict.fromkeys(("MAE", "MAE at the last step", "MAE in the wake", "MAE extrapolated"), "U"),
        "extrapolated": "",  # which flows are; not what "MAE extrapolated" should have been called
    }
    higher_is_better = False
    dimensions = evaluation.DIMENSIONS

    @classmethod
    def variant(cls, name: str) -> Method | None:
        """A method in the loop with a budget of solver rows of its own."""
        return variant(name)

    @cached_property
    def box(self) -> Any:
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
        with self.making_data():
            return self.box(*data.before(self.flows.train))

    def answers(self) -> Mapping[str, tuple[Sequence[Tensor], Tensor]]:
        """The solver steps that NON's pairs are made from."""
        return {"box": (data.before(self.flows.train), self.stepped)}

    @cached_property
    def scales(self) -> Scales:
        """The scales that normalise the networks' inputs and outputs."""
        return data.scales(self.flows.train, self.pairs)

    @cached_property
    def data(self) -> Data:
        """Windows of the training flows."""
        return Data(lambda seed, step: self.windows(seed, step, self.config.batch))

    def windows(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """The training windows of a step: frames `(count, unroll + 1, 2, height, width)`, Re `(count,)`."""
        return self.flows.train.windows(Key(seed, step), count, self.config.unroll)

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

    def validate(self, network: nn.Module) -> float:
        """The error of rollouts on validation flows; NaN where one blew up: such weights are never chosen."""
        config, flows = self.config, self.flows.validation
        errors = rollout.rollout_errors(network, self.box, flows, config.validation_starts, config.horizon)
        return errors.mean().item()

    def evaluate(self, network: nn.Module) -> Mapping[str, Any]:
        """The error of rollouts on test flows, the flow's own figures, and all that was measured."""
        measured = self.yardstick.measured(network, self.box)
        return {**evaluation.figures(measured), **measured}

    @cached_property
    def yardstick(self) -> evaluation.Yardstick:
        """The reference and the solver alone, to which all methods are compared."""
        return evaluation.Yardstick(self.config, self.flows)

    def coordinates(self) -> Mapping[str, Any]:
        """The middles of cells, in the solver's units of length; the cylinder's diameter is 20."""
        channel = Channel(self.config.width)
        return {
            "x": channel.cell * (np.arange(channel.width) + 0.5),
            "y": channel.cell * (np.arange(channel.height) + 0.5),
        }

    def so_far(
        self,
        run: Run,
        seed: int,
        trained: Mapping[str, Trained],
        fields: Mapping[str, Mapping[str, Any]],
        last: bool,
    ) -> None:
        """A first picture after the first method in the loop; trajectories, where they are asked for."""
        if group.rank() > 0:
            return
        config, latest = self.config, list(trained)[-1]
        in_loop = [name for name in trained if family_of(name)[0] in IN_LOOP]
        if seed == run.seeds[0] and in_loop == [latest]:
            from tasks.applications.wake_flow import flow_pictures
            from tasks.report.pictures import own_settings, palette

            path = run.path / "first.png"
            with own_settings(), palette(self.looks):  # as in the report
                flow_pictures.wakes(evaluation.tracks(fields), config, path, list(trained))
            self.progress.say(f"First picture, of {', '.join(trained)}: {path}")
        if config.trajectories and last:
            networks = {name: of_method.network for name, of_method in trained.items()}
            path = run.path / f"trajectories-seed-{seed}.h5"
            trajectories.write(path, config, self.flows, self.solver, networks)

    def report(self, findings: Findings) -> Sequence[Block]:
        """Report the outcome in words, the wakes, the errors and the flow, for seeds with an evaluation."""
        from tasks.applications.wake_flow import report

        tracks = {seed: evaluation.tracks(fields) for seed, fields in findings.fields.items() if fields}
        if not tracks:
            return ()
        for seed, of_seed in tracks.items():
            evaluation.write(of_seed, self.config.dt, findings.run.path / f"evaluation-seed-{seed}.h5")
        return report.blocks(findings.run, findings.result, self.config, tracks)
