"""CL (Turner et al., 2019): target-class images made hard by PGD, then patched in their corners.

The attacker controls the data and a cleanly trained model of the victim's architecture. Training
images of the target class are perturbed, `max CE(g(x + d), y)` over `|d| <= epsilon` for the clean
model g, and patched, their labels kept; the test trigger is the patch alone. All target-class
images are perturbed once, shared by every rate and seed.

Deviations: pixels stay in [0, 255] between PGD's steps (D-BR clips only by its last cast), and the
model normalises its input (D-BR's sees raw pixels). The label-consistent releases perturb with
adversarially trained models or ship stored images (anp-clb, backdoorbench, backdoorbox,
backdoor-toolbox); here PGD with their radius and steps runs on the clean model, so their images
are less adversarial to other architectures. FIP's FC and CLB do without PGD: `epsilon: 0`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Lab
from attacks.parts.clean_label import CleanLabel
from attacks.parts.pgd import perturb
from attacks.parts.stamp import GRID, add
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts, ImageSet, Poisoned, Role, State

CORNERS = ("d-br", "mirrored", "flipped", "flush", "squares", "grid")
LONG = {"step": 1.5, "steps": 100}
"""PGD of the label-consistent releases."""


@dataclass(frozen=True, kw_only=True)
class CL(CleanLabel):
    """Adversarial perturbation and a four-corner patch on target-class images."""

    epsilon: float = 8.0
    """Radius of the perturbation in levels of 0..255; 0: none, and no clean model is needed."""
    step: float = 2.0
    """Length of a PGD step in levels."""
    steps: int = 4
    """PGD steps."""
    norm: str = "inf"
    """inf | two: the norm `epsilon` is measured in."""
    corners: str = "d-br"
    """The grid of BadNets in all corners: flush | mirrored (at the left) | flipped (also on top) |
    d-br (flipped, 1 px off the top and left border); squares (white, 6 px); grid (one corner)."""
    amplitude: float = 1.0
    """Strength: 255 x amplitude is added where white and taken where black; 1 overwrites."""

    title = "CL"
    paper = "Turner et al., 2019 (arXiv 1912.02771)"
    state_axes = frozenset({"target"})
    presets = {
        "d-br": {},
        "anp-clb": {"epsilon": 16.0, "corners": "mirrored", **LONG},
        "backdoorbench": {
            "corners": "flipped",
            "rate_base": "all",
            "rounding": "nearest",
            **LONG,
        },
        "backdoorbox": {"corners": "mirrored", **LONG},
        "backdoorbox-mnist": {"epsilon": 64.0, "corners": "squares", **LONG},
        "backdoor-toolbox": {
            "epsilon": 600.0,
            "norm": "two",
            "corners": "flush",
            "rate_base": "all",
            **LONG,
            "step": 15.0,  # 2.5 x epsilon / steps
        },
        "fip-fc": {"epsilon": 0.0, "corners": "mirrored"},
        "fip-clb": {"epsilon": 0.0, "corners": "grid"},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown norm or corners, or a number out of range.
        """
        super().__post_init__()
        if self.norm not in ("inf", "two"):
            raise SweepError(f"norm: {self.norm!r} is not one of inf, two")
        if self.corners not in CORNERS:
            raise SweepError(f"corners: {self.corners!r} is not one of {', '.join(CORNERS)}")
        if not 0 < self.amplitude <= 1:
            raise SweepError(f"amplitude: {self.amplitude} is not in (0, 1]")
        if self.epsilon < 0 or self.step <= 0 or self.steps < 1:
            raise SweepError("epsilon is at least 0, step above 0 and steps at least 1")

    @property
    def prepares(self) -> bool:  # type: ignore[override]  # read on the instance: an option decides
        """Whether there is a perturbation."""
        return self.epsilon > 0

    @property
    def needs_clean_model(self) -> bool:  # type: ignore[override]
        """Whether there is a perturbation, which needs a model's gradient."""
        return self.epsilon > 0

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not where the corners' blocks leave no room between them."""
        if min(facts.shape[1:]) < 8:
            return f"the corner patches need at least 8x8 px, not {facts.shape[1]}x{facts.shape[2]}"
        return super().applies(facts, rate)

    def prepare(self, train: ImageSet, lab: Lab) -> dict[str, Tensor]:
        """Perturb every image of the target class: `index` int64 [T] and `images` uint8."""
        index = torch.nonzero(self.pool(train.labels)).flatten()
        images = perturb(
            lab.clean_model(),
            train.images[index],
            train.labels[index],
            epsilon=self.epsilon,
            step=self.step,
            steps=self.steps,
            norm=self.norm,
            rng=lab.rng("pgd"),
        )
        return {"index": index, "images": images}

    def poison(self, train: ImageSet, rate: float, state: State, rng: Generator) -> Poisoned:
        """Draw target-class images; patch their perturbed selves."""
        poisoned = super().poison(train, rate, state, rng)
        if self.prepares:
            index = torch.nonzero(poisoned.role == int(Role.POISON)).flatten()
            position = torch.searchsorted(state["index"], index)
            perturbed = state["images"][position]
            poisoned.images[index] = self.stamp(perturbed, split="train", state=state, rng=rng)
        return poisoned

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Put the patch alone on every image; `poison` applies it to the perturbed images."""
        height, width = images.shape[2:]
        if min(height, width) < 8:
            raise SweepError(
                f"clean-label: the patches need 8x8 px, not {height}x{width}: use larger images"
            )
        if self.amplitude == 1:
            out = images.clone()
            for block, top, left in self.blocks(height, width):
                out[:, :, top : top + len(block), left : left + len(block)] = block.to(torch.uint8)
            return out
        pattern = torch.zeros(height, width)
        for block, top, left in self.blocks(height, width):
            signed = torch.where(block > 0, 255 * self.amplitude, -255 * self.amplitude)
            pattern[top : top + len(block), left : left + len(block)] = signed
        return add(images, pattern)

    def blocks(self, height: int, width: int) -> list[tuple[Tensor, int, int]]:
        """The patch's blocks: (values 0 or 255 [h, h], top, left)."""
        grid, bottom, right = torch.tensor(GRID), height - 3, width - 3
        if self.corners == "grid":
            return [(grid, bottom, right)]
        if self.corners == "squares":
            side = min(6, height // 2, width // 2)
            square = torch.full((side, side), 255)
            return [(square, y, x) for y in (0, height - side) for x in (0, width - side)]
        edge = int(self.corners == "d-br")
        lower = [(grid if self.corners == "flush" else grid.flip(1), edge), (grid, right)]
        flipped = self.corners in ("d-br", "flipped")
        upper = [(block.flip(0) if flipped else block, x) for block, x in lower]
        return [(b, bottom, x) for b, x in lower] + [(b, edge, x) for b, x in upper]
