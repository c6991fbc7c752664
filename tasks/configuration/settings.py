"""Settings: frozen dataclasses whose annotations say what is allowed; and `Config`, those of every problem.

    @dataclass(frozen=True)
    class Config(tasks.Config):
        unroll: Count = 6
        "Solver steps in a loss."

What a setting may be is in its annotation, so that the command line, a file and a script refuse the same
values with the same sentence. Pydantic does the checking; they are written as JSON, and read back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from tyro.conf import OmitArgPrefixes, arg, configure

from blackbox.checks import nearest
from tasks.errors import ConfigurationError
from zo.tangents.population import FACTORS

Count = Annotated[int, Field(ge=1, le=2**48)]
"""A whole number of at least 1."""
Natural = Annotated[int, Field(ge=0, le=2**48)]
"""A whole number of at least 0."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number of at least 0."""
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""A number from 0 to below 1."""
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
"""A finite number of at least 1."""

C = TypeVar("C")
NOT_WRITTEN = {"not written": True}  # metadata of a dataclass's field that no JSON file has


def check(configuration: Any) -> None:
    """Check every setting of a dataclass against its annotation.

    Lists become tuples, at any depth, unless the annotation says list: JSON has no tuples, and a run that
    goes on is to have the settings that it was begun with.

    Raises:
        ConfigurationError: The first setting that is not what its annotation says.
    """
    kind = type(configuration)
    for field in dataclasses.fields(configuration):
        value, adapter = getattr(configuration, field.name), _adapters(kind)[field.name]
        wrong: list[tuple[str, str, object]] = []
        for validator in (
            partial(adapter.validate_python, _with_tuples(value)),
            partial(adapter.validate_python, value),
            partial(_by_json, adapter, value),  # takes some lists for tuples, and others for lists
        ):
            try:
                object.__setattr__(configuration, field.name, validator(strict=True))
                break
            except ValidationError as error:
                wrong.append(_wrong(error, value))
        else:
            place, expected, came = max(wrong, key=lambda fault: fault[0].count("["))
            raise refused(field.name, f"{expected}{place and f' at {place}'}", came)


def _by_json(adapter: TypeAdapter[Any], value: object, strict: bool) -> Any:
    try:
        text = json.dumps(value, default=_plain)
    except (TypeError, ValueError):  # it has no such form
        return adapter.validate_python(value, strict=strict)
    return adapter.validate_json(text, strict=strict)


def _with_tuples(value: Any) -> Any:
    if type(value) in (list, tuple):
        return tuple(map(_with_tuples, value))
    if type(value) is dict:
        return {name: _with_tuples(setting) for name, setting in value.items()}
    return value


def refused(name: str, expected: str, value: object) -> ConfigurationError:
    """The error for a setting: what was expected, what came, and how to set it.

    Args:
        name: The setting.
        expected: The allowed values, as words after "expected".
        value: The value.
    """
    return ConfigurationError(
        f"{name}: expected {expected}, got {value!r}. Give another (--{name.replace('_', '-')}, in Python "
        f"{name}=...)."
    )


def to_dict(configuration: Any) -> dict[str, Any]:
    """A dataclass as JSON values: nested dataclasses become objects, tuples lists, paths strings.

    Raises:
        ConfigurationError: A value has no JSON form.
    """
    kind = type(configuration)
    if not dataclasses.is_dataclass(kind):
        raise ConfigurationError(f"expected an instance of a dataclass, got {configuration!r}.")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = getattr(configuration, field.name)
        try:
            values[field.name] = json.loads(json.dumps(value, default=_plain, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{kind.__name__}.{field.name}: expected numbers, text, paths, tuples or dataclasses, "
                f"got {value!r} ({error}). Use a plain Python value."
            ) from None
    return values


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON values, those of a dataclass among them by names such as "zeroth_order.mu"."""
    lines: dict[str, Any] = {}
    for name, value in values.items():
        parts = flat(value) if isinstance(value, Mapping) else {}
        lines |= {f"{name}.{part}": inner for part, inner in parts.items()} or {name: value}
    return lines


def from_dict(kind: type[C], values: Mapping[str, Any], where: str | None = None) -> C:
    """The dataclass `kind` from what `to_dict` gave; settings that are left out take their defaults.

    Args:
        kind: A dataclass.
        values: JSON values by setting.
        where: How messages call the place; the name of the dataclass if None.

    Raises:
        ConfigurationError: A setting is unknown (the nearest name is given), missing without a default, or
            not what its annotation says.
    """
    where = where or kind.__name__
    fields = {field.name: field for field in dataclasses.fields(kind) if _is_written(field)}  # pyright: ignore
    for name in values:
        if name not in fields:
            raise ConfigurationError(f"{where}: no setting is named {name!r}. {nearest(name, fields)}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values:
            if required:
                raise ConfigurationError(f"{where}: expected a value for {name!r}, got none. Add it.")
            continue
        hint = _hints(kind)[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(values[name], Mapping):
            arguments[name] = from_dict(hint, values[name], f"{where}.{name}")
            continue
        try:
            arguments[name] = _adapters(kind)[name].validate_json(json.dumps(values[name]), strict=True)
        except ValidationError as error:
            place, expected, came = _wrong(error, values[name])
            raise ConfigurationError(
                f"{where}.{name}{place}: expected {expected}, got {came!r}. Correct the value."
            ) from None
    return kind(**arguments)


def _is_written(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.metadata != NOT_WRITTEN


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@lru_cache(maxsize=64)
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    """Make the validator of each setting of a dataclass."""
    try:
        hints = get_type_hints(kind, include_extras=True)
        return {
            field.name: TypeAdapter(hints[field.name])
            for field in dataclasses.fields(kind)
            if _is_written(field)
        }
    except Exception as error:  # names that are not there, kinds that pydantic does not know
        raise ConfigurationError(
            f"{kind.__qualname__}: expected annotations that can be read from JSON, got: {error}. Use bool, "
            "int, float, str, Path, Literal, tuple, list, dict, a union of these or a dataclass."
        ) from error


def _wrong(error: ValidationError, value: object) -> tuple[str, str, object]:
    """Locate a fault in a value ("[1]", or ""), and return the expectation and the value there."""
    faults = error.errors(include_url=False)
    places = {tuple(part for part in fault["loc"] if isinstance(part, int)) for fault in faults}
    texts = dict.fromkeys(
        fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ").replace("None", "null")
        for fault in faults
    )
    if len(places) == 1 and len({id(fault["input"]) for fault in faults}) == 1:
        place = "".join(f"[{part}]" for part in places.pop())
        for part in faults[0]["loc"]:  # of the value itself: as JSON its tuples are lists
            if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
                value = value[part]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
        return place, " or ".join(texts), value
    return "", " or ".join(texts), value


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


@configure(OmitArgPrefixes)
@dataclass(frozen=True)
class ZerothOrder:
    """Settings of methods that train by differences of values, or by values alone.

    Raises:
        ConfigurationError: A setting is not what its annotation says.
    """

    mu: Positive = 1e-3
    """Smoothing parameter of the weights: the finite-difference step of cge, sparse-cge and rge."""
    input_mu: Positive = 1e-3
    """Smoothing parameter of row-rge, in the units of the box's inputs."""
    central: bool = False
    """Whether differences take both signs, with twice the queries."""
    coordinates: Count = 64
    """Weights in a step's sparse set, of sparse-cge, drawn anew every step."""
    directions: Annotated[Count, arg(aliases=("--q",))] = 64
    """Random directions in a step of rge: q of zo.RGE."""
    input_directions: Annotated[Count, arg(aliases=("--input-q",))] = 2
    """Random directions at the box's inputs for each row, of row-rge; q of zo.box_gradient.RowRGE."""
    sigma0: Positive = 0.1
    """Of cma-es and sep-cma-es: the standard deviation of each weight in the first generation."""
    chunk: Count | None = None
    """Queries that are evaluated together; None for what memory allows. Another number rounds otherwise."""

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)


@dataclass(frozen=True)
class Config:
    """Settings of a run. A problem's own are added in a subclass, which is a frozen dataclass too.

    All methods take the same steps, on the same batches, from the same first weights.

    Raises:
        ConfigurationError: A setting is not what its annotation says.
    """

    methods: tuple[str, ...] = ("none", "no-gradient", "tangents")
    """What is compared, in the order of the table; `blackbox run PROBLEM --help` lists them."""
    steps: Count = 300
    """Optimiser steps of each method."""
    batch: Count = 16
    """Rows of training data in a step."""
    learning_rate: Positive = 1e-3
    """Of Adam, at the start."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Whether the learning rate falls to zero along a cosine, or stays."""
    rows: Count | None = None
    """The most rows that the run may run, validation and test included; None for no limit."""
    minutes: Positive | None = None
    """By when the run should end, from its first row on, what earlier processes took included; None for no
    limit. Steps become fewer where rows take longer than the first ones did."""
    validate_every: Count = 25
    """Optimiser steps between validations."""
    prefit: Natural = 400
    """Steps in which tangents and student learn, before training, from answers that the problem has (its
    `answers`); 0 for none."""
    replays: Natural | None = 0
    """Steps on recorded answers, in which no box runs, after each step of tangents; None for as many
    as are trusted. A number is for no-gradient and first-order too, which show what of the gain is the
    derivative's."""
    rates: tuple[Positive, ...] = FACTORS
    """Multiples of the learning rate, one for each network of population that has its own; see
    zo.Population."""
    surrogate: bool = True
    """Whether population has a network that is trained through the model alone; it takes a thousand steps of
    computing."""
    clip: AtLeastOne | None = None
    """The longest gradient, of every method, in multiples of the median length of those of the last 25 steps;
    None for each method's own: 2 for tangents that learn from values, no bound for others."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Of torch on the CPU. Two may be twice as fast on idle cores, and are far slower where another process
    wants one of them. Results are equal to the bit for equal numbers of threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network is."""
    zeroth_order: ZerothOrder = ZerothOrder()
    """Settings of methods that train by differences of values, or by values alone."""

    def __post_init__(self) -> None:
        """Check the settings; a subclass that checks more calls this first."""
        check(self)
        if len(set(self.rates)) < max(1, len(self.rates)):
            raise refused("rates", "multiples, each once", self.rates)
