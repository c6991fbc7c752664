"""Classifiers as boxes: what services make of answers, counts that outlive the process, and the twins."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blackbox import ArraySpec, Budgeted, Wrapper
from blackbox.adapters import TorchModule, from_callable
from blackbox.errors import BudgetError
from blackbox.wrappers.identity import identity
from tasks.applications.denoised_smoothing import DenoisedSmoothing, SklearnClassifier, data
from tasks.applications.denoised_smoothing.classifiers import Clamped, Decoded, Metered, Scored, Shaped
from tasks.applications.denoised_smoothing.classifiers.shapes_box import convolutional
from tasks.applications.denoised_smoothing.classifiers.sklearn_box import embedded
from tasks.applications.denoised_smoothing.classifiers.stack import make_box
from tasks.applications.images import digits
from tasks.errors import DataError
from tasks.rows.run_ledger import calls_noted, recall
from tests.tasks.applications.denoised_smoothing import small

Config = DenoisedSmoothing.Config


def smooth():
    spec = ArraySpec("image", (1, small.SIDE, small.SIDE))
    return TorchModule(small.network(), [spec], [ArraySpec("logits", (small.CLASSES,))])


@pytest.fixture(scope="module")
def pipelines():
    images, labels = data.digits_of_the_box()
    return {name: embedded(name, images, labels) for name in ("b", "svm")}


def test_scores_stand_for_each_kind_of_answer():
    box, images = smooth(), small.rows(50)
    logits = box(images)
    outside = images * 4 - 1
    np.testing.assert_array_equal(Clamped(box)(outside), box(outside.clamp(0, 1)))
    assert torch.equal(Scored(box, "logits", "logits", 3)(images), logits)
    found = Scored(box, "logits", "probabilities", 3)(images)
    torch.testing.assert_close(found, logits.log_softmax(dim=1), rtol=1e-10, atol=1e-10)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    rounded = Scored(box, "logits", "probabilities", 3, decimals=2)(images)
    np.testing.assert_allclose(rounded, np.log(np.maximum(np.round(p, 2), 5e-3)))  # half of the last digit
    hot = Scored(box, "logits", "labels", 3)(images)
    assert torch.equal(hot, torch.nn.functional.one_hot(logits.argmax(dim=1), 3).double())


def test_failed_rows_are_nan_and_wrong_labels_an_error():
    def fragile(image):
        if image.max() > 1:
            raise ValueError("too bright")
        return float(image.sum() > 2)

    box = from_callable(fragile, inputs=[ArraySpec("image", (1, 2, 2))], outputs=[ArraySpec("label", ())])
    box.failures = "keep"
    rows = torch.stack([torch.full((1, 2, 2), value) for value in (0.1, 2.0, 0.9)])
    found = Scored(box, "labels", "labels", 2)(rows)
    assert found[[0, 2]].tolist() == [[1, 0], [0, 1]] and found[1].isnan().all()
    with pytest.raises(DataError, match="labels from 0 to 0"):
        Scored(box, "labels", "labels", 1)(rows)


@pytest.mark.parametrize("gives", ["logits", "probabilities"])
def test_answers_of_the_other_kind_are_refused_but_for_rows_that_failed(gives):
    """Softmax of probabilities, or the logarithm of logits, would train with other slopes and say nothing."""
    logits = smooth()
    softmax = TorchModule(
        torch.nn.Sequential(logits.module, torch.nn.Softmax(dim=1)), logits.inputs, logits.outputs
    )
    right, wrong = (logits, softmax) if gives == "logits" else (softmax, logits)
    images = small.rows(20)
    expected = logits(images).double().log_softmax(dim=1)
    found = Scored(right, gives, "probabilities", 3)(images)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(DataError, match=f"expected {gives}, got"):
        Scored(wrong, gives, gives, 3)(images)
    labels = Scored(wrong, gives, "labels", 3)(images)  # the same of both
    assert torch.equal(labels.argmax(dim=1), expected.argmax(dim=1))

    def garbage(image):
        raise ValueError("no answer")

    down = from_callable(garbage, inputs=logits.inputs, outputs=logits.outputs)
    down.failures = "keep"
    assert Scored(down, gives, gives, 3)(images).isnan().all()


def test_scores_whose_sums_are_one_are_no_probabilities_where_a_few_lie_in_the_unit_interval():
    """Scores of least squares have such sums; they are no probabilities in other rows."""

    def f(images):
        first = images.reshape(len(images), -1)[:, :1]
        return np.concatenate([first, 1 - first, 0 * first], axis=1)

    images = torch.full((32, 1, small.SIDE, small.SIDE), 1.005)
    images[:2] = 0.25
    box = from_callable(f, inputs=smooth().inputs, outputs=smooth().outputs, vectorized=True)
    for rows in (2, 32):
        found = Scored(box, "logits", "logits", 3)(images[:rows])
        assert torch.equal(found, box(images[:rows]).to(found))


def test_a_box_of_vectors_in_double_precision_takes_images():
    spec = ArraySpec("pixels", (small.SIDE**2,), "float64")
    vectors = TorchModule(small.network(), [spec], [ArraySpec("logits", (small.CLASSES,))])
    images = small.rows(4)
    assert torch.equal(Shaped(vectors, (1, small.SIDE, small.SIDE))(images), smooth()(images))
    found = Shaped(vectors, (1, small.SIDE, small.SIDE))(images.float())
    assert found.dtype == torch.float32


def test_a_latent_box_is_decoder_and_box():
    decoder = torch.nn.Sequential(torch.nn.Linear(4, 36), torch.nn.Unflatten(1, (1, 6, 6))).double()
    latent = torch.rand(5, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = smooth()(decoder(latent))
    assert torch.equal(Decoded(smooth(), decoder, 4)(latent), expected)


def test_a_budget_holds_over_processes(tmp_path):
    path = tmp_path / "count"
    first = Budgeted(Metered(smooth(), path), 10)
    first(small.rows(7))
    again = Budgeted(Metered(smooth(), path), 10)
    assert again.rows_left == 3
    with pytest.raises(BudgetError):
        again(small.rows(4))
    again(small.rows(3))
    assert Metered(smooth(), path).ledger.rows_run == 10


def test_a_run_counts_the_rows_of_earlier_processes_once(tmp_path):
    metered = Metered(smooth(), tmp_path / "count")
    with calls_noted(tmp_path, [metered]):
        metered(small.rows(7))
    again = Budgeted(Metered(smooth(), tmp_path / "count"), 10)
    recall(tmp_path, [again])
    assert again.rows_left == 3


def test_what_was_asked_before_a_kill_is_in_the_count(tmp_path):
    def dies(image):
        raise KeyboardInterrupt

    box = from_callable(dies, inputs=[ArraySpec("image", (1, 2, 2))], outputs=[ArraySpec("label", ())])
    with pytest.raises(KeyboardInterrupt):
        Metered(box, tmp_path / "count")(torch.zeros(3, 1, 2, 2))
    assert (tmp_path / "count").stat().st_size == 3


@pytest.mark.slow
def test_the_embedded_pipeline_is_fragile_and_its_twin_is_the_same_function(pipelines):
    box, (images, labels) = pipelines["b"], digits.load()
    index = data._order(len(labels))[data.BOX :]
    clean = torch.from_numpy(images[index])
    noisy = (clean + 0.25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    truth = torch.from_numpy(labels[index])
    right = [(box(some).argmax(dim=1) == truth).double().mean() for some in (clean, noisy)]
    assert right[0] > 0.9 and right[1] < 0.5
    twin = box.twin()
    assert twin is not None
    torch.testing.assert_close(twin(noisy.double()), box(noisy.double()), rtol=1e-9, atol=1e-9)
    assert pipelines["svm"].twin() is None


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("with_mean", [False, True])
@pytest.mark.parametrize("with_std", [False, True])
def test_a_scaling_that_leaves_mean_or_spread_has_such_a_twin(with_mean, with_std):
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    drawn = np.random.default_rng(0).random((60, 4))
    scaler = StandardScaler(with_mean=with_mean, with_std=with_std)
    pipeline = make_pipeline(scaler, MLPClassifier((5,), max_iter=3, random_state=0))
    box = SklearnClassifier(pipeline.fit(drawn, drawn[:, :3].argmax(axis=1)), (1, 2, 2), "scaled")
    twin, images = box.twin(), torch.from_numpy(drawn).reshape(-1, 1, 2, 2)
    assert twin is not None
    np.testing.assert_allclose(twin(images).numpy(), box.evaluate_rows(images.numpy()), rtol=1e-9)

    class Brighter(SklearnClassifier):
        def evaluate_rows(self, image):
            return super().evaluate_rows(2 * image)

    assert Brighter(box.classifier, (1, 2, 2), "brighter").twin() is None


def classifier_around(tmp_path, inner):
    chosen = small.config(tmp_path)
    return make_box(chosen, data.load(chosen), None, inner)


@pytest.mark.parametrize(("shape", "dtype"), [((36,), None), ((36,), "float64"), ((1, 6, 6), "float64")])
def test_a_network_of_vectors_or_doubles_has_a_twin_that_takes_images(tmp_path, shape, dtype):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
    if dtype is not None:
        network = network.double()
    inner = TorchModule(network, [ArraySpec("image", shape, dtype)], [ArraySpec("logits", (3,), dtype)])
    box, images = classifier_around(tmp_path, inner), small.rows(4).float().requires_grad_()
    assert box.twin is not None
    found = box.twin(images)
    torch.testing.assert_close(found, box.scores(images.detach()).to(found))
    (slopes,) = torch.autograd.grad(found[:, 0].sum(), images)
    torch.testing.assert_close(slopes.flatten(1), network[1].weight[0].detach().float().expand(4, 36))


def test_what_changes_a_classifier_leaves_it_no_twin_of_the_unchanged_one(tmp_path):
    class Brighter(Wrapper):
        def run_rows(self, inputs):
            return self.box.run_rows((2 * inputs[0],))

    assert classifier_around(tmp_path, Budgeted(smooth(), 10)).twin is not None
    assert classifier_around(tmp_path, Brighter(smooth())).twin is None


@pytest.mark.slow
def test_an_embedded_classifier_is_the_same_every_time(pipelines):
    again = embedded("b", *data.digits_of_the_box())
    assert identity(again) == identity(pipelines["b"]) != identity(pipelines["svm"])


def test_the_convolutional_classifier_is_the_same_every_time_and_leaves_torch_as_it_was():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    boxes = [convolutional(images=64, steps=3) for _ in range(2)]
    assert identity(boxes[0]) == identity(boxes[1]) != identity(convolutional(images=64, steps=4))
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


@pytest.mark.slow
def test_the_convolutional_classifier_goes_on_from_where_its_training_was_cut_short(
    tmp_path, limits, monkeypatch
):
    """It was trained anew at every start: 20 seconds, of which a kill every ten left nothing."""
    whole, took, now = convolutional(images=64, steps=8), [], [0.0]
    limits(clock_of_writes=lambda: now[0])
    step = torch.optim.Adam.step

    def counted(self, *args, **settings):
        took.append(1)
        now[0] += 10
        if len(took) in (4, 9):
            raise KeyboardInterrupt
        return step(self, *args, **settings)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            convolutional(images=64, steps=8, folder=tmp_path)
    assert identity(convolutional(images=64, steps=8, folder=tmp_path)) == identity(whole)
    assert len(took) == 8 + 2  # two were cut short
    assert identity(convolutional(images=64, steps=8, folder=tmp_path)) == identity(whole)
    assert len(took) == 8 + 2  # it is only read
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert identity(convolutional(images=64, steps=8, folder=tmp_path)) == identity(whole)
    assert identity(convolutional(images=64, steps=7, folder=tmp_path)) != identity(whole)


@pytest.mark.slow
def test_the_convolutional_classifier_knows_shapes_and_noise_fools_it():
    chosen = Config(box="cnn")
    found = data.load(chosen)
    assert found.shape == (3, 32, 32) and [len(part) for part in (found.train, found.test)] == [2000, 600]
    box = make_box(chosen, found)
    noisy, labels = found.test.noisy(600, 0, 0.25)
    right = [
        (box.scores(images).argmax(dim=1) == labels).double().mean()
        for images in (found.test.images(), noisy)
    ]
    assert right[0] > 0.8 and right[1] < 0.6
    assert box.twin is not None
    torch.testing.assert_close(box.twin(noisy[:9].clamp(0, 1)), box.scores(noisy[:9]))


def test_classes_that_are_no_numbers_are_refused():
    from sklearn.svm import SVC

    fitted = SVC().fit([[0.0], [1.0]], ["cat", "dog"])
    with pytest.raises(DataError, match="LabelEncoder"):
        SklearnClassifier(fitted, (1, 1, 1), "pets")


@pytest.mark.slow
def test_an_onnx_file_is_a_box_like_any_other(tmp_path):
    module = small.network(dtype=torch.float32)
    dynamic = {0: torch.export.Dim("batch", min=1)}
    path, example = tmp_path / "classifier.onnx", (torch.rand(2, 1, small.SIDE, small.SIDE),)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, example, path, dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
    chosen = small.config(tmp_path, box=str(path), methods=("none",))
    box = make_box(chosen, data.load(chosen), tmp_path)
    images = small.rows(5).float()
    torch.testing.assert_close(box.scores(images), module(images).detach(), rtol=1e-5, atol=1e-5)
    assert box.twin is None


@pytest.mark.parametrize(("gives", "box"), [("labels", "TenLabels"), ("probabilities", "blobs")])
def test_what_is_asked_is_what_the_classifier_gives_unless_it_is_said(tmp_path, gives, box):
    chosen = small.config(tmp_path, box=f"{small.boxes.__name__}:{box}", box_gives=gives, classes=None)
    if gives == "labels":
        chosen = replace(chosen, classes=10)
    assert make_box(chosen, data.load(chosen)).kind == gives
    assert Config(box="b").asked == "logits" and Config(box="svm", answers="labels").asked == "labels"
    assert Config(box="mine.py:make", box_gives="probabilities", decimals=3).asked == "probabilities"


def test_answers_that_cannot_be_made_are_refused(tmp_path):
    from tasks.errors import ConfigurationError

    for settings in ({"box": ""}, {"box": "b"}, {"box_gives": "labels", "answers": "probabilities"}):
        chosen = small.config(tmp_path, **settings)
        with pytest.raises((ConfigurationError, DataError, TypeError)):
            make_box(chosen, data.load(chosen), tmp_path)
    assert Config().box == "b"
