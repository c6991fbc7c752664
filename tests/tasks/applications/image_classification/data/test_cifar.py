"""CIFAR's binary files: every byte where it belongs, and the words for files that are not as published."""

import numpy as np
import pytest
import torch

from tasks.applications.image_classification.data import cifar, load
from tasks.errors import ConfigurationError, DataError
from tests.tasks.applications.image_classification.data.small_files import SMALL10, SMALL100, write


@pytest.mark.parametrize("source", [SMALL10, SMALL100], ids=lambda source: source.name)
def test_every_image_and_label_comes_as_it_was_written(source, tmp_path):
    truth = write(source, tmp_path)
    train, test = cifar.read(source, tmp_path)
    for part, files in ((train, source.train), (test, source.test)):
        assert np.array_equal(part.pixels.numpy(), np.concatenate([truth[name][0] for name, _ in files]))
        assert np.array_equal(part.labels.numpy(), np.concatenate([truth[name][1] for name, _ in files]))
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)


def test_red_comes_first_and_rows_before_columns(tmp_path):
    write(SMALL10, tmp_path)
    record = bytearray(3073)
    record[0], record[1 + 1], record[1 + 1024 + 32], record[3072] = 7, 11, 22, 33
    (tmp_path / SMALL10.folder / "test_batch.bin").write_bytes(bytes(record) * 3)
    _, test = cifar.read(SMALL10, tmp_path)
    image = test.pixels[1]
    assert (image[0, 0, 1], image[1, 1, 0], image[2, 31, 31]) == (11, 22, 33)
    assert image.sum() == 66 and test.labels.tolist() == [7, 7, 7]


def spoil_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoil_append(path):
    path.write_bytes(path.read_bytes() + bytes(3073))


def spoil_class(path):
    content = bytearray(path.read_bytes())
    content[2 * 3073] = 10
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_truncate, ["4 records of 3,073 bytes", "got 12,192 bytes", "damaged"]),
        (spoil_append, ["got 15,365 bytes", "another file"]),
        (spoil_class, ["classes of 0 to 9", "got 12,292 bytes that are not"]),
        (lambda path: path.write_bytes(b""), ["got 0 bytes"]),
        (lambda path: path.unlink(), ["found none"]),
    ],
)
def test_a_file_that_is_not_as_published_is_refused(spoil, words, tmp_path):
    write(SMALL10, tmp_path)
    spoil(tmp_path / SMALL10.folder / "data_batch_3.bin")
    with pytest.raises(DataError) as refused:
        cifar.read(SMALL10, tmp_path)
    said = str(refused.value)
    mend = [f"blackbox data cifar10 --data {tmp_path}", SMALL10.md5, SMALL10.archive, SMALL10.url]
    assert [word for word in ["data_batch_3.bin", *words, *mend] if word not in said] == []


def test_a_class_of_cifar_100_that_there_is_not_is_refused(tmp_path):
    write(SMALL100, tmp_path)
    path = tmp_path / SMALL100.folder / "test.bin"
    content = bytearray(path.read_bytes())
    content[0], content[1] = 250, 100  # the coarse class is not looked at
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"test.bin: expected 2 records .* classes of 0 to 99"):
        cifar.read(SMALL100, tmp_path)


def test_validation_images_are_held_out_of_the_training_images(tmp_path, monkeypatch):
    write(SMALL10, tmp_path)
    monkeypatch.setitem(cifar.SOURCES, "cifar10", SMALL10)
    data = load("cifar10", tmp_path, train=12, validation=8, test=2, seed=4)
    train, test = cifar.read(SMALL10, tmp_path)
    drawn = torch.cat([data.train.pixels, data.validation.pixels]).flatten(1)
    assert len(drawn) == 20
    places = [int((train.pixels.flatten(1) == row).all(1).nonzero().item()) for row in drawn]
    assert sorted(places) == list(range(20)) and places != list(range(20))
    assert torch.equal(torch.cat([data.train.labels, data.validation.labels]), train.labels[places])
    assert torch.equal(data.test.pixels, test.pixels[:2])
    again, other = (load("cifar10", tmp_path, train=12, validation=8, test=2, seed=seed) for seed in (4, 5))
    assert torch.equal(data.train.pixels, again.train.pixels)
    assert not torch.equal(data.validation.pixels, other.validation.pixels)
    assert data.train.pixels.shape[1:] == (3, 32, 32)
    with pytest.raises(ConfigurationError, match=r"20 together at most, got 13 \+ 8"):
        load("cifar10", tmp_path, train=13, validation=8, test=2)
    with pytest.raises(ConfigurationError, match="1 to 3 test images, got 4"):
        load("cifar10", tmp_path, train=12, validation=8, test=4)


def test_the_published_files_are_50_000_and_10_000_records():
    from tasks.applications.image_classification.data.cifar import CIFAR10, CIFAR100

    for source in (CIFAR10, CIFAR100):
        assert sum(records for _, records in source.train) == 50_000
        assert sum(records for _, records in source.test) == 10_000
