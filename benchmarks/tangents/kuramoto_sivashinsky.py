"""Kuramoto-Sivashinsky as List et al. publish it: a network beside a solver that alone blows up.

List, Chen, Bali & Thuerey (2024, arXiv 2402.12971), their one-dimensional case. A frame is two steps of the
solver; the network sees the frame before and the ring's length and adds to what the solver makes of it.
Theirs: 48 points, dt .5, ETD1 in the loop, ETDRK2 as the reference, six lengths to train, four to test, the
networks, unroll 3, batch 16 of one length, mean square error over the frames, Adam at 1e-4, the error. Ours:
states drawn at random and spun up, and a learning rate that falls along a cosine instead of by .9 every 2,000
steps. The sum of their learning rates over a training is that of 40,000 of our steps, size `paper`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import zo
from benchmarks.tangents.problem import BenchmarkProblem
from simulators.noisy import Noisy
from simulators.spectral import KuramotoSivashinskyETD
from zo.objective import Objective

TRAIN = (0.9, 0.95, 1.0, 1.1, 1.2, 1.3)  # lengths in units of 16 pi
TEST = (1.4, 0.85, 1.15, 0.93)
TRAJECTORIES, FRAMES = 16, 250  # of each training length
STARTS, HORIZON = 20, 12  # of each test length: states, and frames that are judged
SPIN_UP = 200  # frames
BATCH = 16
WINDOWS, LENGTHS, PAIRS = 111, 112, 113  # first words of the keys' paths for these draws
PAPER_STEPS, PAPER_LEARNING_RATE = 40_000, 1e-4


class Residual(nn.Module):
    """Circular convolutions of width 3: one in, `blocks` residual blocks of two, one out.

    Input `(rows, 1, points)` and the length `(rows,)`, a constant second channel; output `(rows, 1, points)`.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()

        def layer(before: int, after: int) -> nn.Module:
            return nn.Conv1d(before, after, 3, padding=1, padding_mode="circular")

        self.first, self.last = layer(2, channels), layer(channels, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(layer(channels, channels), nn.LeakyReLU(), layer(channels, channels))
            for _ in range(blocks)
        )

    def forward(self, state: Tensor, length: Tensor) -> Tensor:
        """`(rows, 1, points)` and `(rows,)` to `(rows, 1, points)`."""
        hidden = self.first(torch.cat([state, length[:, None, None].expand_as(state)], 1))
        for block in self.blocks:
            hidden = nn.functional.leaky_relu(hidden + block(hidden))
        return self.last(hidden)


def rollout(
    network: nn.Module, solver: Callable[..., Tensor], state: Tensor, length: Tensor, frames: int
) -> Tensor:
    """`(rows, frames, 1, points)`: each frame is the solver's and what the network adds in a step's time."""
    states = []
    for _ in range(frames):
        state = solver(state, length) + 0.5 * network(state, length)
        states.append(state)
    return torch.stack(states, 1)


def window_loss(solver: Callable[..., Tensor]) -> Objective:
    """Mean square error over a window of `(rows, frames + 1, 1, points)` and lengths `(rows,)`: `(rows,)`."""

    def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        truth, length = batch
        states = rollout(network, solver, truth[:, 0], length, truth.shape[1] - 1)
        return (states - truth[:, 1:]).square().flatten(1).mean(1, dtype=torch.float64)

    return objective


def published_error(states: Tensor, truth: Tensor) -> float:
    """List et al.'s: squares over the largest of the reference's squares in a row, clipped at 30 a frame.

    The mean over rows, frames and points; the first frame, which has no error, counts.
    """
    squares = (states - truth).square() / truth.square().amax((1, 2, 3), keepdim=True)
    return squares.mean((2, 3)).nan_to_num(30.0).clamp(max=30).mean().item()


class Nothing(nn.Module):
    """What is added to a frame where nothing is corrected."""

    def forward(self, state: Tensor, length: Tensor) -> Tensor:
        """Zeros `(rows, 1, points)`."""
        return torch.zeros_like(state)


@cache
def frames(lengths: tuple[float, ...], rows: int, count: int, seed: int) -> Tensor:
    """Reference states `(lengths, rows, count, 1, points)`, float32."""
    reference = KuramotoSivashinskyETD(order=2)
    length = torch.tensor(lengths, dtype=torch.float64).repeat_interleave(rows)
    state = reference.start(len(length), seed, length)
    states = []
    for frame in range(SPIN_UP + count):
        state = reference(state, length)
        if frame >= SPIN_UP:
            states.append(state.float())
    return torch.stack(states, 1).unflatten(0, (len(lengths), rows))


def published(
    channels: int,
    blocks: int,
    unroll: int = 3,
    steps: int = 1600,
    warm: int = 0,
    noise: float = 0.0,
    learning_rate: float = 1e-3,
    hard: str = "",
) -> BenchmarkProblem:
    """The problem with a network of `channels` x `blocks`, trained on single frames for `warm` steps first.

    Args:
        channels: of the network.
        blocks: of the network, two convolutions each.
        unroll: frames in a window.
        steps: of training.
        warm: steps on single frames before, at the same learning rate; 0 for networks from scratch.
        noise: standard deviation of what is added to the box's answers, in that of the states.
        learning_rate: of Adam.
        hard: why it is in the table.
    """
    train = frames(TRAIN, TRAJECTORIES, FRAMES, 0)
    test, validation = (frames(TEST, STARTS, HORIZON + 1, seed) for seed in (1, 2))
    quiet = KuramotoSivashinskyETD(failures="keep")
    box = Noisy(quiet, noise * train.std().item(), seed=0) if noise else quiet

    def windows(generator: torch.Generator, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Windows on a ring of one length, `(rows, length + 1, 1, points)`, and that length `(rows,)`."""
        which = int(torch.randint(len(TRAIN), (), generator=generator))
        row = torch.randint(TRAJECTORIES, (rows,), generator=generator)
        first = torch.randint(FRAMES - length, (rows,), generator=generator)
        chosen = train[which][row[:, None], first[:, None] + torch.arange(length + 1)]
        return chosen, torch.full((rows,), TRAIN[which])

    # one-step rows on which the start was trained, as many as 256 steps of training take
    pairs = [windows(zo.estimators.Key(0, n).generator(PAIRS), 4 * BATCH, 1) for n in range(48 * unroll)]
    before, after = (torch.cat([w[:, place] for w, _ in pairs]) for place in (0, 1))
    length = torch.cat([lengths for _, lengths in pairs])
    stepped = quiet(before, length) if warm else None

    def start(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = Residual(channels, blocks)
        optimizer = torch.optim.Adam(network.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, warm))
        for step in range(warm):
            generator = zo.estimators.Key(seed, step).generator(LENGTHS)
            chosen = torch.randint(len(before), (BATCH * unroll,), generator=generator)
            assert stepped is not None
            corrected = stepped[chosen] + 0.5 * network(before[chosen], length[chosen])
            optimizer.zero_grad()
            (corrected - after[chosen]).square().mean().backward()
            optimizer.step()
            schedule.step()
        return network

    @torch.no_grad()
    def error(network: nn.Module, truth: Tensor) -> float:
        lengths, truth = torch.tensor(TEST).repeat_interleave(STARTS), truth.flatten(0, 1)
        states = rollout(network, quiet, truth[:, 0], lengths, HORIZON)
        return published_error(torch.cat([truth[:, :1], states], 1), truth)

    def batch(seed: int, step: int) -> Any:
        return windows(zo.estimators.Key(seed, step).generator(WINDOWS), BATCH, unroll)

    return BenchmarkProblem(
        box=box,
        exact=quiet.advance,
        start=start,
        objective=window_loss,
        batch=batch,
        error=lambda network: error(network, test),
        validate=lambda network: error(network, validation),
        unit="squared error over 12 frames, over the largest square of the reference",
        steps=steps,
        learning_rate=learning_rate,
        hard=hard,
        known=None if stepped is None else ((before, length), stepped),
        alone=Nothing(),
    )
