"""Checks of what a client is made with: addresses, a time to wait, a token, a model's settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from blackbox.adapters.um_bridge.protocol import to_text
from blackbox.errors import ConfigurationError


def check_token(owner: str, token: object) -> None:
    """Refuse a bearer token that no header can carry (RFC 6750, section 2.1)."""
    if token is None or (isinstance(token, str) and re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token)):
        return
    # The token itself stays out of messages, which end up in logs.
    raise ConfigurationError(
        f"{owner}, token: expected letters, digits and any of -._~+/ (and = at the end), got something else. "
        "Make one with secrets.token_urlsafe()."
    )


def addresses(urls: object) -> tuple[str, ...]:
    """The addresses of one server or several, without a slash at the end."""
    found = tuple(urls) if isinstance(urls, Sequence) and not isinstance(urls, str) else (urls,)
    if not found:
        raise ConfigurationError("UmBridge, urls: expected at least one address, got none. Give one.")
    for url in found:
        if not isinstance(url, str):
            raise ConfigurationError(
                f"UmBridge, urls: expected texts, got {url!r}. Write 'http://HOST:PORT'."
            )
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(
                f"UmBridge, urls: expected addresses such as 'http://localhost:4242', got {url!r}. Mend it."
            )
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError(
                f"UmBridge, urls: expected no password in the address of {parts.hostname}, got one. "
                "Take it out; a token goes in token=."
            )
    return tuple(str(url).rstrip("/") for url in found)


def check_timeout(timeout: object) -> None:
    """Refuse what is no time to wait."""
    if timeout is None:
        return
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < math.inf:
        raise ConfigurationError(
            f"UmBridge, timeout: expected seconds > 0, or None, got {timeout!r}. None waits without end."
        )


def checked_config(config: object) -> dict[str, Any]:
    """A model's settings, which JSON can hold."""
    mend = "Use finite numbers, strings, lists and dictionaries with strings for keys."
    if not isinstance(config, Mapping | None):
        raise ConfigurationError(f"UmBridge, config: expected a dictionary, got {config!r}. {mend}")
    settings = dict(config or {})
    try:
        json.dumps(settings, allow_nan=False)  # where orjson would send null
        to_text(settings)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"UmBridge, config: expected settings that JSON can hold, got others ({error}). {mend}"
        ) from None
    return settings
