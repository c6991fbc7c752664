"""The benchmarks of queries: their small presets run, and what they measure is what they say."""

import json

import pytest
import torch

import zo
from benchmarks import protocol
from benchmarks.protocol import Spread
from benchmarks.query_speed import comparison as query_speed
from benchmarks.query_speed import steps
from benchmarks.query_speed.baselines import InPlace, Published
from benchmarks.query_speed.comparison import PLAIN
from benchmarks.query_speed.measuring import BlockTimes, Contender, WrongAnswerError, measure, uniform_mean
from benchmarks.query_speed.problems import make
from zo.evaluators import Evaluator, Step
from zo.evaluators.state import Snapshot


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "SCRATCH", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_query_speed_measures_its_small_preset(results):
    query_speed.main(["--size", "ci"])
    found = json.loads((results / "query_speed-ci.json").read_text())
    first = found["measured"][0]
    assert first["network"] == "resnet8"
    for block in first["blocks"]:
        assert set(block["microseconds"]) == {*PLAIN, "loop", "stacked", "difference"}
        assert max(block["errors"].values()) < 0.25
        assert all(s["lower"] <= s["median"] <= s["upper"] for s in block["microseconds"].values())
    assert set(first["steps"]["0.9"]) == {*PLAIN, "loop", "stacked", "difference"}
    assert found["measured"][1]["steps"] is None
    assert "**resnet8, 4 rows, training, cpu**" in (results / "query_speed-ci.md").read_text()


def test_a_step_is_summed_up_from_its_blocks(results):
    timed = make("resnet8", 4, width=4)
    counts = steps.kept(timed)
    weights = {block.name: block.weights for block in timed.blocks()}
    assert counts[0.0] == weights  # all of them
    assert sum(counts[0.9].values()) < 0.2 * sum(weights.values())
    blocks = [
        BlockTimes(name, count, {"published": Spread(0.0, 2.0 + place, 9.0), "loop": Spread(0.0, 7.0, 9.0)})
        for place, (name, count) in enumerate(weights.items())
    ]
    found = steps.seconds(blocks, counts)
    assert found[0.9]["loop"] == pytest.approx(7e-6 * sum(counts[0.9].values()))
    slow = sum(count * (2.0 + place) for place, count in enumerate(counts[0.5].values())) / 1e6
    assert found[0.5]["published"] == pytest.approx(slow)
    assert f"| 90% | {found[0.9]['published']:,.3g} (1.00) |" in "\n".join(steps.lines(found))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ["resnet8", "wake", pytest.param("dncnn", marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_plain_loops_find_what_loop_finds(name, training):
    timed = make(name, 2, width=4, training=training)
    wide = timed.in_float64()
    chain = wide.network if name == "resnet8" else getattr(wide.network, _CHAINS[name])
    workers = [Published(chain), InPlace(chain), InPlace(chain, torch.channels_last)]
    before = Snapshot(wide.network)
    weights = [tensor.clone() for tensor in wide.parameters.tensors]
    for block in timed.blocks():
        queries = timed.queries(block, 2)
        nothing = torch.zeros(wide.rows, dtype=torch.float64)
        looped = zo.evaluators.Loop().changes(wide, queries, nothing)
        before.restore()
        for worker in workers:
            assert torch.allclose(worker.changes(wide, queries, nothing), looped, rtol=1e-12, atol=0)
            before.restore()
    for tensor, weight in zip(wide.parameters.tensors, weights, strict=True):
        assert torch.equal(tensor, weight)


_CHAINS = {"wake": "layers", "dncnn": "net"}


class Off(Evaluator):
    """Twice the change."""

    def begin(self, problem: Step, base):
        right = zo.evaluators.Loop().begin(problem, base)
        return lambda queries: 2 * right(queries)


def test_a_fast_wrong_evaluator_is_refused():
    timed = make("resnet8", 4, width=4)
    block = timed.blocks()[2]
    with pytest.raises(WrongAnswerError, match="wrong to give the differences of float64"):
        measure(timed, block, {"wrong": Contender(Off(), 2)}, 1, 2)


def test_the_mean_over_coordinates_weighs_blocks_by_their_weights():
    blocks = [
        BlockTimes("a", 1, {"loop": Spread(1.0, 10.0, 20.0)}),
        BlockTimes("b", 3, {"loop": Spread(1.0, 2.0, 3.0)}),
    ]
    assert uniform_mean(blocks, "loop") == 4.0  # (10 + 3 * 2) / 4


def test_blocks_hold_every_weight_once():
    timed = make("resnet8", 2, width=4)
    indices = torch.cat([block.indices for block in timed.blocks()])
    assert torch.equal(indices.sort().values, torch.arange(timed.problem.parameters.size))


def test_spreads_are_quartiles_of_a_clock():
    ticks = iter([9, 0, 1, 0, 2, 0, 3])  # the end of the first round is not asked for
    found = protocol.spreads({"run": lambda: None}, 3, lambda: float(next(ticks)))
    assert found == {"run": Spread(1.5, 2.0, 2.5)}
