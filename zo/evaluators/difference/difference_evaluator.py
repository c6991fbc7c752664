"""`Difference`: carries the change that a weight makes forward from its layer to the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blackbox.checks import check_count, check_flag
from zo.batches import sent
from zo.evaluators.difference.changes import Entries
from zo.evaluators.difference.graphs import Graphs
from zo.evaluators.difference.propagation import send
from zo.evaluators.difference.tape import Tape, tape_of
from zo.evaluators.difference.tape_mode import NotReadable
from zo.evaluators.evaluator import Changes, Evaluator, Step
from zo.objective import Objective, OutputLoss, comparable, losses
from zo.perturbation import Coordinates, Directions, Perturbation

# Of the widest activation behind a weight, in bytes, on a CPU; measured by `benchmarks.query_speed`.
LARGE = 2**17  # beyond, values anew cost less than changes
CACHED = 2**20  # of all variants of a pass, which then stay in the cache
MOST = 32  # variants of a pass
MOST_ON_GPU = 512  # there the host's share of a pass is the same for few and many
MEMORY = 2**31  # on a CPU
OF_GPU = 8  # a pass takes this part of a GPU's memory
SHORT = 4  # times the root of the float's precision: losses of shorter steps are not subtracted
RESOLVED = 10  # units in the last place of the losses, below which subtracted ones are mostly rounding
LOSS_ROUNDING = 1000  # units in the last place by which recorded losses may be off the base's
OTHER_KERNELS = 1e-3  # of a loss of order one: a GPU's library may choose others, of lower precision
KEPT = 4  # times `memory` that a tape may take
TEMPORARIES = 6  # tensors of the widest change's size that a rule holds at once


@dataclass(frozen=True)
class Difference(Evaluator):
    """Carries the change of the activations from the perturbed layer to the loss.

    The objective is an `OutputLoss`. Once a step its network and loss run under a mode, which keeps
    the function calls that depend on the perturbed weights and the activations of the base. The queries
    then send changes through the calls behind their own layer: by a rule where the function is linear or
    is common, and evaluated in float64 and subtracted where it is not (see `registry`). So the error is
    that of rounding the *difference*, whatever mu is. The layers before are not run again, which is the
    feature reuse of Chen et al. 2024, "DeepZero", section 4.

    How a query is sent follows from the sizes of the activations behind its weight and from the device,
    the same in every step and process. On a CPU, where one of them is larger than 128 KiB, one query runs
    at a time, and from where its change has spread to all channels the functions themselves run on the new
    values: that takes half of the time or less, and the losses are subtracted, so differences are rounded as
    in `loop`. All other queries are changes to the end. These are four kinds: queries with small activations;
    queries that change the losses by less than ten units in the last place, found by trying, and the queries
    after such a one in the same parameter and chunk; queries with steps below four times the root of the
    float's precision (1.4e-3 in float32), without trying; and all queries on a GPU.

    It serves coordinates; directions change every layer, and are left to other evaluators. A black box
    behind the network gets output and change together, on the rows of all variants.

    Results are equal to the bit for equal chunks and equal settings.

    Args:
        variants: queries of one layer that run together, all as changes to the end: `variants=1` is exact at
            any mu and takes the least memory. None chooses it by the sizes and the device.
        memory: roughly the bytes that the changes of a pass may take, on a GPU where `variants` is None; the
            base's activations, kept for a step, may be four times as large. More is refused. None for 2 GiB,
            on a GPU an eighth of its memory.
        graphs: whether a GPU gets the kernels of a pass by one call, as a CUDA graph, which is made once a
            step for each parameter that has more than one pass. Everywhere else it changes nothing.

    Raises:
        ConfigurationError: a value out of its range.
    """

    variants: int | None = None
    memory: int | None = None
    graphs: bool = False
    needs_batch: ClassVar[bool] = True
    most_on_gpu: ClassVar[int | None] = MOST_ON_GPU

    @classmethod
    def by_default(cls, objective: Objective) -> bool:
        """Say whether "auto" takes it first: for a known loss of the network's output."""
        return isinstance(objective, OutputLoss)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.variants is not None:
            check_count("Difference", "variants", self.variants)
        if self.memory is not None:
            check_count("Difference", "memory", self.memory)
        check_flag("Difference", "graphs", self.graphs)

    def begin(self, step: Step, base: Tensor) -> Changes:
        """Record the base run of a step; see `Evaluator.begin`.

        Args:
            step: The step; its objective is an `OutputLoss`.
            base: Losses of the base, `(rows,)`; what is returned for rows where it is NaN means nothing.

        Raises:
            Unservable: the objective does something that no rule describes; the message says where.
        """
        tape = self._taped(step, base)
        graphs = Graphs(tape) if self.graphs and base.is_cuda and not tape.asks else None
        return lambda perturbation: self._changes(step, tape, perturbation, base, graphs)

    def serves(self, kind: type) -> bool:
        """Say whether it takes such queries: coordinates alone."""
        return kind is not Directions

    def _taped(self, step: Step, base: Tensor) -> Tape:
        start = step.snapshot()

        def recorded() -> Tape:
            try:
                return tape_of(step, base, KEPT * self._memory(base.device))
            finally:
                start.restore(generators=False)

        try:
            # a box's draws are not in the tape
            tape = recorded() if step.draws is None else step.draws.alone(recorded, lambda tape: tape.asks)
            start.restore()
            _compare(step, tape.base, base)
            return tape
        finally:
            start.restore()

    def _changes(
        self,
        step: Step,
        tape: Tape,
        perturbation: Perturbation,
        base: Tensor,
        graphs: Graphs | None,
    ) -> Tensor:
        assert isinstance(perturbation, Coordinates)  # see `serves`
        which, local = step.parameters.locate(perturbation.indices)
        parts: list[Tensor] = []
        order: list[Tensor] = []
        start = None
        if tape.asks:  # of the box's draws
            start = step.snapshot()
        with comparable(step.network):
            for number in which.unique().tolist():
                weight, queries = step.parameters.tensors[number], torch.nonzero(which == number).flatten()
                resolved = (
                    float(perturbation.steps[queries].abs().min())
                    >= SHORT * torch.finfo(weight.dtype).eps ** 0.5
                )
                while len(queries):
                    most, large = self._pass(tape, number, weight.device, resolved)
                    if tape.asks:  # of the box's memory nothing is known but what the base took
                        most = min(most, step.stack or most)
                    some, queries = queries[:most], queries[most:]
                    change = Entries.of(local[some], perturbation.steps[some], weight)
                    if graphs is not None:
                        changed = graphs.send(number, change)
                    else:
                        changed = send(tape, number, change, large)
                    if large is not None and not _resolved(changed, base, weight.dtype):
                        changed = send(tape, number, change, None)
                        resolved = not changed.any()  # as one is, so are most others of its layer
                    parts.append(changed.to(base.device, base.dtype))
                    order.append(some)
                    if start is not None:
                        start.restore()
        changes, places = torch.cat(parts), torch.cat(order)
        if (places[1:] > places[:-1]).all():
            return changes
        return changes[sent(places.argsort(), base.device)]

    def _memory(self, device: torch.device) -> int:
        if self.memory is not None:
            return self.memory
        if device.type != "cuda":
            return MEMORY
        return torch.cuda.get_device_properties(device).total_memory // OF_GPU

    def _pass(self, tape: Tape, number: int, device: torch.device, resolved: bool) -> tuple[int, int | None]:
        """Return how many variants run together, and the size from which values are computed anew.

        Args:
            tape: the tape of the base.
            number: the number of the parameter.
            device: the device of the parameter.
            resolved: whether losses may be subtracted.
        """
        if self.variants is not None:
            return self.variants, None
        widest = tape.widest(number)
        if device.type != "cpu":
            return max(1, min(MOST_ON_GPU, self._memory(device) // TEMPORARIES // widest)), None
        if widest > LARGE and resolved:
            return 1, LARGE
        return max(1, min(MOST, CACHED // widest)), None


def _resolved(changes: Tensor, base: Tensor, dtype: torch.dtype) -> bool:
    """Say whether the changes of subtracted losses exceed rounding."""
    rows = torch.isfinite(base) & torch.isfinite(changes[0])
    return bool(changes[0][rows].norm() >= RESOLVED * torch.finfo(dtype).eps * base[rows].norm())


def _compare(step: Step, recorded: Tensor, base: Tensor) -> None:
    """Refuse a tape that gives other losses, because something went past it.

    Step for step, and not by NaN alone: a function in compiled code may compare NaN and give a number.
    """
    rows = torch.isfinite(base) & torch.isfinite(recorded)
    if not rows.any():
        return
    off = (recorded - base)[rows].abs().max()
    largest = base[rows].abs().max()
    # A loss may be summed in a wider dtype than the parameters': the narrowest decides.
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (base, *step.parameters.tensors))
    allowed = max(LOSS_ROUNDING * eps, OTHER_KERNELS if base.is_cuda else 0.0) * (1 + largest)
    if off <= allowed:  # losses near zero are what rounding leaves of outputs of order ten
        return
    again = losses(step.objective, step.network, step.batch, step.rows)
    noise = (again - base)[rows].abs().nan_to_num(0.0).max()
    if off > 10 * noise + allowed:
        raise NotReadable(
            f"objective: expected the losses of the base when it is recorded, got some off by "
            f"{off.item():.1e}: something reads or writes tensors past torch's functions. "
            "Use evaluator='stacked'."
        )
