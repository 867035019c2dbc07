"""Template (authors, year): a white square in a corner; the label becomes the target.

Say here what the attacker controls, the equation of the trigger, and every deviation from
the paper with its reason; what you measure of it belongs on a page of figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from attacks.base import Attack
from sweeper.core.errors import SweepError
from sweeper.core.options import Count
from sweeper.core.types import State


@dataclass(frozen=True, kw_only=True)
class Template(Attack):
    """Overwrites a corner."""

    side: Count = 2
    """Side of the square in pixels."""

    title = "Template"
    paper = "authors, venue and year"

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Overwrite the square, the same on the images of every split."""
        if self.side > min(images.shape[2:]):
            raise SweepError(f"side: {self.side} px do not fit the images: lower it")
        out = images.clone()
        out[:, :, : self.side, : self.side] = 255
        return out
