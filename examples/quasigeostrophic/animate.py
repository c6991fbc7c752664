"""The flow of a test run with each method's network beside the truth, as an animation.

python examples/quasigeostrophic/animate.py runs/turbulence-large-... [flow.gif]
"""

import sys

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import tasks

STEPS, EVERY = 200, 10
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
    figure = Figure(figsize=(1.6 * len(flows), 1.9), layout="constrained", dpi=90)
    images = []
    for axes, (name, flow) in zip(figure.subplots(1, len(flows)), flows.items(), strict=True):
        axes.set_axis_off()
        axes.set_title(name, fontsize=9)
        images.append(
            axes.imshow(flow[0], cmap="RdBu_r", vmin=-30, vmax=30, origin="lower", interpolation="nearest")
        )

    canvas, pictures = FigureCanvasAgg(figure), []
    for step in range(0, STEPS, EVERY):
        for image, flow in zip(images, flows.values(), strict=True):
            image.set_data(flow[step])
        canvas.draw()
        picture = Image.frombytes("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
        pictures.append(picture.quantize(48, dither=Image.Dither.NONE))
    pictures[0].save(to, save_all=True, append_images=pictures[1:], duration=180, loop=0, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
