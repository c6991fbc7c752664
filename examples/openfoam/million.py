"""A cavity of 10^6 cells is stepped by icoFoam and corrected once by a network trained through it.

    python examples/openfoam/million.py                 1,000 x 1,000 cells, one row, one step of training
    python examples/openfoam/million.py --cells 16      the same on few cells, in some seconds

A network of 738 weights, as in `problem.py`, changes the velocity in front of icoFoam towards what a lid that
is a tenth faster would have made. It says the seconds of the box and of a step, and the memory; in a line
that begins with "result" as JSON.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from problem import cavity, corrector

import zo
from zo.tangents.models.lessons import listening


def memory():
    """The largest so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1000, help="along a side")
    cells = parser.parse_args().cells
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        step = 1.0 / cells  # s, in which the lid passes a cell
        box = cavity(Path(folder), cells, step, span=step, pressure="GAMG", timeout=3600)
        lid = torch.tensor([1.0, 1.1])  # m/s
        clock = Clock()
        rest = torch.zeros(2, 2, cells, cells)
        both = box(rest, lid)
        clock.say("two rows of the box, from rest")
        start, wanted = both[:1], both[1:]
        network = corrector()

        def objective(network, batch):
            state, lid, wanted = batch
            lid_speed = lid[:, None, None, None].expand(-1, 1, cells, cells)
            state = state + 0.1 * network(torch.cat((state, lid_speed), dim=1))
            return 1e3 * (box(state, lid) - wanted).square().mean(dim=(1, 2, 3))

        gradient = zo.TangentGradient(network, objective, boxes=[box])
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        batch = start, lid[:1], wanted
        lesson = []
        with listening(lambda done, most: lesson.append(time.process_time())):
            before = float(gradient.backward(batch))
        clock.say("a step of training: rows of the box, learning and the gradient")
        optimizer.step()
        with torch.no_grad():
            after = float(objective(network, batch).mean())
        clock.say("one row of the box, corrected")
        measured = {
            "cells": cells**2,
            "rows": gradient.counts.rows,
            "loss before": before,
            "loss after": after,
            "agreement": gradient.agreement,
            "CPU seconds of the first lesson": lesson[-1] - lesson[0],
            "memory of training, GiB": memory(),
        }
        print("result", json.dumps(clock.seconds | measured))


class Clock:
    """CPU seconds since the last question, of this process and of those that it ran."""

    def __init__(self):
        self.last, self.seconds = self.now(), {}

    def now(self):
        return time.process_time(), sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

    def say(self, what):
        now = self.now()
        here, others = (round(new - old, 1) for new, old in zip(now, self.last, strict=True))
        self.last, self.seconds[what] = now, {"this process": here, "icoFoam": others}
        print(f"{what}: {here} s here, {others} s in icoFoam", flush=True)


if __name__ == "__main__":
    main()
