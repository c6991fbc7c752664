"""Boxes around pictures of pages, in which one that is wider than a phone scrolls (`_static/site.css`)."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx

CLASS = "picture"


def process(_: Sphinx, page: nodes.document) -> None:
    """Give each picture that stands alone a box; one with a caption has it, its figure."""
    for image in list(page.findall(nodes.image)):
        block = image.parent if isinstance(image.parent, nodes.paragraph) else image
        alone = block is image or len(block) == 1
        section = block.parent
        if alone and isinstance(section, nodes.section):
            section[section.index(block)] = box = nodes.container(classes=[CLASS])
            box += image
