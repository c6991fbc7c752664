"""Environments that are reset and stepped: learned tangents beside CMA-ES and PPO, by steps that they take.

    python -m benchmarks reinforcement --size ci       a step of each method; not among the results
    python -m benchmarks reinforcement --size small    both tables

Two environments. `Pendulum-v1` of Gymnasium has to swing up in 200 steps. A cart on a rail, with drag that
grows with the square of its speed, has 20 steps to reach a target; it is deterministic, and its force is a
number between -1 and 1. Each method has the same environment through Gymnasium's interface.

Ours is `zo.TangentGradient` with its defaults and Adam. CMA-ES is the project's own `--methods cma-es`: a
generation sees one set of starts, of one episode or of four. PPO is that of Stable-Baselines3 with the
settings that its zoo publishes for `Pendulum-v1`, on four environments; on the cart it takes 160, 320 or
1,024 steps between updates in place of 4,096, with a discount of .99 in place of .9. Ours and CMA-ES train a
perceptron of 16 units, PPO its own. On the cart, batch and rate of ours are the best of five pairs, and steps
and discount of PPO of six, on another seed; on the pendulum nothing was tried.

A return is the sum of rewards of an episode, the mean over 20 starts that no method was trained on. Seconds
are processor time of training alone; steps are all that training asked for. Where the cart has *reached* its
level is looked at from mark to mark. A batch whose gradient is not finite is left out, as its error advises.
What was measured is not measured again.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks import protocol
from blackbox.adapters import Gymnasium
from tasks.methods.cma_es import CmaEs
from zo.errors import NonFiniteGradientError

SIGMA, SEEDS, EPISODES, UNSEEN, LEVEL = 0.3, (0, 1, 2), 20, 1_000_000, -3.0
ZOO = {
    "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0, "learning_rate": 1e-3,
    "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4,
}  # fmt: skip
PARALLEL = 4  # environments of PPO, as in the zoo
PACKAGES = ("gymnasium", "cma", "stable_baselines3")
INSTALL = "pip install 'blackbox-coupling[gymnasium,cma]' stable-baselines3"
Act = Callable[[Tensor], Tensor]  # observations (rows, size) to actions (rows, 1)
Training = Iterator[tuple[int, Act]]  # after each of its steps: steps of the environment, and the policy


@cache
def cart_class() -> Any:
    """The cart's class, which is Gymnasium's to begin with."""
    gymnasium = import_module("gymnasium")

    class Cart(gymnasium.Env):
        """A cart on a rail: it shows the way to its target and its speed, and rewards being there at rest."""

        observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
            super().reset(seed=seed)
            self.way, self.speed, self.steps = self.np_random.uniform(-1.5, 1.5), 0.0, 0
            return np.array([self.way, self.speed], np.float32), {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
            force = float(np.clip(action[0], -1.0, 1.0))
            self.speed += 0.1 * (4.0 * force - 0.5 * self.speed * abs(self.speed))
            self.way -= 0.1 * self.speed
            self.steps += 1
            reward = -(self.way**2) - 0.1 * self.speed**2 - 0.01 * force**2
            return np.array([self.way, self.speed], np.float32), reward, False, self.steps == 20, {}

    return Cart


class Case(NamedTuple):
    """An environment: how it is made and scaled, what is measured, and what methods are given for it."""

    make: Callable[[], Any]
    calls: int  # of an episode
    scale: tuple[float, ...]  # of observations, before the network
    force: float  # the largest action
    marks: tuple[int, ...]  # steps of the environment at which returns are measured
    few: int  # marks that ours goes on to
    batch: int  # episodes in a step of ours
    rate: float  # of Adam
    ppo: dict[str, dict[str, Any]]  # lines: what is beside the zoo's settings


CASES = {
    "cart": Case(
        lambda: cart_class()(), 20, (1.0, 1.0), 1.0,
        (400, 800, 1200, 1600, 2000, 2400, 3200, 4800, 6400, 9600), 7, 1, 3e-2,
        {f"PPO, {4 * steps}": {"n_steps": steps, "gamma": 0.99} for steps in (40, 80, 256)},
    ),
    "pendulum": Case(
        lambda: import_module("gymnasium").make("Pendulum-v1"), 200, (1.0, 1.0, 0.125), 2.0,
        (24_576,), 1, 4, 1e-2, {"PPO": {}},
    ),
}  # fmt: skip


class Policy(nn.Module):
    """A small perceptron whose action stays within its limits."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.layers = nn.Sequential(nn.Linear(len(case.scale), 16), nn.Tanh(), nn.Linear(16, 1), nn.Tanh())

    def forward(self, observation: Tensor) -> Tensor:
        """The network answers `(rows, size)`."""
        return self.case.force * self.layers(observation * torch.tensor(self.case.scale))


def made(case: Case, seed: int) -> tuple[Gymnasium, Policy, Callable[[nn.Module, Any], Tensor]]:
    """Box, policy and objective."""
    box = Gymnasium(case.make, steps=case.calls)
    torch.manual_seed(seed)

    def objective(policy: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        observation, history = box.reset(batch[0])
        total = torch.zeros(len(batch[0]))
        for _ in range(case.calls):
            observation, reward, *_, history = box(observation, policy(observation), history)
            total = total - reward
        return total / case.calls

    return box, Policy(case), objective


def starts(seed: int, step: int, rows: int) -> tuple[Tensor]:
    """Seeds of the episodes of a step of training."""
    return (100_000 * seed + rows * step + torch.arange(rows),)


def tangents(case: Case, seed: int) -> Training:
    """Learned tangents."""
    box, policy, objective = made(case, seed)
    gradient = zo.TangentGradient(policy, objective, boxes=[box], seed=seed)
    optimizer = torch.optim.Adam(policy.parameters(), case.rate)
    for step in count():
        optimizer.zero_grad()
        with suppress(NonFiniteGradientError):  # of a learned derivative, through 200 steps: left out
            gradient.backward(starts(seed, step, case.batch))
            optimizer.step()
        yield box.ledger.rows_run, policy


def cma_es(case: Case, seed: int, *, episodes: int) -> Training:
    """Search by values."""
    box, policy, objective = made(case, seed)
    search = CmaEs(policy, objective, SIGMA, seed=seed + 1)  # cma takes 0 for the clock
    for step in count():
        search.backward(starts(seed, step, episodes))
        search.move()
        yield box.ledger.rows_run, policy


def ppo(case: Case, seed: int, **more: Any) -> Training:
    """The policy gradient of Stable-Baselines3."""
    settings = {**ZOO, **more}
    vector = import_module("stable_baselines3.common.env_util").make_vec_env(case.make, PARALLEL, seed=seed)
    model = import_module("stable_baselines3").PPO("MlpPolicy", vector, seed=seed, device="cpu", **settings)

    def act(observation: Tensor) -> Tensor:
        return torch.from_numpy(model.predict(observation.numpy(), deterministic=True)[0])

    while True:
        model.learn(PARALLEL * settings["n_steps"], reset_num_timesteps=False)
        yield model.num_timesteps, act


def methods(case: Case) -> dict[str, Callable[..., Training]]:
    """Lines of a table, those whose packages are here."""
    lines: dict[str, Callable[..., Training]] = {}
    if find_spec("cma"):
        lines |= {f"CMA-ES, {episodes}": partial(cma_es, episodes=episodes) for episodes in (1, 4)}
    if find_spec("stable_baselines3"):
        lines |= {name: partial(ppo, **more) for name, more in case.ppo.items()}
    return lines | {"tangents": tangents}


@torch.no_grad()
def mean_return(case: Case, act: Act | None) -> float:
    """Of episodes that were not trained on; without a policy, of doing nothing."""
    environments = [case.make() for _ in range(EPISODES)]
    seen = [each.reset(seed=UNSEEN + number)[0] for number, each in enumerate(environments)]
    total = 0.0
    for _ in range(case.calls):
        observations = torch.from_numpy(np.stack(seen).astype(np.float32))
        actions = np.zeros((EPISODES, 1), np.float32) if act is None else act(observations).numpy()
        answers = [each.step(action) for each, action in zip(environments, actions, strict=True)]
        seen, total = [answer[0] for answer in answers], total + sum(float(answer[1]) for answer in answers)
    return total / EPISODES


def measured(case: Case, training: Training, marks: Sequence[int]) -> dict[str, Any]:
    """Steps, seconds and return of a training where it has taken as many steps as each mark says."""
    points, spent, steps, act = [], 0.0, 0, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", zo.TangentWarning)
        for mark in marks:
            while steps < mark:
                began = process_time()
                steps, act = next(training)
                spent += process_time() - began
            points.append({"mark": mark, "steps": steps, "seconds": spent, "return": mean_return(case, act)})
    words = [str(one.message) for one in caught if issubclass(one.category, zo.TangentWarning)]
    return {"points": points, "warnings": words}


def reached(run: dict[str, Any]) -> float:
    """Steps of the environment at the first mark at which a training's return is at the level."""
    return next((point["steps"] for point in run["points"] if point["return"] >= LEVEL), math.inf)


def main(words: Sequence[str]) -> None:
    """The command line."""
    asked = protocol.options("reinforcement", __doc__).parse_args(words)
    if missing := [package for package in PACKAGES if not find_spec(package)]:
        print(f"Without {', '.join(missing)}, lines are left out: {INSTALL}")
    if "gymnasium" in missing:
        return
    torch.set_num_threads(1)
    path = protocol.path("reinforcement", asked.size)
    ci = asked.size == "ci"
    results: dict[str, Any] = json.loads(path.read_text())["cases"] if path.exists() and not ci else {}
    print("| method | steps | return | seconds | warnings | steps to -3 |", "| --- " * 6 + "|", sep="\n")
    lines = [(where, *line) for where, case in CASES.items() for line in methods(case).items()]
    for where, name, method in sorted(lines, key=lambda line: line[1] == "tangents"):  # which take longest
        case = CASES[where]
        found = results.setdefault(where, {"nothing": mean_return(case, None), "runs": {}})
        runs = found["runs"].setdefault(name, [])
        for seed in SEEDS[len(runs) : 1 if ci else None]:
            marks = (1,) if ci else case.marks[: case.few] if name == "tangents" else case.marks
            runs.append(measured(case, method(case, seed), marks))
            versions = {package: version(package) for package in PACKAGES if find_spec(package)}
            content = {"seeds": SEEDS, "packages": versions, "level": LEVEL, "cases": results}
            protocol.write("reinforcement", words, content, path)
        print(shown(f"{where}, {name}", runs), flush=True)


def shown(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """Of a table: the last mark of each seed."""
    last = [run["points"][-1] for run in runs]
    cells = [", ".join(f"{point[what]:.5g}" for point in last) for what in ("steps", "return", "seconds")]
    cells += [", ".join(str(len(run["warnings"])) for run in runs), ", ".join(map(str, map(reached, runs)))]
    return f"| {' | '.join((name, *cells))} |"
