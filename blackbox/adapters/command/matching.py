"""The search for a template in a text: one pass, since each number is read in one way only."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from blackbox.adapters.command.numbers import LIKE, REPEATED, repeats
from blackbox.adapters.command.reports import SEEN, line_before, may_begin

_NUMBERS = rf"(?:{REPEATED}|{LIKE})"
_FIRST = re.compile(_NUMBERS)
_WORD = re.compile(rf"(?=[^\s,;])(?:({REPEATED})|({LIKE}))?+[^\s,;]*+")
_OTHER = 2**32  # more than twice what a repeat count says at most
# behind a template's last number, such as JSON's or XML's; not 279,936.5 nor 279'936.5
ENDS = re.compile(r"(?:[,;\"'](?![-+.\w])|[)\]}<|]).*", re.DOTALL)


class Match(NamedTuple):
    """A place where a text looks like a template.

    Attributes:
        text: The whole text.
        start: The place where the template's first words begin, or its first number.
        end: The place where its last words end, or its last number.
        spans: The places where the numbers of each placeholder begin and end.
        stuck: The text after each placeholder's last number without a space, up to the next words.
    """

    text: str
    start: int
    end: int
    spans: tuple[tuple[int, int], ...]
    stuck: tuple[str, ...]

    def numbers(self, place: int) -> str:
        """The text of a placeholder's numbers."""
        return self.text[slice(*self.spans[place])]


class Matcher:
    """Finds a template in texts. The work grows with the text's length, whatever the text is.

    From each place where the template may begin, numbers and words are taken one after the other, each in
    one way: nothing is tried again in other portions. Whether there are enough numbers for an array is
    looked up in a list of all words.

    Args:
        literals: the template's words, those in front of the first number first; one more than counts.
        counts: how many numbers each placeholder has.
    """

    def __init__(self, literals: Sequence[str], counts: Sequence[int]) -> None:
        """Make the patterns."""
        self._first, self._counts = literals[0], counts
        begin = _in_front(literals[0].lstrip(), first=True) or r"(?<![\w.+-])"
        self._begin = re.compile(rf"{begin}(?={LIKE})")
        self._pieces = [
            _piece(count, literals[index + 1], index + 1 == len(counts)) for index, count in enumerate(counts)
        ]
        # the first words behind a number, and how many numbers stand in front of them
        wordy = (index for index, literal in enumerate(literals) if literal.strip())
        index = next(wordy, 0)
        self._anchor = re.compile(_words(literals[index].strip())) if index else None
        self._ahead = sum(counts[:index])

    def find(self, text: str) -> tuple[Match | None, Match | None]:
        """The last match, and one that begins where a template may not, such as behind a word."""
        last = astray = anchor = None
        words = Words(text)
        start = 0
        while True:
            if self._anchor is not None:
                if anchor is None or anchor.start() < start:
                    anchor = self._anchor.search(text, start)
                if anchor is None:
                    break
                start = max(start, words.before(anchor.start(), self._ahead))
            begun = self._begin.search(text, start)
            if begun is None:
                break
            start = begun.start() + 1
            if match := self._match(text, words, begun):
                if may_begin(self._first, line_before(text, max(0, match.start - SEEN), match.start)):
                    last, start = match, _behind(match)
                else:
                    astray = astray or match
        return last, astray

    def _match(self, text: str, words: Words, begun: re.Match[str]) -> Match | None:
        place = begun.end()
        spans: list[tuple[int, int]] = []
        stuck: list[str] = []
        for count, pattern in zip(self._counts, self._pieces, strict=True):
            begin = place
            if count > 1:
                place = words.last_of(place, count)
            match = pattern.match(text, place) if place >= 0 else None
            if match is None:
                return None
            spans.append((begin, match.end(1)))
            stuck.append(match[2])
            place = match.end()
        return Match(text, begun.start(), place, tuple(spans), tuple(stuck))


class Words:
    """The words of a text, between white space, commas and semicolons; a repeat count is several numbers.

    The text is gone through once, when somebody asks.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _index(self) -> tuple[array[int], array[int]]:
        """The start of each word, and how many numbers are before it, with `_OTHER` for any other word."""
        starts, counts_before, numbers = array("q"), array("q", [0]), 0
        for match in _WORD.finditer(self._text):
            kind = match.lastindex  # of the group that it is
            numbers += 1 if kind == 2 else _OTHER if kind is None else repeats(match[1])
            starts.append(match.start())
            counts_before.append(numbers)
        return starts, counts_before

    def before(self, place: int, count: int) -> int:
        """The start of the word that so many words follow up to a place."""
        starts, _ = self._index
        word = bisect_right(starts, place) - 1 - count
        return starts[word] if word > 0 else 0

    def last_of(self, place: int, count: int) -> int:
        """The start of the last of so many numbers from a place on; -1 if there are fewer."""
        first = _FIRST.match(self._text, place)
        further = count - (repeats(first[0]) if first else count)
        if further <= 0:
            return place
        starts, until = self._index
        last_end = until[bisect_right(starts, place)] + further  # up to the next word, and beyond
        word = bisect_left(until, last_end)
        if word == len(until) or until[word] >= last_end + _OTHER // 2:
            return -1
        return starts[word - 1]


def _behind(match: Match) -> int:
    """The place to go on from behind a match, so that 1,234 is not taken for another number 234."""
    if ENDS.fullmatch(match.stuck[-1]) or not match.stuck[-1]:
        return match.end
    spaces = re.compile(r"\s").finditer(match.text, match.end)
    return next((space.start() for space in spaces), len(match.text))


def _piece(count: int, literal: str, last: bool) -> re.Pattern[str]:
    """The pattern of a placeholder's last number, what is stuck to it, and the words behind."""
    number = LIKE if count == 1 else _NUMBERS
    if last:
        bare = literal.rstrip()  # white space at the end is the template file's, not the output's
        if not bare:
            return re.compile(rf"((?>{number}))(?=(\S{{0,{SEEN}}}))")
        # m is not the beginning of mm or of m/s
        behind = _words(bare) + (r"(?![\w/^*·²³])" if re.search(r"\w$", bare) else "")
    else:
        behind = f"{_in_front(literal)}(?={LIKE})"
    # 1.0-200 is one number, but two where "-" stands in the template: there a shorter one is tried
    number = number if literal else f"(?>{number})"
    return re.compile(rf"({number})(\S{{0,{SEEN}}}?){behind}")


def _words(literal: str) -> str:
    """The pattern of words, with any white space between them."""
    words = re.split(r"(\s+)", literal)
    return "".join(r"\s++" if word.isspace() else re.escape(word) for word in words)


def _in_front(literal: str, first: bool = False) -> str:
    """The pattern of words in front of a number, and of the white space between."""
    bare = literal.rstrip()
    if first and not bare:
        return ""
    white = r"\s" if "\n" in literal[len(bare) :] else r"[^\S\n]"
    if re.search(r"[^\w.\s]$", bare):  # a sign, as in "Cd =-0.31" and "Cd=  0.31"
        return f"{_words(bare)}{white}*+"
    return _words(bare) + (f"{white}++" if bare != literal else "")
