"""BNP, BatchNorm statistics-based pruning (Zheng et al., NeurIPS 2022).

The defender sees the model and a few clean images. A victim's running statistics were gathered on
data with triggers: channels whose inputs on clean images are distributed otherwise are set to zero.
Per channel, the divergence is that of two Gaussians, batch from running,
`ln(s_r / s) + (s^2 + (m - m_r)^2) / (2 s_r^2) - 1/2`; a channel goes where it exceeds the layer's
mean by `u` deviations. Nothing is trained. Of n channels none can be more than sqrt(n - 1)
deviations out: at the default of 3 a layer of ten or fewer loses none.

Deviations, each with its reason:

- `u: null` takes the smallest of a list down to which accuracy on the clean images never fell by
  more than `tau` (fair rule H: nothing learned, nothing held out); the default is published.
- A variance of zero counts as 1e-12, so that dead channels have a divergence.

BackdoorBench zeroes shifts as well (its preset). Its port drops the square root of the variances'
ratio, after which the divergence can be negative; that is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import Case, Defense, Needs
from defenses.parts.accept import Rule
from defenses.parts.neurons import layers
from defenses.parts.norm_inputs import above, observed, zero
from sweeper.core.options import Count, NonNegative, Share
from sweeper.core.types import Outcome
from sweeper.models.base import Net

LEVELS = (6.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5)
"""Candidates of `u`, weakest pruning first."""
LEAST = 1e-12
"""Stands for a variance of zero."""


def moments(inputs: Tensor) -> Tensor:
    """Mean and mean square of each image's channels: [B, C, positions] -> float64 [B, 2, C]."""
    values = inputs.double()
    return torch.stack([values.mean(2), values.square().mean(2)], 1)


def divergence(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the Gaussian (mean, var) from the other; float64 [C]."""
    var, other_var = var.double().clamp(min=LEAST), other_var.double().clamp(min=LEAST)
    second_moment = var + (mean.double() - other_mean.double()).square()
    return (other_var / var).log() / 2 + second_moment / (2 * other_var) - 0.5


@dataclass(frozen=True, kw_only=True)
class BNP(Defense):
    """Pruning of channels whose running statistics do not fit clean images."""

    u: NonNegative | None = 3.0
    """Deviations above the layer's mean at which a channel goes; null: chosen on the images."""
    images: Count = 500
    """Clean images the statistics are taken from, at most."""
    shift: bool = False
    """Whether the shift of a channel is set to zero with its scale."""
    tau: Share = 0.03
    """Accuracy on the clean budget the choice of u may cost, absolute, at least two images."""

    title = "BNP"
    paper = "Zheng et al., NeurIPS 2022"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    requires = frozenset({"batchnorm"})
    light = True
    version = 2
    presets = {"automatic": {"u": None}, "backdoorbench": {"shift": True}}

    def least_clean(self, needs: Needs) -> int:
        """One: nothing is trained."""
        return 1

    def defend(self, case: Case) -> Outcome:
        """Measure, choose where asked, prune a copy of the victim."""
        clean = case.clean
        order = torch.randperm(len(clean), generator=case.rng("images"))[: self.images]
        layer_divergences = divergences(case.fresh_model(), clean.images[order], case.device)

        def pruned(u: float) -> Net:
            model = case.fresh_model()
            zero(model, above(layer_divergences, u), self.shift)
            return model

        u, notes = self.u, dict[str, Any]()
        if u is None:
            u, curve = Rule(case, clean, self.tau).until_rejected(LEVELS, pruned)
            notes = {"curve": curve}
        level = torch.inf if u is None else u
        dead = above(layer_divergences, level)
        notes |= {"u": u, "pruned": int(dead.sum()), "channels": len(dead)}
        return Outcome(model=pruned(level), notes=notes)


def divergences(model: nn.Module, images: Tensor, device: torch.device) -> list[Tensor]:
    """Of each BatchNorm layer's inputs on these images from its running statistics; float64 [C]."""
    layer_divergences = []
    for (_, norm), image_moments in zip(
        layers(model), observed(model, images, device, moments), strict=True
    ):
        mean, square = image_moments.mean(0)
        running = [norm.get_buffer(name).cpu() for name in ("running_mean", "running_var")]
        layer_divergences.append(divergence(mean, square - mean.square(), *running))
    return layer_divergences
