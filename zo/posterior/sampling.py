"""`sample`: draws of an exact posterior through a box that gives values alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.arrays import finite_rows
from blackbox.checks import check_count
from blackbox.notices import warn
from zo.box_gradient.differentiable import check_differentiable
from zo.errors import ConfigurationError, TangentWarning
from zo.posterior.hmc import Move, accepted, propose
from zo.posterior.inference_data import arviz, inference_data
from zo.posterior.learning import ROUND, buy, fitted, freeze, spread
from zo.posterior.sampling_checkpoint import Checkpoint, at
from zo.posterior.target import Model, Potential, Target
from zo.posterior.unknowns import Unknowns
from zo.same_run import arrays_of
from zo.tangents.models.additive import AdditiveTangent
from zo.tangents.models.kernel import KernelTangent
from zo.tangents.models.selected import SelectedTangent
from zo.tangents.models.values import ValueTangent

LEAST_START = 4  # rows
MANY = 20  # unknowns, of which a kernel sees little; decision 212
LEAST_DRAWS = 20  # of each chain
BEGIN = 40  # of the likeliest rows, of which chains begin at some, where the posterior holds no more
SAVED, OFTEN = 25, 1.05  # proposals, and times as many, between two counts of effective samples
ROUNDED = 1e-3  # of the potential, between a row alone and among others: acceptance is a thousandth off
LOW, JUDGED = 0.05, 200  # acceptance that is told, and proposals after which
DIVERGED = 1000.0  # of energy by the model, as Stan and PyMC have it


def refuse_few_rows(rows: int, learned: int, chains: int) -> None:
    """Refuse too few rows for some draws of each chain.

    Raises:
        ConfigurationError: there are too few.
    """
    least = learned + 2 + LEAST_DRAWS * chains
    if rows < least:
        raise ConfigurationError(
            f"sample, rows: expected at least {least}, to learn from {learned} and for {LEAST_DRAWS} "
            f"draws of {chains} chains, got {rows}. Give more rows, fewer chains, or a smaller learn."
        )


def sample(
    potential: Potential,
    box: BlackBoxFunction,
    start: Tensor | np.ndarray,
    *,
    rows: int,
    chains: int = 8,
    seed: int = 0,
    bounds: tuple[Any, Any] | None = None,
    tangent: ValueTangent | None = None,
    twin: Callable[[Tensor], Tensor] | None = None,
    learn: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Any:
    """Draw from a posterior whose likelihood is a box without a derivative.

        data = zo.sample(potential, solver, 0.3 * torch.randn(50, 64), rows=5000)
        arviz.summary(data)

    Rounds of 25 rows are bought in the posterior of a model of the box. Then the model is frozen, and
    Hamiltonian Monte Carlo follows its force, with the box's own answer in the accept step. A trajectory
    takes one row of the box, however long it is. Steps, their number and the mass come from the model alone.

    Draws are exact in the limit of long chains: a wrong model costs acceptance and nothing else, since one
    fixed force is reversible (Rasmussen, 2003). All draws before the model was frozen are left out, and the
    first tenth of the draws after it. A proposal whose row fails is rejected. Ctrl-C ends the sampling with
    the draws so far, if there are 20 of each chain.

    Args:
        potential: minus the logarithm of the density of unknowns `(rows, size)` given the box's answers, but
            for a constant, `(rows,)`; made of torch operations.
        box: a box with one input `(size,)` and one output; set its `failures` to "keep" where rows may fail.
        start: rows to begin from, `(rows, size)`, at least 4, such as draws of the prior, or rows closer
            together.
        rows: the number of rows of the box in all.
        chains: the number of chains side by side, in one call of the box.
        seed: the seed of all draws.
        bounds: lower and upper bounds, numbers or `(size,)`, infinite for none; None for none at all.
        tangent: a model that has learned nothing; a copy of it is fitted in each round. None for a
            `KernelTangent`. At the end, with 20 unknowns or more and without a twin, None chooses between it
            and an `AdditiveTangent` by held-out rows.
        twin: a differentiable function that stands for the box and costs less, `(rows, size)` to its
            answers, such as a coarse grid. The model learns the rest.
        learn: rows before the model is frozen; None for 50 and 25 for each unknown, with a twin five, at most
            a fifth of all.
        checkpoint: a file that is written during the sampling. If it exists, the sampling goes on from it, to
            the bit, for one row that shows that the box is the same. More `rows` than before prolong the
            chains.
        progress: a function that is called with the rows and the effective samples so far (the least of all
            unknowns, 0 at first).

    Returns:
        An ArviZ `InferenceData` (of ArviZ below 1; later ones have a `DataTree`). Its posterior has `x`,
        `(chain, draw, size)`; its `sample_stats` have `lp`, `acceptance_rate`, `diverging`, and the potential
        of each proposal by model and box; its attributes count rows, and say whether Ctrl-C `stopped` it.

    Raises:
        ConfigurationError: a value out of range, a potential that is not finite at the start, a box that
            answers the same row with two values, or a checkpoint of another sampling.
        MissingExtraError: ArviZ is not installed.
        RowFailedError: a row failed, and the box does not keep failed rows.
    """
    arviz()  # missed before a row is bought
    check_count("sample", "rows", rows)
    check_count("sample", "chains", chains)
    check_differentiable("sample", box)
    if len(box.inputs) != 1 or len(box.outputs) != 1 or len(box.inputs[0].shape) != 1:
        raise ConfigurationError(
            f"sample, box: expected one input of shape (size,) and one output, got {box!r} with "
            f"{len(box.inputs)} and {len(box.outputs)}. Join them in a box around it."
        )
    (size,) = box.inputs[0].shape
    try:
        start = torch.as_tensor(start).double()
    except (TypeError, ValueError, RuntimeError) as error:  # which torch has for what is no array of numbers
        kind = type(start).__name__
        raise ConfigurationError(f"sample, start: expected rows of numbers, got {kind}: {error}.") from None
    if start.ndim != 2 or start.shape[1] != size or len(start) < LEAST_START:
        raise ConfigurationError(
            f"sample, start: expected at least {LEAST_START} rows of {size} numbers, got shape "
            f"{tuple(start.shape)}. Give draws of the prior, or rows about a guess."
        )
    count = None if learn is None else max(check_count("sample", "learn", learn), len(start))
    learned: int = learned_from(rows, size, len(start), twin is not None) if count is None else count
    refuse_few_rows(rows, learned, chains)
    infinite = torch.full((size,), torch.inf, dtype=torch.float64)
    lower, upper = (-infinite, infinite) if bounds is None else bounds
    unknowns = Unknowns(*(torch.as_tensor(b, dtype=torch.float64).expand(size) for b in (lower, upper)))
    target = Target(potential, box, unknowns)
    of_rounds, frozen = _tangents(size, twin is not None) if tangent is None else (tangent, tangent)

    def fit(q: Tensor, answers: Tensor) -> Model:
        return Model(target, of_rounds, twin, q, answers)

    def fit_last(q: Tensor, answers: Tensor) -> Model:
        return Model(target, frozen, twin, q, answers)

    generator = torch.Generator().manual_seed(seed)
    settings = {
        "chains": chains,
        "seed": seed,
        "learn": count,
        "tangent": repr(frozen),
        "lower": unknowns.lower.tolist(),
        "upper": unknowns.upper.tolist(),
        "box": arrays_of(box),
    }
    saves = Checkpoint(checkpoint)
    free = unknowns.free(start)
    state = saves.load(settings, generator)
    with torch.no_grad():
        if state is None:
            state = _begun(target, free, twin, {**settings, "learn": learned})
            saves.save(state, generator)
            spent = False
        else:
            spent = state["frozen"] and _rows(state, 1) > rows
            if not state["frozen"]:  # fewer rows make the default less than what it began with
                refuse_few_rows(rows, state["settings"]["learn"], chains)
            saves.refuse_other(state, target, free, twin, ask=not spent)
        learned = state["settings"]["learn"]
        while not state["frozen"] and len(state["q"]) < learned:
            buy(target, fit, state, generator, min(ROUND, learned - len(state["q"])))
            saves.save(state, generator)
            if progress is not None:
                progress(_rows(state), 0.0)
        stopped = False
        if not spent:
            if state["frozen"]:
                model = fitted(target, fit_last, state)
            else:
                model = freeze(target, fit_last, state, generator)
                _place(target, state, chains, generator)
                saves.save(state, generator)
            stopped = _chains(target, model, state, rows, generator, saves, progress)
            saves.save(state, generator)
    counts = {
        "rows": _rows(state),
        "rows_learned": len(state["q"]),
        "rows_failed": _failed(state["answers"]) + sum(int(draw["failed"].sum()) for draw in state["draws"]),
        "rows_run_by_ledger": box.ledger.rows_run,
        "step_size": state["size"],
        "steps": state["steps"],
        "stopped": int(stopped),
    }
    return inference_data(state, unknowns, counts)


def _tangents(size: int, twin: bool) -> tuple[ValueTangent, ValueTangent]:
    """The model of the rounds and the one that is frozen; decision 212."""
    kernel = KernelTangent(centres=1000)
    if twin or size < MANY:
        return kernel, kernel
    return kernel, SelectedTangent(
        {"kernel": lambda: KernelTangent(centres=1000), "additive": AdditiveTangent}
    )


def learned_from(rows: int, size: int, start: int, twin: bool) -> int:
    """The default number of rows before the model is frozen.

    Args:
        rows: the number of all rows.
        size: the number of unknowns.
        start: the number of rows to begin from, which are among them.
        twin: whether there is a twin.
    """
    return max(min(rows // 5, 50 + (5 if twin else 25) * size), start)


def _rows(state: dict[str, Any], more: int = 0) -> int:
    """Count the box's rows so far (two of them repeat one row), and those of more proposals."""
    chains = len(state["at"]) if state["frozen"] else 0
    return len(state["q"]) + 2 + (len(state["draws"]) + more) * chains


def _failed(answers: Tensor) -> int:
    return int((~finite_rows((answers,))).sum())


def _begun(
    target: Target, q: Tensor, twin: Callable[[Tensor], Tensor] | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """The state before the first round: the start's answers, and those of one of its rows twice more."""
    by_twin = at(twin, target, q)  # first, since it costs no row to see that it is another box's
    answers = target.answers(q)
    potential = target.potential(q, answers)
    finite = int(potential.isfinite().sum())
    if finite < LEAST_START:
        raise ConfigurationError(
            f"sample, potential: expected finite numbers at the start, got {len(q) - finite} of {len(q)} "
            "rows that are not. Begin where the density is not zero and the box answers."
        )
    # not the first, whose place in the call is that of a row alone
    place = 1 + potential[1:].argmin()
    row = q[place][None]
    target.refuse_cut(row, answers[place][None], twin)
    alone = target.answers(row)
    gap = float((target.potential(row, alone) - potential[place]).abs())
    if not (torch.equal(target.answers(row), alone) and gap <= ROUNDED):
        raise ConfigurationError(
            "sample, box: expected the same answer to the same row, alone and among others, got two "
            f"different ones of {target.box!r}. The accept step would then draw from another density. Fix "
            "its seed for each row, not for a call of many, or make the average of its runs the answer."
        )
    root = q[potential.isfinite()].std(0).clamp(min=1e-6).diag()
    return {
        "settings": settings,
        "at_start": {"potential": potential, "twin": by_twin},
        "q": q,
        "answers": answers,
        "root": root,
        "size": 0.12,
        "steps": 6,
        "frozen": False,
        "draws": [],
    }


def _place(target: Target, state: dict[str, Any], chains: int, generator: torch.Generator) -> None:
    """Put chains at rows that are spread over the posterior, and whose potential is known."""
    state["frozen"] = True
    order = spread(target, state["q"], state["answers"], generator, max(BEGIN, chains))
    order = order.repeat(-(-chains // len(order)))[:chains]
    state["at"], potential = state["q"][order], target.potential(state["q"], state["answers"])
    state["potential"] = potential[order]


def _chains(
    target: Target,
    model: Model,
    state: dict[str, Any],
    rows: int,
    generator: torch.Generator,
    kept: Checkpoint,
    progress: Callable[[int, float], None] | None,
) -> bool:
    """Proposals by the frozen model, the box in the accept step, until rows are spent or Ctrl-C comes.

    A proposal is one entry of the draws or none, whatever breaks it off.

    Returns:
        Whether it was stopped by Ctrl-C.
    """
    move = Move(state["size"], state["steps"], state["root"])
    draws, has_warned, judged, effective = state["draws"], False, 0, 0.0
    count, generator_state = len(draws), generator.get_state()
    try:
        while _rows(state, 1) <= rows:
            last = draws[-1] if draws else {"q": state["at"], "potential": state["potential"]}
            draws.append(_proposed(target, model, last, move, generator))
            count, generator_state = len(draws), generator.get_state()
            kept.save(state, generator, now=False)
            if count % SAVED == 0 and not has_warned and count * len(state["at"]) >= JUDGED:
                has_warned = _told(draws, target)
            if progress is not None:
                if count % SAVED == 0 and count >= OFTEN * judged:
                    judged, effective = count, _least_effective(draws)
                progress(_rows(state), effective)
    except BaseException as error:
        if len(draws) == count:  # the proposal under way is made again
            generator.set_state(generator_state)
        kept.save(state, generator)
        if not isinstance(error, KeyboardInterrupt) or count < LEAST_DRAWS:
            raise
        return True
    return False


def _proposed(
    target: Target, model: Model, last: dict[str, Tensor], move: Move, generator: torch.Generator
) -> dict[str, Tensor]:
    """Propose once for each chain, and return the chains after it with a record of the proposal."""
    end = propose(model, last["q"], move, generator)
    reached = end.alive & target.asked(end.q).isfinite().all(1)
    end = end._replace(alive=reached, q=torch.where(reached[:, None], end.q, last["q"]))
    answers = target.answers(end.q)
    new = torch.where(end.alive, target.potential(end.q, answers), torch.inf)
    yes, probability = accepted(last["potential"] + end.kinetic - new, generator)
    energy = (end.begin + end.kinetic - end.model).abs()
    return {
        "q": torch.where(yes[:, None], end.q, last["q"]),
        "potential": torch.where(yes, new, last["potential"]),
        "acceptance_rate": probability,
        "accepted": yes,
        "diverging": ~end.alive | ~(energy < DIVERGED),
        "proposed_potential": new,
        "proposed_potential_by_model": end.model,
        "failed": ~finite_rows((answers,)),
    }


def _told(draws: list[dict[str, Tensor]], target: Target) -> bool:
    """Say that hardly a proposal is accepted, where that is so."""
    yes = torch.stack([draw["accepted"] for draw in draws]).double()
    if yes.mean() >= LOW:
        return False
    warn(
        f"sample: expected proposals to be accepted, got {float(yes.mean()):.1%} of {yes.numel()}. The "
        "model is far from the box. Give more rows to learn, a coarse "
        "twin, or another tangent; the draws so far are right and few.",
        TangentWarning,
    )
    return True


def _least_effective(draws: list[dict[str, Tensor]]) -> float:
    """Effective samples so far, the least of all unknowns, by ArviZ."""
    q = torch.stack([draw["q"] for draw in draws], 1)
    return float(arviz().ess({"q": q.numpy()})["q"].min())
