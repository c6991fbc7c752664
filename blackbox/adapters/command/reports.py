"""Beginnings of reports in a text of several, and a check for a report behind the last with numbers."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from blackbox.adapters.command.numbers import LIKE, REPEATED, RUN_TOGETHER, is_number

SEEN = 200  # characters in front of a match that are looked at: a line may have a million of matches
_SIGNS = ",;:|)]}>\"'=?"  # behind a word, such as a prompt, in front of a template in mid-line
_MARKS = re.compile(r"[\[({<\"'`,;|\s]*")  # these are no words: they come again anywhere
# what stands for a number that there is not
_NONE = re.compile(r"(?i)[-?]{1,3}|n/?a|none|null|nil|undefined|diverged|failed|error|#[\w/]+[!?]?")
_RULE = re.compile(r"[-=_+|~.\s]{3,}")  # a line that is drawn
_SEVERAL = re.compile(rf"\*{{2,}}|{REPEATED}|{RUN_TOGETHER.pattern}")  # numbers, beside one alone
Begins = Callable[[str, str], bool]  # whether a report does so between what is before and behind on the line


def may_begin(literal: str, before: str) -> bool:
    """Say whether a template may begin on a line behind that text: not within a word, nor behind one.

    Args:
        literal: the template up to its first placeholder.
        before: the line up to there, or its last `SEEN` characters.
    """
    words = before.split()
    if not words:
        return True
    if "\n" in literal[: len(literal) - len(literal.lstrip())]:  # only where a line begins
        return False
    if literal.strip() and not re.match(r"\s*\w", literal):  # with a sign in front, such as "= {y}"
        return True
    if re.search(r"[\w.+-]$", before):
        return False
    return words[-1][-1] in _SIGNS or is_number(words[-1]) or not re.search(r"[^\W\d_]", words[-1])


def later_report(literals: Sequence[str], text: str, end: int, count: int) -> str:
    """The line of a report behind the last one with numbers, which ends at `end`; "" if there is none.

    It is a line with the template's words again, with any white space between them. It has all words in front
    of the first number, or their first line alone (a title), or a further line's words without a number
    behind them. For a template without words, it is a line with as many entries, some of them "--", "N/A" or
    the like.

    Args:
        literals: the literal parts of the template.
        text: the whole text.
        end: the end of the last match.
        count: how many numbers the template has.
    """
    places = [
        place for pattern, begins in _beginnings(literals) for place in _first(pattern, text, end, begins)
    ]
    if not any(re.search(r"\w", literal) for literal in literals):
        places += itertools.islice(_lines_of_none(text, end, count), 1)
    if not places:
        return ""
    return (line_before(text, end, min(places)) + line_after(text, min(places))).strip()


def words_again(literals: Sequence[str], text: str, start: int, end: int) -> str:
    """The words in front of a number that stand in front of another one on its line, too; "" if none do.

    Args:
        literals: the literal parts of the template.
        text: the whole text.
        start: the start of the last match.
        end: the end of the last match.
    """
    span_before = text.rfind("\n", 0, start) + 1, start
    span_after = end, end + len(line_after(text, end))
    for index, literal in enumerate(literals[:-1]):
        words = literal.rpartition("\n")[2].strip()
        if _MARKS.fullmatch(words) or (index and not re.search(r"\w", words)):
            continue
        pattern = re.compile(rf"{_loose(words).pattern}\s*+(?={LIKE})")
        on_first = "\n" not in "".join(literals[: index + 1]).lstrip()
        on_last = "\n" not in "".join(literals[index + 1 :]).rstrip()
        for first, last in [span_before] * on_first + [span_after] * on_last:
            for match in pattern.finditer(text, first, last):
                if may_begin(words, line_before(text, max(first, match.start() - SEEN), match.start())):
                    return words
    return ""


def next_row(text: str, end: int, template: str, lines: bool) -> str:
    """The next line that is not empty and no comment, if numbers seem to go on in it; else "".

    Args:
        text: the whole text.
        end: the end of the numbers, on their line.
        template: the template that reads them; a line that begins with a sign like one of its own lines is no
            comment.
        lines: whether the numbers are on several lines.
    """
    comments = tuple(sign for sign in "#!%" if not re.search(rf"(?m)^\s*{sign}", template))
    for line in re.compile(r"(?<=\n)[^\n]+").finditer(text, end):
        bare = line[0].strip()
        if not bare or bare.startswith(comments) or _RULE.fullmatch(bare):
            continue
        words = [word for word in re.split(r"[\s,;|\[\](){}<>\"':]+", bare[:10_000]) if word]
        has = [is_number(word) or _SEVERAL.fullmatch(word) is not None for word in words]
        none = [word for word, is_one in zip(words, has, strict=True) if not is_one]
        some = any(has) and all(map(_NONE.fullmatch, none))
        labelled = lines and len(words) > 2 and all(has[1:]) and re.search(r"\d", words[0])
        return bare if some or (words and all(has[:2])) or (lines and any(has[:1])) or labelled else ""
    return ""


def _lines_of_none(text: str, end: int, count: int) -> Iterator[int]:
    """Find the lines that have so many numbers or stand-ins for them, and not only numbers."""
    for line in re.compile(r"[^\n]+").finditer(text, end):
        words = re.sub(r"[,;\[\](){}<>\"']", " ", line[0][:10_000]).split()
        none = [word for word in words if _NONE.fullmatch(word)]
        if none and len(words) == count and all(map(is_number, set(words) - set(none))):
            yield line.start()


def _beginnings(literals: Sequence[str]) -> Iterator[tuple[re.Pattern[str], Begins]]:
    """The words of a report in front of its numbers, and where on a line they are its words."""
    first = True
    for index, literal in enumerate(literals):
        words = literal.strip()
        if not words or _MARKS.fullmatch(words) or (index + 1 == len(literals) and not first):
            continue
        title, last = words.splitlines()[0].strip(), words.splitlines()[-1].strip()
        if index == 0:
            yield _loose(words), _begins_report(literal, words)
            if title != words and re.search(r"[^\W\d_]", title):
                yield _loose(title), _is_whole_line
        elif "\n" in literal and re.search(r"[^\W\d_]", last):
            yield _loose(last), _begins_line_without_number(last)
        elif first:  # the report begins with a number
            yield _loose(words), _follows_number
        first = False


def _begins_report(literal: str, words: str) -> Begins:
    return lambda before, after: may_begin(literal, before) and _is_of_report(words, after)


def _follows_number(before: str, after: str) -> bool:
    word = re.split(r"[\s,;]+", before.strip())[-1]
    return is_number(word) or _NONE.fullmatch(word) is not None


def _is_whole_line(before: str, after: str) -> bool:
    return not before.strip() and not after.strip()


def _begins_line_without_number(words: str) -> Begins:
    number = re.compile(rf"\s*{LIKE}")
    return lambda before, after: (
        not before.strip() and _is_of_report(words, after) and number.match(after) is None
    )


def _is_of_report(words: str, after: str) -> bool:
    """Say whether the text behind words on their line may be a report's, and not the rest of a sentence.

    Behind a sign, such as "Cd =", all may be; behind a word a number, one word, or nothing.
    """
    if not re.search(r"\w$", words):
        return True
    return len(after.split()) <= 1 or re.match(rf"\s*{LIKE}", after) is not None


def _loose(words: str) -> re.Pattern[str]:
    """Words with any white space between them, and also with none beside a sign: "Cd=" for "Cd ="."""
    tokens = re.findall(r"\w+|[^\w\s]", words)
    pattern = re.escape(tokens[0])
    for token, following in itertools.pairwise(tokens):
        pattern += r"\s+" if re.search(r"\w$", token) and re.match(r"\w", following) else r"\s*"
        pattern += re.escape(following)
    return re.compile(pattern + (r"(?!\w)" if re.search(r"\w$", words) else ""))


def _first(pattern: re.Pattern[str], text: str, start: int, begins: Begins) -> list[int]:
    """The first place from a start on where a pattern matches and a report begins, if there is one."""
    for match in pattern.finditer(text, start):
        text_before = line_before(text, max(0, match.start() - SEEN), match.start())
        if begins(text_before, line_after(text, match.end(), SEEN)):
            return [match.start()]
    return []


def line_before(text: str, start: int, place: int) -> str:
    """Return the text before a place on its line, from a start on that may lie within the line."""
    return text[max(start - 1, text.rfind("\n", start, place)) + 1 : place]


def line_after(text: str, place: int, most: int = sys.maxsize) -> str:
    """Return the text behind a place on its line, at most so many characters."""
    end = text.find("\n", place, place + most)
    return text[place : place + most if end < 0 else end]
