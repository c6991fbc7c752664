"""The layer ratios of a run: computed once, shown, and kept in its folder with what they cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blackbox.words import counted
from tasks.errors import RunFolderError
from tasks.folder import atomic, reading, stamp
from tasks.folder.journal import Journal
from tasks.training.setup import Setup
from zo.estimators.ratios import LayerRatios


def kept(
    setup: Setup, name: str, find: Callable[[Journal], tuple[LayerRatios, int]]
) -> tuple[LayerRatios, int]:
    """The ratios of a file in the run's folder, and the queries that they took; computed if it is not there.

    `name` is the file's, without its ending; `find` is given a journal: a kill costs no finished query.
    """
    path, of = setup.run.path / f"{name}.json", stamp.settings(setup.run)
    if not (path.exists() and stamp.fits(setup.run, _content(path), of)):
        with setup.journal(name.replace("_", "-")) as journal:
            layers, queries = find(journal)
            atomic.write_json(path, {"ratios": layers.to_dict(), "queries": queries, stamp.OF: of})
        setup.progress.say(
            f"Layer ratios of seed {setup.seed} by {layers.method} ({counted(queries, 'query')}):\n{layers}"
        )
    return read(path)


def read(path: Path) -> tuple[LayerRatios, int]:
    """The ratios of a file, and the queries that they took.

    Raises:
        RunFolderError: It has none that can be read.
    """
    saved = _content(path)
    try:
        return LayerRatios.from_dict(saved["ratios"]), int(saved["queries"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        cause = " ".join(str(error).split())
        raise RunFolderError(f"{path}: expected layer ratios and queries, got {cause}. {_MEND}") from None


_MEND = "Delete it: in an unfinished run they are computed again."


def _content(path: Path) -> dict[str, Any]:
    return reading.json_object(path, _MEND)
