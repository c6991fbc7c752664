"""The flow of a test run with each method's network beside the truth, as an animation.

python examples/quasigeostrophic/animate.py runs/turbulence-large-... [flow.gif]
"""

import sys

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

import tasks

STEPS, EVERY = 200, 5
SHOWN = {"none": "no closure", "offline": "offline", "tangents": "tangents"}


def main(run, to="flow.gif"):
    """Write it."""
    run = tasks.load(run)
    problem = run.problem
    cases, after = problem.data.test
    flows = {"truth": after[0, :STEPS]}
    with torch.no_grad():
        for method, name in SHOWN.items():
            found, _ = problem.run(run.network(method), (cases[:1], after[:1, :STEPS]))
            flows[name] = found[0]
    figure = Figure(figsize=(1.6 * len(flows), 1.9), layout="constrained")
    images = []
    for axes, (name, flow) in zip(figure.subplots(1, len(flows)), flows.items(), strict=True):
        axes.set_axis_off()
        axes.set_title(name, fontsize=9)
        images.append(axes.imshow(flow[0], cmap="RdBu_r", vmin=-30, vmax=30, origin="lower"))

    def draw(number):
        for image, flow in zip(images, flows.values(), strict=True):
            image.set_data(flow[number * EVERY])
        return images

    FuncAnimation(figure, draw, frames=STEPS // EVERY).save(to, writer=PillowWriter(fps=8), dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
