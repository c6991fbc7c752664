"""Settings that name code: `find` and `make` resolve them, in a folder that `Run.configuration` trusts.

    network: Annotated[str, NamesCode(ships=lambda name, _: name in NAMES)] = "resnet8"

The settings of a folder from elsewhere are from elsewhere too: `os:system` would be executed as readily as a
network. So a setting whose text is resolved to code, or to anything else that runs programs or asks servers,
says so in its annotation. `Run.configuration` refuses its value in a folder that nobody trusts, and `find`
and `make` resolve no setting that does not say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from blackbox import BlackBoxFunction, registry
from blackbox.registry_arguments import parse
from tasks.configuration import names, trust
from tasks.errors import ProblemError


def _none_ships(name: str, arguments: Sequence[str]) -> bool:
    return False


@dataclass(frozen=True)
class NamesCode:
    """An annotation of a setting whose text names code.

    Attributes:
        ships: Whether a text, with its arguments, means something that ships and does nothing but compute;
            all others are asked about in a folder from elsewhere.
        arguments: The setting with the NAME=VALUE that the code is called with; "" for none.
    """

    ships: Callable[[str, Sequence[str]], bool] = _none_ships
    arguments: str = ""


Code = Annotated[str, NamesCode()]
"""A text that names code, a program or a server, of which none ships."""


@dataclass(frozen=True)
class NamedBySetting:
    """Code that a setting names.

    Attributes:
        setting: Its name.
        text: Its text, for a reader.
        code: The code of that text: trust is asked of it, and it is executed.
    """

    setting: str
    text: str
    code: trust.Named

    def __str__(self) -> str:
        """Show it as a refusal does."""
        return f"{' '.join((self.text, *self.code.arguments))}, which the setting {self.setting} names"


def named(config: Any) -> list[NamedBySetting]:
    """The code that the settings of a dataclass name, but for what ships.

    Args:
        config: A dataclass of settings, which may have others in it.
    """
    kind, code = type(config), list[NamedBySetting]()
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        values, marker = list(_values(getattr(config, field.name))), _marker(hints[field.name])
        code += [part for value in values if dataclasses.is_dataclass(value) for part in named(value)]
        if marker is None:
            continue
        arguments = tuple(getattr(config, marker.arguments)) if marker.arguments else ()
        code += [
            NamedBySetting(field.name, text, _code(text, marker, arguments))
            for text in map(str, values)
            if text and not marker.ships(text, arguments)
        ]
    return code


def find(config: Any, setting: str) -> Any:
    """Find the object that a setting names, whatever it is; its code is executed.

    Raises:
        ProblemError: The setting's annotation does not say that it names code.
        ConfigurationError: There is no such module, file or name.
    """
    return registry.find(_declared(config, setting).target, {})


def make(config: Any, setting: str) -> BlackBoxFunction:
    """The black box that a setting names, made with its arguments; its code is executed.

    Raises:
        ProblemError: The setting's annotation does not say that it names code, or where its arguments are.
        ConfigurationError: There is no such box, or the arguments do not fit.
    """
    code = _declared(config, setting)
    return registry.make(code.target, parse(code.arguments), names.functions())


def _code(text: str, marker: NamesCode, arguments: Sequence[str]) -> trust.Named:
    """Parse a setting's text; names of black boxes are for settings with arguments."""
    target = registry.target_of(text, names.functions() if marker.arguments else {})
    return trust.Named(target, tuple(arguments))


def _declared(config: Any, setting: str) -> trust.Named:
    marker = _marker(get_type_hints(type(config), include_extras=True)[setting])
    if marker is None:
        raise ProblemError(
            f"{type(config).__qualname__}.{setting}: expected a setting that is annotated as one that names "
            "code, got one that is not, so that a folder from elsewhere could name any. Write "
            f"{setting}: tasks.Code."
        )
    arguments = getattr(config, marker.arguments) if marker.arguments else ()
    return _code(getattr(config, setting), marker, arguments)


def _marker(hint: Any) -> NamesCode | None:
    """Find the marker in an annotation, at any depth: of `tuple[Code, ...] | None` too."""
    for part in getattr(hint, "__metadata__", ()):
        if isinstance(part, NamesCode):
            return part
    return next(filter(None, map(_marker, get_args(hint))), None)


def _values(setting: Any) -> Iterator[Any]:
    """Yield a setting, or what is in it at any depth; nothing for None."""
    if isinstance(setting, Mapping):
        setting = list(setting.values())
    if isinstance(setting, list | tuple):
        for part in setting:
            yield from _values(part)
    elif setting is not None:
        yield setting
