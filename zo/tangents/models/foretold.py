"""`ForetoldTangent`: the usual model or a light one, whichever foretold the last moves of a search."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from zo.errors import TangentError
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.candidates import candidates
from zo.tangents.models.form import Form
from zo.tangents.models.structure import Specs
from zo.tangents.models.view import ByModelTangent
from zo.tangents.record.pairs import CallPairs, all_rows, reciprocal
from zo.tangents.tangent import Tangent

# decision 140:
FEWEST = 3  # rows of the first evaluation, of which every second is held out
FADING = 0.5  # of the mean square of earlier moves' errors with each move
HOPELESS = 0.5  # of a change: who misses more knows nothing of it, and the usual model is used
WORST = 1e12  # a square of an error that is not finite counts as this


class ForetoldTangent(ByModelTangent):
    """The derivative of `AutoTangent`, or of a light candidate where that foretells changes better.

    The light candidate that ships is `EquationTangent`, so it is called the equation here. The tangent is for
    one batch whose inputs move from evaluation to evaluation, as in `fit_field`. Both models learn from all
    rows. Before new rows are shown, each predicts the new answers of the same calls, y_k + M(x) - M(x_k),
    from the last record, as a search does. The equation is used where its error is smaller, and smaller than
    half of the change; the last moves count most. Before the first move every second row of the evaluation
    is held out, for two models that are made for this alone.

    With fewer than three rows the usual model begins. It is the only one unless the box's specs say that it
    moves a state on, on a periodic grid of at most 4,096 cells, and the equation's flow is finite.

    Args:
        box: the box, whose specs decide.
        seed: the seed of the usual model's draws.

    Attributes:
        usual: the usual model, used where the equation is not better.
        equation: the equation; None where it is out.
        errors: the last errors of both, over the change of the answers; empty before.
    """

    def __init__(self, box: BlackBoxFunction, seed: int = 0) -> None:
        specs = Specs.of(box)
        light = next((c for c in candidates() if c.light and c.fits(specs) is None), None)
        names = () if light is None else (light.name,)
        self._new_usual = lambda: AutoTangent(box, seed, without=names)  # a copy has the same box
        self._new_equation = lambda: None if light is None else light.make(box, seed)
        self.usual = self._new_usual()
        self.equation = self._new_equation()
        self.errors: tuple[float, ...] = ()
        # of the usual model's errors and the equation's, over those of the changes; empty before
        self._squares: list[float] = []
        self._by_equation = False  # whether the equation is
        self._is_hopeful = False  # whether it is not hopeless
        self._begun = False  # whether there was an evaluation
        self._last_calls: list[CallPairs] = []  # what the last evaluation showed
        self._new_calls: list[CallPairs] = []  # what was seen since
        self._missed: list[list[Tensor]] = []  # squares of it that both missed, and of its changes

    @property
    def model(self) -> Tangent:
        """The model in use."""
        return self.equation if self._by_equation and self.equation is not None else self.usual

    @torch.no_grad()
    def see(self, rows: CallPairs) -> None:
        """Compare what both foretold of the rows, and let both keep them."""
        if self.equation is not None:
            place = len(self._new_calls)
            if place < len(self._last_calls) and self._last_calls[place].z.shape == rows.z.shape:
                self._missed.append(self._of_move(self.equation, self._last_calls[place], rows))
            self._new_calls.append(rows)
            self.equation.see(rows)
        self.usual.see(rows)

    def learn(self, steps: int | None = None) -> None:
        """Choose by what was foretold, and let both learn."""
        if self.equation is not None and self._new_calls:
            if not self._begun:
                self._hold_out(all_rows(self._new_calls))
            self._choose()
            if not self._begun:  # what is asked of moves is another question
                self._squares, self._begun = [], True
            self._last_calls, self._new_calls = self._new_calls, []
        self.usual.learn(steps)
        if self.equation is not None:
            try:
                self.equation.learn(steps)
            except TangentError:
                self._drop()

    def give_way(self) -> bool:
        """Use the other from now on, until it misses more: a move by the one in use has led nowhere.

        Returns:
            Whether there is another, and it is not hopeless.
        """
        if self.equation is None or not (self._by_equation or self._is_hopeful):
            return False
        self._by_equation = not self._by_equation
        self._squares.reverse()
        return True

    def improve(self) -> str | None:
        """Improve the usual model, where it is in use: an equation has nothing left to do."""
        return None if self._by_equation else self.usual.improve()

    def keep_within(self, most_bytes: int) -> None:
        """Have both share so many bytes."""
        self.usual.keep_within(most_bytes // 2)
        if self.equation is not None:
            self.equation.keep_within(most_bytes // 2)

    def check_box(self, box: BlackBoxFunction) -> None:
        """It is made for one."""
        self.usual.check_box(box)

    def _of_move(self, equation: Tangent, before: CallPairs, rows: CallPairs) -> list[Tensor]:
        """Squares of both models' errors at new inputs, and of the answers' change."""
        alive = (before.alive & rows.alive).nonzero(as_tuple=True)
        change, unit = (rows.y - before.y)[alive], reciprocal(rows.response_scale)
        squares = []
        for tangent in (self.usual, equation):
            foretold = tangent.at(before).to(rows.z, rows.others)[alive]
            squares.append(((foretold - change) * unit).double().square().sum())
        return [*squares, (change * unit).double().square().sum()]

    @torch.no_grad()
    def _hold_out(self, rows: CallPairs) -> None:
        """Fit two models to half of the first rows, and compare how well they predict the other half."""
        equation = self._new_equation()
        if equation is None or len(rows.z) < FEWEST:
            return
        places = torch.arange(len(rows.z), device=rows.z.device)
        training_rows, held_out = (rows.some(places[first::2]) for first in (0, 1))
        alive, unit = held_out.alive.nonzero(as_tuple=True), reciprocal(held_out.response_scale)
        change = (held_out.y - Form(rows.inputs, rows.outputs, ()).followed(held_out.z))[alive]
        squares = []
        for tangent in (self._new_usual(), equation):
            tangent.see(training_rows)
            try:
                tangent.learn()
                foretold = tangent.at(held_out).values
            except TangentError:
                foretold = None
            missed = change * math.inf if foretold is None else foretold[alive] - held_out.y[alive]
            squares.append((missed * unit).double().square().sum())
        self._missed.append([*squares, (change * unit).double().square().sum()])

    def _choose(self) -> None:
        """The equation where it missed less."""
        if not self._missed:
            return
        *missed, change = (float(torch.stack(column).sum()) for column in zip(*self._missed, strict=True))
        self._missed = []
        if not change > 0:
            return
        new = [square / change if math.isfinite(square) else WORST for square in missed]
        self.errors = tuple(math.sqrt(square) for square in new)
        last_squares = self._squares or new
        pairs = zip(last_squares, new, strict=True)
        self._squares = [FADING * old + (1 - FADING) * square for old, square in pairs]
        self._is_hopeful = self._squares[1] < HOPELESS**2
        self._by_equation = self._is_hopeful and self._squares[1] < self._squares[0]

    def _drop(self) -> None:
        """Go on without the equation."""
        self.equation, self._by_equation = None, False
        self._last_calls, self._new_calls, self._missed = [], [], []

    def state_dict(self) -> dict[str, Any]:
        """Save what both have learned, and which is in use."""
        return {
            "usual": self.usual.state_dict(),
            "equation": None if self.equation is None else self.equation.state_dict(),
            "errors": list(self.errors),
            "squares": list(self._squares),
            "chosen": (self._by_equation, self._is_hopeful, self._begun),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; of the rows that were seen last nothing is kept."""
        self._drop()
        self.usual.load_state_dict(state["usual"])
        equation = self._new_equation()
        if equation is not None and state["equation"] is not None:
            equation.load_state_dict(state["equation"])
            self.equation = equation
        self.errors, self._squares = tuple(state["errors"]), list(state["squares"])
        self._by_equation, self._is_hopeful, self._begun = state["chosen"]
