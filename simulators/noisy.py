"""`Noisy`: what a black box answers, plus Gaussian noise that a seed repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.checks import check_count, check_number
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.wrapper import Wrapper


class Noisy(Wrapper):
    """Add noise to every floating output, as a measurement or a stochastic solver would.

    Each call draws anew, from a generator for (seed, number of the call): equal inputs get different answers,
    a run from the start the same ones again. A resumed run goes on where `state_dict` was taken. Draws are
    made on the CPU; in float32 they are the float64 ones, rounded. Calls from several threads draw in the
    order in which they happen to come.

    Args:
        box: the black box to wrap.
        scale: standard deviation of the noise, in the output's units; 0 leaves the answers as they are.
        seed: the draws'.

    Raises:
        ConfigurationError: `scale` is below 0 or not finite, `seed` no whole number of 0 or more.
    """

    def __init__(self, box: BlackBoxFunction, scale: float, seed: int = 0) -> None:
        """Check, then wrap."""
        super().__init__(box)
        check_number("Noisy", "scale", scale, least=0)
        check_count("Noisy", "seed", seed, least=0)
        self.scale, self.seed, self.calls = float(scale), seed, 0
        self.deterministic = False

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """The inner box's answers with noise; failed rows stay as they are."""
        words = np.random.SeedSequence(self.seed, spawn_key=(self.calls,)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0]) >> 1)
        self.calls += 1
        outcome = self.box.run_rows(inputs)
        outcome.outputs = tuple(self._with_noise(output, generator) for output in outcome.outputs)
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: how many calls have drawn."""
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the call at which `state` was taken."""
        check_count("Noisy.load_state_dict", "calls", state["calls"], least=0)
        self.calls = state["calls"]

    def _with_noise(self, output: Tensor, generator: torch.Generator) -> Tensor:
        if not output.is_floating_point():
            return output
        noise = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        return output + (self.scale * noise).to(output)

    def __repr__(self) -> str:
        """With the noise."""
        return f"Noisy({self.box!r}, scale={self.scale:g}, seed={self.seed})"
