"""`UmBridge`: a model behind a UM-Bridge server, or several of them, as a black box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from blackbox.adapters.um_bridge.description import agreed
from blackbox.adapters.um_bridge.endpoint import Derivative, Endpoint
from blackbox.adapters.um_bridge.servers import Servers
from blackbox.adapters.um_bridge.settings import addresses, check_timeout, check_token, checked_config
from blackbox.checks import check_count
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
    anything came back: nearly always the server closed it for being idle, and has not seen the request. It
    is counted once. Where each request is billed say `resend=False`: the row has then failed, and
    `Retrying` around a `Budgeted` asks again within the budget.

    Connections are kept between calls. A pickled box has addresses and token, and opens its own.

    Args:
        urls: of one server, or of several that serve the same model.
        name: of the model; None where the server has only one.
        config: the model's settings, sent with every request.
        timeout: seconds for one answer; None waits as long as it takes.
        token: sent as a bearer token. Over plain http, others on the way can read it.
        connections: requests that each server gets at a time. More than one for a server that works on
            several, or for a load balancer.
        resend: False where no request may reach a server twice without being counted twice.
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
        resend: bool = True,
        failures: Policy | None = None,
    ) -> None:
        places = addresses(urls)
        check_timeout(timeout)
        check_count("UmBridge", "connections", connections)
        check_token("UmBridge", token)
        self.config = checked_config(config)
        servers = Servers(places, timeout, token, connections, resend)
        try:
            self.name, self.supports, sizes = agreed(servers, name, self.config)
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


def _specs(kind: str, sizes: tuple[int, ...]) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(f"{kind}_{place}", (size,)) for place, size in enumerate(sizes))
