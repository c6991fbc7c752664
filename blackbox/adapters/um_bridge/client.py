"""`UmBridge`: a model behind a UM-Bridge server as a black box. A row is a request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import perf_counter
from typing import Any, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.derivative import with_derivative
from blackbox.adapters.um_bridge.connection import Connection, NoAnswerError, ServerError, UnreachableError
from blackbox.adapters.um_bridge.messages import VERSION, check_token, longest, to_text, vector
from blackbox.arrays import failed_outputs
from blackbox.checks import check_count, check_positive
from blackbox.ending import Stop, ended_by, set_stop, stopped
from blackbox.errors import ConfigurationError, NotDifferentiableError, RowFailedError
from blackbox.failures import FailedRow, Failure, Outcome, Policy
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec

_Asked = TypeVar("_Asked")
_Answered = TypeVar("_Answered")


class UmBridge(BlackBoxFunction):
    """A model of any UM-Bridge server (protocol 1.0) as a black box.

        box = UmBridge("http://localhost:4242", "posterior")
        box = UmBridge("https://cluster:4242", "forward", {"level": 2}, connections=8, failures="keep")

    The model's vectors are the inputs `input_0`, `input_1`, ... and outputs `output_0`, ..., with the sizes
    that the server states. A row is one request. Without a valid answer (an error of the server, wrong sizes,
    not JSON, which has no NaN, a lost connection, a timeout) the row has failed. No request is sent twice: if
    a server closes a kept connection at the very moment of the next request, that row has failed too, and
    `Retrying` repeats it.

    If the server is busy (status 429 or 503), `Retrying` and `RateLimited` wait as long as it asks for.
    Where the server supports `Gradient` for the model (`has_derivative`), `reference` is the box with that
    derivative.

    Connections are kept between calls, also for several threads. A pickled box has address and token, and
    opens its own connections.

    Args:
        url: address of the server; with several servers, that of a load balancer.
        name: name of the model; None if the server has only one.
        config: the model's settings, sent with every request.
        timeout: seconds for one answer; None for no limit.
        token: sent as a bearer token. Over plain http, others on the way can read it.
        connections: requests that the server gets at a time, for a server that handles several.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a setting is invalid, or the server has no such model.
        UnreachableError, NoAnswerError, ServerError: asking the server for its sizes failed.
        MissingExtraError: the extra "umbridge" is not installed.
    """

    def __init__(
        self,
        url: str,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = 600.0,
        token: str | None = None,
        connections: int = 1,
        failures: Policy | None = None,
    ) -> None:
        seconds = None if timeout is None else check_positive("UmBridge", "timeout", timeout)
        self.connections = check_count("UmBridge", "connections", connections)
        check_token("UmBridge", token)
        self._server = Connection(_address(url), seconds, token, connections)
        self.config = _checked_config(config)
        self.name, self.has_derivative = _model(self._server, name)
        self._message = {"name": self.name, "config": self.config}
        self.inputs, self.outputs = (
            _specs(self._server, self._message, kind) for kind in ("input", "output")
        )
        self._identity = to_text({"url": self._server.url, **self._message}).decode()
        super().__init__(failures=failures)

    @property
    def identity(self) -> str:
        """A cache's key for this box: address, model and settings, without the token.

        A server that moves keeps its answers with one that is set by hand.
        """
        return self._identity

    @identity.setter
    def identity(self, text: str) -> None:
        self._identity = text

    def evaluate(self, *arrays: Any) -> Any:
        """One row.

        Raises:
            ServerError: there was no answer to it.
        """
        vectors = [np.ascontiguousarray(array) for array in arrays]
        answer = self._server.ask("/Evaluate", {**self._message, "input": vectors}, longest(self.outputs))
        output = answer.get("output")
        try:
            if not isinstance(output, list) or len(output) != len(self.outputs):
                count = len(output) if isinstance(output, list) else "no list"
                raise ValueError(f"expected {len(self.outputs)} lists of numbers, got {count}")
            pairs = zip(output, self.outputs, strict=True)
            return tuple(vector(values, spec.shape[0]).astype(np.float64) for values, spec in pairs)
        except ValueError as error:
            raise ServerError(
                f"{self._server.url}/Evaluate, output: {error}. See what the model gives back."
            ) from None

    def reference(self, *arrays: Any) -> Any:
        """The box's outputs, differentiable by the server's own derivative, `Gradient`.

        For `reference` of a `tasks.Problem`, and for comparisons; its rows are not counted in the ledger. A
        row costs one request for each pair of an output at which a gradient arrives and an input that wants
        one. Servers may give differences for it, with a step of theirs: see what they say.

        Raises:
            NotDifferentiableError: the server does not support `Gradient` for the model.
            RowFailedError: from backward, where there was no valid answer.
        """
        if not self.has_derivative:
            raise NotDifferentiableError(
                f"{self!r}: expected a model that supports Gradient, got one that does not. "
                "Train without its derivative: zo.TangentGradient, or the method tangents."
            )
        return with_derivative(self, self._pull_back, arrays)

    def _pull_back(
        self, inputs: list[np.ndarray], cotangents: dict[int, np.ndarray], wanted: list[int]
    ) -> dict[int, np.ndarray]:
        limit = longest(self.inputs)
        rows = [np.ascontiguousarray(array, np.float64) for array in inputs]
        sens = {place: np.ascontiguousarray(array, np.float64) for place, array in cotangents.items()}

        def ask(row: int, into: int) -> np.ndarray:
            total = np.zeros(self.inputs[into].shape)
            for out, cotangent in sens.items():
                question = {"outWrt": out, "inWrt": into, "sens": cotangent[row]}
                message = {**self._message, **question, "input": [array[row] for array in rows]}
                try:
                    answer = self._server.ask("/Gradient", message, limit)
                    total = total + vector(answer.get("output"), len(total)).astype(np.float64)
                except (ServerError, ValueError) as error:
                    raise RowFailedError(
                        f"{self!r}, Gradient of output {out} in input {into}: {error} "
                        "See what the model does."
                    ) from error
            return total

        requests = [(row, into) for into in wanted for row in range(len(rows[0]))]
        products = self._together(lambda pair: ask(*pair), requests)
        count = len(rows[0])
        return {into: np.stack(products[at * count : (at + 1) * count]) for at, into in enumerate(wanted)}

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """One request per row; under "raise" no row is started after one that failed."""
        started, failed = perf_counter(), Event()
        on_cpu = tuple(tensor.cpu() for tensor in inputs)
        rows = list(zip(*(tensor.double().numpy() for tensor in on_cpu), strict=True))

        def ask(row: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...] | ServerError | None:
            if failed.is_set() or stopped():
                return None
            try:
                return self.evaluate(*row)
            except ServerError as error:
                if self.failures == "raise" and not self.isolates:
                    failed.set()
                error.__context__ = None  # its frames would hold the row as long as the error is kept
                return error.with_traceback(None)

        try:
            answers = self._together(ask, rows)
        finally:
            self.ledger.count(seconds=perf_counter() - started)
        self.ledger.count(rows_run=sum(not isinstance(a, UnreachableError | None) for a in answers))
        outcome = Outcome(failed_outputs(self.outputs, on_cpu))
        for row, answer in enumerate(answers):
            if isinstance(answer, ServerError):
                late = isinstance(answer, NoAnswerError)
                outcome.failed[row] = FailedRow(Failure.TIMED_OUT if late else Failure.RAISED, answer)
            elif answer is not None:
                for output, part in zip(outcome.outputs, answer, strict=True):
                    output[row] = torch.from_numpy(part)
        return outcome

    def _together(self, ask: Callable[[_Asked], _Answered], asked: Sequence[_Asked]) -> list[_Answered]:
        """The answers, as many asked for at a time as there are connections; an interrupt gives them up."""
        if self.connections == 1 or len(asked) <= 1:
            return [ask(one) for one in asked]
        stop = Stop()
        workers = ThreadPoolExecutor(
            min(self.connections, len(asked)), initializer=set_stop, initargs=(stop,)
        )
        with workers, ended_by(stop.ask):
            try:
                return list(workers.map(ask, asked))
            except BaseException:  # Ctrl-C above all: a server may take hours over what it was asked
                stop.ask()
                raise

    def close(self) -> None:
        """Close the connections; a later call opens them again. Garbage collection closes them too."""
        self._server.close()

    def __enter__(self) -> Self:
        """Nothing more: for `with UmBridge(...) as box`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Address and name; never the token."""
        return f"UmBridge({self._server.url!r}, {self.name!r})"


def _address(url: object) -> str:
    """The address of a server, without a slash at the end."""
    parts = _parts(url)
    if parts.username is not None or parts.password is not None:  # and in no message
        raise ConfigurationError(
            f"UmBridge, url: expected no password in the address of {parts.hostname}, got one. "
            "Take it out; a token goes in token=."
        )
    shown = "one with an @" if "@" in str(url) else repr(url)  # a password is in no message
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(
            f"UmBridge, url: expected an address such as 'http://localhost:4242', got {shown}. "
            "Mend it; several servers go behind a load balancer."
        )
    return str(url).rstrip("/")


def _parts(url: object) -> SplitResult:
    """The parts of an address; empty ones where it is none, such as with a port of letters or a space."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        if "@" not in parts.netloc and (re.search(r"\s", parts.netloc) or parts.port == 0):
            return urlsplit("")
    except ValueError:
        return urlsplit("")
    return parts


def _checked_config(config: object) -> dict[str, Any]:
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


def _model(server: Connection, name: str | None) -> tuple[str, bool]:
    """The model's name, after a check that the server evaluates it, and whether it has gradients."""
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
    if not isinstance(support, dict) or not support.get("Evaluate"):
        raise ConfigurationError(
            f"UmBridge, name: expected a model that supports Evaluate, got {name!r} of {server.url}, which "
            "does not. Ask for another."
        )
    return name, support.get("Gradient") is True


def _specs(server: Connection, message: dict[str, Any], kind: str) -> tuple[ArraySpec, ...]:
    """One spec for each input or output, of the size that the server states."""
    path = f"/{kind.title()}Sizes"
    sizes = server.ask(path, message).get(f"{kind}Sizes")
    if not isinstance(sizes, list) or not sizes or not all(map(_is_size, sizes)):
        raise ServerError(
            f"{server.url}{path}: expected a list of whole numbers >= 1, got {sizes!r}. "
            "Mend the model, or its config."
        )
    return tuple(ArraySpec(f"{kind}_{place}", (int(size),)) for place, size in enumerate(sizes))


def _is_size(number: object) -> bool:
    return isinstance(number, int | float) and number >= 1 and number == int(number)
