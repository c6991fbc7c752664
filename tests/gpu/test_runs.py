"""Whole runs of a user's own problem on a GPU, or on one that is not there: as on a CPU, and resumed too."""

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tasks
import zo
from blackbox import ArraySpec, BlackBoxFunction
from tasks import Progress, Run
from tasks.applications.image_classification import ImageClassification
from tasks.applications.wake_flow import WakeFlow
from tasks.command.new import write
from tasks.configuration import Count, Positive, ZerothOrder
from tasks.errors import ConfigurationError
from tasks.methods.by_name import METHODS
from tasks.problem.silence import Silence
from tasks.running.resume import plan_in
from tasks.running.start import carry_out, planned
from tests.gpu.pretended import PretendedGPU
from tests.tasks.applications.image_classification.small import small
from tests.tasks.applications.wake_flow.small import SMALL

ROUNDED = {"tangents", "student", "surrogate"}  # what they fit has single precision, and on a GPU other bits
QUICK = {"row-rge"}
NEEDS_CMA = {"cma-es", "sep-cma-es"}
NEAR, ROUGH = {"rtol": 1e-9, "atol": 1e-12}, {"rtol": 1e-2, "atol": 1e-4}
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [-0.3, 0.8, 0.2], [0.1, 0.0, 1.2]], dtype=torch.float64)


def marks_of(method):
    """What a test of a method is marked with."""
    slow = [] if method in QUICK else [pytest.mark.slow]
    return [*slow, *([pytest.mark.needs("cma")] if method in NEEDS_CMA else [])]


class Mixed(BlackBoxFunction):
    """tanh((1 + kind / 4) A z), in NumPy and row by row; rows whose first number is above a limit fail."""

    inputs = (ArraySpec("z", shape=(3,)), ArraySpec("kind", shape=(), dtype="int64"))
    outputs = (ArraySpec("y", shape=(3,)),)

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def evaluate(self, z, kind):
        if z[0] > self.limit:
            raise ArithmeticError("too much")
        return np.tanh((1 + kind / 4) * (z @ MATRIX.numpy().T))


class Bent(BlackBoxFunction):
    """z + sin(2 z) / 4 of all rows."""

    inputs = (ArraySpec("z", shape=(3,)),)
    outputs = (ArraySpec("z", shape=(3,)),)

    def evaluate_rows(self, z):
        return z + np.sin(2 * z) / 4


class Steering(tasks.Problem):
    """Two boxes in a loop, one of them with whole numbers beside what is steered."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        steps: Count = 4
        batch: Count = 6
        learning_rate: Positive = 0.02
        validate_every: Count = 2
        zeroth_order: ZerothOrder = ZerothOrder(coordinates=5, directions=4)
        dropout: float = 0.2
        limit: float = 1e9

    def box(self):
        return {"mixed": Mixed(self.config.limit), "bent": Bent()}

    def network(self):
        return nn.Sequential(
            nn.Linear(3, 5, bias=False),  # behind which a norm takes any bias away
            nn.Identity() if self.config.limit < 1e9 else nn.BatchNorm1d(5),  # rows that fail must be apart
            *(nn.Tanh(), nn.Dropout(self.config.dropout), nn.Linear(5, 3)),
        ).double()

    def data(self):
        generator = torch.Generator().manual_seed(7)
        wanted = torch.rand(300, 3, generator=generator, dtype=torch.float64) - 0.5
        kinds = torch.randint(3, (300,), generator=generator)
        split = tasks.Data.split({"wanted": wanted, "kind": kinds}, batch=6, validation=9, test=270)
        return replace(split, fresh=True)  # what is wanted is known without a box

    def objective(self, network, batch):
        state = first = network(batch["wanted"])
        for _ in range(2):
            state = self.box["bent"](self.box["mixed"](state, batch["kind"]))
        return (state - batch["wanted"]).square().mean(dim=1) + 0.1 * first.square().mean(dim=1)

    def reference(self, name, z, kind=None):
        if name == "bent":
            return z + (2 * z).sin() / 4
        return ((1 + kind[:, None] / 4) * (z @ MATRIX.T.to(z))).tanh()

    def evaluate(self, network):
        with torch.no_grad():
            told = network.eval()(self.data.test["wanted"])
        return {**super().evaluate(network), "largest": told.abs().max(), "told": told}


class Broken(tasks.Callback):
    """The process ends in the middle of a stage."""

    strict = True

    def __init__(self, after=3):
        self.after = after

    def on_step(self, stage, step, metrics):
        if step == self.after:
            raise OSError("cut")


@dataclass
class Found:
    """Losses and validations by step, figures, and what `evaluate` and the weights that were kept say."""

    curves: Tensor
    figures: Tensor
    told: Tensor
    weights: Tensor

    @classmethod
    def of(cls, run, method):
        lines, row = run.metrics, run.table.iloc[0]
        curves = torch.tensor(lines.reindex(columns=["loss", "validation", "rows", "queries"]).to_numpy())
        figures = torch.tensor([float(row[name]) for name in ("test loss", "largest", "rows", "queries")])
        state = run.network(method).state_dict().values()
        weights = torch.cat([value.double().flatten().cpu() for value in state])
        return cls(curves, figures, torch.from_numpy(run.fields(method)["told"]), weights)

    def refuse_others(self, found, **tolerance):
        for name, own in vars(self).items():
            torch.testing.assert_close(getattr(found, name), own, equal_nan=True, msg=name, **tolerance)


def trained(folder, device, method, resume=None, callbacks=(), **settings):
    problem = Steering(methods=(method,), device=device, **settings)
    run = tasks.run(problem, runs=folder, resume=resume, callbacks=callbacks, progress=Progress())
    return Found.of(run, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param(name, marks=marks_of(name)) for name in METHODS])
def test_a_run_that_was_cut_short_and_goes_on_on_a_gpu_finds_what_one_finds_on_a_cpu(method, gpu, tmp_path):
    settings = {} if gpu.pretended else {"dropout": 0.0}  # of which each device draws its own
    expected = trained(tmp_path / "cpu", "cpu", method, **settings)
    folder = None
    with gpu:
        if method != "none":
            with pytest.raises(OSError, match="cut"):
                trained(tmp_path / "gpu", "cuda", method, callbacks=[Broken()], **settings)
            (folder,) = (tmp_path / "gpu").iterdir()
        found = trained(tmp_path / "gpu", "cuda", method, resume=folder, **settings)
    expected.refuse_others(found, **(ROUGH if method in ROUNDED and not gpu.pretended else NEAR))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tangents", "secant", "student", "sparse-cge", "row-rge"])
def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_cut_short(method, gpu, tmp_path):
    with gpu:
        expected = trained(tmp_path / "whole", "cuda", method)
        with pytest.raises(OSError, match="cut"):
            trained(tmp_path / "cut", "cuda", method, callbacks=[Broken()])
        (folder,) = (tmp_path / "cut").iterdir()
        found = trained(tmp_path / "cut", "cuda", method, resume=folder)
    expected.refuse_others(found, rtol=0, atol=0)


@pytest.mark.slow
def test_what_is_fitted_in_a_run_is_fitted_on_its_gpu(gpu, tmp_path, monkeypatch):
    class Answered(Steering):
        def answers(self):
            z = torch.linspace(-1, 1, 60, dtype=torch.float64).view(20, 3)
            return {"bent": ((z,), z + (2 * z).sin() / 4)}

    seen, fit, begin = [], zo.tangents.AutoTangent.fit, zo.tangents.StudentTangent.__init__

    def watched_fit(self, inputs, outputs, steps):
        seen.append((inputs[0].device.type, outputs.device.type))
        fit(self, inputs, outputs, steps)

    def watched_begin(self, network, **settings):
        seen.append({weight.device.type for weight in network.parameters()})
        begin(self, network, **settings)

    monkeypatch.setattr(zo.tangents.AutoTangent, "fit", watched_fit)
    monkeypatch.setattr(zo.tangents.StudentTangent, "__init__", watched_begin)
    with gpu:
        for method in ("tangents", "student"):
            with pytest.raises(OSError, match="cut"):
                settings = {"methods": (method,), "device": "cuda", "prefit": 1}
                tasks.run(Answered(**settings), runs=tmp_path, callbacks=[Broken(1)], progress=Progress())
    assert seen == [("cuda", "cuda"), {"cuda"}, {"cuda"}]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["no-gradient", "first-order", "sparse-cge", "row-rge", "tangents"])
def test_rows_that_fail_are_left_out_on_a_gpu_as_on_a_cpu(method, gpu, tmp_path):
    settings = {"limit": 0.25, "max_dropped": 0.5, "dropout": 0.0}
    expected = trained(tmp_path / "cpu", "cpu", method, **settings)
    with gpu:
        found = trained(tmp_path / "gpu", "cuda", method, **settings)
    expected.refuse_others(found, **(ROUGH if method in ROUNDED and not gpu.pretended else NEAR))


class Tube(BlackBoxFunction):
    """In the place of the template's program, which threads run."""

    def __init__(self, like):
        super().__init__()
        self.inputs, self.outputs = like.inputs, like.outputs

    def evaluate_rows(self, flow, power, inlet):
        return inlet + power / (4e3 * flow), 4e6 * flow**2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["correct", "design", "program"])
def test_what_blackbox_new_writes_runs_on_a_gpu(kind, gpu, tmp_path, monkeypatch):
    write("pump", tmp_path, kind)
    spec = spec_from_file_location("of_blackbox_new", tmp_path / "pump.py")
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "of_blackbox_new", module)
    spec.loader.exec_module(module)

    class Pump(module.Pump):
        if kind == "program":

            def box(self):
                return Tube(module.tube())

    methods = {"correct": ("none", "first-order"), "design": ("row-rge",), "program": ("rge",)}[kind]
    settings = {"methods": methods, "steps": 2, "directions": 2}
    figures = []
    for device in ("cpu", "cuda"):
        with gpu if device == "cuda" else nullcontext():
            run = tasks.run(Pump(device=device, **settings), runs=tmp_path / device, progress=Progress())
        figures.append(torch.tensor([row.value for row in run.result.table]))
    torch.testing.assert_close(*figures, rtol=1e-6 if gpu.pretended else 1e-3, atol=0)


@pytest.mark.slow
def test_the_network_of_a_run_on_a_gpu_is_to_be_had_where_there_is_none(tmp_path):
    with PretendedGPU():
        run = tasks.run(Steering(methods=("none",), device="cuda"), runs=tmp_path, progress=Progress())
        assert {weight.device.type for weight in run.network("none").parameters()} == {"cuda"}
    if not torch.cuda.is_available():
        assert {weight.device.type for weight in run.network("none").parameters()} == {"cpu"}


@pytest.mark.slow
def test_images_are_classified_as_on_a_cpu(gpu, tmp_path):
    settings = {"dataset": "digits", "methods": ("deepzero", "fo", "fo-sparse-weight")}
    figures = []
    for device in ("cpu", "cuda"):
        problem = ImageClassification(small(device=device, **settings), folder=tmp_path)
        with gpu if device == "cuda" else nullcontext():
            run = tasks.run(problem, runs=tmp_path / device, progress=Progress())
        figures.append(torch.tensor([[row.value, row.extra["loss"]] for row in run.result.table]))
    torch.testing.assert_close(*figures, **(NEAR if gpu.pretended else ROUGH))


@pytest.mark.slow
def test_the_wake_is_corrected_as_on_a_cpu(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # other processes take longer to start than to work
    methods = ("SRC", "NON", "FO-SOL", "ZO-SOL", "chain", "identity", "TAN-SOL small")
    figures = []
    for device in ("cpu", "cuda"):
        config = replace(SMALL, methods=methods, trajectories=True, device=device)
        with gpu if device == "cuda" else nullcontext():
            problem = WakeFlow(config, folder=tmp_path)
            run = tasks.run(problem, runs=tmp_path / device, progress=Progress())
        figures.append(torch.tensor([row.value for row in run.result.table]))
    torch.testing.assert_close(*figures, **(NEAR if gpu.pretended else ROUGH))


class Stops(Steering):
    """Refuses whatever it is set to, with what its process has set torch to by then."""

    def check(self):
        raise ConfigurationError(str(rounding()))


def rounding():
    cudnn = torch.backends.cudnn
    return cudnn.benchmark, cudnn.allow_tf32, cudnn.deterministic


def test_a_run_takes_kernels_that_round_the_same_each_time_and_its_plan_sets_none(tmp_path, monkeypatch):
    for name, other in (("benchmark", True), ("allow_tf32", True), ("deterministic", False)):
        monkeypatch.setattr(torch.backends.cudnn, name, other)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = planned(Stops(methods=("none",), device="cuda"), [0], by_hand=())
    run = Run.create(tmp_path, plan.terms)
    plan = plan_in(run, trusted=True)
    assert rounding() == (True, True, False)
    with pytest.raises(ConfigurationError, match=r"\(False, False, True\)"):
        carry_out(run, plan, Silence())  # as each of several processes, by the plan in the folder
