"""Corrections fitted beforehand, for PRE: fields that bring the coarse flow nearest to the fine one.

As in Um et al. 2020 (their code's karman_pre.py) a coarse flow runs beside the fine reference and is
corrected after every step. Let W be the interpolation from the coarse faces to the fine ones, r the fine
flow, s the coarse one after its step and c' the correction before. The correction c is the minimiser of

    min_c  |W (s + c) - r|^2 / 2 + beta |c - c'|^2      with  div c = 0,

in cells that hold fluid, and zero on walls and inflow; beta = 0 is PRE-SR. The coarse flow goes on from
s + c. Unlike there, r - W s is not projected first, and the outer two cells take part.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu

from simulators.wake_flow.geometry import SPEED, Channel
from tasks.applications.wake_flow import fine_flows
from tasks.applications.wake_flow.config import Config
from tasks.applications.wake_flow.data import Pairs, WakeData
from tasks.applications.wake_flow.fine_flows import Progress, interpolations
from tasks.applications.wake_flow.rollout import Solver
from tasks.errors import SolverError


class CorrectionFit:
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
        solution = self._solve(constrained)[: len(self.free)]
        correction = np.zeros((rows, int(np.prod(self.shape))))
        correction[:, self.free] = solution.T
        return correction.reshape(rows, *self.shape)


def divergence(width: int) -> sparse.csr_array:
    """Net outflow of each cell from its faces, `(cells, faces)`, the faces of x first."""
    height = 2 * width
    right_less_left = sparse.csr_array(np.eye(width, k=1) - np.eye(width))
    upper_less_lower = sparse.csr_array(np.eye(height) - np.eye(height, k=-1))
    across = sparse.kron(sparse.eye_array(height), right_less_left)
    along = sparse.kron(upper_less_lower, sparse.eye_array(width))
    return sparse.csr_array(sparse.hstack([across, along]))


def corrections(
    config: Config, data: WakeData, solver: Solver, beta: float, progress: Progress | None = None
) -> Pairs:
    """PRE's pairs of the training flows: the coarse flow after a step, and corrected.

    Args:
        config: the configuration of the run.
        data: the data of the run. The fine flow is computed once more, since the reference keeps the coarse
            grid alone; the parts that the fit needs are kept beside the reference.
        solver: the solver of the coarse flow, which marks failed rows NaN; a flow has no pairs from the step
            on in which the solver loses it.
        beta: the weight of the temporal regulariser, 0 for PRE-SR.
        progress: a function that is called with the fine steps done and their total.

    Raises:
        SolverError: the solver lost all flows in their first step.
    """
    velocity, targets = fine_flows.load(config, data.path.parent, progress)
    fit = CorrectionFit(Channel(config.width), config.reference_width // config.width, beta / config.dt)
    reynolds, rows = data.train.reynolds.cpu(), 0  # the fit is on the CPU
    stream = np.array([0.0, SPEED]).reshape(2, 1, 1)
    last_correction = np.zeros(velocity.shape)
    frames = []
    for target in targets.unbind(dim=1):
        rows += int(velocity.isfinite().flatten(1).all(dim=1).sum())  # a lost flow is not stepped
        stepped = solver(velocity, reynolds)
        last_correction = fit(target.double().numpy(), stepped.double().numpy() - stream, last_correction)
        velocity = stepped + torch.from_numpy(last_correction).float()
        frames.append(torch.stack([stepped, velocity], dim=1))
    joined, reynolds_of_rows = torch.cat(frames), reynolds.repeat(len(frames))
    alive = joined.isfinite().flatten(1).all(dim=1)
    if not alive.any():
        raise SolverError(
            f"{solver!r}: expected a corrected flow, got none: all {len(reynolds)} failed in their first "
            "step. Step one reference frame by hand with failures='raise' to see why."
        )
    device = data.train.frames.device
    return Pairs(joined[alive].to(device), reynolds_of_rows[alive].to(device), rows, rows - int(alive.sum()))
