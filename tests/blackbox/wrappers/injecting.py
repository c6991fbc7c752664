"""A wrapper that makes a box as bad as real ones are: noise, delays and failures, by seeded draws."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from blackbox import BlackBoxFunction, Wrapper
from blackbox.failures import FailedRow, Failure, Outcome


class Injecting(Wrapper):
    """Adds noise to outputs, waits, and fails rows.

    Args:
        box: what answers.
        noise: standard deviation added to every output.
        delay: seconds that a row takes longer.
        failing: the share of rows that come back as failed, drawn anew for every attempt.
        seed: of the draws, in the order of the calls.
    """

    def __init__(
        self,
        box: BlackBoxFunction,
        *,
        noise: float = 0.0,
        delay: float = 0.0,
        failing: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        self.noise, self.delay, self.failing = noise, delay, failing
        self.deterministic = False
        self._generator = torch.Generator().manual_seed(seed)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        time.sleep(self.delay * len(inputs[0]))
        outcome = self.box.run_rows(inputs)
        drawn = torch.rand(len(inputs[0]), generator=self._generator)
        for row in torch.nonzero(drawn < self.failing).flatten().tolist():
            outcome.failed[row] = FailedRow(Failure.RAISED, RuntimeError("injected"))
        noise = [torch.randn(output.shape, generator=self._generator) for output in outcome.outputs]
        pairs = zip(outcome.outputs, noise, strict=True)
        outcome.outputs = tuple(output + (self.noise * each).to(output) for output, each in pairs)
        return outcome
