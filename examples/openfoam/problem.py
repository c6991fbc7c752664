"""A network corrects a coarse icoFoam after each of its steps, towards what a finer icoFoam does."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch

import tasks
from blackbox import ArraySpec, Parallel
from blackbox.adapters import CommandLine, openfoam
from blackbox.errors import ConfigurationError
from tasks.configuration import Count, Positive

CASE = Path(__file__).with_name("case")
COARSE, FINE = 16, 64  # cells along a side
ROOT = {"WM_PROJECT_DIR": os.environ.get("WM_PROJECT_DIR", "/usr/share/openfoam")}  # Debian's, if none is set


def write_velocity(path, velocity):
    """(2, cells, cells) into the field's file, whose patches stay."""
    openfoam.write_field(path, torch.nn.functional.pad(torch.as_tensor(velocity).flatten(1).T, (0, 1)))


def read_velocity(path):
    """The velocity (2, cells, cells), without the third component, which is zero."""
    values = openfoam.read_field(path)
    return values[:, :2].T.reshape(2, isqrt(len(values)), -1)


def mesh(folder, cells, step, span, pressure):
    """The case with its mesh, made once."""
    made = folder / f"cavity-{cells}-{step:g}-{span:g}-{pressure}"
    if not made.exists():
        if shutil.which("blockMesh") is None:
            raise ConfigurationError("blockMesh: expected on the PATH, got none. apt-get install openfoam")
        new = made.with_name(f"{made.name}.{os.getpid()}")
        shutil.copytree(CASE, new)
        (new / "system" / "settings").write_text(
            f"cells {cells}; step {step:g}; span {span:g}; pressure {pressure};"
        )
        subprocess.run(["blockMesh", "-case", new], check=True, env=os.environ | ROOT, capture_output=True)
        new.rename(made)
    return made


def cavity(folder, cells, step, span=0.2, pressure="PCG", timeout=120):
    """The program icoFoam, for 0.2 s in each row: a process of some 50 ms with 16 x 16 cells, two at once.

    On many cells the pressure needs a multigrid, GAMG.
    """
    field = ArraySpec("velocity", (2, cells, cells))  # m/s
    box = CommandLine(
        ["icoFoam"],
        inputs=[field, ArraySpec("lid", (), differentiable=False)],  # m/s
        outputs=[field],
        copies={
            part: mesh(folder, cells, step, span, pressure) / part for part in ("0", "constant", "system")
        },
        input_files={"velocity": ("0/U", write_velocity)},
        input_templates={"lid": "speed {lid:.9g};"},
        output_files={"velocity": (f"{span:g}/U", read_velocity)},
        environment=ROOT,
        timeout=timeout,
        failures="keep",
    )
    return Parallel(box, lambda: ThreadPoolExecutor(2))


def corrector():
    """Velocity and the lid's speed in each cell to a change of the velocity."""
    same = {"padding": 1, "padding_mode": "replicate"}
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, **same), torch.nn.GELU(), torch.nn.Conv2d(16, 2, 3, **same)
    )
    torch.nn.init.zeros_(network[2].bias)
    torch.nn.init.normal_(network[2].weight, std=1e-3)
    return network


class Cavity(tasks.Problem):
    """A network corrects a coarse solver of a lid-driven cavity, and is trained through it."""

    units = {"error": "of the coarse solver's"}

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "no-gradient")
        steps: Count = 40
        batch: Count = 3
        learning_rate: Positive = 5e-3
        unroll: Count = 3
        """Solver steps in a loss."""
        fine_runs: Count = 12
        """Fine runs that are learned from; a third of them is held out."""

    presets = {
        "small": Config(),
        "large": Config(steps=60, batch=4, unroll=6, fine_runs=24),
        "ci": Config(steps=2, batch=2, unroll=2, fine_runs=3),
    }

    def box(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        return cavity(self.folder, COARSE, 0.05)

    def network(self):
        return corrector()

    def data(self):  # the fine solver from rest, its velocities averaged over coarse cells
        count, config = self.config.fine_runs, self.config
        lid = 0.5 + torch.rand(count, generator=torch.Generator().manual_seed(0))
        fine, state, seen = cavity(self.folder, FINE, 0.0125), torch.zeros(count, 2, FINE, FINE), []
        for _ in range(config.unroll + 4):
            state = fine(state, lid)
            seen.append(torch.nn.functional.avg_pool2d(state, FINE // COARSE))
        seen = torch.stack(seen, dim=1)
        starts = [seen[:, start : start + config.unroll + 1] for start in range(4)]  # windows in time
        held_out = max(1, count // 6) * 4
        rows = (torch.stack(starts, dim=1).flatten(0, 1), lid.repeat_interleave(4))
        return tasks.Data.split(rows, batch=config.batch, validation=held_out, test=held_out)

    def rollout(self, network, start, lid):
        state = start
        for _ in range(self.config.unroll):
            state = self.box(state, lid)
            lid_speed = lid[:, None, None, None].expand(-1, 1, COARSE, COARSE)
            state = state + 0.1 * network(torch.cat((state, lid_speed), dim=1))
        return state

    def objective(self, network, batch):
        truth, lid = batch
        return 1e3 * (self.rollout(network, truth[:, 0], lid) - truth[:, -1]).square().mean(dim=(1, 2, 3))

    def evaluate(self, network):
        truth, lid = self.data.test
        with torch.no_grad():
            corrected = self.rollout(network, truth[:, 0], lid)
            plain = self.rollout(lambda state: 0 * state[:, :2], truth[:, 0], lid)
        ratio = (corrected - truth[:, -1]).square().mean().sqrt() / (
            plain - truth[:, -1]
        ).square().mean().sqrt()
        return {"error": ratio.item(), "found": corrected[0], "truth": truth[0, -1]}

    def pictures(self, fields):
        def error(axes, arrays):
            return torch.as_tensor(arrays["found"] - arrays["truth"]).norm(dim=0)

        shown = tasks.panels(fields, error, colours="m/s")
        return {"Error of the velocity after the last step, a test run.": shown}
