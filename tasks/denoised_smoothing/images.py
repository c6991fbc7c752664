"""Images and labels: in memory, a folder of pictures, an HDF5 file or an `.npz` file; and their checks.

folder/CLASS/picture.png                    divided at random, or
folder/{train,validation,test}/CLASS/...    divided already

file.npz, file.h5: `images` (count, channels, height, width) or channels last, `labels` (count,);
or `train_images`, `train_labels`, and the same for validation and test
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
from PIL import Image, UnidentifiedImageError

from tasks.denoised_smoothing.errors import ImageError, LabelError

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
        ImageError: they are outside [0, 1], or of a wrong shape or dtype.
        LabelError: the labels are no whole numbers, or not one for each.
    """

    def __init__(self, where: str, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = checked_images(where, images), checked_labels(where, labels, len(images))

    def take(self, index: np.ndarray) -> np.ndarray:
        """See `Source`."""
        return as_floats(self.images[index])


def checked_images(where: str, images: np.ndarray) -> np.ndarray:
    """Images as they are, `(count, channels, height, width)`, or with the channels last put first.

    Raises:
        ImageError: see the words.
    """
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or not len(images):
        raise ImageError(
            f"{where}: expected images (count, channels, height, width), got shape {images.shape}. "
            "Stack grey or colour images of one size."
        )
    if images.shape[1] not in (1, 3) and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ImageError(
            f"{where}: expected images of uint8, or of floats in [0, 1], got {images.dtype}. Convert them."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # "not": NaN is neither
        raise ImageError(
            f"{where}: expected clean images in [0, 1], got values from {low:.4g} to {high:.4g}. Scale them, "
            "and put a normalisation that the classifier needs into the classifier."
        )
    return images


def checked_labels(where: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Labels `(count,)` as int64.

    Raises:
        LabelError: see the words.
    """
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (count,) or not whole or labels.min() < 0:
        raise LabelError(
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
BLOCK = 1024  # images of an HDF5 file that are checked at a time

Parts = list[np.ndarray] | None  # numbers of the images of each set, where they are divided already


class Pictures:
    """Pictures in files, read when they are asked for: a large set does not have to fit into memory.

    Args:
        files: of them.
        labels: of each.
        size: height and width to bring them to: the shorter side is scaled, the middle is kept. None to leave
            them as they are, all of one size.
    """

    def __init__(self, files: list[Path], labels: list[int], size: int | None) -> None:
        self.files, self.labels, self.size = files, np.array(labels, np.int64), size
        first = self._read(files[0])
        self.grey, self.shape = first.mode in ("1", "L", "I;16", "I"), first.size

    def take(self, index: np.ndarray) -> np.ndarray:
        """See `Source`."""
        pictures = []
        for place in index:
            picture = self._read(self.files[place])
            if picture.size != self.shape:
                raise ImageError(
                    f"{self.files[place]}: expected {self.shape[0]} x {self.shape[1]} pixels, as "
                    f"{self.files[0].name} has, got {picture.size[0]} x {picture.size[1]}. "
                    "Give --image-size."
                )
            array = np.asarray(picture.convert("L" if self.grey else "RGB"))
            pictures.append(array[None] if self.grey else array.transpose(2, 0, 1))
        return as_floats(np.stack(pictures))

    def _read(self, file: Path) -> Image.Image:
        try:
            with Image.open(file) as opened:
                picture = opened.copy()
        except (UnidentifiedImageError, OSError) as error:
            raise ImageError(f"{file}: expected a picture, got: {error}. Delete or mend it.") from error
        if self.size is None:
            return picture
        scale = self.size / min(picture.size)
        width, height = (max(self.size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return picture.crop((left, top, left + self.size, top + self.size))


class Hdf5:
    """Images of an HDF5 file, read when they are asked for.

    Args:
        path: of the file.
        names: of its data sets of images, end to end.
        labels: of all of them.
    """

    def __init__(self, path: Path, names: list[str], labels: np.ndarray) -> None:
        self.path, self.names = path, names
        counts = []
        with h5py.File(path) as file:
            for name in names:
                images = _array(file, name)
                for start in range(0, max(1, len(images)), BLOCK):
                    checked_images(f"{path}, {name}", images[start : start + BLOCK])
                counts.append(len(images))
        self.ends = np.cumsum(counts)
        self.labels = checked_labels(str(path), labels, int(self.ends[-1]))

    def take(self, index: np.ndarray) -> np.ndarray:
        """See `Source`."""
        taken: list[np.ndarray] = []
        with h5py.File(self.path) as file:
            for place in index:
                which = int(np.searchsorted(self.ends, place, side="right"))
                start = 0 if which == 0 else int(self.ends[which - 1])
                taken.append(_array(file, self.names[which])[int(place) - start])
        return as_floats(checked_images(str(self.path), np.stack(taken)))


def _array(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise ImageError(f"{file.filename}, {name}: expected an array, got a group. Rename it.")
    return found


def open_source(path: Path, size: int | None) -> tuple[Source, Parts]:
    """The images at a path, and which belong to which set, where that is settled there.

    Raises:
        ImageError: there is no such thing, or it holds no images.
    """
    if path.is_dir():
        return _folder(path, size)
    if not path.is_file():
        raise ImageError(f"{path}: expected a folder of pictures, .npz or .h5, found none. Check the path.")
    if path.suffix.lower() in HDF5:
        return _hdf5(path)
    if path.suffix.lower() == ".npz":
        return _npz(path)
    raise ImageError(f"{path}: expected a folder of pictures, .npz or .h5, got {path.suffix or 'no ending'}.")


def _folder(path: Path, size: int | None) -> tuple[Source, Parts]:
    divided = all((path / part).is_dir() for part in PARTS)
    roots = [path / part for part in PARTS] if divided else [path]
    classes = sorted({entry.name for root in roots for entry in root.iterdir() if entry.is_dir()})
    files: list[Path] = []
    labels: list[int] = []
    ends = []
    for root in roots:
        for label, name in enumerate(classes):
            found = sorted(f for f in (root / name).glob("**/*") if f.suffix.lower() in PICTURES)
            files += found
            labels += [label] * len(found)
        ends.append(len(files))
    if not files:
        raise ImageError(
            f"{path}: expected pictures in a folder for each class, as in {path.name}/CLASS/picture.png, "
            "found none. Formats: " + ", ".join(PICTURES)
        )
    parts = np.split(np.arange(len(files)), ends[:-1]) if divided else None
    return Pictures(files, labels, size), parts


def _hdf5(path: Path) -> tuple[Source, Parts]:
    try:
        with h5py.File(path) as file:
            names = _names(path, set(file.keys()))
            labels = [np.asarray(file[label]) for _, label in names]
        source = Hdf5(path, [images for images, _ in names], np.concatenate(labels))
    except OSError as error:
        raise ImageError(f"{path}: expected an HDF5 file, got: {error}.") from error
    return source, _parts([len(each) for each in labels])


def _npz(path: Path) -> tuple[Source, Parts]:
    try:
        with np.load(path, allow_pickle=False) as file:  # what comes from elsewhere is never unpickled
            names = _names(path, set(file.files))
            images = [file[image] for image, _ in names]
            labels = [file[label] for _, label in names]
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: expected arrays of numbers, got: {error}.") from error
    checked = [checked_images(f"{path}, {n}", array) for (n, _), array in zip(names, images, strict=True)]
    return InMemory(str(path), np.concatenate(checked), np.concatenate(labels)), _parts(
        [len(each) for each in labels]
    )


def _names(path: Path, found: set[str]) -> list[tuple[str, str]]:
    """The pairs (images, labels) of a file: one for all, or one for each set."""
    divided = [(f"{part}_images", f"{part}_labels") for part in PARTS]
    for names in (divided, [("images", "labels")]):
        if all(name in found for pair in names for name in pair):
            return names
    raise ImageError(
        f"{path}: expected arrays 'images' and 'labels', or 'train_images', 'train_labels' and likewise for "
        f"validation and test, got {', '.join(sorted(found)) or 'none'}. Rename them."
    )


def _parts(counts: list[int]) -> Parts:
    return np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1]) if len(counts) > 1 else None
