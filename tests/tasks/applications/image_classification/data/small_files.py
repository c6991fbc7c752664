"""Small files of CIFAR's layout, and archives of them."""

import hashlib
import io
import tarfile
from dataclasses import replace

import numpy as np

from tasks.applications.image_classification.data.cifar import CIFAR10, CIFAR100

SMALL10 = replace(
    CIFAR10,
    train=tuple((f"data_batch_{number}.bin", 4) for number in range(1, 6)),
    test=(("test_batch.bin", 3),),
)
SMALL100 = replace(CIFAR100, train=(("train.bin", 6),), test=(("test.bin", 2),))


def contents(source, seed=0):
    """Name in the archive -> bytes, with pixels and labels to compare with: name -> (pixels, labels)."""
    generator = np.random.default_rng(seed)
    files, truth = {}, {}
    for name, records in (*source.train, *source.test):
        pixels = generator.integers(0, 256, (records, 3, 32, 32), dtype=np.uint8)
        labels = generator.integers(0, source.classes, records, dtype=np.uint8)
        coarse = generator.integers(0, 20, (records, source.label_bytes - 1), dtype=np.uint8)
        files[f"{source.folder}/{name}"] = b"".join(
            coarse[row].tobytes() + labels[row].tobytes() + pixels[row].tobytes() for row in range(records)
        )
        truth[name] = pixels, labels
    return files, truth


def write(source, data, seed=0):
    """The extracted files in `data`."""
    files, truth = contents(source, seed)
    (data / source.folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (data / name).write_bytes(content)
    return truth


def archive(source, files=None):
    """The bytes of a .tar.gz, and the source with its checksum."""
    files = contents(source)[0] | {f"{source.folder}/readme.html": b"<html>"} if files is None else files
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue(), replace(source, md5=hashlib.md5(buffer.getvalue()).hexdigest())
