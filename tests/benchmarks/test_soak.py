"""The soak: its faults hang on the seed alone, its comparison sees a bit, and a minute of it ends well."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.soak import damage, faults, orders, outcome, report
from benchmarks.soak.boxes import NearestMean
from tasks.configuration import to_dict
from tasks.runs import checkpoint
from tasks.runs.folder import Run
from tests.tasks.toy import Config

ROOT = Path(__file__).parents[2]
SETTINGS = {"rows": True, "mounts": True, "slow": True, "workers": 2, "step": 0.4}


def test_faults_hang_on_seed_and_round_alone():
    assert faults.plan(3, 1, **SETTINGS) == faults.plan(3, 1, **SETTINGS)
    assert faults.plan(3, 1, **SETTINGS) != faults.plan(4, 1, **SETTINGS)
    assert faults.plan(3, 1, **SETTINGS) != faults.plan(3, 2, **SETTINGS)


def test_every_kind_has_its_turn_and_frozen_workers_have_company():
    count = -(-len(faults.STOPPING) // faults.EACH_ROUND) + 1
    rounds = [faults.plan(0, number, **SETTINGS) for number in range(count)]
    kinds = {fault.kind for planned in rounds for fault in planned}
    assert kinds == faults.STOPPING.keys() | faults.ROWS.keys()
    for planned in rounds:
        stopping = [fault for fault in planned if fault.stops]
        assert len(stopping) == faults.EACH_ROUND
        places = [fault.at for fault in planned if fault.at is not None]
        assert places == sorted(places)
        for before, fault in pairwise(stopping):
            assert fault.kind not in ("worker frozen", "launcher killed") or before.workers == 2


def test_kinds_that_cannot_be_are_left_out():
    plain = {**SETTINGS, "rows": False, "mounts": False, "slow": False}
    kinds = {fault.kind for number in range(9) for fault in faults.plan(0, number, **plain)}
    assert kinds == faults.STOPPING.keys() - {"full disk", "read-only folder", "worker frozen"}


def test_an_order_is_carried_out_by_one_row(tmp_path, monkeypatch):
    folder = tmp_path / "orders"
    folder.mkdir()
    box = NearestMean()
    image = box.means[3].reshape(1, 8, 8)
    assert not orders.obey() and box.evaluate(image).argmax() == 3
    monkeypatch.setenv(orders.VARIABLE, str(folder))
    given = orders.give(folder, 1, "nan")
    assert not torch.tensor(box.evaluate(image)).isfinite().any()
    assert orders.taken(given)
    orders.give(folder, 2, "raise")
    with pytest.raises(orders.Refused):
        box.evaluate(image)
    assert box.evaluate(image).argmax() == 3


@pytest.mark.parametrize("choice", [0.0, 0.37, 0.999])
def test_damage_is_one_bit_or_a_part(tmp_path, choice):
    path = tmp_path / "file"
    content = bytes(range(200))
    path.write_bytes(content)
    damage.flip(path, choice)
    bits = [bin(a ^ b).count("1") for a, b in zip(path.read_bytes(), content, strict=True)]
    assert sum(bits) == 1
    path.write_bytes(content)
    damage.truncate(path, choice)
    assert path.read_bytes() == content[: int(choice * 200)]


def finished_run(root, weight, seconds, rows=7):
    run = Run.create(root, "toy", "demo", Config(), [0])
    state = {"network": {"w": weight}, "gradient": {"costs": {"seconds": seconds}, "counts": 3}}
    content = {"state": state, "best": None, "outcome": {"seconds": seconds, "step": 4}}
    checkpoint.save(run.path / "checkpoints" / "seed-0__zo.step-00000004.safetensors", content)
    run.log("seed-0/zo", 4, loss=0.5, seconds=seconds, rows=rows)
    run.log("seed-0/zo", 4, seconds_left=seconds)
    table = [{"method": "zo", "value": 1.0, "seconds": seconds, "extra": {"failed rows": rows}}]
    (run.path / "result.json").write_text(json.dumps({"table": table, "config": to_dict(Config())}))
    return outcome.of(run.path)


def test_the_comparison_sees_a_bit_but_neither_clock_nor_costs(tmp_path):
    weight = torch.linspace(-1, 1, 7)
    one = finished_run(tmp_path, weight, 1.0)
    assert not outcome.differences(one, finished_run(tmp_path, weight, 2.0, rows=14))
    other = weight.clone()
    other[3] = torch.nextafter(other[3], other[4])
    assert outcome.differences(one, finished_run(tmp_path, other, 1.0)) == ["seed-0__zo/state/network/w"]
    assert outcome.differences(one, {}) == sorted(one)


def test_the_report_counts_every_fault_and_what_was_not_as_it_should(tmp_path):
    fault = {"kind": "nan", "second": 1.0, "recovered": "row run again", "as_promised": True}
    found = {
        **{"job": "toy", "round": 0, "seconds": 3.0, "seconds undisturbed": 1.0, "starts": 2, "lines": 4},
        **{"compared": 5, "different": [], "broken": None, "track": [(0.0, 0), (3.0, 4)]},
        "faults": [fault, fault, {**fault, "kind": "SIGTERM", "recovered": "resumed with 1 worker"}],
    }
    assert report.good([found])
    assert report.counts([found])["nan"] == {"row run again": 2}
    assert "| nan | a row that is not finite | 2 | 2 row run again |" in report.markdown(
        [found], report.Options(60, 0, 2)
    )
    assert not report.good([{**found, "different": ["weight"]}])
    assert not report.good([{**found, "broken": "it hangs"}])
    assert not report.good([{**found, "faults": [{**fault, "as_promised": False}]}])
    assert report.picture([found, found], tmp_path / "soak.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_minute_under_faults_ends_with_the_bits_of_a_quiet_run(tmp_path):
    words = ["--seconds", "60", "--jobs", "denoised-smoothing", "wake-flow", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["rounds"] and sum(len(played["faults"]) for played in found["rounds"]) > 0
    assert all(not played["different"] and played["broken"] is None for played in found["rounds"])
