"""Corrections fitted beforehand, for PRE: what, added to the coarse flow, brings it nearest to the fine one.

As in Um et al. 2020 (their code's karman_pre.py) a coarse flow runs beside the fine reference and is
corrected after every step. With W the interpolation from the coarse faces to the fine ones, r the fine
flow, s the coarse one after its step and c' the correction before, the correction c is that of

    min_c  |W (s + c) - r|^2 / 2 + beta |c - c'|^2      with  div c = 0,

in cells that hold fluid, and zero on walls and inflow; beta = 0 is PRE-SR. The coarse flow goes on from
s + c. Unlike there, r - W s is not projected first, and the outer two cells take part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.geometry import SPEED, Channel
from simulators.wake_flow.staggered import downsample, start
from simulators.wake_flow.step import WakeStep
from tasks.errors import SolverError
from tasks.runs import checkpoint
from tasks.wake_flow.config import Config
from tasks.wake_flow.data import Pairs, WakeData, reference_settings

FORMAT = 1  # raise it when what is kept beside the reference changes
Progress = Callable[[int, int], None]


class Fit:
    """The constrained least-squares fit on one pair of grids, factorised once.

    Args:
        channel: the coarse one.
        factor: fine cells in a coarse one, in each direction.
        beta: weight of the temporal regulariser.
    """

    def __init__(self, channel: Channel, factor: int, beta: float) -> None:
        across, along = interpolations(channel.width, factor)
        between = sparse.block_diag([across, along], format="csr")
        self.shape = channel.shape
        self.beta = beta
        self.gram = sparse.csr_array(between.T @ between)
        faces = np.ones(channel.shape, dtype=bool)
        faces[0, :, 0] = False  # the wall's
        self.free = np.flatnonzero(faces)
        cells = np.flatnonzero(channel.masks.active.ravel())
        self._constraints = len(cells)
        outflow = divergence(channel.width)[cells][:, self.free]
        weight = self.gram[self.free][:, self.free] + 2 * beta * sparse.eye_array(len(self.free))
        self._solve = splu(sparse.block_array([[weight, outflow.T], [outflow, None]], format="csc")).solve

    def __call__(self, target: np.ndarray, stepped: np.ndarray, before: np.ndarray) -> np.ndarray:
        """The correction `(rows, 2, height, width)`, float64.

        Args:
            target: W^T r, `(rows, 2, height, width)`, from `restricted`.
            stepped: s, less the stream.
            before: c'.
        """
        rows = len(target)
        target, stepped, before = (field.reshape(rows, -1).T for field in (target, stepped, before))
        right = (target - self.gram @ stepped + 2 * self.beta * before)[self.free]
        constrained = np.concatenate([right, np.zeros((self._constraints, rows))])
        found = self._solve(constrained)[: len(self.free)]
        correction = np.zeros((rows, int(np.prod(self.shape))))
        correction[:, self.free] = found.T
        return correction.reshape(rows, *self.shape)


def interpolations(width: int, factor: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """W of the two components, from coarse to fine faces; linear, zero on walls and inflow."""
    height = 2 * width
    across = sparse.kron(_between_centres(height, factor), _between_faces(width, factor, 0))
    along = sparse.kron(_between_faces(height, factor, 1), _between_centres(width, factor))
    return sparse.csr_array(across), sparse.csr_array(along)


def divergence(width: int) -> sparse.csr_array:
    """Net outflow of each cell from its faces, `(cells, faces)`, the faces of x first."""
    height = 2 * width
    right_less_left = sparse.csr_array(np.eye(width, k=1) - np.eye(width))
    upper_less_lower = sparse.csr_array(np.eye(height) - np.eye(height, k=-1))
    across = sparse.kron(sparse.eye_array(height), right_less_left)
    along = sparse.kron(upper_less_lower, sparse.eye_array(width))
    return sparse.csr_array(sparse.hstack([across, along]))


def _between_centres(cells: int, factor: int) -> sparse.csr_array:
    """Linear interpolation `(cells * factor, cells)` of values at centres, constant beyond the outer ones."""
    place = np.clip((np.arange(cells * factor) + 0.5) / factor - 0.5, 0, cells - 1)
    return _linear(place, cells)


def _between_faces(cells: int, factor: int, first: int) -> sparse.csr_array:
    """Of values on each cell's lower (`first` 0) or upper (1) face; the face that is left out is at zero."""
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


def corrections(
    config: Config, data: WakeData, solver: WakeFlow, beta: float, progress: Progress | None = None
) -> Pairs:
    """PRE's pairs of the training flows: the coarse flow after a step, and corrected.

    Args:
        config: of the run.
        data: of the run; the fine flow is computed once more, since the reference keeps the coarse grid's
            alone, and what the fit needs of it is kept beside the reference.
        solver: of the coarse flow; from where it loses a flow, that has no pairs.
        beta: weight of the temporal regulariser, 0 for PRE-SR.
        progress: called with fine steps done and in all.

    Raises:
        SolverError: it lost all flows in their first step.
    """
    velocity, targets = _fine(config, data, progress)
    fit = Fit(solver.step.channel, config.reference_width // config.width, beta / config.dt)
    reynolds, ledger = data.train.reynolds, solver.ledger.copy()
    stream = np.array([0.0, SPEED]).reshape(2, 1, 1)
    before = np.zeros(velocity.shape)
    frames = []
    for target in targets.unbind(dim=1):
        stepped = solver(velocity, reynolds)
        before = fit(target.double().numpy(), stepped.double().numpy() - stream, before)
        velocity = stepped + torch.from_numpy(before).float()
        frames.append(torch.stack([stepped, velocity], dim=1))
    spent = solver.ledger.since(ledger)
    joined, wanted = torch.cat(frames), reynolds.repeat(len(frames))
    alive = joined.isfinite().flatten(1).all(dim=1)
    if not alive.any():
        raise SolverError(
            f"{solver!r}: expected a corrected flow, got none: all {len(reynolds)} failed in their first "
            "step. Step one reference frame by hand with failures='raise' to see why."
        )
    return Pairs(joined[alive], wanted[alive], spent.rows_run, spent.rows_failed)


def _fine(config: Config, data: WakeData, progress: Progress | None) -> tuple[Tensor, Tensor]:
    """The training flows' first frames on the coarse grid, and W^T r of all later ones."""
    path = data.path.with_name(f"{data.path.stem}_fine.pt")
    expected = {"format": FORMAT, "reynolds": list(config.train_reynolds)}
    if path.exists():
        saved = checkpoint.load(path)
        if all(saved.get(name) == value for name, value in expected.items()):
            return saved["first"], saved["targets"]
    settings = replace(reference_settings(config), reynolds=config.train_reynolds)
    step = WakeStep(Channel(config.reference_width), settings.reference_dt, settings.advection)
    reynolds = torch.tensor(settings.reynolds, dtype=torch.float32)
    velocity = start(step.channel, settings.poke, settings.along).repeat(len(reynolds), 1, 1, 1)
    first, targets = velocity, []
    with torch.no_grad():
        for done in range(settings.steps + 1):
            if done == settings.warm_up:
                first = downsample(velocity, config.reference_width // config.width)
            elif done > settings.warm_up and (done - settings.warm_up) % settings.steps_per_frame == 0:
                targets.append(restricted(velocity, config.width))
            if progress is not None:
                progress(done, settings.steps)
            if done < settings.steps:
                velocity = step(velocity, reynolds)
    found = first, torch.stack(targets, dim=1)
    checkpoint.save(path, {**expected, "first": found[0], "targets": found[1]})
    return found
