"""Which runs may execute code unasked: those that this user made, and those of installed problems.

`config.json` names the file in which a run's problem is, and `blackbox resume` executes it. A folder that
came from elsewhere could name any. So a run bears a signature of that name, with a secret that only this
user can read: `blackbox/key` in `$XDG_STATE_HOME`, or in `~/.local/state`.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from tasks import names


def sign(code: str) -> str:
    """The signature of a run that executes `code`; "" where the secret cannot be kept.

    Args:
        code: Where a problem's class is, or a script.
    """
    key = _key(make=True)
    return "" if key is None or not code else _signature(key, code)


def is_own(code: str, signature: str) -> bool:
    """Whether `code` is nothing, the problem of an installed package, or what this user has signed."""
    if not code or code in names.problems().values():
        return True
    key = _key(make=False)
    return key is not None and hmac.compare_digest(_signature(key, code), signature)


def _signature(key: bytes, code: str) -> str:
    return hmac.new(key, code.encode(), "sha256").hexdigest()


def _key(*, make: bool) -> bytes | None:
    """This user's secret; None if there is none, it cannot be made, or others can read it."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        folder = (state if state.is_absolute() else Path.home() / ".local" / "state") / "blackbox"
        path = folder / "key"
        if make and not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, written = tempfile.mkstemp(dir=folder)  # which only its owner can read
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(32))
            with suppress(FileExistsError):  # another process was faster
                os.link(written, path)
            os.unlink(written)
        found = path.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return None
        return path.read_bytes() or None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
