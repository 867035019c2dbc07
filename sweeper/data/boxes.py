"""Images with boxes: files of a user's own, and `scenes`, a generated set.

| files | layout |
|---|---|
| Parquet | `train.parquet`, `test.parquet`: columns `image` and `objects: {bbox, category}` |
| COCO | `annotations/instances_train*.json`, `instances_val*.json`, images in `train*/`, `val*/` |
| Pascal VOC | `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/train.txt` and `test.txt` |

Every image is resized to `size` x `size`, its boxes with it; the aspect ratio is not kept. Boxes
are cut at the border, those of no area are left out. In all images one row is left for a box that
an attack adds.

`scenes` need no file: digits of five classes on a noisy background, which hardly touch. As objects
of one kind often look alike, a class has a hue of its own, within a spread. None of the five is
another's mirror image, so that scenes may be mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.folders import inside
from sweeper.core.options import Count
from sweeper.core.types import SampleSet
from sweeper.data import _annotations, _shards
from sweeper.data._annotations import Annotated, Box
from sweeper.data._files import TEST_NAMES, FileSource
from sweeper.data._images import decode
from sweeper.data.base import Fileless, Splits
from sweeper.data.parquet import Parquet

DIGITS = ("zero", "one", "two", "three", "four")
_SIDE = 96
_SMALL, _LARGE = 20, 34
"""Range of the longer side of an object in pixels."""
_FEWEST, _MOST = 2, 4
"""Objects of a scene."""
_TOUCH = 0.05
"""Share of the smaller of two objects that may be covered."""
_TRIES = 50
_HUE = 0.06
"""Spread of a class's hue, as a share of the circle; the five lie 0.2 apart."""


def boxed(images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> SampleSet:
    """Images uint8 [N, C, H, W] with boxes float32 [N, M, 5]."""
    return SampleSet("boxes", {"images": images, "labels": labels}, classes)


def rows(boxes: Sequence[Sequence[Box]], count: int) -> Tensor:
    """Boxes of each image as one tensor, float32 [N, count, 5], filled up with -1.

    They are rounded to a thousandth of a pixel, that every machine agrees.
    """
    table = np.full((len(boxes), count, 5), -1.0)
    for row, given in zip(table, boxes, strict=True):
        if given:
            row[: len(given)] = given
    return torch.from_numpy(np.round(table, 3).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class BoxFiles(FileSource):
    """Images with boxes: Parquet, COCO's JSON or Pascal VOC's XML."""

    size: Count = 96
    """Side in pixels all images are resized to."""

    names: ClassVar[dict[str, str]] = {}
    task = "boxes"
    shape = (3, 96, 96)
    extra = "detection"
    packages = ("torchmetrics", "pycocotools")
    wants = (
        "train.parquet with a column `objects`, COCO's annotations/instances_train*.json, or "
        "Pascal VOC's ImageSets/Main/train.txt,"
    )
    order: ClassVar[int] = 4
    version: ClassVar[int] = 2

    def _kind(self, root: Path) -> tuple[str, Path | None]:
        """Which layout there is, and where; ("", None) for none: then they may be images alone."""
        for place in self.places(root):
            if place.is_dir() and inside(place, "annotations/instances_train*.json"):
                return "coco", place
            if (place / "ImageSets" / "Main" / "train.txt").is_file():
                return "voc", place
        listed = self._parquet.splits(root).get("train")
        if listed and _annotations.columned(listed[0]):
            return "parquet", listed[0].parent
        return "", None

    @property
    def _parquet(self) -> Parquet:
        """What knows where Parquet files lie."""
        return Parquet(name=self.name, path=self.path)

    def serves(self, root: Path) -> bool:
        """Whether there is a training split with boxes."""
        return bool(self._kind(root)[0])

    def files(self, root: Path) -> list[Path]:
        """The files of annotations, and those of images."""
        kind, home = self._kind(root)
        if kind == "parquet" or home is None:
            return self._parquet.files(root)
        patterns = ["annotations/instances_*.json", "images/**/*", "train*/**/*", "val*/**/*"]
        if kind == "voc":
            patterns = ["ImageSets/Main/*.txt", "Annotations/*.xml", "JPEGImages/*"]
        listed = {file for pattern in patterns for file in inside(home, pattern) if file.is_file()}
        return sorted(listed)

    def read(self, root: Path) -> Splits:
        """Read the boxes and decode the images.

        Raises:
            SweepError: A file is missing or cannot be read, a box has no class.
        """
        kind, home = self._kind(root)
        assert home is not None
        readers: dict[str, Callable[[Path, Path], _Read]] = {
            "parquet": self._read_parquet,
            "coco": self._read_coco,
            "voc": self._read_voc,
        }
        parts, classes = readers[kind](home, root)
        fitted = {name: self._fitted(part, len(classes)) for name, part in parts.items()}
        count = max(len(boxes) for part in fitted.values() for boxes in part) + 1
        sets: dict[str, SampleSet] = {}
        for name, part in parts.items():
            what, like = f"{self.name}: {name}", sets["train"].images if sets else None
            upright = kind == "parquet"
            images = decode(part.images, len(part.sizes), what, self.size, like, upright)
            sets[name] = boxed(images, rows(fitted[name], count), classes)
        return self.assemble(sets["train"], sets.get("test"), parts["train"].paths)

    def _fitted(self, part: Annotated, classes: int) -> list[list[Box]]:
        """The boxes of a split cut at the border and resized; those of no area are left out."""
        out, size = [], self.size
        for (width, height), boxes in zip(part.sizes, part.boxes, strict=True):
            kept = []
            for x1, y1, x2, y2, kind in boxes:
                if not 0 <= kind < classes:
                    raise SweepError(
                        f"{self.name}: a box is of class {kind}, but there are {classes} class "
                        "names: correct it"
                    )
                left, right = (min(max(x / width, 0), 1) * size for x in (x1, x2))
                top, bottom = (min(max(y / height, 0), 1) * size for y in (y1, y2))
                if right - left > 1e-2 and bottom - top > 1e-2:
                    kept.append((left, top, right, bottom, kind))
            out.append(kept)
        return out

    def _read_parquet(self, home: Path, root: Path) -> _Read:
        files = self._parquet.splits(root)
        for split, shards in files.items():
            _shards.whole(self.name, split, shards)
        parts = {split: _annotations.read_parquet(shards) for split, shards in files.items()}
        named = {_annotations.parquet_names(shards[0]) for shards in files.values()} - {()}
        if len(named) > 1:
            raise SweepError(f"{self.name}: train and test files name different classes: correct")
        kinds = [box[4] for part in parts.values() for boxes in part.boxes for box in boxes]
        numbers = tuple(map(str, range(max(kinds, default=0) + 1)))
        return parts, next(iter(named), numbers)

    def _read_coco(self, home: Path, root: Path) -> _Read:
        parts, classes = {}, list[tuple[str, ...]]()
        for split, names in (("train", ("train",)), ("test", TEST_NAMES)):
            found = [
                file
                for name in names
                for file in inside(home, f"annotations/instances_{name}*.json")
            ]
            if split == "train" and len(found) > 1:
                raise SweepError(
                    f"{home / 'annotations'}: has {len(found)} training files, such as "
                    f"{found[1].name}: keep one"
                )
            if found:
                parts[split], named = _annotations.read_coco(found[0])
                classes.append(named)
        if len(set(classes)) > 1:
            raise SweepError(f"{self.name}: train and test have different categories: correct one")
        return parts, classes[0]

    def _read_voc(self, home: Path, root: Path) -> _Read:
        listed = home / "ImageSets" / "Main"
        test = [name for name in TEST_NAMES if (listed / f"{name}.txt").is_file()]
        read = {
            split: _annotations.read_voc(home, name)
            for split, name in (("train", "train"), *(("test", name) for name in test[:1]))
        }
        classes = sorted({kind for _, kinds in read.values() for of in kinds for kind in of})
        parts = {}
        for split, (part, kinds) in read.items():
            boxes = [
                [(*box[:4], classes.index(kind)) for box, kind in zip(given, of, strict=True)]
                for given, of in zip(part.boxes, kinds, strict=True)
            ]
            parts[split] = replace(part, boxes=boxes)
        return parts, tuple(classes)


_Read = tuple[dict[str, Annotated], tuple[str, ...]]
"""The splits, and the class names."""


@dataclass(frozen=True, kw_only=True)
class Scenes(Fileless):
    """Generated scenes of 3x96x96: two to four of scikit-learn's digits on noise."""

    count: Count = 1500
    """Training scenes."""
    test_count: Count = 300
    """Test scenes; their digits are others than those of the training scenes."""

    names: ClassVar[dict[str, str]] = {
        "scenes": "generated scenes, 3x96x96, with boxes: two to four digits of 5 classes"
    }
    idle = frozenset({"size"})
    task = "boxes"
    shape = (3, _SIDE, _SIDE)
    extra = "detection"
    packages = ("torchmetrics", "pycocotools")
    order: ClassVar[int] = 40

    def read(self, root: Path) -> Splits:
        """Draw both splits."""
        from sklearn.datasets import load_digits  # here: importing it takes a second

        data = load_digits()
        parts = (("train", self.count, slice(360, None)), ("test", self.test_count, slice(360)))
        train, test = (
            draw_scenes(name, count, data.images[part] / 16, data.target[part])
            for name, count, part in parts
        )
        return Splits(train, test)


def draw_scenes(
    name: str, count: int, shapes: NDArray[np.float64], kinds: NDArray[np.int64]
) -> SampleSet:
    """Draw scenes.

    Args:
        name: Of the draw.
        count: Scenes.
        shapes: [S, h, w] in [0, 1], what stands in them.
        kinds: int [S], the class of each; those beyond the classes' number are not used.
    """
    rng = seeds.numpy_generator("scenes", name)
    members = [np.flatnonzero(kinds == kind) for kind in range(len(DIGITS))]
    images, boxes = np.empty((count, 3, _SIDE, _SIDE), dtype=np.uint8), list[list[Box]]()
    for image in images:
        scene = rng.uniform(0, 90, image.shape)
        placed: list[Box] = []
        for kind in rng.integers(len(DIGITS), size=rng.integers(_FEWEST, _MOST + 1)):
            ink = _resized(shapes[rng.choice(members[kind])], int(rng.integers(_SMALL, _LARGE + 1)))
            height, width = ink.shape
            for _ in range(_TRIES):
                x, y = int(rng.integers(_SIDE - width + 1)), int(rng.integers(_SIDE - height + 1))
                box = (float(x), float(y), float(x + width), float(y + height), int(kind))
                if all(_covered(box, other) <= _TOUCH for other in placed):
                    there = scene[:, y : y + height, x : x + width]
                    there[:] = (1 - ink) * there + ink * _colour(rng, int(kind))[:, None, None]
                    placed.append(box)
                    break
        image[:] = np.round(scene)
        boxes.append(placed)
    return boxed(torch.from_numpy(images), rows(boxes, _MOST + 1), DIGITS)


def _colour(rng: np.random.Generator, kind: int) -> NDArray[np.float64]:
    """A colour [3] of 0..255 near the hue of a class, the nearer to grey the vaguer."""
    hue = kind / len(DIGITS) + rng.normal(0, _HUE)
    saturation, value = rng.uniform(0.3, 0.9), rng.uniform(160, 255)
    part = np.abs(np.mod(hue + np.array([0, 2, 1]) / 3, 1) * 6 - 3) - 1
    colour: NDArray[np.float64] = value * (1 - saturation * (1 - np.clip(part, 0, 1)))
    return colour


def _resized(shape: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """A shape cut to its ink and enlarged, its longer side to `side` pixels; nearest pixels."""
    inked = np.argwhere(shape > 0.3)
    low, high = inked.min(0), inked.max(0) + 1
    cut = shape[low[0] : high[0], low[1] : high[1]]
    sizes = [max(1, side * length // max(cut.shape)) for length in cut.shape]
    places = [np.arange(new) * old // new for new, old in zip(sizes, cut.shape, strict=True)]
    return cut[np.ix_(*places)]


def _covered(one: Box, other: Box) -> float:
    """The share of the smaller of two boxes that the other covers."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0) * max(height, 0) / min(areas)
