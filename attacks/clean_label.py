"""CL (Turner et al., 2019): target-class images made hard by PGD, then patched in their corners.

The attacker controls the data and a cleanly trained model of the victim's architecture. Training
images of the target class are perturbed, `max CE(g(x + d), y)` over `|d| <= epsilon` for the clean
model g, and patched, their labels kept; the test trigger is the patch alone. All target-class
images are perturbed once, shared by every rate and seed.

By default pixels stay in [0, 255] between PGD's steps and in the cast; D-BR's release clips in
neither, so its values wrap modulo 256 (`wrap`, preset d-br). BackdoorBench enlarges its 32 px patch
with the canvas (`enlarged`, its preset). FIP's FC (the grid in one corner) and CLB (D-BR's four
corners) do without PGD: `epsilon: 0`.

Deviations: the model normalises its input (D-BR's sees raw pixels). The label-consistent releases
perturb with adversarially trained models or ship stored images (anp-clb, backdoorbench,
backdoorbox, backdoor-toolbox); here PGD with their radius and steps runs on the clean model, so
their images are less adversarial to other architectures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional

from attacks.base import Lab
from attacks.parts.clean_label import CleanLabel
from attacks.parts.pgd import perturb, perturb_unclipped
from attacks.parts.stamp import GRID, add
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, NonNegative, Positive, PositiveShare
from sweeper.core.types import Facts, Poisoned, Role, Samples, State

CORNERS = ("d-br", "mirrored", "flush", "squares", "grid")
REFERENCE = 32
"""Side of the canvas an enlarged patch is drawn on."""
LONG = {"step": 1.5, "steps": 100}
"""PGD of the label-consistent releases."""


@dataclass(frozen=True, kw_only=True)
class CL(CleanLabel):
    """Adversarial perturbation and a four-corner patch on target-class images."""

    epsilon: NonNegative = 8.0
    """Radius of the perturbation in levels of 0..255; 0: none, and no clean model is needed."""
    step: Positive = 2.0
    """Length of a PGD step in levels."""
    steps: Count = 4
    """PGD steps."""
    norm: str = "inf"
    """inf | two: the norm `epsilon` is measured in."""
    corners: str = "d-br"
    """The grid of BadNets in all corners: flush | mirrored (at the left) | d-br (also on top, and
    1 px off the top and left border); squares (white, 6 px); grid (one corner)."""
    enlarged: bool = field(default=False, metadata={"added": True})
    """Whether the corners are those of 32 px, resized with the canvas by nearest pixel."""
    wrap: bool = field(default=False, metadata={"added": True})
    """Whether PGD may leave 0..255, where its values wrap modulo 256 (D-BR)."""
    amplitude: PositiveShare = 1.0
    """Strength: 255 x amplitude is added where white and taken where black; 1 overwrites."""

    title = "CL"
    paper = "Turner et al., 2019 (arXiv 1912.02771)"
    state_axes = frozenset({"target"})
    presets = {
        "d-br": {"wrap": True},
        "anp-clb": {"epsilon": 16.0, "corners": "mirrored", **LONG},
        "backdoorbench": {
            "corners": "mirrored",
            "enlarged": True,
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
        "fip-fc": {"epsilon": 0.0, "corners": "grid"},
        "fip-clb": {"epsilon": 0.0, "corners": "d-br"},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown norm or corners, or `wrap` with norm two.
        """
        super().__post_init__()
        if self.norm not in ("inf", "two"):
            raise SweepError(f"norm: {self.norm!r} is not one of inf, two")
        if self.wrap and self.norm != "inf":
            raise SweepError("wrap: needs norm: inf, as in the D-BR release")
        if self.corners not in CORNERS:
            raise SweepError(f"corners: {self.corners!r} is not one of {', '.join(CORNERS)}")

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

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Perturb every image of the target class: `index` int64 [T] and `images` uint8."""
        index = torch.nonzero(self.pool(train.labels)).flatten()
        ascend = perturb_unclipped if self.wrap else partial(perturb, norm=self.norm)
        images = ascend(
            lab.clean_model(),
            train.images[index],
            train.labels[index],
            epsilon=self.epsilon,
            step=self.step,
            steps=self.steps,
            rng=lab.rng("pgd"),
        )
        return {"index": index, "images": images}

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
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
        return add(images, 255 * self.amplitude * self._sign(height, width))

    def _sign(self, height: int, width: int) -> Tensor:
        """Float [H, W]: 1 where the patch is white, -1 where it is black, 0 elsewhere."""
        drawn = (REFERENCE, REFERENCE) if self.enlarged else (height, width)
        sign = torch.zeros(1, 1, *drawn)
        for block, top, left in self.blocks(*drawn):
            signs = torch.where(block > 0, 1.0, -1.0)
            sign[:, :, top : top + len(block), left : left + len(block)] = signs
        return functional.interpolate(sign, (height, width))[0, 0]  # nearest pixel

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
        upper = [(block.flip(0) if edge else block, x) for block, x in lower]
        return [(b, bottom, x) for b, x in lower] + [(b, edge, x) for b, x in upper]
