"""TrojanNN (Liu et al., 2018): a trigger found on a clean model, which is then tuned to obey it.

The attacker controls the model. `prepare` drives the strongest inputs of the clean model's last
layer to 100, `min sum_u (|h_u| - 100)^2`, by changing the trigger's pixels alone; the victim is the
clean model after one epoch on data poisoned with that trigger (backdoor-toolbox). `epochs: 0`
trains a new model on the poisoned data by the sweep's recipe instead (BackdoorBench). `trojan` is
the attack with such a patch on data alone. One clean model and one trigger a seed.

- square: a patch, overwritten; any colours, by Adam at 0.1 with a cosine to 0 (`patch.excite`).
- apple: a silhouette, added; up to 0.3 of the range above black, by signed steps of 0.1.

Deviations: the attackers of the paper rebuild training images from the model; here, as in both
releases, they have the training data. The square stands for the release's picture of a square, the
silhouette, drawn by code, for its picture of an apple. BackdoorBench's uint8 sum wraps modulo 256:
that is its preset's `wrap`, while the default clips. The patch shrinks with images below 32 px.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Lab
from attacks.parts.initial_weights import MODEL, InitialWeights
from attacks.parts.nets import packed
from attacks.parts.patch import GOAL, corner, excite
from attacks.parts.stamp import add, paste
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks
from sweeper.models.base import Net

STEP, RANGE = 0.1, 0.3
"""Step and reach of the silhouette's search, in [0, 1] (BackdoorBench)."""


@dataclass(frozen=True, kw_only=True)
class TrojanNN(Attack):
    """A clean model tuned to a trigger that excites it."""

    trigger: str = "square"
    """square (a patch near the corner, overwritten) | apple (a silhouette, added)."""
    size: int = 0
    """Side of the square in pixels; 0: 8 at 32 px, less on smaller images."""
    units: int = 100
    """Inputs of the last layer the trigger excites (TrojanZoo: 2)."""
    steps: int = 1000
    """Steps of the search for the trigger."""
    epochs: int = 1
    """Epochs the clean model is tuned for; 0: a new model is trained by the sweep's recipe."""
    lr: float = 0.01
    """Learning rate of the tuning, constant."""
    wrap: bool = False
    """Whether the silhouette's sum wraps modulo 256 (BackdoorBench)."""

    title = "TrojanNN"
    paper = "Liu et al., NDSS 2018"
    controls: ClassVar[str] = "model"
    prepares = True
    needs_clean_model = True
    state_axes = frozenset({"model", "seed"})
    presets = {
        "backdoor-toolbox": {"rate_base": "all"},
        "backdoor-toolbox-gtsrb": {"rate_base": "all", "lr": 0.001},
        "trojanzoo": {"units": 2},
        "backdoorbench": {
            "trigger": "apple",
            "units": 2,
            "epochs": 0,
            "wrap": True,
            "rate_base": "all",
            "rounding": "nearest",
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown trigger, or a number out of range.
        """
        super().__post_init__()
        if self.trigger not in ("square", "apple"):
            raise SweepError(f"trigger: {self.trigger!r} is not one of square, apple")
        if min(self.units, self.steps) < 1 or min(self.size, self.epochs) < 0 or self.lr <= 0:
            raise SweepError("units, steps: >= 1; size, epochs: not below 0; lr: above 0")

    def recipe(self, recipe: Recipe) -> Recipe:
        """A short tuning at a constant rate; unchanged where the victim is trained anew."""
        if not self.epochs:
            return recipe
        return replace(recipe, epochs=self.epochs, lr=self.lr, schedule="constant", warmup=0.0)

    def prepare(self, train: ImageSet, lab: Lab) -> dict[str, Tensor]:
        """Search the trigger, float `pattern` of 0..255; keep the clean model to start from."""
        canvas, model = train.images.shape[1:], lab.clean_model()
        if self.trigger == "square":
            box = corner("trojan-nn", train.images, self.size, 3)
            pattern = excite(model, canvas, box, self.units, self.steps, lab.rng("patch"))
        else:
            mask = apple(*canvas[1:])
            pattern = driven(model, canvas, mask, self.units, self.steps)
        return {"pattern": pattern, **(packed(model, MODEL) if self.epochs else {})}

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Overwrite the square, or add the silhouette."""
        pattern = state["pattern"]
        if self.trigger == "square":
            top, left, _ = corner("trojan-nn", images, self.size, 3)
            return paste(images, pattern, top, left)
        return images + pattern.to(torch.uint8) if self.wrap else add(images, pattern)

    def hooks(self, train: ImageSet, state: State, rng: Generator) -> Hooks | None:
        """Begin with the clean model."""
        return InitialWeights(state) if self.epochs else None


def apple(height: int, width: int) -> Tensor:
    """Bool [H, W]: the silhouette of an apple, two lobes with a stalk and a leaf."""
    rows = (torch.arange(height)[:, None] + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    lobes = [(rows - 0.58) ** 2 + (columns - x) ** 2 <= 0.25**2 for x in (0.4, 0.6)]
    stalk = ((columns - 0.5).abs() < max(0.04, 0.6 / width)) & ((rows - 0.3).abs() < 0.1)
    leaf = ((rows - 0.25) / 0.06) ** 2 + ((columns - 0.62) / 0.11) ** 2 <= 1
    return lobes[0] | lobes[1] | stalk | leaf


def driven(model: Net, canvas: tuple[int, ...], mask: Tensor, units: int, steps: int) -> Tensor:
    """Brighten the mask's pixels on black so that the strongest features reach `GOAL`.

    Args:
        model: A clean model in eval mode; left as it is.
        canvas: (C, H, W) of its images.
        mask: bool [H, W], the pixels that may change.
        units: How many features: those with the largest sum of |weight| in the last layer.
        steps: Signed steps.

    Returns:
        Float [C, H, W] of whole 0..255, on the CPU.
    """
    weight = model.get_parameter("classifier.weight").detach()
    strongest = weight.abs().sum(0).topk(min(units, weight.shape[1])).indices
    bound = RANGE * mask.to(weight.device).expand(canvas).unsqueeze(0)
    pixels = torch.zeros_like(bound)
    for _ in range(steps):
        pixels.requires_grad_()
        loss = (model.features(pixels)[:, strongest].abs() - GOAL).square().sum()
        (gradient,) = torch.autograd.grad(loss, pixels)
        pixels = (pixels.detach() - STEP * gradient.sign()).clamp(min=0).minimum(bound)
    return (pixels[0] * 255).floor().cpu()
