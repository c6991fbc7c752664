"""The user's entry: problems, the methods that train them, runs that resume, reports, and the command line.

    class Brusselator(tasks.Problem): ...

    run = tasks.run(Brusselator(unroll=6), methods=["none", "tangents"], steps=300)
    run.table, run.network("tangents"), run.report

Names are in `__init__.pyi`, and imported when they are first used: the command line answers at once.
"""

import blackbox_coupling  # noqa: F401  which names files that are in the way of a package
from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__, parts=("errors", "methods", "report"))
