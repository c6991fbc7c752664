"""Candidates: a model of another package enters the default's contest, and wins where it fits."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.tasks.test_names import install
from tests.zo.row_boxes import FromTorch
from zo.tangents import AutoTangent

WAVES = """
import torch
from zo.tangents import Candidate, ValueTangent

class Waves(ValueTangent):  # y = c sin(40 x), with c fitted to all rows that were seen
    def __init__(self):
        super().__init__(window=500, output_map=False)
        self.c = None

    @property
    def knows(self):
        return self.c is not None

    def learn_from_window(self, steps):
        z, _, y = self._window.columns
        waves = torch.sin(40 * z)
        self.c = (waves * y).sum(0) / waves.square().sum(0)

    def within(self, z, others):
        return self.c * torch.sin(40 * z)

def fits(specs):
    return None if [spec.name for spec in specs.outputs] == ["wave"] else "no wave"

CANDIDATE = Candidate("waves", fits, lambda box, seed: Waves())
"""


def box_of(name: str) -> FromTorch:
    return FromTorch(lambda x: 3 * torch.sin(40 * x), (ArraySpec("x", (2,)),), (ArraySpec(name, (2,)),))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("waves", None)


@pytest.fixture
def waves(site):
    """A package with a candidate, as pip leaves it."""
    (site / "waves.py").write_text(WAVES)
    install(site, "waves", "1.0", "waves = waves:CANDIDATE", group="zo.tangents")


def test_a_model_that_ships_learns_beside_it_also_where_that_waits_in_reserve(waves):
    """Of 40 inputs: the perceptron, which else begins only where trust is lost."""
    specs = ArraySpec("x", (40,)), ArraySpec("wave", (40,))
    box = FromTorch(lambda x: torch.sin(3 * x), specs[:1], specs[1:])
    assert list(AutoTangent(box).models) == ["waves", "mlp"]
    assert list(AutoTangent(box, without=["waves"]).models) == ["mlp"]


def trained(box, steps: int) -> zo.TangentGradient:
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    gradient = zo.TangentGradient(
        network,
        lambda net, batch: box(net(batch)).square().mean(dim=1),
        boxes=[box],
        limits=zo.tangents.Limits(replays=0),
    )
    for n in range(steps):
        gradient.backward(torch.randn(8, 2, generator=torch.Generator().manual_seed(n)))
    return gradient


def test_a_model_of_another_package_enters_the_contest_and_wins_where_it_fits(waves, limits):
    limits(contest_steps=4)
    box = box_of("wave")
    assert list(AutoTangent(box).models) == ["kernel", "waves"] and "Waves(" in repr(AutoTangent(box))
    (tangent,) = trained(box, 5).tangents
    assert isinstance(tangent, AutoTangent) and list(tangent.models) == ["waves"]
    x = torch.rand(4, 2, dtype=torch.float64)
    at = tangent.model.within(x.float(), x.new_zeros(4, 0).float())
    assert torch.allclose(at, 3 * torch.sin(40 * x).float(), atol=1e-3)


def test_where_it_does_not_fit_nothing_changes_and_the_reason_is_kept(waves):
    before = repr(AutoTangent(box_of("other"), without=["waves"]))
    tangent = AutoTangent(box_of("other"))
    assert repr(tangent) == before and tangent.unfit["waves"] == "no wave"
    assert list(AutoTangent(box_of("wave"), without=["waves"]).models) == ["kernel"]


def test_it_goes_on_to_the_same_answers_from_its_state(waves, limits):
    limits(contest_steps=100)
    (tangent,) = trained(box_of("wave"), 2).tangents
    state, again = tangent.state_dict(), AutoTangent(box_of("wave"))
    assert set(state["models"]) == {"kernel", "waves"} and set(again.models) == {"kernel", "waves"}


def test_nobody_takes_over_a_candidate_that_ships(site):
    (site / "waves.py").write_text("raise SystemExit('imported')")
    install(site, "cuckoo", "1.0", "kernel = waves:CANDIDATE", group="zo.tangents")
    assert type(AutoTangent(box_of("wave")).model) is zo.tangents.KernelTangent


def test_what_lies_in_the_current_folder_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "waves.py").write_text("raise SystemExit('imported')")
    install(tmp_path, "waves", "1.0", "waves = waves:CANDIDATE", group="zo.tangents")
    for entry in ("", str(tmp_path)):
        monkeypatch.setattr(sys, "path", [entry, *sys.path])
        monkeypatch.chdir(tmp_path)
        assert list(AutoTangent(box_of("wave")).models) == ["kernel"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("CANDIDATE = 3", "expected a zo.tangents.Candidate of that name, got 3"),
        ("import no_such_module", "expected something at .*from waves 1.0, got ModuleNotFoundError"),
        ("", "got AttributeError"),
    ],
)
def test_what_is_no_candidate_is_refused_with_the_package_s_name(site, code, words):
    (site / "waves.py").write_text(code)
    install(site, "waves", "1.0", "waves = waves:CANDIDATE", group="zo.tangents")
    with pytest.raises(zo.errors.ConfigurationError, match=words):
        AutoTangent(box_of("wave"))
    assert list(AutoTangent(box_of("wave"), without=["waves"]).models) == ["kernel"]


def test_names_that_nobody_has_and_boxes_that_nobody_fits_are_refused():
    with pytest.raises(zo.errors.ConfigurationError, match=r"without: expected names .*, got wavelets"):
        AutoTangent(box_of("wave"), without=["wavelets"])
    with pytest.raises(
        zo.errors.ConfigurationError, match="expected a candidate that fits the box, got none"
    ):
        AutoTangent(box_of("wave"), without=["kernel", "mlp"])


def test_an_evaluator_of_another_package_is_found_by_its_name(site):
    code = """
from zo.evaluators import Evaluator, Loop

class Slow(Evaluator):
    def begin(self, step, base):
        return Loop().begin(step, base)
"""
    (site / "waves.py").write_text(code)
    install(site, "waves", "1.0", "slow = waves:Slow", group="zo.evaluators")
    network = nn.Linear(2, 1)
    gradient = zo.LossGradient(
        network, lambda net, x: net(x).square().mean(dim=1), zo.CGE(mu=1e-3), seed=0, evaluator="slow"
    )
    gradient.backward(torch.ones(3, 2))
    assert "Slow" in repr(gradient)
    with pytest.raises(
        zo.errors.ConfigurationError, match="'auto', 'loop', 'stacked', 'difference', 'slow' or an"
    ):
        zo.LossGradient(network, lambda net, x: net(x), zo.CGE(mu=1e-3), seed=0, evaluator="fast")
