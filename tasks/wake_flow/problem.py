"""`WakeFlow`: a coupling with its methods, rollouts, pictures and report, as a problem of `tasks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from simulators.wake_flow.geometry import Channel
from tasks.problem import Trained
from tasks.runs.folder import Run
from tasks.wake_flow import evaluation, rollout, trajectories
from tasks.wake_flow.config import IN_LOOP, PRESETS, family_of
from tasks.wake_flow.coupling import Coupling
from tasks.wake_flow.methods import METHODS
from tasks.workers import group

if TYPE_CHECKING:
    from tasks.report.findings import Findings
    from tasks.report.html_report import Block


class WakeFlow(Coupling):
    """A network corrects a coarse solver of the wake behind a cylinder as it runs.

    Compared are the solver alone (SRC), a network trained without the solver in the loop (NON), and in the
    loop: with learned tangents of the solver (TAN-SOL), its own derivative (FO-SOL), or values of the whole
    loss alone (ZO-SOL).
    """

    presets = PRESETS
    methods = METHODS
    units = dict.fromkeys(("MAE", "MAE at the last step", "MAE in the wake", "MAE extrapolated"), "U")
    dimensions = evaluation.DIMENSIONS

    def validate(self, network: nn.Module) -> float:
        """The error of rollouts on validation flows; NaN where one blew up: such weights are never chosen."""
        config, flows = self.config, self.flows.validation
        errors = rollout.rollout_errors(network, self.box, flows, config.validation_starts, config.horizon)
        return errors.mean().item()

    def evaluate(self, network: nn.Module) -> Mapping[str, Any]:
        """The error of rollouts on test flows, the flow's own figures, and all that was measured."""
        found = self.yardstick.measured(network, self.box)
        return {**evaluation.figures(found), **found}

    @cached_property
    def yardstick(self) -> evaluation.Yardstick:
        """The reference and the solver alone, to which all methods are compared."""
        return evaluation.Yardstick(self.config, self.flows)

    def coordinates(self) -> Mapping[str, Any]:
        """The middles of cells, in the solver's units of length, of which the cylinder's diameter is 20."""
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
    ) -> None:
        """A first picture after the first method in the loop; trajectories, where they are asked for."""
        if group.rank() > 0:
            return
        config, last = self.config, list(trained)[-1]
        in_loop = [name for name in trained if family_of(name)[0] in IN_LOOP]
        if seed == run.seeds[0] and in_loop == [last]:
            from tasks.wake_flow import pictures

            path = run.path / "first.png"
            pictures.wakes(evaluation.tracks(fields), config, path, list(trained))
            self.progress.say(f"First picture, of {', '.join(trained)}: {path}")
        if config.trajectories and tuple(trained) == config.methods:
            networks = {name: each.network for name, each in trained.items()}
            path = run.path / f"trajectories-seed-{seed}.h5"
            trajectories.write(path, config, self.flows, self.solver, networks)

    def report(self, found: Findings) -> Sequence[Block]:
        """What came out in words, the wakes, the errors, the flow itself, and the published experiment."""
        from tasks.wake_flow import report

        tracks = {seed: evaluation.tracks(fields) for seed, fields in found.fields.items()}
        for seed, each in tracks.items():
            evaluation.write(each, self.config.dt, found.run.path / f"evaluation-seed-{seed}.h5")
        return report.blocks(found.run, found.result, self.config, tracks)
