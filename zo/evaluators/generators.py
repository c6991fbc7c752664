"""Torch's own generators, which all threads of a process share: their states, and turns to draw from them.

An evaluation puts the state of the base back and draws the same masks again. Another training that draws
meanwhile would take numbers out of the middle: the masks are others, and differences over mu are far off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import RLock

import torch
from torch import Tensor, nn

from blackbox.notices import warn
from zo.errors import EvaluatorWarning

PATIENCE = 60.0  # seconds that a training waits for its turn before it says so

_DRAWING = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    nn.RReLU,
)

States = tuple[Tensor, ...]

_drawing = RLock()  # of all trainings of the process: whoever draws, or puts a state back, holds it


def states() -> States:
    """The states of the CPU's generator and of the generators of GPUs that are in use."""
    return (torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []))


def same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Say whether two are the same states."""
    return len(some) == len(others) and all(map(torch.equal, some, others))


def put_back(kept: States) -> None:
    """Set the generators to states, unless a training of another thread draws from them just now."""
    if same(states()[: len(kept)], kept) or not _drawing.acquire(blocking=False):
        return
    try:
        torch.set_rng_state(kept[0])
        if len(kept) > 1:
            torch.cuda.set_rng_state_all(list(kept[1:]))
    finally:
        _drawing.release()


class Turn:
    """A training's turn to draw, which it ends early if it draws nothing."""

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> Turn:
        """Wait for it."""
        if not _drawing.acquire(timeout=PATIENCE):
            warn(
                f"A training of another thread has been at a step for {PATIENCE:g} seconds that draws from "
                "torch's generators, which all threads of a process share; this one waits for it. Run "
                "trainings with dropout in processes of their own. If that one waits for this one, as where "
                "a black box trains, neither goes on: switch dropout off, by network.eval().",
                EvaluatorWarning,
            )
            _drawing.acquire()
        self._held = True
        return self

    def end(self) -> None:
        """Let others draw."""
        if self._held:
            self._held = False
            _drawing.release()

    def __exit__(self, *_: object) -> None:
        """End it where it has not ended."""
        self.end()


class Turns:
    """The turns of a training whose steps run boxes once: it takes them while its steps draw, and no others.

    Others that draw wait meanwhile, also while its boxes run. Whether a step draws is known from the one
    before; whether the first does, from the network's layers.

    Args:
        network: the network that is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self._draws = any(map(_may_draw, network.modules()))
        self._turn, self._start = Turn(), states()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A step, or a replay."""
        with self._turn if self._draws else nullcontext():
            self._start = states()
            yield

    def look(self) -> None:
        """Behind the last evaluation of a step that may draw: where nothing was drawn, others go on."""
        self._draws = not same(states(), self._start)
        if not self._draws:
            self._turn.end()


def _may_draw(layer: nn.Module) -> bool:
    """Say whether a layer draws in a forward pass, as far as its type shows: dropout, alone or in a layer."""
    dropout = getattr(layer, "dropout", 0.0)  # of recurrent layers and attention
    return isinstance(layer, _DRAWING) or (isinstance(dropout, float) and dropout > 0)


@contextmanager
def drawing_apart(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """A block whose draws leave the generators as they were, and that no other training draws in.

    Args:
        devices: GPUs whose generators count too.
    """
    with Turn(), torch.random.fork_rng(devices):
        yield
