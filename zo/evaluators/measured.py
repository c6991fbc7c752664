"""`Measured`, the evaluator "auto" of an output loss: for each layer what took least time, measured once."""

from __future__ import annotations

import zlib
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zo.evaluators.choosing import Chooser, along_directions
from zo.evaluators.difference.compiling import Compiled
from zo.evaluators.evaluator import Evaluator, Problem, Unservable, in_passes
from zo.evaluators.trial import Candidates, Pair, Trial
from zo.perturbation import Coordinates, Directions, Perturbation

SUBTRACTING = ("stacked", "loop", "reuse")
GUARDED = 8  # one chunk in so many, in the mean, of whose subtracted losses FEW are compared
FEW = 4
LOST = 0.1  # of the changes, beyond which losses are no longer subtracted
CHUNKS = 2  # what the measurement may cost at most, in queries of the chunk that it is made at


class Measured(Evaluator):
    """For each parameter the evaluator that takes least time, and how many variants together.

    Candidates: `difference` at several widths, by its rules and, on a CPU in float32, by fused kernels;
    `reuse`, which runs what lies behind the changed weight anew, one query at a time; `stacked`; `loop`.
    `difference` and `stacked` are checked against `loop` before they are used (see `Checked`), the kernels
    against `difference`. Those that subtract losses, all but `difference`, serve only parameters where that
    is within a fiftieth of `difference` at the step's own mu, on two entries of each (up to four queries
    more): rounding can be all that is left of a change. It may come to that as a loss falls, so one chunk in
    eight is compared; if it is off by more than a tenth, `difference` serves all layers from there on.
    Coarser numbers are for the user to choose: `Difference(dtype=...)`.

    At the first step some queries of each kind of layer (parameters in front of activations of one size)
    are timed, until that has cost two chunks of queries, which a short step has few in; what is left follows
    from the sizes of the activations. What they gave is forgotten, which was fastest is
    recorded in `state_dict` and never measured again. So a resumed run, and every rank that is given the
    state, repeats the choice. **Two runs that both start anew may choose
    differently, and their results then agree to rounding, not to the bit**: name an evaluator, or load a
    recorded choice, where that matters.

    Fused kernels are compiled, which takes seconds: they are tried for layers whose queries are measured to
    take longer than that within thirty steps, and serve batches of that step's number of rows. What has
    another number, and a machine without a compiler, takes the best of the others, which is recorded beside.

    Whole directions go to `stacked` or to `loop`, which is measured likewise: large activations of many
    variants fall out of the caches.

    Attributes:
        chosen: by the name of the parameter: evaluator and variants of a pass, 0 for those that `Difference`
            finds; empty before the first step.
        uncompiled: the same where "fused" is not to be had.
        along: what serves whole directions, "stacked" or "loop"; empty before the first.
        rows: of the batch that was measured.
        queries: perturbed objectives that the measurement cost and that no one has taken into account yet.
    """

    def __init__(self) -> None:
        self.candidates = Candidates()
        self.chosen: dict[str, Pair] = {}
        self.uncompiled: dict[str, Pair] = {}
        self.along = ""
        self.rows = 0
        self.queries = 0

    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """See `Evaluator.losses`."""
        return self.candidates.checked.losses(problem, perturbation)

    def changes(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> Tensor:
        """See `Evaluator.changes`."""
        if isinstance(perturbation, Directions):
            return self._along(problem, perturbation, base)
        if self.candidates.checked.serving(problem, perturbation) is not self.candidates.difference:
            return self.candidates.checked.changes(problem, perturbation, base)
        if not self.chosen:
            self._measure(problem, base, perturbation)
        found = self._served(problem, perturbation, base)
        if self._lost(problem, perturbation, base, found):
            for chosen in (self.chosen, self.uncompiled):
                subtracted = [name for name, (own, _) in chosen.items() if own in SUBTRACTING]
                chosen.update(dict.fromkeys(subtracted, ("difference", 0)))
            found = self._served(problem, perturbation, base)
        return found

    def _along(self, problem: Problem, directions: Directions, base: Tensor) -> Tensor:
        """Changes along whole directions, `(queries, rows)`."""
        stacked = self.candidates.stacked
        if not self.along and stacked.serving(problem, directions) is stacked.fast:
            most = CHUNKS * len(directions)
            self.along, spent = along_directions(self.candidates, problem, directions, base, most)
            self.queries += spent
        evaluator = self.candidates.loop if self.along == "loop" else stacked
        return evaluator.changes(problem, directions, base)

    def _served(self, problem: Problem, perturbation: Coordinates, base: Tensor) -> Tensor:
        """Changes `(queries, rows)`, each by the evaluator that was chosen for its parameter."""
        pairs, candidates = self._pairs(problem), self.candidates
        candidates.difference.widths = {
            name: width for name, (own, width) in pairs.items() if width and own in ("difference", "fused")
        }
        candidates.difference.kernels = frozenset(name for name, (own, _) in pairs.items() if own == "fused")
        stacked = max((width for own, width in pairs.values() if own == "stacked"), default=0)
        which, _ = problem.parameters.locate(perturbation.indices)
        by_tensor = [pairs[name][0] for name in problem.parameters.names]
        found = base.new_empty(len(perturbation), len(base))
        for evaluator, names, size in (
            (candidates.stacked, ("stacked",), stacked),
            (candidates.loop, ("loop",), 0),
            (candidates.reuse, ("reuse",), 0),
            (candidates.checked, ("difference", "fused"), 0),  # has widths of its own
        ):
            own = torch.tensor([name in names for name in by_tensor])[which]
            if own.any():
                part = Coordinates(perturbation.indices[own], perturbation.steps[own])
                try:
                    changes = in_passes(partial(_changes, evaluator, problem, base), part, size)
                except Unservable:
                    if evaluator is not candidates.reuse:
                        raise
                    # A step that cannot be read, unlike the measured one: this says so, and falls back.
                    changes = candidates.checked.changes(problem, part, base)
                found[own.to(found.device)] = changes
        return found

    def _lost(self, problem: Problem, perturbation: Coordinates, base: Tensor, found: Tensor) -> bool:
        """Whether subtracting has lost the changes; looked for in chunks that their own numbers pick.

        So the same chunks are looked at wherever and whenever they are evaluated.
        """
        which, _ = problem.parameters.locate(perturbation.indices)
        chosen = [self.chosen[name][0] in SUBTRACTING for name in problem.parameters.names]
        own = torch.tensor(chosen)[which].nonzero().flatten()
        mark = perturbation.indices.cpu().numpy().tobytes() + base.detach().cpu().numpy().tobytes()
        if len(own) == 0 or zlib.crc32(mark) % GUARDED:
            return False
        own = own[:: -(-len(own) // FEW)]
        part = Coordinates(perturbation.indices[own], perturbation.steps[own])
        true = self.candidates.checked.changes(problem, part, base)
        self.queries += len(own)
        subtracted = found[own.to(found.device)]
        both = torch.isfinite(true) & torch.isfinite(subtracted)
        true, subtracted = (torch.where(both, changes, 0.0).mean(1) for changes in (true, subtracted))
        return bool((subtracted - true).norm() > LOST * true.norm())

    def within(self, problem: Problem, perturbation: Perturbation, base: int, memory: int) -> int:
        """See `Evaluator.within`; passes of all candidates stay within it, too."""
        self.candidates.difference.memory = memory
        return self.candidates.checked.within(problem, perturbation, base, memory)

    def sees_all_reads(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> bool:
        """See `Evaluator.sees_all_reads`."""
        return self.candidates.checked.sees_all_reads(problem, perturbation, base)

    def state_dict(self) -> dict[str, Any]:
        """What was chosen, and what the checks found."""
        return {
            "chosen": {name: list(pair) for name, pair in self.chosen.items()},
            "uncompiled": {name: list(pair) for name, pair in self.uncompiled.items()},
            "along": self.along,
            "memory": self.candidates.difference.memory,
            "rows": self.rows,
            **self.candidates.checked.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the choice of `state_dict`; earlier versions' knew nothing that is compiled."""
        self.chosen = {name: (pair[0], pair[1]) for name, pair in state.get("chosen", {}).items()}
        self.uncompiled = {name: (pair[0], pair[1]) for name, pair in state.get("uncompiled", {}).items()}
        self.along = state.get("along", "")
        self.candidates.difference.memory = state.get("memory", self.candidates.difference.memory)
        self.rows = state.get("rows", 0)
        self.candidates.checked.load_state_dict(state)

    def take_queries(self) -> int:
        """Queries that checks and measurement have cost since this was last asked."""
        taken, self.queries = self.queries, 0
        return taken + self.candidates.checked.take_queries()

    def _pairs(self, problem: Problem) -> dict[str, Pair]:
        compiled = Compiled.works and problem.rows == self.rows
        return {
            name: self.uncompiled.get(name, ("difference", 0)) if own[0] == "fused" and not compiled else own
            for name, own in self.chosen.items()
        }

    def _measure(self, problem: Problem, base: Tensor, chunk: Coordinates) -> None:
        most, asked = CHUNKS * len(chunk), problem.queries or len(chunk)
        step = float(chunk.steps.abs().median())
        found = Chooser(Trial(self.candidates, problem, base, most, asked, step)).choices()
        self.chosen, self.uncompiled, self.rows = found.chosen, found.uncompiled, problem.rows
        self.queries += found.queries


def _changes(evaluator: Evaluator, problem: Problem, base: Tensor, perturbation: Perturbation) -> Tensor:
    return evaluator.changes(problem, perturbation, base)
