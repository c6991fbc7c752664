"""Where CIFAR-10 and CIFAR-100 come from, what their archives hold, and what a user without them is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SITE = "https://www.cs.toronto.edu/~kriz"
RECORD_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Source:
    """A data set in the binary format of its own site, https://www.cs.toronto.edu/~kriz/cifar.html.

    Attributes:
        name: on the command line.
        archive: file name of the archive.
        md5: of the archive, as published on the site.
        folder: of the members in the archive.
        train, test: file names with their numbers of records.
        label_bytes: before the pixels of each record; the last of them is the class.
        classes: number of classes.
        balanced: whether every class is there equally often, in the training and in the test files.
        site: where the archive lies.
    """

    name: str
    archive: str
    md5: str
    folder: str
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    label_bytes: int
    classes: int
    balanced: bool = True
    site: str = SITE

    @property
    def url(self) -> str:
        """Of the archive."""
        return f"{self.site}/{self.archive}"

    @property
    def record(self) -> int:
        """Bytes of a record: labels, then 1,024 pixels of red, of green, of blue."""
        return self.label_bytes + RECORD_PIXELS

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by its name in the archive."""
        return {f"{self.folder}/{name}": records * self.record for name, records in (*self.train, *self.test)}

    def how_to_fetch(self, data: Path) -> str:
        """The sentences that tell how to come by the files."""
        return f"Fetch them with: blackbox data {self.name} --data {data}. {self.without_network(data)}"

    def without_network(self, data: Path) -> str:
        """The sentence for those whose machine has no way to the site."""
        return (
            f"Without a network here: load {self.url} elsewhere (md5 {self.md5}), put {self.archive} into "
            f"{data}, and give: blackbox data {self.name} --data {data}"
        )


CIFAR10 = Source(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple((f"data_batch_{number}.bin", 10_000) for number in range(1, 6)),
    test=(("test_batch.bin", 10_000),),
    label_bytes=1,
    classes=10,
)
CIFAR100 = Source(
    name="cifar100",
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train=(("train.bin", 50_000),),
    test=(("test.bin", 10_000),),
    label_bytes=2,  # of the 20 coarse classes, which is not used, and of the 100 fine ones
    classes=100,
)
SOURCES = {source.name: source for source in (CIFAR10, CIFAR100)}
