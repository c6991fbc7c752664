"""A closure for two-dimensional turbulence on a beta plane, trained inside a C++ program that calls it."""

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

import tasks
import zo
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.errors import ConfigurationError
from blackbox.layout import Grid
from tasks.configuration import Count, Positive

HERE = Path(__file__).parent
BETA, DRAG, VISCOSITY, FORCING, FORCED = 10.0, 0.1, 3e-3, 6.0, 4  # as in qg.cpp
SEEDS = {"training": 1, "validation": 2, "test": 3}
SPIN_UP = 30  # units of time
EARLY = 100  # steps, before the flow is another one whatever the closure


def program():
    """The compiled program, compiled again where the source is newer."""
    source, made = HERE / "qg.cpp", HERE / "build" / "qg"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        if shutil.which("g++") is None or not Path("/usr/include/fftw3.h").exists():
            raise ConfigurationError(
                "g++, FFTW: expected both, got one or none. apt-get install g++ libfftw3-dev"
            )
        made.parent.mkdir(exist_ok=True)
        client = str(files("blackbox.adapters.hosted") / "client")  # or the files of `blackbox host DIR`
        subprocess.run(["gcc", "-O2", "-c", f"{client}/bb_host.c"], cwd=made.parent, check=True)
        words = ["g++", "-O3", "-std=c++17", f"-I{client}", source, "bb_host.o", "-lfftw3", "-o", "new"]
        subprocess.run(words, cwd=made.parent, check=True)
        made.with_name("new").rename(made)
    return made


@cache
def truth(kind, cells, records):
    """The vorticity of a run with four times as many cells in each direction, on `cells` x `cells`.

    A record after each step of the coarse program, `(records, cells, cells)`.
    """
    made, fine, folder = program(), 4 * cells, HERE / "build"
    kept = folder / f"truth-{kind}-{cells}-{records}.npy"
    if not kept.exists() or kept.stat().st_mtime < made.stat().st_mtime:
        start, run = folder / f"start-{kind}-{fine}", folder / f"run-{kind}-{fine}"
        subprocess.run([made, "start", str(fine), str(SEEDS[kind]), str(SPIN_UP), start], check=True)
        steps, dt = 4 * records, str(step_of(cells) / 4)
        subprocess.run([made, "run", str(fine), start, str(steps), dt, "4", run], check=True)
        q = torch.from_numpy(np.fromfile(run).reshape(records, fine, fine))
        modes = torch.fft.rfft2(q, norm="forward")
        rows = torch.cat([torch.arange(cells // 2), torch.arange(fine - cells // 2, fine)])
        modes = modes[:, rows, : cells // 2 + 1].clone()
        modes[:, cells // 2] = 0
        modes[:, :, cells // 2] = 0
        np.save(kept, torch.fft.irfft2(modes, s=(cells, cells), norm="forward").numpy())
        run.unlink()
    return np.load(kept)


def step_of(cells):
    """The coarse program's step in units of time."""
    return 0.4 / cells


class Closure(torch.nn.Module):
    """A tendency of vorticity from that around each cell; nothing at first."""

    def __init__(self):
        super().__init__()

        def layer(a, b):
            return torch.nn.Conv2d(a, b, 5, padding=2, padding_mode="circular")

        self.layers = torch.nn.Sequential(
            layer(1, 16), torch.nn.SiLU(), layer(16, 16), torch.nn.SiLU(), layer(16, 1)
        )
        torch.nn.init.zeros_(self.layers[-1].weight)
        torch.nn.init.zeros_(self.layers[-1].bias)

    def forward(self, vorticity):
        tendency = 10 * self.layers(vorticity[:, None] / 10)[:, 0]
        return tendency - tendency.mean(dim=(1, 2), keepdim=True)  # the total stays


class Turbulence(tasks.Problem):
    """A network stands in for what a grid of a quarter of the cells in each direction does not resolve."""

    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "offline", "tangents", "linear", "exact")
        steps: Count = 200
        batch: Count = 4
        learning_rate: Positive = 2e-3
        cells: Count = 32
        """Of the program in each direction; the truth has four times as many."""
        records: Count = 3000
        """Of the truth in training, a step of the program each."""
        calls: Count = 8
        """Steps of the program in a row of training."""
        free: Count = 400
        """Steps of the program in a row of the test."""

    presets = {
        "small": Config(),
        "large": Config(cells=64, steps=100),
        "ci": Config(cells=16, records=300, steps=2, batch=2, calls=3, free=5),
    }

    def box(self):  # a row starts the program from the state of its case
        config = self.config
        cells = str(config.cells)
        spec = ArraySpec("vorticity", (config.cells, config.cells), layout=Grid(periodic=True))
        gives = ArraySpec("tendency", (config.cells, config.cells), layout=Grid(periodic=True))

        def prepare(case, folder):
            kind = list(SEEDS)[case // config.records]
            truth(kind, config.cells, config.records)[case % config.records].tofile(folder / "start")

        words = [program(), "run", cells, "start", "1000000", str(step_of(config.cells)), "1", "-"]
        return Hosted(words, calls=[Call("closure", sees=spec, gives=gives)], prepare=prepare, timeout=60)

    def network(self):
        return Closure()

    def data(self):  # a case, and the true states that follow
        config = self.config

        def rows(kind, starts, length):
            known = truth(kind, config.cells, config.records)
            cases = list(SEEDS).index(kind) * config.records + torch.as_tensor(starts)
            after = np.stack([known[start + 1 : start + 1 + length] for start in starts])
            return cases, torch.as_tensor(after).float()

        training = rows("training", range(config.records - config.calls - 1), config.calls)
        apart = (config.records - config.free - 1) // 8
        validation = rows("validation", range(0, 8 * apart, 2 * apart), config.free // 4 + 1)
        test = rows("test", range(0, 8 * apart, apart), config.free)
        return tasks.Data(tasks.Data.split(training, batch=config.batch).train, validation, test)

    def run(self, network, batch):
        """The vorticity after each step, and the truth's."""
        cases, after = batch
        return self.box.run(cases, calls=after.shape[1], closure=network).closure.vorticity[:, 1:], after

    def objective(self, network, batch):
        found, after = self.run(network, batch)
        return (found - after).square().mean(dim=(1, 2, 3)) / after.square().mean()

    def evaluate(self, network):
        with torch.no_grad():
            found, after = self.run(network, self.data.test)
        errors = (found - after).square().mean(dim=(2, 3)) / after.square().mean()
        together = (found * after).sum(dim=(2, 3)) / (found.norm(dim=(2, 3)) * after.norm(dim=(2, 3)))
        early = min(EARLY, found.shape[1]) - 1
        return {
            "lost after 100 steps": tasks.RowMean(1 - together[:, early]),
            "free error": tasks.RowMean(errors.mean(dim=1)),
            "correlation at the end": tasks.RowMean(together[:, -1]),
            "enstrophy at the end": tasks.RowMean(
                found[:, -1].square().mean(dim=(1, 2)) / after[:, -1].square().mean(dim=(1, 2))
            ),
            "correlation": together.mean(dim=0),
            "spectrum": spectrum(found[:, -1]),
            "true spectrum": spectrum(after[:, -1]),
            "field": found[0, -1],
            "true field": after[0, -1],
        }

    def pictures(self, fields):
        def spectra(axes, arrays):
            waves = np.arange(1, len(arrays["spectrum"]))
            axes.loglog(waves, arrays["true spectrum"][1:], color="0.6")
            axes.loglog(waves, arrays["spectrum"][1:])

        def map_of(axes, arrays):
            return axes.imshow(arrays["field"], cmap="RdBu_r", vmin=-30, vmax=30, origin="lower")

        return {
            "Enstrophy over the wave number at the end of the test's runs; grey: the truth.": tasks.panels(
                fields, spectra, xlabel="wave number", ylabel="enstrophy"
            ),
            "Vorticity at the end of the first run of the test.": tasks.panels(
                fields, map_of, colours="vorticity"
            ),
        }


def spectrum(q):
    """Enstrophy by wave number, the mean over rows."""
    n = q.shape[-1]
    power = torch.fft.fft2(q.double(), norm="forward").abs().square()
    k = torch.fft.fftfreq(n, 1 / n)
    ring = (k[:, None].square() + k.square()).sqrt().round().long().clamp(max=n // 2)
    return torch.zeros(n // 2 + 1).double().index_add(0, ring.flatten(), power.mean(dim=0).flatten())


def advance(q, closure):
    """A step of the program in torch: what a user of it would not have."""
    n = q.shape[-1]
    k, m = torch.arange(n // 2 + 1.0), torch.fft.fftfreq(n, 1 / n)
    k, m = (wave.to(q.device, torch.float64) for wave in (k[None], m[:, None]))
    square, kept = k**2 + m**2, (3 * m.abs() < n) & (3 * k < n)
    inverse = torch.where((square > 0) & kept, 1 / square.clamp(min=1), 0.0)
    force = torch.zeros(n, n // 2 + 1, dtype=torch.complex128, device=q.device)
    force[FORCED, 0] = force[n - FORCED, 0] = -FORCING / 2
    added = torch.fft.rfft2(closure.double(), norm="forward")

    def grid(modes):
        return torch.fft.irfft2(modes, s=(n, n), norm="forward")

    def rate(modes):
        psi = -modes * inverse
        u, v, part = grid(-1j * m * psi), grid(1j * k * psi), grid(modes * kept)
        a, b = (torch.fft.rfft2(flow * part, norm="forward") for flow in (u, v))
        advected = kept * (-1j * k * a - 1j * m * b - BETA * (1j * k * psi))
        return advected - (DRAG + VISCOSITY * square) * modes + force + added

    modes, dt = torch.fft.rfft2(q.double(), norm="forward"), step_of(n)
    a = rate(modes)
    b = rate(modes + dt / 2 * a)
    c = rate(modes + dt / 2 * b)
    return grid(modes + dt / 6 * (a + 2 * b + 2 * c + rate(modes + dt * c))).to(q.dtype)


def offline(setup):
    """The tendency that is missing in a step from one true state to the next, fitted."""
    dt = step_of(setup.config.cells)

    def loss(network, batch):
        _, after = batch
        before, then = after[:, :-1].flatten(0, 1), after[:, 1:].flatten(0, 1)
        with torch.no_grad():
            missing = (then - advance(before, torch.zeros_like(before))) / dt
        error = (network(before) - missing).square().mean(dim=(1, 2)) / missing.square().mean()
        return error.view(len(after), -1).mean(dim=1)

    return setup.descend(tasks.methods.AutogradGradient(setup.network, loss, {}))


def exact(setup):
    """First order: tangents' steps with the program's true derivative."""
    twin = zo.tangents.ModelTangent(lambda q, tendency, *_: advance(q, tendency))
    return setup.descend(
        zo.TangentGradient(
            setup.network, setup.objective, boxes=setup.boxes, tangent=twin, excite=0.0, seed=setup.seed
        )
    )


def linear(setup):
    """Tangents whose model is a linear stencil: what the tendency of a cell does, and nothing of products."""
    tangent = zo.tangents.StencilTangent(degree=1)
    return setup.descend(
        zo.TangentGradient(
            setup.network, setup.objective, boxes=setup.boxes, tangent=tangent, seed=setup.seed
        )
    )


Turbulence.methods = {
    "linear": tasks.methods.Method(
        "Tangents by a linear stencil, fitted to the values of training's rows.", linear
    ),
    "offline": tasks.methods.Method("Fitted to the missing tendency, and never run in the program.", offline),
    "exact": tasks.methods.Method(
        "First order, by the derivative of a twin in torch.", exact, role="first-order"
    ),
}
