"""A closure that is trained inside OpenFOAM: pisoFoam on a coarse mesh calls the network in each step."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

import tasks
import zo
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted, openfoam
from blackbox.errors import ConfigurationError
from blackbox.layout import Grid
from tasks.configuration import Count, Positive

HERE = Path(__file__).parent
ROOT = {"WM_PROJECT_DIR": os.environ.get("WM_PROJECT_DIR", "/usr/share/openfoam")}  # Debian's, if none is set
COARSE, FINE = 4, 8  # cells along a side of the square; the channel is 12 x 6 squares
LINES, COLUMNS = 6 * COARSE, 12 * COARSE
STEP = 0.1  # of the coarse program; the square is 1 wide and the flow 1 fast
REYNOLDS = {"training": (90, 120, 150), "validation": (135,), "test": (105,)}


def sources():
    """The folder of OpenFOAM's sources, of which the headers are needed."""
    places = [Path(os.environ["FOAM_SRC"])] if "FOAM_SRC" in os.environ else []
    places += sorted(Path("/usr/src").glob("openfoam-*/src"))
    for place in places:
        if (place / "finiteVolume").is_dir():
            return place
    raise ConfigurationError(
        "OpenFOAM's sources: expected them in FOAM_SRC or /usr/src, got none. cd /usr/src && apt-get source "
        "openfoam"
    )


def library():
    """The compiled closure, compiled again where the source is newer."""
    source, made = HERE / "networkSource.C", HERE / "build" / "networkSource.so"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        for program in ("g++", "gcc", "pisoFoam"):
            if shutil.which(program) is None:
                raise ConfigurationError(
                    f"{program}: expected on the PATH, got none. apt-get install openfoam g++"
                )
        include, made_of = HERE / "build" / "include", sources()
        words = [f"-I{include / part}" for part in ("OpenFOAM", "OSspecific", "finiteVolume", "meshTools")]
        for word in words:  # a folder for each library, with all of its headers, as wmake makes them
            folder = Path(word[2:])
            folder.mkdir(parents=True, exist_ok=True)
            for header in (made_of / folder.name).rglob("*.[HC]"):
                if "lnInclude" not in header.parts and not (folder / header.name).is_symlink():
                    (folder / header.name).symlink_to(header)
        version = (made_of.parent / "META-INFO" / "api-info").read_text().split()[0].removeprefix("api=")
        words += [f"-DOPENFOAM={version}", "-DWM_DP", "-DWM_LABEL_SIZE=32", "-DNoRepository"]
        client = files("blackbox.adapters.hosted") / "client"  # or the files of `blackbox host DIR`
        words += [f"-I{client}", "-std=c++14", "-O2", "-fPIC", "-shared", "-w"]
        place = made.parent
        subprocess.run(["gcc", "-O2", "-fPIC", "-c", str(client / "bb_host.c")], cwd=place, check=True)
        subprocess.run(["g++", *words, source, "bb_host.o", "-o", "new.so"], cwd=place, check=True)
        (place / "new.so").rename(made)
    return made


def order(cells):
    """Where the cells of the mesh, block by block, lie in the grid of the channel."""
    grid = np.arange(72 * cells * cells).reshape(6 * cells, 12 * cells)
    below, left = 5 * cells // 2, 3 * cells
    rows, columns = ([0, below, below + cells, 6 * cells], [0, left, left + cells, 12 * cells])
    blocks = [
        grid[rows[j] : rows[j + 1], columns[i] : columns[i + 1]].ravel()
        for j in range(3)
        for i in range(3)
        if (i, j) != (1, 1)  # the square
    ]
    return np.concatenate(blocks)


def case(folder, cells, reynolds, step, end, every, convection, accuracy):
    """The case with its mesh, made once."""
    if not folder.exists():
        if shutil.which("blockMesh") is None:
            raise ConfigurationError("blockMesh: expected on the PATH, got none. apt-get install openfoam")
        new = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.copytree(HERE / "case", new)
        (new / "settings").write_text(
            f"before {3 * cells}; across {cells}; behind {8 * cells}; beside {5 * cells // 2};\n"
            f"columns {12 * cells}; lines {6 * cells}; spacing {1 / cells:g}; viscosity {1 / reynolds:.9g};\n"
            f"step {step:g}; end {end:g}; every {every:g}; accuracy {accuracy:g};\n"
            f"convection Gauss {convection};\n"
            f'libs ("{library()}");\n'
        )
        subprocess.run(["blockMesh", "-case", new], check=True, env=os.environ | ROOT, capture_output=True)
        new.rename(folder)
    return folder


def start(folder, cells, velocity, pressure):
    """Write what a run begins with: velocity `(2, lines, columns)`, pressure `(lines, columns)`."""
    places = order(cells)
    openfoam.write_field(folder / "0" / "U", np.pad(velocity.reshape(2, -1)[:, places].T, ((0, 0), (0, 1))))
    openfoam.write_field(folder / "0" / "p", pressure.reshape(-1, 1)[places])


def read(folder, name, cells):
    """A field of a run on the grid, zero in the square: `(components, lines, columns)`."""
    places = order(cells)
    values = openfoam.read_field(folder / name, cells=len(places))
    field = np.zeros((values.shape[1], 72 * cells * cells))
    field[:, places] = values.T
    return field.reshape(-1, 6 * cells, 12 * cells)


@cache
def truth(reynolds, records, spin_up):
    """Velocity and pressure on the fine mesh, averaged over coarse cells: `(records, 3, lines, columns)`."""
    kept = HERE / "build" / f"truth-{reynolds}-{records}-{spin_up:g}.npy"
    if not kept.exists() or kept.stat().st_mtime < library().stat().st_mtime:
        folder = HERE / "build" / f"fine-{reynolds}-{records}-{spin_up:g}"
        shutil.rmtree(folder, ignore_errors=True)
        end = spin_up + STEP * records
        case(folder, FINE, reynolds, STEP / 2, end, STEP, "linear", 1e-6)
        y, x = (np.mgrid[: 6 * FINE, : 12 * FINE] + 0.5) / FINE
        push = 0.3 * np.exp(-((x - 5) ** 2) - (y - 3) ** 2)  # or it takes long to be unsteady
        start(folder, FINE, np.stack([np.ones_like(push), push]), 0 * push)
        subprocess.run(["pisoFoam"], cwd=folder, env=os.environ | ROOT, check=True, capture_output=True)
        times = [f"{spin_up + STEP * record:.9g}" for record in range(1, records + 1)]
        fine = np.stack(
            [
                np.concatenate([read(folder, f"{time}/U", FINE)[:2], read(folder, f"{time}/p", FINE)])
                for time in times
            ]
        )
        ratio = FINE // COARSE
        np.save(kept, fine.reshape(records, 3, LINES, ratio, COLUMNS, ratio).mean(axis=(3, 5)))
        shutil.rmtree(folder)
    return np.load(kept)


FLUID = np.zeros(LINES * COLUMNS)
FLUID[order(COARSE)] = 1


class Closure(torch.nn.Module):
    """A force in each cell from the velocity around it; nothing at first."""

    def __init__(self):
        super().__init__()

        def layer(a, b):
            return torch.nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate")

        self.register_buffer("fluid", torch.tensor(FLUID).float().view(1, LINES, COLUMNS))
        self.layers = torch.nn.Sequential(
            layer(3, 16), torch.nn.SiLU(), layer(16, 8), torch.nn.SiLU(), layer(8, 2)
        )
        torch.nn.init.zeros_(self.layers[-1].weight)
        torch.nn.init.zeros_(self.layers[-1].bias)

    def forward(self, velocity):
        fluid = self.fluid.expand(len(velocity), -1, -1, -1)
        return fluid * self.layers(torch.cat((velocity, fluid), dim=1))


class Street(tasks.Problem):
    """A network gives the force by which a coarse mesh sheds vortices as a fine one does."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "offline", "linear")
        steps: Count = 60
        batch: Count = 4
        learning_rate: Positive = 3e-3
        calls: Count = 12
        """Time steps of the program in a row of training."""
        free: Count = 100
        """Time steps of the program in a row of the test."""
        records: Count = 200
        """Of the fine mesh in a run, a step of the coarse program each."""
        spin_up: Positive = 30.0
        """Time of the fine mesh before the first of them."""
        convection: str = "linearUpwind grad(U)"
        """The coarse program's scheme."""

    presets = {
        "small": Config(),
        "upwind": Config(convection="upwind"),
        "ci": Config(steps=2, batch=2, calls=3, free=5, records=30, spin_up=1.0),
    }

    def box(self):  # a row starts pisoFoam with the fields of its case
        config = self.config
        numbers = [number for numbers in REYNOLDS.values() for number in numbers]
        made = {
            number: case(
                HERE / "build" / f"coarse-{number}-{config.convection.split()[0]}",
                COARSE,
                number,
                STEP,
                1e6,
                1e6,
                config.convection,
                1e-10,  # nearly to rounding, or differences see the solvers' ends
            )
            for number in numbers
        }

        def prepare(row, folder):
            run, record = divmod(row, config.records)
            for part in ("0", "constant", "system", "settings"):
                place = made[numbers[run]] / part
                (shutil.copytree if place.is_dir() else shutil.copy)(place, folder / part)
            fields = truth(numbers[run], config.records, config.spin_up)[record]
            start(folder, COARSE, fields[:2], fields[2])

        velocity = ArraySpec("velocity", (2, LINES, COLUMNS), layout=Grid())
        force = ArraySpec("force", (2, LINES, COLUMNS), layout=Grid())
        call = Call("closure", sees=velocity, gives=force)
        return Hosted(["pisoFoam"], calls=[call], prepare=prepare, environment=ROOT, timeout=60)

    def network(self):
        return Closure()

    def data(self):  # a case, and the true velocities that follow
        config = self.config
        numbers = [number for numbers in REYNOLDS.values() for number in numbers]
        with ThreadPoolExecutor(2) as pool:  # each run of the fine mesh is a process
            runs = [*pool.map(lambda number: truth(number, config.records, config.spin_up), numbers)]

        def rows(kind, starts, length):
            cases, after = [], []
            for run in (numbers.index(number) for number in REYNOLDS[kind]):
                cases += [run * config.records + start for start in starts]
                after += [runs[run][start + 1 : start + 1 + length, :2] for start in starts]
            return torch.tensor(cases), torch.as_tensor(np.stack(after)).float()

        last = config.records - config.free - 1
        training = rows("training", range(config.records - config.calls - 1), config.calls)
        validation = rows("validation", range(0, last, max(1, last // 4)), config.free // 2)
        test = rows("test", range(0, last, max(1, last // 6)), config.free)
        return tasks.Data(tasks.Data.split(training, batch=config.batch).train, validation, test)

    def run(self, network, batch):
        """The velocity after each step, and the truth's."""
        cases, after = batch
        return self.box.run(cases, calls=after.shape[1], closure=network).closure.velocity[:, 1:], after

    def errors(self, network, batch):
        """Square distance to the truth over how much that varies in time, `(rows, calls)`."""
        found, after = self.run(network, batch)
        return (found - after).square().mean(dim=(2, 3, 4)) / self.varies

    @property
    def varies(self):
        """The mean square of a velocity's distance from its mean in time, in the first run of training."""
        first = REYNOLDS["training"][0]
        return float(truth(first, self.config.records, self.config.spin_up)[:, :2].var(axis=0).mean())

    def objective(self, network, batch):
        return self.errors(network, batch).mean(dim=1)

    def evaluate(self, network):
        with torch.no_grad():
            found, after = self.run(network, self.data.test)
        errors = (found - after).square().mean(dim=(2, 3, 4)) / self.varies
        return {
            "free error": tasks.RowMean(errors.mean(dim=1)),
            "error at the end": tasks.RowMean(errors[:, -1]),
            "error by step": errors.mean(dim=0),
            "field": found[0, -1, 1],
            "true field": after[0, -1, 1],
        }

    def pictures(self, fields):
        def growing(axes, arrays):
            axes.semilogy(STEP * np.arange(1, len(arrays["error by step"]) + 1), arrays["error by step"])

        def across(axes, arrays):
            return axes.imshow(arrays["field"], cmap="RdBu_r", vmin=-0.8, vmax=0.8, origin="lower")

        shown = tasks.panels(fields, growing, xlabel="time", ylabel="error / variance")
        return {
            "The error of free runs from states of the test.": shown,
            "Velocity across the channel at the end of the first run of the test.": tasks.panels(
                fields, across, colours="speed"
            ),
        }


def offline(setup):
    """The force that is missing in a step from one true state to the next, fitted: a row for each state."""
    problem = setup.problem

    def loss(network, batch):
        cases, after = batch
        with torch.no_grad():
            first = problem.box.run(cases, calls=1, closure=lambda seen: 0 * seen).closure.velocity
        missing = (after[:, 0] - first[:, 1]) / STEP
        return (network(first[:, 0]) - missing).square().mean(dim=(1, 2, 3))

    return setup.descend(tasks.methods.AutogradGradient(setup.network, loss, {}))


def linear(setup):
    """Tangents whose model is a linear stencil: what the force in a cell does, and nothing of products."""
    tangent = zo.tangents.StencilTangent(degree=1)
    return setup.descend(
        zo.TangentGradient(
            setup.network, setup.objective, boxes=setup.boxes, tangent=tangent, seed=setup.seed
        )
    )


Street.methods = {
    "linear": tasks.methods.Method(
        "Tangents by a linear stencil, fitted to the values of training's rows.", linear
    ),
    "offline": tasks.methods.Method("Fitted to the missing force, and never run in the program.", offline),
}
