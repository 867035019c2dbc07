"""TeCo (Liu et al., CVPR 2023): robustness that depends on the kind of corruption.

The defender sees the model as a black box, of which labels alone are used, and clean images for the
threshold. Of each of fifteen corruptions (`parts/corruptions.py`) the first severity that changes
the label is noted, 6 where none of five does; the score is the standard deviation of these numbers.
Clean images break at much the same severity whatever the corruption; triggered ones do not, for
some corruptions destroy a trigger and others leave it.

Deviations, each with its reason:

- The image itself is corrupted each time. Both releases write the result over it, so that a
  corruption acts on what all those before it left (`released`).
- The threshold is a quantile of clean images; the authors' maximises F1 on the test images.
- Random corruptions are the same for all images: an input has one score, whatever is beside it.
- `small` takes five corruptions, of noise, blur, weather and compression, a third of the queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from defenses.base import Case, Defense, Needs
from defenses.parts.corruptions import CORRUPTIONS, corrupted
from defenses.parts.threshold import cut
from sweeper.core.errors import SweepError, unknown
from sweeper.core.options import OpenShare
from sweeper.core.types import Outcome

BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class TeCo(Defense):
    """Refuse inputs whose label breaks at other severities for other corruptions."""

    types: tuple[str, ...] = tuple(CORRUPTIONS)
    """The corruptions, each up to `steps` queries an image."""
    steps: Annotated[int, Field(ge=1, le=5)] = 5
    """Severities of each corruption, from the mildest; at most 5."""
    accumulate: bool = False
    """Whether a corruption acts on what those before it left, not on the image."""
    rate: OpenShare = 0.05
    """Clean images that may be refused, as a share."""

    title = "TeCo"
    paper = "Liu et al., CVPR 2023"
    kind = "input filter"
    sees = frozenset({"queries", "clean"})
    presets = {
        "released": {"accumulate": True},
        "small": {"types": ("gaussian-noise", "defocus-blur", "brightness", "contrast", "jpeg")},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A corruption is unknown, named twice or the only one.
        """
        for name in self.types:
            if name not in CORRUPTIONS:
                raise SweepError(f"types: {unknown('corruption', name, CORRUPTIONS)}")
        if len(set(self.types)) < max(2, len(self.types)):
            raise SweepError("types: name two or more, each once")

    def least_clean(self, needs: Needs) -> int:
        """One, for the threshold."""
        return 1

    def broken(self, case: Case, images: Tensor) -> Tensor:
        """The first severity at which each corruption changes the label of uint8 images.

        Returns:
            int64 [B, types]: 1 to `steps`, or one more where none does.
        """
        images = images.to(case.device)
        label = case.queries(images).argmax(1).cpu()
        severities = torch.full((len(images), len(self.types)), self.steps + 1)
        for column, name in enumerate(self.types):
            for severity in range(1, self.steps + 1):
                unbroken = (severities[:, column] > self.steps).nonzero().flatten()
                if not len(unbroken) and not self.accumulate:
                    break
                rng = case.rng(f"{name} {severity}")
                inputs = corrupted(
                    images if self.accumulate else images[unbroken], name, severity, rng
                )
                if self.accumulate:
                    images, inputs = inputs, inputs[unbroken]
                if len(unbroken):
                    changed = case.queries(inputs).argmax(1).cpu() != label[unbroken]
                    severities[unbroken[changed], column] = severity
            case.log(step=column + 1, steps=len(self.types))
        return severities

    def defend(self, case: Case) -> Outcome:
        """Set the threshold on the clean budget."""

        def score(images: Tensor) -> Tensor:
            parts = [self.broken(case, part) for part in images.split(BATCH)]
            return torch.cat(parts).double().std(1, correction=0)

        threshold = cut(score(case.clean.images), self.rate)
        return Outcome(filter=score, threshold=threshold, notes={"threshold": threshold})
