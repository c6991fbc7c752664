"""A network makes Gymnasium's Hopper hop forwards: an environment that is reset and stepped, and never set.

`blackbox.adapters.Gymnasium` makes a function of it: a row carries the seed and the actions since the reset.
The reward counts how far a step went, and that the hopper is still up; when it has fallen it is zero.
"""

from dataclasses import dataclass

import numpy as np
import torch

import tasks
from blackbox.adapters import Gymnasium
from tasks.configuration import Count, NotNegative, Positive

TEST, VALIDATION = 10_000_000, 20_000_000  # seeds from here on


class Hopping(tasks.Problem):
    """A network moves the three joints of Gymnasium's Hopper so that it gets forwards without falling."""

    units = {"reward": "of an episode", "still up": "%"}
    higher_is_better = True

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "tangents", "cma-es")
        steps: Count = 60
        batch: Count = 8
        learning_rate: Positive = 0.003
        calls: Count = 60
        """Steps of an episode, each of .008 s."""
        noise: NotNegative = 0.2
        """Standard deviation of what is added to actions in training, so that answers show what they do."""
        test: Count = 32
        """Episodes in the test."""

    presets = {
        "small": Config(),
        "large": Config(steps=150, calls=125),
        "ci": Config(steps=2, batch=2, calls=4, test=2),
    }

    def box(self):
        self.session = Gymnasium("Hopper-v5", steps=self.config.calls, live=1024)
        return self.session

    def network(self):
        return torch.nn.Sequential(torch.nn.Linear(11, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))

    def data(self):  # seeds; training, validation and test have none in common
        def seeds(first, rows):
            return torch.arange(first, first + rows)

        config = self.config
        validation, test = seeds(VALIDATION, 8), seeds(TEST, config.test)
        return tasks.Data(
            lambda seed, step: seeds((1000 * seed + step) * config.batch, config.batch), validation, test
        )

    def rewards(self, network, seeds, noise):
        """Of each step, (calls, rows)."""
        box = self.box  # first: it makes the session
        observation, history = self.session.reset(seeds)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        rewards = []
        for _ in range(self.config.calls):
            shaken = torch.stack([torch.randn(3, generator=generator) for generator in generators])
            action = (network(observation.float() / 2) + noise * shaken).tanh()
            observation, reward, *_, history = box(observation, action, history)
            rewards.append(reward)
        return torch.stack(rewards)

    def objective(self, network, seeds):
        return -self.rewards(network, seeds, self.config.noise).mean(dim=0)

    def evaluate(self, network):
        with torch.no_grad():
            rewards = self.rewards(network, self.data.test, 0.0)
        return {
            "reward": rewards.sum(dim=0).mean().item(),
            "still up": 100 * (rewards[-1] != 0).double().mean().item(),
            "rewards": rewards[:, :8],
        }

    def pictures(self, fields):
        def summed(axes, arrays):
            axes.plot(np.cumsum(arrays["rewards"], axis=0), color="tab:blue", linewidth=0.8)

        highest = 1.05 * max(np.cumsum(arrays["rewards"], axis=0).max() for arrays in fields.values())
        shown = tasks.panels(fields, summed, xlabel="step", ylabel="reward so far", ylim=(0, highest))
        return {"Eight test episodes: a line that ends in a level is a hopper that has fallen.": shown}
