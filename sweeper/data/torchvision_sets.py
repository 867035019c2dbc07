"""Data sets that torchvision downloads: CIFAR, MNIST, Fashion-MNIST, SVHN, GTSRB, Imagenette.

They go to `torchvision/` in the data folder. torchvision checks every archive against a checksum
in its own code; that also makes it acceptable that its CIFAR reader unpickles the authors'
archive, the one place where anything is unpickled. Since name and checksum fix the content, a
decoded copy stays good whatever happens to the files. GTSRB is torchvision's archive of 26,640
training images, not the 39,209 of the final training set; its tracks become groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet
from sweeper.data._files import number
from sweeper.data._images import Item, as_batches, decode
from sweeper.data.base import Source, Splits


@dataclass(frozen=True)
class _Set:
    reader: str
    """Class of torchvision.datasets."""
    line: str
    """What `sweeper list datasets` says."""
    counts: tuple[int, int]
    """Images to be found in train and test: an unpacking cut short goes unseen by torchvision."""
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    size: int | None = None
    """Side to resize to where images differ in size and the user says nothing; 0: must be said."""


_FLAGS: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})
_SPLITS: tuple[dict[str, Any], dict[str, Any]] = ({"split": "train"}, {"split": "test"})
# Imagenette's smallest archive: no victim here sees more than 160 pixels.
_NETTE: tuple[dict[str, Any], dict[str, Any]] = (
    {"split": "train", "size": "160px"},
    {"split": "val", "size": "160px"},
)
_SETS = {
    "cifar10": _Set("CIFAR10", "10 classes, 3x32x32, 50,000 + 10,000", (50000, 10000), *_FLAGS),
    "cifar100": _Set("CIFAR100", "100 classes, 3x32x32, 50,000 + 10,000", (50000, 10000), *_FLAGS),
    "mnist": _Set("MNIST", "10 digits, 1x28x28, 60,000 + 10,000", (60000, 10000), *_FLAGS),
    "fashion-mnist": _Set(
        "FashionMNIST", "10 garments, 1x28x28, 60,000 + 10,000", (60000, 10000), *_FLAGS
    ),
    "svhn": _Set("SVHN", "10 digits, 3x32x32, 73,257 + 26,032", (73257, 26032), *_SPLITS),
    "gtsrb": _Set(
        "GTSRB", "43 traffic signs, resized to 3x32x32", (26640, 12630), *_SPLITS, size=32
    ),
    "imagenette": _Set(
        "Imagenette", "10 ImageNet classes, 9,469 + 3,925, needs `size`", (9469, 3925), *_NETTE, 0
    ),
}
_MEGABYTES = {
    "cifar10": 170,
    "cifar100": 169,
    "fashion-mnist": 31,
    "gtsrb": 276,
    "imagenette": 99,
    "mnist": 12,
    "svhn": 246,
}
"""What the archives have, both splits."""


@dataclass(frozen=True, kw_only=True)
class Torchvision(Source):
    """A data set of torchvision, downloaded where it is absent."""

    names: ClassVar[dict[str, str]] = {name: entry.line for name, entry in _SETS.items()}
    order: ClassVar[int] = 30
    downloads: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, int]] = {name: size * 10**6 for name, size in _MEGABYTES.items()}

    def serves(self, root: Path) -> bool:
        """Whether it is asked for by name."""
        return self.name.replace("_", "-") in _SETS and self.path is None

    def files(self, root: Path) -> list[Path]:
        """None: the name and torchvision's checksum fix the content."""
        return []

    def read(self, root: Path) -> Splits:
        """Download what is absent, and decode.

        Raises:
            SweepError: The download failed, is incomplete, or `size` is needed and absent.
        """
        entry = _SETS[self.name.replace("_", "-")]
        size = entry.size if self.size is None else self.size
        if size == 0:
            raise SweepError(f"{self.name}: images differ in size: give `size: N`, such as 128")
        train, test = (self._open(entry, options, root) for options in (entry.train, entry.test))
        items, labels = _items(train)
        classes = _classes(train, labels)
        images = decode(as_batches(items), len(items), f"{self.name}: train", size)
        test_items, test_labels = _items(test)
        test_images = decode(
            as_batches(test_items), len(test_items), f"{self.name}: test", size, images
        )
        groups = None
        if entry.reader == "GTSRB":
            groups = number([str(item).rsplit("_", 1)[0] for item in items])
        return Splits(
            ImageSet(images, labels, classes, torch.arange(len(labels))),
            ImageSet(test_images, test_labels, classes, torch.arange(len(test_labels))),
            groups,
        )

    def _open(self, entry: _Set, options: Mapping[str, Any], root: Path) -> Any:
        from torchvision import datasets

        folder = root / "torchvision"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            dataset = getattr(datasets, entry.reader)(root=str(folder), download=True, **options)
        except (OSError, RuntimeError) as error:
            raise SweepError(
                f"{self.name}: torchvision cannot fetch it to {folder} ({error}): put "
                f"train.parquet and test.parquet, or image folders train/<class>/ and "
                f"test/<class>/, into {root / self.name}, or name the folder that holds your "
                "data sets with `--data DIR`"
            ) from error
        expected = entry.counts[options is entry.test]
        if len(dataset) != expected:
            raise SweepError(
                f"{self.name}: {len(dataset)} images where {expected} belong: an unpacking was cut "
                f"short; remove its folder under {folder} and run again"
            )
        return dataset


def _items(data: Any) -> tuple[list[Item], Tensor]:
    """Return the images and the labels, int64 [N], of one of torchvision's data sets."""
    if hasattr(data, "_samples"):  # GTSRB, Imagenette: files
        return [Path(file) for file, _ in data._samples], torch.tensor(
            [label for _, label in data._samples]
        )
    pixels = np.asarray(data.data)
    if pixels.ndim == 4 and pixels.shape[-1] != 3:  # SVHN stores channels first
        pixels = pixels.transpose(0, 2, 3, 1)
    labels = data.labels if hasattr(data, "labels") else data.targets
    rows = [np.ascontiguousarray(row) for row in pixels]
    return list(rows), torch.as_tensor(np.asarray(labels), dtype=torch.int64)


def _classes(data: Any, labels: Tensor) -> tuple[str, ...]:
    """Return torchvision's class names (the first of several), else the classes' numbers."""
    names = getattr(data, "classes", None)
    if names is None:
        return tuple(str(index) for index in range(int(labels.max()) + 1))
    return tuple(name if isinstance(name, str) else str(name[0]) for name in names)
