"""The methods that the demo leaves out: what they cost, how they resume, and what they start from."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tasks
import zo
from tasks import Progress, Run
from tasks.applications.wake_flow import Corrector, Scales, WakeFlow, rollout_errors
from tasks.applications.wake_flow.config import METHODS, budget_of, family_of, method_name, without_budget
from tasks.applications.wake_flow.methods import steps_in_loop, variant
from tasks.applications.wake_flow.networks import layers
from tasks.command import cli
from tasks.errors import ProblemError
from tasks.folder import checkpoint
from tasks.folder.run import stage_name
from tasks.methods.whole_loss import estimator
from tests.tasks.applications.wake_flow.small import SMALL, words
from tests.tasks.made_runs import begun_run

PRESETS = WakeFlow.presets
Config = WakeFlow.Config

OTHERS = replace(
    SMALL,
    methods=("NON", "PRE", "PRE-SR", "ZO-SOL", "chain", "identity", "TAN-SOL small"),
    pre_steps=6,
    estimator="rge",
    unroll=3,
    zeroth_order=replace(SMALL.zeroth_order, input_directions=3, directions=9),
)
UNROLLED = 6 * 3  # solver steps in the six losses


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


def go_on(run: Run, folder: Path, progress: Progress | None = None) -> None:
    """Do what is left of a run, or, with a progress that cuts it short, a part of that."""
    problem = WakeFlow(run.configuration(Config), folder=folder / "data")
    with nullcontext() if progress is None else pytest.raises(Cut):
        tasks.run(problem, resume=run.path, progress=progress or Progress())


def start_run(folder: Path, config: tasks.Config, progress: Progress | None = None, seed: int = 0) -> Run:
    run = begun_run(folder / "runs", "wake-flow", "demo", config, (seed,))
    go_on(run, folder, progress)
    return run


def outcome(run: Run) -> tuple:
    """All that a run found, without times."""
    table = json.loads((run.path / "result.json").read_text())["table"]
    for row in table:
        row["ledger"].pop("seconds")
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


def test_a_dry_run_tells_the_computing_of_a_method_that_starts_from_another_s_weights(folder, capsys):
    line = words("--data", str(folder / "data"), "--dry-run", methods=("NON large", "TAN-SOL@24"))
    assert cli.main(line) == 0
    captured = capsys.readouterr()
    (said,) = [line for line in captured.out.splitlines() if "TAN-SOL@24: " in line]
    assert "beside it" in said and "warning" not in captured.err


@pytest.mark.slow
def test_every_method_has_its_line_and_pays_for_its_rows(finished):
    rows = {row["method"]: row for row in json.loads((finished.path / "result.json").read_text())["table"]}
    assert tuple(rows) == OTHERS.methods
    pairs = 2 * (SMALL.frames - 1)
    base = SMALL.batch * UNROLLED
    assert [rows[m]["rows"] for m in ("NON", "PRE", "PRE-SR")] == [pairs] * 3
    assert rows["identity"]["rows"] == base
    assert rows["identity"]["queries"] == 0
    # Backward asks for the queries of each step but the first, whose input is the data's.
    backward = SMALL.batch * (UNROLLED - SMALL.steps) * OTHERS.zeroth_order.input_directions
    checks = rows["chain"]["rows"] - base - backward
    # In calls 0, 1, 10 and 100 at most: two queries, at half of their step and back.
    assert 0 < checks <= 4 * 2 * 2
    assert rows["chain"]["queries"] == backward
    queries = SMALL.zeroth_order.coordinates + OTHERS.zeroth_order.directions
    assert rows["ZO-SOL"]["queries"] >= SMALL.steps * queries  # and those of the first-use check
    assert rows["ZO-SOL"]["rows"] >= base * (1 + queries)
    checks = rows["TAN-SOL small"]["queries"] * OTHERS.batch * OTHERS.unroll  # of its gradients
    assert checks > 0 and rows["TAN-SOL small"]["rows"] == base + checks
    assert all(row["value"] > 0 for row in rows.values())


@pytest.mark.slow
def test_a_run_that_was_cut_short_in_every_stage_resumes_to_the_same_bits(finished, folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    first, *others = ("pre", "zo-sol", "chain", "identity", "tan-sol-small")
    run = start_run(tmp_path, OTHERS, Cutting(f"seed-0/{first}", 3))
    for stage in others:
        torch.manual_seed(99)  # another process has another state
        go_on(Run.open(run.path), folder, Cutting(f"seed-0/{stage}", 3))
    assert not (run.path / "result.json").exists()
    go_on(Run.open(run.path), folder)
    assert outcome(run) == outcome(finished)


RANDOM = replace(
    OTHERS, start="random", methods=("identity", "FO-SOL large"), large_blocks=1, large_channels=(2,)
)


@pytest.mark.slow
def test_a_random_start_is_the_seed_s_first_weights_and_needs_no_non(folder, finished, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    run = start_run(tmp_path, RANDOM, seed=3)
    problem = WakeFlow(RANDOM, folder=folder / "data")
    for method, large in (("identity", False), ("FO-SOL large", True)):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            first = problem.corrector(large=large)
        errors = rollout_errors(first, problem.box, problem.flows.validation, 1, SMALL.horizon)
        lines = run.metrics(stage_name(3, method))
        assert lines[0]["step"] == 0
        assert lines[0]["validation"] == pytest.approx(errors.mean().item(), rel=1e-6)
    weights = [row["extra"]["weights"] for row in json.loads((run.path / "result.json").read_text())["table"]]
    each = [problem.corrector(large=large) for large in (False, True)]
    assert weights == [sum(p.numel() for p in network.parameters()) for network in each]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("central", [False, True], ids=["forward", "central"])
@pytest.mark.parametrize(
    ("name", "queries", "dense"),
    [
        ("cge", 1010, True),
        ("sparse-cge", 96, False),
        ("rge", 7, True),
        ("sparse-rge", 7, False),
    ],
)
def test_estimators_by_name_ask_what_they_should_and_reach_what_they_should(name, queries, dense, central):
    """On a loss whose gradient is known: the sum of squares of the weights."""
    torch.manual_seed(0)
    network = Corrector(layers(Config().channels), Scales(1.0, 1.0, 1.0))
    rule = estimator(name, 1e-3, sparsity=zo.RandomCoordinates(96), directions=7, central=central)

    def objective(model, batch):
        total = sum(p.double().square().sum() for p in model.parameters())
        return torch.ones(len(batch), dtype=torch.float64) * total

    gradient = zo.LossGradient(network, objective, rule, evaluator="loop")
    assert gradient.next_queries() == queries * (2 if central else 1)
    gradient.backward(torch.zeros(2))
    found = torch.cat([p.grad.flatten() for p in network.parameters()])
    truth = torch.cat([2 * p.detach().flatten() for p in network.parameters()])
    assert int((found != 0).sum()) == (1010 if dense else 96)
    if name == "cge":
        assert torch.allclose(found, truth + (0 if central else 1e-3), atol=2e-5)
    else:
        assert float(found @ truth) > 0


def test_a_gpu_that_is_not_there_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ProblemError, match="device: expected a GPU that torch can use"):
        start_run(tmp_path, replace(OTHERS, device="cuda"))
    assert not (tmp_path / "data").exists()


@pytest.mark.needs("gpu")
def test_a_run_on_a_gpu_starts_from_the_same_weights_and_data(finished, folder, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    run = start_run(tmp_path, replace(OTHERS, device="cuda"))
    first = [[line["validation"] for line in each.metrics() if line["step"] == 0] for each in (run, finished)]
    assert first[0] == pytest.approx(first[1], rel=1e-3)


def test_networks_of_the_paper_have_the_published_sizes():
    paper = PRESETS["paper"]
    small, large = layers(paper.channels), layers(paper.large_channels, paper.large_blocks)
    assert [sum(p.numel() for p in network.parameters()) for network in (small, large)] == [56_898, 260_354]


def test_every_method_has_its_names_and_the_demo_leads_with_what_matters():
    assert PRESETS["demo"].methods == METHODS
    families = [family_of(name) for name in METHODS]
    wanted = ("SRC", False), ("NON", True), ("TAN-SOL", True), ("FO-SOL", True), ("ZO-SOL", False)
    places = [families.index(each) for each in wanted]
    assert places == sorted(places)
    assert {"demo", "small", "paper"} <= PRESETS.keys()
    for preset in PRESETS.values():
        assert {without_budget(name) for name in preset.methods} <= set(WakeFlow.methods)
    families = ("NON", "PRE", "PRE-SR", "FO-SOL", "ZO-SOL", "chain", "identity", "TAN-SOL")
    names = {method_name(family, large) for family in families for large in (False, True)}
    assert set(WakeFlow.methods) == {"SRC", *names} and len(names) == 16
    assert {"TAN-SOL", "TAN-SOL small", "FO-SOL", "FO-SOL large"} < names
    assert family_of("TAN-SOL") == ("TAN-SOL", True)
    assert family_of("TAN-SOL small") == ("TAN-SOL", False)


@pytest.mark.slow
def test_methods_of_all_problems_train_the_small_network_from_the_first_weights(folder, finished, tmp_path):
    (tmp_path / "data").symlink_to(folder / "data")
    names = ("none", "no-gradient", "tangents", "sparse-cge", "rge", "row-rge", "first-order")
    few = replace(OTHERS.zeroth_order, directions=2)
    config = replace(OTHERS, methods=names, steps=5, zeroth_order=few)
    run = start_run(tmp_path, config)
    rows = {row["method"]: row for row in json.loads((run.path / "result.json").read_text())["table"]}
    assert tuple(rows) == names
    starts = {run.metrics(stage_name(0, name))[0]["validation"] for name in names[1:]}
    assert len(starts) == 1
    base = config.batch * 5 * config.unroll
    assert rows["none"]["rows"] == 0
    assert rows["no-gradient"]["rows"] == rows["first-order"]["rows"] == base
    assert rows["rge"]["rows"] > base * 3


def test_one_setting_has_the_steps_of_all_methods_in_the_loop_with_the_small_network():
    config = replace(Config(), steps=10)
    small = ("FO-SOL", "ZO-SOL", "chain", "identity", "TAN-SOL small", "tangents")
    assert {config.steps_of(method) for method in small} == {10}
    assert config.steps_of("TAN-SOL") == config.steps_of("FO-SOL large") == 150
    assert config.pace_of("TAN-SOL") == config.pace_of("FO-SOL large") == (4, 0.001)


def test_the_demo_compares_a_fifth_of_first_order_s_rows_with_all():
    budgets = {name: budget_of(name) for name in METHODS if budget_of(name) is not None}
    assert [family_of(name) for name in budgets] == [("TAN-SOL", True), *[("FO-SOL", True)] * 2]
    few, first_order_few, all_rows = budgets.values()
    assert few == first_order_few == all_rows / 5
    assert {name for name, *_ in PRESETS["demo"].tuned} == set(budgets)


@pytest.mark.parametrize(
    ("method", "batch", "steps"),
    [
        ("identity@60", 2, 10),  # 6 rows a step
        ("FO-SOL large@60", 1, 19),  # 3 rows a step, and once more, to compare values with the box's
        ("FO-SOL@60", 4, 4),
        ("TAN-SOL@60", 1, 14),  # with two checks, and room for four repeats
        ("ZO-SOL@270", 1, 9),  # nine queries beside the base: 30 rows a step
    ],
)
def test_a_budget_of_rows_takes_the_place_of_a_number_of_steps(method, batch, steps, folder):
    config = replace(OTHERS, tuned=((method, batch, 0.1),))
    problem, found = WakeFlow(config, folder=folder / "data"), variant(method)
    assert steps_in_loop(problem, method) == steps
    assert found is not None and found.cost is not None
    assert found.cost(problem, 0).evaluations * config.batch * config.unroll <= budget_of(method)
    assert variant(method.partition("@")[0]) is None


def test_the_paper_has_the_published_sets_of_flows():
    paper = PRESETS["paper"]
    assert paper.train_reynolds == tuple(160000 * 2**i / 500 for i in range(6))
    assert paper.test_reynolds == tuple(240000 * 2**i / 500 for i in range(5))
