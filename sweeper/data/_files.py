"""What the sources that read the user's own files share: where, groups, a test share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.folders import called, inside
from sweeper.core.options import OpenShare
from sweeper.core.types import Samples
from sweeper.data.base import Source, Splits

TEST_NAMES = ("test", "val", "valid", "validation")
"""What the test split may be called, in the order they are looked for."""
_TRACK = re.compile(r"\d+_\d+\.\w+")


@dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """A source of files on disk, under the data folder by name or at `path`."""

    test_share: OpenShare | None = None
    """Share of the images to hold out as the test split where the data have none, in (0, 1)."""
    group_by: Literal["auto", "path-prefix", "none"] = "auto"
    """Images that belong together: `path-prefix` groups those of one class whose file names agree
    up to the last underscore (video tracks); `auto` does so for gtsrb only."""

    def places(self, root: Path) -> list[Path]:
        """Return the existing files and folders that may hold the data set, best first."""
        if self.path is not None:
            given = Path(self.path).expanduser()
            return [given] if given.exists() else []
        return folders(root, self.name)

    @property
    def grouped(self) -> bool:
        """Whether the file names are asked which images belong together."""
        return self.group_by == "path-prefix" or (self.group_by == "auto" and self.name == "gtsrb")

    def assemble(self, train: Samples, test: Samples | None, paths: Sequence[str]) -> Splits:
        """Return the splits, with groups by `group_by` and the test split held out by `test_share`.

        Args:
            train: The training images.
            test: The test images; None where the files have no such split.
            paths: File name of each training image as stored; asked only where `grouped`.

        Raises:
            SweepError: No test split and no `test_share`, both, or file names without a prefix.
        """
        groups = self._groups(paths, train.labels)
        if test is not None and self.test_share is not None:
            raise SweepError(
                f"{self.name}: has a test split of its own: leave `test_share` out, "
                "or give `path` of the training file alone"
            )
        if test is not None:
            return Splits(train, test, groups)
        if self.test_share is None:
            raise SweepError(
                f"{self.name}: only a training split was found (looked for "
                f"{', '.join(TEST_NAMES)} beside it): add one, or give `test_share: 0.2`"
            )
        labels = train.labels if train.labelled else torch.zeros(len(train), dtype=torch.int64)
        kept, held = hold_out(labels, self.test_share, groups)
        test = train[held].changed(positions=None)  # a place in train is none in a test split
        return Splits(train[kept], test, None if groups is None else groups[kept])

    def _groups(self, paths: Sequence[str], labels: Tensor) -> Tensor | None:
        if not self.grouped:
            return None
        names = [path.rsplit("/", 1)[-1] for path in paths]
        if self.group_by == "auto" and not all(_TRACK.fullmatch(name) for name in names):
            return None
        bad = next((name for name in names if "_" not in name), None)
        if bad is not None:
            raise SweepError(
                f"{self.name}: `group_by: path-prefix` needs file names like 00012_00029.jpg, "
                f"not {bad!r}: give `group_by: none`"
            )
        return number(
            [
                f"{y}/{path.rsplit('_', 1)[0]}"
                for y, path in zip(labels.tolist(), paths, strict=True)
            ]
        )


@dataclass(frozen=True, kw_only=True)
class ClassFiles(FileSource):
    """Files whose samples have one class each."""

    renumber: bool = False
    """Whether to leave out classes without a training image and number the others from 0."""

    def labels(
        self, train: Sequence[str], test: Sequence[str], home: Path
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return the labels of both splits, int64, and the class names, of folders of classes.

        Args:
            train: The class of each training sample.
            test: The class of each test sample.
            home: The training split's folder, where a class may be empty.

        Raises:
            SweepError: As `used`.
        """
        names = sorted({*train, *test, *(path.name for path in inside(home) if path.is_dir())})
        number = {name: index for index, name in enumerate(names)}
        first, second = (
            torch.tensor([number[kind] for kind in part], dtype=torch.int64)
            for part in (train, test)
        )
        return used(self.name, first, second, names, self.renumber)


def training(home: Path) -> Path:
    """The folder of the training split of a data set's folder."""
    return called(home, "train") or home / "train"


def used(
    name: str, train: Tensor, test: Tensor, names: Sequence[str], renumber: bool
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """See that every class has training images, and every test image a class that has.

    A class without images is none anybody can learn or name as a target.

    Args:
        name: The data set's.
        train: int64 [N], the training labels as the files have them.
        test: int64 [M], the test labels; none where the files have no such split.
        names: The class names by label; empty: the classes are called by their numbers.
        renumber: Whether to number the classes that have training images from 0.

    Returns:
        Both labels and the class names.

    Raises:
        SweepError: A class has no training image and is not to be left out, or only test images.
    """
    if not len(train):
        raise SweepError(
            f"{name}: train: there are no images: add some, or name another place with `path`"
        )
    present = train.unique()
    both = torch.cat([present, test.unique()])
    low, high = int(both.min()), int(both.max())
    if names and (low < 0 or high >= len(names)):
        raise SweepError(
            f"{name}: has labels {low} to {high}, but there are {len(names)} class names"
        )

    def named(label: int) -> str:
        return repr(names[label]) if names else str(label)

    labels = both.unique()
    if stray := labels[~torch.isin(labels, present)].tolist():
        more = f" and {len(stray) - 1} more" if len(stray) > 1 else ""
        raise SweepError(
            f"{name}: test has images of class {named(stray[0])}{more}, of which train has none: "
            "remove them, or add some to train"
        )
    count = len(present)
    gaps = present != torch.arange(count)
    gap = int(gaps.nonzero()[0]) if bool(gaps.any()) else count
    if gap < max(len(names), high + 1):
        if not renumber:
            those = f"{count} of {len(names)} classes have" if names else f"labels {low} to {high}"
            remedy = "add some or remove the class" if names else f"label them 0 to {count - 1}"
            raise SweepError(
                f"{name}: class {named(gap)} has no training image ({those}): {remedy}, or write "
                f"`renumber: true` to leave out such classes and number the other {count} from 0"
            )
        names = [names[label] if names else str(label) for label in present.tolist()]
        train = torch.searchsorted(present, train)
        test = torch.searchsorted(present, test)
    return train, test, tuple(names) or tuple(map(str, range(count)))


def same_name(a: str, b: str) -> bool:
    """Whether two data set names are the same; - and _ are alike."""
    return a.replace("_", "-") == b.replace("_", "-")


def folders(root: Path, name: str) -> list[Path]:
    """Return the folders under `root` named `name`, the exact spelling first."""
    if not root.is_dir():
        return []
    matches = [p for p in sorted(root.iterdir()) if same_name(p.name, name) and p.is_dir()]
    return sorted(matches, key=lambda p: p.name != name)


def number(keys: Sequence[str]) -> Tensor:
    """Return int64 [N]: equal keys get equal numbers, counted from 0 by first appearance."""
    _, first, inverse = np.unique(np.asarray(keys), return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")
    return torch.from_numpy(rank[inverse.reshape(-1)].astype(np.int64))


def hold_out(labels: Tensor, share: float, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Split off a share of every class, always the same for the same labels and groups.

    Args:
        labels: int64 [N].
        share: Share of each class to hold out, in (0, 1), rounded up; one group (or image) of
            every class always stays.
        groups: int64 [N]; a group is held out whole or not at all.

    Returns:
        The indices kept and those held out, both sorted.
    """
    groups = torch.arange(len(labels)) if groups is None else groups
    ids, inverse, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    group_labels = torch.empty(len(ids), dtype=torch.int64).index_put((inverse,), labels)
    held = torch.zeros(len(ids), dtype=torch.bool)
    for label in torch.unique(group_labels).tolist():
        members = (group_labels == label).nonzero().flatten()
        generator = seeds.generator("hold-out", label, len(members))
        members = members[torch.randperm(len(members), generator=generator)]
        before = sizes[members].cumsum(0) - sizes[members]
        drawn = before < share * int(sizes[members].sum())
        drawn[-1] = False
        held[members[drawn]] = True
    mask = held[inverse]
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
