"""The first half of a step: base and probes run together, and the calls of the boxes are recorded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from zo.draws import Key
from zo.errors import TangentError
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.loop import loop_losses
from zo.evaluators.stacked import Stacked, stacked_losses
from zo.evaluators.state import Snapshot
from zo.execution.shared_rows import apart
from zo.perturbation import Directions
from zo.tangents.step.calls import RecordedCall
from zo.tangents.step.chunks import Layout, RecordedChunk, one_layout
from zo.tangents.step.distributed import ProbeRanks
from zo.tangents.step.recording import Recorder, routed
from zo.tangents.step.unseen_weights import refuse_unseen_weights

PROBES = 301  # first word of the key's path for these draws


@torch.no_grad()
def run_probes(
    problem: Problem,
    boxes: Sequence[BlackBoxFunction],
    evaluator: Evaluator,
    probes: int,
    mu: float,
    key: Key,
    ranks: ProbeRanks,
) -> tuple[Tensor, list[RecordedCall], int]:
    """Evaluate the objective with the network as it is and with `probes` randomly moved copies of it.

    Args:
        problem: of the step.
        boxes: whose calls are recorded.
        evaluator: `Stacked` or `Loop`; a direction of zero is the base.
        probes: how many.
        mu: standard deviation of the moves.
        key: of the step.
        ranks: among which the variants are dealt out, in chunks; each gets all that was recorded.

    Returns:
        The losses of the base `(rows,)`, NaN where a row failed; the calls in their order; and the number
        of rows that the boxes were asked for, by all ranks.

    Raises:
        TangentError: the calls of different variants cannot be told apart, or there are none; a rank
            failed; or, at the first step, stacked probes do not move a weight that a box's input hangs on.
    """
    chunks = ranks.chunks(1 + probes)

    def evaluated() -> tuple[list[RecordedChunk], tuple[int, list[Layout]]]:
        found, asked = [], 0
        for variants in chunks[ranks.rank :: ranks.size]:
            recorder = Recorder(boxes)
            # other ranks have other variants: a box that all ask alike is asked by each for itself
            with apart() if ranks.size > 1 else nullcontext(), routed(boxes, recorder.route):
                evaluate = stacked_losses if isinstance(evaluator, Stacked) else loop_losses
                losses = evaluate(problem, _directions(problem, variants, mu, key), Snapshot(problem.network))
            split = recorder.stacked if isinstance(evaluator, Stacked) else recorder.one_by_one
            found.append(RecordedChunk(losses, split(len(variants))))
            asked += recorder.asked
        return found, (asked, list({each.layout for each in found}))

    own, told = ranks.together(key.step, evaluated)
    layout = one_layout([layout for _, layouts in told for layout in layouts], 1 + probes)
    if not layout.calls:
        raise TangentError(
            f"objective: expected a call of a box in {list(boxes)}, got none. Name in boxes the very objects "
            "that the objective calls; without a box, use autograd."
        )
    whole = ranks.recorded(key.step, own, chunks, layout, problem.parameters.tensors[0].device)
    base, calls = whole.losses[0], whole.calls
    if probes and key.step == 0 and isinstance(evaluator, Stacked):  # what it finds does not change
        ranks.together(0, lambda: (refuse_unseen_weights(problem, boxes, calls, base.isfinite()), None))
    return base, calls, sum(asked for asked, _ in told)


def _directions(problem: Problem, variants: range, mu: float, key: Key) -> Directions:
    """Of some variants: none for the base, the first; each probe's draws are its own."""
    size, dtype = problem.parameters.size, problem.parameters.dtype
    moves = torch.zeros(len(variants), size, dtype=dtype)
    for place, variant in enumerate(variants):
        if variant > 0:
            generator = key.generator(PROBES, variant - 1)
            moves[place] = mu * torch.randn(size, generator=generator, dtype=dtype)
    return Directions(moves)
