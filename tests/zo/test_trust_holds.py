"""What made trust be lost is shown to be gone before probes are taken back: no oscillation, few words."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec
from tests.zo.checks import check_of
from tests.zo.row_boxes import FromTorch
from zo import TrustPolicy
from zo.errors import TangentWarning
from zo.tangents.trust.watch import TrustWatch

CELLS = 8


def closed_loop(
    steps: int, right_without: Callable[[int], bool] = lambda step: False, resume: int | None = None, **terms
) -> tuple[list[int], list[str], TrustWatch]:
    """Probes of each step and warnings, where checks find fault in steps without probes alone."""
    watch = TrustWatch(TrustPolicy(), 0, 3.5, **terms)
    probes, said = [], []
    for step in range(steps):
        if step == resume:
            state = copy.deepcopy(watch.state_dict())
            watch = TrustWatch(TrustPolicy(), 0, 3.5, **terms)
            watch.load_state_dict(state)
        probes.append(watch.probes)
        right = watch.probes > 0 or right_without(step)
        check = check_of(1.0 if right else 0.0) if watch.checks(step) else check_of()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.saw(step, 0.1, check)
        said += [str(warning.message) for warning in caught]
    return probes, said, watch


def test_probes_stay_while_a_step_without_them_shows_the_fault_and_trials_get_rarer():
    probes, said, watch = closed_loop(800)
    without = [step + 1 for step, number in enumerate(probes) if not number]
    # Checks are at 10 and every 25th step; each trial that fails doubles the time until the next one.
    assert without == [*range(1, 12), 25, 75, 175, 375, 775]
    assert watch.lost and len(said) == 2
    assert "From now on 1 probe until trust returns" in said[0]
    assert "in a step without the 1 probe" in said[1] and "asks the boxes for 2 times the rows" in said[1]
    assert "after step 74" in said[1] and "up to 3 times" in said[1]


def test_where_a_step_without_them_is_right_probes_go():
    probes, said, watch = closed_loop(200, lambda step: step > 20)
    assert [step + 1 for step, number in enumerate(probes) if number] == list(range(12, 25))
    assert not watch.lost and len(said) == 1


def test_a_fault_that_comes_again_keeps_its_probes_longer_and_is_said_for_the_last_time():
    """Right in each trial, wrong 25 steps later: as of a model that has just learned from probes."""
    wrong = (10, 50, 125, 275, 525)
    probes, said, _ = closed_loop(300, lambda step: step + 1 not in wrong)
    runs = "".join(map(str, probes)).split("0")
    assert [len(run) for run in runs if run][:3] == [13, 49, 99]  # twice, four times 25, but for the trial
    assert len(said) == 2 and "Later changes are not said" in said[1] and "up to 3 times" in said[1]


def test_an_error_of_values_that_comes_again_holds_probes_too():
    """First order's errors with probes are good, those of values never: probes go once, and not again."""
    watch, probes = TrustWatch(TrustPolicy(), 0, 3.5), []
    with pytest.warns(TangentWarning) as caught:
        for step in range(300):
            probes.append(watch.probes)
            right = check_of(1.0) if watch.checks(step) and watch.probes else check_of()
            watch.saw(step, 0.1 if watch.probes else 2.0, right)
    bought = [step for step in range(1, 300) if probes[step] and not probes[step - 1]]
    assert len(caught) == 2 and sum(probes[bought[1] :]) >= 0.95 * (300 - bought[1])


def test_a_check_that_shows_nothing_takes_no_probes_back():
    watch = TrustWatch(TrustPolicy(), 0, 3.5)
    probes = []
    with pytest.warns(TangentWarning) as caught:
        for step in range(200):
            probes.append(watch.probes)
            watch.saw(step, 0.1, check_of(0.0) if step == 9 else check_of())
    assert [step + 1 for step, number in enumerate(probes[11:], start=11) if not number] == [25, 75, 175]
    assert len(caught) == 1


@pytest.mark.parametrize("resume", [24, 25, 60, 74, 75])
def test_a_resumed_watch_is_the_same_and_says_nothing_twice(resume):
    whole, parts = closed_loop(180), closed_loop(180, resume=resume)
    assert parts[:2] == whole[:2] and parts[2].state == whole[2].state


def advanced(x: Tensor, a: Tensor) -> Tensor:
    """A step of Lorenz-96 by Runge-Kutta, with a forcing a beside the usual one."""

    def tendency(x: Tensor) -> Tensor:
        return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 10 + a

    h = 0.02
    first = tendency(x)
    second = tendency(x + h / 2 * first)
    third = tendency(x + h / 2 * second)
    return x + h / 6 * (first + 2 * second + 2 * third + tendency(x + h * third))


def truth(x: Tensor) -> Tensor:
    return advanced(x, -0.2 * x - 0.05 * x.square() + 2 * torch.sin(x))


def objective(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """The action is a function of the observation: no value shows the derivative by the one alone."""

    def losses(network: nn.Module, x: Tensor) -> Tensor:
        state, goal, loss = x, x, x.new_zeros(len(x))
        for _ in range(6):
            state, goal = call(state, 5 * network(state / 5)), truth(goal)
            loss = loss + (state - goal).square().mean(dim=1)
        return loss

    return losses


def trained(steps: int, resume: int | None = None, **settings):
    """Probes, cosines with the exact gradient and warnings of a closure's training, and its weights."""
    torch.manual_seed(0)
    spec = [ArraySpec(name, shape=(CELLS,)) for name in ("x", "a")]
    box = FromTorch(advanced, tuple(spec), (spec[0],))
    states = 10 * torch.rand(256, CELLS)
    for _ in range(300):
        states = truth(states)
    network = nn.Sequential(nn.Linear(CELLS, 32), nn.SiLU(), nn.Linear(32, CELLS))
    settings |= {"excite": 0}  # the first remedy, for no rows, would do
    made = lambda: zo.ProbedGradient(network, objective(box), boxes=[box], seed=0, **settings)  # noqa: E731
    gradient, optimizer = made(), torch.optim.Adam(network.parameters(), lr=1e-3)
    probes, cosines, said = [], [], []
    for step in range(steps):
        if step == resume:
            state, gradient = copy.deepcopy(gradient.state_dict()), made()
            gradient.load_state_dict(state)
        optimizer.zero_grad()
        batch = states[torch.randint(256, (8,), generator=torch.Generator().manual_seed(step))]
        probes.append(gradient.watch.probes)
        loss = objective(advanced)(network, batch).mean()
        exact = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gradient.backward(batch)
        said += [str(warning.message) for warning in caught if warning.category is TangentWarning]
        found = torch.cat([weight.grad.flatten() for weight in network.parameters()])
        cosines.append(float(torch.cosine_similarity(found, exact, dim=0)))
        optimizer.step()
    return probes, cosines, said, nn.utils.parameters_to_vector(network.parameters()).detach()


@pytest.mark.slow
def test_in_a_closed_loop_probes_stay_and_the_gradient_is_right_while_they_do():
    probes, cosines, said, _ = trained(300)
    bought = probes.index(1)
    with_probes = [cosine for number, cosine in zip(probes, cosines, strict=True) if number]
    without = [cosine for number, cosine in zip(probes[:bought], cosines[:bought], strict=True)]
    assert sorted(without)[len(without) // 2] < 0.5  # without probes it is no gradient
    assert sorted(with_probes)[len(with_probes) // 10] > 0.9
    assert sum(number > 0 for number in probes[100:]) >= 0.95 * 200
    assert len(said) <= 3 and "up to 3 times" in said[-1]


@pytest.mark.slow
def test_a_resumed_training_has_the_same_bits_across_a_trial():
    policy = TrustPolicy(check_every=5, average=2)
    whole = trained(24, trust_policy=policy)
    first = whole[0].index(1)
    trial = first + whole[0][first:].index(0)  # a step without the probes that were bought
    for resume in (trial, trial + 1):
        parts = trained(24, resume, trust_policy=policy)
        assert parts[:2] == whole[:2] and torch.equal(parts[3], whole[3])
