"""Runs the toy task: for each seed two stages, then the result."""

import time
from pathlib import Path

import torch

from blackbox import BlackBoxError
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row
from tasks.training import TrainingOutcome, train

from .config import Config


class Counter:
    def __init__(self):
        self.queries = 0

    def state_dict(self):
        return {"queries": self.queries}

    def load_state_dict(self, state):
        self.queries = state["queries"]


class Faulty(BlackBoxError, ValueError):
    """An error as a black box may raise it."""


def train_line(
    run: Run, stage: str, seed: int, config: Config, progress: Progress
) -> tuple[torch.nn.Module, TrainingOutcome]:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(1, config.network.width), torch.nn.Tanh(), torch.nn.Linear(config.network.width, 1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    counter = Counter()

    def step(i):
        if config.fault == "known":
            raise Faulty("Faulty: expected a good row, got a bad one. Mend it.")
        if config.fault == "stop":
            raise KeyboardInterrupt  # as a second Ctrl-C does, or one outside of training
        if config.fault == "unknown":
            raise ZeroDivisionError("nobody saw this coming")
        time.sleep(config.pause)
        x = torch.rand(8, 1, generator=torch.Generator().manual_seed(1000 * seed + i))
        noise = torch.randn(8, 1) * 0.1  # from the global generator, which the loop has to restore
        optimizer.zero_grad()
        loss = (network(x) - (2 * x - 1 + noise)).square().mean()
        loss.backward()
        optimizer.step()
        counter.queries += 5
        value = float("nan") if config.fail_at is not None and i >= config.fail_at else loss.item()
        return {"loss": value, "queries": counter.queries, "rows": 8 * counter.queries}

    def validate():
        with torch.no_grad():
            x = torch.linspace(0, 1, 5)[:, None]
            return (network(x) - (2 * x - 1)).abs().mean().item()

    outcome = train(
        run,
        stage,
        steps=config.train_steps,
        step=step,
        state={"network": network, "optimizer": optimizer, "counter": counter},
        model="network",
        validate=validate,
        validate_every=3,
        checkpoint_every=5,
        progress=progress,
    )
    return network, outcome


def run(run: Run, progress: Progress, data: Path) -> None:
    config = run.configuration(Config)
    rows = []
    for seed in run.seeds:
        for method in ("ZO-SOL", "FO-SOL"):
            _, outcome = train_line(run, f"seed-{seed}/{method.lower()}", seed, config, progress)
            queries = int(outcome.metrics["queries"])
            rows.append(
                Row(
                    method, seed, "MAE", outcome.best_validation, "m/s", 8 * queries, queries, outcome.seconds
                )
            )
    Result.of(run, rows).write(run.path)
