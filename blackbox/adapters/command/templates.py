"""Text with placeholders such as {velocity}: numbers written into it, and read out of it again."""

from __future__ import annotations

import itertools
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blackbox.adapters.command.files import checked_name, existing
from blackbox.adapters.command.tables import number
from blackbox.checks import nearest
from blackbox.errors import ConfigurationError
from blackbox.spec import ArraySpec

# also as Fortran writes it (1.0D-3, 1.234-103); `++` since digits are not to be tried in other portions
NUMBER = (
    r"[-+]?(?:(?:\d++\.\d*+|\.\d++)(?:[eEdD][-+]?\d++|[-+]\d{3}(?![\d.]))?|\d++(?:[eEdD][-+]?\d++)?"
    r"|[nN][aA][nN]|[iI][nN][fF](?:inity)?)"
)
_SEPARATOR = r"[\s,;]+"
_MORE_AFTER = re.compile(rf"{_SEPARATOR}({NUMBER})(?![\w.])")  # in the rest of a line
_MORE_BEFORE = re.compile(rf"(?:^|[\s,;])(?:{NUMBER})[\s,;]+$")  # in the beginning of a line
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)(?:\[[\d,\s]+\])?(?::[^{}]*)?\}")  # of any name
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Placeholder:
    """`{name}` for a whole array, its numbers in C order; `{name[0]}` or `{name[1,2]}` for one of them."""

    name: str
    index: tuple[int, ...] | None
    style: str

    def text(self, arrays: Arrays) -> str:
        """The numbers, separated by spaces; without a format as many digits as name the value."""
        array = arrays[self.name] if self.index is None else arrays[self.name][self.index]
        numbers = np.ravel(array)
        numbers = numbers.astype(int) if numbers.dtype == bool else numbers
        return " ".join(format(number, self.style) for number in numbers.tolist())


class Template:
    """A text whose placeholders name arrays. All other braces, JSON's or OpenFOAM's, stay as they are.

    Args:
        where: how messages call it.
        text: the text; a placeholder is a name that is known, an index in brackets where it is for one
            number, and a format after a colon, as in `{velocity[0]:.3e}`.
        specs: the arrays that it may name.

    Attributes:
        text: as given.
        parts: literal texts and placeholders, in their order.

    Raises:
        ConfigurationError: an index is outside its array, or a format is none for numbers.
    """

    def __init__(self, where: str, text: str, specs: Sequence[ArraySpec]) -> None:
        """Split the text once, and try every placeholder."""
        self.where, self.text, self.specs = where, text, {spec.name: spec for spec in specs}
        names = "|".join(map(re.escape, self.specs))
        pattern = re.compile(r"\{(" + names + r")(?:\[([\d,\s]+)\])?(?::([^{}]*))?\}")
        self.parts: list[str | Placeholder] = []
        end = 0
        for match in pattern.finditer(text):
            index = None if match[2] is None else tuple(int(n) for n in match[2].split(",") if n.strip())
            self.parts += [text[end : match.start()], Placeholder(match[1], index, match[3] or "")]
            end = match.end()
            self._try(self.parts[-1], match[0])
        self.parts.append(text[end:])

    @property
    def placeholders(self) -> list[Placeholder]:
        """The text's placeholders, in their order."""
        return [part for part in self.parts if isinstance(part, Placeholder)]

    def names(self) -> set[str]:
        """The arrays that the text names."""
        return {placeholder.name for placeholder in self.placeholders}

    def fill(self, arrays: Arrays) -> str:
        """The text of one row, from its arrays by name."""
        return "".join(part if isinstance(part, str) else part.text(arrays) for part in self.parts)

    def find(self, text: str) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays by name, read where the text matches the template.

        The template may stand anywhere in the text, the last time counts, and a run of white space stands
        for any other.

        Raises:
            ValueError: nothing in the text looks like it, or an array has more numbers on its line than it
                should.
        """
        match = None
        for match in self._pattern().finditer(text):  # noqa: B007 (the last one is what is wanted)
            pass
        if match is None:
            raise ValueError(
                f"{self.where}: expected text like the template, found none. {self._missing(text)}"
            )
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._refuse_more(match)
        for place, group in zip(self.placeholders, match.groups(), strict=True):
            spec = self.specs[place.name]
            kind = np.float64 if spec.floating else np.int64
            numbers = np.array([number(word, spec.floating) for word in re.split(_SEPARATOR, group)], kind)
            if place.index is None:
                arrays[place.name] = numbers.reshape(spec.shape)
            else:
                arrays.setdefault(place.name, np.zeros(spec.shape, kind))[place.index] = numbers[0]
        return arrays

    def check_complete(self) -> None:
        """Refuse a template to read by that leaves a number of its arrays out, or asks for one twice.

        Raises:
            ConfigurationError: naming the array.
        """
        for name in self.names():
            asked = [place.index for place in self.placeholders if place.name == name]
            indices = itertools.product(*map(range, self.specs[name].shape))
            if asked != [None] and sorted(asked, key=str) != sorted(indices, key=str):
                raise ConfigurationError(
                    f"{self.where}: expected {{{name}}} once, or each of its numbers once, got {len(asked)} "
                    f"placeholders for shape {self.specs[name].shape}. Name each number of it once."
                )

    def _refuse_more(self, match: re.Match[str]) -> None:
        """Refuse arrays whose line goes on with numbers that the template has no place for."""
        group = 0
        for index, part in enumerate(self.parts):
            if isinstance(part, str):
                continue
            group += 1
            count = int(np.prod(self.specs[part.name].shape, dtype=int))
            if part.index is not None or count == 1:
                continue
            line = re.split(r"[\r\n]", match.string[match.end(group) :], maxsplit=1)[0]
            after = self._ends_line(index) and _MORE_AFTER.match(line)
            line = re.split(r"[\r\n]", match.string[: match.start(group)])[-1]
            before = self._begins_line(index) and _MORE_BEFORE.search(line)
            if after or before:
                where = (
                    f"follow on the same line: {after[1]}" if after else "come before them on the same line"
                )
                raise ValueError(
                    f"{self.where}: expected {count} numbers for {{{part.name}}}, of shape "
                    f"{self.specs[part.name].shape}, but more {where}. "
                    "Correct the shape, or what the program writes."
                )

    def _ends_line(self, index: int) -> bool:
        """Whether the template has nothing after that part on its line."""
        after = "".join(part if isinstance(part, str) else "{}" for part in self.parts[index + 1 :])
        return not after.partition("\n")[0].strip()

    def _begins_line(self, index: int) -> bool:
        """Whether the template has nothing before that part on its line."""
        before = "".join(part if isinstance(part, str) else "{}" for part in self.parts[:index])
        return not before.rpartition("\n")[2].strip()

    def _missing(self, text: str) -> str:
        """Which part of the template a text lacks that does not match it."""
        has = " ".join(text.split())
        if not has:
            return "The text is empty: does the program write to another file?"
        words = [" ".join(part.split()) for part in self.parts if isinstance(part, str)]
        begins = f"the text begins with {textwrap.shorten(has, 80, placeholder=' ...')!r}"
        for word in words:
            if word not in has:
                return f"There is no {word!r} in it: {begins}."
        return f"Its words are there, but not in this order with nothing but the numbers between: {begins}."

    def _pattern(self) -> re.Pattern[str]:
        # white space at the ends is the template file's, not the output's
        ends = {0: str.lstrip, len(self.parts) - 1: str.rstrip}
        parts = []
        for index, part in enumerate(self.parts):
            if isinstance(part, str):
                words = re.split(r"(\s+)", ends.get(index, str)(part))
                parts.append("".join(r"\s+" if word.isspace() else re.escape(word) for word in words))
                continue
            count = 1 if part.index is not None else int(np.prod(self.specs[part.name].shape, dtype=int))
            more = f"(?:{_SEPARATOR}{NUMBER}){{{count - 1}}}" if count > 1 else ""
            parts.append(f"({NUMBER}{more})")
        return re.compile("".join(parts))

    def _try(self, place: str | Placeholder, written: str) -> None:
        assert isinstance(place, Placeholder)
        spec = self.specs[place.name]
        try:
            one = np.zeros(spec.shape, np.float64 if spec.floating else np.int64)
            if place.index is not None and len(place.index) != len(spec.shape):
                raise IndexError("an index for each axis")
            place.text({place.name: one})
        except (IndexError, ValueError) as error:
            raise ConfigurationError(
                f"{self.where}: expected a placeholder for {place.name!r} of shape {spec.shape}, got "
                f"{written} ({error}). Write {{{place.name}}}, if need be with an index in brackets and a "
                "format after a colon."
            ) from None


def templates_of(
    where: str, templates: Mapping[str, str | os.PathLike[str]] | None, specs: Sequence[ArraySpec]
) -> dict[str, Template]:
    """Templates by file; a path is read now, so that later changes of it change nothing.

    Raises:
        ConfigurationError: a name leads out of the folder, or the text has a wrong placeholder.
    """
    by_file = {}
    for file, text in (templates or {}).items():
        name = checked_name(where, file)
        content = text if isinstance(text, str) else existing(where, text).read_text(encoding="utf-8")
        by_file[name] = Template(f"{where}, {name!r}", content, specs)
        if not by_file[name].names():
            raise ConfigurationError(
                f"{where}, {name!r}: expected a placeholder such as {{{specs[0].name}}}, found none. "
                f"{unknown([content], specs)}Name an array in braces; give a file of your own as a Path."
            )
    return by_file


def unknown(texts: Sequence[str], specs: Sequence[ArraySpec]) -> str:
    """A sentence on the first placeholder in the texts that names no array, such as a misspelt one; or ""."""
    names = [spec.name for spec in specs]
    written = (name for text in texts for name in _PLACEHOLDER.findall(text))
    odd = next((name for name in written if name not in names), None)
    return "" if odd is None else f"There is {{{odd}}}, which names no array. {nearest(odd, names)} "
