"""The pictures of fields: vorticity side by side, still and in motion, and where each method errs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import AxesImage
from matplotlib.patches import Circle
from PIL import Image

from simulators.wake_flow.geometry import CENTRE, LENGTHS
from tasks.applications.wake_flow.config import Config, budget_of, family_of, without_budget
from tasks.applications.wake_flow.diagnostics import DIAMETER
from tasks.applications.wake_flow.evaluation import REFERENCE, Tracks, methods
from tasks.folder import atomic
from tasks.report import pictures

SHOWN = ("SRC", "NON", "ZO-SOL", "TAN-SOL", "FO-SOL")  # families of `shown`
MILLISECONDS = 120  # a picture
QUALITY = 60  # of WebP: 48 pictures of noise are 1.2 megabytes, which become a part of the page
COLUMNS = 3  # times side by side
LENGTH, WIDTH = LENGTHS[1] / DIAMETER, LENGTHS[0] / DIAMETER  # of a panel, in diameters


def vorticity(velocity: np.ndarray, cell: float) -> np.ndarray:
    """The curl at the corners between cells.

    Args:
        velocity: `(..., 2, height, width)`, x on left faces, y (along the stream) on upper faces.
        cell: side of a cell.

    Returns:
        `(..., height - 1, width - 1)`, dv/dx - du/dy, per unit of time.
    """
    across, along = velocity[..., 0, :, :], velocity[..., 1, :, :]
    # A corner has u on the faces below and above it, v on those left and right of it.
    return (np.diff(along, axis=-1)[..., :-1, :] - np.diff(across, axis=-2)[..., :, 1:]) / cell


def turned(field: np.ndarray) -> np.ndarray:
    """A field `(height, width)` as a picture, first row on top, with the stream from left to right.

    It is a quarter turn, not a reflection, which would change the sign of vorticity.
    """
    return field.T


def shown(methods: Iterable[str]) -> list[str]:
    """Methods of a picture of wakes, not to make it too long: of each family with the larger network."""
    order, names = list(methods), list[str]()
    for family in SHOWN:
        of_family = [method for method in order if family_of(method)[0] == family]
        names += [method for method in of_family if family_of(method)[1]] or of_family
    return names


def label(method: str, between: str = ", ") -> str:
    """A method's name as pictures have it: "FO-SOL large@4800" is "FO-SOL large, 4,800 rows"."""
    rows = budget_of(method)
    return method if rows is None else f"{without_budget(method)}{between}{rows:,} rows"


def shown_vorticity(
    tracks: Tracks, config: Config, chosen: Sequence[str]
) -> tuple[dict[str, np.ndarray], float]:
    """Vorticity `(times, height - 1, width - 1)` in U / D of the reference and of methods, and its scale."""
    cell = LENGTHS[0] / config.width
    names = (REFERENCE, *(method for method in chosen if method in tracks))
    fields = {name: vorticity(tracks[name]["moving"], cell) * DIAMETER for name in names}
    return fields, float(np.quantile(np.abs(fields[REFERENCE]), 0.995))


def draw_wake(axes: Axes, field: np.ndarray, config: Config, limit: float) -> AxesImage:
    """One field of vorticity in a panel of its own, with the cylinder."""
    pictures.image_axes(axes)
    half = LENGTHS[0] / config.width / 2 / DIAMETER  # corners are half a cell inside what they stand for
    image = axes.imshow(
        turned(field), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="bilinear",
        extent=(half, LENGTH - half, half, WIDTH - half),
    )  # fmt: skip
    _finish(axes, field)
    return image


def _colours(drawn: Iterable[str]) -> dict[str, str]:
    """Return the colours of methods that share a picture, and of the reference."""
    looks = pictures.looks(name for name in drawn if name != REFERENCE)
    return {REFERENCE: pictures.REFERENCE} | {name: colour for name, (colour, _) in looks.items()}


def _finish(axes: Axes, field: np.ndarray) -> None:
    axes.set(xlim=(0, LENGTH), ylim=(0, WIDTH))
    axes.add_patch(Circle((CENTRE[1] / DIAMETER, CENTRE[0] / DIAMETER), 0.5, color="#555555"))
    if not np.isfinite(field).all():
        axes.text(LENGTH / 2, WIDTH / 2, "blew up", ha="center", va="center", color="#333333")


def wakes(tracks: Tracks, config: Config, path: Path, chosen: Sequence[str]) -> Path:
    """Vorticity of the reference and of each method (rows) at several times (columns)."""
    by_method, limit = shown_vorticity(tracks, config, chosen)
    colours = _colours(by_method)
    times = tracks[REFERENCE]["times"]
    last = len(times) - 1
    columns = [round(last * (k + 1) / COLUMNS) for k in range(COLUMNS)]
    figure, axes = pictures.figure(7.2, 1.22 * len(by_method) + 0.6, rows=len(by_method), columns=COLUMNS)
    image = None
    for line, (name, fields) in zip(axes, by_method.items(), strict=True):
        for place, column in zip(line, columns, strict=True):
            image = draw_wake(place, fields[column], config, limit)
            if name == REFERENCE:
                step = int(times[column])
                place.set_title(f"{step * config.dt / DIAMETER:.3g} D / U (step {step})")
        line[0].set_ylabel(label(name, "\n"), color=colours[name], fontweight="bold")
    assert image is not None
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=40, pad=0.01, extend="both")
    bar.set_label("vorticity (U / D)")
    return pictures.save(figure, path)


def error_maps(tracks: Mapping[int, Tracks], path: Path) -> Path:
    """Mean absolute error in space by method, the mean over seeds."""
    seeds = list(tracks.values())
    maps = {
        m: {"error": np.mean([of_seed[m]["error_map"] for of_seed in seeds], axis=0)}
        for m in methods(seeds[0])
    }

    def draw(axes: Axes, arrays: Mapping[str, np.ndarray]) -> AxesImage:
        pictures.image_axes(axes)
        _finish(axes, arrays["error"])
        return axes.imshow(turned(arrays["error"]), cmap="magma_r", extent=(0, LENGTH, 0, WIDTH))

    columns = 2 if len(maps) <= 8 else 3
    size = (6.4 / columns, 3.3 / columns)
    figure = pictures.panels(maps, draw, columns=columns, size=size, colours="mean absolute error (U)")
    return pictures.save(figure, path)


def animated(tracks: Tracks, config: Config, path: Path) -> Path:
    """Vorticity of the reference and of each method, one panel each, over the whole horizon."""
    images = _images(tracks, config)
    options: dict[str, Any] = {"save_all": True, "append_images": images[1:], "duration": MILLISECONDS}
    atomic.write(
        path, lambda stream: images[0].save(stream, "WEBP", loop=0, quality=QUALITY, method=3, **options)
    )
    return path


def _images(tracks: Tracks, config: Config) -> list[Image.Image]:
    """A picture for each time, in one layout."""
    by_method, limit = shown_vorticity(tracks, config, shown(tracks))
    colours, rows = _colours(by_method), -(-len(by_method) // 2)
    figure, axes = pictures.figure(6.4, 1.82 * rows + 0.4, rows=rows, columns=2)
    figure.set_dpi(100)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    images = {}
    for place, (name, fields) in zip(axes.flat, by_method.items(), strict=False):
        images[name] = draw_wake(place, np.where(np.isfinite(fields[0]), fields[0], 0), config, limit)
        place.set_title(label(name), color=colours[name], fontweight="bold", fontsize=13)
    for place in axes.flat[len(by_method) :]:
        place.set_visible(False)
    clock = figure.supxlabel("0 D / U", fontsize=12, color="#333333")
    canvas.draw()  # it lays out, with the clock's line in place
    figure.set_layout_engine("none")
    frames = []
    for index, step in enumerate(tracks[REFERENCE]["times"]):
        for name, image in images.items():
            image.set_data(turned(by_method[name][index]))
        clock.set_text(f"{step * config.dt / DIAMETER:.1f} D / U")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return frames
