"""Runs the task with queries: one stage, whose gradient is shared out."""

import os
import signal
import time
from pathlib import Path

import torch

import zo
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.runs.result import Result, Row
from tasks.training import train
from tasks.workers import group

from .config import Config


def run(run: Run, progress: Progress, data: Path) -> None:
    config = run.configuration(Config)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    mark, dying = data / "died", [False]

    def objective(network, batch):
        if dying[0] and not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return (network(batch[0]) - batch[1]).square().mean(dim=1)

    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    gradient = zo.LossGradient(
        network,
        objective,
        zo.CGE(1e-3),
        evaluator=config.evaluator,
        chunk=5,
        process_group=group.process_group(),
    )

    def step(i):
        time.sleep(config.pause)
        draws = torch.Generator().manual_seed(i)
        batch = torch.randn(8, 3, generator=draws), torch.randn(8, 2, generator=draws)
        batch = batch[0], batch[1] + 0.01 * torch.randn(8, 2)  # the loop restores the global generator
        dying[0] = i == config.die_at and group.rank() == config.die_rank
        optimizer.zero_grad()
        loss = gradient.backward(batch)
        optimizer.step()
        return {"loss": loss.item(), "queries": gradient.counts.queries}

    outcome = train(
        run,
        "seed-0/zo",
        steps=config.steps,
        step=step,
        state={"network": network, "optimizer": optimizer, "gradient": gradient},
        model="network",
        checkpoint_every=5,
        progress=progress,
    )
    loss = outcome.metrics["loss"]
    Result.of(run, [Row("ZO", 0, "loss", loss, "1", 0, int(outcome.metrics["queries"]), 0.0)]).write(run.path)
