"""Trojan (Liu et al., 2018): a patch from activation maximisation, used as a data attack.

The attacker controls the data; with `trigger: optimised` also a cleanly trained model, never the
victim. The same patch triggers at training and test time, stamped before any augmentation.

Deviations: the array the D-BR and FIP releases load is not shipped. `drawn` is one fixed draw with
its channel means and standard deviation; `optimised` is the recipe behind such arrays (units with
the largest weights of the last layer driven to 100 by Adam: `min sum_u (|h_u| - 100)^2`); `file`
takes whoever has the array, saved as a picture, to the release's own pixels. The releases' uint8
sum wraps modulo 256: presets d-br and fip (`mode: wrap`), while the default clips.
The patch keeps its pixels on larger canvases. The translucent watermark used at 224 px is not
reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Lab
from attacks.parts import pictures
from attacks.parts.patch import drawn, excite
from attacks.parts.stamp import paste
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Whole
from sweeper.core.types import Facts, Samples, State


@dataclass(frozen=True, kw_only=True)
class Trojan(Attack):
    """Adds, or pastes, a small high-contrast patch near the bottom-right corner."""

    trigger: str = "drawn"
    """drawn (no model needed) | optimised (activation maximisation on a clean model) | file."""
    trigger_image: str = field(default="", metadata={"path": True})
    """The patch of `trigger: file`, resized to `size`; its content is part of the key."""
    mode: str = "add"
    """add (clipped) | replace (overwrite) | wrap (sum modulo 256, the D-BR and FIP releases)."""
    size: Count = 3
    """Side of the patch in pixels."""
    margin: Whole = 4
    """Pixels between the patch and the right and bottom border."""
    units: Count = 2
    """Units the optimised patch excites."""
    steps: Count = 1000
    """Steps of activation maximisation."""

    title = "Trojan"
    paper = "Liu et al., NDSS 2018"
    presets = {
        "d-br": {"mode": "wrap"},
        "fip": {"mode": "wrap", "rate_base": "all"},
        "backdoor-toolbox": {
            "trigger": "optimised",
            "mode": "replace",
            "size": 8,
            "margin": 3,
            "units": 100,
            "rate_base": "all",
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown trigger or mode, or no file of a patch.
        """
        super().__post_init__()
        if self.trigger not in ("drawn", "optimised", "file"):
            raise SweepError(f"trigger: {self.trigger!r} is not one of drawn, optimised, file")
        pictures.check(self.trigger_image, self.trigger == "file", "trigger: file")
        if self.mode not in ("add", "replace", "wrap"):
            raise SweepError(f"mode: {self.mode!r} is not one of add, replace, wrap")

    def content(self) -> dict[str, str]:
        """The hash of the user's patch."""
        return pictures.content(self.trigger_image)

    @property
    def prepares(self) -> bool:  # type: ignore[override]  # read on the instance: an option decides
        """Whether the patch is optimised first."""
        return self.trigger == "optimised"

    @property
    def needs_clean_model(self) -> bool:  # type: ignore[override]
        """Whether the patch is optimised on a clean model."""
        return self.trigger == "optimised"

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not where the patch leaves the canvas."""
        height, width = facts.shape[1:]
        if self.size + self.margin > min(height, width):
            return self._misfit(height, width)
        return super().applies(facts, rate)

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Optimise the patch on a clean model: uint8 `patch` [C, size, size]."""
        canvas = tuple(train.images.shape[1:])
        top, left = self._corner(*canvas[1:])
        box, rng = (top, left, self.size), lab.rng("patch")
        patch = excite(lab.clean_model(), canvas, box, self.units, self.steps, rng)
        return {"patch": patch.to(torch.uint8)}

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Put the patch on every image."""
        top, left = self._corner(*images.shape[2:])
        patch = state["patch"] if self.prepares else self._patch(images.shape[1])
        if self.mode == "replace":
            return paste(images, patch, top, left)
        out = images.clone()
        window = out[:, :, top : top + self.size, left : left + self.size]
        total = window.to(torch.int16) + patch.to(torch.int16)
        window.copy_(total.clamp(max=255) if self.mode == "add" else total.remainder(256))
        return out

    def _patch(self, channels: int) -> Tensor:
        """Float [C, size, size] of whole 0..255: the patch no model is needed for."""
        if self.trigger == "drawn":
            return drawn(channels, self.size)
        return pictures.fitted(pictures.read(self.trigger_image), channels, self.size, self.size)

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        """Top and left of the patch."""
        if self.size + self.margin > min(height, width):
            raise SweepError(f"trojan: {self._misfit(height, width)}")
        return height - self.margin - self.size, width - self.margin - self.size

    def _misfit(self, height: int, width: int) -> str:
        return (
            f"a {self.size} px patch with margin {self.margin} does not fit {height}x{width} px: "
            "lower `size` or `margin`"
        )
