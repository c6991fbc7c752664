"""`Difference`: what a weight changes, carried forward from its layer to the loss; nothing cancels."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from zo.errors import ConfigurationError
from zo.evaluators.difference.changes import Entries
from zo.evaluators.difference.reader import read
from zo.evaluators.difference.reading import Reading
from zo.evaluators.difference.recording import NotReadable
from zo.evaluators.evaluator import Changes, Evaluator, Problem
from zo.evaluators.hidden_weights import hidden
from zo.evaluators.state import Snapshot
from zo.objective import comparable, losses
from zo.perturbation import Coordinates, Directions, Perturbation

CACHED = 2**20  # bytes that the widest change of a pass may take on a CPU, to stay in the cache
MOST = 32  # variants of a pass
# With fused kernels Python's share of a call is what more variants save, and large caches forgive more:
# on ResNet-20, 64 rows, bfloat16, 8 variants took 0.9 of 4 variants' time and half of one's.
FUSED_CACHED, FUSED_MOST = 2**24, 8
LOSS_ROUNDING = 1000  # units in the last place by which recorded losses may be off the base's
OTHER_KERNELS = 1e-3  # of a loss of order one: a GPU's library may choose others, of lower precision
TEMPORARIES = 6  # tensors of the widest change's size that a rule holds at once


class Difference(Evaluator):
    """Carries the change of the activations from the perturbed layer to the loss, free of cancellation.

    The objective is an `OutputLoss`. Once a step its network and loss run under a recorder, which keeps
    the function calls that depend on the perturbed weights and the activations of the base. The queries
    then send changes through the calls behind their own layer, each by the rule of its function (see
    `registry`): the exact finite difference, so its error is that of rounding the *difference*, whatever
    mu is. The layers before are not run again, which is feature reuse.

    It serves coordinates. Directions change every layer, so they go to `stacked`, as do chunks that mix
    both. A loss that has no rules gets output and change together (`Tail`): a black box behind the
    network sees base + difference on the rows of all variants.

    Results are equal to the bit for equal chunks and an equal number of variants in a pass.

    Args:
        variants: queries of one layer that run together; None for as many as suit the device.
        dtype: in which changes are kept between calls, such as torch.bfloat16; None for the network's.
            Base activations, and the arithmetic of norms and activations, stay in the network's.
        memory: bytes of base activations that are kept between queries, others being computed again; and,
            roughly, what the changes of a pass may take where `variants` is None.
        fused: whether convolutions, norms, activations and softmax take fused kernels on a CPU (see
            `fast_rules`). They are compiled at their first use, some seconds for each shape of activation,
            and are several times faster; without a C++ compiler they run as they are, and a warning says so.

    Attributes:
        widths: variants of a pass by the name of the parameter, before what suits the device.
        kernels: names of parameters whose queries take fused kernels, whatever `fused` says.

    Raises:
        ConfigurationError: a value out of its range.
    """

    def __init__(
        self,
        *,
        variants: int | None = None,
        dtype: torch.dtype | None = None,
        memory: int = 2**30,
        fused: bool = False,
    ) -> None:
        if variants is not None and (not isinstance(variants, int) or variants < 1):
            raise ConfigurationError(f"Difference, variants: expected a whole number >= 1, got {variants!r}.")
        if dtype is not None and not dtype.is_floating_point:
            raise ConfigurationError(f"Difference, dtype: expected a floating one, got {dtype!r}.")
        self.variants = variants
        self.dtype = dtype
        self.memory = memory
        self.fused = fused
        self.widths: dict[str, int] = {}
        self.kernels: frozenset[str] = frozenset()
        self.coarse = dtype in (torch.bfloat16, torch.float16)
        if self.coarse:
            self.agreement = 0.1
        self._reading: tuple[weakref.ref[Problem], Reading] | None = None

    def begin(self, problem: Problem, base: Tensor) -> Changes:
        """See `Evaluator.begin`."""
        self.reading(problem, base)
        return lambda perturbation: self.changes(problem, perturbation, base)

    def serves(self, kind: type) -> bool:
        """Coordinates alone: directions change every layer."""
        return kind is not Directions

    def changes(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> Tensor:
        """See `Evaluator.changes`.

        Raises:
            NotReadable: the objective does something that no rule describes; the message says where.
        """
        reading = self.reading(problem, base)
        which, local = problem.parameters.locate(perturbation.indices)
        found = base.new_zeros(len(perturbation), len(base))
        with comparable(problem.network):
            for number in which.unique().tolist():
                queries = torch.nonzero(which == number).flatten()
                name = problem.parameters.names[number]
                fused = self.fused or name in self.kernels
                together = self.variants or self.widths.get(name) or self.suited(reading, number, fused)
                for some in queries.split(together):
                    # Kernels are compiled for one number of variants, so a short pass is filled up.
                    all_ = some if not fused else some[torch.arange(together) % len(some)]
                    part = Coordinates(local[all_], perturbation.steps[all_])
                    changed = self._pass(problem, reading, number, part, base, fused)
                    found[some.to(found.device)] = changed[: len(some)]
        return found

    def reading(self, problem: Problem, base: Tensor) -> Reading:
        """The reading of a step, made at its first query and dropped with its problem."""
        if self._reading is None or self._reading[0]() is not problem:
            self._reading = None  # its memory, before another takes as much
            start = Snapshot(problem.network)
            try:
                found = read(problem, base, self.memory)
                start.restore()
                if found.losses is not None:
                    self._compare(problem, found.losses, base)
            finally:
                start.restore()
            self._reading = weakref.ref(problem, self._forget), found
        return self._reading[1]

    def _compare(self, problem: Problem, read: Tensor, base: Tensor) -> None:
        """Refuse a recording that came to other losses, because something went past the recorder.

        Step for step, and not by NaN alone: a function in compiled code may compare NaN and give a number.
        """
        rows = torch.isfinite(base) & torch.isfinite(read)
        if not rows.any():
            return
        off = (read - base)[rows].abs().max()
        largest = base[rows].abs().max()
        # A loss may be summed in a wider dtype than the parameters': the narrowest decides.
        eps = max(torch.finfo(tensor.dtype).eps for tensor in (base, *problem.parameters.tensors))
        allowed = max(LOSS_ROUNDING * eps, OTHER_KERNELS if base.is_cuda else 0.0) * (1 + largest)
        if off <= allowed:  # losses near zero are what rounding leaves of outputs of order ten
            return
        again = losses(problem.objective, problem.network, problem.batch, problem.rows)
        noise = (again - base)[rows].abs().nan_to_num(0.0).max()
        if off > 10 * noise + allowed:
            raise NotReadable(
                f"objective: expected the losses of the base when it is recorded, got some off by "
                f"{off.item():.1e}: something reads or writes tensors past torch's functions. "
                "Use evaluator='stacked'."
            )

    def sees_all_reads(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> bool:
        """A reading sees all that is read; a loss behind it is evaluated once with the weights hidden."""
        tail = self.reading(problem, base).tail
        if tail is None:
            return True
        with hidden(problem.parameters.tensors, ()):
            found = tail.objective.loss(tail.output, tail.target)
        return bool(torch.isfinite(found[torch.isfinite(base)]).any())

    def bytes_per_query(self, problem: Problem, perturbation: Perturbation, base: int) -> int:
        """None: passes have a size of their own; directions take what they take in `stacked`."""
        return 0

    def suited(self, reading: Reading, number: int, fused: bool) -> int:
        """How many variants of a parameter run together: on a CPU what they change stays in the cache."""
        widest = reading.widest(number)
        value = reading.nodes[number].call.output
        cpu = value.device.type == "cpu"
        if cpu and fused:
            size = self.dtype.itemsize if self.dtype is not None else value.element_size()
            return max(1, min(FUSED_MOST, FUSED_CACHED * value.element_size() // (size * widest)))
        return max(1, min(MOST, (CACHED if cpu else self.memory // TEMPORARIES) // widest))

    def _pass(
        self, problem: Problem, reading: Reading, number: int, part: Coordinates, base: Tensor, fused: bool
    ) -> Tensor:
        weight = problem.parameters.tensors[number]
        steps = part.steps.to(weight.device, weight.dtype)
        change = Entries(part.indices.to(weight.device), steps, weight.shape)
        changed = reading.changes(number, change, self.dtype, fused)
        return changed if reading.tail is None else reading.tail.changes(changed, base)

    def _forget(self, _: Any) -> None:  # noqa: ANN401
        self._reading = None
