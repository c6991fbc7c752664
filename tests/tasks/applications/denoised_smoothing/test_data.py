"""Images of the user's in every format, their division, and what is refused."""

import os
import warnings

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tasks.applications.denoised_smoothing import data, image_sources
from tasks.errors import DataError, ProblemWarning
from tests.tasks.applications.denoised_smoothing import small


def parts(found):
    return found.train, found.validation, found.test


def test_the_digits_are_divided_and_the_classifier_has_its_own():
    found = data.load(small.Config())
    sets = [set(part.index.tolist()) for part in parts(found)]
    assert [len(one) for one in sets] == [500, 197, 300]
    order = data._order(1797)[: data.BOX]
    assert len(set.union(*sets, set(order.tolist()))) == 1797  # nothing twice
    assert found.shape == (1, 8, 8) and found.classes == 10


def test_npz_and_hdf5_hold_the_same_images(tmp_path):
    chosen = small.config(tmp_path)
    assert chosen.images is not None
    with np.load(chosen.images) as file, h5py.File(tmp_path / "images.h5", "w") as made:
        made["images"], made["labels"] = file["images"], file["labels"]
    other = small.config(tmp_path, images=tmp_path / "images.h5")
    for one, two in zip(parts(data.load(chosen)), parts(data.load(other)), strict=True):
        assert torch.equal(one.images(), two.images()) and torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("how", ["link", "virtual", "external"])
def test_what_lies_in_another_file_is_none_of_this_one(tmp_path, how):
    os.mkfifo(tmp_path / "pipe")  # whose reading would not end
    with h5py.File(tmp_path / "images.h5", "w") as made:
        made["labels"] = np.arange(4) % 2
        if how == "link":
            made["images"] = h5py.ExternalLink(str(tmp_path / "pipe"), "images")
        elif how == "virtual":
            layout = h5py.VirtualLayout((4, 4, 4), "u1")
            layout[:] = h5py.VirtualSource(str(tmp_path / "pipe"), "images", (4, 4, 4))
            made.create_virtual_dataset("images", layout)
        else:
            made.create_dataset("images", (4, 4, 4), "u1", external=[(str(tmp_path / "pipe"), 0, 64)])
    with pytest.raises(DataError, match="expected arrays 'images' and 'labels'"):
        data.load(small.config(tmp_path, images=tmp_path / "images.h5"))


def test_sets_that_are_divided_already_stay_so(tmp_path):
    arrays = {}
    for part, count in (("train", 5), ("validation", 3), ("test", 2)):
        arrays[f"{part}_images"] = np.full((count, 4, 4, 3), count, np.uint8)  # channels last
        arrays[f"{part}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "divided.npz", **arrays)
    found = data.load(small.config(tmp_path, images=tmp_path / "divided.npz"))
    assert found.shape == (3, 4, 4)
    for part, count in zip(parts(found), (5, 3, 2), strict=True):
        assert torch.equal(part.images(), torch.full((count, 3, 4, 4), count / 255))


@pytest.mark.parametrize("divided", [False, True])
def test_a_folder_of_pictures_scaled_and_cropped(tmp_path, divided):
    generator = np.random.default_rng(0)
    for part in image_sources.PARTS if divided else [""]:
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 256, (10, 14 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    found = data.load(small.config(tmp_path, images=tmp_path / "pictures", image_size=8))
    assert found.shape == (3, 8, 8) and found.classes == 2
    assert sum(map(len, parts(found))) == (36 if divided else 12)
    shown = found.train.images()
    assert 0 <= shown.min() and shown.max() <= 1
    with pytest.raises(DataError, match="image-size"):
        data.load(small.config(tmp_path, images=tmp_path / "pictures")).train.images()


def test_what_is_hidden_is_no_class_and_no_picture(tmp_path):
    """A notebook's folder of copies was class 0, so that each label was one too high."""
    for name in ("cat/1.png", "dog/2.png", ".copies/1.png", "cat/.copies/1.png", "dog/.2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    assert image_sources.open_source(tmp_path, None)[0].labels.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif", "ramp.pgm"])
@pytest.mark.parametrize("size", [None, 32])
def test_grey_pictures_of_16_bits_keep_their_range(tmp_path, name, size):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    path = tmp_path / name
    if name.endswith("pgm"):
        path.write_bytes(b"P5 64 64 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    colour = tmp_path / "colour.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(colour)
    found = image_sources.Pictures([path, path], [0, 1], size).take(np.arange(2))
    assert found.dtype == np.float32 and found.shape == (2, 1, size or 64, size or 64)
    assert 0 <= found.min() and found.max() <= 1
    assert found.mean() == pytest.approx(0.5, abs=1e-3)
    if size is None:
        np.testing.assert_allclose(found[0, 0], ramp / 65535, atol=1e-6)
    beside = image_sources.Pictures([colour, path], [0, 1], size).take(np.arange(2))
    np.testing.assert_array_equal(beside[1], found[0].repeat(3, axis=0))


def test_pictures_whose_white_is_not_known_are_refused(tmp_path):
    for dtype in (np.int32, np.float32):
        Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "deep.tif")
        with pytest.raises(DataError, match="8 or 16 bits"):
            image_sources.Pictures([tmp_path / "deep.tif"], [0], None)


def test_batches_hang_on_seed_and_step_alone(tmp_path):
    train = data.load(small.config(tmp_path)).train
    noisy, clean, index = train.batch(0, 3, 500, 0.25)
    assert torch.equal(clean, train.images(index))
    torch.manual_seed(5)
    assert all(map(torch.equal, (noisy, clean, index), train.batch(0, 3, 500, 0.25)))
    assert not torch.equal(noisy, train.batch(0, 4, 500, 0.25)[0])
    assert (noisy - clean).std() == pytest.approx(0.25, rel=0.03)  # 18,000 draws: 6 standard errors


REFUSED = [
    (lambda given, labels: (given * 255, labels), ["[0, 1]", "Scale"]),
    (lambda given, labels: (given - 0.1, labels), ["[0, 1]"]),
    (lambda given, labels: (given[:, 0, 0], labels[:5]), ["shape"]),
    (lambda given, labels: (given.astype(np.int32), labels), ["int32"]),
    (lambda given, labels: (given, labels + 0.5), ["whole numbers"]),
    (lambda given, labels: (given, labels - 1), ["from 0"]),
    (lambda given, labels: (given, labels[:-1]), ["120 labels"]),
    (lambda given, labels: (given, labels * 0), ["two classes"]),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_arrays_that_are_no_images_are_refused(tmp_path, change, words):
    chosen = small.config(tmp_path)
    assert chosen.images is not None
    with np.load(chosen.images) as file:
        changed, labels = change(file["images"], file["labels"])
    np.savez(chosen.images, images=changed, labels=labels)
    with pytest.raises(DataError) as caught:
        data.load(chosen)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", ["missing", "text.npz", "empty.npz", "image.xyz", "text.h5"])
def test_files_that_hold_no_images_are_refused(tmp_path, name):
    path = tmp_path / name
    if name == "empty.npz":
        np.savez(path, other=np.zeros(3))
    elif name != "missing":
        path.write_text("no images")
    with pytest.raises(DataError):
        data.load(small.config(tmp_path, images=path))


def test_a_classifier_that_is_wrong_on_most_clean_images_is_told_of(tmp_path):
    made = small.problem(tmp_path, box=f"{small.boxes.__name__}:turned_blobs")
    right = int((made.used.labels == 1).sum())
    with pytest.warns(ProblemWarning, match=rf"wrong on {40 - right} of 40\."):
        assert not torch.equal(made.targets, made.used.labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(small.problem(tmp_path).targets, made.used.labels)
