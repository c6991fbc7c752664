"""One endpoint of a UM-Bridge model as a black box: a row is a request, a bad answer a failed row."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.um_bridge.connection import Connection
from blackbox.adapters.um_bridge.errors import NoAnswerError, ServerError
from blackbox.adapters.um_bridge.protocol import BYTES_BESIDE, BYTES_PER_NUMBER, to_text, vector
from blackbox.adapters.um_bridge.servers import Servers
from blackbox.arrays import failed_outputs
from blackbox.failures import FailedRow, Failure, Outcome, Policy
from blackbox.function import BlackBoxFunction
from blackbox.running import mark_non_finite
from blackbox.spec import ArraySpec


class Endpoint(BlackBoxFunction):
    """Asks for rows at one path; `message` and `read` are what endpoints differ in.

    Args:
        servers: those that are asked.
        path: of the protocol, "/Evaluate".
        message: what is sent with every row beside its arrays.
        inputs: one spec for each vector that is sent.
        outputs: one spec for each vector that comes back.
        failures: "raise" or "keep", see `BlackBoxFunction`.
    """

    def __init__(
        self,
        servers: Servers,
        path: str,
        message: dict[str, Any],
        inputs: tuple[ArraySpec, ...],
        outputs: tuple[ArraySpec, ...],
        failures: Policy | None,
    ) -> None:
        super().__init__(failures=failures)
        self.inputs, self.outputs = inputs, outputs
        self._servers, self._path, self._message = servers, path, message
        # For caches: the token does not change answers. Servers that move keep theirs with an identity set
        # by hand.
        self.identity = to_text({"urls": servers.urls, "path": path, **message}).decode()
        numbers = sum(spec.shape[0] for spec in outputs)
        self._max_bytes = BYTES_BESIDE + BYTES_PER_NUMBER * numbers

    def evaluate(self, *arrays: Any) -> Any:  # noqa: ANN401
        """One row, by the first server.

        Raises:
            ServerError: there was no answer to it.
        """
        return self._ask(self._servers.first_of_each()[0], arrays)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """One request a row, over all connections; under "raise" no row is started after one that failed."""
        started = perf_counter()
        stops = self.failures == "raise" and not self.isolates
        rows = [tensor.cpu().double().numpy() for tensor in inputs]
        try:
            answers = self._servers.ask_rows(
                len(rows[0]),
                lambda connection, row: self._ask(connection, tuple(array[row] for array in rows)),
                stop_at_error=stops,
            )
        finally:
            self.ledger.count(seconds=perf_counter() - started)
        self.ledger.count(rows_run=answers.asked)
        outputs = failed_outputs(self.outputs, tuple(tensor.cpu() for tensor in inputs))
        for row, arrays in answers.arrays.items():
            for whole, part in zip(outputs, arrays, strict=True):
                whole[row] = torch.from_numpy(part)
        outcome = Outcome(outputs, {row: _failed(error) for row, error in sorted(answers.errors.items())})
        if not (outcome.failed and stops):  # else rows were left out, which are no answers
            mark_non_finite(outcome)
        return outcome

    def _ask(self, connection: Connection, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        answer = connection.ask(self._path, self.message(arrays), self._max_bytes)
        try:
            return self.read(answer.get("output"))
        except ValueError as error:
            raise ServerError(
                f"{connection.url}{self._path}, output: {error}. See what the model gives back."
            ) from None

    def message(self, arrays: tuple[np.ndarray, ...]) -> dict[str, Any]:
        """The request for one row."""
        return {**self._message, "input": [np.ascontiguousarray(array) for array in arrays]}

    def read(self, output: object) -> tuple[np.ndarray, ...]:
        """The arrays of an answer, float64.

        Raises:
            ValueError: they are not what the specs say.
        """
        if not isinstance(output, list) or len(output) != len(self.outputs):
            found = f"{len(output)}" if isinstance(output, list) else "no list"
            raise ValueError(f"expected {len(self.outputs)} lists of numbers, got {found}")
        pairs = zip(self.outputs, output, strict=True)
        return tuple(_floats(values, spec.shape[0]) for spec, values in pairs)


class Derivative(Endpoint):
    """`/Gradient`, `/ApplyJacobian` or `/ApplyHessian`: the last inputs are its vectors, not the model's."""

    def __init__(self, *settings: Any, vectors: tuple[str, ...]) -> None:  # noqa: ANN401 - of Endpoint
        super().__init__(*settings)
        self._vectors = vectors

    def message(self, arrays: tuple[np.ndarray, ...]) -> dict[str, Any]:
        """The model's inputs, then the vectors by name."""
        count = len(arrays) - len(self._vectors)
        vectors = zip(self._vectors, map(np.ascontiguousarray, arrays[count:]), strict=True)
        return super().message(arrays[:count]) | dict(vectors)

    def read(self, output: object) -> tuple[np.ndarray, ...]:
        """One list of numbers."""
        return (_floats(output, self.outputs[0].shape[0]),)

    def __repr__(self) -> str:
        """With the path and the place in the model."""
        return f"{self._path[1:]} of {self._message['name']!r}"


def _failed(error: ServerError) -> FailedRow:
    return FailedRow(Failure.TIMED_OUT if isinstance(error, NoAnswerError) else Failure.RAISED, error)


def _floats(values: object, size: int) -> np.ndarray:
    return vector(values, size, null_is_nan=True).astype(np.float64)
