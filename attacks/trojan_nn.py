"""TrojanNN (Liu et al., 2018): a trigger found on a clean model, which is then tuned to obey it.

The attacker controls the model. `prepare` drives the strongest inputs of the clean model's last
layer to 100, `min sum_u (|h_u| - 100)^2`, by changing the trigger's pixels alone; the victim is the
clean model after one epoch on data poisoned with that trigger (backdoor-toolbox). `epochs: 0`
trains a new model on the poisoned data by the sweep's recipe instead (BackdoorBench). `trojan` is
the attack with such a patch on data alone. One clean model and one trigger a seed.

- square: a patch, overwritten; any colours, by Adam at 0.1 with a cosine to 0 (`patch.excite`).
- apple, file: a picture, added; its pixels above 0, up to 0.3 of the range from what they were, by
  signed steps of 0.1.

Deviations: the attackers of the paper rebuild training images from the model; here, as in both
releases, they have the training data. The square stands for the release's picture of a square, a
silhouette of one grey, drawn by code, for the other's picture of an apple; `trigger: file` takes
the picture itself. BackdoorBench's uint8 sum wraps modulo 256: that is its preset's `wrap`, while
the default clips. The patch shrinks with images below 32 px.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Lab
from attacks.parts import pictures
from attacks.parts.initial_weights import MODEL, InitialWeights
from attacks.parts.nets import packed
from attacks.parts.patch import GOAL, corner, excite
from attacks.parts.stamp import add, paste
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Stride, Whole
from sweeper.core.types import Samples, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks
from sweeper.models.base import Net

STEP, RANGE = 0.1, 0.3
"""Step and reach of a picture's search, in [0, 1] (BackdoorBench)."""
LEVEL = 157
"""Level of the silhouette: the mean of the release's apple."""


@dataclass(frozen=True, kw_only=True)
class TrojanNN(Attack):
    """A clean model tuned to a trigger that excites it."""

    trigger: str = "square"
    """square (a patch near the corner, overwritten) | apple | file (a picture, added)."""
    trigger_image: str = field(default="", metadata={"path": True})
    """The picture of `trigger: file` on black; its content, not its path, is part of the key."""
    size: Whole = 0
    """Side of the square in pixels; 0: 8 at 32 px, less on smaller images."""
    units: Count = 100
    """Inputs of the last layer the trigger excites (TrojanZoo: 2)."""
    steps: Count = 1000
    """Steps of the search for the trigger."""
    epochs: Whole = 1
    """Epochs the clean model is tuned for; 0: a new model is trained by the sweep's recipe."""
    lr: Stride = 0.01
    """Learning rate of the tuning, constant."""
    wrap: bool = False
    """Whether a picture's sum wraps modulo 256 (BackdoorBench)."""

    title = "TrojanNN"
    paper = "Liu et al., NDSS 2018"
    version = 2
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
            SweepError: Unknown trigger, or a picture that is not there.
        """
        super().__post_init__()
        if self.trigger not in ("square", "apple", "file"):
            raise SweepError(f"trigger: {self.trigger!r} is not one of square, apple, file")
        pictures.check(self.trigger_image, self.trigger == "file", "trigger: file")

    def content(self) -> dict[str, str]:
        """The hash of the user's picture."""
        return pictures.content(self.trigger_image)

    def recipe(self, recipe: Recipe) -> Recipe:
        """A short tuning at a constant rate; unchanged where the victim is trained anew."""
        if not self.epochs:
            return recipe
        return replace(recipe, epochs=self.epochs, lr=self.lr, schedule="constant", warmup=0.0)

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Search the trigger, float `pattern` of 0..255; keep the clean model to start from."""
        canvas, model = train.images.shape[1:], lab.clean_model()
        if self.trigger == "square":
            box = corner("trojan-nn", train.images, self.size, 3)
            pattern = excite(model, canvas, box, self.units, self.steps, lab.rng("patch"))
        else:
            start = self.picture(*canvas).div(255)
            pattern = driven(model, start, self.units, self.steps).mul(255).floor()
        return {"pattern": pattern, **(packed(model, MODEL) if self.epochs else {})}

    def picture(self, channels: int, height: int, width: int) -> Tensor:
        """Float [C, H, W] of 0..255: what the search for a picture begins with."""
        if self.trigger == "file":
            return pictures.fitted(pictures.read(self.trigger_image), channels, height, width)
        return (LEVEL * apple(height, width).float()).expand(channels, height, width)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Overwrite the square, or add the picture."""
        pattern = state["pattern"]
        if self.trigger == "square":
            top, left, _ = corner("trojan-nn", images, self.size, 3)
            return paste(images, pattern, top, left)
        return images + pattern.to(torch.uint8) if self.wrap else add(images, pattern)

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Begin with the clean model."""
        return InitialWeights(state) if self.epochs else None


def apple(height: int, width: int) -> Tensor:
    """Bool [H, W]: the silhouette of an apple, two lobes with a stalk and a leaf, at the right.

    As large as the picture of the release and where it is: a ninth of the image, at 32 px in rows
    16 to 29 and columns 17 to 28.
    """
    rows = (torch.arange(height)[:, None] + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width - 23 / 32
    lobes = [
        ((rows - 0.782) / 0.157) ** 2 + ((columns - x) / 0.12) ** 2 <= 1 for x in (-0.06, 0.06)
    ]
    stalk = (columns.abs() < max(0.02, 0.6 / width)) & ((rows - 0.59).abs() < 0.08)
    leaf = ((rows - 0.54) / 0.04) ** 2 + ((columns - 0.07) / 0.05) ** 2 <= 1
    return lobes[0] | lobes[1] | stalk | leaf


def driven(model: Net, start: Tensor, units: int, steps: int) -> Tensor:
    """Change a picture so that the strongest features of the model reach `GOAL`.

    The pixels above 0 are the mask: what the model sees of the picture.

    Args:
        model: A clean model in eval mode; left as it is.
        start: Float [C, H, W] in [0, 1]; no value leaves `RANGE` around its own here.
        units: How many features: those with the largest sum of |weight| in the last layer.
        steps: Signed steps.

    Returns:
        Float [C, H, W] in [0, 1], on the CPU.
    """
    weight = model.get_parameter("classifier.weight").detach()
    strongest = weight.abs().sum(0).topk(min(units, weight.shape[1])).indices
    start = start.to(weight.device).unsqueeze(0)
    mask, change = (start > 0).float(), torch.zeros_like(start)
    for _ in range(steps):
        pixels = (start + change).clamp(0, 1).requires_grad_()
        loss = (model.features(pixels * mask)[:, strongest] - GOAL).square().sum()
        (gradient,) = torch.autograd.grad(loss, pixels)
        change = (pixels.detach() - STEP * gradient.sign() - start).clamp(-RANGE, RANGE)
    return (start + change).clamp(0, 1)[0].cpu()
