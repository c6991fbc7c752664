"""A closure that is trained inside a Fortran program: the program calls the network, in each of its steps."""

import shutil
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

import tasks
import zo
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.errors import ConfigurationError
from tasks.configuration import Count, Positive

HERE = Path(__file__).parent
CELLS, RECORDS, FREE, DT = 8, 260, 100, 0.01
RUNS = {"training": range(0, 48), "validation": range(48, 52), "test": range(52, 68)}


def program():
    """The compiled program, compiled again where the source is newer."""
    source, made = HERE / "lorenz96.f90", HERE / "build" / "lorenz96"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        for compiler in ("gfortran", "gcc"):
            if shutil.which(compiler) is None:
                raise ConfigurationError(
                    f"{compiler}: expected on the PATH, got none. apt-get install gfortran"
                )
        made.parent.mkdir(exist_ok=True)
        client = files("blackbox.adapters.hosted") / "client"  # or the files of `blackbox host DIR`
        module, c = str(client / "bb_host.f90"), str(client / "bb_host.c")
        subprocess.run(["gcc", "-O2", "-c", c], cwd=made.parent, check=True)
        subprocess.run(
            ["gfortran", "-O2", module, source, "bb_host.o", "-o", "new"], cwd=made.parent, check=True
        )
        made.with_name("new").rename(made)
    return made


def truth(runs):
    """The slow cells of the full system, `(runs, records, cells)`."""
    made, kept = program(), HERE / "build" / f"truth-{runs[0]}-{len(runs)}.npy"
    if not kept.exists() or kept.stat().st_mtime < made.stat().st_mtime:
        printed = [
            subprocess.run(
                [made, "truth", str(run), str(RECORDS)], capture_output=True, text=True, check=True
            ).stdout
            for run in runs
        ]
        np.save(kept, np.array([text.split() for text in printed], dtype=float).reshape(-1, RECORDS, CELLS))
    return np.load(kept)


def states(cases):
    """Where cases begin: run and record, in one number."""
    run, record = divmod(int(cases), RECORDS)
    name = next(name for name, runs in RUNS.items() if run in runs)
    return truth(RUNS[name])[run - RUNS[name][0], record]


class Closure(torch.nn.Module):
    """The term of each cell, from all cells."""

    def __init__(self):
        super().__init__()
        layers = torch.nn.Linear(CELLS, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64)
        self.layers = torch.nn.Sequential(*layers, torch.nn.SiLU(), torch.nn.Linear(64, CELLS))

    def forward(self, x):
        return 5 * self.layers(x / 10)


class Parametrisation(tasks.Problem):
    """A network stands in for 256 fast cells that the Fortran program does not resolve."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "offline", "tangents", "exact")
        steps: Count = 300
        batch: Count = 8
        learning_rate: Positive = 3e-3
        calls: Count = 16
        """Steps of the program in a row of training."""
        free: Count = FREE
        """Steps of the program in a row of the test."""

    presets = {"small": Config(), "ci": Config(steps=2, batch=2, calls=4, free=5)}

    def box(self):  # a row starts the program with the state of its case
        def prepare(case, folder):
            np.savetxt(folder / "start.txt", states(case)[None])

        return Hosted(
            [program(), "model", "start.txt", "1000000"],
            calls=[Call("closure", sees=ArraySpec("x", (CELLS,)), gives=ArraySpec("term", (CELLS,)))],
            prepare=prepare,
            timeout=60,
        )

    def network(self):
        return Closure()

    def data(self):  # a case, and the true states that follow where it begins
        def rows(name, starts, length):
            runs = np.asarray(RUNS[name])
            cases = (runs[:, None] * RECORDS + np.asarray(starts)).ravel()
            known = truth(RUNS[name])
            after = np.stack([known[:, s + 1 : s + 1 + length] for s in starts], axis=1)
            return torch.as_tensor(cases), torch.as_tensor(after.reshape(len(cases), length, CELLS)).float()

        training = rows("training", range(RECORDS - self.config.calls - 1), self.config.calls)
        few = slice(None, 4) if self.config.steps < 10 else slice(None)
        validation = tuple(
            part[few] for part in rows("validation", (0, 60, 120), min(self.config.free, FREE))
        )
        test = tuple(part[few] for part in rows("test", (0, 130), min(self.config.free, FREE)))
        return tasks.Data(tasks.Data.split(training, batch=self.config.batch).train, validation, test)

    def off(self, network, batch):
        """Distance to the truth in its standard deviations, `(rows, calls, cells)`, and the states."""
        cases, after = batch
        states = self.box.run(cases, calls=after.shape[1], closure=network).closure.x[:, 1:]
        return (states - after) / truth(RUNS["training"]).std(), states

    def objective(self, network, batch):
        return self.off(network, batch)[0].square().mean(dim=(1, 2))

    def evaluate(self, network):
        with torch.no_grad():
            off, states = self.off(network, self.data.test)
        errors = off.square().mean(dim=2)
        return {
            "free error": tasks.RowMean(errors.mean(dim=1)),
            "error by step": errors.mean(dim=0),
            "states": states[0],
            "off": off[0],
        }

    def pictures(self, fields):
        def growing(axes, arrays):
            axes.semilogy(DT * np.arange(1, len(arrays["error by step"]) + 1), arrays["error by step"])

        shown = tasks.panels(fields, growing, xlabel="time", ylabel="error / variance", ylim=(1e-5, 3))
        cells = tasks.panels(
            fields,
            lambda axes, arrays, row: arrays["off"].T if row else arrays["states"].T / 10,
            rows=2,
            colours="x / 10; below it the distance to the truth in standard deviations",
            xlabel="step",
            ylabel="cell",
            aspect="auto",
        )
        return {
            "The error of free runs from 32 states of the test.": shown,
            "A free run of the test over time and cells (Hovmöller), and below it what is off.": cells,
        }


def advance(x, term):
    """A step of the program in torch: what a user of it would not have."""

    def rate(x):
        return -x.roll(1, -1) * (x.roll(2, -1) - x.roll(-1, -1)) - x + 20.0 + term

    a = rate(x)
    b = rate(x + DT / 2 * a)
    c = rate(x + DT / 2 * b)
    return x + DT / 6 * (a + 2 * b + 2 * c + rate(x + DT * c))


def offline(setup):
    """What most people do: the term that is missing in a step from one true state to the next, fitted."""

    def loss(network, batch):
        _, after = batch
        before, missing = after[:, :-1], (after[:, 1:] - advance(after[:, :-1], 0.0)) / DT
        return (network(before) - missing).square().mean(dim=(1, 2))

    return setup.descend(tasks.methods.AutogradGradient(setup.network, loss, {}))


def exact(setup):
    """First order: tangents' steps with the program's true derivative."""
    twin = zo.tangents.ModelTangent(lambda x, term, *_: advance(x, term))
    return setup.descend(
        zo.TangentGradient(
            setup.network, setup.objective, boxes=setup.boxes, tangent=twin, excite=0.0, seed=setup.seed
        )
    )


Parametrisation.methods = {
    "offline": tasks.methods.Method("Fitted to the missing term, and never run in the program.", offline),
    "exact": tasks.methods.Method(
        "First order, by the derivative of a twin in torch.", exact, role="first-order"
    ),
}
