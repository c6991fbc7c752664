"""What a user runs: problems, the methods that train them, runs that resume, reports, and the command line.

    class Brusselator(tasks.Problem): ...

    run = tasks.run(Brusselator(unroll=6), methods=["none", "tangents"], steps=300)
    run.table, run.network("tangents"), run.report

Names are imported when they are first used, so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import blackbox_coupling  # noqa: F401  which names files that are in the way of a package

if TYPE_CHECKING:
    from tasks.autograd import AutogradGradient
    from tasks.callbacks import Callback
    from tasks.code import Code
    from tasks.configuration import Config
    from tasks.data import Data
    from tasks.finished import FinishedRun, load
    from tasks.folder.result import Row, RowMean
    from tasks.folder.run import Run
    from tasks.loop import train
    from tasks.method import Cost, Method
    from tasks.mlflow import MLflow
    from tasks.own_loop import own_run
    from tasks.problem import Problem
    from tasks.progress import Progress
    from tasks.report.pictures import panels
    from tasks.setup import Setup, Trained
    from tasks.start import run
    from tasks.tensorboard import TensorBoard

_NAMES = {  # by module
    "autograd": ("AutogradGradient",),
    "callbacks": ("Callback",),
    "code": ("Code",),
    "configuration": ("Config",),
    "data": ("Data",),
    "finished": ("FinishedRun", "load"),
    "folder.result": ("Row", "RowMean"),
    "folder.run": ("Run",),
    "loop": ("train",),
    "method": ("Cost", "Method"),
    "mlflow": ("MLflow",),
    "own_loop": ("own_run",),
    "problem": ("Problem",),
    "progress": ("Progress",),
    "report.pictures": ("panels",),
    "setup": ("Setup", "Trained"),
    "start": ("run",),
    "tensorboard": ("TensorBoard",),
}

__all__ = [
    "AutogradGradient",
    "Callback",
    "Code",
    "Config",
    "Cost",
    "Data",
    "FinishedRun",
    "MLflow",
    "Method",
    "Problem",
    "Progress",
    "Row",
    "RowMean",
    "Run",
    "Setup",
    "TensorBoard",
    "Trained",
    "load",
    "own_run",
    "panels",
    "run",
    "train",
]


_MOVED = ("Count", "Natural", "Positive", "NotNegative", "Fraction")  # problems of 0.2.0 have them from here


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"tasks.{module}"), name)
    moved = f": it is tasks.configuration.{name} from version 0.3.0 on" if name in _MOVED else ""
    raise AttributeError(f"module 'tasks' has no attribute {name!r}{moved}")
