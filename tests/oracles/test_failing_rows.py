"""Rows of a batch that fail: gradients are those of the mean over the others, by autograd in float64."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import zo
from blackbox import ArraySpec
from blackbox.errors import NotDifferentiableError
from tasks.methods import AutogradGradient
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch, weights

X = ArraySpec("x", (4,))
ROWS, DEAD = 20, [3, 11]  # a tenth
NEVER = zo.tangents.Limits(check_every=None)
ALIVE = torch.ones(ROWS, dtype=torch.bool)
ALIVE[DEAD] = False


def bent(x):
    return torch.sin(1.3 * x) + 0.2 * x.roll(1, dims=-1) * x


def moved_on(x):
    return x + 0.3


class Failing(FromTorch):
    """In the second call of the batch, and so behind it, two rows are not finite."""

    def evaluate_rows(self, x):
        y = super().evaluate_rows(x)
        if len(x) == ROWS and len(self.asked) % 3 == 2:
            y[DEAD] = math.nan
        return y


def make_network(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *more, nn.Tanh(), nn.Linear(5, 4)).double()


def chain(box):
    """Three calls, the network before each and behind the last."""

    def objective(network, batch):
        state, loss = batch, 0.0
        for _ in range(3):
            state = box(state + network(state))
            loss = loss + (network(state) - 0.5).square().mean(dim=1)
        return loss

    return objective


def same(one, other) -> bool:
    """Whether two states have the same tensors, to the bit, and the same of all else."""
    leaves, others = tree_leaves(one), tree_leaves(other)
    pairs = zip(leaves, others, strict=True)
    return len(leaves) == len(others) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
    )


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def of_the_survivors(network, call, batch) -> torch.Tensor:
    loss = chain(call)(network, batch[ALIVE]).mean()
    return flat(torch.autograd.grad(loss, list(network.parameters())))


def student() -> zo.tangents.StudentTangent:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return zo.tangents.StudentTangent(layers, batch=8, steps_per_step=5)


@pytest.mark.parametrize(
    ("function", "tangent"),
    [
        (bent, zo.tangents.ModelTangent(bent)),
        (moved_on, zo.tangents.IdentityTangent()),
    ],
    ids=["model", "identity"],
)
@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
def test_an_exact_tangent_gives_the_gradient_of_the_mean_over_the_survivors(function, tangent, evaluator):
    box, network, batch = Failing(function, (X,), (X,)), make_network(), weights(ROWS, 4)
    gradient = zo.TangentGradient(
        network,
        chain(box),
        boxes=[box],
        tangent=tangent,
        limits=NEVER,
    )
    loss = gradient.backward(batch)
    torch.testing.assert_close(loss, chain(function)(network, batch[ALIVE]).mean().detach())
    expected = of_the_survivors(network, function, batch)
    torch.testing.assert_close(flat(p.grad for p in network.parameters()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [pytest.param("default", marks=pytest.mark.slow), "mlp", "student"])
def test_a_learned_tangent_gives_that_gradient_with_its_model_in_the_box_s_place(kind):
    """What it has learned of the step itself is in it, and from the survivors alone."""
    grads = []
    for alive in (None, ALIVE):  # the batch with failing rows, and the survivors by themselves
        box, network, batch = Failing(bent, (X,), (X,)), make_network(), weights(ROWS, 4)
        gradient = zo.TangentGradient(
            network,
            chain(box),
            boxes=[box],
            tangent={
                "mlp": learner(zo.tangents.MLPTangent, 8, first_steps=20, steps_per_step=1),
                "student": student(),
            }.get(kind),
            limits=NEVER,
        )
        for _ in range(2):
            network.zero_grad()
            gradient.backward(batch if alive is None else batch[alive])
        (tangent,) = gradient.tangents
        grads.append(flat(p.grad for p in network.parameters()))

        def learned(x, tangent=tangent):
            """The box's values with the model's derivative."""
            if kind == "student":
                modelled = tangent.outputs(x)
            else:
                modelled = (tangent.model if kind == "default" else tangent).values(x, x[:, :0])
            return bent(x).detach() + modelled - modelled.detach()

        expected = of_the_survivors(network, learned, batch)
        torch.testing.assert_close(grads[-1], expected, rtol=1e-6, atol=1e-9)
        assert not torch.allclose(expected, of_the_survivors(network, bent, batch), rtol=1e-2)
    assert expected.norm() > 1e-2


@pytest.mark.parametrize("flaky", [False, True])
def test_row_rge_under_autograd_runs_the_survivors_again(flaky):
    """With as many orthogonal directions as inputs the estimate is exact, to mu. Flaky: others fail then."""

    class Box(Failing):
        def evaluate_rows(self, x):
            y = super().evaluate_rows(x)
            if flaky and len(self.asked) == 5 and len(x) == ROWS - 2:
                y[0] = math.nan
            return y

    box, network, batch = Box(bent, (X,), (X,)), make_network(), weights(ROWS, 4)
    estimator = zo.box_gradient.RowRGE(mu=1e-5, q=4, central=True)
    gradient = AutogradGradient(network, chain(box), {box: zo.differentiable(box, estimator, seed=0)})
    gradient.backward(batch)
    alive = ALIVE.clone()
    alive[0] = not flaky
    assert gradient.counts.lost == 2 + flaky
    loss = chain(bent)(network, batch[alive]).mean()
    expected = flat(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(flat(p.grad for p in network.parameters()), expected, rtol=1e-6, atol=1e-8)


def test_a_bare_box_in_a_stand_refuses_a_gradient_that_it_would_cut():
    box, network, batch = FromTorch(bent, (X,), (X,)), make_network(), weights(ROWS, 4)
    gradient = AutogradGradient(network, chain(box), {box: lambda z: 0.5 * box(z) + 0.5 * z * z})
    with pytest.raises(NotDifferentiableError):
        gradient.backward(batch)


def test_running_statistics_do_not_keep_the_nan_of_a_failed_row():
    class LastFails(FromTorch):
        def evaluate_rows(self, x):
            y = super().evaluate_rows(x)
            if len(x) == ROWS:
                y[DEAD] = math.nan
            return y

    behind = nn.BatchNorm1d(4).double()
    network = nn.ModuleDict({"before": make_network(), "behind": behind})
    box, batch = LastFails(bent, (X,), (X,)), weights(ROWS, 4)

    def objective(network, batch):
        answers = box(network["before"](batch))
        failed = ~answers.isfinite().all(dim=1)
        losses = network["behind"](answers[~failed] if len(batch) < ROWS else answers).square().mean(dim=1)
        # the objective hides from its losses that statistics saw a failed row
        return torch.where(failed, math.nan, losses.nan_to_num(1.0))

    AutogradGradient(
        network, objective, {box: zo.differentiable(box, zo.box_gradient.RowRGE(mu=1e-5, q=4), seed=0)}
    ).backward(batch)
    outputs = bent(network["before"](batch[ALIVE])).detach()
    torch.testing.assert_close(behind.running_mean, 0.1 * outputs.mean(0))
    assert int(behind.num_batches_tracked) == 1


def test_a_step_in_which_all_rows_fail_leaves_the_network_as_it_was():
    network = nn.ModuleDict({"before": make_network(), "behind": nn.BatchNorm1d(4).double()})
    box, batch = FromTorch(lambda x: x * math.nan, (X,), (X,)), weights(ROWS, 4)

    def objective(network, batch):
        return network["behind"](box(network["before"](batch))).square().mean(dim=1)

    stand = zo.differentiable(box, zo.box_gradient.RowRGE(mu=1e-5, q=4), seed=0)
    drawn = torch.get_rng_state()
    with pytest.raises(zo.errors.FailedQueriesError):
        AutogradGradient(network, objective, {box: stand}).backward(batch)
    assert torch.equal(network["behind"].running_mean, torch.zeros(4).double())
    assert int(network["behind"].num_batches_tracked) == 0 and torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("make", ["autograd", "tangents"])
def test_a_gradient_that_is_not_finite_leaves_network_and_grad_as_they_were(make):
    """The root of an exact zero: a finite loss, of which autograd has no derivative."""
    network, box = make_network(nn.BatchNorm1d(5)), FromTorch(bent, (X,), (X,))
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)

    def objective(network, batch):
        return box(network(batch)).norm(dim=1) ** 0.5

    if make == "autograd":
        gradient = AutogradGradient(network, objective, {box: bent})
    else:
        gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=zo.tangents.IdentityTangent())
    flat = torch.ones(sum(weight.numel() for weight in network.parameters()), dtype=torch.float64)
    pieces = flat.split([weight.numel() for weight in network.parameters()])
    for weight, piece in zip(network.parameters(), pieces, strict=True):  # as some optimisers have them
        weight.grad = piece.view_as(weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(zo.FailedBatchError, match=r"Step 1: expected a finite gradient.*roots"):
        gradient.backward(weights(ROWS, 4))
    assert torch.equal(flat, torch.ones_like(flat))
    places = [weight.grad.data_ptr() for weight in network.parameters()]
    assert places == [piece.data_ptr() for piece in pieces]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_gradients_add_up_in_place_and_stay_where_the_way_back_raises():
    network, box = make_network(), FromTorch(bent, (X,), (X,))
    gradient = AutogradGradient(network, lambda network, batch: box(network(batch)).sum(dim=1), {box: bent})
    gradient.backward(weights(ROWS, 4))
    held = [weight.grad for weight in network.parameters()]
    once = flat(held).clone()
    gradient.backward(weights(ROWS, 4))
    assert all(weight.grad is grad for weight, grad in zip(network.parameters(), held, strict=True))
    assert torch.allclose(flat(held), 2 * once)

    def refused(_):
        raise RuntimeError("no way back")

    network[0].bias.register_hook(refused)
    with pytest.raises(RuntimeError, match="no way back"):
        gradient.backward(weights(ROWS, 4))
    assert all(weight.grad is grad for weight, grad in zip(network.parameters(), held, strict=True))
    assert torch.allclose(flat(held), 2 * once)


def test_sparse_gradients_of_an_embedding_pass():
    network, box = nn.Embedding(6, 4, sparse=True).double(), FromTorch(bent, (X,), (X,))
    gradient = AutogradGradient(network, lambda network, batch: box(network(batch)).sum(dim=1), {box: bent})
    batch = torch.tensor([0, 2, 2])
    for _ in range(2):
        gradient.backward(batch)
    (exact,) = torch.autograd.grad(bent(network(batch)).sum(dim=1).mean(), [network.weight])
    assert torch.allclose(network.weight.grad.to_dense(), 2 * exact.to_dense())
    with torch.no_grad():
        network.weight[2] = math.inf
    with pytest.raises(zo.errors.FailedQueriesError):
        gradient.backward(torch.tensor([2]))


class Absurd(FromTorch):
    """One row of one call is another answer: what `answer` makes of the right one."""

    def __init__(self, answer, at=-1):
        super().__init__(bent, (X,), (X,))
        self.answer, self.at = answer, at

    def evaluate_rows(self, x):
        y = super().evaluate_rows(x)
        if len(self.asked) == self.at:
            y[3] = self.answer(y[3])
        return y


def bounded(answers):
    return 1 - torch.exp(-((answers - 1).square().sum(dim=1) ** 2))


def trained(gradient, steps, draws, rate=0.01):
    optimizer = torch.optim.SGD(gradient.network.parameters(), lr=rate)
    for _ in range(steps):
        gradient.backward(torch.randn(6, 4, generator=draws, dtype=torch.float64))
        optimizer.step()
        optimizer.zero_grad()


def cosine_of_next(gradient, loss, draws):
    """Of a step's gradient with that by autograd, whatever the box answered before."""
    batch, weights_of = torch.randn(6, 4, generator=draws, dtype=torch.float64), gradient.network.parameters
    gradient.network.zero_grad()
    gradient.backward(batch)
    found = flat(weight.grad for weight in weights_of())
    exact = flat(torch.autograd.grad(loss(bent(gradient.network(batch))).mean(), list(weights_of())))
    return float(torch.nn.functional.cosine_similarity(found, exact, dim=0))


def test_tangents_do_not_learn_from_an_absurd_answer_that_spoils_the_gradient():
    """One row of one batch is 1e200; its loss is 1, and the derivative 0 times infinity."""
    box, network = Absurd(lambda _: 1e200), make_network()
    gradient = zo.TangentGradient(
        network, lambda network, batch: bounded(box(network(batch))), boxes=[box], limits=NEVER
    )
    draws = torch.Generator().manual_seed(0)
    trained(gradient, 12, draws)
    batch = torch.randn(6, 4, generator=draws, dtype=torch.float64)
    box.at = len(box.asked) + 1
    with pytest.raises(zo.errors.NonFiniteGradientError, match="as it never did"):
        gradient.backward(batch)
    assert cosine_of_next(gradient, bounded, draws) > 0.999


def squared(answers):
    return (answers - 1).square().sum(dim=1)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("times", [30.0, 1e3, 1e9])
def test_nothing_is_learned_from_an_absurd_answer_that_is_finite(times):
    """The kernel that has it among its rows answers the next batches with gradients that are none."""
    box, network = Absurd(lambda y: times * y.sign()), make_network()
    gradient = zo.TangentGradient(
        network, lambda network, batch: squared(box(network(batch))), boxes=[box], limits=NEVER
    )
    gradient.replays()
    draws = torch.Generator().manual_seed(0)
    trained(gradient, 12, draws)
    box.at = len(box.asked) + 1
    with pytest.warns(zo.errors.TangentWarning, match=r"Step 13: .* got 1 of 6 rows .* answer NaN"):
        trained(gradient, 1, draws)
    assert gradient.counts.outliers == 1 and gradient.metrics()["outliers"] == 1
    assert cosine_of_next(gradient, squared, draws) > 0.99
    state = gradient.state_dict()
    twin = zo.TangentGradient(
        make_network(),
        lambda network, batch: squared(box(network(batch))),
        boxes=[box],
        limits=NEVER,
    )
    twin.load_state_dict(state)
    assert same(twin.state_dict()["outliers"], state["outliers"])
    survived = [bool(window["survived"].all()) for window in state["windows"]["windows"]]
    assert survived == 12 * [True] + [False, True]  # replays draw what survived


def test_where_it_is_asked_for_an_absurd_answer_is_learned_and_spoils_the_next_gradients():
    box, network = Absurd(lambda y: 1e3 * y.sign()), make_network()
    policy = zo.tangents.Limits(check_every=None, outliers=False)
    gradient = zo.TangentGradient(
        network, lambda network, batch: squared(box(network(batch))), boxes=[box], limits=policy
    )
    draws = torch.Generator().manual_seed(0)
    trained(gradient, 12, draws)
    box.at = len(box.asked) + 1
    trained(gradient, 1, draws)
    assert gradient.counts.outliers == 0
    assert cosine_of_next(gradient, squared, draws) < 0.9


@pytest.mark.slow
def test_members_of_a_population_are_not_compared_on_a_window_that_lacks_an_outlier():
    """At rates of next to nothing all have one loss: the leader's would have the absurd row, theirs not."""
    box, network = Absurd(lambda y: 1e3 * y.sign()), make_network()
    gradient = zo.TangentGradient(
        network, lambda network, batch: squared(box(network(batch))), boxes=[box], limits=NEVER
    )
    population = zo.Population(gradient, torch.optim.SGD(network.parameters(), lr=1e-12))
    draws = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(14):
            if step == 12:
                box.at = len(box.asked) + 1
            population.step(torch.randn(6, 4, generator=draws, dtype=torch.float64))
    assert gradient.counts.outliers == 1
    first, *others = (member["losses"] for member in population.state_dict()["members"])
    assert all(losses == pytest.approx(first) for losses in others) and max(first) < 100


@pytest.mark.slow
def test_what_comes_again_is_learned():
    """One batch in five holds rows of another regime, which network and box know of."""

    def open_or_shut(x):
        return bent(x) * torch.where(x[:, :1] > 0.5, 30.0, 1.0)

    def with_flag(network, batch):
        flags = (torch.arange(len(batch)) < batch[0, 0].abs() * 0.6)[:, None].to(batch)
        sent = torch.cat([flags, network(batch)[:, 1:]], dim=1)
        return open_or_shut(sent) if exact else box(sent)

    def objective(network, batch):
        return with_flag(network, batch).square().sum(dim=1)

    exact, box, network = False, FromTorch(open_or_shut, (X,), (X,)), make_network()
    gradient = zo.TangentGradient(network, objective, boxes=[box], limits=NEVER)
    draws, cosines = torch.Generator().manual_seed(0), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(120):
            batch = torch.randn(6, 4, generator=draws, dtype=torch.float64)
            batch[0, 0] = 3.0 if step % 5 == 4 and step >= 20 else 0.0
            network.zero_grad()
            gradient.backward(batch)
            if batch[0, 0] and step > 70:  # after some twenty such rows
                exact, found = True, flat(weight.grad for weight in network.parameters())
                right = flat(
                    torch.autograd.grad(
                        objective(network, batch).mean(), list(network.parameters()), allow_unused=True
                    )
                )
                exact = False
                cosines.append(float(torch.nn.functional.cosine_similarity(found, right, dim=0)))
    assert 0 < gradient.counts.outliers <= 2
    assert min(cosines) > 0.99


def test_a_box_with_a_tangent_of_its_own_learns_nothing_from_an_absurd_answer():
    box = Absurd(lambda y: 1e6 * y.sign())
    of_box = zo.differentiable(box, tangent=zo.tangents.KernelTangent())
    network, draws = make_network(), torch.Generator().manual_seed(0)

    def step():
        network.zero_grad()
        batch = torch.randn(6, 4, generator=draws, dtype=torch.float64)
        squared(of_box(network(batch))).mean().backward()
        found = flat(weight.grad for weight in network.parameters())
        exact = torch.autograd.grad(squared(bent(network(batch))).mean(), list(network.parameters()))
        return float(torch.nn.functional.cosine_similarity(found, flat(exact), dim=0))

    for _ in range(12):
        step()
    box.at = len(box.asked) + 1
    with pytest.warns(zo.errors.TangentWarning, match="Absurd, call 13: .* got 1 of 6 rows"):
        step()
    assert step() > 0.99


def test_rows_that_depend_on_those_that_failed_beside_the_box_are_refused():
    """No box's input shows it, but the loss does."""
    beside = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).double()
    network = nn.ModuleDict({"into": make_network(), "beside": beside})
    box = FromTorch(lambda x: torch.where(x.amax(1, keepdim=True) > 50, math.nan, bent(x)), (X,), (X,))
    batch = weights(ROWS, 4)
    batch[DEAD] = 1e3

    def objective(network, batch):
        return (box(batch + network["into"](batch)) - network["beside"](batch)).square().mean(dim=1)

    gradient = zo.TangentGradient(
        network, objective, boxes=[box], tangent=zo.tangents.ModelTangent(bent), limits=NEVER
    )
    with pytest.raises(zo.errors.TangentError, match=r"without the 2 of 20 rows that failed.*batch norm"):
        gradient.backward(batch)
    assert all(p.grad is None for p in network.parameters())
    network.eval()
    gradient.backward(batch)
    loss = (bent(batch + network["into"](batch)) - beside(batch)).square().mean(dim=1)[ALIVE].mean()
    expected = flat(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(flat(p.grad for p in network.parameters()), expected)


@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
def test_dropout_behind_the_box_is_no_dependence_of_rows(evaluator):
    network = nn.ModuleDict(
        {"into": make_network(), "behind": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))}
    )
    network = network.double()
    box, batch = Failing(bent, (X,), (X,)), weights(ROWS, 4)

    def objective(network, batch):
        return (network["behind"](box(box(batch + network["into"](batch)))) - 0.5).square().mean(dim=1)

    gradient = zo.TangentGradient(
        network,
        objective,
        boxes=[box],
        tangent=zo.tangents.ModelTangent(bent),
        limits=NEVER,
    )
    gradient.backward(batch)
    assert len(box.asked) >= 2 and all(p.grad.isfinite().all() for p in network.parameters())


def test_rows_that_depend_on_those_that_failed_are_refused():
    """Batch norm: what survived was computed with the failed rows, which the gradient cannot leave out."""
    network = make_network(nn.BatchNorm1d(5))
    box = FromTorch(lambda x: torch.where(x.amax(1, keepdim=True) > 50, math.nan, bent(x)), (X,), (X,))
    batch = weights(ROWS, 4)
    batch[DEAD] = 1e3

    def objective(network, batch):
        return (box(batch + network(batch)) - 0.5).square().mean(dim=1)

    gradient = zo.TangentGradient(
        network,
        objective,
        boxes=[box],
        tangent=zo.tangents.IdentityTangent(),
        limits=NEVER,
    )
    with pytest.raises(zo.errors.TangentError, match=r"2 of 20 rows that failed.*batch norm in train mode"):
        gradient.backward(batch)
    assert all(p.grad is None for p in network.parameters())
    network.eval()
    gradient.backward(batch)
    grad = flat(p.grad for p in network.parameters())
    network.zero_grad()
    gradient.backward(batch[ALIVE])
    torch.testing.assert_close(grad, flat(p.grad for p in network.parameters()))
