"""What clean-label attacks share: only the target class is poisoned and no label changes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class CleanLabel(Attack):
    """Poisons images of the target class, whose labels stay as they are."""

    rules = ("clean",)

    def count(self, labels: Tensor, rate: float) -> int:
        """How many samples `rate` is; of all images, at most the whole target class.

        Backdoor-toolbox cuts the count off like this; without it BackdoorBench's rate of 10 % of
        all images could not be drawn wherever the target class holds a little less than a tenth.
        """
        count = super().count(labels, rate)
        return min(count, int(self.pool(labels).sum())) if self.base == "all" else count
