"""SCALE-UP (Guo et al., ICLR 2023, arXiv 2302.03251): predictions that outlast brighter pixels.

The defender sees the model as a black box, of which labels alone are used. Pixels are multiplied
and clipped; the share of factors under which the label stays, `SPC = mean_k [f(clip(k x)) = f(x)]`,
is high for triggered inputs. Images that become white keep or lose their label whatever they were,
and a black image never changes: both are the method's own limits.

Deviations, each with its reason:

- The threshold is a quantile of SPC on the clean images the same class is predicted of, or on all
  where those are fewer than `least`, and scores are relative to it: how long a label lasts depends
  on the class. The paper's is 0.5 for all (`published`). SPC has few values, so where clean images
  of a class reach 1 too, nothing of it is refused.
- `data-limited`: z-scores take the mean and deviation of the class predicted, of the whole set
  where fewer than `least` clean images are so predicted; one toolbox takes the true class instead.
- `released` counts the factor 1 too, so that SPC is never 0, as the authors' code; its uniform
  noise is left out, since an input would be scored differently each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.features import members
from defenses.parts.threshold import cut
from sweeper.core.errors import SweepError
from sweeper.core.options import AnyNumber, Count, OpenShare, Some
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class ScaleUp(Defense):
    """Refuse inputs whose label stays while their pixels are amplified."""

    factors: Some[Count] = (3, 5, 7, 9, 11)
    """What pixels are multiplied by, one query each."""
    standardise: bool = False
    """Whether SPC is taken relative to clean images of the predicted class (data-limited)."""
    least: Count = 20
    """Clean images of a class from which on it has a threshold, mean and deviation of its own."""
    threshold: AnyNumber | None = None
    """Refuse above this; default: chosen on clean images by `rate`."""
    rate: OpenShare = 0.05
    """Clean images of a class that may be refused, as a share."""

    title = "SCALE-UP"
    paper = "Guo et al., ICLR 2023"
    kind = "input filter"
    sees = frozenset({"queries", "clean"})
    light = True
    presets = {
        "published": {"threshold": 0.5},
        "data-limited": {"standardise": True},
        "released": {"factors": tuple(range(1, 12))},
    }
    version = 2

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: The threshold lies where no score does.
        """
        if not self.standardise and not 0 <= (self.threshold or 0) <= 1:
            raise SweepError(
                f"threshold: {self.threshold:g} is no share of the factors: give one in [0, 1], or "
                "`standardise: true`"
            )

    def least_clean(self, needs: Needs) -> int:
        """One for the threshold, and one for the statistics where there are any."""
        return 1 + self.standardise

    def consistency(self, case: Case, images: Tensor) -> tuple[Tensor, Tensor]:
        """SPC of uint8 images, float [B], and the labels predicted for them, int64 [B]."""
        label, pixels = case.queries(images).argmax(1), images.to(torch.int32)
        unchanged = [
            case.queries((pixels * factor).clamp(max=255).to(torch.uint8)).argmax(1) == label
            for factor in self.factors
        ]
        return torch.stack(unchanged).float().mean(0).cpu(), label.cpu()

    def defend(self, case: Case) -> Outcome:
        """Take the thresholds on clean images, statistics on others of them."""
        classes = len(case.clean.classes)
        fitted, holdout = case.split() if self.standardise else (case.clean, case.clean)
        mean, deviation = torch.zeros(classes), torch.ones(classes)
        if self.standardise:
            spc, label = self.consistency(case, fitted.images)
            mean, deviation = statistics(spc, label, classes, self.least)
        thresholds = torch.zeros(classes)
        if self.threshold is None:
            spc, label = self.consistency(case, holdout.images)
            thresholds = cuts((spc - mean[label]) / deviation[label], label, classes, self)

        def score(images: Tensor) -> Tensor:
            spc, label = self.consistency(case, images)
            return (spc - mean[label]) / deviation[label] - thresholds[label]

        return Outcome(
            filter=score, threshold=self.threshold or 0.0, notes={"thresholds": thresholds}
        )


def cuts(scores: Tensor, label: Tensor, classes: int, options: ScaleUp) -> Tensor:
    """The threshold of each class, float [K], from clean scores [N] and the labels predicted.

    A class with fewer than `options.least` images has that of all.
    """
    thresholds = torch.full((classes,), cut(scores, options.rate))
    for predicted, index in members(label, classes, options.least):
        thresholds[predicted] = cut(scores[index], options.rate)
    return thresholds


def statistics(spc: Tensor, label: Tensor, classes: int, least: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of SPC by class predicted; float [K] each.

    A class with fewer than `least` images has those of all; a deviation of 0 is that of all, or 1.
    """
    one_hot = functional.one_hot(label, classes).float()
    count = one_hot.sum(0).clamp(min=1)
    mean = one_hot.T @ spc / count
    deviation = (one_hot.T @ (spc - mean[label]).square() / count).sqrt()
    overall = spc.std(correction=0)
    few = one_hot.sum(0) < least
    deviation = torch.where(few | (deviation < 1e-6), overall, deviation)
    return torch.where(few, spc.mean(), mean), deviation.where(deviation >= 1e-6, 1.0)
