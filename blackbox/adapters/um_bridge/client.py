"""`UmBridge`: a model behind a UM-Bridge server, or several of them, as a black box."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from blackbox.adapters.um_bridge.connection import Connection
from blackbox.adapters.um_bridge.endpoint import Derivative, Endpoint
from blackbox.adapters.um_bridge.errors import ServerError
from blackbox.adapters.um_bridge.protocol import VERSION, to_text
from blackbox.adapters.um_bridge.servers import Servers
from blackbox.errors import ConfigurationError
from blackbox.failures import Policy
from blackbox.spec import ArraySpec


class UmBridge(Endpoint):
    """A model of any UM-Bridge server (protocol 1.0) as a black box.

        box = UmBridge("http://localhost:4242", "posterior")
        box = UmBridge(["http://node1:4242", "http://node2:4242"], "forward", {"level": 2}, failures="keep")

    Its vectors are the inputs `input_0`, `input_1`, ... and outputs `output_0`, ..., with the sizes that
    the server states. A row is one request. Rows are spread over the servers, each taking the next row
    when it is done with one; one that cannot be reached is left alone for a minute if there are others.
    What is no answer (an error of the server, wrong sizes, no JSON, a lost connection, a timeout) is a
    failed row, and so is one with NaN. A request is sent twice only where a kept connection broke before
    anything came back.

    Connections are kept between calls. A pickled box has addresses and token, and opens its own.

    Args:
        urls: of one server, or of several that serve the same model.
        name: of the model; None where the server has only one.
        config: the model's settings, sent with every request.
        timeout: seconds for one answer; None waits as long as it takes.
        token: sent as a bearer token. Over plain http, others on the way can read it.
        connections: requests that each server gets at a time. More than one for a server that works on
            several, or for a load balancer.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting makes no sense, or the servers have no such model or differ in it.
        UnreachableError, NoAnswerError, ServerError: asking a server for its sizes failed.
        MissingExtraError: the extra "umbridge" is not installed.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = 600.0,
        token: str | None = None,
        connections: int = 1,
        failures: Policy | None = None,
    ) -> None:
        addresses = _addresses(urls)
        _check_settings(timeout, connections)
        check_token("UmBridge", token)
        self.config = _checked_config(config)
        servers = Servers(addresses, timeout, token, connections)
        try:
            self.name, self.supports, sizes = _agreed(servers, name, self.config)
        except BaseException:
            servers.close()
            raise
        message = {"name": self.name, "config": self.config}
        inputs, outputs = (_specs(kind, sizes[kind]) for kind in ("input", "output"))
        super().__init__(servers, "/Evaluate", message, inputs, outputs, failures)

    def gradient(self, out_wrt: int = 0, in_wrt: int = 0) -> Endpoint:
        """The server's `/Gradient` as a black box: `(*inputs, sens) -> sens^T d output / d input`.

        Args:
            out_wrt: which output, whose size `sens` has.
            in_wrt: which input, whose size the answer has.

        Raises:
            ConfigurationError: the server has no gradients, or no such input or output.
        """
        sizes = (self._size("output", out_wrt), self._size("input", in_wrt))
        return self._derivative(
            "Gradient", {"outWrt": out_wrt, "inWrt": in_wrt}, {"sens": sizes[0]}, sizes[1]
        )

    def apply_jacobian(self, out_wrt: int = 0, in_wrt: int = 0) -> Endpoint:
        """The server's `/ApplyJacobian` as a black box: `(*inputs, vec) -> (d output / d input) vec`.

        Args:
            out_wrt: which output, whose size the answer has.
            in_wrt: which input, whose size `vec` has.

        Raises:
            ConfigurationError: as of `gradient`.
        """
        sizes = (self._size("output", out_wrt), self._size("input", in_wrt))
        where = {"outWrt": out_wrt, "inWrt": in_wrt}
        return self._derivative("ApplyJacobian", where, {"vec": sizes[1]}, sizes[0])

    def apply_hessian(self, out_wrt: int = 0, in_wrt1: int = 0, in_wrt2: int = 0) -> Endpoint:
        """The server's `/ApplyHessian`: `(*inputs, sens, vec) -> (d2 sens^T output / d input1 d input2) vec`.

        Args:
            out_wrt: which output, whose size `sens` has.
            in_wrt1: which input, whose size the answer has.
            in_wrt2: which input, whose size `vec` has.

        Raises:
            ConfigurationError: as of `gradient`.
        """
        where = {"outWrt": out_wrt, "inWrt1": in_wrt1, "inWrt2": in_wrt2}
        vectors = {"sens": self._size("output", out_wrt), "vec": self._size("input", in_wrt2)}
        return self._derivative("ApplyHessian", where, vectors, self._size("input", in_wrt1))

    def close(self) -> None:
        """Close the connections and end the threads. Garbage collection does so too."""
        self._servers.close()

    def __enter__(self) -> Self:
        """Nothing more: for `with UmBridge(...) as box`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _size(self, kind: str, place: int) -> int:
        specs = self.inputs if kind == "input" else self.outputs
        if not 0 <= place < len(specs):
            raise ConfigurationError(
                f"{self!r}, {kind}: expected a number from 0 to {len(specs) - 1}, got {place}. "
                f"The model's {kind}s are {', '.join(spec.name for spec in specs)}."
            )
        return specs[place].shape[0]

    def _derivative(self, kind: str, where: dict[str, int], vectors: dict[str, int], size: int) -> Endpoint:
        if kind not in self.supports:
            raise ConfigurationError(
                f"{self!r}: expected a server that supports {kind}, got one that supports "
                f"{', '.join(sorted(self.supports))}. Estimate it with zo.differentiable."
            )
        extra = tuple(ArraySpec(name, (length,)) for name, length in vectors.items())
        return Derivative(
            self._servers,
            f"/{kind}",
            self._message | where,
            self.inputs + extra,
            (ArraySpec("derivative", (size,)),),
            self.failures,
            vectors=tuple(vectors),
        )

    def __repr__(self) -> str:
        """Addresses and name; never the token."""
        urls = self._servers.urls
        shown = repr(urls[0]) if len(urls) == 1 else f"[{urls[0]!r}, ... {len(urls)} of them]"
        return f"UmBridge({shown}, {self.name!r})"


def check_token(owner: str, token: object) -> None:
    """Refuse a bearer token that no header can carry (RFC 6750, section 2.1)."""
    if token is None or (isinstance(token, str) and re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token)):
        return
    # The token itself stays out of messages, which end up in logs.
    raise ConfigurationError(
        f"{owner}, token: expected letters, digits and any of -._~+/ (and = at the end), got something else. "
        "Make one with secrets.token_urlsafe()."
    )


def _addresses(urls: str | Sequence[str]) -> tuple[str, ...]:
    addresses = (urls,) if isinstance(urls, str) else tuple(urls)
    if not addresses:
        raise ConfigurationError("UmBridge, urls: expected at least one address, got none. Give one.")
    for url in addresses:
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
    return tuple(url.rstrip("/") for url in addresses)


def _check_settings(timeout: float | None, connections: int) -> None:
    if timeout is not None and not (0 < timeout < math.inf):
        raise ConfigurationError(
            f"UmBridge, timeout: expected seconds > 0, or None, got {timeout!r}. None waits without end."
        )
    if not isinstance(connections, int) or isinstance(connections, bool) or connections < 1:
        raise ConfigurationError(
            f"UmBridge, connections: expected a whole number >= 1, got {connections!r}. Take 1."
        )


def _checked_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    settings = dict(config or {})
    try:
        to_text(settings)
    except TypeError as error:
        raise ConfigurationError(
            f"UmBridge, config: expected settings that JSON can hold, got others ({error}). "
            "Use numbers, strings, lists and dictionaries with strings for keys."
        ) from None
    return settings


def _agreed(
    servers: Servers, name: str | None, config: dict[str, Any]
) -> tuple[str, frozenset[str], dict[str, tuple[int, ...]]]:
    """Name, supported endpoints and sizes of the model, the same on all servers."""
    found = [(c.url, _described(c, name, config)) for c in servers.first_of_each()]
    first_url, first = found[0]
    for url, other in found[1:]:
        if other != first:
            raise ConfigurationError(
                f"UmBridge: expected {url} to serve the same model as {first_url}, {first}, got {other}. "
                "Give the addresses of equal servers."
            )
    return first


def _described(
    server: Connection, name: str | None, config: dict[str, Any]
) -> tuple[str, frozenset[str], dict[str, tuple[int, ...]]]:
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


def _specs(kind: str, sizes: tuple[int, ...]) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(f"{kind}_{place}", (size,)) for place, size in enumerate(sizes))
