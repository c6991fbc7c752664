"""`Fmu`: a functional mock-up unit, run by FMPy as co-simulation, as a black box. A row is a simulation."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from blackbox.adapters.command.files import existing
from blackbox.adapters.derivative import with_derivative
from blackbox.adapters.fmu.instance import (
    Instance,
    Variable,
    as_start_value,
    chosen,
    gives_derivatives,
    line_of,
    model_of,
    new_folder,
    said,
    variables_of,
)
from blackbox.adapters.rebuilt import rebuilt
from blackbox.checks import check_number, check_positive
from blackbox.errors import ConfigurationError, NotDifferentiableError, RowFailedError
from blackbox.extras import import_extra
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.notices import warn
from blackbox.spec import check_specs, identifier
from blackbox.words import counted
from blackbox.wrappers.identity import described

Array = np.ndarray[Any, Any]


class Fmu(BlackBoxFunction):
    """An FMU for co-simulation, of FMI 2 or 3; needs the extra `fmu`.

        tank = Fmu("tank.fmu", times=np.linspace(0.1, 1.0, 10), parameters=["area"], inputs=["valve.u"])
        level = tank(area, valve)          # (rows,), (rows, 10) -> (rows, 10)

    A row is initialised, stepped from the start to the last of the times, and reset. A variable `body.v[1]`
    is the input or output `body_v_1_`. `units` has the unit of each from the model description, and its
    nominal value, if it has one, is the spec's `scale`. A parameter has the variable's shape. An input or
    output has one value for each interval or time: `(times, *shape)`, or `shape` if there is only one time.

    A row fails if the FMU reports an error, ends the simulation or discards a step; the message has the FMU's
    log. The first row that fails without a word is simulated again, which is not counted, by an instance that
    logs all that it can; later instances do, too. After a failure an instance is reset, or replaced if that
    fails. Each thread has its own instance, which it reuses. An FMU that allows only one per process has one,
    and threads take turns. An FMU that hangs or crashes takes its process with it, so run it in `Parallel`
    with processes and `timeout`.

    A reset may leave something of the row before. So the first row that an instance answers after a reset is
    simulated again by a new instance, and so are the 2nd, 4th, 8th and so on, if the box is deterministic.
    These are not counted as rows. Where the answers differ, a warning says by how much, and from there on
    each row has a new instance, which some FMUs take long to make. Where new instances differ, too, a warning
    says that the FMU is not deterministic.

    Args:
        path: the FMU; its code runs in this process.
        times: the times at which outputs are read, each a whole number of steps after the start. A number for
            one time; None to read outputs when the FMU is initialised, without a step.
        parameters: names of variables that are set before the simulation: parameters, and start values.
        inputs: names of variables that are set over time; None for all whose causality is "input".
        outputs: names of variables that are read; None for all numbers whose causality is "output".
        input_times: the time from which each value of the inputs holds, the first of them the start, all
            before the last of `times`; None for the intervals between `times`. Values are held, not
            interpolated.
        step: the communication step; None for that of the FMU's default experiment or, if it has none, the
            shortest interval of `times`.
        start: the start time; None for that of the default experiment, or 0.
        start_values: values by name of other variables, the same for all rows; texts, too.
        tolerance: tolerance of solvers inside the FMU, if it has any; None for its own.
        reset: whether an instance is reset and used for the next row; False to make a new one for each row.
        deterministic: False if equal inputs may give different outputs.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Attributes:
        units: units by the names of inputs and outputs, for those that have one.
        reset: the argument `reset`; False from the row on whose answer differed after a reset.

    Raises:
        MissingExtraError: FMPy is not installed.
        ConfigurationError: there is no such FMU, it does not run on this platform or has no co-simulation, or
            a variable, time or step is not as described above.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        times: Sequence[float] | Array | float | None,
        parameters: Sequence[str] = (),
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        input_times: Sequence[float] | Array | None = None,
        step: float | None = None,
        start: float | None = None,
        start_values: Mapping[str, Any] | None = None,
        tolerance: float | None = None,
        reset: bool = True,
        deterministic: bool = True,
        failures: Policy = "raise",
    ) -> None:
        """Read the model description, and make the first instance."""
        self._fmpy = import_extra("Fmu", "fmpy", "fmu")
        self.path = existing("Fmu, path", path)
        self._model = model_of(self._fmpy, self.path)
        self.checksum = hashlib.sha256(self.path.read_bytes()).hexdigest()
        self._derivatives = gives_derivatives(self.path, self._model)
        self._settings = {
            "times": times,
            "parameters": tuple(parameters),
            "inputs": None if inputs is None else tuple(inputs),
            "outputs": None if outputs is None else tuple(outputs),
            "input_times": input_times,
            "step": step,
            "start": start,
            "start_values": dict(start_values or {}),
            "tolerance": tolerance,
        }
        self.tolerance, self.reset, self.deterministic = tolerance, reset, deterministic
        self._after_reset = itertools.count(1)  # rows that an instance answered after a reset
        default = self._model.defaultExperiment
        preferred = float((default and default.startTime) or 0)
        self.start = preferred if start is None else float(check_number("Fmu", "start", start))
        if tolerance is not None:
            check_positive("Fmu", "tolerance", tolerance)
        self._single = times is None or np.ndim(times) == 0
        self._plan(
            times, input_times, step, float(default.stepSize) if default and default.stepSize else None
        )
        for where, names in (("parameters", parameters), ("inputs", inputs), ("outputs", outputs)):
            if isinstance(names, str):
                raise ConfigurationError(
                    f"Fmu, {where}: expected a list of names, got {names!r}. Put it into brackets."
                )
        variables = variables_of(self._model)
        if inputs is None:
            inputs = [v.name for v in variables.values() if v.causality == "input" and v.is_number]
        if outputs is None:
            outputs = [v.name for v in variables.values() if v.causality == "output" and v.is_number]
        self._parameters = [chosen(variables, name, "parameters", set=True) for name in parameters]
        self._driven = [chosen(variables, name, "inputs", set=True) for name in inputs]
        self._read = [chosen(variables, name, "outputs") for name in outputs]
        if len(self.input_times) > 1 and (fixed := [v.name for v in self._driven if v.fixed]):
            raise ConfigurationError(
                f"Fmu, inputs: expected variables that may change over time, got {fixed[0]!r}, of "
                "variability 'fixed', whose later values would change nothing. Name it in parameters=..."
            )
        self._constants: dict[Variable, Any] = {}
        for name, value in (start_values or {}).items():
            variable = chosen(variables, name, "start_values", set=True, text=True)
            if variable in (*self._parameters, *self._driven):
                raise ConfigurationError(
                    f"Fmu, start_values: expected variables whose values no row gives, got {name!r}, a "
                    "parameter or input of the box. Leave it out, or give parameters and inputs without it."
                )
            self._constants[variable] = as_start_value(variable, value)
        intervals = () if self._single and len(self.input_times) == 1 else (len(self.input_times),)
        driven_specs = [v.spec(intervals) for v in self._driven]
        self.inputs = (*(v.spec() for v in self._parameters), *driven_specs)
        if not self.inputs or not self._read:
            settable = ", ".join(v.name for v in variables.values() if v.settable and v.is_number)
            raise ConfigurationError(
                "Fmu: expected something to set and something to read, got "
                f"{counted(len(self.inputs), 'input')} and {counted(len(self._read), 'output')}. Name some; "
                f"it can set {settable or 'none'}."
            )
        check_specs("Fmu", "inputs", self.inputs)
        self.outputs = tuple(v.spec(() if self._single else (len(self.times),)) for v in self._read)
        check_specs("Fmu", "outputs", self.outputs)
        involved = [*self._parameters, *self._driven, *self._read]
        self.units = {identifier(v.name): v.unit for v in involved if v.unit}
        self._folder, remove = new_folder()
        weakref.finalize(self, remove)
        self._fmpy.extract(str(self.path), str(self._folder))
        alone = self._model.coSimulation.canBeInstantiatedOnlyOncePerProcess
        self._turn: Any = threading.RLock() if alone else nullcontext()
        self._instances: Any = SimpleNamespace() if alone else threading.local()
        self._aloud = False
        try:
            self._instance()
        except Exception as error:
            self._aloud = True
            with suppress(Exception):
                self._instance()  # again, to hear why
            raise ConfigurationError(
                f"{self!r}: expected an FMU that can be instantiated, got: {line_of(error)}{said()} See what "
                "libraries, licence or tool it needs."
            ) from error
        super().__init__(failures=failures)

    def evaluate(self, *arrays: Array) -> tuple[Array, ...]:
        """One simulation."""
        parameters, driven = self._split(arrays)
        with self._turn:
            again = self._instance().simulations > 0
            try:
                outputs = self._simulated(parameters, driven)
            except RuntimeError:
                if not self._aloud and not said():  # again, to hear why
                    self._aloud = True
                    self._by_a_new_instance(parameters, driven)
                raise
            number = next(self._after_reset) if again and self.deterministic else 0
            if number and number & (number - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
                outputs = self._compared(number, outputs, parameters, driven)
        return tuple(values[0] for values in outputs) if self._single else outputs

    def _compared(
        self, number: int, outputs: tuple[Array, ...], *values: Mapping[Variable, Array]
    ) -> tuple[Array, ...]:
        """The answer of a new instance, if it differs from the answer of the one that was reset."""
        try:
            first = self._by_a_new_instance(*values)
            if _equal(outputs, first):
                return outputs
            second = self._by_a_new_instance(*values)
        except Exception:  # the row has its answer, which no comparison that cannot be made takes away
            return outputs
        if not _equal(first, second):  # which says nothing of its reset
            warn(
                f"{self!r}: expected equal answers to equal inputs, got others of each new instance. Seed "
                "what is random and make anew what instances share, or give deterministic=False.",
                RuntimeWarning,
            )
            return outputs
        self.reset = False
        self._free()
        differences = [
            (float(np.nanmax(np.abs(by_reset.astype(float) - new), initial=0)), v.name)
            for by_reset, new, v in zip(outputs, first, self._read, strict=True)
        ]
        largest, name = max(differences)
        earlier = "" if number == 1 else f" Up to {number - 1} rows before this one may be wrong."
        warn(
            f"{self!r}: expected a reset that puts back all of the FMU, got another answer after it than "
            f"from a new instance: {name} differs by {largest:.3g}.{earlier} From here on each row has a new "
            "instance. Give reset=False to have that from the start.",
            RuntimeWarning,
        )
        return first

    def _by_a_new_instance(self, *values: Mapping[Variable, Array]) -> tuple[Array, ...]:
        self._free()
        return self._simulated(*values)

    def _free(self) -> None:
        """Let go of this thread's instance."""
        self._instances.__dict__.pop("one", None)

    def _simulated(
        self, parameters: Mapping[Variable, Array], driven: Mapping[Variable, Array]
    ) -> tuple[Array, ...]:
        """Simulate, and return the readings by output, `(times, *shape)`."""
        readings: list[list[Array]] = []
        interval, reads, changes = 0, set(self._reads), set(self._changes[1:])
        with self._simulation(parameters, driven) as instance:
            instance.begin()
            for number in range(self._reads[-1] + 1):
                if number > 0:
                    instance.step(self.start + (number - 1) * self.step, self.step)
                if number in reads:
                    readings.append([instance.get(variable) for variable in self._read])
                if number in changes:
                    interval += 1
                    for variable, values in driven.items():
                        instance.set(variable, values[interval])
        return tuple(np.stack(values) for values in zip(*readings, strict=True))

    def reference(self, *arrays: Any) -> Any:
        """The box's values, with autograd by the FMU's own directional derivatives.

        For `reference` of a `tasks.Problem`, and for comparisons; its rows are not counted in the ledger.
        FMI's directional derivatives apply to one instant. With `times=None` they are complete. Over the
        steps of a simulation they omit what goes through the states, and are refused.

        Raises:
            NotDifferentiableError: the FMU has no directional derivatives, or it is stepped.
            RowFailedError: from backward, if it could not give them.
        """
        if not self.has_derivative:
            stepped = "those of single instants, over steps"
            provided = stepped if self._derivatives else "an FMU that provides none"
            raise NotDifferentiableError(
                f"{self!r}: expected directional derivatives, at times=None, got {provided}. Train without "
                "its derivative: zo.TangentGradient, or the method tangents."
            )
        return with_derivative(self, self._pull_back, arrays)

    @property
    def has_derivative(self) -> bool:
        """True if the FMU provides the derivatives that `reference` needs."""
        return self._derivatives and not self.times

    def _pull_back(
        self, inputs: list[Array], cotangents: dict[int, Array], wanted: list[int]
    ) -> dict[int, Array]:
        targets = [*self._parameters, *self._driven]
        unknown = [self._read[place] for place in cotangents]
        products = {place: np.zeros_like(inputs[place], dtype=np.float64) for place in wanted}
        arriving = np.concatenate([c.reshape(len(c), -1) for c in cotangents.values()], axis=1)
        for row, cotangent in enumerate(arriving):
            try:
                with self._simulation(*self._split([array[row] for array in inputs])) as instance:
                    for place in wanted:
                        into = products[place][row : row + 1].reshape(-1)  # a view
                        for number in range(len(into)):
                            into[number] = instance.derivative(unknown, targets[place], number) @ cotangent
                    instance.begin()
            except RuntimeError as error:
                raise RowFailedError(
                    f"{self!r}, directional derivatives: {error} See what the FMU supports."
                ) from error
        return products

    @contextmanager
    def _simulation(
        self, parameters: Mapping[Variable, Array], driven: Mapping[Variable, Array]
    ) -> Iterator[Instance]:
        """This thread's instance, in initialisation; afterwards it is reset for the next row, or freed."""
        with self._turn:
            instance, failed, sentence = self._instance(), None, ""
            try:
                first = {variable: values[0] for variable, values in driven.items()}
                stop = self.times[-1] if self.times else None
                values = {**self._constants, **parameters}
                instance.initialise(values, first, self.start, stop, self.tolerance)
                yield instance
            except Exception as error:
                failed, sentence = error, f"{line_of(error)}{said()}"
            finally:
                if not (instance.end(failed) and self.reset):
                    self._free()
            if failed is not None:
                failed = None  # the new error is kept, and is not to hold the frames of this one
                raise RuntimeError(sentence)

    def _instance(self) -> Instance:
        if not hasattr(self._instances, "one"):
            self._instances.one = Instance(self._folder, self._model, self._aloud)
        return self._instances.one

    def _split(self, arrays: Sequence[Array]) -> tuple[dict[Variable, Array], dict[Variable, Array]]:
        """Values of the parameters, and of the driven variables, `(intervals, *shape)`."""
        count, intervals = len(self._parameters), len(self.input_times)
        parameters = dict(zip(self._parameters, arrays[:count], strict=True))
        driven = {
            v: a.reshape(intervals, *v.shape) for v, a in zip(self._driven, arrays[count:], strict=True)
        }
        return parameters, driven

    def _plan(self, times: Any, input_times: Any, step: float | None, preferred: float | None) -> None:
        """Plan when it is stepped, driven and read: `times`, `input_times`, `step`, and later reads."""
        for name, value in (("times", times), ("input_times", input_times)):
            array = np.atleast_1d(0.0 if value is None else value)
            numbers = array.ndim == 1 and array.size and array.dtype.kind in "iuf"
            if not numbers or not np.isfinite(array).all():
                raise ConfigurationError(
                    f"Fmu, {name}: expected finite numbers, got {value!r}. Give one, or a list of them."
                )
            if (np.diff(array) <= 0).any():
                raise ConfigurationError(
                    f"Fmu, {name}: expected times that rise, got {value!r}. Sort them, each once."
                )
        self.times: tuple[float, ...] = (
            () if times is None else tuple(np.atleast_1d(times).astype(float).tolist())
        )
        if input_times is None:
            input_times = [self.start, *(time for time in self.times[:-1] if time > self.start)]
        self.input_times: tuple[float, ...] = tuple(np.atleast_1d(input_times).astype(float).tolist())
        between = np.diff([self.start, *self.times])
        shortest = float(min(between[between > 0], default=1.0))
        self.step = (preferred or shortest) if step is None else step
        check_positive("Fmu", "step", self.step)
        self._reads = [self._steps("times", time) for time in self.times] or [0]
        self._changes = [self._steps("input_times", time) for time in self.input_times]
        for name, steps in (("times", self._reads), ("input_times", self._changes)):
            if len(set(steps)) < len(steps):
                raise ConfigurationError(
                    f"Fmu, {name}: expected times at least a step of {self.step:g} apart, got two at the "
                    "same step. Leave one of them out."
                )
        if self._changes[0] != 0:
            raise ConfigurationError(
                f"Fmu, input_times: expected {self.start:g} first, where it starts, got "
                f"{self.input_times[0]:g}. Add it: the inputs need a value from the start on."
            )
        if self._changes[-1] >= max(1, self._reads[-1]):
            end, last = self.times[-1] if self.times else self.start, self.input_times[-1]
            raise ConfigurationError(
                f"Fmu, input_times: expected times before {end:g}, when it ends, got {last:g}, whose inputs "
                "would change nothing. Leave it out, or bring both to one unit."
            )

    def _steps(self, name: str, time: float) -> int:
        """Return how many steps after the start a time is."""
        steps = (time - self.start) / self.step
        if steps < -1e-6 or abs(steps - round(steps)) > 1e-6:
            raise ConfigurationError(
                f"Fmu, {name}: expected times a whole number of steps of {self.step:g} after {self.start:g}, "
                f"got {time:g}. Give another step=..., or other times."
            )
        return round(steps)

    @property
    def identity(self) -> str:
        """A cache's key for this box: the file's content, not its location, and the settings."""
        settings = described("Fmu, settings", self._settings, repr)  # repr alone cuts long arrays
        return f"sha256 {self.checksum}, {settings}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle path and settings; the FMU is loaded anew, from a file with the same checksum."""
        settings = {
            **self._settings,
            "reset": self.reset,
            "deterministic": self.deterministic,
            "failures": self.failures,
        }
        return rebuilt, (type(self), self.path, settings, self.checksum)

    def __repr__(self) -> str:
        """The file, with the beginning of its checksum."""
        return f"Fmu({self.path.name!r}, sha256={self.checksum[:12]})"


def _equal(one: Sequence[Array], other: Sequence[Array]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))
