"""Torch's own generators, which all threads of a process share: their turns, and draws by other threads.

An evaluation puts the state of the base back and draws the same masks again. Another thread that draws
meanwhile takes numbers out of the middle: the masks are others, and differences over mu are far off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from blackbox.notices import warn
from zo.errors import EvaluatorWarning, ObjectiveError
from zo.evaluators.operations import Operations, draws

PATIENCE = 60.0  # seconds that a training waits for its turn before it says so
TRIES = 5  # evaluations of a query, each with a stranger's draws in it, before the step is refused

_DRAWING = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    nn.RReLU,
)

States = tuple[Tensor, ...]
T = TypeVar("T")

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


class Draws:
    """The draws of a step's evaluations: checks that generators end where the base left them.

    Args:
        start: the states that the base started from.
        end: the states that it ended with.
        replay: evaluates the base once more, and puts everything back but the generators.
        watched: the draws of the base, where other threads run; None if it was not watched.

    Raises:
        DisturbedBase: Another thread drew in the base.
        Disturbed: It draws all the time.
    """

    def __init__(
        self, start: States, end: States, replay: Callable[[], Any], watched: WatchedDraws | None = None
    ) -> None:
        self._start, self._end, self._replay = start, end, replay
        self._trusted = False  # the base drew alone
        self._any = not same(start, end)
        if watched is None and others_run():  # a thread that has begun meanwhile
            self.trust_base()  # the end alone does not tell: another thread may draw as much in each query
        elif watched is not None:
            self._any = bool(watched.names)
            if self._any and not watched.alone(start, end) and not self._repeats(watched):
                raise DisturbedBase(str(disturbed()))
            self._trusted = True

    def _repeats(self, watched: WatchedDraws) -> bool:
        """Say whether a second evaluation is disturbed in just the same places: by a thread of a box, say."""
        draws = WatchedDraws()
        try:
            with draws:
                self._replay()
            return draws.is_like(watched) and same(states(), self._end)
        finally:
            put_back(self._start)

    @property
    def any(self) -> bool:
        """True if something was drawn, be it by another thread."""
        return self._any

    def alone(self, run: Callable[[], T], less: Callable[[T], bool] = lambda _: False) -> T:
        """Repeat `run` until no other thread drew, and return its result.

        Args:
            run: evaluates something, and leaves the generators as they were behind that; it is called with
                the states of the base, which are put back behind it.
            less: whether what it gave is known to draw less than the base.

        Raises:
            Disturbed: Another thread drew in each of them.
        """
        for number in range(TRIES):
            # watched where the first ended otherwise than the base
            watch = WatchedDraws() if number else None
            try:
                with watch or nullcontext():
                    result = run()
                ended = states()
            finally:
                put_back(self._start)
            if less(result) or not self.disturbed([ended], watch):
                return result
        raise disturbed()

    def disturbed(self, ended: Sequence[States], drawn: WatchedDraws | None = None) -> bool:
        """Say whether another thread drew in the last of some tries.

        The amount of draws may depend on the weights, as by rejection: another end than the base's shows only
        that a thread may have drawn, where there is one.

        Args:
            ended: The states after the tries.
            drawn: The draws of the last try; None where it was not watched.

        Raises:
            Disturbed: See `trust_base`.
        """
        if not self._any or same(ended[-1], self._end) or not others_run():
            return False
        if drawn is None and len(ended) > 1 and same(*ended[-2:]):
            return False
        self.trust_base()
        return self._any and not (drawn is not None and drawn.alone(self._start, ended[-1]))

    def trust_base(self) -> None:
        """Find out, once a step, whether no other thread drew in the base, and whether this one draws.

        Raises:
            DisturbedBase: Another thread drew in the base.
            Disturbed: It draws all the time.
        """
        if self._trusted or not self._any:
            return
        names: list[list[str]] = []
        ends: list[States] = []
        for _ in range(TRIES):
            draws = WatchedDraws()
            try:
                with draws:
                    self._replay()
                ended = states()
            finally:
                put_back(self._start)
            names.append(draws.names)
            # Only others draw; or this one draws otherwise each time, which is noise, and told as that.
            if not draws.names or names[0] != draws.names:
                self._any = False
                return
            if not draws.alone(self._start, ended):
                continue
            if same(ended, self._end):
                self._trusted = True
                return
            if any(same(ended, earlier) for earlier in ends):
                raise DisturbedBase(str(disturbed()))
            ends.append(ended)
        raise disturbed()


def others_run() -> bool:
    """Say whether the process has other threads, which may draw."""
    return threading.active_count() > 1


def watched_base() -> WatchedDraws | None:
    """Return a watch for a base while other threads run; None where there are none."""
    return WatchedDraws() if others_run() else None


class Disturbed(ObjectiveError):
    """Another thread drew from torch's generators while a step was evaluated."""


class DisturbedBase(Disturbed):
    """Another thread drew while the base was evaluated: the step is to be taken again."""


def disturbed() -> Disturbed:
    """The refusal of a step in which another thread draws all the time."""
    return Disturbed(
        "objective: expected that nobody else draws from torch's generators while a step is evaluated, got "
        f"draws of another thread in each of {TRIES} tries: dropout had other masks than in the base. All "
        "threads of a process share these generators: let the other thread draw from a torch.Generator() of "
        "its own, run it in a process of its own, or switch dropout off, by network.eval()."
    )


class WatchedDraws(Operations):
    """Notes what this thread draws from torch's own generators, and whether another one draws in between.

    Attributes:
        names: the operations that drew and how many numbers they gave, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._around: list[States] = []  # before and behind each of them

    def alone(self, before: States, after: States) -> bool:
        """Say whether no other thread drew in the block, by the states before and behind it."""
        starts, ends = [*self._around[::2], after], [before, *self._around[1::2]]
        return all(map(same, ends, starts))

    def is_like(self, other: WatchedDraws) -> bool:
        """Say whether another block drew the same, between the same states."""
        return self.names == other.names and all(map(same, self._around, other._around))

    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """The result, as it is."""
        return result

    def run(self, operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run an operation between two looks at the generators, where it draws from them."""
        of_its_own = any(isinstance(item, torch.Generator) for item in (*arguments, *named.values()))
        if not draws(operation) or of_its_own:
            return operation(*arguments, **named)
        start = states()
        seeded = _seeded(operation)
        if seeded is None or _device(arguments, named).type != "cpu":
            result = operation(*arguments, **named)
        else:  # another thread may draw between the look and the operation, so this one draws by itself
            fresh = torch.Generator()
            fresh.set_state(start[0])
            result = seeded(*arguments, **{**named, "generator": fresh})
            torch.set_rng_state(fresh.get_state())
        self._around += [start, states()]
        size = result.numel() if isinstance(result, Tensor) else 0
        self.names.append(f"{operation} {size}")
        return result


def _seeded(operation: Any) -> Any:
    """The overload of an operation that takes a generator; None of one that has none."""
    packet, name = operation.overloadpacket, operation._overloadname
    generator = "generator" if name == "default" else f"{name}_generator"
    if any(argument.name == "generator" for argument in operation._schema.arguments):
        return operation
    return getattr(packet, generator) if generator in packet.overloads() else None


def _device(arguments: tuple[Any, ...], named: dict[str, Any]) -> torch.device:
    """Return the device on which an operation draws."""
    devices = [value.device for value in arguments if isinstance(value, Tensor)]
    return torch.device(named.get("device") or (devices[0] if devices else "cpu"))
