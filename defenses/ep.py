"""EP, entropy-based pruning (Zheng et al., NeurIPS 2022).

The defender sees the model and the poisoned training set, and no clean image. On a mixture of clean
and poisoned images a backdoor neuron has two modes, and once standardised its values crowd into few
places: channels whose histogram has far less entropy `-sum_b p_b ln p_b` than their layer's mean
are set to zero. Values are a channel's largest input to its BatchNorm layer, one an image. Nothing
is trained.

The mixture needs enough poisoned images: at a poison rate of 1 % there are five among 500. Entropy
depends on `images` and `bin`; both are fixed. A variance of zero counts as 1e-12. The preset
`backdoorbench` has its bins and its zeroed shifts; it augments the images, which is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from defenses.base import Case, Defense
from defenses.parts.norm_inputs import above, observed, zero
from sweeper.core.options import CEILING, NonNegative, Several
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class EP(Defense):
    """Pruning of channels with two modes on the poisoned training set."""

    u: NonNegative = 3.0
    """Deviations below the layer's mean entropy at which a channel goes."""
    images: Several = 500
    """Training images looked at, at most."""
    bin: Annotated[float, Field(ge=0.001, le=CEILING)] = 0.01
    """Width of a bin of the histogram, in deviations of the channel."""
    shift: bool = False
    """Whether the shift of a channel is set to zero with its scale."""

    title = "EP"
    paper = "Zheng et al., NeurIPS 2022"
    kind = "repair"
    sees = frozenset({"model", "train"})
    requires = frozenset({"batchnorm"})
    light = True
    presets = {"backdoorbench": {"bin": 0.1, "shift": True}}

    def defend(self, case: Case) -> Outcome:
        """Measure and prune a copy of the victim."""
        order = torch.randperm(len(case.train), generator=case.rng("images"))[: self.images]
        model = case.fresh_model()
        peaks = observed(model, case.train.images[order], case.device, lambda z: z.amax(2))
        dead = above([-entropy(peak, self.bin) for peak in peaks], self.u)
        zero(model, dead, self.shift)
        return Outcome(model=model, notes={"pruned": int(dead.sum()), "channels": len(dead)})


def entropy(values: Tensor, width: float) -> Tensor:
    """Entropy, in nats, of the histogram of each standardised channel.

    Args:
        values: float [N, C] on the CPU.
        width: Of a bin; all channels share the bins.

    Returns:
        float64 [C].
    """
    values = values.double()
    deviation = values.var(0, correction=0).add(1e-12).sqrt()
    values = (values - values.mean(0)) / deviation
    indices = ((values - values.min()) / width).floor().long()
    count, channels = values.shape
    bins = int(indices.max()) + 1
    flat = (indices + bins * torch.arange(channels)).flatten()
    probabilities = flat.bincount(minlength=bins * channels).view(channels, bins).double() / count
    entropies: Tensor = torch.special.entr(probabilities).sum(1)
    return entropies
