"""Hidden memory: a search for state that a program keeps and does not send, for no row.

A model's misses are regressed on the dithers of *earlier* calls, beside all inputs that it is shown. Dithers
are drawn independently, so earlier ones explain nothing if the program sends all of its state. F by lag is
the square of the explained part over its expectation by chance, with a run of a row as one sample: 1 by
chance. Then a second model learns beside the first and is shown values of earlier calls
(`zo.tangents.record.before`): at first of the call before, since kept state fades; then of the call that F
names. The model that foretells new rows better stays.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.notices import Notice
from blackbox.words import counted
from zo.errors import ConfigurationError, TangentWarning
from zo.tangents.excitation.dither import Prediction
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.structure import Specs
from zo.tangents.models.values import ValueTangent
from zo.tangents.record.before import Lags, goes_on_from, numbers_before, remembering, specs_before
from zo.tangents.record.pairs import CallPairs, all_rows, reciprocal, sizes
from zo.tangents.record.recorded_call import RecordedCall
from zo.tangents.tangent import Tangent, bring

# decisions 216, 225:
MOST = 64  # numbers of the inputs of a box whose memory is looked for: not of fields
FARTHEST = 8  # calls ago
FADING = 0.95  # of what steps have shown, with each further one
STEPS = 4  # steps with a dither, from which on F is looked at
RARE = 1e-3  # by chance: an F above which a model that is shown what was so many calls ago is tried
KEPT = 6  # steps whose calls are kept for it to begin with
CONTEST = 8  # steps at most in which both learn
OLDER = 0.1  # of what was missed, with each further step of it
BETTER = 10.0  # times the square that it must miss less


class Memory:
    """The hidden memory of one box, as far as answers show it.

    Args:
        tangent: the model of the box, before it has learned; None where there is none that learns values.
        box: the box.

    Attributes:
        lags: how many calls back the shown values are; empty for none.
        in_use: whether the model of the box is shown them; if not, a second model learns beside it.
        rival: the second model; None where there is none.
    """

    def __init__(self, tangent: Tangent | None, box: BlackBoxFunction) -> None:
        self._fresh = tangent
        # where a box says how far back it goes, nothing is looked for
        self.lags: Lags = tuple(range(1, box.remembers + 1)) if tangent is not None else ()
        self.in_use = bool(self.lags)
        self.rival: Tangent | None = self._made(box) if self.in_use else None
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}  # by lag, of scores and of their squares
        self._freedom = 1.0  # how many numbers F is the mean of, as if they were independent
        self._steps = 0
        self._recent_calls: list[list[RecordedCall]] = []
        self._missed = [0.0, 0.0, 0.0]  # squares by the model and by its rival, and steps of the contest
        self._trials: list[Lags] = []

    @torch.no_grad()
    def saw(
        self,
        calls: Sequence[RecordedCall],
        predictions: Mapping[int, Prediction],
        box: BlackBoxFunction,
        place: int,
        survived: Tensor,
        scale: Tensor,
        unmoved: Sequence[int],
    ) -> bool:
        """Take in a step, and say whether the rival takes over.

        Args:
            calls: all calls of the step.
            predictions: the predictions of the box's model for calls with dither.
            box: the box.
            place: the place of the box among the boxes.
            survived: `(batch rows,)` bool.
            scale: the usual size of each output.
            unmoved: outputs that nothing moves, by their places; they do not count in the contest.
        """
        if self._fresh is None or self.in_use:
            return False
        numbers = [number for number, call in enumerate(calls) if call.box == place]
        box_calls, boxes = [calls[number].plain() for number in numbers], {place: box}
        box_predictions = [predictions.get(number) for number in numbers]
        if not box_calls:
            return False
        self._regress(box_calls, box_predictions, boxes, scale)
        if self.rival is not None and self._is_better(
            _shown(box_calls, boxes, self.lags, survived, scale), box_predictions, unmoved
        ):
            self._sums, self._recent_calls, self.in_use = {}, [], True
            return True
        self._recent_calls = [*self._recent_calls, box_calls][-KEPT:]
        self._begin(box, boxes, scale)
        return False

    def by_lag(self) -> dict[int, float]:
        """F by lag: 1 by chance, more where answers depend on dithers so many calls ago."""
        return {
            lag: float((total.square() * reciprocal(squares)).mean())
            for lag, (total, squares) in self._sums.items()
        }

    def by_chance(self, lags: int = 1) -> float:
        """Return the F that chance exceeds once in a thousand times.

        Args:
            lags: Of how many lags it is the mean; for 1 it is the largest of all lags.
        """
        rare, freedom = RARE / (FARTHEST if lags == 1 else 1), lags * self._freedom
        return float(chi2.isf(rare, freedom)) / freedom

    def goes_back(self) -> bool:
        """Say whether dithers of all earlier calls together show more than chance does."""
        by_lag = list(self.by_lag().values())
        return bool(by_lag) and fmean(by_lag) > self.by_chance(len(by_lag))

    def notice(self, number: int, box: BlackBoxFunction) -> Notice:
        """Return the notice that the rival takes over."""
        what = "the change of its state since the call before, and the action before"
        if 1 not in self.lags:
            what = f"the action of {' and '.join(counted(lag, 'call') for lag in self.lags)} before"
        return Notice(
            f"memory of {box!r}",
            f"Step {number + 1}: expected what follows an answer of {box!r} to go by what it shows and is "
            "given, found that it goes by earlier answers too: it keeps something that it does not send. "
            f"From now on its model is shown {what}, for no row. A program that sends all of its state is "
            "learned sooner.",
            TangentWarning,
        )

    def state_dict(self) -> dict[str, Any]:
        """Save the search, and the rival's learning."""
        return {
            "lags": self.lags,
            "in_use": self.in_use,
            "sums": {lag: list(parts) for lag, parts in self._sums.items()},
            "steps": self._steps,
            "freedom": self._freedom,
            "kept": [
                [(call.box, list(call.inputs), list(call.outputs)) for call in calls]
                for calls in self._recent_calls
            ],
            "missed": list(self._missed),
            "tried": list(self._trials),
            "rival": None if self.rival is None or self.in_use else self.rival.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], box: BlackBoxFunction) -> None:
        """Go on where `state_dict` was taken; the rival begins anew, and reads its own where it is in use."""
        self.lags, self.in_use, self._steps = tuple(state["lags"]), state["in_use"], state["steps"]
        self._freedom = state["freedom"]
        self._sums = {lag: (total, squares) for lag, (total, squares) in state["sums"].items()}
        self._recent_calls = [
            [RecordedCall(b, tuple(i), tuple(o)) for b, i, o in calls] for calls in state["kept"]
        ]
        self._missed, self._trials = list(state["missed"]), [tuple(lags) for lags in state["tried"]]
        self.rival = self._made(box) if self.in_use or state["rival"] is not None else None
        if self.rival is not None and state["rival"] is not None:
            self.rival.load_state_dict(state["rival"])

    def _regress(
        self,
        calls: Sequence[RecordedCall],
        predictions: Sequence[Prediction | None],
        boxes: Mapping[int, BlackBoxFunction],
        scale: Tensor,
    ) -> None:
        """Add what a step has shown to the sums by lag."""
        whole = all(p is not None and bool(p.rows.alive.all()) for p in predictions)
        known_predictions = [p for p in predictions if p is not None]
        if len(known_predictions) < 2 or not whole or len({len(p.rows.z) for p in known_predictions}) > 1:
            return
        predecessors = [goes_on_from(calls, boxes, number) for number in range(len(calls))]
        short = reciprocal(scale)
        missed = torch.stack([(p.rows.y - p.values - p.response) * short for p in known_predictions]).double()
        dither = torch.stack([p.dither for p in known_predictions]).double()
        inputs = torch.stack([p.rows.z for p in known_predictions]).double()
        dither = dither[:, :, dither.flatten(0, 1).any(dim=0)]
        count = inputs.shape[0] * inputs.shape[1]
        if not dither.shape[2] or count < 2 * (inputs.shape[2] + 1) or not bool(missed.isfinite().all()):
            return
        missed = missed * reciprocal(missed.square().mean(dim=(1, 2), keepdim=True).sqrt())  # of each call
        regressors = torch.cat([inputs.flatten(0, 1), inputs.new_ones(count, 1)], dim=1)
        base = torch.linalg.qr(regressors * reciprocal(regressors.square().mean(dim=0).sqrt())).Q

        def beside(x: Tensor) -> Tensor:  # what is left of it beside all that is shown
            flat = x.flatten(0, 1)
            return (flat - base @ (base.T @ flat)).view(x.shape)

        residuals = beside(missed)
        together = torch.einsum("kro,krp->op", residuals, residuals)  # outputs that go together count as one
        independent = float(together.trace().square() * reciprocal(together.square().sum()))
        self._freedom = max(1.0, independent * dither.shape[2])
        for lag in range(1, FARTHEST + 1):
            earlier = torch.zeros_like(dither)
            for number in range(len(calls)):
                for previous in numbers_before(predecessors, number, (lag,)):
                    earlier[number] = dither[previous]
            if bool(earlier.any()):
                scores = torch.einsum("kro,kra->roa", residuals, beside(earlier)).cpu()
                new = scores.sum(dim=0), scores.square().sum(dim=0)
                old = self._sums.get(lag)
                self._sums[lag] = new if old is None else (FADING * old[0] + new[0], FADING * old[1] + new[1])
        self._steps += 1

    def _begin(
        self,
        box: BlackBoxFunction,
        boxes: Mapping[int, BlackBoxFunction],
        scale: Tensor,
    ) -> None:
        """Have a rival learn from the last steps, where answers depend on earlier dithers."""
        by_lag = self.by_lag()
        most = max(by_lag, key=by_lag.__getitem__, default=0)
        if not most or (self.rival is not None and self._missed[2] < 2):
            return
        clear = self._steps >= STEPS and by_lag[most] > self.by_chance()
        lags = (most,) if clear else (1,)
        if self._trials.count(lags) > clear or (self.rival is not None and (not clear or lags == self.lags)):
            return
        self.lags, self._missed = lags, [0.0, 0.0, 0.0]
        self._trials.append(lags)
        self.rival = self._made(box)
        for calls in self._recent_calls:
            alive = torch.ones(1, dtype=torch.bool, device=calls[0].inputs[0].device)
            for pairs in _shown(calls, boxes, lags, alive, scale):
                bring(self.rival, pairs.z.device)
                self.rival.see(pairs)
        self.rival.learn()

    def _is_better(
        self,
        shown: Sequence[CallPairs],
        predictions: Sequence[Prediction | None],
        unmoved: Sequence[int],
    ) -> bool:
        """Have the rival foretell a step, and learn from it; whether it has foretold better so far."""
        rival = self.rival
        assert rival is not None
        bring(rival, shown[0].z.device)
        self._missed[:2] = (OLDER * square for square in self._missed[:2])
        for pairs, prediction in zip(shown, predictions, strict=True):
            values = rival.expect(pairs)
            rows = pairs.alive.nonzero().flatten()
            if values is None or prediction is None or not len(rows):
                continue
            short = reciprocal(pairs.response_scale).clone()
            short[list(unmoved)] = 0.0
            for which, foretold in enumerate((prediction.values + prediction.response, values)):
                missed = ((pairs.y - foretold) * short)[rows].double().square().sum()
                self._missed[which] += float(missed)
        rival.see(all_rows(shown))
        rival.learn()
        self._missed[2] += 1
        of_model, of_rival, steps = self._missed
        if BETTER * of_rival < of_model and (self.lags != (1,) or self.goes_back()):
            return True
        if steps >= CONTEST or (steps > 1 and of_rival > of_model):
            self.rival, self.lags = None, ()
        return False

    def _made(self, box: BlackBoxFunction) -> Tangent:
        """A model that has learned nothing, and is shown what was before."""
        fresh = self._fresh
        assert fresh is not None
        if isinstance(fresh, AutoTangent):
            inputs = [*(spec for spec in box.inputs if spec.modelled), *specs_before(box, self.lags)]
            return fresh.beside(Specs(tuple(inputs), tuple(box.outputs)))
        return copy.deepcopy(fresh)


def may_remember(tangent: Tangent, box: BlackBoxFunction) -> Tangent | None:
    """Return a copy of a tangent, before it has learned, that may be shown earlier calls; None if it may not.

    A box that can be set to a state of one's choice keeps nothing.

    Raises:
        ConfigurationError: the box declares a memory that its tangent cannot be shown.
    """
    learns = isinstance(tangent, AutoTangent | ValueTangent) and tangent.prior is None
    if isinstance(tangent, ValueTangent):
        learns = learns and tangent.rows() is None  # not one that was fitted before
    numbers = sum(sizes(tuple(spec for spec in box.inputs if spec.learned)))
    may = learns and numbers <= MOST
    if box.remembers and tangent.learns and not may:
        raise ConfigurationError(
            f"TangentGradient, {box!r}: expected a call with memory={box.remembers} to see and give at most "
            f"{MOST} numbers, no same=, and a tangent that learns values, without a prior, got {numbers} "
            f"numbers and {tangent!r}. Send what the program keeps as an array of the call, or leave memory= "
            "out: it would have no effect."
        )
    return copy.deepcopy(tangent) if may and not box.settable else None


def _shown(
    calls: Sequence[RecordedCall],
    boxes: Mapping[int, BlackBoxFunction],
    lags: Lags,
    survived: Tensor,
    scale: Tensor,
) -> list[CallPairs]:
    """Return the rows of a box's calls, with the values of earlier calls."""
    remembered = remembering(calls, boxes, dict.fromkeys(boxes, lags))
    return [replace(call.pairs(boxes[call.box], survived), response_scale=scale) for call in remembered]
