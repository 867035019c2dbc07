"""Adaptive-Blend (Qi et al., 2023): random halves of a faint picture train, the whole one triggers.

`T(x) = (1 - a m) x + a m P`. The attacker controls the data only. The canvas is cut into 4x4
pieces; every poisoned and every cover image gets the picture P in a random half m of them. Covers
keep their label. At test time m is 1 and the opacity a higher. The picture is that of `blend`; a
picture of one's own is an option.

Deviation: the release's default picture is copyrighted; the generated one of `blend` stands in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from attacks.blend import Blend
from attacks.parts.covers import CoverAttack
from attacks.parts.stamp import mix
from sweeper.core.options import PositiveShare

GRID = 4
"""Pieces along a side."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(CoverAttack):
    """Blend with partial training triggers and covers."""

    picture: str = "generated"
    """noise | strip | sine | generated | file, as in `blend`."""
    trigger_image: str = field(default="", metadata={"path": True})
    """The picture of `picture: file`; its content, not its path, is part of the key."""
    opacity: PositiveShare = 0.15
    """Share of the picture at training time, in the pieces that are on."""
    test_opacity: PositiveShare = 0.2
    """Share of the picture at test time, everywhere."""
    pieces: Annotated[int, Field(ge=1, le=GRID**2)] = 8
    """Pieces of the 16 that are on in a training image."""

    title = "Adaptive-Blend"
    paper = "Qi et al., ICLR 2023"
    presets = {"backdoor-toolbox": {}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: The picture is unknown, or its file is not there.
        """
        super().__post_init__()
        self._blend()

    def _blend(self) -> Blend:
        return Blend(picture=self.picture, trigger_image=self.trigger_image)

    def content(self) -> dict[str, str]:
        """The hash of the user's picture."""
        return self._blend().content()

    def mark(self, images: Tensor, pattern: Tensor, rng: Generator) -> Tensor:
        """Blend the picture into a random half of each image's pieces."""
        count, channels, height, width = images.shape
        rank = torch.rand(count, GRID**2, generator=rng).argsort(1).argsort(1)
        on = (rank < self.pieces).view(count, GRID, GRID)
        rows, columns = (torch.arange(side) * GRID // side for side in (height, width))
        on = on[:, rows][:, :, columns][:, None]
        picture = self._blend().pattern(channels, height, width)
        return torch.where(on, mix(images, picture, self.opacity), images)

    def reveal(self, images: Tensor) -> Tensor:
        """Blend the whole picture."""
        return mix(images, self._blend().pattern(*images.shape[1:]), self.test_opacity)
