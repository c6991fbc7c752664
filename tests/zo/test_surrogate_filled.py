"""Estimators that take a surrogate from `.grad`: what they cost, failures, resuming, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typeguard import suppress_type_checks

import zo
from tests.zo.boxes import Sine
from tests.zo.row_boxes import weights
from zo.estimators import ControlVariate, Coordinates, SurrogateFilled

FILLED = SurrogateFilled(1e-4, 6)
CENTRAL = SurrogateFilled(1e-4, 6, True)
CORRECTED = ControlVariate(zo.RGE(1e-4, 5))
ESTIMATORS = {"filled": FILLED, "central": CENTRAL, "corrected": CORRECTED}
QUERIES = {"filled": 6, "central": 12, "corrected": 5}


def make_network(dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)


def through(box):
    def objective(network, batch):
        return box(batch + network(batch)).square().mean(dim=1)

    return objective


def flat_grad(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def with_surrogate(network, scale=1.0) -> torch.Tensor:
    """A surrogate in `.grad`, flat."""
    for seed, p in enumerate(network.parameters()):
        p.grad = (scale * weights(*p.shape, seed=seed)).to(p.dtype)
    return flat_grad(network)


def losing(objective, network, estimator, lost):
    """The objective, with a row lost in these queries of the first step."""
    parameters = zo.estimators.Parameters(network)
    base, plan = parameters.flat(), estimator.plan(parameters, zo.estimators.Key(0))
    queries = plan.chunk(0, plan.queries)
    if isinstance(queries, Coordinates):
        moves = torch.zeros(len(queries), parameters.size).double()
        moves[torch.arange(len(queries)), queries.indices] = queries.steps
    else:
        moves = queries.steps

    def sabotaged(network, batch):
        found, moved = objective(network, batch), zo.estimators.Parameters(network).flat() - base
        if any(torch.allclose(moved, moves[query], rtol=0, atol=1e-10) for query in lost):
            found[0] = float("nan")
        return found

    return sabotaged


def step(estimator, evaluator="loop", scale=1.0, lost=(), **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Surrogate and gradient."""
    network = make_network()
    surrogate = with_surrogate(network, scale)
    objective = losing(through(Sine()), network, estimator, lost) if lost else through(Sine())
    gradient = zo.LossGradient(network, objective, estimator, evaluator=evaluator, **settings)
    gradient.backward(weights(3, 4))
    return surrogate, flat_grad(network)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "auto"])
def test_with_a_tangents_gradient_the_counts_of_both_are_what_the_box_was_asked(kind, evaluator):
    network, box, batch = make_network(), Sine(), weights(3, 4)
    surrogate = zo.TangentGradient(network, through(box), boxes=[box], tangent=zo.LowRankTangent(), probes=2)
    gradient = zo.LossGradient(network, through(box), ESTIMATORS[kind], evaluator=evaluator)
    assert gradient.queries() == QUERIES[kind]
    for _ in range(2):
        network.zero_grad()
        surrogate.backward(batch)
        learned = flat_grad(network)
        gradient.backward(batch)
        assert not torch.allclose(flat_grad(network), learned, rtol=1e-3)
    assert gradient.counts.queries - gradient.counts.checks == 2 * QUERIES[kind]
    assert surrogate.counts.steps == gradient.counts.steps == 2
    asked = 3 * (gradient.counts.queries + gradient.counts.steps)
    assert box.ledger.rows_asked == surrogate.counts.rows + asked


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_evaluators_agree_and_the_gradient_takes_the_surrogates_place(kind):
    (_, one), (_, other) = step(ESTIMATORS[kind], "loop"), step(ESTIMATORS[kind], "stacked")
    assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("estimator", [FILLED, CENTRAL], ids=["forward", "central"])
def test_measured_where_it_was_drawn_and_scaled_elsewhere(estimator):
    """Against CGE of all coordinates, and the least-squares scale by NumPy's solver."""
    surrogate, found = step(estimator)
    network = make_network()
    zo.LossGradient(network, through(Sine()), zo.CGE(1e-4, central=estimator.central)).backward(weights(3, 4))
    whole = flat_grad(network)
    measured = torch.isclose(found, whole, rtol=1e-7, atol=1e-12)
    assert measured.sum() == 6
    solved = torch.linalg.lstsq(surrogate[measured][:, None], whole[measured][:, None]).solution
    assert torch.allclose(found[~measured], solved.flatten() * surrogate[~measured], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-150, -1.0, 1e150])
def test_the_surrogates_scale_is_of_no_account(scale):
    (_, one), (_, other) = step(FILLED), step(FILLED, scale=scale)
    assert torch.allclose(one, other, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("estimator", "lost"), [(FILLED, [0, 4]), (CENTRAL, [0, 10])])
def test_coordinates_of_failed_queries_are_filled_and_leave_the_scale(estimator, lost):
    surrogate, whole = step(estimator)
    _, found = step(estimator, lost=lost, max_dropped=0.5)
    network = make_network()
    with_surrogate(network)
    drawn = estimator.plan(zo.estimators.Parameters(network), zo.estimators.Key(0)).chunk(0, 6).indices
    failed = drawn[[0, 4]]
    kept = drawn[[1, 2, 3, 5]]
    assert torch.equal(found[kept], whole[kept])
    alpha = float(whole[kept] @ surrogate[kept] / (surrogate[kept] @ surrogate[kept]))
    assert torch.allclose(found[failed], alpha * surrogate[failed], rtol=1e-12)
    assert not torch.allclose(found[failed], whole[failed], rtol=1e-3)


def test_failed_queries_leave_the_mean_of_the_corrections():
    surrogate, _ = step(CORRECTED)
    _, found = step(CORRECTED, lost=[1], max_dropped=0.5)
    kept = []
    for alone in (0, 2, 3, 4):  # each direction by itself, all others lost
        lost = [other for other in range(5) if other != alone]
        kept.append(step(CORRECTED, lost=lost, max_dropped=0.9)[1] - surrogate)
    assert torch.allclose(found - surrogate, torch.stack(kept).mean(dim=0), rtol=1e-9, atol=1e-12)


def test_a_surrogate_that_is_zero_on_all_that_was_measured_fills_nothing():
    """All its weight is on one coordinate, whose query fails: nothing speaks for it."""
    network = make_network()
    with_surrogate(network)
    for p in network.parameters():
        p.grad.zero_()
    next(network.parameters()).grad[0, 0] = 1e-3
    estimator = SurrogateFilled(1e-4, 10)
    drawn = estimator.plan(zo.estimators.Parameters(network), zo.estimators.Key(0)).chunk(0, 10).indices
    assert drawn[0] == 0  # 5 / 6 of the probability, ten times
    objective = losing(through(Sine()), network, estimator, [0])
    gradient = zo.LossGradient(network, objective, estimator, evaluator="loop", max_dropped=0.5)
    gradient.backward(weights(3, 4))
    assert torch.nonzero(flat_grad(network)).flatten().tolist() == drawn[1:].tolist()


def test_parameters_that_the_surrogate_does_not_reach_count_as_zero():
    network = make_network()
    for p in network[2].parameters():
        p.grad = weights(*p.shape)
    parameters = zo.estimators.Parameters(network)
    plan = SurrogateFilled(1e-4, 6).plan(parameters, zo.estimators.Key(0))
    assert (plan.surrogate[: parameters.starts[2]] == 0).all()
    assert (plan.surrogate[parameters.starts[2] :] != 0).all()


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_last_steps_gradient_as_surrogate_and_resumed_to_the_bit(kind, tmp_path):
    """`.grad` is never zeroed: it is all that a run has beside the states of network and gradient."""

    def run(resume: bool) -> torch.Tensor:
        network, box = make_network(torch.float32), Sine()
        estimator = {"filled": SurrogateFilled(1e-3, 6), "central": SurrogateFilled(1e-2, 6, True)}.get(
            kind, ControlVariate(zo.RGE(1e-3, 5))
        )

        def make():
            return zo.LossGradient(network, through(box), estimator, seed=3)

        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        gradient = make()
        for n in range(6):
            if resume and n == 3:
                torch.save(gradient.state_dict(), tmp_path / "state.pt")
                gradient = make()
                gradient.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            gradient.backward(weights(3, 4, seed=n).float())
            with torch.no_grad():
                for p in network.parameters():
                    p -= 0.1 * p.grad
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(run(False), run(True))


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    network = make_network()
    torch.set_rng_state(state)
    with_surrogate(network)
    plans = []
    for disturb in (1, 2):
        torch.manual_seed(disturb)
        before = torch.get_rng_state()
        plans.append(FILLED.plan(zo.estimators.Parameters(network), zo.estimators.Key(0)).chunk(0, 6).indices)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*plans)


def test_too_many_failures_leave_the_surrogate_where_it_is():
    network = make_network()
    surrogate = with_surrogate(network)
    objective = losing(through(Sine()), network, FILLED, [0, 1])
    gradient = zo.LossGradient(network, objective, FILLED, evaluator="loop")
    with pytest.raises(zo.FailedQueriesError):
        gradient.backward(weights(3, 4))
    assert torch.equal(flat_grad(network), surrogate)


def spoiled(value: float):
    network = make_network()
    with_surrogate(network)
    network[2].weight.grad[0, 0] = value
    return network


REFUSED = {
    "no surrogate": (make_network, FILLED, zo.ConfigurationError, ["SurrogateFilled", "None", "zero_grad"]),
    "none to correct": (
        make_network,
        CORRECTED,
        zo.ConfigurationError,
        ["ControlVariate", "backward(batch)"],
    ),
    "NaN": (lambda: spoiled(float("nan")), FILLED, zo.errors.TangentError, ["'2.weight'", "step 0", "zeros"]),
    "infinite": (lambda: spoiled(float("inf")), CORRECTED, zo.errors.TangentError, ["'2.weight'", "finite"]),
    "too many": (
        lambda: spoiled(0.0),
        SurrogateFilled(1e-4, 50),
        zo.ConfigurationError,
        ["at most the 49 parameters", "50", "CGE"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_surrogates_are_named_errors(case):
    make, estimator, error, words = REFUSED[case]
    gradient = zo.LossGradient(make(), through(Sine()), estimator, evaluator="loop")
    with pytest.raises(error) as caught:
        gradient.backward(weights(3, 4))
    assert all(word in str(caught.value) for word in words)


SETTINGS = [
    (lambda: SurrogateFilled(0.0, 5), ["SurrogateFilled, mu", "0.0"]),
    (lambda: SurrogateFilled(1e-3, 0), ["SurrogateFilled, coordinates", "0"]),
    (lambda: SurrogateFilled(1e-3, 5, "both"), ["central", "both", "True"]),
    (
        lambda: ControlVariate(zo.RGE(1e-3, 5, sparsity=zo.RandomCoordinates(3))),
        ["ControlVariate, directions", "RandomCoordinates(size=3", "SurrogateFilled"],
    ),
]


@pytest.mark.parametrize(("make", "words"), SETTINGS, ids=range(len(SETTINGS)))
@suppress_type_checks
def test_bad_settings_are_named_errors(make, words):
    with pytest.raises(zo.ConfigurationError) as caught:
        make()
    assert all(word in str(caught.value) for word in words)
