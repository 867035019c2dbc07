"""Image folders: `train/<class>/*.png` with `test/<class>/*.png`, and Tiny-ImageNet's own layout.

The test split may be called test, val, valid or validation. Classes are the folders of `train/`
in sorted order; images may lie deeper inside them (`train/<wnid>/images/`). A file
`val/val_annotations.txt`, as in tiny-imagenet-200, gives the labels of `val/images/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet
from sweeper.data._files import TEST_NAMES, FileSource, folders, same_name
from sweeper.data._images import as_batches, decode
from sweeper.data.base import Splits

_SUFFIXES = frozenset(".png .jpg .jpeg .ppm .pgm .bmp .gif .tif .tiff .webp".split())
_UNPACKED = {"tiny-imagenet": "tiny-imagenet-200"}
"""Names the published archives unpack to."""


@dataclass(frozen=True, kw_only=True)
class Folder(FileSource):
    """A folder of image files sorted into class folders."""

    names: ClassVar[dict[str, str]] = {
        "tiny-imagenet": "200 classes, 3x64x64; Parquet or the unpacked tiny-imagenet-200",
        "imagenet": "1,000 classes; ILSVRC 2012 as train/<wnid>/ and val/<wnid>/, needs `size`",
    }
    order: ClassVar[int] = 20

    def places(self, root: Path) -> list[Path]:
        """Return the folders that may hold the data set, those with a `train` folder only."""
        candidates = super().places(root)
        for name, unpacked in _UNPACKED.items():
            if self.path is None and same_name(self.name, name):
                candidates += folders(root, unpacked)
        return [place for place in candidates if (place / "train").is_dir()]

    def serves(self, root: Path) -> bool:
        """Whether there is a `train` folder with class folders in it."""
        return any(_classes(place / "train") for place in self.places(root)[:1])

    def files(self, root: Path) -> list[Path]:
        """Return every image file, and the annotations of `val` where there are any."""
        home = self.places(root)[0]
        listed = [file for file, _ in _images(home / "train")]
        test = _test_folder(home)
        if test is not None:
            listed += [file for file, _ in _images(test)]
            annotations = test / "val_annotations.txt"
            listed += [annotations] if annotations.is_file() else []
        return listed

    def read(self, root: Path) -> Splits:
        """Decode all images.

        Raises:
            SweepError: An empty class, a test class that `train` has not, an unreadable image.
        """
        home = self.places(root)[0]
        classes = _classes(home / "train")
        train, paths = self._split(home / "train", classes)
        counts = torch.bincount(train.labels, minlength=len(classes))
        if not bool(counts.all()):
            empty = classes[int(counts.argmin())]
            raise SweepError(f"{home / 'train' / empty}: has no images: add some or remove it")
        folder = _test_folder(home)
        test = None if folder is None else self._split(folder, classes, train.images)[0]
        return self.assemble(train, test, [p.relative_to(home).as_posix() for p in paths])

    def _split(
        self, folder: Path, classes: tuple[str, ...], like: Tensor | None = None
    ) -> tuple[ImageSet, list[Path]]:
        number = {name: index for index, name in enumerate(classes)}
        annotations = folder / "val_annotations.txt"
        pairs = _annotated(annotations) if annotations.is_file() else list(_images(folder))
        extra = sorted({name for _, name in pairs} - set(number))
        if extra:
            raise SweepError(
                f"{folder}: class {extra[0]!r} is not one of train's {len(classes)}: rename or "
                "remove it"
            )
        files = [file for file, _ in pairs]
        images = decode(as_batches(files), len(files), f"{self.name}: {folder}", self.size, like)
        labels = torch.tensor([number[name] for _, name in pairs])
        return ImageSet(images, labels, classes), files


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))


def _images(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the image files below `folder` with their class folder's name, in sorted order."""
    for name in _classes(folder):
        for base, inner, files in os.walk(folder / name):
            inner.sort()
            for file in sorted(files):
                if os.path.splitext(file)[1].lower() in _SUFFIXES:
                    yield Path(base, file), name


def _test_folder(home: Path) -> Path | None:
    """Return the test split's folder; `val` where only that has labels (Tiny-ImageNet)."""
    if (home / "val" / "val_annotations.txt").is_file():
        return home / "val"
    return next((home / name for name in TEST_NAMES if (home / name).is_dir()), None)


def _annotated(file: Path) -> list[tuple[Path, str]]:
    """Return the images and class names of Tiny-ImageNet's `val`, in the file's order."""
    rows = [line.split("\t") for line in file.read_text().splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise SweepError(f"{file}: needs lines of an image name, a tab and a class")
    return [(file.parent / "images" / Path(row[0]).name, row[1]) for row in rows]
