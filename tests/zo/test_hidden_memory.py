"""Programs that keep something between their calls: found by earlier dithers, and shown to the model."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import zo
from benchmarks.closed_loop.lorenz import lorenz_program
from benchmarks.closed_loop.mechanics import dead_band_program
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from tests.zo.ranks import results_by_rank
from zo.execution import SharedRows

CALLS, CASES = 10, 400
STATES = torch.randn(CASES, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
DRIVE = torch.tensor([[1.0, 0.2, -0.5], [0.1, -0.8, 0.6]], dtype=torch.float64)


def moved(state, acting):
    turned = torch.stack([state[:, 1], state[:, 2], -state[:, 0]], dim=1)
    return state + 0.1 * (turned - 0.2 * state**3) + 0.2 * acting @ DRIVE.to(state)


def kept_after(kept, action, kind):
    """What acts now, and what is kept: a lag's state, or of a delay the last three actions."""
    if kind == "delay":
        return kept[0], [*kept[1:], action]
    if kind == "lag":
        kept = [kept[0] + (action - kept[0]) / 5]
        return kept[0], kept
    return action, kept


def first(state, kind):
    return [-0.3 * state[:, :2]] * (3 if kind == "delay" else 1)


def program_of(kind, **declared):
    def program(case, host):
        state = STATES[case][None]
        kept = first(state, kind)
        for _ in range(200):
            answer = np.array(host.exchange("control", state[0].numpy()))
            acting, kept = kept_after(kept, torch.from_numpy(answer)[None], kind)
            state = moved(state, acting)

    call = Call("control", sees=ArraySpec("state", (3,)), gives=ArraySpec("action", (2,)), **declared)
    return Hosted(program, calls=[call])


def through(host):
    def objective(network, batch):
        seen = host.run(batch[0], calls=CALLS, control=network).control.state
        return seen[:, 1:].square().mean(dim=(1, 2))

    return objective


def twin(kind):
    def objective(network, batch):
        state, total = STATES[batch[0]].float(), 0.0
        kept = first(state, kind)
        for _ in range(CALLS):
            acting, kept = kept_after(kept, network(state), kind)
            state = moved(state, acting)
            total = total + state.square().mean(dim=1)
        return total / CALLS

    return objective


def policy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))


def batch(step):
    return (torch.randint(0, CASES, (12,), generator=torch.Generator().manual_seed(step)),)


def trained(gradient, kind, steps):
    """Cosines and lengths of gradients beside the exact ones, by step, and what was said."""
    network, found, said = gradient.network, {}, []
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in steps:
        optimizer.zero_grad()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", zo.TangentWarning)
            gradient.backward(batch(step))
        said += [str(one.message) for one in caught]
        if network[0].weight.grad is not None:
            exact = torch.autograd.grad(twin(kind)(network, batch(step)).mean(), list(network.parameters()))
            true = torch.cat([part.flatten() for part in exact])
            mine = torch.cat([weight.grad.flatten() for weight in network.parameters()])
            found[step] = float(torch.cosine_similarity(mine, true, dim=0)), float(mine.norm() / true.norm())
        optimizer.step()
    return found, said


def gradient_of(host, **settings):
    unchecked = zo.tangents.Limits(check_every=None)
    settings = {"limits": unchecked, **settings}
    return zo.TangentGradient(policy(), through(host), boxes=[host], seed=0, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lag", "delay"])
def test_what_a_program_keeps_is_found_and_the_gradient_becomes_the_true_one(kind):
    host = program_of(kind)
    gradient = gradient_of(host)
    found, said = trained(gradient, kind, range(10))
    assert gradient._stand_ins.memory == {0: (1,) if kind == "lag" else (3,)}
    told = [words for words in said if "it keeps something that it does not send" in words]
    assert len(told) == 1
    late = [found[step] for step in range(7, 10)]
    assert min(cosine for cosine, _ in late) > 0.97
    assert all(0.8 < length < 1.2 for _, length in late)
    assert gradient.counts.rows == 10 * 12 * CALLS  # for no row


@pytest.mark.slow
@pytest.mark.parametrize("tangent", [None, zo.tangents.KernelTangent()], ids=["default", "named"])
def test_where_nothing_is_kept_nothing_is_shown_and_nothing_said(tangent):
    host = program_of("nothing")
    gradient = gradient_of(host, tangent=tangent)
    found, said = trained(gradient, "nothing", range(10))
    assert gradient._stand_ins.memory == {} and not said
    assert min(found[step][0] for step in range(6, 10)) > 0.97


@pytest.mark.slow
def test_one_number_that_acts_at_once_names_no_lag_by_chance():
    """F of eight lags, each of few numbers, was above what of many is rare; a late call was then foretold."""
    program = dead_band_program()
    torch.manual_seed(0)
    network, generator = program.network(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    gradient = zo.TangentGradient(network, program.objective, boxes=[program.host], seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", zo.TangentWarning)
        for _ in range(8):
            optimizer.zero_grad()
            gradient.backward(program.batch(generator, 8, False))
            optimizer.step()
    program.host.close()
    assert not caught


@pytest.mark.slow
def test_once_a_response_is_known_a_program_is_dithered_as_little_as_at_first():
    """It goes on from what it was given, so its losses have the dither in them: gradients had that noise."""
    program = lorenz_program(lag=1)
    torch.manual_seed(0)
    network, generator, sizes = program.network(), np.random.default_rng(0), []
    unchecked = zo.tangents.Limits(check_every=None)
    gradient = zo.TangentGradient(network, program.objective, boxes=[program.host], seed=0, limits=unchecked)
    while not sizes or gradient.metrics()["tangent_waits"]:
        gradient.backward(program.batch(generator, 8, False))
        sizes.append(float(gradient.excitation[0]["a"].max()))
    program.host.close()
    assert max(sizes) > 5 * sizes[0] and sizes[-1] <= sizes[0]


@pytest.mark.parametrize("more", [{"same": 0}, {}], ids=["alike places", "many numbers"])
def test_a_declared_memory_that_no_model_is_shown_is_refused(more):
    array = (40, 2) if more else (40,)
    call = Call("mix", ArraySpec("T", array), ArraySpec("K", array), memory=1, **more)
    host = Hosted(lambda case, host: None, calls=[call])
    with pytest.raises(zo.errors.ConfigurationError, match=r"at most 64 .* leave memory= out"):
        zo.TangentGradient(policy(), through(host), boxes=[host])


def test_a_resumed_training_goes_on_to_the_same_bits():
    """With replays, which are of calls before and after the memory was found; while two learn, and after."""
    host = program_of("lag")

    def weights_by_step(gradient, first, last):
        """Weights and states behind each step, by the steps that were made."""
        optimizer, found = torch.optim.SGD(gradient.network.parameters(), 1e-2), {}
        for step in range(first, last):
            optimizer.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", zo.TangentWarning)
                gradient.backward(batch(step))
                optimizer.step()
                if gradient.replays():
                    optimizer.zero_grad()
                    gradient.replay()
                    optimizer.step()
            weights = torch.cat([weight.detach().flatten() for weight in gradient.network.parameters()])
            state = copy.deepcopy((gradient.state_dict(), gradient.network.state_dict()))
            found[step + 1] = weights, state, gradient._stand_ins._memories[0].rival is not None
        return found

    whole = gradient_of(host)
    undisturbed = weights_by_step(whole, 0, 8)
    assert whole._stand_ins.memory == {0: (1,)}
    for stop, end in ((2, 6), (6, 8)):
        _, (state, network), two = undisturbed[stop]
        resumed = gradient_of(host)
        resumed.replays()
        resumed.load_state_dict(state)
        resumed.network.load_state_dict(network)
        assert two and bool(resumed._stand_ins.memory) == (stop == 6)
        again = weights_by_step(resumed, stop, end)
        assert resumed._stand_ins.memory == {0: (1,)}
        for step in range(stop + 1, end + 1):
            assert torch.equal(again[step][0], undisturbed[step][0])


@pytest.mark.slow
def test_a_check_of_a_model_with_memory_finds_it_right():
    host = program_of("lag")
    gradient = gradient_of(host, limits=zo.tangents.Limits(check_every=1))
    trained(gradient, "lag", range(8))
    assert gradient._stand_ins.memory == {0: (1,)}
    assert gradient.agreement == pytest.approx(1.0, abs=0.1)
    assert gradient.agreement_of_rows > 0.97 and gradient.missed < 0.2


def test_memory_that_a_call_declares_is_shown_from_the_first_step_on():
    """In the form of what is found, and nothing is said."""
    gradient = gradient_of(program_of("lag", memory=1))
    assert gradient._stand_ins.memory == {0: (1,)}
    found, said = trained(gradient, "lag", range(8))
    assert not said
    late = [found[step] for step in range(5, 8)]
    assert min(cosine for cosine, _ in late) > 0.97
    assert all(0.8 < length < 1.2 for _, length in late)


def weights_after(group=None):
    """Weights behind ten steps in front of a lag, which is found meanwhile; whether it is; rows run here."""
    host = program_of("lag").wrapped(lambda box: SharedRows(box, group))
    gradient = gradient_of(host, process_group=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.TangentWarning)
        trained(gradient, "lag", range(10))
    weights = torch.nn.utils.parameters_to_vector(gradient.network.parameters()).detach()
    return weights, gradient._stand_ins.memory == {0: (1,)}, host.ledger.rows_run


def in_groups(groups):
    return {} if groups[2] is None else {2: weights_after(groups[2])}


@pytest.mark.slow
def test_several_processes_find_the_same_and_the_first_runs_the_programs(tmp_path):
    alone, found_alone, rows_alone = weights_after()
    assert found_alone and rows_alone > 0
    results = results_by_rank([in_groups], tmp_path)
    assert [len(of_rank) for of_rank in results] == [1, 1, 0, 0]
    for rank, rows_here in ((0, rows_alone), (1, 0)):
        weights, found, rows = results[rank][2]
        assert torch.equal(weights, alone) and found and rows == rows_here
