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

from blackbox.adapters.command.files import by_name, checked_name, existing
from blackbox.adapters.command.matching import ENDS, Match, Matcher
from blackbox.adapters.command.numbers import NUMBER, THOUSANDS, is_scaled, number, repeated, text_of
from blackbox.adapters.command.reports import (
    SEEN,
    later_report,
    line_after,
    line_before,
    next_row,
    words_again,
)
from blackbox.checks import nearest
from blackbox.errors import ConfigurationError
from blackbox.spec import ArraySpec
from blackbox.words import counted

_SEPARATOR = r"[\s,;]+"
_MORE_AFTER = re.compile(rf"[\s,;|\"']+({NUMBER})(?![\w.])")  # in the rest of a line
_MORE_BEFORE = re.compile(rf"(?:^|[\s,;|])(?:{NUMBER})[\s,;|]+$")  # in the beginning of a line
_OR_FUNCTION = "or take (file, function) in output_files"
_CLOSING = {"[": "]", "(": ")", "{": "}", "<": ">"}
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
        where: its name in messages.
        text: the text; a placeholder is a known name, an index in brackets where it is for one number, and a
            format after a colon, as in `{velocity[0]:.3e}`.
        specs: the arrays that it may name.

    Attributes:
        text: the argument of that name.
        placeholders: the placeholders of the text, in their order.
        literals: the text before, between and behind them.

    Raises:
        ConfigurationError: an index is outside its array, or a format is not for numbers.
    """

    def __init__(self, where: str, text: str, specs: Sequence[ArraySpec]) -> None:
        """Split the text once, and try every placeholder."""
        self.where, self.text, self.specs = where, text, {spec.name: spec for spec in specs}
        names = "|".join(map(re.escape, self.specs))
        pattern = re.compile(r"\{(" + names + r")(?:\[([\d,\s]+)\])?(?::([^{}]*))?\}")
        self.placeholders: list[Placeholder] = []
        self.literals: list[str] = []
        end = 0
        for match in pattern.finditer(text):
            index = None if match[2] is None else tuple(int(n) for n in match[2].split(",") if n.strip())
            self.placeholders.append(Placeholder(match[1], index, match[3] or ""))
            self.literals.append(text[end : match.start()])
            end = match.end()
            self._try(self.placeholders[-1], match[0])
        self.literals.append(text[end:])

    def names(self) -> set[str]:
        """The arrays that the text names."""
        return {placeholder.name for placeholder in self.placeholders}

    def fill(self, arrays: Arrays) -> str:
        """The text of one row, from its arrays by name."""
        filled = [*(place.text(arrays) for place in self.placeholders), ""]
        return "".join(literal + numbers for literal, numbers in zip(self.literals, filled, strict=True))

    def find(self, text: str) -> dict[str, np.ndarray[Any, Any]]:
        """Read the arrays, by name, where the text looks like the template for the last time.

        A run of white space stands for any other, and for none between a sign and a number; in front of a
        number only white space with a line end stands for one. A template begins where a line does, or on a
        line behind a number or a sign such as a comma, but not behind a word. With a line end in front of it,
        it begins only where a line does. A number ends at white space, at the text's end, or at the
        template's next words. The last number also ends at a bracket, a quote, or a comma without a digit or
        letter after it. Words may follow on the line. Numbers, or a unit with a prefix such as mm, may not;
        and nothing may where the template ends in a line end.

        The last report counts, even without numbers: where the words in front of a number come again behind
        the last match, an older number is not taken for theirs.

        Raises:
            ValueError: nothing in the text looks like the template. Or the last such place has something else
                than a number, or more numbers than the template. Or the template's words come again, behind
                that place without numbers, or on its line.
        """
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        match, astray = Matcher(self.literals, list(map(self._count, self.placeholders))).find(text)
        if match is None:
            raise ValueError(
                f"{self.where}: expected text like the template, found none. {self._missing(text, astray)}"
            )
        self._refuse_later(match)
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        numbers = [self._numbers(match, index) for index in range(len(self.placeholders))]
        self._refuse_more(match)
        for place, values in zip(self.placeholders, numbers, strict=True):
            spec = self.specs[place.name]
            if place.index is None:
                arrays[place.name] = values.reshape(spec.shape)
            else:
                arrays.setdefault(place.name, np.zeros(spec.shape, values.dtype))[place.index] = values[0]
        return arrays

    def check_complete(self) -> None:
        """Refuse a template to read by that leaves a number of its arrays out, or asks for one twice.

        Raises:
            ConfigurationError: naming the array.
        """
        for name in self.names():
            named_indices = [place.index for place in self.placeholders if place.name == name]
            indices = itertools.product(*map(range, self.specs[name].shape))
            if named_indices != [None] and sorted(named_indices, key=str) != sorted(indices, key=str):
                raise ConfigurationError(
                    f"{self.where}: expected {{{name}}} once, or each of its numbers once, got "
                    f"{len(named_indices)} placeholders for shape {self.specs[name].shape}. Name each number "
                    "of it once."
                )

    def _refuse_later(self, match: Match) -> None:
        """Refuse a text with a report behind the last one that has numbers, or on its line.

        Raises:
            ValueError: the message has the line of that report.
        """
        count = sum(map(self._count, self.placeholders))
        if line := later_report(self.literals, match.text, match.end, count):
            raise ValueError(
                f"{self.where}: expected numbers in the last report that begins like the template, got "
                f"{_short(line)} behind the last that has them. Those are of an earlier report. If that line "
                f"is none, write more words in front of the number, {_OR_FUNCTION}."
            )
        if words := words_again(self.literals, match.text, match.start, match.end):
            line = line_before(match.text, 0, match.start) + line_after(match.text, match.start)
            raise ValueError(
                f"{self.where}: expected the words of the template once on a line, got {words!r} again in "
                f"{_short(line)}. Say which number it is: write the line's other words into the template, "
                f"with a placeholder for each of its numbers, {_OR_FUNCTION}."
            )

    def _numbers(self, match: Match, index: int) -> np.ndarray[Any, Any]:
        """The numbers of a placeholder.

        Raises:
            ValueError: there is something else, which the message has.
        """
        place, text, stuck = self.placeholders[index], match.numbers(index), match.stuck[index]
        spec, count = self.specs[place.name], self._count(place)
        kind = np.float64 if spec.floating else np.int64
        last = place is self.placeholders[-1] and self.literals[-1].strip(" \t") == ""
        words = re.split(_SEPARATOR, text)
        if count > 1:  # one number has no repeat count
            words = [word for part in words for word in repeated(part, count + 1)]
        try:
            if (
                len(words) != count
                or THOUSANDS.search(text)
                or (stuck and not (last and ENDS.fullmatch(stuck)))
            ):
                raise ValueError
            return np.array([number(word, spec.floating) for word in words], kind)
        except (ValueError, OverflowError):
            form = ("a number" if spec.floating else "an integer") if count == 1 else f"{count} numbers"
            raise ValueError(
                f"{self.where}: expected {form} for {{{place.name}}}, got {_short(text + stuck)}. What is "
                "no part of a number, such as a unit, belongs into the template; commas and letters in "
                "numbers do not."
            ) from None

    def _count(self, place: Placeholder) -> int:
        """Return how many numbers a placeholder stands for."""
        return 1 if place.index is not None else int(np.prod(self.specs[place.name].shape, dtype=int))

    def _refuse_more(self, match: Match) -> None:
        """Refuse a line that goes on with numbers, or with anything, that the template has no place for.

        Raises:
            ValueError: the message has the surplus.
        """
        for index, place in enumerate(self.placeholders):
            start, end = match.spans[index]
            more_after = self._ends_line(index) and _MORE_AFTER.match(line_after(match.text, end))
            more_before = self._begins_line(index) and _MORE_BEFORE.search(line_before(match.text, 0, start))
            if more_after or more_before:
                where = "come before on the same line"
                if more_after:
                    where = f"follow on the same line: {more_after[1]}"
                raise ValueError(
                    f"{self.where}: expected {self._wanted(place)}, but more {where}. Correct the shape, or "
                    f"what the program writes; for one of many numbers on a line give all of them a "
                    f"placeholder, {_OR_FUNCTION}."
                )
        self._refuse_longer(match)
        end, last = self.literals[-1], self.placeholders[-1]
        remainder = line_after(match.text, match.end).strip()
        if remainder and "\n" in end[len(end.rstrip()) :]:
            raise ValueError(
                f"{self.where}: expected the line to end where the template does, got {_short(remainder)} "
                "behind it. Write it in the template too, or leave out the line end at the template's end."
            )
        if not end.strip() and is_scaled(remainder):
            unit = _short(remainder.split()[0].rstrip(".,;:"))
            raise ValueError(
                f"{self.where}: expected a number in a unit that the template names, got {unit} behind it. "
                f"Write the unit into the template, {{{last.name}}} {unit[1:-1]}: then a number in another "
                "unit fails its row."
            )

    def _refuse_longer(self, match: Match) -> None:
        """Refuse numbers at the template's end that go on in the text, or have a number of another line.

        Raises:
            ValueError: the message has the surplus.
        """
        if self.literals[-1].strip():
            return
        text, (start, end), place = match.text, match.spans[-1], self.placeholders[-1]
        remainder, further, literal = line_after(text, end), "", self.literals[-2]
        text_before, lines, many = literal.rstrip(), "\n" in text[start:end], self._count(place) > 1
        if many and text_before[-1:] in _CLOSING:  # a bracket that the template opens and does not close
            closed = re.compile(rf"\s*[,;]?\s*{re.escape(_CLOSING[text_before[-1]])}").match(text, end)
            further = "" if closed else text[end : end + SEEN].strip() or "the end of the text"
        elif lines and not re.fullmatch(r"[\s,;]*[\])}>\"']*[\s,;]*", remainder):
            further = remainder  # words, whose line its first numbers may be
        elif (
            re.fullmatch(r"[\s,;]*(?:[&\\]|\.{3})?\s*", remainder)
            and (lines or text_before)
            and (many or "\n" in literal)
        ):
            further = next_row(text, end, self.text, lines)
        if further:
            raise ValueError(
                f"{self.where}: expected {self._wanted(place)}, and no more behind them, got "
                f"{_short(further)}. Correct the shape, write what follows into the template, {_OR_FUNCTION}."
            )

    def _wanted(self, place: Placeholder) -> str:
        """The numbers of a placeholder, in words."""
        shape = self.specs[place.name].shape
        return f"{counted(self._count(place), 'number')} for {{{place.name}}}, of shape {shape}"

    def _ends_line(self, index: int) -> bool:
        """Say whether the template has nothing after that placeholder on its line."""
        return not "{}".join(self.literals[index + 1 :]).partition("\n")[0].strip()

    def _begins_line(self, index: int) -> bool:
        """Say whether the template has nothing before that placeholder on its line."""
        return not "{}".join(self.literals[: index + 1]).rpartition("\n")[2].strip()

    def _missing(self, text: str, astray: Match | None) -> str:
        """Name the part of the template that a text lacks, if the text does not match it."""
        has = " ".join(text.split())
        if not has:
            return "The text is empty: does the program write to another file?"
        words = [" ".join(literal.split()) for literal in self.literals]
        begins = f"the text begins with {_short(has)}"
        for word in words:
            if word not in has:
                return f"There is no {word!r} in it: {begins}."
        if astray is not None:
            line = line_before(text, 0, astray.start) + text[astray.start : astray.end]
            mend = "Write the template from where the line begins."
            return f"It begins in mid-line only, in {_short(line)}. {mend}"
        return f"Its words are there, but not in this order with nothing but the numbers between: {begins}."

    def _try(self, place: Placeholder, written: str) -> None:
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
    for file, text in by_name(where, templates).items():
        name = checked_name(where, file)
        template = by_file[name] = template_of(f"{where}, {name!r}", text, specs)
        if not template.names():
            raise ConfigurationError(
                f"{template.where}: expected a placeholder such as {{{specs[0].name}}}, found none. "
                f"{unknown([template.text], specs)}Name an array in braces; give a file of your own as a "
                "Path."
            )
    return by_file


def template_of(where: str, text: str | os.PathLike[str], specs: Sequence[ArraySpec]) -> Template:
    """A template, from its text or from the path of a file that has it, which is read now.

    Raises:
        ConfigurationError: there is no such file, or the text has a wrong placeholder.
    """
    return Template(where, text if isinstance(text, str) else text_of(existing(where, text)), specs)


def _short(text: str) -> str:
    """The beginning of a text, for a message."""
    return repr(textwrap.shorten(text[: 10 * SEEN], 80, placeholder=" ..."))


def unknown(texts: Sequence[str], specs: Sequence[ArraySpec]) -> str:
    """A sentence on the first placeholder in the texts that names no array, such as a misspelt one; or ""."""
    names = [spec.name for spec in specs]
    placeholders = (name for text in texts for name in _PLACEHOLDER.findall(text))
    odd = next((name for name in placeholders if name not in names), None)
    return "" if odd is None else f"There is {{{odd}}}, which names no array. {nearest(odd, names)} "
