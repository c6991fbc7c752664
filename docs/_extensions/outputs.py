"""Warnings in the output of a page's blocks, without the kernel's own files: 'line 36: TangentWarning'."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx

_PLACE = re.compile(r"^\S*/ipykernel_\d+/\d+\.py:(\d+): ", re.MULTILINE)


def process(_: Sphinx, page: nodes.document) -> None:
    """Name the line of the block that warned alone: its file was the kernel's, on the machine that built."""
    for block in page.findall(nodes.literal_block):
        text = _PLACE.sub(r"line \1: ", block.astext())
        if text != block.astext():
            block.rawsource, block[:] = text, [nodes.Text(text)]
