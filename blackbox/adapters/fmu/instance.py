"""An FMU for co-simulation, of FMI 2 or 3: its description, its variables, and the calls of an instance."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np

from blackbox.checks import nearest
from blackbox.errors import ConfigurationError
from blackbox.extras import import_extra
from blackbox.outside import exactly
from blackbox.spec import ArraySpec, identifier

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Array = np.ndarray[Any, Any]
FATAL = 4  # a call's status after which the standard allows no other call of the instance
# FMI's type -> what FMPy's methods call it, and the dtype of a spec; None is any float. FMI 2, then FMI 3.
_TYPES: Mapping[str, tuple[str, str | None]] = {
    "Real": ("Real", None),
    "Integer": ("Integer", "int32"),
    "Float32": ("Float32", None),
    "Float64": ("Float64", None),
    "Int32": ("Int32", "int32"),
    "UInt8": ("UInt8", "uint8"),
    "Boolean": ("Boolean", "bool"),
} | {name: (name, "int64") for name in ("Int8", "Int16", "UInt16", "UInt32", "Int64", "UInt64")}
# which of these take whole numbers, and those that they can hold: a C compiler would turn 300 to 44 in a byte
_HOLDS = {"Integer": "int32"} | {name: name.lower() for name in _TYPES if "Int" in name and name != "Integer"}
_PREFIX, _LOCK = "blackbox-fmu-", ".in-use"


class _HeardMessages(threading.local):
    """The last message of the worst status that FMUs logged in this thread."""

    status, message = 0, ""


_heard = _HeardMessages()
_loading = threading.Lock()  # FMPy changes the working directory while it loads a library


@dataclass(frozen=True)
class Variable:
    """A variable of a model description.

    Attributes:
        name: its name in the description.
        reference: its value reference in the FMU.
        call: its type in the names of FMPy's methods, such as "Float64" or "String".
        dtype: the dtype of its spec; None for floats.
        shape: `()` in FMI 2, and for most in FMI 3.
        causality: "input", "output", "parameter", "local", ...
        is_number: False for texts and the like.
        settable: whether it may be set before the simulation.
        fixed: whether it may not be set after that.
        unit: its unit; None where it has none.
        nominal: its usual size, where the description has it.
    """

    name: str
    reference: int
    call: str
    dtype: str | None
    shape: tuple[int, ...]
    causality: str
    is_number: bool
    settable: bool
    fixed: bool
    unit: str | None
    nominal: float | None

    def spec(self, times: tuple[int, ...] = ()) -> ArraySpec:
        """The spec of its values at so many times."""
        scale = self.nominal if self.dtype is None else None
        return ArraySpec(identifier(self.name), (*times, *self.shape), self.dtype, scale=scale)


def variables_of(model: Any) -> dict[str, Variable]:
    """The variables of a model description, by name."""
    enumeration = "Integer" if model.fmiVersion.startswith("2") else "Int64"
    variables = {}
    for v in model.modelVariables:
        call, dtype = _TYPES.get(enumeration if v.type == "Enumeration" else v.type, (v.type, None))
        declared = v.declaredType
        nominal = abs(float(v.nominal or (declared and declared.nominal) or 0))
        variables[v.name] = Variable(
            name=v.name,
            reference=v.valueReference,
            call=call,
            dtype=dtype,
            shape=tuple(v.shape or ()),
            causality=v.causality,
            is_number=v.type in _TYPES or v.type == "Enumeration",
            settable=v.causality == "input"
            or (
                v.causality != "structuralParameter"  # would need another mode, and change shapes
                and v.variability != "constant"
                and v.initial in ("exact", "approx")
            ),
            fixed=v.variability == "fixed",
            unit=v.unit or (declared.unit if declared else None),
            nominal=nominal if 0 < nominal < math.inf else None,
        )
    return variables


def model_of(fmpy: ModuleType, path: Path) -> Any:
    """The description of an FMU that can run here."""
    try:
        path.open("rb").close()  # FMPy would take an extracted one, too
        model = fmpy.read_model_description(str(path), validate=False)
        platforms = fmpy.supported_platforms(str(path))
    except Exception as error:
        raise ConfigurationError(
            f"Fmu, path: expected an FMU, got {str(path)!r} ({line_of(error)}). Export it anew."
        ) from error
    if not model.fmiVersion.startswith(("2.", "3.")) or model.coSimulation is None:
        kinds = "with" if model.coSimulation else "without"
        raise ConfigurationError(
            f"Fmu, path: expected an FMU of FMI 2 or 3 with co-simulation, got FMI {model.fmiVersion} "
            f"{kinds} co-simulation. Export it as such, with a solver inside."
        )
    if fmpy.platform not in platforms:
        mend = (
            "Build it from them: fmpy compile." if "c-code" in platforms else "Export it for this platform."
        )
        raise ConfigurationError(
            f"Fmu, path: expected an FMU for {fmpy.platform}, got {path.name} for "
            f"{', '.join(p.replace('c-code', 'C sources') for p in platforms) or 'none'}. {mend}"
        )
    return model


def gives_derivatives(path: Path, model: Any) -> bool:
    """Say whether an FMU has directional derivatives in co-simulation; FMPy does not read it in FMI 3."""
    if not model.fmiVersion.startswith("3"):
        return bool(model.coSimulation.providesDirectionalDerivative)
    with zipfile.ZipFile(path) as archive:
        co_simulation = ElementTree.fromstring(archive.read("modelDescription.xml")).find("CoSimulation")
    return co_simulation is not None and co_simulation.get("providesDirectionalDerivatives") in ("true", "1")


def chosen(
    known: Mapping[str, Variable], name: str, where: str, set: bool = False, text: bool = False
) -> Variable:
    """The variable of this name; refused if it cannot be used in this way."""
    variable = known.get(name)
    if variable is None:
        raise ConfigurationError(
            f"Fmu, {where}: expected variables of the FMU, got {name!r}. {nearest(name, list(known))}"
        )
    if not variable.is_number and not (text and variable.call == "String"):
        raise ConfigurationError(
            f"Fmu, {where}: expected numbers, got {name!r}, of type {variable.call}. Leave it out."
        )
    if set and not variable.settable:
        raise ConfigurationError(
            f"Fmu, {where}: expected variables that can be set, got {name!r}, whose causality is "
            f"{variable.causality!r}. Take an input, parameter or start value."
        )
    return variable


def as_start_value(variable: Variable, value: Any) -> Array:
    """A value that is the same for all rows, as an array; refused if it is none of the variable's."""
    is_text = variable.call == "String"
    dtype = _HOLDS.get(variable.call, variable.dtype or "float64")
    try:
        array = np.asarray(value) if is_text else exactly(value, dtype)
        if array.shape != variable.shape or (is_text and array.dtype.kind != "U"):
            raise ValueError(f"shape {array.shape}, dtype {array.dtype}")
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"Fmu, start_values: expected for {variable.name!r} shape {variable.shape} of type "
            f"{variable.call}, got {value!r} ({line_of(error)[:-1]}). Give one of that shape and type."
        ) from error
    return array


def new_folder() -> tuple[Path, Callable[[], None]]:
    """A new temporary folder, and what removes it; folders that killed processes have left are removed.

    Each holds a lock on a file in its folder, which ends with it however it ends.
    """
    if fcntl is not None:
        for file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
            with suppress(OSError), file.open("rb") as lock:  # in use, or another user's
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(file.parent, ignore_errors=True)
    folder, process = Path(tempfile.mkdtemp(prefix=_PREFIX)), os.getpid()
    lock_file = (folder / "new").open("wb")
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks, whose folders are never looked for
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _LOCK)  # nobody sees it before it is locked

    def remove() -> None:
        lock_file.close()
        if os.getpid() == process:  # and not a forked child, which has a copy of the box
            shutil.rmtree(folder, ignore_errors=True)

    return folder, remove


def _hear(*words: Any) -> None:
    *_, status, _, text = words  # of both versions
    if status >= _heard.status:
        _heard.status = status
        _heard.message = text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _forget() -> None:
    _heard.status, _heard.message = 0, ""


def said() -> str:
    """The FMU's last message since this thread made or initialised an instance, as a sentence; or nothing."""
    return f" It said: {' '.join(_heard.message.split())}" if _heard.message else ""


@cache
def _callbacks() -> Any:
    """The callbacks of all instances of FMI 2.

    What puts numbers into messages, FMPy's proxy, knows the last logger of the process alone, and calls it
    for all instances, even after it is gone. Hence one for all that stays.
    """
    fmi2 = import_extra("Fmu", "fmpy.fmi2", "fmu")
    callbacks = fmi2.fmi2CallbackFunctions()
    callbacks.logger = fmi2.fmi2CallbackLoggerTYPE(_hear)
    callbacks.allocateMemory = fmi2.defaultCallbacks.allocateMemory
    callbacks.freeMemory = fmi2.defaultCallbacks.freeMemory
    with suppress(Exception):  # FMPy has none for some platforms; messages come without their numbers
        import_extra("Fmu", "fmpy.logging", "fmu").addLoggerProxy(ctypes.byref(callbacks))
    return callbacks


def _new_of_fmi_2(folder: str, model: Any, aloud: bool) -> Any:
    instance = import_extra("Fmu", "fmpy.fmi2", "fmu").FMU2Slave(
        guid=model.guid,
        unzipDirectory=folder,
        modelIdentifier=model.coSimulation.modelIdentifier,
        requireFunctions=False,
    )
    instance.instantiate(callbacks=_callbacks(), loggingOn=aloud)
    return instance


def _new_of_fmi_3(folder: str, model: Any, aloud: bool) -> Any:
    simulation = import_extra("Fmu", "fmpy.simulation", "fmu")
    return simulation.instantiate_fmu(
        folder, model, "CoSimulation", debug_logging=aloud, logger=_hear, require_functions=False
    )


class Instance:
    """An instance, which is freed with this object.

    Args:
        folder: the folder of the extracted FMU.
        model: its description.
        aloud: whether it logs all that it can, for which some take long.

    Attributes:
        simulations: how many were begun.

    Raises:
        Exception: FMPy raises it, where the library cannot be loaded or gives no instance.
    """

    def __init__(self, folder: Path, model: Any, aloud: bool) -> None:
        self._is_3 = model.fmiVersion.startswith("3")
        _forget()
        with _loading:
            directory = os.getcwd()
            try:
                self._fmu: Any = (_new_of_fmi_3 if self._is_3 else _new_of_fmi_2)(str(folder), model, aloud)
            finally:
                os.chdir(directory)  # FMPy leaves another one where a library cannot be loaded
        self._free = weakref.finalize(self, self._fmu.freeInstance)
        self.simulations = 0

    def initialise(
        self,
        values: Mapping[Variable, Any],
        driven: Mapping[Variable, Any],
        start: float,
        stop: float | None,
        tolerance: float | None,
    ) -> None:
        """Set values, enter initialisation, and set what is driven over time; `begin` leaves it."""
        _forget()
        self.simulations += 1
        if not self._is_3:
            self._fmu.setupExperiment(tolerance=tolerance, startTime=start, stopTime=stop)
        for variable, value in values.items():
            self.set(variable, value)
        if self._is_3:
            self._fmu.enterInitializationMode(tolerance=tolerance, startTime=start, stopTime=stop)
        else:
            self._fmu.enterInitializationMode()
        for variable, value in driven.items():
            self.set(variable, value)

    def begin(self) -> None:
        """Leave initialisation."""
        self._fmu.exitInitializationMode()

    def set(self, variable: Variable, value: Any) -> None:
        """Set a variable to an array of its shape, of numbers or of texts.

        Raises:
            ValueError: it is of another type of whole numbers, which cannot hold one of these.
        """
        if variable.call in _HOLDS:
            value = exactly(value, _HOLDS[variable.call])
        values = np.asarray(value).reshape(-1).tolist()
        getattr(self._fmu, f"set{variable.call}")([variable.reference], values)

    def get(self, variable: Variable) -> Array:
        """The value of a variable, an array of its shape."""
        get, size = getattr(self._fmu, f"get{variable.call}"), math.prod(variable.shape)
        values = get([variable.reference], size) if self._is_3 else get([variable.reference])
        return exactly(values, variable.dtype or np.float64).reshape(variable.shape)

    def step(self, time: float, size: float) -> None:
        """A step from a time.

        Raises:
            RuntimeError: the FMU ended the simulation.
        """
        status = self._fmu.doStep(currentCommunicationPoint=time, communicationStepSize=size)
        if self._is_3:
            _, ends, early, last = status
            if ends or (early and last < time + size * (1 - 1e-9)):
                raise RuntimeError(f"the FMU ended the simulation at time {last:g}.")

    def derivative(self, unknown: Sequence[Variable], known: Variable, place: int) -> Array:
        """The derivative of floats with respect to one number of another, end to end, in initialisation."""
        references, sizes = [v.reference for v in unknown], sum(math.prod(v.shape) for v in unknown)
        if not self._is_3:
            return np.array(self._fmu.getDirectionalDerivative(references, [known.reference], [1.0]))
        seed = [float(number == place) for number in range(math.prod(known.shape))]
        return np.array(self._fmu.getDirectionalDerivative(references, [known.reference], seed, sizes))

    def end(self, after: BaseException | None = None) -> bool:
        """End the simulation, and reset it for another one.

        Args:
            after: the error of the last simulation.

        Returns:
            Whether it is reset; False asks for a new instance.
        """
        if getattr(after, "status", None) == FATAL:
            self._free.detach()  # not even to be freed
            return False
        try:
            if after is None:
                self._fmu.terminate()
            self._fmu.reset()
        except Exception:
            return False
        return True


def line_of(error: BaseException) -> str:
    """An error in one line, as a sentence."""
    return f"{' '.join(str(error).split()).rstrip('.') or type(error).__name__}."
