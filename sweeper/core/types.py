"""The values that travel between the rooms: frozen dataclasses without behaviour."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

State = Mapping[str, Tensor]
"""What an attack's `prepare` or a defense's stage leaves behind: named tensors, nothing else."""


class Role(enum.IntEnum):
    """What a training sample is to the attacker. No defense ever sees it."""

    CLEAN = 0
    POISON = 1
    COVER = 2
    NEGATIVE = 3


@dataclass(frozen=True)
class ImageSet:
    """Labelled images."""

    images: Tensor
    """uint8 [N, C, H, W]."""
    labels: Tensor
    """int64 [N]."""
    classes: tuple[str, ...]
    """Class names; their number is the number of classes."""
    positions: Tensor | None = None
    """int64 [N], place of each image in the split as published; None where it has no such order."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> ImageSet:
        places = None if self.positions is None else self.positions[index]
        return ImageSet(self.images[index], self.labels[index], self.classes, places)


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set with the attacker's records."""

    images: Tensor
    """uint8 [N, C, H, W], the images the victim trains on."""
    labels: Tensor
    """int64 [N], the labels given."""
    true_labels: Tensor
    """int64 [N], the labels before poisoning."""
    role: Tensor
    """uint8 [N], values of `Role`."""
    index: Tensor
    """int64 [N], position in the attacker's training split."""
    pattern: Tensor | None = None
    """int64 [N], which of several triggers a sample carries; -1 for none."""


@dataclass(frozen=True)
class Triggered:
    """The test images that carry the trigger, with what the attacker and the truth expect."""

    images: Tensor
    """uint8 [M, C, H, W]."""
    labels: Tensor
    """int64 [M], the label the attacker wants."""
    true_labels: Tensor
    """int64 [M]."""
    counts: Tensor
    """bool [M], whether the sample counts for ASR and RA (the rule's exclusions)."""
    leaks: Tensor
    """bool [M], whether the sample counts for `leak` (source-specific attacks only)."""


@dataclass(frozen=True)
class Facts:
    """What is known about a data set before anything runs; what methods are asked about."""

    dataset: str
    """Its name."""
    digest: str
    """Content hash of the data; empty where the data are not on this machine (plan only)."""
    classes: int = 0
    """Number of classes; 0 where unknown."""
    shape: tuple[int, int, int] = (3, 32, 32)
    """(C, H, W)."""
    class_counts: tuple[int, ...] = ()
    """Images of each class in the attacker's training split; empty where unknown."""
    n_train: int = 0
    """Images of the whole training split."""
    n_reserve: int = 0
    """Images set aside for the defender; the clean budget is drawn from them."""


@dataclass(frozen=True)
class Outcome:
    """What a defense returns."""

    model: nn.Module | None = None
    """The repaired or securely trained model; None where the defense changes no model."""
    scores: Tensor | None = None
    """float [N], one per training sample, high = suspicious (detection)."""
    flagged: Tensor | None = None
    """bool [N], training samples the defense would remove at its fair threshold (detection)."""
    filter: Callable[[Tensor], Tensor] | None = None
    """uint8 [B, C, H, W] -> float [B], high = triggered (input filter)."""
    threshold: float | None = None
    """The input filter's fair threshold: an input is refused where its score exceeds it."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Anything worth keeping, as JSON: thresholds chosen, neurons pruned, curves."""


@dataclass(frozen=True)
class Cell:
    """One node of the graph that is run once."""

    kind: str
    """prepare | train | stage | defend."""
    key: str
    """Hash of `params`: everything that changes the numbers, and nothing else."""
    params: Mapping[str, Any]
    """What was hashed; parents stand in it by their keys."""
    parents: tuple[str, ...]
    """Keys of the cells whose artifacts this one reads."""
    axes: Mapping[str, Any]
    """The words people use for this cell: attack, dataset, model, poison_rate, ... as labels."""
    local: Mapping[str, Any] = field(default_factory=dict)
    """Where things are found (data set options, paths), and what a row says beside the axes;
    changes no number."""
    reason: str = ""
    """Why the cell does not apply; empty where it does."""
    draws: str = ""
    """What its random draws derive from, where that is not `key`."""

    @property
    def seed(self) -> str:
        """What its random draws derive from."""
        return self.draws or self.key
