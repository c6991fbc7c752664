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
    "identity": zo.tangents.IdentityTangent,
    "kernel": zo.tangents.KernelTangent,
    "network": lambda: learner(zo.tangents.MLPTangent, 8, first_steps=20, steps_per_step=2),
    "chosen": lambda: None,
}


def sine(x: torch.Tensor) -> torch.Tensor:
    """What `Sine` computes, with a derivative."""
    return torch.sin(1.3 * x)


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


def exact(network, objective, boxes, *models, **settings) -> zo.TangentGradient:
    """With the boxes' own derivatives, so the gradient must be autograd's."""
    tangents = [zo.tangents.ModelTangent(model) for model in models or [sine]]
    return zo.TangentGradient(network, objective, boxes=boxes, tangent=tangents, **settings)


@pytest.mark.parametrize("kind", TANGENTS)
def test_rows_are_those_of_a_first_order_step_and_no_more(kind):
    box, unchecked = Sine(), zo.tangents.TrustPolicy(check_every=None)
    settings = {"tangent": TANGENTS[kind](), "trust_policy": unchecked}
    gradient = zo.TangentGradient(make_network(), chain(box), boxes=[box], **settings)
    for _ in range(2):
        gradient.backward(weights(5, 4))
    assert box.ledger.rows_run == box.ledger.rows_asked == gradient.counts.rows == 2 * 5 * 3
    assert box.ledger.calls == 2 * 3
    assert gradient.counts == zo.tangents.TangentCounts(steps=2, rows=30)
    assert gradient.next_queries() == 0


def test_adds_to_grad_and_gives_the_base_loss():
    network, box, batch = make_network(), Sine(), weights(5, 4)
    gradient = exact(network, chain(box), [box])
    with torch.no_grad():
        expected = chain(box)(network, batch).mean()
    loss = gradient.backward(batch)
    once = grads(network)
    assert torch.allclose(once, true_grads(chain(sine), network, batch), rtol=1e-9)
    gradient.backward(batch)
    assert torch.equal(loss, expected) and not loss.requires_grad
    assert torch.allclose(grads(network), 2 * once, rtol=1e-12)


def test_draws_hang_on_the_seed_alone():
    gradients = []
    for seed, disturb in ((0, 1), (0, 2), (1, 1)):
        network, box = make_network(), Sine()
        torch.manual_seed(disturb)
        gradient = zo.TangentGradient(
            network, chain(box), boxes=[box], tangent=zo.tangents.MLPTangent(8, seed=seed)
        )
        gradient.backward(weights(5, 4))
        gradients.append(grads(network))
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-3)


@pytest.mark.quick_cases(1)
@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")  # the identity is not that box
@pytest.mark.parametrize("kind", TANGENTS)
def test_resume_to_the_bit(kind, tmp_path):
    def run(resume: bool) -> tuple[torch.Tensor, list]:
        network, box = make_network(torch.float32), Sine()

        def make():
            return zo.TangentGradient(network, chain(box), boxes=[box], tangent=TANGENTS[kind]())

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
    """A linear box, of which a kernel's trend is all: after some steps little is left to learn."""
    box = FromTorch(lambda x: x @ weights(4, 4, seed=3), (X,), (ArraySpec("y", (4,)),))

    def objective(network, batch):
        return box(network(box(batch))).square().mean(dim=1)

    gradient = zo.TangentGradient(make_network(), objective, boxes=[box], tangent=zo.tangents.KernelTangent())
    errors = []
    for step in range(6):
        gradient.backward(weights(20, 4, seed=step))
        errors.append(gradient.trust)
    assert errors[0] == [None, None] and max(errors[1]) > 3 * max(errors[5])
    of_calls = {"tangent_error_call_1", "tangent_error_call_2"}
    names = {name for name in gradient.metrics() if name.startswith("tangent_error")}
    assert names == {"tangent_error", *of_calls}
    assert gradient.metrics()["tangent_error"] == gradient.trust_of_step


# Failures


@pytest.mark.quick_cases(4)
@pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")
@pytest.mark.parametrize("kind", ["identity", "exact"])
@pytest.mark.parametrize("lost", ["by the box", "in the batch", "in the loss"])
def test_rows_lost_in_the_base_leave_the_gradient_of_the_others(kind, lost):
    def run(batch) -> tuple[torch.Tensor, torch.Tensor]:
        network, box = make_network(), Sine(limit=50.0)

        def objective(network, batch):
            state, penalty = batch
            return chain(box)(network, state) + penalty

        tangent = zo.tangents.IdentityTangent() if kind == "identity" else zo.tangents.ModelTangent(sine)
        gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=tangent)
        return gradient.backward(batch), grads(network)

    state, penalty, dead = weights(6, 4), torch.zeros(6).double(), [0, 4]
    alive = [row for row in range(6) if row not in dead]
    expected = run((state[alive], penalty[alive]))
    if lost == "in the loss":
        penalty[dead] = float("nan")
    else:
        state[dead] = 1e3 if lost == "by the box" else float("nan")
    for grad, wanted in zip(run((state, penalty)), expected, strict=True):
        assert torch.allclose(grad, wanted, rtol=1e-9, atol=1e-12)


def test_no_row_that_survives_is_an_error():
    network, box = make_network(), Sine(limit=-100.0)
    gradient = zo.TangentGradient(network, chain(box), boxes=[box], tangent=zo.tangents.IdentityTangent())
    with pytest.raises(zo.errors.FailedQueriesError, match="finite loss in some row"):
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
    models = [lambda *arrays: mix(*arrays)[:2], turn]
    gradient = exact(network, objective_with(mixer, turner), [mixer, turner], *models)
    gradient.backward(batch)
    expected = true_grads(objective_with(mix, turn), network, batch)
    assert torch.allclose(grads(network), expected, rtol=1e-9, atol=1e-12)
    assert len(gradient.trust) == 4
    assert gradient.counts.rows == mixer.ledger.rows_run + turner.ledger.rows_run == 3 * 4


def test_identity_goes_by_name_and_shape():
    inputs = (ArraySpec("a", (2,)), ArraySpec("b", (3,)))
    outputs = (ArraySpec("b", (3,)), ArraySpec("c", (2,)), ArraySpec("a", (4,)))
    pairs = CallPairs(inputs, outputs, weights(2, 5), weights(2, 9))
    d, v = weights(2, 5, seed=3), weights(2, 9, seed=4)
    pushed, back = (
        zo.tangents.IdentityTangent().at(pairs).push(d),
        zo.tangents.IdentityTangent().at(pairs).pull(v),
    )
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
    exact(network, objective_with(box), [box], torch.sin).backward(batch)
    assert torch.allclose(grads(network), true_grads(objective_with(torch.sin), network, batch), rtol=1e-9)
    assert inner.ledger.rows_run == 6


def test_buffers_move_once_and_dropout_draws_one_mask():
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4)).double()

    box, batch = FromTorch(torch.sin, (X,), (X,)), weights(6, 4)
    network, truth = make(), make()
    torch.manual_seed(3)
    exact(network, chain(box), [box], torch.sin).backward(batch)
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
        gradient = zo.TangentGradient(network, chain(box), boxes=[box], tangent=zo.tangents.KernelTangent())
        gradients = []
        for step in range(3):
            network.zero_grad()
            gradient.backward(weights(5, 4, seed=step))
            gradients.append(grads(network))
        assert gradient.counts.rows == (3 + 1) * 5 * 3  # the first step has a check
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
        exact(network, chain(box), [box]).backward(weights(5, 4))
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
    gradient = zo.TangentGradient(network, chain(box), boxes=[box])
    words = ("Sequential, 49 weights", "boxes=[Sine]", "AutoTangent(KernelTangent(")
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

    student = zo.tangents.StudentTangent(nn.Linear(4, 4))
    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=student)
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


def in_numpy(box):
    return lambda network, batch: torch.from_numpy(box(network(batch).detach().numpy())).square().mean(dim=1)


def without(box):
    return lambda network, batch: network(batch).square().mean(dim=1)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (calls_of_weights, ["expected 2 calls of the boxes, got 1", "same order"]),
        (in_numpy, ["torch tensors", "NumPy"]),
        (without, ["expected a call of a box in [Sine]", "very objects"]),
    ],
)
def test_objectives_that_cannot_be_replayed(objective, words):
    network, box = make_network(), Sine()
    gradient = zo.TangentGradient(network, objective(box), boxes=[box], tangent=zo.tangents.IdentityTangent())
    with pytest.raises(zo.errors.TangentError) as raised:
        gradient.backward(weights(5, 4))
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert isinstance(raised.value, BlackBoxError)
    assert all(p.grad is None for p in network.parameters())
    assert box(np.zeros((1, 4))).shape == (1, 4)  # calls go to the box again


@pytest.mark.parametrize(
    "objective",
    [
        lambda box: lambda network, batch: box(network(batch) - network(batch).mean()).square().mean(dim=1),
        lambda box: lambda network, batch: box(network(batch).T.reshape(-1, 4)).view(4, -1).square().mean(0),
        lambda box: lambda network, batch: box(batch @ network[0].weight[:4].T).square().mean(dim=1),
        lambda box: lambda network, batch: network(box(batch)).square().mean(dim=1),
    ],
    ids=["rows that meet", "rows last", "a weight read outside its layer", "behind the box alone"],
)
def test_whatever_autograd_sees_is_in_the_gradient(objective):
    network, box, batch = make_network(), Sine(), weights(5, 4)
    exact(network, objective(box), [box]).backward(batch)
    loss = objective(sine)(network, batch).mean()
    wanted = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"boxes": []}, "boxes: expected a list"),
        ({"boxes": [torch.sin]}, "expected BlackBoxFunctions"),
        ({"boxes": [FromTorch(torch.sin, (ArraySpec("n", (), "int64"),), (X,))]}, "differentiable input"),
        ({"boxes": [Sine()] * 2}, "expected different boxes"),
        ({"tangent": []}, "tangent: expected a Tangent"),
        ({"tangent": "dense"}, "tangent: expected a Tangent"),
        ({"tangent": [zo.tangents.IdentityTangent()] * 2}, "one for each of 1 boxes"),
        ({"objective": lambda: torch.zeros(())}, "objective: expected objective"),
        ({"seed": -1}, "seed: expected a whole number"),
    ],
)
def test_settings_out_of_range(settings, words):
    network, box = make_network(), Sine()
    arguments = {
        "objective": chain(box),
        "boxes": [box],
        "tangent": zo.tangents.IdentityTangent(),
        **settings,
    }
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError, match=words):
        zo.TangentGradient(network, arguments.pop("objective"), **arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: zo.tangents.GridTangent(channels=6), "channels: expected a multiple of 4, got 6. Take 8"),
        (lambda: zo.tangents.GridTangent(periodic="yes"), "periodic: expected True, False, one of these"),
        (lambda: zo.tangents.GridTangent(reach=0), "reach: expected a whole number >= 1"),
        (
            lambda: learner(zo.tangents.GridTangent, learning_rate=0.0),
            "learning_rate: expected a finite number > 0",
        ),
        (lambda: zo.tangents.MLPTangent(width=0), "width: expected a whole number >= 1"),
        (
            lambda: learner(zo.tangents.MLPTangent, first_steps=-1),
            "first_steps: expected a whole number >= 1",
        ),
        (lambda: zo.tangents.StencilTangent(4), "degree: expected 1, 2 or 3, got 4"),
        (lambda: zo.tangents.StencilTangent(periodic=[1, 0]), "periodic: expected True, False, one of these"),
        (lambda: zo.tangents.StencilTangent(ridge=1e-20), "ridge: expected"),
    ],
)
def test_tangents_out_of_range(make, words):
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError, match=words):
        make()


@pytest.mark.parametrize("tangent", [zo.tangents.GridTangent(), zo.tangents.StencilTangent()], ids=repr)
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
    with pytest.raises(
        zo.errors.ConfigurationError, match=rf"{name}: expected.*channels, \*space.*zo.tangents.MLPTangent"
    ):
        gradient.backward(weights(5, 4))


@pytest.mark.parametrize(
    "make", [zo.tangents.GridTangent, zo.tangents.StencilTangent], ids=lambda make: make.__name__
)
def test_ends_are_said_for_each_axis(make):
    box = Sine()
    gradient = zo.TangentGradient(
        make_network(), chain(box), boxes=[box], tangent=make(periodic=(True, False))
    )
    with pytest.raises(zo.errors.ConfigurationError, match="one for each of 1 axes, got \\(True, False\\)"):
        gradient.backward(weights(5, 4))


def test_frozen_parameters_and_states_of_other_runs_are_refused():
    network, box = make_network(), Sine()
    network[0].weight.requires_grad_(False)
    settings = {"boxes": [box], "tangent": zo.tangents.IdentityTangent()}
    with pytest.raises(zo.errors.ConfigurationError, match=r"'0\.weight', which does not"):
        zo.TangentGradient(network, chain(box), parameters="*", **settings)
    state = zo.TangentGradient(network, chain(box), **settings).state_dict()
    with pytest.raises(zo.errors.ConfigurationError, match="seed=5, got one with 0"):
        zo.TangentGradient(network, chain(box), seed=5, **settings).load_state_dict(state)
    settings["tangent"] = zo.tangents.KernelTangent()
    with pytest.raises(zo.errors.ConfigurationError, match=r"tangents=KernelTangent\(centres=1000\), got"):
        zo.TangentGradient(network, chain(box), **settings).load_state_dict(state)


def test_a_gradient_that_is_not_finite_fails_the_batch_and_training_goes_on_as_without_it():
    class Wild(zo.tangents.IdentityTangent):
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
    zo.TangentGradient(undisturbed, chain(box), boxes=[box], tangent=zo.tangents.IdentityTangent()).backward(
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


def test_a_network_of_any_layers_serves():
    torch.manual_seed(0)
    box, network, batch = FromTorch(torch.sin, (X,), (X,)), Recurrent().double(), torch.randn(5, 4).double()
    gradient = zo.TangentGradient(
        network,
        lambda n, b: box(n(b)).square().mean(dim=1),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(torch.sin),
    )
    gradient.backward(batch)
    expected = true_grads(lambda n, b: n(b).sin().square().mean(dim=1), network, batch)
    assert (grads(network) - expected).norm() <= 1e-9 * expected.norm()
    assert gradient.counts.rows == sum(len(asked[0]) for asked in box.asked)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=0.1), nn.Linear(5, 4)).double()


def test_the_objective_is_evaluated_once_from_the_second_step_on():
    evaluations, made, truth, batch = [], normed(), normed(), weights(6, 4)
    box = FromTorch(torch.sin, (X,), (X,))
    plain = chain(box)

    def objective(network, batch):
        evaluations.append(len(batch))
        return plain(network, batch)

    tangent = zo.tangents.ModelTangent(torch.sin)
    gradient = zo.TangentGradient(made, objective, boxes=[box], tangent=tangent)
    spent = []
    for _ in range(3):
        made.zero_grad()
        before = len(evaluations)
        gradient.backward(batch)
        spent.append(len(evaluations) - before)
        expected = true_grads(chain(torch.sin), truth, batch)
        assert torch.allclose(grads(made), expected, rtol=1e-9, atol=1e-12)
        assert torch.allclose(made[1].running_mean, truth[1].running_mean, rtol=1e-12)
    assert spent == [2, 1, 1]


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
    with pytest.raises(zo.errors.FailedQueriesError):
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
    with pytest.raises(
        zo.errors.ConfigurationError, match=r"boxes=x \(.* to y \(2,\), got one with x \(2,\) to y"
    ):
        into.load_state_dict(learned.state_dict())
    assert into.state_dict()["counts"] == before["counts"]
    into.backward(weights(8, 4))
    old = {name: kept for name, kept in learned.state_dict().items() if name != "boxes"}
    zo.TangentGradient(network, objective(first), boxes=[first]).load_state_dict(old)

    rows = [
        zo.differentiable(box, tangent=learner(zo.tangents.MLPTangent, first_steps=2))
        for box in (first, other)
    ]
    x = weights(8, 2).requires_grad_()
    rows[0](x).sum().backward()
    with pytest.raises(
        zo.errors.ConfigurationError, match=r"box=x \(.* to y \(2,\), got one with x \(2,\) to y"
    ):
        rows[1].load_state_dict(rows[0].state_dict())
