"""Progress: live bars on a terminal, one changing output in a notebook, lines elsewhere, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape
from time import monotonic
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from blackbox.terminal import plain, say
from blackbox.words import counted, duration
from tasks.problem.silence import Silence

INTERVAL = 10.0  # seconds between plain lines
LONG = 2.0  # seconds of a first lesson from which on it is said
REDRAWN = 0.5  # seconds between changes of a notebook's output
LAST, PART = 32, 4  # steps, and part of all, whose mean is the pace: what comes now and then has its share
IN_BOXES = "box_seconds"  # of the metrics of `update`


class Progress(Silence):
    """Keeps count of stages, steps and their pace, and shows nothing; subclasses show it.

    Stages follow one another: `begin(stage, steps)`, any number of `update(step, metrics)`, `end()`;
    or `counter(stage)` for work that counts itself. As a context manager it tidies the terminal up,
    also after an error.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._stage, self._unit = "", "step"
        self._steps = self._first = self._step = 0
        self._started = 0.0
        self._metrics: Mapping[str, float] = {}
        self._first_queries: float | None = None
        self._ends = list[tuple[int, float, float]]()  # of steps, time and box seconds
        self._lesson = (0.0, math.inf)  # when a model's first lesson began, and when it is spoken of next

    def begin(self, stage: str, steps: int, *, done: int = 0, unit: str = "step") -> None:
        """Start a stage of `steps` steps; `done` of them were done earlier."""
        self._stage, self._unit, self._steps = stage, unit, steps
        self._first = self._step = done
        self._started = self._clock()
        self._metrics, self._first_queries = {}, None if done else 0.0
        self._ends.clear()
        self._show_begin()

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """`step` steps are done; shown are `loss`, `effective`, `queries`, `rows` and failed rows.

        With `box_seconds`, those spent in boxes so far, also how much of the time left is beside them.
        """
        self._step = step
        if metrics is not None:
            self._metrics = metrics
            if self._first_queries is None:  # resumed: the rate is that of this process
                self._first, self._started = step, self._clock()
                self._first_queries = metrics.get("queries", 0.0)
        self._ends.append((step, self._clock(), self._metrics.get(IN_BOXES, math.nan)))
        self._show_update()

    def resize(self, steps: int) -> None:
        """The stage has another number of steps than it began with."""
        self._steps = steps
        self._show_resize()

    def end(self) -> None:
        """The stage is done, or given up."""
        self._show_end()

    def say(self, text: str) -> None:
        """A line of text that stays."""

    def counter(self, stage: str, unit: str = "step") -> Callable[[int, int], None]:
        """A callable `(done, total)` for work that counts itself, such as making reference data."""
        begun = False

        def count(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                self.begin(stage, total, done=0, unit=unit)
                begun = True
            self.update(done)
            if done >= total:
                self.end()
                begun = False  # it may be used again, with another total

        return count

    def lesson(self, done: int, most: int) -> None:
        """Say that a model of a box learns for the first time, where that takes longer than two seconds.

        `done` steps of learning are 0 where it begins, and `most` where it is over.
        """
        now = self._clock()
        if not done:
            self._lesson = now, now + LONG
            return
        began, due = self._lesson
        took = duration(now - began)
        if done >= most and now - began >= LONG:
            self.say(f"{self._stage}: learned the derivative of the box in {took}")
        elif done < most and now >= due:
            self.say(f"{self._stage}: learning the derivative of the box: {took}, {done} of {most} steps")
            self._lesson = began, now + INTERVAL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tidy up; errors go on."""

    def _show_begin(self) -> None: ...

    def _show_resize(self) -> None: ...

    def _show_update(self) -> None: ...

    def _show_end(self) -> None: ...

    def _line(self) -> str:
        return f"{self._stage}: {self._unit} {self._step} of {self._steps}, {self._figures()}"

    def _left(self) -> tuple[float, float] | None:
        """Seconds to the end at the pace of the last steps, and those beside the boxes; None if unknown."""
        most = max(LAST, len(self._ends) // PART)
        since, started, first_seconds = self._ends[-most - 1 :][0] if self._ends else (self._step, 0.0, 0.0)
        if not since < self._step < self._steps:
            return None
        passed, boxes = self._clock() - started, self._metrics.get(IN_BOXES, math.nan) - first_seconds
        seconds_left = passed / (self._step - since) * (self._steps - self._step)
        share_beside = max(0.0, 1 - boxes / passed) if passed > 0 and boxes == boxes else math.nan
        return seconds_left, share_beside * seconds_left

    def _figures(self) -> str:
        """Loss, speed and times, as far as they are known."""
        elapsed = self._clock() - self._started
        parts = []
        if "loss" in self._metrics:
            parts.append(f"loss {self._metrics['loss']:.4g}")
        if "effective" in self._metrics:
            parts.append(counted(int(self._metrics["effective"]), "effective sample"))
        if self._metrics.get("queries") and elapsed > 0:
            queries = self._metrics["queries"] - (self._first_queries or 0.0)
            if queries >= max(elapsed, self._step - self._first):
                parts.append(f"{counted(round(queries / elapsed), 'query')}/s")
            else:  # a few checks, or a slow box: a rate says nothing
                parts.append(counted(int(self._metrics["queries"]), "query"))
        if self._metrics.get("rows"):
            parts.append(counted(int(self._metrics["rows"]), "row"))
        for name, count in self._metrics.items():
            if name.startswith("failed_"):
                kind = name.removeprefix("failed_").replace("_", " ")
                parts.append(f"{counted(int(count), 'row')} {kind}")
        parts.append(f"{duration(elapsed)} elapsed")
        if (times := self._left()) is not None:
            seconds_left, seconds_beside = times
            text = ""
            if seconds_left >= INTERVAL and seconds_beside == seconds_beside:
                text = f" ({duration(seconds_beside)} of it beside the box)"
            parts.append(f"{duration(seconds_left)} left{text}")
        return ", ".join(parts)


class PlainProgress(Progress):
    """A line when a stage begins and ends, and one about every ten seconds between, for logs."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(clock)
        self._stream = stream
        self._shown_at = 0.0

    def say(self, text: str) -> None:
        """A line of its own."""
        say(text, self._stream)

    def _show_begin(self) -> None:
        self._shown_at = self._clock()
        suffix = f", {self._step} done" if self._step else ""
        self.say(f"{self._stage}: {counted(self._steps, self._unit)}{suffix}")

    def _show_update(self) -> None:
        now = self._clock()
        # the last one has its line at the end
        if now - self._shown_at >= INTERVAL and self._step < self._steps:
            self._shown_at = now
            self.say(self._line())

    def _show_end(self) -> None:
        self.say(self._line())


class LiveProgress(Progress):
    """A bar for each stage, moving in place."""

    def __init__(self, console: Console, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(clock)
        name, figures = Column(no_wrap=True, min_width=14), Column(no_wrap=True)
        self._bars = Bars(  # without markup: a stage may have brackets in its name
            TextColumn("{task.description}", style="bold", markup=False, table_column=name),
            BarColumn(bar_width=24),
            TextColumn(
                "{task.completed:.0f} of {task.total:.0f}", table_column=Column(no_wrap=True, min_width=10)
            ),
            # cut on a narrow terminal: a bar of two lines would scroll the screen at every step
            TextColumn("{task.fields[figures]}", style="dim", markup=False, table_column=figures),
            console=console,
        )
        self._bar = self._bars.add_task("", visible=False, figures="")

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(plain(text), markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back."""
        self._bars.stop()

    def _show_begin(self) -> None:
        self._bar = self._bars.add_task(
            plain(self._stage), total=self._steps, completed=self._step, figures=""
        )

    def _show_resize(self) -> None:
        self._bars.update(self._bar, total=self._steps)

    def _show_update(self) -> None:
        self._bars.update(self._bar, completed=self._step, figures=self._figures())

    def _show_end(self) -> None:
        self._bars.update(self._bar, completed=self._step, figures=self._figures(), refresh=True)
        self._bars.stop_task(self._bar)


class NotebookProgress(Progress):
    """One output below the cell, which changes in place: lines that stay, and the stage that is under way.

    Rich would print a new output at every change here, and plain lines grow without end in a long run.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(clock)
        self._lines: list[str] = []
        self._under_way = False
        self._shown_at = 0.0
        self._output: Any = None

    def say(self, text: str) -> None:
        """A line above the stage."""
        self._lines.append(text)
        self._draw()

    def _show_begin(self) -> None:
        self._under_way = True
        self._draw()

    def _show_update(self) -> None:
        if self._clock() - self._shown_at >= REDRAWN:
            self._draw()

    def _show_end(self) -> None:
        self._under_way = False
        self.say(self._line())

    def _draw(self) -> None:
        from IPython.display import display

        self._shown_at = self._clock()
        if self._output is None:
            self._output = display(self, display_id=True)
        else:
            self._output.update(self)

    def __repr__(self) -> str:
        return plain("\n".join([*self._lines, self._line()] if self._under_way else self._lines))

    def _repr_html_(self) -> str:
        lines = f'<pre style="margin: 0; white-space: pre-wrap">{escape(chr(10).join(self._lines))}</pre>'
        if not self._under_way:
            return lines
        bar = f'<progress value="{self._step}" max="{self._steps}"></progress>'
        return f"{lines}<div>{bar} {escape(self._line())}</div>"


def make_progress(stream: TextIO | None = None) -> Progress:
    """Bars if `stream` (standard output) is a terminal, one output in a notebook, plain lines elsewhere."""
    console = Console(file=stream)
    if console.is_jupyter and stream is None:
        return NotebookProgress()
    return LiveProgress(console) if console.is_terminal else PlainProgress(stream)
