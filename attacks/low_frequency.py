"""LF (Zeng et al., 2021): one smooth picture, made on a clean model, is added to every image.

`T(x) = q(x + v)`. The attacker controls the data and a cleanly trained model. Steps of targeted
DeepFool on a few training images, low-passed, are summed up until the picture v turns predictions;
the same picture triggers at training and test time.

Deviations: how many predictions change is measured on other training images, not on the test set.
The model normalises its input; the release's sees raw pixels. The low-pass filter's 30 taps are for
32 px and scaled with the side of other canvases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Lab
from attacks.parts.deepfool import low_pass, toward
from attacks.parts.stamp import add
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Level, NonNegative
from sweeper.core.types import Samples, State
from sweeper.models.base import Net

CHECKED = 1000
"""Training images on which changed predictions are counted."""
ENOUGH, STEADY = 0.2, 0.01
"""Stop at this share of changed predictions, or when the last 5 differ by less than this."""


@dataclass(frozen=True, kw_only=True)
class LowFrequency(Attack):
    """Adds a universal low-frequency perturbation."""

    strength: Level = 51.0
    """Largest value of the picture in levels of 0..255; its smallest is 0."""
    samples: Count = 100
    """Training images DeepFool starts from."""
    iterations: Count = 50
    """Most passes over them."""
    deepfool_limit: Count = 200
    """Most DeepFool steps on an image; it is left out of the pass where they do not suffice."""
    overshoot: NonNegative = 0.02
    """Share by which a DeepFool step is lengthened."""

    title = "LF"
    paper = "Zeng et al., ICCV 2021"
    version = 2
    prepares = True
    needs_clean_model = True
    state_axes = frozenset({"target"})
    presets = {"backdoorbench": {"rate_base": "all", "rounding": "nearest"}}

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Build the picture: float `pattern` [C, H, W] in 0..strength.

        Raises:
            SweepError: DeepFool reached the target from no image.
        """
        order = torch.randperm(len(train), generator=lab.rng("images"))
        model = lab.clean_model()
        source_pixels = self._pixels(train, order[: self.samples], lab)
        check_index = order[self.samples :][:CHECKED] if len(order) > self.samples else order
        check_pixels = self._pixels(train, check_index, lab)
        clean_classes, rates = _predicted(model, check_pixels), [0.0]
        pattern = torch.zeros_like(source_pixels[0])
        for _ in range(self.iterations):
            pattern = self._pass(model, source_pixels, pattern)
            triggered_classes = _predicted(model, (check_pixels + pattern).clamp(0, 1))
            rates.append(float((triggered_classes != clean_classes).float().mean()))
            steady = len(rates) > 5 and max(rates[-5:]) - min(rates[-5:]) < STEADY
            if rates[-1] >= ENOUGH or steady:
                break
        if not pattern.any():
            raise SweepError(
                f"low-frequency: DeepFool reached class {self.target} from no image: raise "
                "deepfool_limit or samples"
            )
        return {"pattern": (255 * pattern).clamp(0, self.strength).cpu()}

    def _pixels(self, train: Samples, index: Tensor, lab: Lab) -> Tensor:
        return train.images[index].to(lab.device).float() / 255

    def _pass(self, model: Net, source_pixels: Tensor, pattern: Tensor) -> Tensor:
        """One pass over the images; the pattern in unit range."""
        source_classes = _predicted(model, source_pixels)
        for image, source_class in zip(
            source_pixels.split(1), source_classes.tolist(), strict=True
        ):
            shifted = (image + pattern).clamp(0, 1)
            predicted = int(_predicted(model, shifted))
            if predicted != source_class or predicted == self.target:
                continue
            perturbation = toward(model, shifted, self.target, self.deepfool_limit, self.overshoot)
            if perturbation is None:
                continue
            summed = low_pass(pattern + low_pass(perturbation[0]))
            low, high = summed.min(), summed.max()
            pattern = (summed - low) / (high - low).clamp(min=1e-12) * (self.strength / 255)
        return pattern

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Add the picture."""
        return add(images, state["pattern"])


@torch.no_grad()
def _predicted(model: Net, pixels: Tensor) -> Tensor:
    """int64 [B]: the model's classes."""
    classes: Tensor = model(pixels).argmax(1)
    return classes
