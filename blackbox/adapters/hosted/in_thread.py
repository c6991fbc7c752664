"""`InThread`: a Python function that calls the network, in a thread of this process, in a program's place."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from blackbox.adapters.command.process import STDERR, Running
from blackbox.adapters.hosted.client.bb_host import Host
from blackbox.errors import SessionError

VARIABLE = "BLACKBOX_HOST"


class AskingHost(Host):
    """A function's end of the line: what goes wrong is an exception, where it ends a program."""

    def _fail(self, text: str) -> NoReturn:
        raise SessionError(text)

    def hang_up(self) -> None:
        """Close the line, so that the trainer sees the end."""
        if self._line is not None:
            self._line.close()
            self._line = None


class InThread(Running):
    """A function that runs in a thread like a program: it has a name, an end, last words.

    It cannot be killed. Where its run is not needed any more its next call raises, which ends it.

    Args:
        function: `function(case, host)`.
        case: the number of the run's case.
        arguments: none.
        folder: the folder for its last words.
        environment: the variables that name the socket.
    """

    def __init__(
        self,
        function: Callable[[int, Host], object],
        case: int,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.name, self.pid, self._failed = name_of(function), -1, False
        self._folder, self._over = folder, False
        (folder / STDERR).touch()
        host = AskingHost(environment[VARIABLE])
        self._thread = threading.Thread(
            target=self._run, args=(function, case, host), name=f"{self.name}, case {case}", daemon=True
        )
        self._thread.start()

    def _run(self, function: Callable[[int, Host], object], case: int, host: AskingHost) -> None:
        try:
            function(case, host)
        except BaseException:
            self._failed = True
            if not self._over:
                with suppress(OSError):  # its folder has just gone
                    (self._folder / STDERR).write_text(traceback.format_exc(), encoding="utf-8")
        finally:
            host.hang_up()

    def wait(self, timeout: float | None) -> bool:
        """Wait, and say whether the function ends within some seconds; None for any time."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def last_words(self, folder: Path) -> str:
        """Return the error that the function has raised."""
        return super().last_words(folder) if self._failed else ""

    def kill(self) -> None:
        """Let what the function raises from now on be forgotten."""
        self._over = True

    def ask_to_stop(self) -> None:
        """The same."""
        self.kill()

    def end(self) -> int:
        """1 if the function raised, else 0."""
        self.kill()
        return int(self._failed)


def name_of(function: Callable[..., object]) -> str:
    """Return the name of a function in messages."""
    return getattr(function, "__name__", type(function).__name__)
