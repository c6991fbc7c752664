"""`Problem`: the user's class that a run trains and judges."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.box_group import BoxGroup
from blackbox.checks import nearest
from tasks.configuration import Config
from tasks.errors import ConfigurationError, ProblemError
from tasks.problem import anew
from tasks.problem.data import Data, evaluating, one_each, parts, unwritten
from tasks.problem.hyphens import hyphenated
from tasks.problem.made_once import MadeOnce, OfParent
from tasks.problem.method import Method
from tasks.problem.report_contents import TEST_LOSS, Picture, RowMean
from tasks.problem.silence import Silence
from tasks.problem.trained import Trained
from zo.batches import Batch, count_rows, map_tensors
from zo.objective import evaluated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Known: TypeAlias = Mapping[str, tuple[Sequence[Tensor], Tensor | Sequence[Tensor]]]

ROWS = 256  # rows of the objective at a time, in validation and test


def _nothing_counted(boxes: Callable[[], Sequence[BlackBoxFunction]]) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of a problem. By itself it shows, counts and keeps nothing; a run has its own.

    Attributes:
        progress: The progress that the user sees; a run's is a `tasks.Progress`.
        making: `making(boxes)` gives a block in which data is made; `boxes()` are the problem's own by then.
    """

    progress: Silence = field(default_factory=Silence)
    making: Callable[[Callable[[], Sequence[BlackBoxFunction]]], AbstractContextManager[None]] = (
        _nothing_counted
    )


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
    the box (or the dict of boxes) itself, and `self.data` the data, on the device of the settings. Where a
    budget chooses the rows of a batch, `data` is called once more with them. In a subclass the parent's are
    methods, `super().box()`. Methods that a subclass may leave out say "Optional".

    A problem is a declaration, and holds nothing of a run: each run makes its own object of the class with
    its settings. It calls `begin` with the folder, `judge` with a method's setup, `so_far` and `report` with
    the results. An `__init__` and attributes from outside are refused.

    Args:
        config: The settings; the defaults of the class's `Config` if None.
        folder: The folder for data that takes long to make or to load.
        **settings: Settings that depart from `config`.

    Attributes:
        config: The settings.
        folder: The folder for data.
        presets: Named settings that a run can start from; the first is the default.
        methods: The problem's own methods by name, beside those that all problems have.
        looks: Colour and mark of these in figures, by name, such as ("#0072b2", "^"), as Matplotlib has them;
            one without gets another that is free.
        callbacks: The callbacks while a run trains, see `tasks.Callback`.
        dimensions: Names of the axes of arrays that `evaluate` gives, for `blackbox report --export`. Any
            names will do; ParaView understands "time", "z", "y" and "x", in this order.
        progress: The progress that the user sees, for data that takes long to make: nothing outside of a run.
        units: Units of figures and arrays of `evaluate` by name, and of "validation" and "training loss", for
            the tables and axes of the report.
        queries: The meaning of "queries" in the table, for its caption.
        higher_is_better: Whether a larger first figure is the better one, such as an accuracy.

    Raises:
        ConfigurationError: A setting is unknown or out of its range.
    """

    Config: ClassVar[type[Any]] = Config
    presets: ClassVar[Mapping[str, Any]] = {}
    methods: ClassVar[Mapping[str, Method]] = {}
    looks: ClassVar[Mapping[str, tuple[str, str]]] = {}
    callbacks: ClassVar[Sequence[Any]] = ()
    dimensions: ClassVar[Mapping[str, Sequence[str]]] = {}
    units: ClassVar[Mapping[str, str]] = {}
    higher_is_better: ClassVar[bool] = False
    queries: ClassVar[str] = "perturbed objectives"

    def __init__(self, config: Any = None, *, folder: Path = Path("data"), **settings: Any) -> None:
        config = self.Config() if config is None else config
        anew.refuse_config(type(self), config, self.Config)
        field_names = [field.name for field in dataclasses.fields(config)]
        for name in settings:
            if name not in field_names:
                mend = nearest(name, field_names)
                if hasattr(getattr(config, "zeroth_order", None), name):
                    mend = f"Write zeroth_order=replace(Config.zeroth_order, {name}=...)."
                raise ConfigurationError(f"{type(self).__name__}: no setting is named {name!r}. {mend}")
        self.config: Any = dataclasses.replace(config, **settings)
        self.folder = Path(folder).absolute()  # a box may change the working directory
        self._surroundings = Surroundings()

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Refuse a construction of its own, and have `box` and `data` called once, see `MadeOnce`."""
        super().__init_subclass__(**keywords)
        anew.refuse_construction(cls, Problem)
        for name, make in (("box", _made_box), ("data", _made_data)):
            method = cls.__dict__.get(name)
            if isfunction(method):
                once = MadeOnce(method, make)
                once.__set_name__(cls, name)
                setattr(cls, name, once)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, and note it: no run has it, so `anew.refuse_state` refuses it."""
        super().__setattr__(name, value)
        if name not in anew.OF_EVERY_PROBLEM:
            vars(self)[anew.ASSIGNED] = {*vars(self).get(anew.ASSIGNED, ()), name}

    def with_surroundings(self, surroundings: Surroundings) -> Self:
        """The problem of a run: with the same settings, and with nothing made yet."""
        problem = type(self)(self.config, folder=self.folder)
        problem._surroundings = surroundings
        return problem

    def with_settings(self, **settings: Any) -> Self:
        """The problem with other settings, and with what this one has made."""
        problem = copy.copy(self)
        problem.config = dataclasses.replace(self.config, **settings)
        return problem

    @property
    def progress(self) -> Silence:
        """The progress that the user sees, for data that takes long to make: nothing outside of a run."""
        return self._surroundings.progress

    @classmethod
    def name(cls) -> str:
        """Return the name on the command line and in folders: "ReactionDiffusion" is "reaction-diffusion"."""
        return hyphenated(cls.__name__)

    @classmethod
    def about(cls) -> str:
        """Return the description for the help and the report: the class's docstring."""
        return " ".join((cls.__doc__ or "").split())

    @property
    def box(self) -> Any:
        """The black box, wrapped or not; or a dict of several.

        `box = {}` in the class says that the objective calls none. Then rows are rows of the data that the
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

    def objective(self, network: nn.Module, batch: Batch) -> Tensor:
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
        """Return the cost of the run, in sentences, where the problem knows it; nothing is asked yet.

        Optional: None, and it is estimated from one evaluation of the objective. A run that cannot end
        within its budget is to be refused here.
        """
        return None

    def check(self) -> None:
        """Refuse settings that do not go with each other, with data or network. Optional.

        It is called before anything else is made, and what it asks of `self.box` or `self.data` is made then.
        """

    def answers(self) -> Known:
        """Return boxes' answers from before training, by name; tangents learn from them before step one.

        Optional: none. A run calls it once, see `known_answers`. Rows that it asks of `self.box`, or of a box
        that it makes, count as those that make data: the plan has them, and a budget bounds them.

        Returns:
            All inputs of a box in its order and its differentiable outputs, each `(rows, *shape)`; rows that
            are not finite are left out.
        """
        return {}

    def prior(self, box: str) -> Any:
        """A differentiable model of a box, a twin that costs less; tangents learn the rest.

        Optional: None. A wrong one is dropped, with a notice, see `zo.tangents.AutoTangent`.

        Args:
            box: The box's name, "box" where there is one.

        Returns:
            A function of torch tensors that takes all inputs of the box and gives its differentiable
            outputs, a module, a box that answers with a derivative, or a tangent that knows values.
        """
        return None

    def known_answers(self) -> Known:
        """Return the result of `answers`, called once, in a block of `making_data`."""
        if "_known" not in vars(self):
            with self.making_data():
                vars(self)["_known"] = self.answers()
        return vars(self)["_known"]

    def validate(self, network: nn.Module) -> float | Tensor | None:
        """Return a loss to choose weights by; lower is better. Optional: the objective on validation data.

        Returns:
            The mean, or a loss for each row, `(rows,)`, NaN where it failed: then weights are compared on the
            rows that came back, and not where more than a tenth failed.
        """
        held_out = self.data.validation
        return None if held_out is None else self.losses(network, held_out)

    def evaluate(self, network: nn.Module) -> Mapping[str, Any]:
        """Figures by name, the first for the table, and arrays. Optional: the mean test loss.

        A figure is a number or a text; `tasks.RowMean` where rows may have failed. The report compares
        methods by the first one. It may be no loss or error by its name, in a class that does not say
        `higher_is_better`. Then the mean test loss is put before it, and the boxes are asked once more for
        that: a low mass alone says nothing of constraints that the objective has.
        """
        if self.data.test is None:
            raise ProblemError(
                f"{type(self).__name__}: expected test data, or a method evaluate(self, network)."
            )
        return {TEST_LOSS: RowMean(self.losses(network, self.data.test))}

    def judge(self, setup: Any, trained: Trained) -> Mapping[str, Any]:
        """Evaluate with more than the network, such as the run's folder or the seed.

        Optional: `evaluate`. It is asked once for each method and seed, and again after a kill in the middle.

        Args:
            setup: The setup of the method, a `tasks.methods.Setup`.
            trained: The result of the method.
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
        run: Any,
        seed: int,
        trained: Mapping[str, Trained],
        fields: Mapping[str, Mapping[str, Any]],
        last: bool,
    ) -> None:
        """Do something when a method has been trained and judged, such as a picture. Optional: nothing.

        Args:
            run: The run's folder, a `tasks.Run`; of several processes only the first one's stays.
            seed: The seed at hand.
            trained: The networks trained with this seed by now, by method.
            fields: The arrays that `evaluate` gave, by method.
            last: Whether it was the seed's last method. A method that is not applicable is not among these.
        """

    def report(self, findings: Any) -> Sequence[Any]:
        """Return the report's contents beside the table, the curves and the ledger. Optional: the pictures.

        Args:
            findings: The findings of the run, a `tasks.report.findings.Findings`.

        Returns:
            Blocks of `tasks.report.html_report`, and pictures.
        """
        figures = self.pictures(findings.fields[findings.seeds[0]])
        return [Picture(caption, figure) for caption, figure in figures.items()]

    def training_batch(self, seed: int, step: int) -> Batch:
        """The batch of a step, on the device of the settings."""
        return map_tensors(lambda tensor: tensor.to(self.config.device), self.data.train(seed, step))

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The losses of a batch in evaluation mode, `(rows,)` float64; NaN where a row failed."""
        device, losses = self.config.device, []
        with torch.no_grad(), evaluating(network), unwritten(batch, f"{type(self).__name__}.objective"):
            for part in parts(batch, ROWS):
                here = map_tensors(lambda tensor: tensor.to(device), part)
                row_losses = evaluated(self.objective, network, here, count_rows(here))
                losses.append(one_each(row_losses, here).double())
        return torch.cat(losses)

    @property
    def boxes(self) -> dict[str, BlackBoxFunction]:
        """The boxes by name; one alone is "box", those of a group have its names."""
        value = self.box
        boxes = dict(value) if isinstance(value, Mapping) else {"box": value}
        if isinstance(value, BoxGroup):
            boxes = dict(value.named_boxes)
        if not boxes and not self.has_no_box():
            raise ProblemError(
                f"{type(self).__name__}.box: expected a BlackBoxFunction or some by name, got an empty dict. "
                "Write box = {} in the class if the objective calls none."
            )
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

    def making_data(self) -> AbstractContextManager[None]:
        """A block in which a run counts rows, and keeps the answers of black boxes until it ends.

        A run that goes on asks for none of these rows again. `data` is in such a block; so should be what
        else a problem asks before training, in a property of its own.
        """

        def own() -> list[BlackBoxFunction]:
            maker = vars(self).get("box", vars(type(self)).get("box"))
            boxes = list(maker.values()) if isinstance(maker, Mapping) else [maker]
            boxes = [*maker.named_boxes.values()] if isinstance(maker, BoxGroup) else boxes
            return [box for box in boxes if isinstance(box, BlackBoxFunction)]

        return self._surroundings.making(own)

    def replace_boxes(self, wrap: Callable[[BlackBoxFunction], BlackBoxFunction]) -> None:
        """Put wrappers around the boxes of this object."""
        if isinstance(self.box, BoxGroup):
            self.__dict__["box"] = self.box.wrapped(wrap)
            return
        wrapped = {name: wrap(box) for name, box in self.boxes.items()}
        self.__dict__["box"] = wrapped if isinstance(self.box, Mapping) else wrapped["box"]

    def validates(self) -> bool:
        """Say whether there is something to choose weights by."""
        return type(self).validate is not Problem.validate or self.data.validation is not None

    @classmethod
    def says_which_is_better(cls) -> bool:
        """Say whether the subclass says `higher_is_better`, be it True or False."""
        return any("higher_is_better" in vars(kind) for kind in cls.__mro__ if kind is not Problem)

    @classmethod
    def has_report(cls) -> bool:
        """Say whether the subclass gives `report`, and not pictures alone."""
        return cls.report is not Problem.report

    @classmethod
    def has_reference(cls) -> bool:
        """Say whether the subclass gives `reference`, a box with a derivative."""
        return callable(getattr(cls, "reference", None))

    @classmethod
    def has_no_box(cls) -> bool:
        """Say whether the subclass says `box = {}`."""
        return isinstance(cls.box, Mapping) and not cls.box

    def __repr__(self) -> str:
        """The settings that depart from the defaults."""
        defaults = type(self.config)()
        changed = [
            f"{field.name}={getattr(self.config, field.name)!r}"
            for field in dataclasses.fields(self.config)
            if getattr(self.config, field.name) != getattr(defaults, field.name)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def _called(problem: Problem, name: str, method: Callable[[], Any]) -> Any:
    value = method()
    if isinstance(value, OfParent):
        raise ProblemError(
            f"{type(problem).__name__}.{name}: expected what its parent's method returns, got the method. "
            f"Call it: super().{name}()."
        )
    return value


def _made_box(problem: Problem, method: Callable[[], Any]) -> Any:
    return _called(problem, "box", method)


def _made_data(problem: Problem, method: Callable[[], Any]) -> Data:
    """Make the data with `data`, on the device of the settings."""
    with problem.making_data():
        batches = _called(problem, "data", method)
    if not isinstance(batches, Data):
        raise ProblemError(
            f"{type(problem).__name__}.data: expected tasks.Data(...), got {type(batches).__name__}. Return "
            "tasks.Data.split(rows, batch=self.config.batch, ...), or a tasks.Data of your own batches."
        )
    return batches.to(problem.config.device) if problem.config.device != "cpu" else batches
