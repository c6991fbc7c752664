"""Value-fitted tangents in training: what is chosen, what follows when trust is lost, rows that exist."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, Cached
from tests.judged import gathered, judged
from tests.zo.learners import learner
from tests.zo.linearised import answers
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents.models.maps.output_map import OutputMap

RING = ArraySpec("u", (1, 16))
LOSES = judged(lost=1e-9, regained=1e-9, check_every=None, average=2)
NEVER = judged(check_every=None, lost=1e9, regained=1e9)


def step(u):
    return u - 0.2 * u * torch.sin(u.roll(1, 2)) + 0.1 * u.roll(-1, 2)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(1, 2, 3, padding=1), nn.BatchNorm1d(2), nn.Dropout(0.2), nn.Conv1d(2, 1, 1)
    )


def through(*boxes):
    def objective(network, batch):
        state = batch
        for _ in range(2):
            for box in boxes:
                state = box(state + 0.1 * network(state))
        return state.square().flatten(1).mean(dim=1)

    return objective


def make_gradient(network, *boxes, **settings) -> zo.TangentGradient:
    settings = gathered(**{"limits": NEVER, **settings})
    return zo.TangentGradient(network, through(*boxes), boxes=list(boxes), **settings)


def ring() -> FromTorch:
    return FromTorch(step, (RING,), (RING,))


def batch_of(seed: int) -> torch.Tensor:
    return weights(6, 1, 16, seed=seed).float()


def flat_grads(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.fixture
def small(monkeypatch):
    """What is chosen from, made to learn little, for tests of what follows what."""
    quick = {"first_steps": 4, "steps_per_step": 1, "batch": 8}
    for name, made in (
        (
            "grid.grid.GridTangent",
            partial(learner, zo.tangents.GridTangent, 4, periodic=True, reach=1, **quick),
        ),
        ("mlp.MLPTangent", partial(learner, zo.tangents.MLPTangent, 8, **quick)),
        (
            "grid.stencil.StencilTangent",
            partial(zo.tangents.StencilTangent, 2, periodic=True, reach=1, ridge=1e-9),
        ),
    ):
        monkeypatch.setattr(f"zo.tangents.models.{name}", made)


# The choice


@pytest.mark.parametrize(
    ("inputs", "outputs", "kinds"),
    [
        ([(1, 16)], [(1, 16)], "GridTangent, StencilTangent, EquationTangent"),
        ([(2, 5, 4), (3,)], [(2, 5, 4)], "GridTangent, StencilTangent, EquationTangent"),
        ([(1, 5, 4), (1, 4, 5)], [(1, 5, 4), (1, 4, 5)], "GridTangent, StencilTangent"),  # faces
        ([(2, 60, 60)], [(2, 60, 60)], "GridTangent, StencilTangent, EquationTangent"),
        ([(1, 80, 80)], [(1, 80, 80)], "GridTangent"),  # too large for hundreds of features of each cell
        ([(1, 15)], [(1, 15)], "KernelTangent, MLPTangent"),  # few cells
        ([(17, 16)], [(17, 16)], "MLPTangent"),  # many channels
        ([(40,)], [(40,)], "MLPTangent"),  # no channels
        ([(3,)], [(2, 5, 4)], "KernelTangent, MLPTangent"),  # nothing on the grid goes in
        ([(3,)], [(2, 60, 60)], "MLPTangent"),  # too many outputs for a weight of each centre
        ([(1, 16)], [(1, 16), ()], "KernelTangent, MLPTangent"),  # an energy beside a state
    ],
)
def test_the_specs_decide_and_the_repr_says_what(inputs, outputs, kinds):
    names = ["a", "b"]
    box = FromTorch(step, *(tuple(map(ArraySpec, names, shapes)) for shapes in (inputs, outputs)))
    gradient = zo.TangentGradient(make_network(), through(box), boxes=[box])
    words = repr(gradient.tangents[0])
    places = [words.find(f"{name}(") for name in kinds.split(", ")]
    assert -1 not in places and places == sorted(places)
    assert words.count("Tangent(") == 1 + len(places)
    assert words in repr(gradient)


def test_kinds_learn_side_by_side_and_the_better_one_stays(small, limits):
    """The box is quadratic: the stencil foretells it to rounding."""
    limits(contest_steps=10)
    box = FromTorch(lambda u: u - 0.2 * u * u.roll(1, 2), (RING,), (RING,))
    gradient = make_gradient(make_network().eval(), box)
    for n in range(11):
        gradient.backward(batch_of(n))
        assert set(gradient.tangents[0].models) == ({"grid", "stencil"} if n < 9 else {"stencil"})
    assert gradient.trust_of_step < 1e-3 and gradient.counts.rows == box.ledger.rows_run == 11 * 6 * 2


@pytest.mark.slow
def test_answers_that_are_there_tell_which_kind_stays(small):
    """The box is quadratic: a fifth of the answers shows it, also where one of them is lost."""
    box = FromTorch(lambda u: u - 0.2 * u * u.roll(1, 2), (RING,), (RING,))
    asked = weights(60, 1, 16, seed=3).float()
    answers = box(asked)
    answers[4] = torch.nan
    tangent = make_gradient(make_network(), box).tangents[0]
    tangent.fit(asked, answers)
    assert set(tangent.models) == {"stencil"}
    few = make_gradient(make_network(), box).tangents[0]
    few.fit(asked[:20], answers[:20])
    assert set(few.models) == {"grid", "stencil"}  # too few to tell


def diverges(tangent, steps=None):
    raise zo.errors.TangentError("expected a finite loss, got nan.")


def test_a_kind_whose_learning_diverges_is_out_and_alone_it_is_an_error(small, monkeypatch):
    """In the contest the other kind goes on, and does not lose to it later."""
    monkeypatch.setattr(zo.tangents.StencilTangent, "learn", diverges)
    gradient = make_gradient(make_network().eval(), ring())
    for n in range(2):
        gradient.backward(batch_of(n))
        assert list(gradient.tangents[0].models) == ["grid"] and gradient.tangents[0].kind == "grid"
    monkeypatch.setattr(zo.tangents.GridTangent, "learn", diverges)
    with pytest.raises(zo.errors.TangentError, match="got nan"):
        gradient.backward(batch_of(2))


def table(**settings) -> tuple[FromTorch, zo.TangentGradient]:
    """A box of two numbers, for which a perceptron stands behind the kernel."""
    torch.manual_seed(0)
    x = (ArraySpec("x", (2,)),)
    box, network = FromTorch(lambda u: torch.sin(20 * u), x, x), nn.Linear(3, 2).double()
    gradient = zo.TangentGradient(
        network,
        lambda net, batch: box(net(batch)).square().mean(dim=1),
        boxes=[box],
        **gathered(clip=None, **settings),
    )
    return box, gradient


def rows_of_table(seed: int) -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_where_the_only_kind_in_use_diverges_the_next_one_takes_over(small, monkeypatch):
    box, gradient = table(limits=NEVER)
    gradient.backward(rows_of_table(0))
    monkeypatch.setattr(zo.tangents.KernelTangent, "learn", diverges)
    with pytest.warns(
        zo.errors.TangentWarning, match="got nan[.] MLPTangent.* takes over from KernelTangent"
    ):
        gradient.backward(rows_of_table(1))
    assert gradient.tangents[0].kind == "mlp" and box.ledger.rows_run == gradient.counts.rows == 2 * 6
    monkeypatch.setattr(zo.tangents.MLPTangent, "learn", diverges)
    with pytest.raises(zo.errors.TangentError, match="got nan"):
        gradient.backward(rows_of_table(2))


def test_a_kind_that_is_asked_for_help_and_diverges_is_out_and_the_one_in_use_goes_on(monkeypatch):
    monkeypatch.setattr(zo.tangents.MLPTangent, "learn", diverges)
    _, gradient = table(limits=LOSES)
    with pytest.warns(zo.errors.TangentWarning, match="tangents have nothing left to try"):
        for n in range(30):
            gradient.backward(rows_of_table(n))
    assert list(gradient.tangents[0].models) == ["kernel"] and gradient.counts.steps == 30


def test_two_boxes_have_tangents_of_their_own(small):
    other = FromTorch(lambda u: torch.tanh(2 * u), (RING,), (RING,))
    box, network = ring(), make_network().eval()
    gradient = make_gradient(network, box, other)
    gradient.backward(batch_of(0))
    first, second = gradient.tangents
    d = torch.ones(6, 16)
    asked = box.asked[0][0]
    pairs = zo.tangents.CallPairs((RING,), (RING,), asked.flatten(1))
    assert not torch.allclose(first.at(pairs).push(d), second.at(pairs).push(d), rtol=1e-2)
    copied = copy.deepcopy(first)
    assert torch.equal(copied.at(pairs).push(d), first.at(pairs).push(d))
    gradient.backward(batch_of(1))
    assert not torch.equal(copied.at(pairs).push(d), first.at(pairs).push(d))


# Lost trust


@pytest.mark.slow
@pytest.mark.parametrize("worse", ["the one in use", "the other"])
def test_another_kind_takes_over_only_where_it_foretells_better(small, worse):
    _, gradient = table(limits=LOSES)
    (tangent,), n = gradient.tangents, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while "mlp" not in tangent.models:
            gradient.backward(rows_of_table(n))
            n += 1
            assert n < 80
        before = tangent.kind
        spoilt = tangent.models[before if worse == "the one in use" else "mlp"]
        answers(spoilt, values=lambda values: None if values is None else 9 + values)
        for more in range(n, n + 4):
            gradient.backward(rows_of_table(more))
    assert before != "mlp" and tangent.kind == ("mlp" if worse == "the one in use" else before)


@pytest.mark.slow
def test_what_is_done_about_lost_trust_takes_no_row_and_at_last_it_is_said_that_nothing_is_left(small):
    """Once, with what helps."""
    box = ring()
    gradient = make_gradient(make_network().eval(), box, limits=LOSES)
    with pytest.warns(zo.TangentWarning) as caught:
        for n in range(30):
            gradient.backward(batch_of(n))
    words = [str(warning.message) for warning in caught]
    assert all("for no more rows" in message for message in words[:-1]) and len(words) > 1
    assert sum("tangents have nothing left to try" in message for message in words) == 1
    assert "prefit" in words[-1] and "another method" in words[-1] and "--" not in words[-1]
    assert box.ledger.rows_run == 30 * 6 * 2


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_runs_resume_to_the_bit_on_each_rung(small, every, tmp_path):
    """In train mode, where buffers move and masks are drawn."""

    def run(resume):
        torch.manual_seed(5)
        network, box = make_network(), ring()
        gradient, gradients, kinds = make_gradient(network, box, limits=LOSES), [], []
        for n in range(24):
            if resume and n % every == 0:
                torch.save(gradient.state_dict(), tmp_path / "state.pt")
                gradient = make_gradient(network, box, limits=LOSES)
                gradient.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            network.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", zo.TangentWarning)
                gradient.backward(batch_of(n))
            gradients.append(flat_grads(network))
            kinds.append((gradient.tangents[0].kind, gradient.trust_of_step))
        return torch.stack(gradients), kinds

    torch.manual_seed(5)
    (plain, kinds), (resumed, same) = run(False), run(True)
    assert torch.equal(plain, resumed) and kinds == same
    assert len({kind for kind, _ in kinds}) >= 2


@pytest.mark.parametrize(
    "make",
    [
        zo.tangents.StencilTangent,
        partial(learner, zo.tangents.GridTangent, first_steps=3, steps_per_step=1),
        partial(learner, zo.tangents.MLPTangent, first_steps=3, steps_per_step=1),
    ],
)
def test_a_named_tangent_resumes_though_it_measured_its_box(make):
    network, box = make_network().eval(), ring()
    gradients = [make_gradient(network, box, tangent=make()) for _ in range(2)]
    gradients[0].backward(batch_of(0))
    gradients[1].load_state_dict(gradients[0].state_dict())
    grads = []
    for gradient in gradients:
        network.zero_grad()
        gradient.backward(batch_of(1))
        grads.append(flat_grads(network))
    assert torch.equal(*grads)


def test_missed_is_how_well_the_responses_along_the_gradient_are_told():
    """The identity's J d is d: |c d - d| / |c d| for a box c u, whatever the gradient."""
    box = FromTorch(lambda u: 0.8 * u, (RING,), (RING,))
    policy = judged(check_every=1, agreement=-1e9, missed=1e9, lost=1e9)
    gradient = make_gradient(make_network().eval(), box, tangent=zo.tangents.IdentityTangent(), limits=policy)
    gradient.backward(batch_of(0))
    assert gradient.missed == pytest.approx(0.25, rel=1e-3)
    assert gradient.metrics()["tangent_missed"] == gradient.missed
    assert gradient.counts.checks == 1 and gradient.counts.rows == box.ledger.rows_run == 2 * 6 * 2
    quiet = make_gradient(make_network().eval(), box, tangent=zo.tangents.IdentityTangent())
    quiet.backward(batch_of(0))
    assert quiet.missed is None and "tangent_missed" not in quiet.metrics()


# Rows that exist already


def test_prefit_counts_its_rows_and_leaves_buffers_and_draws_as_they_were(small):
    def run(batches):
        network, box = make_network(), ring()
        gradient = make_gradient(network, box)
        torch.manual_seed(3)
        before = copy.deepcopy(network.state_dict())
        if batches:
            gradient.prefit(batches, steps=5)
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
        assert gradient.counts.rows == box.ledger.rows_run == len(batches) * 6 * 2
        assert gradient.counts.steps == 0
        loss = gradient.backward(batch_of(9))
        return loss, torch.rand(3), network.state_dict(), gradient.trust_of_step

    loss, drawn, state, trust = run([batch_of(n) for n in range(3)])
    plain, same, other, none = run([])
    assert torch.equal(loss, plain) and torch.equal(drawn, same)
    assert all(torch.equal(other[name], value) for name, value in state.items())
    assert none is None and trust is not None  # it has something to foretell with


def test_rows_of_a_cached_box_are_not_paid_twice(small, tmp_path):
    inner = ring()
    box, network = Cached(inner, tmp_path / "answers.db"), make_network().eval()
    gradient = make_gradient(network, box)
    for _ in range(2):
        gradient.prefit([batch_of(0), batch_of(1)], steps=2)
    gradient.backward(batch_of(1))
    assert inner.ledger.rows_run == 2 * 6 * 2 and gradient.counts.rows == 5 * 6 * 2


class Slopes(zo.tangents.Tangent):
    """A tangent of a user's: each output follows the input in its place, with the last rows' slope."""

    def __init__(self):
        self.slope = torch.zeros(16)

    def see(self, pairs):
        z, y = (rows - rows.mean(0) for rows in (pairs.z, pairs.y))
        self.slope = (z * y).sum(0) / z.square().sum(0)

    def at(self, rows):
        return zo.tangents.LinearMap(rows, lambda d: d * self.slope, lambda v: v * self.slope)


def scaled(factor):
    return FromTorch(lambda u: factor * u, (RING,), (RING,))


def test_a_tangent_of_one_s_own_learns_before_the_first_step(small):
    """Of the documented methods alone: what it sees of a box 3 u is the slope 3."""
    network = make_network()
    gradient = make_gradient(network, scaled(3.0), tangent=Slopes())
    gradient.prefit([batch_of(0)])
    (tangent,) = gradient.tangents
    torch.testing.assert_close(tangent.slope, torch.full((16,), 3.0), rtol=1e-5, atol=1e-5)


def test_what_learns_in_steps_takes_those_of_prefit_once_for_all_batches(small):
    class InSteps(Slopes):
        steps = ()

        def learn(self, steps=None):
            self.steps = (*self.steps, steps)

    gradient = make_gradient(make_network(), scaled(3.0), tangent=InSteps())
    gradient.prefit([batch_of(0), batch_of(1)], steps=7)
    (tangent,) = gradient.tangents
    assert tangent.steps == (7,)


def test_one_of_one_s_own_may_stand_where_nothing_is_replayed_unasked(small):
    """As a StudentTangent does; a number that was asked for stays."""

    class Still(Slopes):
        replayed = False

    for tangent, asked, expected in (
        (Still(), None, 0),
        (Slopes(), None, 9),
        (Still(), 2, 2),
    ):
        gradient = make_gradient(make_network(), scaled(3.0), tangent=tangent, replays=asked)
        gradient.backward(batch_of(0))
        assert gradient.replays() == expected


def test_what_prefit_refuses(small):
    box, network = ring(), make_network()
    with pytest.raises(
        zo.errors.ConfigurationError, match=r"tangents that learn, .* IdentityTangent.*tangent=None"
    ):
        make_gradient(network, box, tangent=zo.tangents.IdentityTangent()).prefit([batch_of(0)])
    gradient = make_gradient(network, box)
    with pytest.raises(zo.errors.ConfigurationError, match="expected at least one batch, got none"):
        gradient.prefit([])
    with pytest.raises(zo.errors.ConfigurationError, match="steps: expected a whole number >= 1"):
        gradient.prefit([batch_of(0)], steps=0)
    with pytest.raises(zo.errors.FailedQueriesError):
        gradient.prefit([batch_of(0) * float("nan")])
    assert gradient.counts.steps == 0


def test_the_choice_fits_rows_of_its_box_with_all_inputs(small):
    case = ArraySpec("case", (), differentiable=False)
    box = FromTorch(lambda u, c: step(u) * c[:, None, None], (RING, case), (RING,))
    gradient = make_gradient(make_network().eval(), box)
    u, c = weights(8, 1, 16), weights(8, seed=1)
    gradient.tangents[0].fit([u, c], box.function(u, c), steps=3)
    assert all(model.knows for model in gradient.tangents[0].models.values())
    assert box.ledger.rows_run == 0


@pytest.mark.parametrize("kind", ["grid", "stencil", "mlp"])
def test_a_row_that_fails_bends_no_gradient(kind):
    make = {
        "grid": lambda: learner(
            zo.tangents.GridTangent, 4, first_steps=5, steps_per_step=1, reach=1, periodic=True
        ),
        "stencil": lambda: zo.tangents.StencilTangent(2, reach=1, periodic=True),
        "mlp": lambda: learner(zo.tangents.MLPTangent, 8, first_steps=5, steps_per_step=1),
    }[kind]

    def run(batch):
        network = make_network().eval().double()
        box = FromTorch(
            lambda u: torch.where(u.amax((1, 2), True) > 50, torch.nan, step(u)), (RING,), (RING,)
        )
        gradient = make_gradient(network, box, tangent=make())
        for _ in range(2):
            network.zero_grad()
            gradient.backward(batch)
        return flat_grads(network)

    good = weights(5, 1, 16)
    bad = torch.cat([good[:2], torch.full((1, 1, 16), 1e3).double(), good[2:]])
    assert torch.allclose(run(bad), run(good), rtol=1e-4, atol=1e-7)


# Rows that look otherwise than the first


def pairs_of(u: torch.Tensor, y: torch.Tensor) -> zo.tangents.CallPairs:
    spec = ArraySpec("u", tuple(u.shape[1:]))
    return zo.tangents.CallPairs((spec,), (spec,), u.flatten(1), y.flatten(1))


def couple(u):
    """Two channels that move each other, and one row apart from the next."""
    return u + 0.1 * torch.stack([u[:, 1].roll(1, 1) - u[:, 0], u[:, 0] * u[:, 1].roll(-1, 1)], dim=1)


def taught(tangent, box, *batches):
    for u in batches:
        pairs = pairs_of(u, box(u))
        tangent.see(pairs)
        tangent.learn()
    return tangent


def vjp_error(tangent, box, u) -> float:
    v = weights(*u.shape, seed=99).to(u.dtype)
    _, true = torch.autograd.functional.vjp(box, u, v)
    pulled = tangent.at(pairs_of(u, box(u))).pull(v.flatten(1))
    return float((pulled - true.flatten(1)).norm() / true.norm())


@pytest.mark.parametrize("size", [0.0, 1e-16, 1e-8])
def test_a_channel_that_wakes_up_after_the_first_step(size):
    """As a velocity across a flow, of rounding at first; cubes of it in its first units are infinite."""
    tangent = zo.tangents.StencilTangent(3, periodic=True, reach=1, output_map=False)
    batches = [weights(8, 2, 24, seed=n).float() for n in range(4)]
    first = batches[0] * torch.tensor([1.0, size])[:, None]
    assert vjp_error(taught(tangent, couple, first, *batches), couple, batches[-1]) < 1e-3


def test_one_row_far_away_does_not_bend_a_stencil():
    tangent = zo.tangents.StencilTangent(3, periodic=True, reach=1, output_map=False)
    first, second = (weights(8, 2, 24, seed=n).float() for n in range(2))
    second[3] *= 1e15
    assert vjp_error(taught(tangent, couple, first, second, first), couple, first) < 1e-3


def test_a_stencil_looks_at_all_calls_of_the_first_step():
    """The first call of a rollout begins at rest: it shows no reach."""
    tangent = zo.tangents.StencilTangent(2, periodic=True, output_map=False)

    def carries(u):
        return u + 0.3 * u.roll(3, 2)

    for u in (torch.zeros(8, 1, 24), weights(8, 1, 24).float()):
        tangent.see(pairs_of(u, carries(u)))
    tangent.learn()
    assert tangent.measured["reach"] == 3


@pytest.mark.parametrize(
    "make",
    [
        partial(learner, zo.tangents.MLPTangent, 16, first_steps=100),
        pytest.param(
            partial(
                learner, zo.tangents.GridTangent, 8, periodic=True, reach=1, first_steps=100, output_map=False
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_small_changes_of_large_numbers_count_in_double_precision(make):
    """A pressure of 1e5 that moves by 1e-3, which float64 resolves, is told as well as one of 0 by 1."""
    errors = []
    for offset, size in ((0.0, 1.0), (1e5, 1e-3)):

        def box(u, offset=offset):
            return u + 0.5 * (u - offset).roll(1, 2)

        batches = [offset + size * weights(64, 1, 16, seed=n) for n in range(3)]
        errors.append(vjp_error(taught(make(), box, *batches), box, batches[-1]))
    assert errors[0] < 0.8 and errors[1] == pytest.approx(errors[0], rel=0.05)


@pytest.mark.parametrize(
    "make",
    [
        partial(zo.tangents.StencilTangent, 2, periodic=True, reach=1),
        partial(learner, zo.tangents.MLPTangent, 8, first_steps=4),
        partial(learner, zo.tangents.GridTangent, 4, first_steps=4),
    ],
)
def test_a_state_from_before_the_first_step_takes_all_knowledge_away(make):
    u, again = batch_of(0), make()
    learned = taught(make(), step, u)
    learned.load_state_dict(make().state_dict())
    pairs = pairs_of(u, step(u))
    assert not learned.knows and not learned.at(pairs).pull(pairs.y).any()
    for tangent in (learned, again):
        taught(tangent, step, u)
    assert torch.equal(learned.at(pairs).pull(pairs.y), again.at(pairs).pull(pairs.y))


def test_predictions_that_are_not_numbers_lose_trust():
    watch = zo.tangents.trust.TrustWatch(judged(average=2))
    with pytest.warns(zo.TangentWarning, match="relative error"):
        for n in range(9):
            watch.saw(n, float("nan"))
    assert watch.lost


def test_a_map_of_a_large_grid_is_fitted_to_fewer_rows(limits):
    """1,500 rows of 2 x 128 x 256 numbers would be six matrices of .8 GB."""
    taken = []

    class Map(OutputMap):
        def fit(self, x, y, scale, again=True):
            taken.append(len(x))
            return super().fit(x, y, scale, again)

    limits(map_class=Map)
    for most in (2**24, 64 * 80):
        limits(map_numbers=most)
        tangent = zo.tangents.StencilTangent(2, periodic=True, reach=1)
        u = weights(100, 1, 64).float()
        taught(tangent, lambda u: u + 0.1 * u * u.roll(1, 2), u)
    assert taken == [100, 80]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_few_rows_that_stay_the_same_do_not_take_gradients_away(rows):
    """What four rows answer spans four of 64 directions: no constraint of the box."""

    def box(u):
        return u + 0.1 * u * u.roll(1, 2)

    tangent = zo.tangents.StencilTangent(2, periodic=True, reach=1)
    u = weights(rows, 1, 64).float()
    batches = [u + 0.01 * n * weights(1, 1, 64, seed=7).float() for n in range(6)]
    for n, batch in enumerate(batches):
        assert vjp_error(taught(tangent, box, batch), box, batch) < 0.1, n


@pytest.mark.slow
def test_a_stencil_of_many_channels_has_a_lower_degree_and_few_features():
    """Of 48 channels the products of three alone are 19,600, whose sums take 3 GB."""
    x = weights(40, 48, 3).float()
    mix = weights(48, 48, seed=1).float() / 7
    tangent = zo.tangents.StencilTangent(periodic=True, reach=1)
    tangent.fit(x, x + torch.einsum("ij,rjn->rin", mix, x.roll(1, 2)))
    assert tangent.state_dict()["sums"][0].shape[0] < 2_000


def test_a_stencil_says_that_channels_and_reach_are_too_many():
    x = weights(3, 12, 9, 9, 9).float()
    with pytest.raises(zo.errors.TangentError, match="12 channels and a reach of 4 cells on 3 axes"):
        zo.tangents.StencilTangent(reach=4, periodic=True).fit(x, 0.5 * x)
