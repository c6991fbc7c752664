"""Black boxes that are broken on purpose, each in one way, and what must be said about them."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from blackbox import ArraySpec, BlackBoxFunction, Wrapper
from blackbox.conformance import Verdict
from blackbox.failures import Outcome

SPEC = (ArraySpec("x", (3,)),)
OUT = (ArraySpec("y", (3,)),)
FAULT, WARNING = Verdict.FAULT, Verdict.WARNING


class Good(BlackBoxFunction):
    """Smooth, not linear, and keeps its word; the others spoil it."""

    inputs = SPEC
    outputs = OUT

    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x)

    @staticmethod
    def smooth(x: Any) -> Any:
        return np.sin(x) + 0.3 * x * np.roll(x, 1, axis=-1)


class GoodInTorch(BlackBoxFunction):
    inputs = (ArraySpec("x", (3,)), ArraySpec("scale", (), differentiable=False))
    outputs = (ArraySpec("y", (3,)), ArraySpec("total", ()), ArraySpec("sign", (), "int64"))
    arrays = "torch"

    def evaluate_rows(self, x: Any, scale: Any) -> Any:
        y = scale[:, None] * torch.sin(x)
        return y, x.square().sum(1), (x.sum(1) > 0).long() + 0 * scale.long()


class GoodRowByRow(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return np.stack([self.smooth(row) for row in x]) if len(x) else x


class Random(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x) + 1e-3 * np.random.default_rng().standard_normal(x.shape)


class RandomAndSaysSo(Random):
    deterministic = False


class Counting(Good):
    """Every call adds to the answer: a file handle, a clock, a warm start that is never reset."""

    calls = 0

    def evaluate_rows(self, x: Any) -> Any:
        self.calls += 1
        return self.smooth(x) + 0.01 * self.calls


class WarmStarting(Good):
    """Starts from where the last call ended, and does not get far."""

    last = 0.0

    def evaluate_rows(self, x: Any) -> Any:
        y = self.smooth(x)
        y, self.last = 0.9 * y + 0.1 * self.last, float(y.mean())
        return y


class Stale(Good):
    """Gives the answers of the call before, where they have the right shape."""

    before: Any = None

    def evaluate_rows(self, x: Any) -> Any:
        now = self.smooth(x)
        old, self.before = self.before, now
        return old if old is not None and old.shape == now.shape else now


class FirstIsAnother(Good):
    """Uses up in its first call what all later ones go without: an iterator, the rest of a file."""

    def __init__(self) -> None:
        self.left = iter([0.5])
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x) + next(self.left, 0.0)


class FailsAtFirst(Good):
    """Is ready from its second call on."""

    ready = False

    def evaluate_rows(self, x: Any) -> Any:
        ready, self.ready = self.ready, True
        return self.smooth(x) if ready else np.full_like(x, np.nan)


class FirstOfAProcess(Good):
    """Reads in its first call what no later one changes back; another process has a first call too."""

    called = False

    def evaluate_rows(self, x: Any) -> Any:
        first, FirstOfAProcess.called = not FirstOfAProcess.called, True
        return self.smooth(x) + 0.5 * first


class NowAndThen(Good):
    """Gives nothing at every so many calls, as where a file of messages is full."""

    def __init__(self, every: int) -> None:
        self.calls, self.every = 0, every
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        self.calls += 1
        return self.smooth(x) if self.calls % self.every else 0 * x


class ByName(Good):
    """Reads the files of its rows back in the order of their names: row_0, row_1, row_10, row_2."""

    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x)[sorted(range(len(x)), key=str)]


class Centring(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x - x.mean(axis=0, keepdims=True))


class CommonStep(Good):
    """A time step for all rows, from the fastest of them."""

    def evaluate_rows(self, x: Any) -> Any:
        step = 0.1 / (1 + np.abs(x).max(initial=0.0))
        return x + step * self.smooth(x) + step**2


class Numbering(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x) + 0.01 * np.arange(len(x), dtype=x.dtype)[:, None]


class InBlocks(Good):
    """Computes as many rows as fit into its work array, and forgets the others."""

    def evaluate_rows(self, x: Any) -> Any:
        y = self.smooth(x)
        y[128:] = 0
        return y


class Drifting(Good):
    """Gains a little in every call: less than rounding from one to the next."""

    calls = 0

    def evaluate_rows(self, x: Any) -> Any:
        self.calls += 1
        return self.smooth(x) + 1e-6 * self.calls


class FallsBack(Good):
    """Gives its last good answer again where it fails."""

    good = np.zeros(3)

    def evaluate_rows(self, x: Any) -> Any:
        answers = []
        for row in x:
            self.good = self.good if row[0] > 0.5 else self.smooth(row)
            answers.append(self.good)
        return np.array(answers).reshape(x.shape)


class OtherInSingle(Good):
    """Knows another constant in single precision."""

    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x) + (0.01 if x.dtype == np.float32 else 0.0)


class OverTheBatch(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x) / max(1, len(x))


class Squeezing(BlackBoxFunction):
    """Forgets the axis of a single row, as `squeeze` does."""

    inputs = SPEC
    outputs = (ArraySpec("y", ()),)

    def evaluate_rows(self, x: Any) -> Any:
        return np.squeeze(np.sin(x).sum(axis=1))


class OddShape(BlackBoxFunction):
    inputs = SPEC
    outputs = OUT

    def evaluate(self, x: Any) -> Any:
        return Good.smooth(x)[:2] if x[0] > 0.5 else Good.smooth(x)


class TooShort(Good):
    outputs = (ArraySpec("y", (3,), "float64"),)

    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x).astype(np.float32)


class WritesToInputs(Wrapper):
    def run_rows(self, inputs: tuple[torch.Tensor, ...]) -> Outcome:
        outcome = self.box.run_rows(inputs)
        inputs[0].mul_(2)
        return outcome


class SwallowsNan(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return np.nan_to_num(self.smooth(x))


class Rounds(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return np.round(self.smooth(x).astype(np.float64), 3)


class Steps(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return np.floor(2 * x)


class Decades(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return np.exp(12 * self.smooth(x))


class Jumps(Good):
    def evaluate_rows(self, x: Any) -> Any:
        return self.smooth(x) + 0.2 * (x[:, :1] > 0.1)


class Drowned(Good):
    """Noise as large as what the input does; the same in each run of the tests."""

    deterministic = False
    noise = np.random.default_rng(0)

    def evaluate_rows(self, x: Any) -> Any:
        return 0.1 * np.sin(x) + self.noise.standard_normal(x.shape)


class NoEffect(Good):
    inputs = (ArraySpec("x", (3,)), ArraySpec("unused", ()))

    def evaluate_rows(self, x: Any, unused: Any) -> Any:
        return self.smooth(x)


class Unpicklable(Good):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        super().__init__()


class ForgetsSettings(Good):
    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        return self.factor * self.smooth(x)

    def __reduce__(self) -> Any:
        return ForgetsSettings, ()


class CannotBeRebuilt(Good):
    def __reduce__(self) -> Any:
        return _connect, (os.getpid(),)


def _connect(owner: int) -> CannotBeRebuilt:
    if owner != os.getpid():
        raise ConnectionError("the solver listens to its own process")
    return CannotBeRebuilt()


class OneScratchFile(Good):
    """Input and output through one file, whoever calls; its slow solver leaves time to be overwritten."""

    def __init__(self, file: Path) -> None:
        self.file = file
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        self.file.write_text(str(os.getpid()))
        time.sleep(0.05)
        return self.smooth(x) if self.file.read_text() == str(os.getpid()) else 0 * x


class OneWorkArray(Good):
    def __init__(self) -> None:
        self.work = np.zeros((1000, 3))
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        self.work[: len(x)] = x
        time.sleep(0.005)  # other threads run here, as they do in any solver that lets go of the lock
        return self.smooth(self.work[: len(x)].copy())


class Seeding(Good):
    def evaluate_rows(self, x: Any) -> Any:
        torch.manual_seed(20211)  # at no seed that another test may have left
        np.random.seed(20211)  # noqa: NPY002
        return self.smooth(x)


class Drawing(Good):
    def evaluate_rows(self, x: Any) -> Any:
        random.random()
        return self.smooth(x)


class Moving(Good):
    def evaluate_rows(self, x: Any) -> Any:
        os.chdir("/")
        return self.smooth(x)


class OtherThreads(Good):
    def evaluate_rows(self, x: Any) -> Any:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return self.smooth(x)


class NoGradient(Good):
    """Switches recording off for everyone, as a forgotten `set_grad_enabled(False)` does."""

    def evaluate_rows(self, x: Any) -> Any:
        torch.set_grad_enabled(False)
        return self.smooth(x)


class DiesElsewhere(Good):
    """Takes its process along, in any but the one that it was made in."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        if os.getpid() != self.owner:
            os.abort()
        return self.smooth(x)


class FailsHere(Good):
    def evaluate_rows(self, x: Any) -> Any:
        y = self.smooth(x)
        y[x[:, 0] > 0.8] = np.nan
        return y


class Line(Good):
    """A line of cells whose ends meet, and its spec says nothing of that."""

    inputs = (ArraySpec("x", (16,)),)
    outputs = (ArraySpec("y", (16,)),)


class AlwaysFails(Good):
    def evaluate_rows(self, x: Any) -> Any:
        raise OSError("licence server not found")


class Hangs(Good):
    def evaluate_rows(self, x: Any) -> Any:
        time.sleep(1000)


class Broken(NamedTuple):
    """A box, the check that must find it, the verdict, and words that its sentence must hold."""

    make: Any
    check: str
    verdict: Verdict
    words: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{getattr(self.make, '__name__', 'made')}-{self.check}".replace(" ", "-")


def writes_to_inputs() -> Wrapper:
    return WritesToInputs(Good())


CATALOGUE = [
    Broken(Random, "determinism", FAULT, ("different answers", "deterministic = False")),
    Broken(RandomAndSaysSo, "determinism", WARNING, ("as the box says", "noise level")),
    Broken(Counting, "determinism", FAULT, ("different answers", "output 'y'")),
    Broken(WarmStarting, "memory", FAULT, ("call before", "same state", "adapters.Session")),
    Broken(Stale, "memory", FAULT, ("call before", "every buffer anew")),
    Broken(
        FirstIsAnother, "first call", FAULT, ("first call", "other answers than a later one", "same state")
    ),
    Broken(FailsAtFirst, "first call", FAULT, ("a failed row beside a good one", "initialise before")),
    Broken(Centring, "batch-mates", FAULT, ("rows beside it", "no mean")),
    Broken(CommonStep, "batch-mates", FAULT, ("rows beside it", "step size")),
    Broken(Numbering, "row order", FAULT, ("place in the call",)),
    *(Broken(ByName, check, FAULT, ()) for check in ("batch-mates", "row order", "batch size")),
    Broken(InBlocks, "batch size", FAULT, ("number of rows",)),
    Broken(Drifting, "drift", WARNING, ("first call", "counter", "clock")),
    Broken(FallsBack, "row order", FAULT, ("place in the call",)),
    Broken(FallsBack, "smoothness", WARNING, ("did not when the same rows", "same state")),
    Broken(OtherInSingle, "precisions", WARNING, ("float32 and float64", "dtype=")),
    Broken(OverTheBatch, "batch size", FAULT, ("number of rows",)),
    Broken(Squeezing, "shapes and dtypes", FAULT, ("expected shape (1,), got ()",)),
    Broken(OddShape, "shapes and dtypes", FAULT, ("expected shape (3,), got (2,)",)),
    Broken(TooShort, "shapes and dtypes", FAULT, ("expected float64, got float32",)),
    Broken(writes_to_inputs, "inputs left alone", FAULT, ("input 'x' was written to", "Copy")),
    Broken(SwallowsNan, "NaN inputs", WARNING, ("'x'", "Let NaN through")),
    Broken(Rounds, "quantisation", WARNING, ("steps of 0.001", "mu")),
    Broken(Steps, "quantisation", WARNING, ("steps of 1:",)),
    Broken(Decades, "output sizes", WARNING, ("decades", "logarithm")),
    Broken(Jumps, "smoothness", WARNING, ("jumps by 0.2", "along 'x'")),
    Broken(Drowned, "mu of 'x'", WARNING, ("drowns the slopes",)),
    Broken(NoEffect, "mu of 'unused'", WARNING, ("do not change", "differentiable=False")),
    Broken(Unpicklable, "picklability", WARNING, ("cannot be pickled", "__reduce__")),
    Broken(OneWorkArray, "thread safety", WARNING, ("disturb each other", "work arrays")),
    Broken(Seeding, "random numbers", FAULT, ("numpy.random, torch", "generator of your own")),
    Broken(Drawing, "random numbers", WARNING, ("draws from", "random")),
    Broken(Moving, "global state", FAULT, ("working folder", "Put back")),
    Broken(OtherThreads, "global state", FAULT, ("threads of torch",)),
    Broken(NoGradient, "global state", FAULT, ("gradient mode of torch",)),
    Broken(Line, "layout", WARNING, ("line of cells", "Grid(periodic=True)")),
    Broken(FailsHere, "answers", WARNING, ("rows failed", "not finite", "samples=")),
    Broken(AlwaysFails, "answers", FAULT, ("32 of 32", "licence server not found")),
]
IN_PROCESSES = [
    Broken(lambda: ForgetsSettings(2.0), "picklability", FAULT, ("other answers", "settings")),
    Broken(CannotBeRebuilt, "picklability", FAULT, ("listens to its own process", "__reduce__")),
    Broken(FirstOfAProcess, "process safety", FAULT, ("first call in another process", "same state")),
    Broken(DiesElsewhere, "process safety", FAULT, ("SIGABRT",)),
]
GOOD = [Good, GoodInTorch, GoodRowByRow]
