"""The fine flows for PRE's fit: their first frames, and W^T r of all later ones, kept in a file.

The reference keeps its frames on the coarse grid, which is not enough for a fit on the fine one; so the
training flows run once more, and these sums are kept beside the reference, under a name with a hash of all
that they depend on. W is the linear interpolation from the faces of the coarse grid to the fine one's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from simulators.wake_flow import reference_file
from simulators.wake_flow.geometry import SPEED, Channel
from simulators.wake_flow.reference import Progress, simulate
from simulators.wake_flow.reference_settings import ReferenceSettings
from simulators.wake_flow.staggered import downsample
from tasks.applications.wake_flow.config import Config
from tasks.applications.wake_flow.data import reference_settings


def load(config: Config, folder: Path, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
    """Read them from `folder`, or compute and keep them; of several processes one computes them.

    Args:
        config: the configuration of the run.
        folder: the folder of the reference.
        progress: a function that is called with the fine steps done and their total.

    Returns:
        The training flows' first frames `(flows, 2, height, width)` on the coarse grid, and W^T r of all
        later ones, `(flows, frames - 1, 2, height, width)`; float32.

    Warns:
        ReferenceWarning: the file is damaged, and is computed again.
    """
    settings = _settings(config)

    def keep(frame: int, fine: Tensor) -> Tensor:
        factor = settings.reference_width // settings.width
        return restricted(fine, settings.width) if frame else downsample(fine, factor)

    file = path(config, folder)
    shape = (len(settings.reynolds), settings.frames, *Channel(settings.width).shape)
    attributes = settings.attributes() | {"kept": "first frames, and W^T r"}
    flows, _ = reference_file.load_or_make(
        file, attributes, shape, lambda: simulate(settings, keep, progress, reference_file.part_of(file))
    )
    return flows[:, 0], flows[:, 1:]


def path(config: Config, folder: Path) -> Path:
    """The file in `folder`; its name carries a hash of all that the flows depend on."""
    reference = _settings(config).path(folder)
    return reference.with_name(f"{reference.stem}_fine.h5")


def _settings(config: Config) -> ReferenceSettings:
    return replace(reference_settings(config), reynolds=config.train_reynolds)


def interpolations(width: int, factor: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """W of the two components, from coarse to fine faces; linear, zero on walls and inflow."""
    height = 2 * width
    across = sparse.kron(_between_centres(height, factor), _between_faces(width, factor, 0))
    along = sparse.kron(_between_faces(height, factor, 1), _between_centres(width, factor))
    return sparse.csr_array(across), sparse.csr_array(along)


def _between_centres(cells: int, factor: int) -> sparse.csr_array:
    """Linear interpolation `(cells * factor, cells)` of values at centres, constant beyond the outer ones."""
    place = np.clip((np.arange(cells * factor) + 0.5) / factor - 0.5, 0, cells - 1)
    return _linear(place, cells)


def _between_faces(cells: int, factor: int, first: int) -> sparse.csr_array:
    """Interpolate values on each cell's lower (`first` 0) or upper (1) face; the left-out face is at zero."""
    place = (np.arange(cells * factor) + first) / factor - first
    return _linear(place, cells)


def _linear(place: np.ndarray, count: int) -> sparse.csr_array:
    """Between the values 0 to `count` - 1 around each place; beyond them is zero."""
    below = np.floor(place).astype(int)
    columns = np.concatenate([below, below + 1])
    weights = np.concatenate([1 - (place - below), place - below])
    rows = np.tile(np.arange(len(place)), 2)
    inside = (columns >= 0) & (columns < count)
    entries = (weights[inside], (rows[inside], columns[inside]))
    return sparse.csr_array(sparse.coo_array(entries, shape=(len(place), count)))


def restricted(fine: Tensor, width: int) -> Tensor:
    """W^T r of fine velocities `(rows, 2, fine height, fine width)`: `(rows, 2, height, width)`, float32."""
    pieces = []
    for component, matrix in enumerate(interpolations(width, fine.shape[-1] // width)):
        values = fine[:, component].double().flatten(1).numpy() - component * SPEED  # the stream is along
        pieces.append((matrix.T @ values.T).T.reshape(len(fine), 2 * width, width))
    return torch.from_numpy(np.stack(pieces, axis=1)).float()
