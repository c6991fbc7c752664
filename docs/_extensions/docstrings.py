"""Docstrings as this project writes them, made into what Sphinx reads.

Sphinx expects reStructuredText; ours are plain text with Google's sections: a block indented below a line is
code, `|S|` and `a * b` are no markup, types are in annotations and never in "Returns:".
"""

from __future__ import annotations

import re
import sys
import typing
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util import typing as sphinx_typing

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note|Warns):$")
_SPAN = re.compile(r"(``[^`]*``|`[^`]*`)")


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's event "autodoc-process-docstring", before napoleon reads the sections."""
    made: list[str] = []
    in_section = in_code = False
    for line in lines:
        blank, indented = not line.strip(), line.startswith("    ")
        if not blank and not indented:
            in_section, in_code = bool(_SECTION.match(line)), False
        if indented and not in_section and not in_code and made and not made[-1].strip():
            made += [".. code-block:: python", ""]
            in_code = True
        made.append(line if in_code else _plain(line))
    lines[:] = made


def _plain(line: str) -> str:
    """Without markup outside of code spans."""
    if re.match(r"\s*\*{1,2}\w+:", line):  # an argument's name, which napoleon escapes
        name, colon, rest = line.partition(":")
        return name + colon + _plain(rest)
    parts = _SPAN.split(line)
    return "".join(part if i % 2 else re.sub(r"([|*])", r"\\\1", part) for i, part in enumerate(parts))


def patch() -> None:
    """Change the two places of Sphinx for which it has no setting."""
    split = GoogleDocstring._partition_field_on_colon

    def whole_sentence(self: GoogleDocstring, line: str) -> tuple[str, str, str]:
        caller = sys._getframe(1).f_code.co_name
        if caller in {"_consume_returns_section", "_consume_inline_attribute"}:
            return line, "", ""  # a colon in a sentence
        return split(self, line)

    GoogleDocstring._partition_field_on_colon = whole_sentence  # type: ignore[method-assign]

    shown = sphinx_typing.stringify_annotation

    def without_bounds(annotation: Any, *args: Any, **settings: Any) -> str:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = annotation.__origin__  # what a setting may be is in the table of kinds
        return shown(annotation, *args, **settings)

    for module in list(sys.modules.values()):
        if getattr(module, "stringify_annotation", None) is shown:
            module.stringify_annotation = without_bounds  # type: ignore[attr-defined]
