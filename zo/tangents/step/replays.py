"""`Replays`: further gradients on recorded steps, for no row: which windows, how many, and how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from blackbox.checks import check_count
from blackbox.notices import Notices
from zo.batches import map_tensors
from zo.evaluators.evaluator import Step
from zo.objective import mean_loss
from zo.tangents.assumptions.cut import outputs_without_gradient, replayed_notice
from zo.tangents.assumptions.order import refuse_rows_by_place
from zo.tangents.playback.anchored import Anchors, anchored
from zo.tangents.record.window import Window, plain, window_of
from zo.tangents.replay.replayed_windows import Windows, unreadable
from zo.tangents.step import refusals
from zo.tangents.step.evaluations import Evaluations
from zo.tangents.step.gradient_settings import GradientSettings
from zo.tangents.step.stand_ins import StandIns

# decision 87:
NOWHERE = 10.0  # relative error of the last answers' predictions, beyond which nothing is replayed
SHARED = 2**26  # bytes of draws that are kept in a block of `sharing`; decision 246


class Replays:
    """Keeps windows once somebody asks how many replays may follow; until then the newest one alone.

    Args:
        settings: the arguments of the gradient.
        stand_ins: the tangents that stand for the boxes.
        notices: the notices given so far.

    Attributes:
        windows: the windows that are kept.
        keeps_windows: whether windows are kept.
    """

    def __init__(self, settings: GradientSettings, stand_ins: StandIns, notices: Notices) -> None:
        self._boxes, self._stand_ins, self._notices = settings.boxes, stand_ins, notices
        self.windows = Windows(settings.limits.replays, settings.limits.max_age, notices)
        self.keeps_windows = False
        self._newest: Window | None = None  # until they are
        self._looks: dict[str, tuple[int, int]] = {}  # by forms of windows, see `_refuse_rows_by_place`
        self._shared: dict[Any, Anchors] | None = None  # draws of a block of `sharing`

    def add(self, window: Window) -> None:
        """Take in what a step recorded; nothing where no row survived."""
        if self._shared is not None:  # tangents may have learned
            self._shared.clear()
        if not len(window.places):
            return
        window = replace(window, calls=tuple(call.plain() for call in window.calls))
        if self.keeps_windows:
            self.windows.add(window)
        else:
            self._newest = window

    def allowed(self) -> int:
        """Return how many replays may follow the last step; from now on windows are kept."""
        if not self.keeps_windows:
            self.keeps_windows = True
            if self._newest is not None:
                self.windows.add(self._newest)
                self._newest = None
        error = self._stand_ins.error
        hopeless = error is not None and not error <= NOWHERE  # or NaN
        automatic = self.windows.replays is None
        return 0 if automatic and (hopeless or not self._stand_ins.replayed) else self.windows.trusted()

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """A block in which no tangent learns, and what several members draw is drawn once."""
        self._shared = {}
        try:
            yield
        finally:
            self._shared = None

    def gradient(
        self,
        evaluations: Evaluations,
        rows: int | None,
        steps: int,
        replays: int,
        last: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss and gradient on rows of the windows that are kept, at the weights as they are.

        Args:
            evaluations: the evaluations of the gradient's steps.
            rows: how many rows are drawn, see `Windows.draw`.
            steps: how many steps there were.
            replays: how many replays there were.
            last: whether the last window is taken as it is, if there is one.

        Returns:
            The mean loss of rows that survived when they were recorded, and its gradient; empty where one is
            not finite.

        Raises:
            TangentError, ObjectiveError: see `TangentGradient.replay`.

        Warns:
            TangentWarning: at the first replay, the loss depends on outputs that stay as recorded.
        """
        if rows is not None:
            check_count("TangentGradient.replay", "rows", rows)
        anchors = self._anchors(evaluations, rows, last)
        window, batch = anchors.window, anchors.window.batch
        if self._shared is not None:  # an objective may write to what is its own
            batch = map_tensors(Tensor.clone, batch)
        step = evaluations.step(batch, steps, len(window.losses))
        step.parameters.refuse_replaced(step.network)
        self._refuse_rows_by_place(step, window, replays)
        if replays == 0:
            fixed = outputs_without_gradient(step, self._boxes, window.calls, window.survived, masks=True)
            self._notices.say(replayed_notice(fixed))
        try:
            losses, gradients = anchored(step, self._boxes, anchors)
        except Exception as error:
            refusals.refuse_fixed_rows(error, step.rows, len(self.windows.last.survived))
            raise
        losses = losses[window.survived]
        self.windows.replayed(losses, window.losses[window.survived])
        loss = mean_loss(losses)
        finite = loss.isfinite() and all(bool(gradient.isfinite().all()) for gradient in gradients)
        return loss, gradients if finite else ()

    def _anchors(self, evaluations: Evaluations, rows: int | None, last: bool) -> Anchors:
        """The next draw of the windows, or the last window, and the tangents there."""
        key = "last" if last else (rows, self.windows.since)
        if self._shared is not None and key in self._shared:
            return self._shared[key]
        whole = last and len(self.windows) > 0
        window = self.windows.last if whole else self.windows.draw(rows, evaluations.key)
        anchors = Anchors.at(window, self._boxes, self._stand_ins.excited)
        if self._shared is not None:
            kept = sum(other.window.size for other in self._shared.values())
            if kept + window.size <= SHARED:
                self._shared[key] = anchors
        return anchors

    def metrics(self) -> dict[str, float]:
        """Return the number of replays allowed, of windows, and of their bytes; empty where none are kept."""
        if not self.keeps_windows:
            return {}
        return {
            "tangent_replays": self.allowed(),
            "tangent_windows": len(self.windows),
            "tangent_window_bytes": self.windows.size(),
        }

    def state_dict(self, steps: int) -> dict[str, Any]:
        """The windows, where they are kept; else the first step's, while there was no other step.

        A run that first asks for replays after it was resumed has that window then, as one that was not.

        Args:
            steps: how many there were.
        """
        newest = self._newest
        unkept = newest is None or steps > 1 or any(unreadable(newest.batch))
        return {
            "windows": self.windows.state_dict() if self.keeps_windows else None,
            "newest": None if unkept or newest is None else plain(newest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        newest = state["newest"]
        self._newest = None if newest is None else window_of(newest)
        self.keeps_windows = state["windows"] is not None
        if self.keeps_windows:
            self.windows.load_state_dict(state["windows"])

    def keep_within(self, most_bytes: int) -> None:
        """Have windows take at most so many bytes."""
        self.windows.most_bytes = most_bytes

    def _refuse_rows_by_place(self, step: Step, drawn: Window, replays: int) -> None:
        """See whether rows may be drawn: behind 0, 1, 2, 4, 8, ... replays.

        Weights that begin at zero show nothing at first. The last batch is looked at, or what was drawn where
        it has a single row.
        """
        form = repr(drawn.form)
        due, looks = self._looks.get(form, (0, 0))
        if replays < due:
            return
        last = self.windows.last
        window = last if len(last.survived) > 1 else drawn
        if len(window.survived) > 1:
            trial = replace(step, batch=window.batch, rows=len(window.survived))
            refuse_rows_by_place(trial, self._boxes, window, looks)
            self._looks[form] = max(1, 2 * replays), looks + 1
