"""The console script `blackbox`: finds this project's packages whatever else bears their names, and starts.

`tasks` and `zo` are names that a user's files may have too, and Python takes what its path has first: a
folder of `PYTHONPATH`, say. This module has a name that nobody else has, and the packages are beside it.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("blackbox", "simulators", "tasks", "zo")
HERE = Path(__file__).resolve().parent


def main() -> int:
    """The exit status of the command line; see `tasks.cli.main`."""
    if any(map(is_in_the_way, PACKAGES)):
        sys.path.insert(0, str(HERE))
        # of the processes that are started from here
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["PYTHONSAFEPATH"] = "1"  # nor does the current folder come before it there
    from tasks.cli import main

    return main()


def is_in_the_way(name: str) -> bool:
    """Whether Python's path has another package or file of that name in front of this project's."""
    found = PathFinder.find_spec(name, sys.path)
    if found is None:  # installed in a way that the path does not show
        return False
    return found.origin is None or Path(found.origin).resolve().parent != HERE / name


if __name__ == "__main__":
    sys.exit(main())
