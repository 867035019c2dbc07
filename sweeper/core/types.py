"""The values that travel between the rooms: frozen dataclasses that do little but hold."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sweeper.core import seeds

State = Mapping[str, Tensor]
"""What an attack's `prepare` or a defense's stage leaves behind: named tensors, nothing else."""


class Role(enum.IntEnum):
    """What a training sample is to the attacker. No defense ever sees it."""

    CLEAN = 0
    POISON = 1
    COVER = 2
    NEGATIVE = 3


class Samples:
    """Named tensors with a common first axis, and the names of the classes.

    The first tensor, `inputs`, is what a model is shown; `labels` is what it should answer. Every
    tensor is an attribute of its name.
    """

    task: str
    """What they are samples of: a file of `sweeper/tasks/`."""
    classes: tuple[str, ...]
    """Class names; their number is the number of classes."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, in their order."""
        raise NotImplementedError

    def changed(self, **tensors: Tensor | None) -> Samples:
        """The same with other tensors under these names; None leaves one out."""
        raise NotImplementedError

    @property
    def inputs(self) -> Tensor:
        """What a model is shown: the first tensor."""
        return next(iter(self.tensors.values()))

    @property
    def labelled(self) -> bool:
        """Whether each has one label, its class; else its answer is a tensor: a sentence, boxes."""
        return self.labels.ndim == 1

    def shown(self, inputs: Tensor) -> Samples:
        """The same samples with other inputs."""
        return self.changed(**{next(iter(self.tensors)): inputs})

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Tensor | slice) -> Samples:
        return self.changed(**{name: value[index] for name, value in self.tensors.items()})

    def split(self, size: int) -> list[Samples]:
        """The samples in parts of `size`; views of their tensors."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class ImageSet(Samples):
    """Labelled images."""

    images: Tensor
    """uint8 [N, C, H, W]."""
    labels: Tensor
    """int64 [N]."""
    classes: tuple[str, ...]
    """Class names; their number is the number of classes."""
    positions: Tensor | None = None
    """int64 [N], place of each image in the split as published; None where it has no such order."""

    task = "image"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """images, labels, and positions where there are any."""
        places = {} if self.positions is None else {"positions": self.positions}
        return {"images": self.images, "labels": self.labels, **places}

    def changed(self, **tensors: Any) -> ImageSet:
        """The same with other tensors under these names."""
        return replace(self, **tensors)


@dataclass(frozen=True)
class SampleSet(Samples):
    """Samples of any task but images."""

    task: str
    """What they are samples of: a file of `sweeper/tasks/`."""
    named: Mapping[str, Tensor]
    """The tensors; the first is what a model is shown."""
    classes: tuple[str, ...]
    """Class names."""

    def __post_init__(self) -> None:
        """Refuse tensors whose order was lost: the first is what a model is shown."""
        if next(iter(self.named), "labels") in ("labels", "positions"):
            raise ValueError(f"the first of {', '.join(self.named)} is not what a model is shown")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, in their order."""
        return dict(self.named)

    def changed(self, **tensors: Tensor | None) -> SampleSet:
        """The same with other tensors under these names; None leaves one out."""
        merged = {**self.named, **tensors}
        return replace(self, named={k: v for k, v in merged.items() if v is not None})

    def __getattr__(self, name: str) -> Tensor:
        named: Mapping[str, Tensor] = self.__dict__.get("named", {})
        if name in named:
            return named[name]
        if name == "positions":  # samples without a published order
            return None  # type: ignore[return-value]
        raise AttributeError(f"no tensor {name!r} among {', '.join(named)}")


def samples(task: str, tensors: Mapping[str, Tensor], classes: tuple[str, ...]) -> Samples:
    """Make the samples of a task from their tensors, in order."""
    if task == ImageSet.task:
        return ImageSet(classes=classes, **tensors)
    return SampleSet(task, tensors, classes)


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set with the attacker's records."""

    samples: Samples
    """What the victim trains on, with the labels given."""
    true_labels: Tensor
    """int64 [N] (or what the task's labels are), the labels before poisoning."""
    role: Tensor
    """uint8 [N], values of `Role`."""
    index: Tensor
    """int64 [N], position in the attacker's training split."""
    pattern: Tensor | None = None
    """int64 [N], which of several triggers a sample carries; -1 for none."""

    @property
    def images(self) -> Tensor:
        """uint8 [N, C, H, W], where they are images."""
        return self.samples.images

    @property
    def labels(self) -> Tensor:
        """int64 [N], the labels given."""
        return self.samples.labels


@dataclass(frozen=True)
class Triggered:
    """The test samples that carry the trigger, with what the attacker and the truth expect."""

    samples: Samples
    """With the trigger; labelled as the attacker wants them answered."""
    true_labels: Tensor
    """int64 [M], or what the task's labels are."""
    counts: Tensor
    """bool [M], whether the sample counts for ASR and RA (the rule's exclusions)."""
    leaks: Tensor
    """bool [M], whether the sample counts for `leak` (source-specific attacks only)."""

    @property
    def images(self) -> Tensor:
        """uint8 [M, C, H, W], where they are images."""
        return self.samples.images

    @property
    def labels(self) -> Tensor:
        """int64 [M], the label the attacker wants."""
        return self.samples.labels


@dataclass(frozen=True)
class Facts:
    """What is known about a data set before anything runs; what methods are asked about."""

    dataset: str
    """Its name."""
    digest: str
    """Content hash of the data; empty where the data are not on this machine (plan only)."""
    classes: int = 0
    """Number of classes; 0 where unknown."""
    shape: tuple[int, ...] = (3, 32, 32)
    """Of what a model is shown of one sample; (C, H, W) of an image."""
    class_counts: tuple[int, ...] = ()
    """Images of each class in the attacker's training split; empty where unknown."""
    n_train: int = 0
    """Images of the whole training split."""
    n_reserve: int = 0
    """Images set aside for the defender; the clean budget is drawn from them."""
    task: str = "image"
    """What its samples are: a file of `sweeper/tasks/`."""


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

    @property
    def seed(self) -> str:
        """What its random draws derive from."""
        return seeds.drawn(self.params) if self.kind == "defend" else self.key
