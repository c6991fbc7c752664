"""The wakes in motion: reference and methods side by side in an animated WebP."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from tasks.report import pictures
from tasks.runs import atomic
from tasks.wake_flow.config import Config
from tasks.wake_flow.diagnostics import DIAMETER
from tasks.wake_flow.findings import Evaluation
from tasks.wake_flow.pictures import draw_wake, shown_vorticity, turned

LARGEST = 1_500_000  # bytes; it becomes a part of the page
MILLISECONDS = 120  # a picture
QUALITIES = (60, 35, 10)  # of WebP; the first that keeps to the size


def wakes(found: Evaluation, config: Config, path: Path) -> Path:
    """Vorticity of the reference and of each method, one panel each, over the whole horizon."""
    images = _images(found, config)
    options: dict[str, Any] = {"save_all": True, "append_images": images[1:], "duration": MILLISECONDS}

    def save(quality: int, stream: IO[bytes]) -> None:
        images[0].save(stream, format="WEBP", loop=0, quality=quality, method=3, **options)

    for quality in QUALITIES:
        atomic.write(path, lambda stream, quality=quality: save(quality, stream))
        if path.stat().st_size <= LARGEST:
            break
    return path


def _images(found: Evaluation, config: Config) -> list[Image.Image]:
    """The frame once, and the fields drawn into it anew for each time."""
    shown, limit = shown_vorticity(found, config)
    rows = -(-len(shown) // 2)
    made, axes = pictures.figure(6.4, 1.82 * rows + 0.4, rows=rows, columns=2)
    made.set_dpi(100)
    canvas = made.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    moving = []
    for place, (name, fields) in zip(axes.flat, shown.items(), strict=False):
        image = draw_wake(place, np.where(np.isfinite(fields[0]), fields[0], 0), config, limit)
        place.set_title(name, color=pictures.colour(name), fontweight="bold", fontsize=13)
        image.set_animated(True)
        moving.append((place, image, fields))
    for place in axes.flat[len(shown) :]:
        place.set_visible(False)
    clock = made.supxlabel("0 D / U", fontsize=12, color="#333333")
    canvas.draw()  # it lays out, with the clock's line in place
    clock.set_animated(True)
    canvas.draw()
    still = canvas.copy_from_bbox(made.bbox)
    images = []
    for index, step in enumerate(found.times):
        canvas.restore_region(still)
        for place, image, fields in moving:
            image.set_data(turned(fields[index]))
            for artist in (image, *place.patches, *place.spines.values()):
                place.draw_artist(artist)
        clock.set_text(f"{step * config.dt / DIAMETER:.1f} D / U")
        made.draw_artist(clock)
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return images
