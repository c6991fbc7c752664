"""CMA-ES on a network's weights, by values of the objective: the rival that takes no derivative of anything.

The search is the package `cma` of its inventor (Hansen, Yoshihiko, Baudis; doi 10.5281/zenodo.2559634). It
asks for a population of weights and is given the loss of each on the step's batch. What is here is what a
training needs beside it: variants that are evaluated together, rows that fail, and a state from which a run
goes on to the same bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blackbox.errors import BudgetError
from blackbox.extras import import_extra
from blackbox.failures import noted
from blackbox.notices import warn
from tasks.errors import ConfigurationError
from tasks.problem.method import Cost, Method
from tasks.problem.problem import Problem
from tasks.problem.trained import Trained
from tasks.training.setup import Setup
from zo.batches import Batch, count_rows
from zo.errors import EvaluatorWarning
from zo.estimators import Directions, Parameters
from zo.evaluators import Step
from zo.evaluators.loop import loop_losses
from zo.evaluators.stacked import Stacked, stacked_losses
from zo.evaluators.state import Snapshot, moved
from zo.execution.evaluator_check import is_due
from zo.execution.evaluator_choice import MEMORY, queries_within
from zo.execution.memory import measured
from zo.failed_rows import survivors
from zo.objective import losses

LARGEST = 3000  # weights, of whose covariance the eigenvectors are taken: some 10 s each time, 72 MB a matrix
HARMLESS = 0.02  # of what the candidates' losses differ by: so far off, a stack ranks them as `loop` does
# The number of steps and the validation end a training here, not the search's own limits; it says nothing.
QUIET = {"verbose": -9, "verb_log": 0, "verb_disp": 0, "maxiter": np.inf}


@dataclass
class CmaCounts:
    """The counts of a `CmaEs`.

    Attributes:
        steps: Generations.
        queries: Evaluations of the objective: the candidates, and the `checks` that compare evaluators.
        dropped: Candidates with a failed row that did not fail in all; they are ranked last.
        lost: Rows of batches that failed in all candidates, and were left out.
    """

    steps: int = 0
    queries: int = 0
    checks: int = 0
    dropped: int = 0
    lost: int = 0


class CmaEs:
    """Moves a network's weights by generations of CMA-ES, in the place of a gradient and an optimizer.

    All candidates of a generation are evaluated on the same batch. The first is evaluated alone, and buffers
    and generators are then as it left them. The others are evaluated together, as `zo.LossGradient` does with
    its variants: where layers allow it, and as many at a time as memory allows. At steps 0, 1, 10, 100, ...
    the first is evaluated among the others too. If its losses differ by more than chance, and by enough to
    change the order of candidates, all are evaluated one by one from then on.

    Args:
        network: The network that is trained. After `move` it has the mean of the distribution.
        objective: `objective(network, batch) -> Tensor (rows,)`.
        sigma0: Standard deviation of each weight in the first generation.
        popsize: Candidates of a generation; None for `cma`'s 4 + 3 ln(weights).
        diagonal: Whether the covariance is a diagonal (sep-CMA-ES), which takes no more memory than the
            weights.
        seed: The seed of all draws; no generator of NumPy's or torch's shares them.
        chunk: How many candidates are evaluated together; None for as many as memory allows.

    Attributes:
        counts: The counts so far, see `CmaCounts`.

    Raises:
        ConfigurationError: There are too many weights for a full covariance.
        MissingExtraError: The package `cma` is not installed.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Callable[[nn.Module, Any], Tensor],
        sigma0: float,
        popsize: int | None = None,
        *,
        diagonal: bool = False,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        self.network, self.objective, self.parameters = network, objective, Parameters(network)
        if not diagonal and self.parameters.size > LARGEST:
            raise ConfigurationError(
                f"cma-es: expected at most {LARGEST:,} weights, since it takes the eigenvectors of their "
                f"covariance, got {self.parameters.size:,}. Take sep-cma-es, whose covariance is a diagonal, "
                "or a smaller network."
            )
        self._begin = partial(_strategy, sigma0, popsize, diagonal, seed)
        self._start = self.parameters.flat().double()
        self._search = self._begin(self._start.numpy())
        # of each generation, (candidates,), NaN where it was not told any
        self._values: list[np.ndarray] = []
        self.counts = CmaCounts()
        self._chunk, self._stacks, self._rows = chunk, True, 0

    @property
    def mean(self) -> Tensor:
        """The mean of the distribution, `(weights,)` float64."""
        return torch.from_numpy(np.array(self._search.mean))

    @torch.no_grad()
    def backward(self, batch: Batch) -> Tensor:
        """Evaluate a generation on a batch, and move the distribution; returns the candidates' median loss.

        Raises:
            FailedBatchError: No candidate has a finite loss, and rows of a box failed.
            FailedQueriesError: None has one, and no box failed. In both cases the distribution stays, and
                network and generators are as they were.
        """
        self.parameters.refuse_replaced(self.network)
        step, start, points = self.counts.steps, Snapshot(self.network), self._ask()
        steps = torch.from_numpy(np.stack(points)) - self.parameters.flat().double()
        candidates = Directions(steps.to(self.parameters.dtype))
        self._rows = count_rows(batch)
        try:
            with noted() as causes:
                losses_of_all = self._evaluated(candidates, batch, step)
                finite = torch.where(losses_of_all.isfinite(), losses_of_all, torch.nan)
                alive = survivors(finite.nanmean(dim=0), step, causes)
        except BaseException:
            start.restore()
            raise
        values, failed = ranked(losses_of_all[:, alive].double().cpu())
        self._tell(points, values.numpy())
        self.counts.steps += 1
        self.counts.dropped += int(failed.sum())
        self.counts.lost += int((~alive).sum())
        of_candidates = finite.double().cpu().nanmean(dim=1)
        return of_candidates.nanmedian() if failed.all() else of_candidates[~failed].median()

    @torch.no_grad()
    def move(self, step: int = 0) -> None:
        """Give the network the mean of the distribution."""
        for tensor, values in zip(self.parameters.tensors, self.parameters.split(self.mean), strict=True):
            tensor.copy_(values)

    def metrics(self) -> dict[str, float]:
        """The counts, by name; `rows` are rows of data, for objectives that call no box."""
        counts = {name: float(count) for name, count in asdict(self.counts).items()}
        return {**counts, "sigma": float(self._search.sigma), "rows": counts["queries"] * self._rows}

    def state_dict(self) -> dict[str, Any]:
        """Save the losses told to the search, which rebuild it; `cma` itself has a pickle, which is code."""
        return {
            "start": self._start,
            "told": torch.from_numpy(np.array(self._values).reshape(-1, self._search.popsize)),
            "mean": self.mean,
            "counts": asdict(self.counts),
            "chunk": self._chunk,
            "stacks": self._stacks,
            "rows": self._rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; takes as long as the search itself took, without the boxes.

        Raises:
            ConfigurationError: The recorded generations do not reproduce the saved weights: they are of other
                settings, or of another version of `cma`.
        """
        self._start, self._values = state["start"], []
        self._search = self._begin(self._start.numpy())
        for values in state["told"].numpy():
            candidates = self._ask()
            if np.isfinite(values).all():
                self._tell(candidates, values)
        if not torch.allclose(self.mean, state["mean"], rtol=0, atol=1e-6 * self._search.sigma0):
            raise ConfigurationError(
                "cma-es: expected the recorded generations to reproduce the saved weights, got weights that "
                f"are {float((self.mean - state['mean']).abs().max()):.1e} off. Go on with the settings and "
                "the version of cma that the run was begun with, or start anew."
            )
        self.counts = CmaCounts(**state["counts"])
        self._chunk, self._stacks, self._rows = state["chunk"], state["stacks"], state["rows"]

    def _ask(self) -> list[np.ndarray]:
        """The candidates of a generation, `(weights,)` float64 each."""
        solutions = self._search.ask()
        self._values.append(np.full(len(solutions), np.nan))
        return solutions

    def _tell(self, asked: list[np.ndarray], values: np.ndarray) -> None:
        """Move the distribution by the values of candidates; only their order matters."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of candidates that are all equal
            self._search.tell(asked, list(values))
        self._values[-1] = np.asarray(values, dtype=float)

    def _evaluated(self, candidates: Directions, batch: Batch, step: int) -> Tensor:
        """Losses `(candidates, rows)`; network and generators are as the first candidate left them."""
        of_step = Step(self.network, self.parameters, self.objective, batch, self._rows, number=step)
        first, start = candidates.part(0, 1), Snapshot(self.network)
        with (
            measured(self._chunk is None) as peak,
            moved(self.parameters.tensors, self.parameters.split(first.steps[0])),
        ):
            alone = losses(self.objective, self.network, batch, self._rows)[None]
        end = Snapshot(self.network)
        start.restore()
        self.counts.queries += len(candidates)
        if self._chunk is None:
            bytes_each = Stacked().bytes_per_query(of_step, first, peak.peak)
            self._chunk = queries_within(MEMORY, bytes_each, self.parameters.tensors[0].device)
        try:
            other_losses = self._together(of_step, candidates, alone, start, self._chunk)
            if other_losses is None:
                other_losses = loop_losses(of_step, candidates.part(1, len(candidates)), start)
        finally:
            start.restore()
        end.restore()
        return torch.cat([alone, other_losses])

    def _together(
        self, of_step: Step, candidates: Directions, alone: Tensor, start: Snapshot, chunk: int
    ) -> Tensor | None:
        """Losses of all candidates but the first, some at a time; None where that is not to be had."""
        if not self._stacks or chunk < 2:
            return None
        due = is_due(of_step.number)
        members = candidates if due else candidates.part(1, len(candidates))
        self._check(due)
        parts = [members.part(at, at + chunk) for at in range(0, len(members), chunk)]
        try:
            stacked = torch.cat(
                [
                    stacked_losses(of_step, part, start, self.parameters.tensors)
                    if len(part) > 1
                    else loop_losses(of_step, part, start)
                    for part in parts
                ]
            )
        except BudgetError:
            raise
        except Exception as error:  # of a layer that vmap cannot take, such as an LSTM
            fault = f"could not run ({type(error).__name__}: {error})"
        else:
            fault = self._fault(of_step, stacked, alone, candidates.part(0, 1), start) if due else ""
            if not fault:
                return stacked[due:]
        warn(
            f"cma-es, step {of_step.number + 1}: candidates that are evaluated together {fault}: they are "
            "evaluated one by one from here on, right but slower. Variants need rows first in every layer, "
            "random draws by nn.Dropout and its like, and weights that are read inside of their layers "
            "alone.",
            EvaluatorWarning,
        )
        self._stacks = False
        self._check(len(candidates) - 1)
        return None

    def _fault(
        self, of_step: Step, stacked: Tensor, alone: Tensor, first: Directions, start: Snapshot
    ) -> str:
        """Describe the fault of a stack's losses, by the true ones of its first candidate; or ""."""
        finite = alone[0].isfinite()
        if not finite.any():
            return ""
        usual = stacked.cpu().nanmedian(dim=0).values.to(stacked)  # on a GPU it may have other bits each time
        deviations = (stacked - usual)[:, finite].nan_to_num(0.0)
        allowed = HARMLESS * float(deviations.square().mean().sqrt())
        allowed += 1e-5 * float(alone[0, finite].abs().max())

        def off(others: Tensor) -> float:
            distance = float((others[finite] - alone[0, finite]).square().mean().sqrt())
            return distance if math.isfinite(distance) else math.inf

        if off(stacked[0]) <= allowed:
            return ""
        self._check(1)
        if off(loop_losses(of_step, first, start)[0]) > allowed:
            return ""  # by chance: the box, or the objective, is noisy
        return f"have losses that are {off(stacked[0]):.1e} off those of one alone"

    def _check(self, queries: int) -> None:
        self.counts.queries += queries
        self.counts.checks += queries


def _strategy(sigma0: float, popsize: int | None, diagonal: bool, seed: int, start: np.ndarray) -> Any:
    """The search of `cma` from a mean of the first generation, `(weights,)` float64."""
    cma = import_extra("cma-es", "cma", "cma")
    draws = np.random.default_rng(seed)
    options = {**QUIET, "randn": lambda *shape: draws.standard_normal(shape), "CMA_diagonal": diagonal}
    if popsize is not None:
        options["popsize"] = popsize
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own plots and options
        return cma.CMAEvolutionStrategy(start, sigma0, options)


def ranked(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values that a search is told of candidates: mean losses, and worse ones where rows failed.

    Args:
        losses: Losses `(candidates, rows)` float64, NaN or infinite where a row failed; no row failed in all.

    Returns:
        Finite values `(candidates,)` float64, and `(candidates,)` bool, True where a row failed. Candidates
        with failed rows rank behind all others: first by the number of failed rows, then by the mean of the
        other rows.
    """
    finite = losses.isfinite()
    means = torch.where(finite, losses, 0.0).sum(dim=1) / finite.sum(dim=1).clamp(min=1)
    failures = (~finite).sum(dim=1)
    failed = failures > 0
    worst = means[~failed].max() if not failed.all() else torch.zeros(())
    order = sorted(
        torch.nonzero(failed).flatten().tolist(), key=lambda i: (int(failures[i]), float(means[i]))
    )
    step = 1.0 + worst.abs()
    for place, candidate in enumerate(order, start=1):
        means[candidate] = worst + place * step
    return means, failed


def cma_es(setup: Setup, *, diagonal: bool = False) -> Trained:
    """CMA-ES on the weights; validated and kept is the mean of its distribution."""
    settings = setup.config.zeroth_order
    search = CmaEs(
        setup.network,
        setup.objective,
        settings.sigma0,
        diagonal=diagonal,
        seed=setup.seed,
        chunk=settings.chunk,
    )
    return setup.descend(search, update=search.move)


def _cost(problem: Problem, steps: int) -> Cost:
    weights = Parameters(problem.network()).size
    popsize = 4 + int(3 * math.log(weights))
    checks = sum(is_due(step) for step in range(steps))
    least = steps * popsize + checks
    return Cost(least, least, least + checks + popsize)


def _check(problem: Problem, *, diagonal: bool = False) -> None:
    CmaEs(problem.network(), problem.objective, problem.config.zeroth_order.sigma0, diagonal=diagonal)


METHODS = {
    "cma-es": Method("CMA-ES on the weights, by values of the objective.", cma_es, _cost, check=_check),
    "sep-cma-es": Method(
        "CMA-ES whose covariance is a diagonal, for more weights.",
        partial(cma_es, diagonal=True),
        _cost,
        check=partial(_check, diagonal=True),
    ),
}
