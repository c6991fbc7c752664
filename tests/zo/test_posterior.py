"""Posteriors through boxes: closed forms, reversibility, transforms, resume, and what is refused."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.errors import ConfigurationError, RowFailedError
from zo.errors import TangentWarning
from zo.posterior.hmc import Move, leapfrog
from zo.posterior.inference_data import arviz
from zo.posterior.sampling import _proposed
from zo.posterior.sampling_checkpoint import Checkpoint
from zo.posterior.target import Model, Target
from zo.posterior.unknowns import Unknowns
from zo.tangents import KernelTangent
from zo.tangents.models.values import ValueTangent

F64 = torch.float64
MATRIX = torch.tensor([[1.0, 0.5], [-0.3, 1.2], [0.7, 0.7]], dtype=F64)
DATA, NOISE = torch.tensor([1.0, -0.5, 0.3], dtype=F64), 0.5


class Linear(BlackBoxFunction):
    """y = A x + curve x0^2; fails where x0 passes `limit`."""

    inputs = (ArraySpec("x", (2,), dtype="float64"),)
    outputs = (ArraySpec("y", (3,), dtype="float64"),)

    def __init__(self, curve=0.0, limit=math.inf, failures="keep"):
        super().__init__(failures=failures)
        self.curve, self.limit = curve, limit

    def evaluate_rows(self, x):
        y = x @ MATRIX.numpy().T + self.curve * x[:, :1] ** 2
        y[x[:, 0] > self.limit] = np.nan
        return y


class Noisy(Linear):
    """Another answer each time."""

    def evaluate_rows(self, x):
        self.draws = getattr(self, "draws", 0) + 1
        return super().evaluate_rows(x) + self.draws


class NoisyByPlace(Linear):
    """Noise of one seed for each call, so that it is of the row's place there."""

    def evaluate_rows(self, x):
        return super().evaluate_rows(x) + np.random.default_rng(0).normal(size=(len(x), 3))


class Seen(Linear):
    """Keeps the last rows that it was asked for."""

    def evaluate_rows(self, x):
        self.x = x.copy()
        return super().evaluate_rows(x)


def potential(x, y):
    return ((y - DATA) / NOISE).square().sum(1) / 2 + x.square().sum(1) / 2


def start(rows=20):
    return torch.randn(rows, 2, dtype=F64, generator=torch.Generator().manual_seed(7)) / 2


def without_bounds():
    infinite = torch.full((2,), math.inf, dtype=F64)
    return Unknowns(-infinite, infinite)


def test_a_linear_gaussian_posterior_has_its_closed_form():
    """Means and variances are within five of ArviZ's own Monte Carlo errors."""

    data = zo.sample(potential, Linear(), start(), rows=1700)
    precision = MATRIX.T @ MATRIX / NOISE**2 + torch.eye(2, dtype=F64)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ MATRIX.T @ DATA / NOISE**2
    x = data.posterior["x"].values
    assert x.shape[0] == 8 and x.shape[2] == 2
    error = arviz().mcse(data)["x"].values
    assert (np.abs(x.mean((0, 1)) - mean.numpy()) < 5 * error).all() and (error < 0.05).all()
    spread = arviz().mcse(data, method="sd")["x"].values
    assert (np.abs(x.std((0, 1)) - covariance.diag().sqrt().numpy()) < 5 * spread).all()
    assert data.attrs["rows"] == data.attrs["rows_run_by_ledger"] <= 1700


@pytest.mark.slow
def test_a_wrong_model_and_a_bound_leave_the_posterior_as_it_is():
    """A positive unknown under a twin twice too steep: the mean is that of a quadrature."""

    def steep(x):
        return 2 * x @ MATRIX.T

    data = zo.sample(
        potential,
        Linear(curve=0.5),
        start().abs() + 0.05,
        rows=1700,
        bounds=([0, -math.inf], math.inf),
        twin=steep,
    )
    grid = torch.cartesian_prod(
        torch.linspace(0, 4, 801, dtype=F64)[1:], torch.linspace(-4, 4, 401, dtype=F64)
    )
    y = grid @ MATRIX.T + 0.5 * grid[:, :1] ** 2
    weight = torch.softmax(-potential(grid, y), 0)
    x = data.posterior["x"].values
    assert (x[..., 0] > 0).all()
    assert (
        np.abs(x.mean((0, 1)) - (weight @ grid).numpy()) < 5 * arviz().mcse(data)["x"].values + 0.005
    ).all()


class TwoModes(BlackBoxFunction):
    """Modes at -1 and 1; three more numbers are three times as wide in the second."""

    inputs = outputs = (ArraySpec("x", (4,), dtype="float64"),)

    def evaluate_rows(self, x):
        width = 1 + 2 / (1 + np.exp(-6 * x[:, :1].clip(-9, 9)))
        return np.concatenate([x[:, :1] ** 2 - 1, x[:, 1:] / width], 1)


@pytest.mark.slow
def test_chains_begin_in_a_wide_mode_as_in_a_likelier_narrow_one():
    """The narrow one has a seventh of the mass, and the likeliest rows."""

    def two(x, y):
        return 20 * y[:, 0] ** 2 + y[:, 1:].square().sum(1) / 2 + x[:, 0]

    begin = 2 * torch.randn(40, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    begin[:, 0] /= 2
    draws = zo.sample(two, TwoModes(), begin, rows=320, learn=140)
    means = draws.posterior["x"].values[..., 0].mean(1)
    assert (means > 0).sum() >= 2


def test_a_trajectory_by_the_frozen_model_goes_back():
    """Momenta turned round, it ends where it began, to rounding."""
    target = Target(potential, Linear(curve=1.0), without_bounds())
    q = start()
    model = Model(target, KernelTangent(), None, q, target.answers(q))
    p, root = torch.ones_like(q[:4]), torch.tensor([[0.5, 0.0], [0.2, 0.7]], dtype=F64)
    end, momentum, *_ = leapfrog(model, q[:4], p, 9, 0.2, root)
    back, turned, *_ = leapfrog(model, end, -momentum, 9, 0.2, root)
    assert (end - q[:4]).norm() > 0.5
    assert torch.allclose(back, q[:4], atol=1e-10) and torch.allclose(turned, -p, atol=1e-10)


def test_places_where_the_model_has_no_density_are_entered_and_left():
    """No force is there, so a trajectory goes through, and back the same way."""

    def no_density_beyond(x, y):
        return potential(x, y) + (1.0 - x[:, 0]).sqrt()

    target, q = Target(no_density_beyond, Linear(), without_bounds()), start().clamp(max=0.9)
    model = Model(target, Quadratic(), None, q, target.answers(q))
    inside, p = torch.tensor([[0.8, 0.0]], dtype=F64), torch.tensor([[4.0, 0.5]], dtype=F64)
    root = torch.eye(2, dtype=F64)
    end, momentum, there, alive, _ = leapfrog(model, inside, p, 7, 0.1, root)
    assert alive.all() and end[0, 0] > 1 and there[0] == math.inf
    back, turned, *_ = leapfrog(model, end, -momentum, 7, 0.1, root)
    assert torch.allclose(back, inside, atol=1e-10) and torch.allclose(turned, -p, atol=1e-10)


def test_a_box_is_not_asked_at_infinity():
    """Far out an unknown with a bound overflows, and no force turns the trajectory round."""
    infinite = torch.full((2,), math.inf, dtype=F64)
    target, last = Target(potential, Seen(), Unknowns(torch.zeros(2, dtype=F64), infinite)), start()
    move = Move(1.0, 1, 1e4 * torch.eye(2, dtype=F64))
    state = {"q": last, "potential": target.potential(last, target.answers(last))}

    def no_force(q):
        return q.new_zeros(len(q)), torch.zeros_like(q)

    draw = _proposed(target, no_force, state, move, torch.Generator().manual_seed(0))
    assert not draw["accepted"].any() and draw["diverging"].any()
    assert np.isfinite(target.box.x).all()


class Single(BlackBoxFunction):
    """A x in float32, of numbers in float32 alone."""

    inputs = (ArraySpec("x", (2,), dtype="float32"),)
    outputs = (ArraySpec("y", (3,), dtype="float32"),)

    def evaluate_rows(self, x):
        return x @ MATRIX.numpy().T.astype("float32")


def test_a_box_of_32_bits_is_asked_in_its_own_dtype():
    """The model is exact for it, so that the potentials by box and model differ by its rounding alone."""
    stats = zo.sample(potential, Single(), start().float(), **SHORT).sample_stats
    by_box, by_model = (stats[f"proposed_potential{of}"].values for of in ("", "_by_model"))
    assert np.allclose(by_box, by_model, rtol=1e-4, atol=1e-4) and stats["accepted"].values.any()
    bounded = Target(potential, Single(), Unknowns(torch.zeros(2, dtype=F64), torch.full((2,), math.inf)))
    assert bounded.asked(torch.tensor([[100.0, 1.0]], dtype=F64)).isinf().tolist() == [[True, False]]


class Total(Linear):
    """The sum of y, one number of each row."""

    outputs = (ArraySpec("y", (), dtype="float64"),)

    def evaluate_rows(self, x):
        return super().evaluate_rows(x).sum(1)


def test_a_box_may_answer_with_one_number():
    """The model is exact for it; rows beyond the limit fail, and are rejections."""
    box = Total(limit=0.4)
    data = zo.sample(lambda x, y: (y - 1).square() + x.square().sum(1) / 2, box, start(), **SHORT)
    stats = data.sample_stats
    by_box, by_model = (stats[f"proposed_potential{of}"].values for of in ("", "_by_model"))
    alive = np.isfinite(by_box)
    assert np.allclose(by_box[alive], by_model[alive], atol=1e-6) and alive.any()
    assert (
        data.attrs["rows_failed"] == box.ledger.rows_failed > 0 and (data.posterior["x"][..., 0] <= 0.4).all()
    )


def test_a_row_that_failed_has_no_density_whatever_the_potential_makes_of_it():
    """A limit that NaN does not pass is no likelihood of NaN."""
    target = Target(lambda x, y: torch.where(y[:, 0] > 2, math.inf, 0.0), Linear(), without_bounds())
    answers = torch.zeros(3, 3, dtype=F64)
    answers[1, 1], answers[2, 0] = math.nan, math.inf
    assert target.potential(torch.zeros(3, 2, dtype=F64), answers).tolist() == [0, math.inf, math.inf]


def test_a_potential_that_writes_into_its_answers_changes_none():
    """They are kept, and asked of again."""

    def in_place(x, y):
        y -= DATA
        y /= NOISE
        return y.square().sum(1) / 2 + x.square().sum(1) / 2

    q, answers = start(), Linear()(start())
    target = Target(in_place, Linear(), without_bounds())
    for _ in range(2):
        assert torch.allclose(target.potential(q, answers), potential(q, Linear()(q)))
    model = Model(target, Quadratic(), None, q, answers)
    plain = Model(Target(potential, Linear(), without_bounds()), Quadratic(), None, q, answers)
    assert torch.allclose(model(q)[1], plain(q)[1])


def test_a_twin_that_raises_far_out_has_no_force_there():
    """The other rows' forces are as without it."""

    def twin(x):
        if (x[:, 0] > 3).any():
            raise np.linalg.LinAlgError("not positive definite")
        return x @ MATRIX.T

    target, q = Target(potential, Linear(), without_bounds()), start()
    model = Model(target, KernelTangent(), twin, q, target.answers(q))
    far = torch.tensor([[4.0, 0.0]], dtype=F64)
    potentials, gradients = model(torch.cat([q[:2], far]))
    expected, slopes = model(q[:2])
    assert potentials[2] == math.inf and gradients[2].eq(0).all()
    assert torch.allclose(potentials[:2], expected) and torch.allclose(gradients[:2], slopes)


def test_transforms_have_the_jacobians_of_autograd():
    """Lower, upper, both and none; and there and back."""
    inf = math.inf
    unknowns = Unknowns(*torch.tensor([[0.5, -inf, -1.0, -inf], [inf, 2.0, 3.0, inf]], dtype=F64))
    q = torch.randn(5, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    x, slope = unknowns.bounded(q)
    for row, expected in zip(q, slope, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda q: unknowns.bounded(q[None])[0][0], row)
        assert torch.linalg.slogdet(jacobian).logabsdet == pytest.approx(float(expected))
    assert torch.allclose(unknowns.free(x), q)
    with pytest.raises(ConfigurationError, match="within their bounds"):
        unknowns.free(torch.zeros(1, 4, dtype=F64))


class Quadratic(ValueTangent):
    """Least squares of squares: exact for `Linear`, and quick."""

    knows = True

    def __init__(self, ridge=1e-9):
        super().__init__(1, False)
        self.ridge = ridge

    def __repr__(self):
        return f"Quadratic(ridge={self.ridge})"

    def within(self, z, others):
        return self.values(z, others)

    def learn_from_window(self):
        raise NotImplementedError

    @staticmethod
    def terms(x):
        return torch.cat([torch.ones_like(x[:, :1]), x, x.square(), x[:, :1] * x[:, 1:]], 1)

    def fit(self, x, y):
        terms = self.terms(x)
        self.weights = torch.linalg.solve(terms.T @ terms + self.ridge * torch.eye(6, dtype=F64), terms.T @ y)

    def values(self, x, fixed):
        return self.terms(x) @ self.weights


SHORT = {"rows": 300, "chains": 4, "learn": 60, "tangent": Quadratic()}


class Interrupted(Linear):
    """Ctrl-C comes in the call that would pass `rows`."""

    def __init__(self, rows):
        super().__init__(curve=1.0)
        self.rows = rows

    def evaluate_rows(self, x):
        self.rows -= len(x)
        if self.rows < 0:
            raise KeyboardInterrupt
        return super().evaluate_rows(x)


@pytest.fixture(scope="module")
def whole():
    """A sampling that nothing stops, and its file."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "state.pt"
        yield zo.sample(potential, Linear(curve=1.0), start(), **SHORT, checkpoint=kept), kept


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("stopped", [40, 90, 200])
def test_a_sampling_that_was_stopped_goes_on_to_the_bit(tmp_path, whole, stopped):
    """In a round of learning, soon after, and among the chains; of what was asked one row is asked again."""
    kept = tmp_path / "state.pt"
    first = Interrupted(stopped)
    if stopped < 140:
        with pytest.raises(KeyboardInterrupt):
            zo.sample(potential, first, start(), **SHORT, checkpoint=kept)
    else:
        part = zo.sample(potential, first, start(), **SHORT, checkpoint=kept)
        count = part.posterior.sizes["draw"]
        assert part.attrs["stopped"] == 1 and stopped - 4 <= part.attrs["rows"] <= stopped
        assert 18 <= count < whole[0].posterior.sizes["draw"]
    box = Linear(curve=1.0)
    again = zo.sample(potential, box, start(), **SHORT, checkpoint=kept)
    assert np.array_equal(whole[0].posterior["x"].values, again.posterior["x"].values)
    assert np.array_equal(whole[0].sample_stats["lp"].values, again.sample_stats["lp"].values)
    assert again.attrs["rows"] == whole[0].attrs["rows"]
    assert box.ledger.rows_run <= 300 - (22 if stopped == 40 else stopped - 4) + 1


def test_a_finished_sampling_asks_for_nothing_and_more_rows_prolong_it(tmp_path, whole):
    """The longer one begins with the draws of the shorter."""
    kept, box = shutil.copy(whole[1], tmp_path), Linear(curve=1.0)
    again = zo.sample(potential, box, start(), **SHORT, checkpoint=kept)
    assert box.ledger.rows_run == 0
    assert np.array_equal(again.posterior["x"].values, whole[0].posterior["x"].values)
    longer = zo.sample(potential, box, start(), **{**SHORT, "rows": 400}, checkpoint=kept)
    assert box.ledger.rows_run == 1 + longer.attrs["rows"] - again.attrs["rows"] == 101
    x, before = longer.posterior["x"].values, again.posterior["x"].values
    assert np.array_equal(x[:, : before.shape[1] - 3], before[:, 3:])  # a tenth more is left out


def test_too_few_rows_for_what_a_checkpoint_was_begun_with_cost_none(tmp_path):
    """It was to learn 100 rows, so 80 in all would be exceeded before the first draw."""
    kept, box = tmp_path / "state.pt", Linear(curve=1.0)
    given = {"chains": 2, "tangent": Quadratic(), "checkpoint": kept}
    with pytest.raises(KeyboardInterrupt):
        zo.sample(potential, Interrupted(40), start(), rows=5000, **given)
    least = 100 + 2 + 20 * 2  # learned by default: 50, and 25 for each unknown
    with pytest.raises(ConfigurationError, match=f"rows: expected at least {least}, to learn from 100 "):
        zo.sample(potential, box, start(), rows=80, **given)
    assert box.ledger.rows_run == 0


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"box": Linear(curve=1.1)}, "the box that"),
        ({"start": start() + 0.01}, "the start that"),
        ({"start": start()[:10]}, "the start that"),
        ({"potential": lambda x, y: potential(x, y) + 1}, "the potential that"),
        ({"twin": lambda x: x @ MATRIX.T}, "the twin that"),
        ({"seed": 1}, "seed=1"),
        ({"bounds": (-9.0, 9.0)}, "the start that|lower="),
        ({"learn": 61}, "learn=61"),
        ({"tangent": Quadratic(ridge=1.0)}, "ridge=1"),
    ],
)
def test_a_checkpoint_of_another_sampling_is_refused(tmp_path, whole, changed, message):
    """Saying what is another."""
    kept = shutil.copy(whole[1], tmp_path)
    given = {
        "potential": potential,
        "box": Linear(curve=1.0),
        "start": start(),
        **SHORT,
        "rows": 400,
    } | changed
    with pytest.raises(ConfigurationError, match=message):
        zo.sample(given.pop("potential"), given.pop("box"), given.pop("start"), **given, checkpoint=kept)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_a_checkpoint_knows_its_box_twin_and_potential_in_every_unit(tmp_path, unit):
    """An answer of 1e-9 has no absolute error of 1e-8, and a large constant hides no other prior."""

    class Scaled(Linear):
        def evaluate_rows(self, x):
            return unit * super().evaluate_rows(x)

    def twin(x):
        return unit * x @ MATRIX.T

    def with_constant(x, y):
        return potential(x, y / unit) + 1e6

    q = start()
    target = Target(with_constant, Scaled(), without_bounds())
    answers = target.answers(q)
    begun = {"potential": target.potential(q, answers), "twin": twin(q)}
    saves, state = Checkpoint(tmp_path / "state.pt"), {"q": q, "answers": answers, "at_start": begun}
    saves.refuse_other(state, target, q, twin, ask=True)
    with pytest.raises(ConfigurationError, match="the box that"):
        saves.refuse_other(state, Target(with_constant, Scaled(0.1), without_bounds()), q, twin, ask=True)
    with pytest.raises(ConfigurationError, match="the twin that"):
        saves.refuse_other(state, target, q, lambda x: 1.1 * twin(x), ask=True)
    another = Target(lambda x, y: with_constant(x, y) + x[:, 0] / 50, Scaled(), without_bounds())
    with pytest.raises(ConfigurationError, match="the potential that"):
        saves.refuse_other(state, another, q, twin, ask=True)


def test_two_processes_with_one_checkpoint_do_not_mix_their_bytes(tmp_path, monkeypatch):
    """The one that is done last has the file."""
    kept, write, generator = tmp_path / "state.pt", torch.save, torch.Generator()

    def slow(state, stream):
        if state["q"] == 0:  # another process begins and ends meanwhile
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: -1)
                Checkpoint(kept).save({"q": 1, "draws": []}, generator)
        write(state, stream)

    monkeypatch.setattr(torch, "save", slow)
    Checkpoint(kept).save({"q": 0, "draws": []}, generator)
    assert torch.load(kept)["q"] == 0 and os.listdir(tmp_path) == ["state.pt"]


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    """Another's file, and one that is cut, are not overwritten."""
    kept = tmp_path / "state.pt"
    kept.write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="cannot be read as one"):
        zo.sample(potential, Linear(), start(), **SHORT, checkpoint=kept)
    assert kept.read_bytes() == b"something else"


def test_failed_rows_are_rejections_that_are_counted():
    """No draw is where the box fails; a box that does not keep failed rows raises."""
    box, settings = Linear(limit=0.5), {"rows": 600, "tangent": Quadratic()}
    data = zo.sample(potential, box, start(), **settings)
    assert (data.posterior["x"].values[..., 0] <= 0.5).all()
    assert data.attrs["rows_failed"] == box.ledger.rows_failed > 10
    with pytest.raises(RowFailedError):
        zo.sample(potential, Linear(limit=0.5, failures="raise"), start(), **settings)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"potential": lambda x, y: x[:, 0] / 0}, "finite numbers at the start"),
        ({"potential": lambda x, y: y}, "one number for each row"),
        ({"potential": lambda x, y: torch.from_numpy(y.numpy().sum(1))}, "potential: .* autograd .* numpy"),
        ({"potential": lambda x, y: potential(x, y).detach()}, "potential: .* result without a graph"),
        ({"twin": lambda x: torch.from_numpy(x.numpy() @ MATRIX.T.numpy())}, "twin: .* autograd .* numpy"),
        ({"box": Noisy()}, "same answer to the same row"),
        ({"box": NoisyByPlace()}, "same answer to the same row, alone and among others"),
        ({"start": torch.zeros(2)}, "rows of 2 numbers"),
        ({"start": "far away"}, "start: expected rows of numbers, got str"),
        ({"box": potential, "potential": Linear()}, "box: expected a BlackBoxFunction, got function"),
        ({"rows": 100}, "rows: expected at least"),
        ({"chains": 0}, "chains"),
        ({"bounds": (1.0, 0.0)}, "below the upper"),
        ({"twin": lambda x: x}, "shape of the box's answers"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, message):
    """Each in a sentence."""
    given = {"potential": potential, "box": Linear(), "start": start(), "rows": 600} | changed
    with pytest.raises(ConfigurationError, match=message):
        zo.sample(given.pop("potential"), given.pop("box"), given.pop("start"), **given)


@pytest.mark.parametrize("twin", [None, lambda x: torch.ones(len(x), 3, dtype=torch.float64)])
def test_functions_that_write_into_their_arguments_or_are_constant_are_taken(twin):
    """Neither is cut: a constant has no force, and no graph."""

    def writes(x, y):
        x[:, 0] *= 2
        y *= 2
        return potential(torch.cat([x[:, :1] / 2, x[:, 1:]], dim=1), y / 2)

    def flat(x, y):
        return torch.zeros(len(x), dtype=torch.float64)

    settings = {**SHORT, "twin": twin, "tangent": Quadratic()}
    drawn = zo.sample(writes, Linear(), start(), **settings)
    plain = zo.sample(potential, Linear(), start().numpy(), **settings)
    assert np.array_equal(drawn.posterior["x"].values, plain.posterior["x"].values)
    x = zo.sample(flat, Linear(), start(), **settings, bounds=(-4.0, 4.0)).posterior["x"].values
    assert np.abs(x).max() <= 4 and x.std() > 0.5


def test_a_sampling_that_is_finished_gives_its_draws_whatever_rows_are_asked_for(tmp_path):
    """It runs no row, also where so few would not do for a new one."""
    kept, box = tmp_path / "state.pt", Linear()
    settings = {"chains": 4, "tangent": Quadratic(), "checkpoint": kept}
    whole = zo.sample(potential, box, start(), rows=500, **settings)
    rows_run = box.ledger.rows_run
    again = zo.sample(potential, box, start(), rows=120, **settings)
    assert np.array_equal(whole.posterior["x"].values, again.posterior["x"].values)
    assert box.ledger.rows_run == rows_run


def test_what_can_be_seen_before_costs_no_row(tmp_path):
    """A twin of another shape is refused, and the folder of a checkpoint is made."""
    box = Linear()
    with pytest.raises(ConfigurationError, match="shape of the box's answers"):
        zo.sample(potential, box, start(), rows=600, twin=lambda x: x)
    assert box.ledger.rows_run == 0
    with pytest.raises(KeyboardInterrupt):
        zo.sample(potential, Interrupted(40), start(), **SHORT, checkpoint=tmp_path / "new" / "state.pt")
    assert (tmp_path / "new" / "state.pt").exists()


@pytest.mark.slow
def test_a_model_that_is_hardly_accepted_is_told():
    """Ripples of the box, too narrow for any model."""

    class Rippled(Linear):
        def evaluate_rows(self, x):
            return super().evaluate_rows(x) + 100 * np.sin(1e4 * x[:, :1])

    with pytest.warns(TangentWarning, match="coarse twin"):
        zo.sample(potential, Rippled(), start(), rows=700, chains=4)


@pytest.mark.slow
def test_arviz_is_imported_where_the_cache_of_the_user_cannot_be_written(tmp_path):
    """ArviZ writes into it on each new day. A file lies where the folder would be."""
    (tmp_path / "cache").write_text("")
    code = "import os; from zo.posterior.inference_data import arviz; arviz(); "
    code += "print(os.environ['XDG_CACHE_HOME'])"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'cache'}\n"), done.stderr
