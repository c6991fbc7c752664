"""Each method's gradient against autograd, its queries against the box's own count, and the safeguard."""

import bisect
import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec
from blackbox.adapters import TorchModule
from tasks.applications.denoised_smoothing import smoothing_parameter
from tasks.applications.denoised_smoothing.config import ZerothOrder, read
from tasks.applications.denoised_smoothing.methods import (
    TrainingStart,
    _gradient,
    _lesson,
    estimator,
    known_losses,
    sent_images,
)
from tasks.applications.denoised_smoothing.networks import DnCNN, box_loss
from tasks.applications.denoised_smoothing.smoothing_parameter import Mu
from tasks.errors import ConfigurationError
from tasks.problem.problem import Surroundings
from tasks.problem.silence import Silence
from tasks.rows.tally import RowTally
from tests.tasks.applications.denoised_smoothing import small
from zo.execution.memory import MemoryPeak

# DeepZero, as published, takes steps over which these classifiers curve, or whose changes rounding hides
pytestmark = pytest.mark.filterwarnings("ignore:.*same slopes over half of mu:UserWarning")

LOGITS = partial(box_loss, kind="logits")
ZERO_ORDER = ("zo-ds:cge", "zo-ds:rge", "zo-ds:dct", "zo-ds:wide", "zo-ae-ds:cge", "deepzero", "student")
Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def chain() -> tuple[DnCNN, TorchModule, Rows]:
    """A denoiser, a smooth box and a batch, in float64 and away from the clamp's kinks."""
    torch.manual_seed(0)
    front = DnCNN(1, 3, 3, False).double()
    module, spec = small.network(), ArraySpec("image", (1, small.SIDE, small.SIDE))
    box = TorchModule(module, [spec], [ArraySpec("logits", (small.CLASSES,))])
    return front, box, (small.rows(6), small.rows(6, seed=2), torch.tensor([0, 1, 2, 0, 1, 2]))


def gradient_by_autograd(
    front: DnCNN, box: TorchModule, batch: Rows, weight: float = 0.0
) -> list[torch.Tensor]:
    noisy, clean, target = batch
    denoised = front(noisy).clamp(0, 1)
    loss = functional.cross_entropy(box.module(denoised), target)
    loss = loss + weight * (denoised - clean).square().sum(dim=(1, 2, 3)).mean()
    return list(torch.autograd.grad(loss, list(front.parameters())))


class Said(Silence):
    """Keeps the lines of text that stay."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("kind", ["cge", "orthogonal"])
def test_all_directions_at_the_input_give_the_gradient_of_autograd(kind, central):
    front, box, batch = chain()
    size = small.SIDE**2
    config = small.Config(zeroth_order=ZerothOrder(central=central, input_directions=size))
    rule = estimator(config, read(f"zo-ds:{kind}"), Mu.same(1e-6), size, False)
    solver = zo.differentiable(box, rule, seed=0)
    known_losses(solver(sent_images(front, batch[0])), batch[2], LOGITS).mean().backward()
    for weight, expected in zip(front.parameters(), gradient_by_autograd(front, box, batch), strict=True):
        # forward: mu/2 times a second derivative below 1; central and rounding far below that
        torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_deepzero_s_loss_is_the_chain_s_and_all_coordinates_give_its_gradient(tmp_path):
    front, box, batch = chain()
    made = small.problem(tmp_path, mse_weight=0.1)
    made.replace_boxes(lambda _: box)
    objective = made.objective
    noisy, clean, target = batch
    denoised = front(noisy).clamp(0, 1)
    expected = functional.cross_entropy(box(denoised.detach()), target, reduction="none")
    expected = expected + 0.1 * (denoised - clean).square().sum(dim=(1, 2, 3)).detach()
    with torch.no_grad():
        torch.testing.assert_close(objective(front, batch), expected)
    gradient = zo.LossGradient(front, objective, zo.CGE(1e-6, central=True), seed=0)
    gradient.backward(batch)
    for weight, truth in zip(front.parameters(), gradient_by_autograd(front, box, batch, 0.1), strict=True):
        torch.testing.assert_close(weight.grad, truth, rtol=1e-5, atol=1e-7)


def test_the_loss_of_labels_is_linear_and_failed_rows_are_left_out():
    hot = torch.eye(3)
    assert box_loss(hot, torch.tensor([0, 1, 0]), "labels").tolist() == [0, 0, 1]
    scores = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [0.5, 0.1]], requires_grad=True)
    loss = known_losses(scores, torch.tensor([0, 0, -1]), LOGITS).mean()
    loss.backward()
    expected = functional.cross_entropy(scores[:1], torch.tensor([0])) / 3
    assert loss.item() == pytest.approx(expected.item())
    assert scores.grad is not None and scores.grad.isfinite().all() and not scores.grad[1:].any()


def test_rows_that_failed_are_paid_once_and_leave_the_others_their_gradient(tmp_path):
    """Their loss is zero, not NaN: for that the batch would be asked for again without them."""
    front, box, (noisy, clean, target) = chain()
    first = sent_images(front, noisy).detach().flatten(1)[:, 0]
    limit = float(first.sort().values[-2:].mean())  # which one row of six is beyond

    class Fragile(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.where(images.flatten(1)[:, :1] > limit, torch.nan, box.module(images))

    fragile = TorchModule(Fragile(), box.inputs, box.outputs, failures="keep")
    made = small.problem(tmp_path, loss="labels", mse_weight=0.1, start="scratch")
    made.replace_boxes(lambda _: fragile)
    start = TrainingStart.of(replace(small.setup(made, tmp_path, "zo-ds", {}), network=front))
    rule = zo.box_gradient.RowRGE(1e-6, small.SIDE**2, "orthogonal", central=True)
    stand = zo.differentiable(fragile, rule, seed=0, max_dropped=0.5)
    target[int((first <= limit).nonzero()[0])] = -1  # of another row nobody knows the class
    asked = fragile.ledger.rows_asked
    _gradient(start, stand, LOGITS).backward((noisy, clean, target))
    assert fragile.ledger.rows_asked - asked == 6 + stand.counts.rows + stand.counts.checks
    denoised, alive = front(noisy).clamp(0, 1), (first <= limit) & (target >= 0)
    assert alive.sum() == 4
    loss = functional.cross_entropy(box.module(denoised[alive]), target[alive], reduction="sum") / 6
    loss = loss + 0.1 * (denoised - clean).square().sum() / 6
    expected = torch.autograd.grad(loss, list(front.parameters()))
    for weight, truth in zip(front.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, truth, rtol=1e-5, atol=1e-7)


def test_a_latent_gradient_is_that_of_decoder_and_box(tmp_path):
    front, box, batch = chain()
    decoder = torch.nn.Sequential(
        torch.nn.Linear(4, 36), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (1, 6, 6))
    )
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4))
    decoder, encoder = decoder.double(), encoder.double()
    from tasks.applications.denoised_smoothing.classifiers import Decoded

    rule = estimator(small.Config(), read("zo-ae-ds:cge"), Mu.same(1e-6), 4, True)
    solver = zo.differentiable(Decoded(box, decoder, 4), rule, seed=0)
    both = torch.nn.Sequential(front, encoder)
    known_losses(solver(sent_images(both, batch[0], decoder)), batch[2], LOGITS).mean().backward()
    loss = functional.cross_entropy(box.module(decoder(both(batch[0]))), batch[2])
    for weight, truth in zip(
        both.parameters(), torch.autograd.grad(loss, list(both.parameters())), strict=True
    ):
        torch.testing.assert_close(weight.grad, truth, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every method, trained once, with what the box was asked for by each."""
    folder, names = tmp_path_factory.mktemp("methods"), ("mse", *ZERO_ORDER, "fo-ds")
    made = small.problem(folder, methods=names)
    trained: dict[str, Any] = {}
    asked: dict[str, int] = {}
    for name in names:
        before = RowTally([made.box]).copy()
        trained = small.train(made, folder, name, before=trained)
        asked[name] = RowTally([made.box]).since(before).rows_asked
    return made, trained, asked


@pytest.mark.slow
@pytest.mark.parametrize("method", ZERO_ORDER)
def test_a_budget_is_kept_and_nearly_spent_and_counts_are_the_box_s_own(everything, method):
    made, trained, asked = everything
    found, budget = trained[method], made.config.queries_of(method)
    assert found.queries <= budget
    # clean images and mu are asked for once, and counted by each
    told = {kind.removeprefix("queries: "): count for kind, count in found.figures.items()}
    shared = found.queries - asked[method]
    assert shared in (0, told["clean images"], told["clean images"] + told.get("mu", 0))
    assert told["validation"] == 3 * made.config.validation_images
    if method != "deepzero":  # which keeps some back for a first-use check that took less
        left = {"zo-ds:cge": 4 * 37, "zo-ds:wide": 4 * 9, "student": 1}.get(method, 4 * 5)
        assert budget - found.queries < left


@pytest.mark.slow
def test_methods_through_the_box_start_from_mse_and_never_end_worse(everything):
    made, trained, _ = everything
    held_out = made.held_out(0)
    start = made.held_out_error(trained["mse"].network, held_out)
    for method in (*ZERO_ORDER, "fo-ds"):
        found = trained[method]
        if method != "zo-ae-ds:cge":  # which starts with an autoencoder behind it
            assert found.outcome.best_validation <= start
        assert made.held_out_error(found.network, held_out) == found.outcome.best_validation


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zo.errors.ZeroGradientWarning")  # of images that are all black
@pytest.mark.parametrize(
    "method", ["student", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zo-ds:dct", "deepzero"))]
)
def test_where_training_makes_it_worse_the_start_is_kept(tmp_path, method):
    made = small.problem(tmp_path, methods=("mse", method), learning_rate=0.05, zo_learning_rate=0.05)
    trained = small.train(made, tmp_path, "mse")
    start = copy.deepcopy(trained["mse"].network.state_dict())
    # towards the wrong class: whatever is learned, held-out accuracy falls
    vars(made)["targets"] = (made.targets + 1) % small.CLASSES
    found = small.train(made, tmp_path, method, before=trained)[method]
    assert found.outcome.best_step == 0 and found.outcome.step > 0
    for name, weight in found.network.state_dict().items():
        assert torch.equal(weight, start[name])
    said: list[str] = []
    made._surroundings = Surroundings(Said(said))
    fields = made.judge(small.setup(made, tmp_path, method, trained), found)
    assert fields["start kept"] == 1 and len(said) == 1 and "on held-out images" in said[0]
    assert fields["validation accuracy"] == fields["validation accuracy of the start"]


def test_a_run_says_what_the_start_and_the_chosen_weights_are_right_on(tmp_path):
    made = small.problem(tmp_path, methods=("mse", "student"), steps=3)
    trained = small.train(made, tmp_path, "mse", "student")
    found = trained["student"]
    start = made.held_out_error(trained["mse"].network, made.held_out(0))
    assert found.outcome.first_validation == start and 0 < start < 1
    said: list[str] = []
    made._surroundings = Surroundings(Said(said))
    better = replace(found, outcome=replace(found.outcome, best_step=10, best_validation=start / 2))
    fields = made.judge(small.setup(made, tmp_path, "student", trained), better)
    assert fields["validation accuracy"] == 1 - start / 2
    assert fields["validation accuracy of the start"] == 1 - start
    assert f"right on {1 - start / 2:.1%}, with the start's weights on {1 - start:.1%};" in said[0]


@pytest.mark.quick_cases(1)
@pytest.mark.filterwarnings("ignore::zo.errors.ZeroGradientWarning")  # of labels
@pytest.mark.parametrize(("answers", "decimals"), [("probabilities", 2), ("labels", None)])
@pytest.mark.parametrize("method", ["student", pytest.param("zo-ds:wide", marks=pytest.mark.slow)])
def test_rounded_probabilities_and_labels_alone_are_learned_from(tmp_path, answers, decimals, method):
    made = small.problem(
        tmp_path, methods=("mse", method), answers=answers, decimals=decimals, loss="labels", steps=5
    )
    trained = small.train(made, tmp_path, "mse", method)
    start = made.held_out_error(trained["mse"].network, made.held_out(0))
    best = trained[method].outcome.best_validation
    assert best is not None and best <= start
    assert trained[method].queries <= made.config.queries


def test_the_step_whose_slopes_agree_best_is_found_between_noise_and_curvature():
    generator = torch.Generator().manual_seed(0)
    steps = [4.0**-level for level in range(10)]
    bend, noise = torch.randn(64, generator=generator, dtype=torch.float64), 1e-6
    slopes = torch.stack(
        [
            1 + mu * bend + noise / mu * torch.randn(64, generator=generator, dtype=torch.float64)
            for mu in steps
        ]
    )
    # errors of a slope: mu from the bend, 1e-6 / mu from the noise; equal at 1e-3
    assert 1e-3 / 8 <= (smoothing_parameter.best_step(steps, slopes) or 0) <= 8e-3
    assert smoothing_parameter.best_step(steps, torch.zeros(10, 64)) is None
    assert smoothing_parameter.best_step(steps, torch.randn(10, 64, generator=generator)) is None


def test_measuring_mu_leaves_running_statistics_to_the_steps(tmp_path):
    """A method that measured had others than one that read what another had measured, as after a kill."""
    made = small.problem(tmp_path, batch_norm=True)
    setup = small.setup(made, tmp_path, "zo-ds", {})
    before = copy.deepcopy(setup.network.state_dict())
    mu = smoothing_parameter.find(
        setup, read("zo-ds"), made.box, partial(sent_images, setup.network), "image"
    )
    assert mu.queries and setup.network.training
    assert all(torch.equal(value, before[name]) for name, value in setup.network.state_dict().items())


def test_mu_is_not_asked_for_with_fewer_queries_than_could_tell_it(tmp_path):
    """A limit of ten queries is too few to tell mu: 33 were asked once, and none of them could count."""
    made = small.problem(tmp_path, mu_queries=10)
    setup, _ = small.setup(made, tmp_path, "zo-ds", {}), made.targets
    mu = smoothing_parameter.find(
        setup, read("zo-ds"), made.box, partial(sent_images, setup.network), "image"
    )
    assert mu == Mu(made.config.sigma, made.config.sigma, made.config.wide_mu, made.config.wide_mu)


def test_measuring_mu_takes_memory_as_the_images_do_not_as_their_square(tmp_path):
    """An identity matrix of images of 224 x 224 in colour took 91 gigabytes."""
    made, side = small.problem(tmp_path), 50
    setup, _ = small.setup(made, tmp_path, "zo-ds", {}), made.targets
    spec = ArraySpec("image", (1, side, side))
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(side * side, small.CLASSES))
    box = TorchModule(module, [spec], [ArraySpec("logits", (small.CLASSES,))])
    with MemoryPeak() as peak:
        mu = smoothing_parameter.find(
            setup, read("zo-ds"), box, lambda noisy: functional.interpolate(noisy, (side, side)), "image"
        )
    assert mu.measured and peak.peak < 4 * side**4 / 4


def test_the_step_of_a_weight_moves_the_image_as_far_as_asked(tmp_path):
    torch.manual_seed(0)
    made, network = small.problem(tmp_path), DnCNN(1, 2, 3, False)
    mu = smoothing_parameter.of_weights(small.setup(made, tmp_path, "deepzero", {}), network, 1e-3)
    before = copy.deepcopy(network.state_dict())
    noisy, _, _ = made.batch(0, smoothing_parameter.FIRST, 32)
    with torch.no_grad():
        base, lengths = network(noisy), []
        for weight in network.parameters():
            for place in range(weight.numel()):
                weight.view(-1)[place] += mu
                lengths.append((network(noisy) - base).flatten(1).norm(dim=1).mean().item())
                weight.view(-1)[place] -= mu
    moving = sorted(length for length in lengths if length > 1e-6)  # a dead ReLU's weights move nothing
    assert moving[len(moving) // 2] == pytest.approx(1e-3, rel=0.1)
    assert all(torch.allclose(weight, before[name]) for name, weight in network.state_dict().items())


def test_a_student_of_labels_learns_them_smoothed(tmp_path):
    made = small.problem(tmp_path, answers="labels", student_smoothing=0.3)
    given: list[torch.Tensor] = []
    learned: list[int] = []
    tangent: Any = SimpleNamespace(
        fit=lambda images, answers, steps: given.append(answers), learn=learned.append
    )
    images = small.rows(9).float()
    with suppress_type_checks():  # the student is a stand-in
        _lesson(made, tangent, images, 1)
        _lesson(made, tangent, images[:0], 4)
    assert RowTally([made.box]).copy().rows_asked == 9 and learned == [4]  # of no images nothing is asked
    expected = torch.full((9, small.CLASSES), 0.1)
    expected[torch.arange(9), made.box(images).argmax(dim=1)] = 0.8
    assert len(given) == 1
    torch.testing.assert_close(given[0], expected, check_dtype=False)


@pytest.mark.slow
def test_the_least_budget_that_the_check_takes_is_enough_for_deepzero(tmp_path):
    def taken(queries: int) -> bool:
        try:
            small.problem(tmp_path, methods=("mse", "deepzero"), queries=queries).check()
        except ConfigurationError as error:
            assert "deepzero: expected a budget of at least" in str(error)
            return False
        return True

    least = bisect.bisect_left(range(10_000), True, key=taken)
    made = small.problem(tmp_path, methods=("mse", "deepzero"), queries=least)
    found = small.train(made, tmp_path, "mse", "deepzero")["deepzero"]
    assert found.outcome.step >= 1 and found.queries <= least


@pytest.mark.slow
def test_directions_of_layer_ratios_are_as_long_as_a_single_weight_s_step(tmp_path, monkeypatch):
    """Gaussian directions move all weights, and are longer than mu by the root of their number."""
    taken, real = [], zo.pruning.scores

    def seen(method, network, *rest, mu, step, **settings):
        size = sum(weight.numel() for weight in network.parameters())
        taken.append(mu * size**0.5 / step)
        return real(method, network, *rest, mu=mu, step=step, **settings)

    monkeypatch.setattr(zo.pruning, "scores", seen)
    small.train(small.problem(tmp_path, methods=("mse", "deepzero")), tmp_path, "mse", "deepzero")
    assert taken == [pytest.approx(1.0)]
