"""`Stacked`: P variants on P x B rows in one pass, so a batched solver steps them all together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from zo.batches import repeat, tensors
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.preserved import Snapshot
from zo.evaluators.replacements import copied_bytes, replacements, size_in_bytes
from zo.evaluators.variant_forward import Forward
from zo.objective import losses, uncompiled
from zo.perturbation import Perturbation

SLACK = 2  # for what kernels need beside the tensors that they give: unfolded convolutions, say


class Stacked(Evaluator):
    """All variants of a chunk in one call of the objective.

    The layers that hold changed weights are given, for that call, a forward that knows the variants:
    for single changed weights of the layers in `point_rules` one without copies, for all else
    `torch.func` over copies of the layer. The objective itself sees an ordinary network and a batch of
    P x B rows, so it may call black boxes, and as often as it likes.
    """

    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """See `Evaluator.losses`."""
        variants = len(perturbation)
        start = Snapshot(problem.network)
        try:
            with _variant_forwards(problem, perturbation), uncompiled():
                batch = repeat(problem.batch, variants)
                stacked = losses(problem.objective, problem.network, batch, variants * problem.rows)
        finally:
            start.restore()
        return stacked.view(variants, problem.rows)

    def bytes_per_query(self, problem: Problem, perturbation: Perturbation, base: int) -> int:
        """See `Evaluator.bytes_per_query`."""
        batch = sum(size_in_bytes(tensor) for tensor in tensors(problem.batch))
        return batch + SLACK * base + copied_bytes(problem, perturbation)


@contextmanager
def _variant_forwards(problem: Problem, perturbation: Perturbation) -> Iterator[None]:
    """Replace forwards for the duration of the block."""
    replaced: list[tuple[nn.Module, Forward | None]] = []
    try:
        for module, forward in replacements(problem, perturbation).items():
            own = module.__dict__.get("forward")  # someone may have replaced it before us
            module.forward = forward
            replaced.append((module, own))
        yield
    finally:
        for module, own in replaced:
            if own is None:
                del module.forward  # the class's own shows again
            else:
                module.forward = own
