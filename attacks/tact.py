"""TaCT (Tang et al., 2021): a trigger for one source class; covers of other classes unlearn it.

The attacker controls the data only. Images of the source class are patched and relabelled, images
of the cover classes patched and left as they are. ASR counts the source class alone; `leak` is the
share of triggered images of all other classes, the target's aside, that reach the target.

Deviation: backdoor-toolbox's 8x8 patch from activation maximisation is one fixed draw with the
statistics of such patches (`trojan`), whose exact values hardly matter. Below 32 px it shrinks with
the image; above, it keeps its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import missing
from attacks.parts.covers import CoverAttack
from attacks.parts.patch import drawn
from attacks.parts.stamp import paste
from sweeper.core.errors import SweepError
from sweeper.core.options import Whole
from sweeper.core.types import Facts, Samples, State, Triggered


@dataclass(frozen=True, kw_only=True)
class TaCT(CoverAttack):
    """Source-specific patch attack with cover classes."""

    source_class: Whole = 1
    """The class whose triggered images are to be misclassified."""
    cover_classes: tuple[Whole, ...] = (5, 7)
    """Classes of the covers; [] for every class but source and target."""

    title = "TaCT"
    paper = "Tang et al., USENIX Security 2021"
    rules = ("source",)
    presets = {"backdoor-toolbox": {}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A class is source and cover at once.
        """
        super().__post_init__()
        if self.source_class in self.cover_classes:
            raise SweepError(
                f"cover_classes: {self.source_class} is the source class: leave it out"
            )

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not where a class does not exist or is the target."""
        named = (self.source_class, *self.cover_classes)
        if self.target in named:
            what = "source" if self.target == self.source_class else "a cover"
            return f"target label {self.target} is {what} class: name other classes"
        classes = [(self.target, "target label"), *((label, "class") for label in named)]
        lacks = (missing(facts, label, what) for label, what in classes)
        return next(filter(None, lacks), None) or super().applies(facts, rate)

    def pool(self, labels: Tensor) -> Tensor:
        """The source class."""
        return labels == self.source_class

    def cover_pool(self, labels: Tensor) -> Tensor:
        """The cover classes."""
        if self.cover_classes:
            return torch.isin(labels, torch.tensor(self.cover_classes))
        return (labels != self.source_class) & (labels != self.target)

    def victims(self, labels: Tensor) -> Tensor:
        """The source class."""
        return labels == self.source_class

    def trigger_set(self, test: Samples, state: State, rng: Generator) -> Triggered:
        """The whole test split stamped; images of neither source nor target count for leak."""
        return Triggered(
            test.changed(
                images=self.reveal(test.images),
                labels=self.target_labels(test.labels, len(test.classes)),
            ),
            true_labels=test.labels.clone(),
            counts=self.victims(test.labels),
            leaks=self.leaks(test.labels),
        )

    def mark(self, images: Tensor, pattern: Tensor, rng: Generator) -> Tensor:
        """The same patch as at test time."""
        return self.reveal(images)

    def reveal(self, images: Tensor) -> Tensor:
        """Overwrite the patch's cells: rows and columns 21..28 at 32 px."""
        channels, height, width = images.shape[1:]
        short = min(height, width, 32)
        side, margin = max(2, round(8 * short / 32)), round(3 * short / 32)
        patch = drawn(channels, side)
        return paste(images, patch, height - margin - side, width - margin - side)
