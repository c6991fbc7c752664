"""What servers say of their model before it is asked for a row: its name, what it can do, its sizes."""

from __future__ import annotations

import math
from typing import Any

from blackbox.adapters.um_bridge.connection import Connection
from blackbox.adapters.um_bridge.errors import ServerError
from blackbox.adapters.um_bridge.protocol import VERSION
from blackbox.adapters.um_bridge.servers import Servers
from blackbox.errors import ConfigurationError

Description = tuple[str, frozenset[str], dict[str, tuple[int, ...]]]


def agreed(servers: Servers, name: str | None, config: dict[str, Any]) -> Description:
    """Name, supported endpoints and sizes of the model, the same on all servers.

    Args:
        servers: all of them are asked.
        name: of the model; None where there is only one.
        config: its settings, on which the sizes may hang.

    Raises:
        ConfigurationError: there is no such model, or the servers differ in it.
        ServerError: what a server says makes no sense.
    """
    found = [(c.url, _described(c, name, config)) for c in servers.first_of_each()]
    first_url, first = found[0]
    for url, other in found[1:]:
        if other != first:
            raise ConfigurationError(
                f"UmBridge: expected {url} to serve the same model as {first_url}, {first}, got {other}. "
                "Give the addresses of equal servers."
            )
    return first


def _described(server: Connection, name: str | None, config: dict[str, Any]) -> Description:
    info = server.ask("/Info")
    version, models = info.get("protocolVersion"), info.get("models")
    if version not in (VERSION, str(VERSION)) or not isinstance(models, list) or not models:
        raise ServerError(
            f"{server.url}/Info: expected protocol {VERSION} and a list of models, got {version!r} and "
            f"{models!r}. Look whether it is a UM-Bridge server, and how old it is."
        )
    if name is None and len(models) == 1:
        name = str(models[0])
    if name is None or name not in models:
        raise ConfigurationError(
            f"UmBridge, name: expected a model of {server.url}, got {name!r}. It has {models}."
        )
    support = server.ask("/ModelInfo", {"name": name}).get("support")
    supports = frozenset(kind for kind, can in support.items() if can) if isinstance(support, dict) else None
    if not supports or "Evaluate" not in supports:
        raise ConfigurationError(
            f"UmBridge, name: expected a model that supports Evaluate, got {name!r} of {server.url}, which "
            "does not. Ask for another."
        )
    sizes = {}
    for kind, path in (("input", "/InputSizes"), ("output", "/OutputSizes")):
        sizes[kind] = _sizes(server, path, server.ask(path, {"name": name, "config": config}), f"{kind}Sizes")
    return name, supports, sizes


def _sizes(server: Connection, path: str, answer: dict[str, Any], key: str) -> tuple[int, ...]:
    sizes = answer.get(key)
    if not isinstance(sizes, list) or not sizes or not all(map(_is_size, sizes)):
        raise ServerError(
            f"{server.url}{path}: expected {key} to be a list of whole numbers >= 1, got {sizes!r}. "
            "Mend the model, or its config."
        )
    return tuple(int(size) for size in sizes)


def _is_size(number: object) -> bool:
    return isinstance(number, int | float) and 1 <= number < math.inf and number == int(number)
