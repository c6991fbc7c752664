"""The methods that the demo leaves out: what they cost, how they resume, and what they start from."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tasks.wake_flow.methods.every import stage_of
from tasks.wake_flow.methods.in_loop import mean_of_living
from tasks.wake_flow.methods.weights import SURROGATE, estimator
from tasks.wake_flow.trainer import Trainer

import zo
from tasks.errors import ConfigurationError
from tasks.progress import Progress
from tasks.runs import checkpoint
from tasks.runs.folder import Run
from tasks.wake_flow import data, limits, methods, task
from tasks.wake_flow.config import ALL_METHODS, METHODS, PRESETS, Config
from tasks.wake_flow.methods import weights
from tasks.wake_flow.networks import Corrector, Scales, layers
from tasks.wake_flow.rollout import rollout_errors, window_loss
from tests.tasks.wake_flow.small import SMALL

OTHERS = replace(
    SMALL,
    methods=("NON", "PRE", "PRE-SR", "ZO-SOL", "chain", "identity", "TAN-SOL small"),
    pre_steps=6,
    chain_queries=3,
    estimator="hybrid",
    directions=4,
    unroll=3,
    curriculum_unrolls=(2,),
    curriculum_steps=(4,),
)
UNROLLED = 4 * 2 + 2 * 3  # solver steps in the six losses


class Cut(Exception):
    """Stands for a kill."""


class Cutting(Progress):
    """Ends the run in the middle of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__()
        self.at, self.stage = (stage, step), ""

    def begin(self, stage, steps, *, done=0, unit="step"):
        self.stage = stage
        super().begin(stage, steps, done=done, unit=unit)

    def update(self, step, metrics=None):
        super().update(step, metrics)
        if (self.stage, step) == self.at:
            raise Cut


def start_run(folder: Path, config: Config, progress: Progress | None = None) -> Run:
    run = Run.create(folder / "runs", "wake-flow", "demo", config, (0,))
    if progress is None:
        task.run(run, Progress(), folder / "data")
    else:
        with pytest.raises(Cut):
            task.run(run, progress, folder / "data")
    return run


def outcome(run: Run) -> tuple:
    """All that a run found, without times."""
    table = json.loads((run.path / "result.json").read_text())["table"]
    weights = [
        (file.name, name, tensor.numpy().tobytes())
        for file in sorted((run.path / "checkpoints").iterdir())
        for name, tensor in checkpoint.load(file)["state"]["network"].items()
    ]
    lines = [{k: v for k, v in line.items() if k not in ("seconds", "time")} for line in run.metrics()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table], weights, lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wake")


@pytest.fixture(scope="module")
def finished(folder) -> Run:
    return start_run(folder, OTHERS)


def test_every_method_has_its_line_and_pays_for_its_rows(finished):
    rows = {row["method"]: row for row in json.loads((finished.path / "result.json").read_text())["table"]}
    assert tuple(rows) == OTHERS.methods
    pairs = 2 * (SMALL.frames - 1)
    base = SMALL.batch * UNROLLED
    assert [rows[m]["rows"] for m in ("NON", "PRE", "PRE-SR")] == [pairs] * 3
    assert rows["identity"]["rows"] == base
    assert rows["identity"]["queries"] == 0
    # Backward asks for the queries of each step but the first, whose input is the data's.
    backward = SMALL.batch * (UNROLLED - SMALL.zo_steps) * OTHERS.chain_queries
    assert rows["chain"]["rows"] == base + backward
    assert rows["chain"]["queries"] == (UNROLLED - SMALL.zo_steps) * OTHERS.chain_queries
    queries = SMALL.coordinates + OTHERS.directions
    assert rows["ZO-SOL"]["queries"] >= SMALL.zo_steps * queries  # and those of the first-use check
    assert rows["ZO-SOL"]["rows"] >= base * (1 + queries)
    assert rows["TAN-SOL small"]["rows"] == (1 + SMALL.probes) * base
    assert all(row["value"] > 0 for row in rows.values())


def test_a_run_that_was_cut_short_in_every_stage_resumes_to_the_same_bits(finished, folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    first, *others = ("pre", "zo-sol", "chain", "identity", "tan-sol-small")
    run = start_run(tmp_path, OTHERS, Cutting(f"seed-0/{first}", 3))
    for stage in others:
        torch.manual_seed(99)  # another process has another state
        with pytest.raises(Cut):
            task.run(Run.open(run.path), Cutting(f"seed-0/{stage}", 3), folder / "data")
    assert not (run.path / "result.json").exists()
    task.run(Run.open(run.path), Progress(), folder / "data")
    assert outcome(run) == outcome(finished)


@pytest.fixture(scope="module")
def trainer(folder, finished, tmp_path_factory) -> Trainer:
    config = replace(
        OTHERS, start="random", methods=("identity", "FO-SOL large"), large_blocks=1, large_channels=(2,)
    )
    flows = data.load(config, folder / "data")
    solver = task.WakeFlow(config.width, dt=config.dt, failures="keep")
    pairs = data.pairs(flows.train, solver)
    run = Run.create(tmp_path_factory.mktemp("runs"), "wake-flow", "demo", config, (3,))
    return Trainer(run, config, flows, pairs, data.scales(flows.train, pairs), solver, 3, Progress())


def test_a_random_start_is_the_seed_s_first_weights_and_needs_no_non(trainer):
    found = methods.train(trainer)
    assert tuple(found) == ("identity", "FO-SOL large")
    for method, hidden, blocks in (("identity", (2,), 0), ("FO-SOL large", (2,), 1)):
        first = trainer.corrector(hidden, blocks)
        errors = rollout_errors(first, trainer.solver, trainer.data.validation, 1, SMALL.horizon)
        lines = [line for line in trainer.run.metrics() if line["stage"] == f"seed-3/{stage_of(method)}"]
        assert lines[0]["step"] == 0
        assert lines[0]["validation"] == pytest.approx(errors.mean().item(), rel=1e-6)
        count = sum(p.numel() for p in found[method].network.parameters())
        assert count == sum(p.numel() for p in first.parameters())


def test_windows_follow_the_curriculum(trainer):
    lengths = [trainer.batch(i)[0].shape[1] - 1 for i in range(8)]
    assert lengths == [2, 2, 2, 2, 3, 3, 3, 3]
    without = replace(trainer, config=replace(trainer.config, curriculum_unrolls=(), curriculum_steps=()))
    assert torch.equal(without.batch(5)[0], trainer.batch(5)[0])  # later windows are those of a run without


def test_several_stages_of_a_curriculum_follow_each_other():
    stages = {"curriculum_unrolls": (1, 3), "curriculum_steps": (2, 1)}
    config = replace(OTHERS, methods=("NON", "FO-SOL"), unroll=5, **stages)
    assert [config.unroll_at(step) for step in range(5)] == [1, 1, 3, 5, 5]


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize(
    ("name", "queries", "dense"),
    [
        ("cge", 1010, True),
        ("sparse-cge", 96, False),
        ("rge", 7, True),
        ("sparse-rge", 7, False),
        ("hybrid", 103, True),
        ("control-variate", 7, True),
        ("surrogate-filled", 96, True),
    ],
)
def test_estimators_by_name_ask_what_they_should_and_reach_what_they_should(name, queries, dense, scheme):
    """On a loss whose gradient is known: the sum of squares of the weights."""
    config = replace(Config(), estimator=name, scheme=scheme, directions=7, mu=1e-3)
    torch.manual_seed(0)
    network = Corrector(layers(config.channels), Scales(1.0, 1.0, 1.0))
    sparsity = None if name in ("cge", "rge") else zo.RandomCoordinates(config.coordinates)

    def objective(model, batch):
        total = sum(p.double().square().sum() for p in model.parameters())
        return torch.ones(len(batch), dtype=torch.float64) * total

    gradient = zo.LossGradient(network, objective, estimator(config, sparsity), evaluator="loop")
    for parameter in network.parameters():  # a surrogate of the right direction, for those that take one
        parameter.grad = 0.5 * parameter.detach() if name in SURROGATE else None
    assert gradient.queries() == queries * (2 if scheme == "central" else 1)
    gradient.backward(torch.zeros(2))
    found = torch.cat([p.grad.flatten() for p in network.parameters()])
    truth = torch.cat([2 * p.detach().flatten() for p in network.parameters()])
    assert int((found != 0).sum()) == (1010 if dense else config.coordinates)
    if name == "cge":
        assert torch.allclose(found, truth + (1e-3 if scheme == "forward" else 0), atol=2e-5)
    else:
        assert float(found @ truth) > 0


@pytest.mark.parametrize("name", SURROGATE)
def test_a_surrogate_is_identity_s_gradient_and_is_paid_for(trainer, name):
    """It is what stands in `.grad` before the queries, and costs a base evaluation."""
    config = replace(trainer.config, estimator=name, zo_steps=2, curriculum_unrolls=(), curriculum_steps=())
    own = replace(trainer, config=config)
    start = own.corrector((2,))
    trained = methods.zo_sol(own, start, f"zo-sol-{name}", 2, 0.002)
    queries = config.directions if name == "control-variate" else config.coordinates
    assert trained.queries >= 2 * queries
    base = config.batch * config.unroll
    assert trained.rows.rows >= 2 * base * (2 + queries)  # the surrogate's base, the estimator's, its queries
    network = copy.deepcopy(start)
    weights._identity(own, network)(own.batch(0))
    expected = zo.differentiable(own.solver, None, tangent=zo.IdentityTangent())
    by_hand = copy.deepcopy(start)
    mean_of_living(window_loss(expected, own.scales.velocity), by_hand, own.batch(0))[0].backward()
    for found, other in zip(network.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(found.grad, other.grad)


def test_layer_ratios_serve_every_sparse_estimator_and_cost_dense_ones_nothing(folder, finished, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    for name, kept in (("sparse-rge", True), ("rge", False)):
        config = replace(OTHERS, methods=("NON", "ZO-SOL"), estimator=name, ratios="magnitude")
        run = start_run(tmp_path, config)
        assert (run.path / "layer_ratios-seed-0.json").exists() == kept


def test_a_gpu_that_is_not_there_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = Run.create(tmp_path / "runs", "wake-flow", "demo", replace(OTHERS, device="cuda"), (0,))
    with pytest.raises(ConfigurationError, match="device: expected a GPU that torch can use"):
        task.run(run, Progress(), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_starts_from_the_same_weights_and_data(finished, folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    run = start_run(tmp_path, replace(OTHERS, device="cuda"))
    first = [[line["validation"] for line in each.metrics() if line["step"] == 0] for each in (run, finished)]
    assert first[0] == pytest.approx(first[1], rel=1e-3)


def test_networks_of_the_paper_have_the_published_sizes():
    paper = PRESETS["paper"]
    small, large = layers(paper.channels), layers(paper.large_channels, paper.large_blocks)
    assert [sum(p.numel() for p in network.parameters()) for network in (small, large)] == [56_898, 260_354]


def test_every_preset_names_its_methods_and_the_demo_s_are_what_they_were():
    assert PRESETS["demo"].methods == METHODS
    assert {"demo", "small", "paper"} <= PRESETS.keys()
    for preset in PRESETS.values():
        assert set(preset.methods) <= set(ALL_METHODS)
    families = {limits.family_of(method)[0] for method in ALL_METHODS}
    assert families == {"SRC", *limits.SUPERVISED, *limits.IN_LOOP}
    assert limits.family_of("TAN-SOL") == ("TAN-SOL", True)
    assert limits.family_of("TAN-SOL small") == ("TAN-SOL", False)
    assert len({stage_of(method) for method in ALL_METHODS}) == len(ALL_METHODS)


def test_the_paper_has_the_published_sets_of_flows():
    paper = PRESETS["paper"]
    assert paper.train_reynolds == tuple(160000 * 2**i / 500 for i in range(6))
    assert paper.test_reynolds == tuple(240000 * 2**i / 500 for i in range(5))
