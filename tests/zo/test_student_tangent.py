"""`StudentTangent`: what it keeps and draws, resuming, failures, shapes, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import CallPairs, StudentTangent

X, Y = ArraySpec("x", (3,)), ArraySpec("y", (2,))


def net(*extra: nn.Module, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), *extra, nn.Linear(6, 2))


def call(z: Tensor, y: Tensor, alive: Tensor | None = None) -> CallPairs:
    alive = torch.ones(len(z), dtype=torch.bool) if alive is None else alive
    return CallPairs((X,), (Y,), z, y, alive)


def rows(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = weights(count, 3, seed=seed)
    return z, torch.sin(z @ weights(3, 2, seed=50))


def step(student: StudentTangent, pairs: CallPairs) -> None:
    student.see(pairs)
    student.learn()


# Before anything was seen


def test_before_it_has_seen_anything_it_answers_to_nothing():
    student, (z, y) = StudentTangent(net()), rows()
    pairs, d = call(z, y), weights(*z.shape, seed=11)
    assert student.at(pairs).values is None
    assert not student.at(pairs).pull(y).any() and student.at(pairs).pull(y).shape == z.shape
    assert not student.at(pairs).push(d).any() and student.at(pairs).push(d).shape == y.shape
    student.learn()
    assert student.at(pairs).values is None
    step(student, pairs)
    assert student.at(pairs).values.shape == y.shape and student.at(pairs).pull(y).any()


@pytest.mark.slow
def test_where_trust_is_lost_it_learns_four_times_as_long_for_a_while_and_once():
    student, (z, y) = StudentTangent(net(), steps_per_step=2), rows()
    pairs = call(z, y)
    step(student, pairs)
    before = student._learner.steps
    assert "four times as many steps of learning for 25 steps" in student.improve()
    for _ in range(10):
        step(student, pairs)
    again = StudentTangent(net(), steps_per_step=2)
    again.load_state_dict(student.state_dict())  # in the midst of it
    for learner in (student, again):
        for _ in range(20):
            step(learner, pairs)
        assert learner._learner.steps - before == 25 * 8 + 5 * 2
        assert learner.improve() is None
    assert torch.equal(student.at(pairs).pull(y), again.at(pairs).pull(y))


# What is kept


def kept(student: StudentTangent) -> tuple[Tensor, Tensor]:
    return tuple(student.state_dict()["window"]["kept"])


def test_rows_are_kept_where_they_did_not_fail():
    student, (z, y) = StudentTangent(net()), rows(4)
    alive = torch.tensor([True, False, True, True])
    student.see(call(z, y, alive=alive))
    x, answers = kept(student)
    assert torch.equal(x, z[alive].float()) and torch.equal(answers, y[alive].float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("side", ["in", "out"])
def test_numbers_that_are_not_finite_never_enter(bad, side):
    """1e300 is not in float32."""
    student, (z, y) = StudentTangent(net()), rows(5)
    (z if side == "in" else y)[3, 1] = bad
    student.see(call(z, y))
    student.fit(z, y, steps=1)
    good = [0, 1, 2, 4] * 2
    assert torch.equal(kept(student)[0], z[good].float())
    assert student.at(call(*rows())).values.isfinite().all()


def test_the_window_is_the_last_rows_and_the_moments_are_of_all():
    student, parts = StudentTangent(net().double(), window=7), [rows(n, seed=n) for n in (3, 5, 9, 2)]
    for part in parts:
        student.see(call(*part))
    x, _ = kept(student)
    every = torch.cat([z for z, _ in parts])
    assert sorted(map(tuple, x.tolist())) == sorted(map(tuple, every[-7:].tolist()))
    moments = student.state_dict()["moments"][0]
    assert torch.allclose(moments["sums"][0], every.mean(0), rtol=1e-12)
    assert torch.allclose((moments["sums"][1] / len(every)).sqrt(), every.std(0, correction=0), rtol=1e-12)


def test_a_number_that_never_changes_is_left_as_it_is():
    """Its spread is rounding; divided by that its derivative would be anything."""
    student, (z, y) = StudentTangent(net()), rows(200)
    z[:, 1] = 0.1
    student.fit(z.float(), y.float(), steps=50)
    pairs, v = call(z.float(), y.float()), weights(200, 2, seed=4).float()
    assert student.at(pairs).pull(v).abs().max() < 100


# Draws, resuming, copies


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("extra", [(), (nn.Dropout(0.5),), (nn.BatchNorm1d(6),)], ids=["", "dropout", "norm"])
def test_resume_to_the_bit_and_draws_hang_on_the_seed_alone(extra, tmp_path):
    def run(resume: bool, disturb: int, seed: int = 0) -> Tensor:
        def make() -> StudentTangent:
            return StudentTangent(net(*copy.deepcopy(extra)), batch=8, window=30, steps_per_step=2, seed=seed)

        student = make()
        for n in range(6):
            if resume and n in (1, 4):
                torch.save(student.state_dict(), tmp_path / "state.pt")
                student = make()
                student.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            torch.manual_seed(disturb + n)
            before = torch.get_rng_state()
            step(student, call(*rows(9, seed=n)))
            assert torch.equal(torch.get_rng_state(), before)
        z, y = rows(4, seed=9)
        return student.at(call(z, y)).pull(y)

    undisturbed = run(False, 1)
    assert torch.equal(undisturbed, run(True, 2))
    assert not torch.allclose(undisturbed, run(False, 1, seed=1), rtol=1e-3)


def test_a_state_is_not_written_to():
    """Neither by the student it came from nor by the one that was given it."""
    student = StudentTangent(net())
    student.fit(*rows(), steps=2)
    state = student.state_dict()
    before = copy.deepcopy(state)
    other = StudentTangent(net(seed=1))
    other.load_state_dict(state)
    for learner in (student, other):
        learner.fit(*rows(seed=3), steps=2)
    assert torch.equal(state["window"]["kept"][0], before["window"]["kept"][0])
    assert torch.equal(state["network"]["0.weight"], before["network"]["0.weight"])
    now, then = (saved["optimizer"]["state"][0] for saved in (state, before))
    assert all(torch.equal(now[name], then[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_a_copy_learns_by_itself():
    student = StudentTangent(net())
    student.fit(*rows(), steps=2)
    twin = copy.deepcopy(student)
    pairs, v = call(*rows(seed=1)), weights(20, 2)
    before = student.at(pairs).pull(v)
    twin.fit(*rows(seed=3), steps=5)
    assert torch.equal(student.at(pairs).pull(v), before)
    assert not torch.equal(twin.at(pairs).pull(v), before)
    student.fit(*rows(seed=3), steps=5)
    assert torch.equal(twin.at(pairs).pull(v), student.at(pairs).pull(v))


def test_batch_norm_moves_while_it_learns_and_only_then():
    norm = nn.BatchNorm1d(6)
    student = StudentTangent(net(norm))
    student.fit(*rows(), steps=3)
    assert norm.num_batches_tracked == 3 and not norm.training
    pairs, v = call(*rows(seed=1)), weights(20, 2)
    whole = student.at(pairs).pull(v)
    assert norm.num_batches_tracked == 3
    alone = student.at(call(pairs.z[:1], pairs.y[:1])).pull(v[:1])
    assert torch.allclose(whole[:1], alone, rtol=1e-5)  # rows do not interact


def test_nothing_is_left_in_the_networks_grad_by_products():
    student = StudentTangent(net())
    student.fit(*rows(), steps=1)
    student.network.zero_grad()
    pairs = call(*rows())
    student.at(pairs).pull(pairs.y)
    student.at(pairs).push(pairs.z)
    assert all(p.grad is None for p in student.network.parameters())


# In a gradient


def test_a_step_costs_the_base():
    box, network = FromTorch(torch.sin, (X,), (ArraySpec("y", (3,)),)), nn.Linear(3, 3).double()
    gradient = zo.TangentGradient(
        network,
        lambda n, b: box(n(b)).square().mean(1),
        boxes=[box],
        tangent=StudentTangent(nn.Linear(3, 3)),
        limits=zo.tangents.Limits(check_every=None),
    )
    for seed in range(3):
        gradient.backward(weights(5, 3, seed=seed))
    (student,) = gradient.tangents
    assert gradient.counts.rows == student.state_dict()["window"]["seen"] == 3 * 5
    assert student.state_dict()["steps"] == 3
    assert isinstance(gradient.trust_of_step, float)


class Pictured(nn.Module):
    """Takes (rows, 2, 2), gives (rows, 3, 2): two classes at three places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (2, 2)
        return self.layer(x.flatten(1)).view(-1, 3, 2)


def test_one_array_keeps_its_shape_and_classes_are_along_the_last_axis():
    student = StudentTangent(Pictured(), loss="kl")
    x = weights(50, 2, 2).float()
    p = torch.rand(50, 3, 2).softmax(-1)
    student.fit(x, p, steps=3)
    specs = (ArraySpec("x", (2, 2)),), (ArraySpec("p", (3, 2)),)
    pairs = CallPairs(*specs, x.flatten(1), p.flatten(1))
    assert torch.allclose(student.at(pairs).values.view(50, 3, 2).sum(-1), torch.ones(50, 3))
    constant = torch.ones(50, 3, 2)  # probabilities at a place sum to one: along that nothing changes
    assert student.at(pairs).pull(constant.flatten(1)).abs().max() < 1e-6


def test_several_arrays_are_end_to_end_and_numbers_are_vectors_of_one():
    """A student of a linear box, in which it can be exact."""
    a, b, s = ArraySpec("a", (2,)), ArraySpec("b", ()), ArraySpec("s", ())
    z = weights(400, 3)
    y = z @ weights(3, 1, seed=2)
    student = StudentTangent(nn.Linear(3, 1).double(), learning_rate=0.05)
    student.fit([z[:, :2], z[:, 2]], y[:, 0], steps=400)
    pairs = CallPairs((a, b), (s,), z, y)
    assert torch.allclose(
        student.at(pairs).pull(torch.ones(400, 1).double()), weights(3, 1, seed=2).T.expand(400, 3), atol=1e-3
    )


# Refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "hinge"}, "loss: expected one of squared, kl, kl-logits, labels"),
        ({"window": 0}, "window: expected a whole number"),
        ({"batch": 0}, "batch: expected"),
        ({"steps_per_step": 0}, "steps_per_step: expected"),
        ({"learning_rate": 0.0}, "learning_rate: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"network": nn.Tanh()}, "parameters that require a gradient, got none in Tanh"),
        ({"network": nn.Linear(3, 2).requires_grad_(False)}, "require a gradient"),
    ],
)
def test_settings_out_of_range(settings, words):
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError, match=words):
        StudentTangent(settings.pop("network", net()), **settings)


@pytest.mark.parametrize(
    ("loss", "outputs", "words"),
    [
        ("kl", weights(20, 2), "expected probabilities .* Of logits take loss='kl-logits'"),
        ("kl", torch.zeros(20, 2), "expected probabilities"),
        ("kl", torch.ones(20, 1), "two or more classes"),
        ("labels", torch.ones(20), "labels as one-hot vectors"),
        ("squared", weights(20, 4), r"to take \(2, 3\) to \(2, 4\), got \(2, 2\)"),
        ("squared", weights(19, 2), "equally many rows"),
        ("squared", torch.full((20, 2), float("nan")), "finite numbers, got none among 20"),
    ],
)
def test_answers_that_do_not_fit(loss, outputs, words):
    with pytest.raises(zo.errors.ConfigurationError, match=words):
        StudentTangent(net(), loss=loss).fit(rows()[0], outputs)


def test_a_network_that_does_not_suit_the_box_costs_no_row():
    """Images before a layer that takes vectors."""
    box = FromTorch(lambda x: x.flatten(1)[:, :2], (ArraySpec("x", (1, 2, 2)),), (Y,))
    images, layers = torch.rand(20, 1, 2, 2), (nn.Linear(4, 6), nn.Linear(6, 2))
    student = StudentTangent(nn.Sequential(*layers))
    with pytest.raises(zo.errors.ConfigurationError, match=r"to take \(2, 1, 2, 2\) to \(2, 2\).*nn.Flatten"):
        student.fit(images, box)
    with pytest.raises(zo.errors.ConfigurationError, match=r"nn.Flatten"):
        zo.TangentGradient(net(), lambda network, x: box(network(x))[:, 0], boxes=[box], tangent=student)
    with pytest.raises(zo.errors.ConfigurationError, match=r"nn.Flatten"):
        zo.differentiable(box, tangent=student, seed=0)
    assert not box.asked
    suited, known = (StudentTangent(nn.Sequential(nn.Flatten(), *copy.deepcopy(layers))) for _ in range(2))
    suited.fit(images, box, steps=3)
    known.fit(images, box(images), steps=3)
    assert torch.equal(suited.outputs(images), known.outputs(images))


def test_a_box_is_asked_with_all_of_its_inputs_and_any_leading_axes():
    """Inputs without derivative, and several leading axes, were refused when the rows had been run."""
    fixed = ArraySpec("gain", (), differentiable=False)
    box = FromTorch(lambda x, gain: gain[:, None] * x[:, :2], (X, fixed), (Y,))
    (z, _), gain = rows(), torch.linspace(1, 2, 20)
    asking, known = StudentTangent(net()), StudentTangent(net())
    asking.fit([z.reshape(4, 5, 3), gain.reshape(4, 5)], box, steps=3)
    known.fit(z, gain[:, None] * z[:, :2], steps=3)
    assert torch.equal(asking.outputs(z), known.outputs(z))


def test_outputs_are_asked_for_at_numbers_as_at_vectors_of_one():
    x = torch.linspace(0, 1, 20)
    student = StudentTangent(nn.Linear(1, 1))
    student.fit(x, 2 * x, steps=1)
    assert torch.equal(student.outputs(x), student.outputs(x[:, None]))
    assert student.outputs(x).shape == (20, 1)


def test_steps_of_fit_and_another_boxs_shapes_are_refused():
    student = StudentTangent(net())
    with pytest.raises(zo.errors.ConfigurationError, match="steps: expected"):
        student.fit(*rows(), steps=0)
    student.fit(*rows(), steps=1)
    z = weights(20, 4)
    with pytest.raises(zo.errors.ConfigurationError, match="stands for one box"):
        student.fit(z, rows()[1])


def test_learning_that_diverges_is_an_error():
    student = StudentTangent(nn.Linear(3, 2), learning_rate=1e30)
    with pytest.raises(zo.errors.TangentError, match="smaller learning_rate"):
        student.fit(*rows(), steps=20)


# Behind boxes that fail, and replays


def test_where_no_row_has_an_answer_the_message_says_why_the_box_failed():
    def refused(x: Tensor) -> Tensor:
        raise PermissionError("401 Unauthorized")

    box, x = FromTorch(refused, (X,), (Y,)), weights(4, 3, seed=0)
    box.failures = "keep"
    with pytest.raises(zo.errors.ConfigurationError, match=r"row 0 .* 401 Unauthorized"):
        StudentTangent(net()).fit(x, box(x))


@pytest.mark.parametrize("fixed", [None, 2])
def test_nothing_is_replayed_with_a_student_unless_it_is_asked_for(fixed):
    box, network = FromTorch(lambda x: torch.sin(x[:, :2]), (X,), (Y,)), nn.Linear(3, 3)
    gradient = zo.TangentGradient(
        network, lambda n, x: box(n(x)).square().sum(dim=1), boxes=[box], tangent=StudentTangent(net()),
        limits=zo.tangents.Limits(replays=fixed), seed=0,
    )  # fmt: skip
    gradient.backward(weights(8, 3, seed=1).float())
    assert gradient.replays() == (fixed or 0)
