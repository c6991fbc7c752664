"""`TangentGradient`: rows, failures, resuming, several boxes, inputs and outputs, and what it refuses."""

from __future__ import annotations

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec, BlackBoxError, Budgeted
from tests.zo.boxes import Sine
from tests.zo.learners import learner
from tests.zo.linearised import Instead
from tests.zo.row_boxes import FromTorch, weights
from zo.errors import ZeroGradientWarning
from zo.tangents import CallPairs

X = ArraySpec("x", (4,))
TANGENTS = {
    "identity": zo.IdentityTangent,
    "local": zo.SecantTangent,
    "dense": zo.LowRankTangent,
    "stack": lambda: zo.SecantTangent(zo.LowRankTangent()),
}


def make_network(dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)


def grads(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def true_grads(objective, network, batch) -> torch.Tensor:
    loss = objective(network, batch).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def chain(box, steps=3):
    def objective(network, batch):
        state, loss = batch, 0.0
        for _ in range(steps):
            state = box(state + network(state))
            loss = loss + (state - 0.5).square().mean(dim=1)
        return loss

    return objective


def full_rank(network, objective, boxes, **settings) -> zo.TangentGradient:
    """Probes that span any space that these boxes have, so the gradient must be autograd's."""
    tangent = zo.SecantTangent(cut=1e-6)
    settings = {"tangent": tangent, "probes": 16, "mu": 1e-6, **settings}
    return zo.ProbedGradient(network, objective, boxes=boxes, **settings)


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("kind", TANGENTS)
@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
@pytest.mark.parametrize("probes", [1, 3])
def test_rows_are_those_of_base_and_probes_and_no_more(kind, evaluator, probes):
    box = Sine()
    gradient = zo.ProbedGradient(
        make_network(), chain(box), boxes=[box], tangent=TANGENTS[kind](), probes=probes, evaluator=evaluator
    )
    for _ in range(2):
        gradient.backward(weights(5, 4))
    rows = 2 * (1 + probes) * 5 * 3
    assert box.ledger.rows_run == box.ledger.rows_asked == gradient.counts.rows == rows
    assert box.ledger.calls == 2 * 3 * (1 if evaluator == "stacked" else 1 + probes)
    assert gradient.counts == zo.tangents.TangentCounts(steps=2, queries=2 * probes, rows=rows, dropped=0)
    assert gradient.next_queries() == probes


def test_adds_to_grad_and_gives_the_base_loss():
    network, box, batch = make_network(), Sine(), weights(5, 4)
    gradient = full_rank(network, chain(box), [box])
    with torch.no_grad():
        expected = chain(box)(network, batch).mean()
    loss = gradient.backward(batch)
    once = grads(network)
    gradient.counts.steps = 0  # the same draws again
    gradient.backward(batch)
    assert torch.equal(loss, expected) and not loss.requires_grad
    assert torch.allclose(grads(network), 2 * once, rtol=1e-12)


def test_draws_hang_on_seed_and_step_alone():
    gradients = []
    for seed, disturb in ((0, 1), (0, 2), (1, 1)):
        network, box = make_network(), Sine()
        torch.manual_seed(disturb)
        gradient = zo.TangentGradient(network, chain(box), boxes=[box], tangent=zo.SecantTangent(), seed=seed)
        gradient.backward(weights(5, 4))
        gradients.append(grads(network))
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-3)


def test_a_probe_draws_the_same_beside_any_others():
    changes = []
    for probes in (1, 3):
        network, box, seen = make_network(), Sine(), []
        gradient = zo.ProbedGradient(
            network, chain(box), boxes=[box], tangent=zo.IdentityTangent(), probes=probes, chunk=1
        )
        gradient.tangents[0].see = lambda rows, seen=seen: seen.append(rows.listed())
        gradient.backward(weights(5, 4))
        changes.append(seen[0].z[:5])  # the first call, the first probe
    assert torch.equal(*changes)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 9])
def test_chunks_cost_nothing_and_change_nothing_but_rounding(evaluator, chunk):
    """Four variants, in parts of one to four; nine is all of them."""

    def run(chunk) -> tuple[torch.Tensor, Sine]:
        network, box = make_network(), Sine()
        gradient = zo.ProbedGradient(
            network,
            chain(box),
            boxes=[box],
            tangent=zo.SecantTangent(),
            probes=3,
            evaluator=evaluator,
            chunk=chunk,
        )
        gradient.backward(weights(5, 4))
        assert gradient.counts.rows == box.ledger.rows_asked == 4 * 5 * 3
        return grads(network), box

    (grad, box), (expected, _) = run(chunk), run(None)
    assert torch.allclose(grad, expected, rtol=1e-6, atol=1e-9)
    parts = {1: [1] * 4, 2: [2, 2], 3: [3, 1]}.get(chunk, [4])
    if evaluator == "stacked":
        assert box.calls == [5 * part for part in parts for _ in range(3)]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", TANGENTS)
def test_resume_to_the_bit(kind, tmp_path):
    def run(resume: bool) -> tuple[torch.Tensor, list]:
        network, box = make_network(torch.float32), Sine()

        def make():
            return zo.ProbedGradient(network, chain(box), boxes=[box], tangent=TANGENTS[kind](), probes=2)

        gradient, trust = make(), []
        for step in range(14):
            if resume and step in (1, 9):
                torch.save(gradient.state_dict(), tmp_path / "state.pt")
                gradient = make()
                gradient.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            network.zero_grad()
            gradient.backward(weights(5, 4, seed=step).float())
            with torch.no_grad():
                for p in network.parameters():
                    p -= 0.1 * p.grad
            trust.append(gradient.trust)
        return torch.cat([p.detach().flatten() for p in network.parameters()]), trust

    (undisturbed, trust), (resumed, same) = run(False), run(True)
    assert torch.equal(undisturbed, resumed)
    assert trust == same


def test_trust_falls_as_the_box_is_learned():
    """A linear box: after some steps nothing is left to learn; the first call has no pairs."""
    box = FromTorch(lambda x: x @ weights(4, 4, seed=3), (X,), (X,))

    def objective(network, batch):
        return chain(box, 2)(network, box(batch))

    gradient = zo.ProbedGradient(
        make_network(), objective, boxes=[box], tangent=zo.LowRankTangent(ridge=1e-9), probes=2
    )
    errors = []
    for step in range(4):
        gradient.backward(weights(5, 4, seed=step))
        errors.append(gradient.trust)
    assert all(by_call[0] is None for by_call in errors)
    assert min(errors[0][1:]) > 0.5 and max(errors[3][1:]) < 1e-6
    of_calls = {"tangent_error_call_2", "tangent_error_call_3"}
    names = {name for name in gradient.metrics() if name.startswith("tangent_")}
    assert names == {"tangent_error", "tangent_rows", "tangent_probes", "tangent_distrusted", *of_calls}
    assert gradient.metrics()["tangent_error"] == gradient.trust_of_step < 1e-6


# Failures


@pytest.mark.quick_cases(4)
@pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")
@pytest.mark.parametrize("kind", TANGENTS)
@pytest.mark.parametrize("lost", ["by the box", "in the batch", "in the loss"])
def test_rows_lost_in_the_base_leave_the_gradient_of_the_others(kind, lost):
    def run(batch) -> tuple[torch.Tensor, torch.Tensor]:
        network, box = make_network(), Sine(limit=50.0)

        def objective(network, batch):
            state, penalty = batch
            return chain(box)(network, state) + penalty

        gradient = zo.ProbedGradient(
            network, objective, boxes=[box], tangent=TANGENTS[kind](), probes=2, mu=1e-4
        )
        loss = gradient.backward(batch)
        assert gradient.counts.dropped == 0
        return loss, grads(network)

    state, penalty, dead = weights(6, 4), torch.zeros(6).double(), [0, 4]
    alive = [row for row in range(6) if row not in dead]
    expected = run((state[alive], penalty[alive]))
    if lost == "in the loss":
        penalty[dead] = float("nan")
    else:
        state[dead] = 1e3 if lost == "by the box" else float("nan")
    for grad, wanted in zip(run((state, penalty)), expected, strict=True):
        assert torch.allclose(grad, wanted, rtol=1e-9, atol=1e-12)


class FailsInTheFirstCall(FromTorch):
    """The sine, that loses the last rows, those of the last probes, when it is first called."""

    def __init__(self, rows: int) -> None:
        super().__init__(torch.sin, (X,), (X,))
        self.rows = rows

    def evaluate_rows(self, *arrays):
        y = super().evaluate_rows(*arrays)
        if len(self.asked) == 1:
            y[len(y) - self.rows :] = float("nan")
        return y


def test_a_probe_that_fails_drops_its_pairs_and_not_the_step():
    """The last of 17 probes fails in every row: the other 16 span the space."""
    network, box, batch = make_network(), FailsInTheFirstCall(rows=5), weights(5, 4)
    gradient = full_rank(network, chain(box), [box], probes=17)
    gradient.backward(batch)
    expected = true_grads(chain(torch.sin), network, batch)
    assert torch.allclose(grads(network), expected, rtol=1e-3, atol=1e-5)
    assert gradient.counts.dropped == 5 * 3


def test_too_many_failed_pairs_are_an_error():
    network, box = make_network(), FailsInTheFirstCall(rows=10)
    gradient = zo.ProbedGradient(
        network, chain(box), boxes=[box], tangent=zo.IdentityTangent(), probes=3, max_dropped=0.6
    )
    with pytest.raises(zo.FailedQueriesError, match="at most 60% of 45 pairs to fail, 30 did"):
        gradient.backward(weights(5, 4))
    assert all(p.grad is None for p in network.parameters())
    assert gradient.counts.steps == 0


@pytest.mark.parametrize("failing", [15, 5])
def test_tangents_serve_as_they_stand_where_all_pairs_may_fail(failing):
    """The sum of the inputs: with no pair to learn from the gradient is the prior's, here the exact one."""

    class FailsInProbes(FromTorch):
        def evaluate_rows(self, x):
            y = super().evaluate_rows(x)
            y[5 : 5 + failing] = float("nan")
            return y

    box, batch, network = FailsInProbes(lambda x: x + 1.0, (X,), (X,)), weights(5, 4), make_network()
    gradient = zo.ProbedGradient(
        network, chain(box, 1), boxes=[box], tangent=zo.LowRankTangent(), probes=3, max_dropped=1.0
    )
    gradient.backward(batch)
    expected = true_grads(chain(lambda x: x + 1.0, 1), network, batch)
    assert torch.allclose(grads(network), expected, rtol=1e-10)
    assert gradient.counts.dropped == failing
    assert (gradient.trust == [None]) == (failing == 15)


def test_no_row_that_survives_is_an_error():
    network, box = make_network(), Sine(limit=-100.0)
    gradient = zo.TangentGradient(network, chain(box), boxes=[box], tangent=zo.IdentityTangent())
    with pytest.raises(zo.FailedQueriesError, match="finite loss in some row"):
        gradient.backward(weights(5, 4))


# Boxes, inputs and outputs


def test_several_boxes_inputs_and_outputs_and_integers():
    """Two boxes, one with four inputs, two of them without a derivative, and three outputs."""
    rate, kind = ArraySpec("rate", (), differentiable=False), ArraySpec("kind", (), "int64")
    side, count = ArraySpec("side", (2, 2)), ArraySpec("count", (), "int64")

    def mix(x, side, rate, kind):
        state = torch.sin(x) * rate[:, None] + side.flatten(1) * (1 + kind[:, None])
        return state, (x * side.flatten(1)).sum(dim=1), kind + 1

    def turn(x):
        return x.roll(1, dims=1) * x

    mixer = FromTorch(mix, (X, side, rate, kind), (ArraySpec("state", (4,)), ArraySpec("energy", ()), count))
    turner = FromTorch(turn, (X,), (X,))

    def objective_with(mix, turn):
        def objective(network, batch):
            state, rate, kind = batch
            loss = 0.0
            for _ in range(2):
                moved = state + network(state)
                state, energy, kind = mix(moved, network(0.5 * state).view(-1, 2, 2), rate, kind)
                state = torch.tanh(turn(state))
                loss = loss + state.square().mean(dim=1) + 0.1 * energy
            return loss

        return objective

    network = make_network()
    batch = (weights(3, 4), weights(3, seed=1).abs(), torch.tensor([0, 1, 2]))
    gradient = full_rank(network, objective_with(mixer, turner), [mixer, turner])
    gradient.backward(batch)
    expected = true_grads(objective_with(mix, turn), network, batch)
    assert torch.allclose(grads(network), expected, rtol=2e-3, atol=1e-4)
    assert len(gradient.trust) == 4 and max(gradient.trust) < 1e-2
    assert gradient.counts.rows == mixer.ledger.rows_run + turner.ledger.rows_run == 17 * 3 * 4


def test_a_pair_in_which_an_integer_input_changed_too_is_not_learned_from():
    """The box answers to the sign of the state by a jump: pairs across it say nothing about slopes."""

    def function(x, kind):
        return torch.sin(x) + 100.0 * kind[:, None]

    kind = ArraySpec("kind", (), "int64")
    box = FromTorch(function, (X, kind), (X,))
    learned = []

    class Watching(zo.IdentityTangent):
        def see(self, rows: CallPairs) -> None:
            learned.append(rows.listed())

    def objective(network, batch):
        x = 1e-3 * network(batch)
        return box(x, (x[:, 0] > 0).long()).square().mean(dim=1)

    network = make_network()
    gradient = zo.ProbedGradient(network, objective, boxes=[box], tangent=Watching(), probes=20, mu=1.0)
    gradient.tangents[0].see = Watching().see
    gradient.backward(weights(5, 4))
    (pairs,) = learned
    assert 0 < pairs.d.shape[1] < 100
    assert (pairs.response[0] * pairs.d[0]).sum(dim=1).max() < 1.01  # cosines; a jump would be 1e5


def test_identity_goes_by_name_and_shape():
    inputs = (ArraySpec("a", (2,)), ArraySpec("b", (3,)))
    outputs = (ArraySpec("b", (3,)), ArraySpec("c", (2,)), ArraySpec("a", (4,)))
    valid = torch.ones(1, 2, dtype=torch.bool)
    pairs = CallPairs(inputs, outputs, weights(2, 5), weights(1, 2, 5), weights(1, 2, 9), valid)
    d, v = weights(1, 2, 5, seed=3), weights(2, 9, seed=4)
    pushed, back = zo.IdentityTangent().at(pairs).push(d), zo.IdentityTangent().at(pairs).pull(v)
    assert torch.equal(pushed[..., :3], d[..., 2:]) and not pushed[..., 3:].any()
    assert torch.equal(back[:, 2:], v[:, :3]) and not back[:, :2].any()


def test_further_leading_axes_wrappers_and_boxes_that_are_not_named():
    """A call with (rows, 2) leading axes, through a wrapper; a second box stays a constant."""
    inner, other = FromTorch(torch.sin, (ArraySpec("x", (2,)),), (ArraySpec("x", (2,)),)), Sine()
    box = Budgeted(inner, rows=10**6)

    def objective_with(box):
        def objective(network, batch):
            state = box(network(batch).view(-1, 2, 2)).flatten(1)
            return (state - other(batch)).square().mean(dim=1)

        return objective

    network, batch = make_network(), weights(3, 4)
    full_rank(network, objective_with(box), [box]).backward(batch)
    assert torch.allclose(grads(network), true_grads(objective_with(torch.sin), network, batch), rtol=1e-3)
    assert inner.ledger.rows_run == 17 * 6


@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
def test_buffers_move_once_and_dropout_draws_one_mask(evaluator):
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4)).double()

    box, batch = FromTorch(torch.sin, (X,), (X,)), weights(6, 4)
    network, truth = make(), make()
    torch.manual_seed(3)
    full_rank(network, chain(box), [box], evaluator=evaluator).backward(batch)
    torch.manual_seed(3)
    expected = true_grads(chain(torch.sin), truth, batch)
    # The last bias is behind batch norm's; those before it have gradients of zero.
    assert torch.allclose(grads(network), expected, rtol=1e-3, atol=1e-4)
    assert torch.allclose(network[1].running_mean, truth[1].running_mean, rtol=1e-12)


# Around it


def test_two_threads_with_two_gradients_do_not_meet():
    """Through one box, whose calls wait for the other thread's: each has the gradient that it has alone."""

    networks = [make_network() for _ in range(3)]  # here, since they seed the generator of all threads

    def train(box, network) -> torch.Tensor:
        gradient = zo.ProbedGradient(network, chain(box), boxes=[box], tangent=zo.SecantTangent(), probes=3)
        gradients = []
        for step in range(3):
            network.zero_grad()
            gradient.backward(weights(5, 4, seed=step))
            gradients.append(grads(network))
        assert gradient.counts.rows == 3 * 4 * 5 * 3
        return torch.cat(gradients)

    both = threading.Barrier(2, timeout=60)

    class Meets(FromTorch):
        def evaluate_rows(self, *arrays):
            both.wait()
            return super().evaluate_rows(*arrays)

    alone = train(FromTorch(torch.sin, (X,), (X,)), networks[0])
    box = Meets(torch.sin, (X,), (X,))
    # dropout-free networks: torch's generators are one for all threads
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(train, [box, box], networks[1:]))
    assert torch.equal(results[0], alone) and torch.equal(results[1], alone)


def test_under_no_grad_the_gradient_is_the_same():
    def run() -> torch.Tensor:
        network, box = make_network(), Sine()
        full_rank(network, chain(box), [box]).backward(weights(5, 4))
        return grads(network)

    expected = run()
    with torch.no_grad():
        assert torch.equal(run(), expected)


def test_a_gradient_that_arrives_at_a_box_that_is_not_named_is_refused():
    """It would be lost there; a box whose inputs do not depend on the weights stays a constant (above)."""
    box, other = Sine(), FromTorch(torch.cos, (X,), (X,))

    def objective(network, batch):
        return other(box(network(batch))).square().mean(dim=1)

    def cut(network, batch):
        return other(box(network(batch)).detach()).square().mean(dim=1) + network(batch).mean(dim=1)

    network = make_network()
    with pytest.raises(
        zo.errors.TangentError, match=r"FromTorch, which is not in boxes.*Name the box.*x\.detach"
    ):
        zo.TangentGradient(network, objective, boxes=[box]).backward(weights(5, 4))
    assert all(p.grad is None for p in network.parameters())
    zo.TangentGradient(network, cut, boxes=[box]).backward(weights(5, 4))
    expected = true_grads(lambda network, batch: network(batch).mean(dim=1), network, weights(5, 4))
    assert torch.allclose(grads(network), expected)


def test_it_says_what_it_is():
    network, box = make_network(), Sine()
    gradient = zo.TangentGradient(network, chain(box), boxes=[box], max_rows=9)
    words = (
        "Sequential, 49 weights",
        "boxes=[Sine]",
        "AutoTangent(KernelTangent(",
        "probes=0",
        "max_rows=9",
    )
    assert all(word in repr(gradient) for word in words)
    gradient.backward(weights(20, 4))
    # the first step has a check
    assert gradient.metrics()["tangent_rows"] == gradient.counts.rows == box.ledger.rows_run == 2 * 20 * 3
    assert gradient.metrics()["queries"] == gradient.counts.queries == 1
    assert {type(value) for value in gradient.metrics().values()} == {float}


@pytest.mark.parametrize("what", ["network", "objective", "boxes"])
def test_what_a_gradient_is_made_with_is_not_replaced(what):
    """It would go on with what it was made with."""
    box = Sine()
    gradient = zo.TangentGradient(
        nn.Linear(3, 3), lambda net, x: box(net(x)).square().mean(dim=1), boxes=[box]
    )
    with pytest.raises(AttributeError, match=what):
        setattr(gradient, what, getattr(gradient, what))


@pytest.mark.parametrize("why", ["a constant box", "another network", "a graph that is cut"])
def test_a_gradient_of_zero_is_said_once_with_what_may_be_the_reason(why):
    network, other = make_network(), make_network()
    box = FromTorch(torch.zeros_like if why == "a constant box" else torch.sin, (X,), (X,))
    used = other if why == "another network" else network

    def objective(network, batch):
        inputs = used(batch)
        return box(inputs.detach() if why == "a graph that is cut" else inputs).square().mean(dim=1)

    student = zo.StudentTangent(nn.Linear(4, 4))
    gradient = zo.ProbedGradient(network, objective, boxes=[box], tangent=student, probes=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            gradient.backward(weights(5, 4))
    said = [warning for warning in caught if issubclass(warning.category, ZeroGradientWarning)]
    assert len(said) == 1 and said[0].filename == __file__
    words = str(said[0].message)
    assert ".detach()" in words and "constant" in words and "another or a copy" in words and "mu" not in words


# Refusals


def calls_of_weights(box):
    def objective(network, batch):
        state = box(network(batch))
        if not torch.is_grad_enabled():
            state = box(state)
        return state.square().mean(dim=1)

    return objective


def noisy(box):
    return lambda network, batch: box(network(batch) + torch.randn_like(batch)).square().mean(dim=1)


def mixed(box):
    return lambda network, batch: box(network(batch) - network(batch).mean()).square().mean(dim=1)


def rows_last(box):
    return lambda network, batch: box(network(batch).T.reshape(-1, 4)).view(4, -1).square().mean(dim=0)


def in_numpy(box):
    return lambda network, batch: torch.from_numpy(box(network(batch).detach().numpy())).square().mean(dim=1)


def weights_from_outside(box):
    return lambda network, batch: box(batch @ network[0].weight[:4].T).square().mean(dim=1)


def network_last(box):
    return lambda network, batch: network(box(batch)).square().mean(dim=1)


def without(box):
    return lambda network, batch: network(batch).square().mean(dim=1)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (calls_of_weights, ["expected 2 calls of the boxes, got 1", "same order"]),
        (noisy, ["input 'x' of call 1", "random numbers"]),
        (mixed, ["input 'x' of call 1", "evaluator='loop'"]),
        (rows_last, ["input 'x' of call 1", "rows first"]),
        (in_numpy, ["torch tensors", "NumPy"]),
        (weights_from_outside, ["a weight that is read elsewhere", "evaluator='loop'"]),
        (network_last, ["expected probes to change an input of a box", "1 calls", "mu"]),
        (without, ["expected a call of a box in [Sine]", "very objects"]),
    ],
)
def test_objectives_that_cannot_be_replayed(objective, words):
    network, box = make_network(), Sine()
    gradient = zo.ProbedGradient(
        network, objective(box), boxes=[box], tangent=zo.IdentityTangent(), probes=2, mu=0.1
    )
    with pytest.raises(zo.errors.TangentError) as raised:
        gradient.backward(weights(5, 4))
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert isinstance(raised.value, BlackBoxError)
    assert all(p.grad is None for p in network.parameters())
    assert box(np.zeros((1, 4))).shape == (1, 4)  # calls go to the box again


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"probes": -1}, "probes: expected a whole number >= 1"),
        ({"probes": False}, "probes: expected a whole number >= 1"),
        (
            {"probes": 0, "tangent": zo.SecantTangent()},
            r"least 1 for SecantTangent.* from changes, got 0",
        ),
        ({"probes": 0, "tangent": [zo.LowRankTangent()]}, r"at least 1 for LowRankTangent"),
        ({"mu": 0.0}, "mu: expected a finite number > 0"),
        ({"max_dropped": 2}, r"max_dropped: expected .*\[0, 1\].* got 2"),
        ({"evaluator": "difference"}, "evaluator: expected one of stacked, loop"),
        ({"evaluator": zo.evaluators.Difference()}, r"'stacked' or 'loop', .* got Difference\("),
        ({"max_rows": 0}, "max_rows: expected a finite number > 0"),
        ({"max_rows": 3, "probes": 3}, "max_rows: expected at least 4 times the rows of a first-order step"),
        ({"boxes": []}, "boxes: expected a list"),
        ({"boxes": [torch.sin]}, "expected BlackBoxFunctions"),
        ({"boxes": [FromTorch(torch.sin, (ArraySpec("n", (), "int64"),), (X,))]}, "differentiable input"),
        ({"boxes": [Sine()] * 2}, "expected different boxes"),
        ({"tangent": []}, "tangent: expected a Tangent"),
        ({"tangent": "dense"}, "tangent: expected a Tangent"),
        ({"tangent": [zo.IdentityTangent()] * 2}, "one for each of 1 boxes"),
        ({"objective": lambda: torch.zeros(())}, "objective: expected objective"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"chunk": 0}, "chunk: expected a whole number >= 1"),
    ],
)
def test_settings_out_of_range(settings, words):
    network, box = make_network(), Sine()
    arguments = {"objective": chain(box), "boxes": [box], "tangent": zo.IdentityTangent(), **settings}
    with suppress_type_checks(), pytest.raises(zo.ConfigurationError, match=words):
        zo.ProbedGradient(network, arguments.pop("objective"), **arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: zo.SecantTangent(cut=0.0), "cut: expected"),
        (lambda: zo.LowRankTangent(forgetting=1.5), "forgetting: expected"),
        (lambda: zo.LowRankTangent(ridge=0.0), "ridge: expected"),
        (lambda: zo.LowRankTangent(rank=0), "rank: expected"),
        (lambda: zo.GridTangent(channels=6), "channels: expected a multiple of 4, got 6. Take 8"),
        (lambda: zo.GridTangent(periodic="yes"), "periodic: expected True, False, one of these"),
        (lambda: zo.GridTangent(reach=0), "reach: expected a whole number >= 1"),
        (lambda: learner(zo.GridTangent, learning_rate=0.0), "learning_rate: expected a finite number > 0"),
        (lambda: zo.MLPTangent(width=0), "width: expected a whole number >= 1"),
        (lambda: learner(zo.MLPTangent, first_steps=-1), "first_steps: expected a whole number >= 1"),
        (lambda: zo.StencilTangent(4), "degree: expected 1, 2 or 3, got 4"),
        (lambda: zo.StencilTangent(periodic=[1, 0]), "periodic: expected True, False, one of these"),
        (lambda: zo.StencilTangent(ridge=1e-20), "ridge: expected"),
    ],
)
def test_tangents_out_of_range(make, words):
    with suppress_type_checks(), pytest.raises(zo.ConfigurationError, match=words):
        make()


@pytest.mark.parametrize("tangent", [zo.GridTangent(), zo.StencilTangent()], ids=repr)
def test_tangents_on_grids_need_one(tangent):
    spec = ArraySpec("y", (2, 2, 2, 2, 2))
    box = FromTorch(lambda x: x.repeat(1, 8).view(-1, 2, 2, 2, 2, 2), (X,), (spec,))
    gradient = zo.TangentGradient(
        make_network(),
        lambda network, batch: box(network(batch)).flatten(1).sum(1),
        boxes=[box],
        tangent=tangent,
    )
    name = type(tangent).__name__
    with pytest.raises(zo.ConfigurationError, match=rf"{name}: expected.*channels, \*space.*zo.MLPTangent"):
        gradient.backward(weights(5, 4))


@pytest.mark.parametrize("make", [zo.GridTangent, zo.StencilTangent], ids=lambda make: make.__name__)
def test_ends_are_said_for_each_axis(make):
    box = Sine()
    gradient = zo.TangentGradient(
        make_network(), chain(box), boxes=[box], tangent=make(periodic=(True, False))
    )
    with pytest.raises(zo.ConfigurationError, match="one for each of 1 axes, got \\(True, False\\)"):
        gradient.backward(weights(5, 4))


def test_frozen_parameters_and_states_of_other_runs_are_refused():
    network, box = make_network(), Sine()
    network[0].weight.requires_grad_(False)
    settings = {"boxes": [box], "tangent": zo.IdentityTangent()}
    with pytest.raises(zo.ConfigurationError, match=r"'0\.weight', which does not"):
        zo.ProbedGradient(network, chain(box), parameters="*", **settings)
    state = zo.ProbedGradient(network, chain(box), **settings).state_dict()
    with pytest.raises(zo.ConfigurationError, match="seed=5, got one with 0"):
        zo.ProbedGradient(network, chain(box), seed=5, **settings).load_state_dict(state)
    ones = zo.ProbedGradient(network, chain(box), chunk=1, **settings).state_dict()
    with pytest.raises(zo.ConfigurationError, match=r"chunk=2, got one with 1\. Leave chunk out"):
        zo.ProbedGradient(network, chain(box), chunk=2, **settings).load_state_dict(ones)
    settings["tangent"] = zo.LowRankTangent()
    with pytest.raises(
        zo.ConfigurationError, match=r"tangents=LowRankTangent\(IdentityTangent\(\), rank=256.*got"
    ):
        zo.ProbedGradient(network, chain(box), **settings).load_state_dict(state)


def test_a_gradient_that_is_not_finite_fails_the_batch_and_training_goes_on_as_without_it():
    class Wild(zo.IdentityTangent):
        wild = True

        def at(self, rows):
            times = float("inf") if self.wild else 1.0
            return Instead(super().at(rows), pull=lambda v: v * times)

    network, box = make_network(), Sine()
    gradient = zo.TangentGradient(network, chain(box), boxes=[box], tangent=Wild())
    with pytest.raises(
        zo.FailedBatchError, match=r"Step 1: expected a finite gradient.*next batch"
    ) as failed:
        gradient.backward(weights(5, 4))
    assert failed.value.rows == 1
    assert all(p.grad is None for p in network.parameters())
    assert gradient.counts.steps == 0
    Wild.wild = False
    gradient.backward(weights(5, 4))
    undisturbed = copy.deepcopy(network)
    for weight in undisturbed.parameters():
        weight.grad = None
    box = Sine()
    zo.TangentGradient(undisturbed, chain(box), boxes=[box], tangent=zo.IdentityTangent()).backward(
        weights(5, 4)
    )
    for ours, theirs in zip(network.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_network_that_was_cast_since_the_gradient_was_made_is_refused():
    network, box = make_network().float(), Sine()
    gradient = zo.TangentGradient(network, chain(box), boxes=[box])
    network.double()
    with pytest.raises(zo.errors.ParameterError, match=r"became float64 of shape"):
        gradient.backward(weights(5, 4))
    assert box.ledger.rows_asked == 0


class Recurrent(nn.Module):
    """What `torch.func.vmap` cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 4)

    def forward(self, x):
        return self.out(self.lstm(x[:, None])[0][:, 0])


@pytest.mark.parametrize("probes", [0, 2])
def test_a_network_that_cannot_be_stacked_takes_one_variant_after_another(probes):
    torch.manual_seed(0)
    box, network, batch = FromTorch(torch.sin, (X,), (X,)), Recurrent().double(), torch.randn(5, 4).double()
    gradient = zo.ProbedGradient(
        network,
        lambda n, b: box(n(b)).square().mean(dim=1),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(torch.sin),
        probes=probes,
        max_rows=4,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient.backward(batch)
    assert any("one after another" in str(warning.message) for warning in caught) == (probes > 0)
    expected = true_grads(lambda n, b: n(b).sin().square().mean(dim=1), network, batch)
    assert (grads(network) - expected).norm() <= 1e-9 * expected.norm()
    assert gradient.counts.rows == sum(len(asked[0]) for asked in box.asked)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=0.1), nn.Linear(5, 4)).double()


@pytest.mark.parametrize("probes", [0, 2])
def test_without_probes_the_objective_is_evaluated_once_from_the_second_step_on(probes):
    evaluations, made, truth, batch = [], normed(), normed(), weights(6, 4)
    box = FromTorch(torch.sin, (X,), (X,))
    plain = chain(box)

    def objective(network, batch):
        evaluations.append(len(batch))
        return plain(network, batch)

    tangent = zo.tangents.ModelTangent(torch.sin)
    gradient = zo.ProbedGradient(
        made, objective, boxes=[box], tangent=tangent, probes=probes, max_rows=1 + probes, evaluator="loop"
    )
    spent = []
    for _ in range(3):
        made.zero_grad()
        before = len(evaluations)
        gradient.backward(batch)
        spent.append(len(evaluations) - before)
        expected = true_grads(chain(torch.sin), truth, batch)
        assert torch.allclose(grads(made), expected, rtol=1e-9, atol=1e-12)
        assert torch.allclose(made[1].running_mean, truth[1].running_mean, rtol=1e-12)
    assert spent == ([2, 1, 1] if not probes else [4, 4, 4])


@pytest.mark.parametrize("at", ["first", "second"])
def test_a_step_that_fails_leaves_buffers_as_they_were(at):
    network, batch = normed(), weights(6, 4)
    fails = [False]

    def solve(x):
        return x * torch.nan if fails[0] else x.sin()

    box = FromTorch(solve, (X,), (X,))
    gradient = zo.TangentGradient(
        network, chain(box), boxes=[box], tangent=zo.tangents.ModelTangent(torch.sin)
    )
    if at == "second":
        gradient.backward(batch)
    fails[0], before = True, network[1].running_mean.clone()
    with pytest.raises(zo.FailedQueriesError):
        gradient.backward(batch)
    assert torch.equal(network[1].running_mean, before)


def test_rows_lost_after_the_first_step_leave_the_gradient_of_the_others():
    network, batch, lost = make_network(), weights(6, 4), torch.tensor([1, 4])
    calls = [0]

    def solve(x):
        calls[0] += 1
        answered = x.sin()
        if calls[0] == 4:  # the first of the second step
            answered[lost] = torch.nan
        return answered

    box = FromTorch(solve, (X,), (X,))
    gradient = zo.TangentGradient(
        network, chain(box), boxes=[box], tangent=zo.tangents.ModelTangent(torch.sin)
    )
    gradient.backward(batch)
    network.zero_grad()
    gradient.backward(batch)
    kept = [row for row in range(6) if row not in lost]
    assert torch.allclose(grads(network), true_grads(chain(torch.sin), network, batch[kept]), rtol=1e-9)
    assert gradient.counts.lost == 2


@pytest.mark.parametrize("several", [False, True])
def test_an_objective_may_write_to_what_a_box_gave_in_every_step(several):
    network, batch = make_network(), weights(6, 4)
    answers = (X, ArraySpec("slope", (4,)))[: 1 + several]
    box = FromTorch(lambda x: (x.sin(), x.cos()) if several else x.sin(), (X,), answers)
    gradient = zo.TangentGradient(
        network, in_place(box, several), boxes=[box], tangent=zo.tangents.ModelTangent(box.function)
    )
    for _ in range(3):
        network.zero_grad()
        gradient.backward(batch)
        expected = true_grads(in_place(box.function, several), network, batch)
        assert torch.allclose(grads(network), expected, rtol=1e-9, atol=1e-12)


def in_place(box, several):
    def objective(network, x):
        z = network(x)
        for _ in range(2):
            outputs = box(z)
            written = [answer.mul_(1.5) for answer in (outputs if several else (outputs,))]
            z = z + sum(written)
        return (z - 1).square().mean(dim=1)

    return objective


def box_of(size: int, fixed: int = 0) -> FromTorch:
    """Sines; further inputs without a derivative change nothing."""
    more = tuple(ArraySpec(f"fixed_{n}", (), differentiable=False) for n in range(fixed))
    return FromTorch(
        lambda x, *_: torch.sin(x[:, :2]), (ArraySpec("x", (size,)), *more), (ArraySpec("y", (2,)),)
    )


@pytest.mark.parametrize(("size", "fixed"), [(3, 0), (2, 1)])
def test_what_was_learned_of_a_box_is_not_taken_for_another_with_other_arrays(size, fixed):
    """The kinds of tangents are the same, and their words."""

    def objective(box):
        def losses(network, x):
            more = [x[:, 0].detach() for _ in box.inputs[1:]]
            return box(network(x)[:, : box.inputs[0].shape[0]], *more).square().mean(dim=1)

        return losses

    network, first, other = nn.Linear(4, 3).double(), box_of(2), box_of(size, fixed)
    learned = zo.TangentGradient(network, objective(first), boxes=[first])
    learned.backward(weights(8, 4))
    into = zo.TangentGradient(network, objective(other), boxes=[other])
    before = into.state_dict()
    with pytest.raises(zo.ConfigurationError, match=r"boxes=x \(.* to y \(2,\), got one with x \(2,\) to y"):
        into.load_state_dict(learned.state_dict())
    assert into.state_dict()["counts"] == before["counts"]
    into.backward(weights(8, 4))
    old = {name: kept for name, kept in learned.state_dict().items() if name != "boxes"}
    zo.TangentGradient(network, objective(first), boxes=[first]).load_state_dict(old)

    rows = [zo.differentiable(box, tangent=learner(zo.MLPTangent, first_steps=2)) for box in (first, other)]
    x = weights(8, 2).requires_grad_()
    rows[0](x).sum().backward()
    with pytest.raises(zo.ConfigurationError, match=r"box=x \(.* to y \(2,\), got one with x \(2,\) to y"):
        rows[1].load_state_dict(rows[0].state_dict())
