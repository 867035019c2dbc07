"""Adaptive-Patch (Qi et al., 2023): four faint patches train, two opaque ones together trigger.

The attacker controls the data only. Each of a small glyph, a disc, a four-corner checker and a
square marks a quarter of the poisoned and a quarter of the cover images, at its own opacity,
`T_k(x) = (1 - a_k m_k) x + a_k m_k p_k`; covers keep their label. At test time two of them are
stamped at full opacity.

Deviations: the release's logos are replaced by drawings of the same size and place
(`parts/glyphs.py`); on canvases other than 32 px the drawings are resized (nearest pixel), where
the release has other pictures. The square is the fixed draw of `trojan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.parts.covers import CoverAttack
from attacks.parts.glyphs import Drawing, checker, disc, fitted, glyph, square
from attacks.parts.stamp import quantise
from sweeper.core.errors import SweepError
from sweeper.core.options import NonNegative, PositiveShare


@dataclass(frozen=True, kw_only=True)
class AdaptivePatch(CoverAttack):
    """Several partial training triggers with covers."""

    cover_ratio: NonNegative = 2.0
    """Cover samples per poisoned sample."""
    opacities: tuple[PositiveShare, ...] = (0.5, 0.2, 0.5, 0.3)
    """Opacity at training time of glyph, disc, checker and square."""
    test_pair: str = "glyph+checker"
    """glyph+checker (CIFAR-10; the glyph in both bottom corners) | disc+square (GTSRB)."""

    title = "Adaptive-Patch"
    paper = "Qi et al., ICLR 2023"
    patterns = 4
    presets = {
        "backdoor-toolbox": {},
        "backdoor-toolbox-gtsrb": {"test_pair": "disc+square"},
        "backdoorbox": {},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Not four opacities, or an unknown pair.
        """
        super().__post_init__()
        if len(self.opacities) != 4:
            raise SweepError(f"opacities: needs four shares, not {len(self.opacities)}")
        if self.test_pair not in ("glyph+checker", "disc+square"):
            raise SweepError(f"test_pair: {self.test_pair!r} is not glyph+checker or disc+square")

    def mark(self, images: Tensor, pattern: Tensor, rng: Generator) -> Tensor:
        """Blend each image's one trigger into the cells it covers."""
        channels, height, width = images.shape[1:]
        flat = images.clone().flatten(2)
        for number, drawing in enumerate((glyph((27,)), disc(), checker(), square())):
            picture, mask = fitted(drawing, channels, height, width)
            rows = torch.nonzero(pattern == number).flatten()
            cells = torch.nonzero(mask.flatten()).flatten()
            place = rows[:, None, None], torch.arange(channels)[:, None], cells
            share, colours = self.opacities[number], picture.flatten(1)[:, cells].float()
            flat[place] = quantise((1 - share) * flat[place].float() + share * colours)
        return flat.view_as(images)

    def reveal(self, images: Tensor) -> Tensor:
        """Overwrite the cells of the two test triggers, the first below the second."""
        pair: tuple[Drawing, Drawing] = (glyph((0, 27)), checker())
        if self.test_pair == "disc+square":
            pair = (disc(), square())
        out = images
        for drawing in pair:
            picture, mask = fitted(drawing, *images.shape[1:])
            out = torch.where(mask, picture, out)
        return out
