"""The examples' own code on a GPU, or on one that is not there, as on a CPU; no program of theirs runs."""

import numpy as np
import pytest
import torch

from blackbox import BlackBoxFunction
from tests.examples.test_examples import problem_of
from tests.gpu.test_runs import NEAR, ROUGH


class InItsPlace(BlackBoxFunction):
    """Answers of a program's shapes, each number of which depends on all that it was asked."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def evaluate_rows(self, *arrays):
        rows = len(arrays[0])
        asked = sum(np.tanh(array.reshape(rows, -1)).mean(axis=1, dtype=np.float64) for array in arrays)
        found = []
        for spec in self.outputs:
            weights = np.cos(np.arange(np.prod(spec.shape, dtype=int))).reshape(spec.shape)
            found.append(weights * (2 + asked.reshape(rows, *[1] * weights.ndim)))
        return tuple(found) if len(found) > 1 else found[0]


PROBLEMS = {  # the problem's class, and what has the specs of its box
    "calculix": lambda module: (module.Bracket, module.bracket()),
    "ngspice": lambda module: (module.FilterDesign, module.ladder()),
    "fortran": lambda module: (module.Heating, module.Slab),
}


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """What the boxes look for when they are made; none of them is started."""
    for name in ("ccx", "ngspice", "gfortran"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_an_example_does_on_a_gpu_what_it_does_on_a_cpu(name, gpu, programs, monkeypatch):
    kind, box = PROBLEMS[name](problem_of(name, monkeypatch))

    def found(device):
        problem = kind(kind.presets["ci"], device=device)
        problem.__dict__["box"] = InItsPlace(box.inputs, box.outputs)
        torch.manual_seed(0)
        network = problem.network().to(device)
        told = [problem.losses(network, problem.data.test), *problem.evaluate(network).values()]
        if problem.has_reference():
            inputs = [0.3 + torch.rand(3, *spec.shape) for spec in box.inputs]
            answers = problem.reference(*(array.to(device) for array in inputs))
            told += answers if isinstance(answers, tuple) else [answers]
        return [torch.as_tensor(value).double().cpu() for value in told]

    expected = found("cpu")
    with gpu:
        torch.testing.assert_close(found("cuda"), expected, **(NEAR if gpu.pretended else ROUGH))
