"""`Simulator`: a black box whose settings are the fields of a dataclass, which check, show and pickle it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch

from blackbox.checks import check_count, check_flag, check_number
from blackbox.errors import ConfigurationError
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction

SHARED = ("steps", "max_rows", "failures")  # of all: they come last, and only the first makes another system


def count(default: int, least: int = 1) -> Any:
    """A field for a whole number of at least `least`."""
    return field(default=default, metadata={"check": partial(check_count, least=least)})


def number(default: float, **bounds: float) -> Any:
    """A field for a finite number within bounds, those of `check_number`; it is kept as a float."""
    return field(default=default, metadata={"check": partial(check_number, **bounds)})


def flag(default: bool) -> Any:
    """A field for True or False."""
    return field(default=default, metadata={"check": check_flag})


@dataclass(kw_only=True, eq=False, repr=False)
class Simulator(BlackBoxFunction, abstract=True):
    """A black box that is made of its settings alone.

    A subclass is a dataclass as well; its fields are its settings, and `_prepare` makes what follows from
    them, specs above all. After pickling the settings are all there is.

    Args:
        steps: time steps per call.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    steps: int = count(1)
    failures: Policy = "raise"

    def __post_init__(self) -> None:
        """Check the settings, then make what follows from them."""
        for setting in fields(self):
            if "check" in setting.metadata:
                value = setting.metadata["check"](
                    type(self).__name__, setting.name, getattr(self, setting.name)
                )
                setattr(self, setting.name, value)
        with torch.inference_mode(False):  # what is made here serves gradients later
            try:
                self._prepare()
            except OverflowError as error:
                raise ConfigurationError(
                    f"{type(self).__name__}, settings: expected such as can be computed with, got {self!r}: "
                    f"{error}. Take smaller ones."
                ) from error
        super().__init__(failures=self.failures)
        self._made = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse another setting once what follows from it is made; `SHARED` ones are read at each call."""
        if "_made" in vars(self) and name in self._settings().keys() - set(SHARED):
            raise ConfigurationError(
                f"{type(self).__name__}: expected settings that stay, got another {name}. Make another one."
            )
        super().__setattr__(name, value)

    def _prepare(self) -> None:
        """Make what follows from settings that are in their ranges."""

    def _settings(self) -> dict[str, Any]:
        return {setting.name: getattr(self, setting.name) for setting in fields(self) if setting.init}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings alone."""
        return partial(type(self), **self._settings()), ()

    def __repr__(self) -> str:
        """The settings that make another one of it."""
        settings = self._settings()
        names = [*(name for name in settings if name not in SHARED), "steps"]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(settings[name])}' for name in names)})"


def _short(value: object) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return repr(value)
