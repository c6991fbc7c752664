"""Images and labels: in memory, a folder of pictures, an HDF5 file or an `.npz` file; and their checks.

folder/CLASS/picture.png                    divided at random, or
folder/{train,validation,test}/CLASS/...    divided already

file.npz, file.h5: `images` (count, channels, height, width) or channels last, `labels` (count,);
or `train_images`, `train_labels`, and the same for validation and test

What is hidden, by a name that begins with a dot, is neither a class nor a picture: notebooks and file
managers leave copies there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
from PIL import Image, UnidentifiedImageError

from blackbox.hdf5 import own_part
from tasks.errors import DataError

PARTS = ("train", "validation", "test")


class Source(Protocol):
    """Images that can be taken by number."""

    labels: np.ndarray
    """`(count,)` int64."""

    def take(self, index: np.ndarray) -> np.ndarray:
        """Images `(len(index), channels, height, width)` float32 in [0, 1]."""
        ...


class InMemory:
    """Images that are there already.

    Raises:
        DataError: they are outside [0, 1], or of a wrong shape or dtype; or there is no label for each.
    """

    def __init__(self, where: str, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = checked_images(where, images), checked_labels(where, labels, len(images))

    def take(self, index: np.ndarray) -> np.ndarray:
        """See `Source`."""
        return as_floats(self.images[index])


def checked_images(where: str, images: np.ndarray) -> np.ndarray:
    """Images as they are, `(count, channels, height, width)`, or with the channels last put first.

    Raises:
        DataError: see the words.
    """
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or not len(images):
        raise DataError(
            f"{where}: expected images (count, channels, height, width), got shape {images.shape}. "
            "Stack grey or colour images of one size."
        )
    if images.shape[1] not in (1, 3) and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(
            f"{where}: expected images of uint8, or of floats in [0, 1], got {images.dtype}. Convert them."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # "not": NaN is neither
        raise DataError(
            f"{where}: expected clean images in [0, 1], got values from {low:.4g} to {high:.4g}. Scale them, "
            "and put a normalisation that the classifier needs into the classifier."
        )
    return images


def checked_labels(where: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Labels `(count,)` as int64.

    Raises:
        DataError: see the words.
    """
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (count,) or not whole or labels.min() < 0:
        raise DataError(
            f"{where}: expected {count} labels, whole numbers from 0 on, got {labels.dtype} of shape "
            f"{labels.shape}. Number the classes as the box does."
        )
    return labels.astype(np.int64)


def as_floats(images: np.ndarray) -> np.ndarray:
    """Float32 in [0, 1], of bytes by 255."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(images, np.float32)


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
HDF5 = (".h5", ".hdf5")

Parts = list[np.ndarray] | None  # numbers of the images of each set, where they are divided already


class Pictures:
    """Pictures in files, read when they are asked for: a large set does not have to fit into memory.

    Args:
        files: the files of the pictures.
        labels: the label of each.
        size: the height and width to bring them to: the shorter side is scaled, the middle is kept. None to
            leave them as they are, all of one size.
    """

    def __init__(self, files: list[Path], labels: list[int], size: int | None) -> None:
        self.files, self.labels, self.size = files, np.array(labels, np.int64), size
        first = self._read(files[0])
        self.grey, self.shape = first.mode in ("1", "L", "F"), first.size

    def take(self, index: np.ndarray) -> np.ndarray:
        """See `Source`."""
        pictures = []
        for place in index:
            picture = self._read(self.files[place])
            if picture.size != self.shape:
                raise DataError(
                    f"{self.files[place]}: expected {self.shape[0]} x {self.shape[1]} pixels, as "
                    f"{self.files[0].name} has, got {picture.size[0]} x {picture.size[1]}. "
                    "Give --image-size."
                )
            pictures.append(_pixels(picture, self.grey))
        return np.stack(pictures)

    def _read(self, file: Path) -> Image.Image:
        try:
            with Image.open(file) as opened:
                picture, kind = opened.copy(), opened.format
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{file}: expected a picture, got: {error}. Delete or mend it.") from error
        if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PNG", "PPM")):
            picture = Image.fromarray(np.asarray(picture, np.float32) / 65535)  # not clipped at 255
        elif picture.mode in ("I", "F"):
            raise DataError(
                f"{file}: expected 8 or 16 bits a number, got 32, whose white is not known. Convert it."
            )
        if self.size is None:
            return picture
        scale = self.size / min(picture.size)
        width, height = (max(self.size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return picture.crop((left, top, left + self.size, top + self.size))


def _pixels(picture: Image.Image, grey: bool) -> np.ndarray:
    """`(channels, height, width)` float32 in [0, 1]."""
    if picture.mode == "F":
        array = np.asarray(picture).clip(0, 1)[None]  # scaling goes a little beyond
        return array if grey else array.repeat(3, axis=0)
    array = np.asarray(picture.convert("L" if grey else "RGB"))
    return as_floats(array[None] if grey else array.transpose(2, 0, 1))


def open_source(path: Path, size: int | None) -> tuple[Source, Parts]:
    """The images at a path, and which belong to which set, where that is settled there.

    Raises:
        DataError: there is no such thing, or it holds no images.
    """
    if path.is_dir():
        return _folder(path, size)
    if not path.is_file():
        raise DataError(f"{path}: expected a folder of pictures, .npz or .h5, found none. Check the path.")
    return _arrays(path)


def _folder(path: Path, size: int | None) -> tuple[Source, Parts]:
    divided = all((path / part).is_dir() for part in PARTS)
    roots = [path / part for part in PARTS] if divided else [path]
    folders = {entry.name for root in roots for entry in root.iterdir() if entry.is_dir()}
    classes = sorted(name for name in folders if not name.startswith("."))
    files: list[Path] = []
    labels: list[int] = []
    ends = []
    for root in roots:
        for label, name in enumerate(classes):
            pictures = sorted(f for f in (root / name).glob("**/*") if _is_picture(f, root))
            files += pictures
            labels += [label] * len(pictures)
        ends.append(len(files))
    if not files:
        raise DataError(
            f"{path}: expected pictures in a folder for each class, as in {path.name}/CLASS/picture.png, "
            "found none. Formats: " + ", ".join(PICTURES)
        )
    parts = np.split(np.arange(len(files)), ends[:-1]) if divided else None
    return Pictures(files, labels, size), parts


def _is_picture(file: Path, root: Path) -> bool:
    if file.suffix.lower() not in PICTURES or any(p.startswith(".") for p in file.relative_to(root).parts):
        return False
    return file.is_file()  # a pipe would be waited for without end


def _arrays(path: Path) -> tuple[Source, Parts]:
    try:
        if path.suffix.lower() in HDF5:
            with h5py.File(path) as file:
                parts = {name: own_part(file, name) for name in map(str, file)}
                arrays = {k: np.asarray(part) for k, part in parts.items() if isinstance(part, h5py.Dataset)}
        elif path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:  # what comes from elsewhere is never unpickled
                arrays = dict(file)
        else:
            raise ValueError(f"{path.suffix or 'no ending'}")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: expected a folder of pictures, .npz or .h5, got: {error}.") from error
    names = _names(path, set(arrays))
    images = [checked_images(f"{path}, {name}", arrays[name]) for name, _ in names]
    labels = [arrays[name] for _, name in names]
    parts = np.split(np.arange(sum(map(len, labels))), np.cumsum([len(of_part) for of_part in labels])[:-1])
    source = InMemory(str(path), np.concatenate(images), np.concatenate(labels))
    return source, parts if len(parts) > 1 else None


def _names(path: Path, known: set[str]) -> list[tuple[str, str]]:
    """The pairs (images, labels) of a file: one for all, or one for each set."""
    divided = [(f"{part}_images", f"{part}_labels") for part in PARTS]
    for names in (divided, [("images", "labels")]):
        if all(name in known for pair in names for name in pair):
            return names
    raise DataError(
        f"{path}: expected arrays 'images' and 'labels', or 'train_images', 'train_labels' and likewise for "
        f"validation and test, got {', '.join(sorted(known)) or 'none'}. Rename them."
    )
