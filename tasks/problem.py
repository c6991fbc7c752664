"""`Problem`: what a run trains and judges: black box, network, data, objective, evaluation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.checks import nearest
from tasks.configuration import Config
from tasks.errors import ConfigurationError, ProblemError
from tasks.progress import Progress
from tasks.runs.result import FAILED
from zo.batches import count_rows, map_tensors
from zo.estimators import Key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.callbacks import Callback
    from tasks.methods import Method
    from tasks.report.findings import Findings
    from tasks.report.html_report import Block
    from tasks.runs.folder import Run
    from tasks.setup import Setup, Trained

ROWS = 256  # rows of the objective at a time, in validation and test


@dataclass(frozen=True)
class Data:
    """What a network is trained, chosen and judged by.

    Attributes:
        train: `train(seed, step)` gives the batch of a step, the same whenever it is asked: any nesting of
            tensors that have their rows first. Draw with `zo.estimators.Key(seed, step).generator()`.
        validation: A batch by which weights are chosen; None to keep the last weights.
        test: A batch for the last line; None where `evaluate` has its own.
    """

    train: Callable[[int, int], Any]
    validation: Any = None
    test: Any = None

    def __post_init__(self) -> None:
        """Refuse batches in the place of what gives them."""
        if not callable(self.train):
            raise ProblemError(
                f"Data, train: expected a function of (seed, step) that gives a batch, got a "
                f"{type(self.train).__name__}. For rows that are there already take tasks.Data.split."
            )

    @classmethod
    def split(cls, rows: Any, *, batch: int, validation: int = 0, test: int = 0) -> Data:  # noqa: ANN401
        """Rows that are there from the start: the last ones are held out, the others drawn with replacement.

        Args:
            rows: Any nesting of tensors that have their rows first.
            batch: Rows in a step.
            validation: How many rows to hold out to choose weights by.
            test: How many to hold out for the last line.

        Raises:
            ConfigurationError: Fewer than one row is left to train on.
        """
        count = count_rows(rows)
        left = count - validation - test
        if left < 1:
            raise ConfigurationError(
                f"Data.split: expected more than the {validation} + {test} rows held out, got {count}."
            )

        def part(index: Tensor | slice) -> Any:  # noqa: ANN401
            return map_tensors(lambda tensor: tensor[index], rows)

        def train(seed: int, step: int) -> Any:  # noqa: ANN401
            generator = Key(seed, step).generator()
            return part(torch.randint(left, (batch,), generator=generator))

        held_out = part(slice(left, left + validation)) if validation else None
        return cls(train, held_out, part(slice(left + validation, count)) if test else None)


@dataclass(frozen=True)
class RowMean:
    """A figure of `evaluate`: the mean over the rows that came back, beside the count of those that did not.

    One failed row makes the mean of all NaN; a mean over the others alone hides it, and flatters a network
    whose rows fail where they would be bad. So the table has both, whether or not rows have failed.

        return {"test error": tasks.RowMean((found - truth).abs().mean(dim=1))}

    Args:
        rows: A number for each row, `(rows,)`; not finite where the row failed.

    Raises:
        ProblemError: It is no row of numbers, or there is none.
    """

    rows: Any

    def __post_init__(self) -> None:
        """Refuse what has no rows."""
        shape = np.shape(self.rows)
        if len(shape) != 1 or shape[0] == 0:
            raise ProblemError(f"RowMean: expected a number for each row, (rows,), got shape {shape}.")

    @property
    def value(self) -> float:
        """The mean over rows that came back; NaN where none did."""
        rows = torch.as_tensor(self.rows).detach().double()
        return float(rows[rows.isfinite()].mean())

    @property
    def failed(self) -> int:
        """How many rows did not come back."""
        return int((~torch.as_tensor(self.rows).isfinite()).sum())


def one_each(losses: Tensor, batch: Any) -> Tensor:  # noqa: ANN401
    """The losses of a batch, `(rows,)`, as they are.

    Raises:
        ProblemError: They are of another shape.
    """
    if losses.shape != (count_rows(batch),):
        raise ProblemError(
            f"objective: expected one loss for each of {count_rows(batch)} rows, got a tensor of shape "
            f"{tuple(losses.shape)}. Take the mean over all axes but the first."
        )
    return losses


def without_failed(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with the value of each `RowMean` in its place, and behind them how many rows it leaves out."""
    means = {name: value for name, value in figures.items() if isinstance(value, RowMean)}
    values = {name: mean.value for name, mean in means.items()}
    return {**figures, **values, **{f"{FAILED}{name}": mean.failed for name, mean in means.items()}}


class Problem:
    """A network to be trained through black boxes; a subclass says what it is, a run does the rest.

        class Brusselator(tasks.Problem):
            "A coarse reaction-diffusion solver and a network that corrects it."

            @dataclass(frozen=True)
            class Config(tasks.Config):
                unroll: Count = 6

            def box(self): return Solver()
            def network(self): return Corrector()
            def data(self): return tasks.Data.split((states, targets), batch=self.config.batch, test=64)
            def objective(self, network, batch):
                state, target = batch
                for _ in range(self.config.unroll):
                    state = self.box(state)
                    state = state + network(state)
                return (state - target).square().flatten(1).mean(dim=1)

    `blackbox new NAME` writes such a file. Give settings by name, `Brusselator(unroll=8)`, or a whole
    configuration. `box` and `data` are called once, when they are first needed; from then on `self.box` is
    the box (or the dict of boxes) itself, and `self.data` the data. What a subclass may leave out says so.

    Args:
        config: The settings; the defaults of the class's `Config` if None.
        folder: Where data is kept that takes long to make or to load.
        **settings: Settings that depart from `config`.

    Attributes:
        config: The settings.
        folder: Where data is kept.
        presets: Named settings that a run can start from; the first is the default.
        methods: The problem's own methods by name, beside those that all problems have.
        callbacks: What is told while a run trains, see `tasks.Callback`.
        dimensions: Names of the axes of arrays that `evaluate` gives, for `blackbox report --export`: "x",
            "y" and "z" are space, "component" is that of vectors; other names are free.
        progress: What the user sees, for data that takes long to make; a run sets it.
        units: Units of figures and arrays of `evaluate` by name, and of "validation" and "training loss", for
            the tables and axes of the report.
        queries: What the table counts under that name, for its caption.
        higher_is_better: Whether a larger first figure is the better one, such as an accuracy.

    Raises:
        ConfigurationError: A setting is unknown or out of its range.
    """

    Config: ClassVar[type[Any]] = Config
    presets: ClassVar[Mapping[str, Any]] = {}
    methods: ClassVar[Mapping[str, Method]] = {}
    callbacks: ClassVar[Sequence[Callback]] = ()
    dimensions: ClassVar[Mapping[str, Sequence[str]]] = {}
    units: ClassVar[Mapping[str, str]] = {}
    higher_is_better: ClassVar[bool] = False
    queries: ClassVar[str] = "perturbed objectives"

    def __init__(
        self,
        config: Any = None,  # noqa: ANN401
        *,
        folder: Path = Path("data"),
        **settings: Any,  # noqa: ANN401
    ) -> None:
        config = self.Config() if config is None else config
        known = [field.name for field in dataclasses.fields(config)]
        for name in settings:
            if name not in known:
                raise ConfigurationError(
                    f"{type(self).__name__}: no setting is named {name!r}. {nearest(name, known)}"
                )
        self.config: Any = dataclasses.replace(config, **settings)
        self.folder = folder
        self.progress = Progress()

    def __init_subclass__(cls, **keywords: Any) -> None:  # noqa: ANN401
        """What `box` and `data` give is made once."""
        super().__init_subclass__(**keywords)
        for name in ("box", "data"):
            made = cls.__dict__.get(name)
            if isfunction(made):
                once: cached_property[Any] = cached_property(made)
                once.__set_name__(cls, name)
                setattr(cls, name, once)

    @classmethod
    def name(cls) -> str:
        """On the command line and in folders: "ReactionDiffusion" is "reaction-diffusion"."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower().replace("_", "-")

    @classmethod
    def about(cls) -> str:
        """What it is, for the help and the report: the class's docstring."""
        return " ".join((cls.__doc__ or "").split())

    @property
    def box(self) -> Any:  # noqa: ANN401
        """The black box, wrapped or not; or a dict of several.

        `box = {}` in the class says that the objective calls none: then rows are those of the data that the
        objective is evaluated on, and methods that put something in a box's place are refused.
        """
        raise ProblemError(
            f"{type(self).__name__}: expected a method box(self) that returns a BlackBoxFunction."
        )

    @property
    def data(self) -> Data:
        """Training batches by (seed, step), a batch for validation, and one for test."""
        raise ProblemError(
            f"{type(self).__name__}: expected a method data(self) that returns tasks.Data(...)."
        )

    def network(self) -> nn.Module:
        """A network with its first weights, drawn from torch's global generator, which has the run's seed."""
        raise ProblemError(
            f"{type(self).__name__}: expected a method network(self) that returns an nn.Module."
        )

    def objective(self, network: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        """The losses of a batch, `(rows,)`; calls `self.box`, any number of times."""
        raise ProblemError(
            f"{type(self).__name__}: expected a method objective(self, network, batch) that returns one loss "
            "for each row of the batch."
        )

    @classmethod
    def variant(cls, name: str) -> Method | None:
        """The method of a name that has more in it, such as "rge@500". Optional: there is none."""
        return None

    def begin(self, folder: Path) -> None:
        """The run begins, or goes on, in its folder. Optional: nothing is done."""

    def cost(self, seeds: int) -> Sequence[str] | None:
        """What the run will cost, in sentences, where the problem knows it; nothing is asked yet.

        Optional: None, and it is estimated from one evaluation of the objective. A run that cannot end
        within its budget is to be refused here.
        """
        return None

    def check(self) -> None:
        """Refuse settings that do not go with data or network, before anything is trained. Optional."""

    def answers(self) -> Mapping[str, tuple[Sequence[Tensor], Tensor | Sequence[Tensor]]]:
        """What boxes have answered before training, by name, from which tangents learn before the first step.

        Optional: none. Rows that were asked for it are the problem's to count.

        Returns:
            All inputs of a box in its order and its differentiable outputs, each `(rows, *shape)`; rows that
            are not finite are left out.
        """
        return {}

    def validate(self, network: nn.Module) -> float | Tensor | None:
        """By which weights are chosen, lower is better. Optional: the objective of the validation data.

        Returns:
            The mean, or a loss for each row, `(rows,)`, NaN where it failed: then weights are compared on the
            rows that came back, and not where more than a tenth failed.
        """
        held_out = self.data.validation
        return None if held_out is None else self.losses(network, held_out)

    def evaluate(self, network: nn.Module) -> Mapping[str, Any]:
        """Figures by name, the first for the table, and arrays. Optional: the mean test loss.

        A figure is a number or a text; `tasks.RowMean` where rows may have failed.
        """
        if self.data.test is None:
            raise ProblemError(
                f"{type(self).__name__}: expected test data, or a method evaluate(self, network)."
            )
        return {"test loss": RowMean(self.losses(network, self.data.test))}

    def judge(self, setup: Setup, trained: Trained) -> Mapping[str, Any]:
        """What `evaluate` gives, where it takes more than the network, such as the run's folder or the seed.

        Optional: `evaluate`. It is asked once for each method and seed, and again after a kill in the middle.
        """
        return self.evaluate(trained.network)

    def pictures(self, fields: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Figure]:
        """Figures by caption, from the arrays of `evaluate` by method, of the first seed. Optional: none."""
        return {}

    def coordinates(self) -> Mapping[str, Any]:
        """Values along axes that `dimensions` names, such as the middles of cells. Optional: none."""
        return {}

    def so_far(
        self,
        run: Run,
        seed: int,
        trained: Mapping[str, Trained],
        fields: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """What to do when a method has been trained and judged, such as a picture. Optional: nothing.

        Args:
            run: Its folder; of several processes only the first one has the folder that stays.
            seed: At hand.
            trained: What has been trained with this seed by now, by method.
            fields: The arrays that `evaluate` gave, by method.
        """

    def report(self, found: Findings) -> Sequence[Block]:
        """What the report shows beside the table, the curves and the ledger. Optional: the pictures."""
        from tasks.report import html_report, pictures

        made = self.pictures(found.fields[found.seeds[0]])
        blocks: list[Block] = [html_report.Heading("Pictures")] if made else []
        for number, (caption, figure) in enumerate(made.items(), start=1):
            path = pictures.save(figure, found.run.path / f"picture-{number}.png")
            blocks.append(html_report.Figure(path, alt=caption, caption=caption))
        return blocks

    def losses(self, network: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        """The losses of a batch in evaluation mode, `(rows,)` float64; NaN where a row failed."""
        with torch.no_grad(), evaluating(network):
            return torch.cat(
                [one_each(self.objective(network, part), part).double() for part in parts(batch, ROWS)]
            )

    @property
    def boxes(self) -> dict[str, BlackBoxFunction]:
        """The boxes by name; one alone is "box"."""
        made = self.box
        boxes = dict(made) if isinstance(made, Mapping) else {"box": made}
        for name, box in boxes.items():
            if not isinstance(box, BlackBoxFunction):
                raise ProblemError(
                    f"{type(self).__name__}.box: expected a BlackBoxFunction, got {type(box).__name__} for "
                    f"{name!r}. Make its class a subclass of blackbox.BlackBoxFunction, or use an adapter."
                )
            if type(box).__hash__ is None:
                raise ProblemError(
                    f"{type(self).__name__}.box: expected boxes that are told apart by what they are, got "
                    f"{box!r}, which is compared by its values. Write @dataclass(eq=False) above its class."
                )
        return boxes

    def replace_boxes(self, wrap: Callable[[BlackBoxFunction], BlackBoxFunction]) -> None:
        """Put wrappers around the boxes of this object."""
        wrapped = {name: wrap(box) for name, box in self.boxes.items()}
        self.__dict__["box"] = wrapped if isinstance(self.box, Mapping) else wrapped["box"]

    def validates(self) -> bool:
        """Whether there is something to choose weights by."""
        return type(self).validate is not Problem.validate or self.data.validation is not None

    @classmethod
    def has_reference(cls) -> bool:
        """Whether the subclass gives `reference`, a box with a derivative."""
        return callable(getattr(cls, "reference", None))

    @classmethod
    def has_no_box(cls) -> bool:
        """Whether the subclass says `box = {}`."""
        return cls.box == {}

    def __repr__(self) -> str:
        """The settings that depart from the defaults."""
        defaults = type(self.config)()
        changed = [
            f"{field.name}={getattr(self.config, field.name)!r}"
            for field in dataclasses.fields(self.config)
            if getattr(self.config, field.name) != getattr(defaults, field.name)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def parts(batch: Any, rows: int) -> Iterator[Any]:  # noqa: ANN401
    """A batch cut into parts of at most so many rows."""
    for start in range(0, count_rows(batch), rows):
        yield map_tensors(lambda tensor, at=start: tensor[at : at + rows], batch)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A block in which a network is in evaluation mode; its modules' modes are put back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
