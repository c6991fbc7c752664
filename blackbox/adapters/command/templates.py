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
from blackbox.adapters.command.numbers import is_number, is_scaled_unit, number, repeats_written_out, text_of
from blackbox.adapters.command.reports import (
    LIKE,
    NUMBER,
    SEEN,
    later_report,
    line_after,
    line_before,
    line_below,
    may_begin,
)
from blackbox.checks import nearest
from blackbox.errors import ConfigurationError
from blackbox.spec import ArraySpec
from blackbox.words import counted

_SEPARATOR = r"[\s,;]+"
_MORE_AFTER = re.compile(rf"{_SEPARATOR}({NUMBER})(?![\w.])")  # in the rest of a line
_MORE_BEFORE = re.compile(rf"(?:^|[\s,;])(?:{NUMBER})[\s,;]+$")  # in the beginning of a line
# behind a template's last number, such as JSON's or XML's; not 279,936.5 nor 279'936.5
_ENDS = re.compile(r"(?:[,;\"'](?![-+.\w])|[)\]}<|]).*", re.DOTALL)
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
        """The arrays by name, read where the text looks like the template, the last time.

        A run of white space stands for any other, and for none between a sign and a number; in front of a
        number only white space with a line end stands for one. A template begins
        where a line does, or on a line behind a number or a sign such as a comma, not behind a word; with a
        line end in front of it, only where a line begins. A number ends at white space, at the text's end, at
        the template's next words, or behind the last one at a bracket, a quote, or a comma that no digit or
        letter follows. Words may follow on the line; numbers not, nor a unit with a prefix such as mm, and
        nothing where the template ends in a line end.

        The last report counts, also if it is none: where the words in front of a number come again behind the
        last match, an older number is not taken for theirs.

        Raises:
            ValueError: nothing in the text looks like it; where it does so the last time, there is something
                else than a number, or more on the line than the template has a place for; or its words come
                again behind that, without its numbers.
        """
        most = max((self._count(place) for place in self.placeholders), default=1)
        text = text if most == 1 else repeats_written_out(text, most + 1)
        match = self._last(text)
        if match is None:
            raise ValueError(
                f"{self.where}: expected text like the template, found none. {self._missing(text)}"
            )
        self._refuse_later(match)
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        numbers = [
            self._numbers(place, match, 2 * index + 1) for index, place in enumerate(self.placeholders)
        ]
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
            asked = [place.index for place in self.placeholders if place.name == name]
            indices = itertools.product(*map(range, self.specs[name].shape))
            if asked != [None] and sorted(asked, key=str) != sorted(indices, key=str):
                raise ConfigurationError(
                    f"{self.where}: expected {{{name}}} once, or each of its numbers once, got {len(asked)} "
                    f"placeholders for shape {self.specs[name].shape}. Name each number of it once."
                )

    def _last(self, text: str) -> re.Match[str] | None:
        """Where the text looks like the template, the last time."""
        pattern, last, start = self._pattern(), None, 0
        while match := pattern.search(text, start):
            before = line_before(text, max(0, match.start() - SEEN), match.start())
            begins = may_begin(str(self.parts[0]), before)
            last, start = (match, match.end()) if begins else (last, match.start() + 1)
        return last

    def _refuse_later(self, match: re.Match[str]) -> None:
        """Refuse a text in which a report comes behind the last one that has numbers.

        Raises:
            ValueError: with the line where it does.
        """
        literals = [part if isinstance(part, str) else None for part in self.parts]
        count = sum(map(self._count, self.placeholders))
        if line := later_report(literals, match.string, match.end(), count):
            raise ValueError(
                f"{self.where}: expected numbers in the last report that begins like the template, got "
                f"{textwrap.shorten(line, 80, placeholder=' ...')!r} behind the last that has them. Those "
                "are of an earlier report. If that line is none, write more words in front of the number, "
                "or take (file, function)."
            )

    def _numbers(self, place: Placeholder, match: re.Match[str], group: int) -> np.ndarray[Any, Any]:
        """The numbers of a placeholder, from the group of its match; the next group is what is stuck to them.

        Raises:
            ValueError: there is something else, which the message has.
        """
        spec, text, stuck = self.specs[place.name], match[group], match[group + 1]
        kind = np.float64 if spec.floating else np.int64
        last = place is self.placeholders[-1] and str(self.parts[-1]).strip(" \t") == ""
        try:
            if stuck and not (last and _ENDS.fullmatch(stuck)):
                raise ValueError
            return np.array([number(word, spec.floating) for word in re.split(_SEPARATOR, text)], kind)
        except (ValueError, OverflowError):
            count = self._count(place)
            wanted = ("a number" if spec.floating else "an integer") if count == 1 else f"{count} numbers"
            got = textwrap.shorten(text + stuck, 80, placeholder=" ...")
            raise ValueError(
                f"{self.where}: expected {wanted} for {{{place.name}}}, got {got!r}. What is no part of a "
                "number, such as a unit, belongs into the template; commas and letters in numbers do not."
            ) from None

    def _count(self, place: Placeholder) -> int:
        """How many numbers a placeholder stands for."""
        return 1 if place.index is not None else int(np.prod(self.specs[place.name].shape, dtype=int))

    def _refuse_more(self, match: re.Match[str]) -> None:
        """Refuse a line that goes on with numbers, or with anything, that the template has no place for.

        Raises:
            ValueError: with what more there is.
        """
        group = -1
        for index, part in enumerate(self.parts):
            if isinstance(part, str):
                continue
            group += 2
            count = self._count(part)
            line = line_after(match.string, match.end(group))
            after = self._ends_line(index) and _MORE_AFTER.match(line)
            line = line_before(match.string, 0, match.start(group))
            before = self._begins_line(index) and _MORE_BEFORE.search(line)
            if after or before:
                where = f"follow on the same line: {after[1]}" if after else "come before on the same line"
                raise ValueError(
                    f"{self.where}: expected {counted(count, 'number')} for {{{part.name}}}, of shape "
                    f"{self.specs[part.name].shape}, but more {where}. "
                    "Correct the shape, or what the program writes."
                )
        end, last = str(self.parts[-1]), self.placeholders[-1]
        if self._count(last) > 1 and not end.strip():
            self._refuse_longer(match, group)
        rest = line_after(match.string, match.end()).strip()
        if rest and "\n" in end[len(end.rstrip()) :]:
            rest = textwrap.shorten(rest, 80, placeholder=" ...")
            raise ValueError(
                f"{self.where}: expected the line to end where the template does, got {rest!r} behind it. "
                "Write it in the template too, or leave out the line end at the template's end."
            )
        unit = rest.split()[0].rstrip(".,;:") if rest and not end.strip() else ""
        if is_scaled_unit(unit):
            raise ValueError(
                f"{self.where}: expected a number in a unit that the template names, got {unit!r} behind it. "
                f"Write the unit into the template, {{{last.name}}} {unit}: then a number in another unit "
                "fails its row."
            )

    def _refuse_longer(self, match: re.Match[str], group: int) -> None:
        """Refuse an array at the template's end that goes on in the text, or has a number of another line.

        Raises:
            ValueError: with what more there is.
        """
        text, end, before = match.string, match.end(group), str(self.parts[-3]).rstrip()
        rest, further = line_after(text, end), ""
        if before[-1:] in _CLOSING:  # a bracket that the template opens and does not close
            closed = re.compile(rf"\s*[,;]?\s*{re.escape(_CLOSING[before[-1]])}").match(text, end)
            further = "" if closed else text[end : end + SEEN].strip() or "the end of the text"
        elif "\n" in match[group] and not re.fullmatch(r"[\s,;]*[\])}>\"']*[\s,;]*", rest):
            further = rest  # words, whose line its first numbers may be
        elif (before or "\n" in match[group]) and re.fullmatch(r"[\s,;]*", rest):
            words = [word for word in re.split(r"[\s,;\])}>\"']+", line_below(text, end)) if word]
            further = " ".join(words) if words and all(map(is_number, words)) else ""
        if further:
            place = self.placeholders[-1]
            raise ValueError(
                f"{self.where}: expected {counted(self._count(place), 'number')} for {{{place.name}}}, of "
                f"shape {self.specs[place.name].shape}, and no more behind them, got "
                f"{textwrap.shorten(further, 80, placeholder=' ...')!r}. Correct the shape, or write what "
                "follows into the template."
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
        if match := self._pattern().search(text):
            line = " ".join((line_before(text, 0, match.start()) + match[0]).split())
            return (
                f"It begins in mid-line only, in {textwrap.shorten(line, 80, placeholder=' ...')!r}. "
                "Write the template from where the line begins."
            )
        return f"Its words are there, but not in this order with nothing but the numbers between: {begins}."

    def _pattern(self) -> re.Pattern[str]:
        # white space at the ends is the template file's, not the output's
        ends = {0: str.lstrip, len(self.parts) - 1: str.rstrip}
        parts = []
        for index, part in enumerate(self.parts):
            if isinstance(part, str):
                words = re.split(r"(\s+)", ends.get(index, str)(part))
                parts.append("".join(r"\s+" if word.isspace() else re.escape(word) for word in words))
                bare = part.rstrip()
                if index + 1 < len(self.parts) and (index or bare):
                    white = r"\s" if re.search(r"[\r\n]", part[len(bare) :]) else r"[^\S\r\n]"
                    sign = re.search(r"[^\w.\s]$", bare)  # "Cd =-0.31", "Cd=  0.31"
                    least = "*" if sign else "+" if bare != part else "{0}"
                    parts[-1] = parts[-1].removesuffix(r"\s+") + white + least
                if index and index + 1 == len(self.parts) and re.search(r"\w$", bare):
                    parts.append(r"(?![\w/^*·²³])")  # m is not the beginning of mm or of m/s
                continue
            count = self._count(part)
            more = rf"(?:[^\s,;]*+{_SEPARATOR}{LIKE}){{{count - 1}}}" if count > 1 else ""
            # with what is stuck to the last number, up to the next words
            follows = any(not isinstance(rest, str) or rest.strip() for rest in self.parts[index + 1 :])
            parts.append(rf"({LIKE}{more})(\S*{'?' if follows else ''})")
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


def unknown(texts: Sequence[str], specs: Sequence[ArraySpec]) -> str:
    """A sentence on the first placeholder in the texts that names no array, such as a misspelt one; or ""."""
    names = [spec.name for spec in specs]
    written = (name for text in texts for name in _PLACEHOLDER.findall(text))
    odd = next((name for name in written if name not in names), None)
    return "" if odd is None else f"There is {{{odd}}}, which names no array. {nearest(odd, names)} "
