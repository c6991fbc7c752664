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
    from tasks.code.settings import Code
    from tasks.configuration import Config
    from tasks.folder.result import Row
    from tasks.folder.run import Run
    from tasks.listeners.callbacks import Callback
    from tasks.listeners.mlflow import MLflow
    from tasks.listeners.progress import Progress
    from tasks.listeners.tensorboard import TensorBoard
    from tasks.methods.autograd import AutogradGradient
    from tasks.problem.data import Data
    from tasks.problem.figures import RowMean
    from tasks.problem.method import Cost, Method
    from tasks.problem.problem import Problem
    from tasks.problem.trained import Trained
    from tasks.report.pictures import panels
    from tasks.running.finished import FinishedRun, load
    from tasks.running.own_loop import own_run
    from tasks.running.start import run
    from tasks.training.loop import train
    from tasks.training.setup import Setup

_NAMES = {  # by module
    "methods.autograd": ("AutogradGradient",),
    "listeners.callbacks": ("Callback",),
    "code.settings": ("Code",),
    "configuration": ("Config",),
    "problem.data": ("Data",),
    "running.finished": ("FinishedRun", "load"),
    "folder.result": ("Row",),
    "problem.figures": ("RowMean",),
    "folder.run": ("Run",),
    "training.loop": ("train",),
    "problem.method": ("Cost", "Method"),
    "listeners.mlflow": ("MLflow",),
    "running.own_loop": ("own_run",),
    "problem.problem": ("Problem",),
    "listeners.progress": ("Progress",),
    "report.pictures": ("panels",),
    "training.setup": ("Setup",),
    "problem.trained": ("Trained",),
    "running.start": ("run",),
    "listeners.tensorboard": ("TensorBoard",),
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
