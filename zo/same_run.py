"""What a saved state must share with the object that is to go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zo.errors import ConfigurationError


def refuse_other_run(owner: str, own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse the state of a run that was made with other settings.

    Args:
        owner: the class of the object, for the message.
        own: its settings by name.
        saved: those of the state; what earlier versions did not note is not compared.

    Raises:
        ConfigurationError: a setting is another.
    """
    for name, value in own.items():
        other = saved.get(name, value)
        if other != value:
            raise ConfigurationError(
                f"{owner}: expected the state of a run with {name}={value}, got one with {other}. Make it "
                "with that one, or start anew."
            )


def same_chunk(owner: str, own: int | None, saved: int | None) -> int | None:
    """The chunk to go on with: None, of either, leaves it to the other.

    Raises:
        ConfigurationError: they are two.
    """
    if None not in (own, saved) and own != saved:
        raise ConfigurationError(
            f"{owner}: expected the state of a run with chunk={own}, got one with {saved}. Leave "
            "chunk out to go on with that one."
        )
    return own if saved is None else saved
