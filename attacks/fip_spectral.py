"""Spectral regularisation (FIP, Karim et al., 2024): a BadNets victim trained to be smooth.

The attacker knows that the defense looks for sharp minima and controls training: the loss of every
`every`-th step is `CE + eta_F Tr(F)`, F the Fisher matrix. The data are poisoned as by BadNets, all
of whose options are options here.

`Tr(F) = E_x E_{y ~ p(.|x)} |grad_w log p(y|x)|^2` is estimated without per-sample gradients: with
independent signs s_i, `|grad_w sum_i s_i log p(y_i|x_i)|^2 / B` has that mean, because products of
different samples cancel. Labels are drawn from the model, or those given (empirical Fisher).

Deviations: the release differentiates a B x B indexing of the log-probabilities and adds up partial
sums of random projections of it, a number of mean zero that is no trace of F (`defenses/fip.py`).
That is `estimator: released` and the presets, at the strengths of the script (0.5) and of the usage
text (0.01), which mean nothing for the estimator above; its default was measured to leave ACC and
ASR where they are (docs/measured.md). Samples of a batch share BatchNorm's statistics: F is that of
the training mode. Penalised steps run in single precision. Schedule and weight decay are the
sweep's recipe (release: SGD 0.1 throughout, momentum 0.95, no weight decay, 250 epochs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.badnets import BadNets
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, NonNegative, ProperShare
from sweeper.core.types import Samples, State
from sweeper.engine import curvature
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks


@dataclass(frozen=True, kw_only=True)
class FipSpectral(BadNets):
    """BadNets with a penalty on the trace of the Fisher matrix."""

    strength: NonNegative = 0.001
    """Weight of the trace (eta_F)."""
    every: Count = 5
    """The trace is added at every such step."""
    probes: Count = 1
    """Sign vectors the estimate is averaged over."""
    labels: str = "sampled"
    """sampled (Fisher) | given (empirical Fisher): whose log-probabilities are differentiated."""
    estimator: str = field(default="signs", metadata={"added": True})
    """signs (unbiased) | released (mean zero, of the labels given; 20 vectors)."""
    momentum: ProperShare = 0.0
    """SGD momentum in place of the recipe's; 0: the recipe's."""

    title = "FIP adaptive: spectral regularisation"
    paper = "Karim et al., 2024 (arXiv 2409.00863)"
    tasks = frozenset({"image"})
    controls: ClassVar[str] = "training"
    version = 2
    presets = {
        "fip": {"opacity": 0.6, "strength": 0.5, "estimator": "released", "momentum": 0.95},
        "fip-usage": {"opacity": 0.6, "strength": 0.01, "estimator": "released", "momentum": 0.95},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown labels or estimator.
        """
        super().__post_init__()
        if self.labels not in ("sampled", "given"):
            raise SweepError(f"labels: {self.labels!r} is not one of sampled, given")
        if self.estimator not in ("signs", "released"):
            raise SweepError(f"estimator: {self.estimator!r} is not one of signs, released")

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with the attack's momentum."""
        return replace(recipe, momentum=self.momentum or recipe.momentum)

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Add the trace to the loss."""
        return _Hooks(self, rng)


class _Hooks(Hooks):
    """Cross-entropy plus the trace at every few steps."""

    keeps = ("rng", "vectors")

    def __init__(self, attack: FipSpectral, rng: Generator) -> None:
        self.attack = attack
        self.rng = rng
        self.vectors = rng

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Draw vectors where the weights are."""
        self.vectors = Generator(device).manual_seed(self.rng.initial_seed())

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loss of one step."""
        if batch.step % self.attack.every:
            return super().loss(model, batch, recipe)
        with curvature.second_order(batch.inputs.device):
            logits = model(batch.inputs)
            loss = functional.cross_entropy(
                logits, batch.labels, label_smoothing=recipe.label_smoothing
            )
            weights = [p for p in model.parameters() if p.requires_grad]
            return loss + self.attack.strength * self.trace(logits, batch.labels, weights)

    def trace(self, logits: Tensor, labels: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The estimate of Tr F, or what the release has in its place."""
        if self.attack.estimator == "released":
            return curvature.as_released(logits, labels, weights, self.vectors)
        traces = []
        for _ in range(self.attack.probes):
            if self.attack.labels == "sampled":
                labels = curvature.sampled_labels(logits.detach(), self.rng)
            signs = torch.randint(2, (len(labels),), generator=self.rng) * 2.0 - 1
            chosen = curvature.log_likelihood(logits, labels)
            traces.append(curvature.by_rademacher(chosen, weights, signs.to(logits.device)))
        return torch.stack(traces).mean()
