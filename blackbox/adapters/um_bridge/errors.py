"""What goes wrong between a client and the servers that it asks."""

from __future__ import annotations

from blackbox.errors import BlackBoxError


class ServerError(BlackBoxError, RuntimeError):
    """A server answered with an error, or with something that is no answer."""


class UnreachableError(ServerError, ConnectionError):
    """No connection could be made, so the server was not asked."""


class NoAnswerError(ServerError, TimeoutError):
    """The answer was not there in time; the server may still be at work on it."""
