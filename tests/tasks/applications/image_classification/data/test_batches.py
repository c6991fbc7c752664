"""Batches on the device: crops and flips pixel by pixel, epochs by (seed, epoch), normalisation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.applications.image_classification.data import (
    AUGMENTATIONS,
    NO_AUGMENTATION,
    Augmentation,
    Epochs,
    Images,
    Normalisation,
    load,
    loading,
)
from tasks.applications.image_classification.data.image_data import hold_out
from tasks.errors import ConfigurationError

PLAIN = Normalisation((0.0, 0.0), (1.0, 1.0))


def part(rows, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(1, 256, (rows, 2, side, side + 1), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(rows))


def one_by_one(image, pad, down, right, flipped):
    """The same in NumPy for one image: pad, cut out, mirror."""
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    cut = padded[:, down : down + image.shape[1], right : right + image.shape[2]]
    return cut[:, :, ::-1] if flipped else cut


@pytest.mark.parametrize("pad", [0, 2, 4])
def test_batches_are_cropped_and_flipped_as_single_images_are(pad):
    images, augmentation = part(40).pixels, Augmentation(pad=pad)
    draws = augmentation.draw(40, torch.Generator().manual_seed(pad))
    found = augmentation.apply(images, draws)
    for image, draw, augmented in zip(images.numpy(), draws.tolist(), found.numpy(), strict=True):
        assert np.array_equal(augmented, one_by_one(image, pad, *draw))
    assert found.dtype == torch.uint8


def test_draws_reach_every_place_and_flip_half():
    """All 81 shifts; the flips are binomial: 5 standard errors are 6e-7 false alarms."""
    draws = Augmentation().draw(20_000, torch.Generator().manual_seed(0))
    shifts = draws[:, 0] * 9 + draws[:, 1]
    assert shifts.unique().tolist() == list(range(81))
    assert abs(draws[:, 2].float().mean() - 0.5) < 5 * 0.5 / 20_000**0.5
    assert Augmentation(flip=False).draw(100, torch.Generator().manual_seed(0))[:, 2].eq(0).all()


def test_no_augmentation_changes_nothing():
    images = part(10).pixels
    draws = NO_AUGMENTATION.draw(10, torch.Generator().manual_seed(0))
    assert torch.equal(NO_AUGMENTATION.apply(images, draws), images)


def test_normalisation_is_that_of_torch():
    images = part(5)
    normalisation = Normalisation((0.4, 0.6), (0.2, 0.3))
    mean, deviation = (torch.tensor(v).view(2, 1, 1) for v in (normalisation.mean, normalisation.deviation))
    found = normalisation(images.pixels)
    torch.testing.assert_close(found, (images.pixels / 255 - mean) / deviation, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    assert images.pixels.dtype == torch.uint8


def test_an_epoch_shows_each_image_at_most_once_and_its_label_stays_with_it():
    images = part(23)
    epochs = Epochs(images, PLAIN, NO_AUGMENTATION, 5)
    assert epochs.steps == 4
    orders = []
    for epoch in range(3):
        batches = [epochs.batch(1, epoch * 4 + number) for number in range(4)]
        order = torch.cat([labels for _, labels in batches])
        assert len(order.unique()) == 20
        pixels = torch.cat([pixels for pixels, _ in batches])
        torch.testing.assert_close(pixels * 255, images.pixels[order].float())
        orders.append(order.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_any_step_can_be_asked_for_at_any_time():
    """What a resume needs: the batch of a step depends on seed and step, not on what was asked before."""
    images = part(23)

    def fresh():
        return Epochs(images, PLAIN, Augmentation(pad=2), 5)

    state = torch.get_rng_state()
    through = fresh()
    seen = [through.batch(1, step) for step in range(10)]
    for step in (9, 0, 4, 3):
        pixels, labels = fresh().batch(1, step)
        assert torch.equal(pixels, seen[step][0]) and torch.equal(labels, seen[step][1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(through.batch(2, 0)[1], seen[0][1])
    # the same image in two epochs is augmented in two ways
    augmented = [
        {
            int(label): pixels
            for batch in seen[first : first + 4]
            for pixels, label in zip(*batch, strict=True)
        }
        for first in (0, 4)
    ]
    both = augmented[0].keys() & augmented[1].keys()
    assert any(not torch.equal(augmented[0][label], augmented[1][label]) for label in both)


def test_parts_are_disjoint_and_hang_on_the_seed_alone():
    images = part(30)
    first, second = hold_out(images, 12, 8, seed=3)
    assert len({*first.labels.tolist(), *second.labels.tolist()}) == 20
    again, _ = hold_out(images, 12, 8, seed=3)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.pixels, images.pixels[first.labels])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hold_out(part(4), 4, 1, seed=0), ["4 together", "got 4 + 1"]),
        (lambda: hold_out(part(4), 4, 0, seed=0), ["at least 1", "got 4 + 0"]),
        (lambda: load("shape", Path()), ["'shape'", "Did you mean 'shapes'?"]),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(ConfigurationError) as refused:
        call()
    assert [word for word in words if word not in str(refused.value)] == []


def test_digits_are_all_there_once(tmp_path):
    from sklearn.datasets import load_digits

    data = load("digits", tmp_path)
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1200, 297, 300] and data.train.pixels.shape[1:] == (1, 8, 8)
    pixels = torch.cat([part.pixels for part in parts]).flatten(1).numpy()
    labels = torch.cat([part.labels for part in parts]).numpy()
    truth, classes = load_digits(return_X_y=True)
    rows = np.column_stack([np.rint(pixels / 255 * 16), labels])
    expected = np.column_stack([truth, classes])
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_normalisation_constants_are_those_of_the_training_images(name, tmp_path):
    sizes = {"train": 3000, "validation": 10, "test": 10} if name == "shapes" else {}
    data = load(name, tmp_path, **sizes)
    pixels = data.train.pixels.double() / 255
    # shapes: the means of 3,000 images' colours have standard errors of some .003
    tolerance = 0.02 if name == "shapes" else 0.005
    for found, expected in (
        (pixels.mean((0, 2, 3)), data.normalisation.mean),
        (pixels.std((0, 2, 3)), data.normalisation.deviation),
    ):
        torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=tolerance)


def test_every_data_set_has_its_constants():
    assert set(AUGMENTATIONS) == set(loading.NAMES) == set(loading.NORMALISATIONS)
