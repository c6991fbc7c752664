"""`Selected`: of several tangents the one that has lately predicted best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zo.errors import ConfigurationError
from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import Tangent, check_positive


class Selected(Tangent):
    """J of that candidate whose predictions of responses it had not seen were nearest, of late.

    All candidates learn from the same pairs, so the choice costs no rows. Each step adds up every
    candidate's squared errors over all pairs of the step, before any learns from them; a running mean over
    the steps decides, which of equals takes the first. No choice is better than the best of its candidates
    by much; the gain is that none that is wrong for the box at hand, such as a tangent without a state where
    the derivative has one, stays in use.

    Cost: that of all candidates, but for VJPs, which only the chosen one is asked for.

    Args:
        candidates: two or more; they share nothing.
        averaging: how much of the mean stays in a step.

    Attributes:
        chosen: the place of the one in use among the candidates.

    Raises:
        ConfigurationError: fewer than two candidates, or averaging out of its range.
    """

    def __init__(self, candidates: Sequence[Tangent], averaging: float = 0.9) -> None:
        several = isinstance(candidates, Sequence) and len(candidates) > 1
        if not several or not all(isinstance(own, Tangent) for own in candidates):
            raise ConfigurationError(
                f"Selected, candidates: expected two Tangents or more, got {candidates!r}. "
                "Such as [zo.Memory(), zo.Memory(zo.ConvTangent())]."
            )
        check_positive("Selected", "averaging", averaging, most=1.0)
        self.candidates = list(candidates)
        self.averaging = averaging
        self.learns_from_values = all(own.learns_from_values for own in self.candidates)
        self.chosen = 0
        self._errors = [0.0] * len(self.candidates)  # running sums, all with the same weights
        self._of_step: Tensor | None = None

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """The chosen one's."""
        return self.candidates[self.chosen].apply(pairs, d)

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """The chosen one's."""
        return self.candidates[self.chosen].vjp(pairs, cotangent)

    def predict(self, pairs: CallPairs) -> Tensor:
        """The chosen one's; and all candidates' are compared with the responses."""
        predictions = [own.predict(pairs) for own in self.candidates]
        scale = pairs.d.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(pairs.d.dtype).tiny)
        missed = [((found - pairs.response) / scale)[pairs.valid] for found in predictions]
        errors = torch.stack([each.double().square().sum() for each in missed])
        self._of_step = errors if self._of_step is None else self._of_step + errors
        return predictions[self.chosen]

    def predict_values(self, pairs: CallPairs) -> Tensor | None:
        """The chosen one's."""
        return self.candidates[self.chosen].predict_values(pairs)

    def see(self, pairs: CallPairs) -> None:
        """All look."""
        for own in self.candidates:
            own.see(pairs)

    def observe(self, pairs: CallPairs) -> None:
        """Choose by the step's predictions, then let all learn."""
        if self._of_step is not None and pairs.d.shape[1]:
            new = self._of_step.nan_to_num(torch.inf, torch.inf).tolist()
            self._errors = [self.averaging * old + each for old, each in zip(self._errors, new, strict=True)]
            self.chosen = self._errors.index(min(self._errors))
        self._of_step = None
        for own in self.candidates:
            own.observe(pairs)

    def state_dict(self) -> dict[str, Any]:
        """The candidates' states, their errors and the choice."""
        states = [own.state_dict() for own in self.candidates]
        return {"candidates": states, "errors": list(self._errors), "chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for own, kept in zip(self.candidates, state["candidates"], strict=True):
            own.load_state_dict(kept)
        self._errors, self.chosen, self._of_step = list(state["errors"]), state["chosen"], None

    def __repr__(self) -> str:
        """With its candidates."""
        return f"Selected({self.candidates!r})"
