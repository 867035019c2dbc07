"""Image folders: `train/<class>/*.png` with `test/<class>/*.png`, and Tiny-ImageNet's own layout.

The test split may be called test, val, valid or validation. Classes are the folders of `train/`
in sorted order; images may lie deeper inside them (`train/<wnid>/images/`). A file
`val/val_annotations.txt`, as in tiny-imagenet-200, gives the labels of `val/images/`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from sweeper.core.errors import SweepError, unreadable
from sweeper.core.folders import below, called, inside
from sweeper.core.types import ImageSet
from sweeper.data._files import TEST_NAMES, ClassFiles, folders, same_name, training
from sweeper.data._images import as_batches, decode
from sweeper.data.base import Splits

_SUFFIXES = frozenset(".png .jpg .jpeg .ppm .pgm .bmp .gif .tif .tiff .webp".split())
_UNPACKED = {"tiny-imagenet": "tiny-imagenet-200"}
"""Names the published archives unpack to."""
_ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True, kw_only=True)
class Folder(ClassFiles):
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
        return [place for place in candidates if place.is_dir() and called(place, "train")]

    def serves(self, root: Path) -> bool:
        """Whether there is a `train` folder with class folders in it."""
        found = (inside(training(place)) for place in self.places(root)[:1])
        return any(path.is_dir() for entries in found for path in entries)

    def files(self, root: Path) -> list[Path]:
        """Return every image file, and the annotations of `val` where there are any."""
        home = self.places(root)[0]
        listed = [file for file, _ in _images(training(home))]
        test = _test_folder(home)
        if test is not None:
            listed += [file for file, _ in _images(test)]
            annotations = test / _ANNOTATIONS
            listed += [annotations] if annotations.is_file() else []
        return listed

    def read(self, root: Path) -> Splits:
        """Decode all images.

        Raises:
            SweepError: A class without training images, an unreadable image.
        """
        home, folder = self.places(root)[0], _test_folder(self.places(root)[0])
        train, test = _images(training(home)), [] if folder is None else _labelled(folder)
        labels, held, classes = self.labels(
            [kind for _, kind in train], [kind for _, kind in test], training(home)
        )
        images = self._decoded(training(home), train)
        tests = None
        if folder is not None:
            tests = ImageSet(self._decoded(folder, test, images), held, classes)
        paths = [file.relative_to(home).as_posix() for file, _ in train]
        return self.assemble(ImageSet(images, labels, classes), tests, paths)

    def _decoded(self, folder: Path, found: _Found, like: Tensor | None = None) -> Tensor:
        files = [file for file, _ in found]
        return decode(as_batches(files), len(files), f"{self.name}: {folder}", self.size, like)


_Found = list[tuple[Path, str]]
"""Image files, each with the name of its class."""


def _images(folder: Path) -> _Found:
    """The image files below a split's folder with their class folder's name, in sorted order."""
    return [
        (file, kind.name)
        for kind in inside(folder)
        if kind.is_dir()
        for file in below(kind)
        if os.path.splitext(file)[1].lower() in _SUFFIXES
    ]


def _test_folder(home: Path) -> Path | None:
    """Return the test split's folder; `val` where only that has labels (Tiny-ImageNet)."""
    if (home / "val" / _ANNOTATIONS).is_file():
        return home / "val"
    return called(home, *TEST_NAMES)


def _labelled(folder: Path) -> _Found:
    """The images of the test split; of Tiny-ImageNet's `val` those of its list, in its order."""
    file = folder / _ANNOTATIONS
    if not file.is_file():
        return _images(folder)
    try:
        rows = [line.split("\t") for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise unreadable(file, "is not readable text", error) from error
    if any(len(row) < 2 for row in rows):
        raise SweepError(f"{file}: needs lines of an image name, a tab and a class")
    return [(folder / "images" / Path(row[0]).name, row[1]) for row in rows]
