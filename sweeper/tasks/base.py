"""Classification: what tasks share whose samples have one label each."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sweeper.core.types import Samples, Triggered
from sweeper.engine import curvature, metrics
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Answers, Batch, Task


class Classification(Task):
    """A model answers with logits [B, K], a sample has one label."""

    classifies = True

    def scores(self, output: Tensor, batch: Batch) -> Tensor:
        """`log p(y|x)` [B]."""
        return curvature.log_likelihood(output, batch.labels)

    def sampled(self, output: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Labels drawn from the softmax of the logits; int64 [B]."""
        return curvature.sampled_labels(output, rng)

    def loss(
        self, output: Tensor, batch: Batch, *, smoothing: float = 0.0, reduction: str = "mean"
    ) -> Tensor:
        """The cross-entropy."""
        return functional.cross_entropy(
            output.float(), batch.labels, label_smoothing=smoothing, reduction=reduction
        )

    def answers(
        self, model: nn.Module, inputs: Tensor, recipe: Recipe, device: torch.device
    ) -> Tensor:
        """The predicted labels, int64 [N]."""
        return metrics.predict(model, inputs, recipe, device)

    def rate(self, answers: Tensor, samples: Samples) -> float:
        """The share that is labelled so."""
        return float((answers == samples.labels).double().mean())

    def measure(
        self,
        answers: Answers,
        test: Samples,
        triggered: Triggered,
        target: int | None,
        rng: Generator,
        crossed: Samples | None = None,
    ) -> dict[str, float | int | None]:
        """ACC, ASR, RA and their variants."""
        return metrics.evaluate(answers, test, triggered, target, rng, crossed)
