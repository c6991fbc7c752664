"""`hyphenated`: a class's name as the command line and folders have it."""

from __future__ import annotations

import re


def hyphenated(name: str) -> str:
    """The words of a class's name in lower case: "HeatSource" is "heat-source"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower().replace("_", "-")
