"""The run that a saved state belongs to: an estimator in words, and the refusal of another run's state."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.errors import ConfigurationError
from zo.execution.ranks import checksum

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the repr of what has none of its own: another every time


def described(value: object) -> str:
    """Class and settings of a dataclass, nested ones too; the repr of anything else, without addresses.

    Settings at their default are left out, so that a version that adds one reads older words.
    """
    if isinstance(value, Tensor) and value.numel() > 100:  # a repr leaves out the middle of a long one
        return f"Tensor({value.dtype}, {tuple(value.shape)}, {checksum([value]):08x})"
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return _ADDRESS.sub("", repr(value))
    settings = []
    for field in dataclasses.fields(value):
        words = described(getattr(value, field.name))
        # compared as words, since == of tensors is no truth
        if field.default is dataclasses.MISSING or words != described(field.default):
            settings.append(f"{field.name}={words}")
    return f"{type(value).__name__}({', '.join(settings)})"


def arrays_of(box: BlackBoxFunction) -> str:
    """Describe a box's inputs and outputs: names and shapes, and `fixed` where there is no derivative."""

    def words(spec: ArraySpec) -> str:
        copy = "" if spec.copy_of is None else f" copy of {spec.copy_of}"
        return f"{spec.name} {spec.shape}{'' if spec.differentiable else ' fixed'}{copy}"

    return " to ".join(", ".join(map(words, specs)) for specs in (box.inputs, box.outputs))


def refuse_other_run(owner: str, settings: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse the state of a run that was made with other settings.

    Args:
        owner: the class of the object, for the message.
        settings: the object's, by name.
        saved: those of the state; what earlier versions did not note is not compared.

    Raises:
        ConfigurationError: a setting is another.
    """
    for name, value in settings.items():
        saved_value = saved.get(name, value)
        if saved_value != value:
            raise ConfigurationError(
                f"{owner}: expected the state of a run with {name}={value}, got one with {saved_value}. Make "
                "it with that one, or start anew."
            )


def same_chunk(owner: str, chunk: int | None, saved: int | None) -> int | None:
    """The chunk to go on with: None, of either, leaves it to the other.

    Raises:
        ConfigurationError: they are two.
    """
    if None not in (chunk, saved) and chunk != saved:
        raise ConfigurationError(
            f"{owner}: expected the state of a run with chunk={chunk}, got one with {saved}. Leave "
            "chunk out to go on with that one."
        )
    return chunk if saved is None else saved
