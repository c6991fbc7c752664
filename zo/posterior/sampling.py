"""`sample`: draws of an exact posterior through a box that gives values alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.checks import check_count
from blackbox.notices import warn
from zo.errors import ConfigurationError, TangentWarning
from zo.posterior.hmc import Move, accepted, propose
from zo.posterior.learning import ROUND, buy, fitted, freeze
from zo.posterior.result import arviz, inference_data
from zo.posterior.target import Model, Potential, Target
from zo.posterior.unknowns import Unknowns
from zo.tangents.models.kernel import KernelTangent
from zo.tangents.models.values import ValueTangent

LEAST_START = 4  # rows
SAVED = 25  # proposals of each chain between checkpoints
LOW, JUDGED = 0.05, 200  # acceptance that is told, and proposals after which
DIVERGED = 1000.0  # of energy by the model, as Stan and PyMC have it


def sample(
    potential: Potential,
    box: BlackBoxFunction,
    start: Tensor,
    *,
    rows: int,
    chains: int = 8,
    seed: int = 0,
    bounds: tuple[Any, Any] | None = None,
    tangent: ValueTangent | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    learn: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Any:
    """Draw from a posterior whose likelihood is a box without a derivative.

        data = zo.sample(potential, solver, 0.3 * torch.randn(50, 64), rows=5000)
        arviz.summary(data)

    Rounds of 25 rows are bought where the posterior by a model of the box lies. Then the model is frozen, and
    Hamiltonian Monte Carlo goes by its force, the box's own answer being in the accept step. A trajectory
    takes one row of the box, however long it is. Steps, their number and the mass come from the model alone.

    Draws are exact in the limit of long chains: a wrong model costs acceptance and nothing else, for one
    fixed force is reversible (Rasmussen, 2003). All that came before the model was frozen is left out, and
    the first tenth of what came after it. A proposal whose row fails is rejected.

    Args:
        potential: minus the logarithm of the density of unknowns `(rows, size)` given the box's answers, but
            for a constant, `(rows,)`; of torch operations.
        box: with one input `(size,)` and one output; set its `failures` to "keep" where rows may fail.
        start: rows to begin from, `(rows, size)`, at least 4; such as draws of the prior, or fewer apart.
        rows: of the box in all.
        chains: side by side, in one call of the box.
        seed: of all that is drawn.
        bounds: lower and upper ones, numbers or `(size,)`, infinite for none; None for none at all.
        tangent: a model that has learned nothing, of which a copy is fitted in each round; None for
            `KernelTangent(centres=1000)`.
        prior: a differentiable function under it, `(rows, size)` to the box's answers, such as a coarse twin.
        learn: rows before the model is frozen; None for 50 and five for each unknown, at most a fifth.
        checkpoint: a file, written now and then; where it is there, the sampling goes on from it, to the bit.
        progress: is told rows so far and effective samples so far, the least of all unknowns.

    Returns:
        An ArviZ `InferenceData` (of ArviZ below 1; later ones have a `DataTree`). Its posterior has `x`,
        `(chain, draw, size)`; its `sample_stats` have `lp`, `acceptance_rate`, `diverging`, and the potential
        of each proposal by model and box; its attributes count rows.

    Raises:
        ConfigurationError: a value out of range, a potential that is not finite at the start, a box that
            answers the same row with two values, or a checkpoint of other settings.
        MissingExtraError: ArviZ is not installed.
        RowFailedError: a row failed, and the box does not keep failed rows.
    """
    arviz()  # missed before a row is bought
    check_count("sample", "rows", rows)
    check_count("sample", "chains", chains)
    if len(box.inputs) != 1 or len(box.outputs) != 1 or len(box.inputs[0].shape) != 1:
        raise ConfigurationError(
            f"sample, box: expected one input of shape (size,) and one output, got {box!r} with "
            f"{len(box.inputs)} and {len(box.outputs)}. Join them in a box around it."
        )
    (size,) = box.inputs[0].shape
    if start.ndim != 2 or start.shape[1] != size or len(start) < LEAST_START:
        raise ConfigurationError(
            f"sample, start: expected at least {LEAST_START} rows of {size} numbers, got shape "
            f"{tuple(start.shape)}. Give draws of the prior, or rows about a guess."
        )
    learn = min(rows // 5, 50 + 5 * size) if learn is None else check_count("sample", "learn", learn)
    learn = max(learn, len(start))
    if rows < learn + 2 + 20 * chains:
        raise ConfigurationError(
            f"sample, rows: expected at least {learn + 2 + 20 * chains}, to learn from {learn} and for 20 "
            f"draws of {chains} chains, got {rows}. Give more rows, fewer chains, or a smaller learn."
        )
    infinite = torch.full((size,), torch.inf, dtype=torch.float64)
    lower, upper = (-infinite, infinite) if bounds is None else bounds
    unknowns = Unknowns(*(torch.as_tensor(b, dtype=torch.float64).expand(size) for b in (lower, upper)))
    target = Target(potential, box, unknowns)
    tangent = KernelTangent(centres=1000) if tangent is None else tangent

    def fit(q: Tensor, answers: Tensor) -> Model:
        return Model(target, tangent, prior, q, answers)

    generator = torch.Generator().manual_seed(seed)
    settings = (rows, chains, seed, learn, repr(tangent), unknowns.lower.tolist(), unknowns.upper.tolist())
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        state = _loaded(path, settings)
        generator.set_state(state["generator"])
    else:
        state = _begun(target, unknowns.free(start.double()), settings)
    with torch.no_grad():
        while not state["frozen"] and len(state["q"]) < learn:
            buy(target, fit, state, generator, min(ROUND, learn - len(state["q"])))
            state["rows"] = len(state["q"]) + 2
            _save(path, state, generator)
            if progress is not None:
                progress(state["rows"], 0.0)
        model = fitted(target, fit, state) if state["frozen"] else freeze(target, fit, state, generator)
        if not state["frozen"]:
            _place(target, state, chains, generator)
            _save(path, state, generator)
        _chains(target, model, state, rows, generator, path, progress)
    counts = {
        "rows": state["rows"],
        "rows_learned": len(state["q"]),
        "rows_failed": state["failed"],
        "rows_run_by_ledger": box.ledger.rows_run,
        "step_size": state["size"],
        "steps": state["steps"],
    }
    return inference_data(state, unknowns, counts)


def _begun(target: Target, q: Tensor, settings: tuple[Any, ...]) -> dict[str, Any]:
    """The state before the first round: the start's answers, and the first row's twice more."""
    answers = target.answers(q)
    potential = target.potential(q, answers)
    finite = int(potential.isfinite().sum())
    if finite < LEAST_START:
        raise ConfigurationError(
            f"sample, potential: expected finite numbers at the start, got {len(q) - finite} of {len(q)} "
            "rows that are not. Begin where the density is not zero and the box answers."
        )
    row = q[potential.argmin()][None]
    if not torch.equal(target.answers(row), target.answers(row)):
        raise ConfigurationError(
            "sample, box: expected the same answer to the same row, got two different ones of "
            f"{target.box!r}. The accept step would then draw from another density. Fix its "
            "seed, or make the average of its runs the answer."
        )
    root = q[potential.isfinite()].std(0).clamp(min=1e-6).diag()
    return {
        "settings": settings,
        "q": q,
        "answers": answers,
        "root": root,
        "size": 0.12,
        "steps": 6,
        "frozen": False,
        "rows": len(q) + 2,
        "failed": int((~answers.flatten(1).isfinite().all(1)).sum()),
        "draws": [],
        "notes": {},
    }


def _place(target: Target, state: dict[str, Any], chains: int, generator: torch.Generator) -> None:
    """Put chains at some of the likeliest rows, whose potential is known."""
    state["frozen"] = True
    state["failed"] = int((~state["answers"].flatten(1).isfinite().all(1)).sum())
    potential = target.potential(state["q"], state["answers"])
    best = potential.argsort()[: min(int(potential.isfinite().sum()), max(40, chains))]
    order = torch.randperm(len(best), generator=generator).repeat(-(-chains // len(best)))[:chains]
    state["at"], state["potential"] = state["q"][best[order]], potential[best[order]]


def _chains(
    target: Target,
    model: Model,
    state: dict[str, Any],
    rows: int,
    generator: torch.Generator,
    path: Path | None,
    progress: Callable[[int, float], None] | None,
) -> None:
    """Proposals by the frozen model, the box in the accept step, until the rows are spent."""
    move = Move(state["size"], state["steps"], state["root"])
    notes = state["notes"]
    told = False
    while state["rows"] + len(state["at"]) <= rows:
        q, potential = state["at"], state["potential"]
        end = propose(model, q, move, generator)
        answers = target.answers(end.q)
        new = torch.where(end.alive, target.potential(end.q, answers), torch.inf)
        yes, probability = accepted(potential + end.kinetic - new, generator)
        state["at"] = torch.where(yes[:, None], end.q, q)
        state["potential"] = torch.where(yes, new, potential)
        state["rows"] += len(q)
        state["failed"] += int((~answers.flatten(1).isfinite().all(1)).sum())
        state["draws"].append(state["at"])
        energy = (end.begin + end.kinetic - end.model).abs()
        for name, value in (
            ("potential", state["potential"]),
            ("acceptance_rate", probability),
            ("accepted", yes),
            ("diverging", ~end.alive | ~(energy < DIVERGED)),
            ("proposed_potential", new),
            ("proposed_potential_by_model", end.model),
        ):
            notes.setdefault(name, []).append(value)
        count = len(state["draws"])
        if not told and count * len(q) >= JUDGED and count % SAVED == 0:
            rate = float(torch.stack(notes["accepted"]).double().mean())
            if rate < LOW:
                told = True
                warn(
                    f"sample: expected proposals to be accepted, got {rate:.1%} of {count * len(q)}. The "
                    "model is far from the box. Give more rows to learn, a prior such as a coarse "
                    "twin, or another tangent; the draws so far are right and few.",
                    TangentWarning,
                )
        if count % SAVED == 0:
            _save(path, state, generator)
            if progress is not None:
                progress(state["rows"], _least_effective(state["draws"]))


def _least_effective(draws: list[Tensor]) -> float:
    """Effective samples so far, the least of all unknowns, by ArviZ."""
    return float(arviz().ess({"q": torch.stack(draws, 1).numpy()})["q"].min())


def _save(path: Path | None, state: dict[str, Any], generator: torch.Generator) -> None:
    """Write the state at once, or not at all."""
    if path is None:
        return
    beside = path.with_name(path.name + ".part")
    torch.save(state | {"generator": generator.get_state()}, beside)
    os.replace(beside, path)


def _loaded(path: Path, settings: tuple[Any, ...]) -> dict[str, Any]:
    """The state of a checkpoint, of the same settings."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["settings"] != settings:
        raise ConfigurationError(
            f"sample, checkpoint: expected the settings that {path} was begun with, {state['settings']}, got "
            f"{settings}. Give these again, or another file."
        )
    return state
