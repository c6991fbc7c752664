"""Moved to `tasks.configuration.code` in version 0.3.0; its names are found here, too."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(import_module("tasks.configuration.code"), name)
