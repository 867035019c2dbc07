"""FT-SAM, sharpness-aware fine-tuning (Zhu et al., ICCV 2023).

The defender sees the model and a few clean images. It is fine-tuned, each update with the gradient
at `w + e(w)`, the worst point near by, where the adaptive `e = rho w^2 g / |w g|` (one norm over
all weights) moves large weights most: those a backdoor lives in. w is put back from a copy, and
BatchNorm's running statistics move in the first of the two passes alone.

The cross-entropy is smoothed: 1 - s for the label, s / (K - 1) for each other class. A fixed
number of epochs and the last model; nothing is selected.

Deviations, each with its reason:

- The learning rate falls in one half cosine over the epochs. The release steps a cosine of 100 at
  every UPDATE: with 10 updates an epoch the rate swings up and down five times and ends where it
  began. That is `schedule: update`, by which its tables were made.
- In the second pass dropout is off (`curvature.side_pass`); no network of the paper has any.

The release lies in BackdoorBench, and the presets are its files for CIFAR-10, GTSRB and
Tiny-ImageNet. The last asks for a learning rate halved on a plateau and steps that at every update
without the loss it needs, which ends the run with an error: the preset keeps the rate constant, as
it stands until a plateau.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defenses.base import Case, Defense
from defenses.parts.hooks import EveryStep
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, ProperShare, Smoothing, Whole
from sweeper.core.types import Outcome
from sweeper.engine import sharpness
from sweeper.engine.task import ANY


@dataclass(frozen=True, kw_only=True)
class FTSAM(Defense):
    """Fine-tuning towards flat minima, sharpness measured relative to the weights."""

    rho: NonNegative = 2.0
    """Radius of the neighbourhood (2 on CIFAR-10; 8 on GTSRB and Tiny ImageNet)."""
    adaptive: bool = True
    """Whether the neighbourhood scales with the weights; else `e = rho g / |g|`."""
    smoothing: Smoothing = 0.1
    """Share s of the label spread over the other classes (0 on GTSRB and Tiny ImageNet)."""
    epochs: Whole = 100
    """Passes over the clean budget."""
    lr: LearningRate = 0.01
    """Peak learning rate (SGD)."""
    schedule: str = "epoch"
    """epoch (half a cosine over all) | update (a cosine of half-period `period`) | constant."""
    period: Count = 100
    """Updates from the highest to the lowest learning rate, with `schedule: update`."""
    momentum: ProperShare = 0.9
    """SGD momentum."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty, of the weights put back."""
    batch: Count = 256
    """Images of a step."""

    title = "FT-SAM"
    paper = "Zhu et al., ICCV 2023"
    kind = "repair"
    tasks = frozenset({ANY})
    sees = frozenset({"model", "clean"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "backdoorbench": {"schedule": "update"},
        "backdoorbench-gtsrb": {"schedule": "update", "rho": 8.0, "smoothing": 0.0, "epochs": 50},
        "backdoorbench-tiny-imagenet": {"schedule": "constant", "rho": 8.0, "smoothing": 0.0},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: An unknown schedule.
        """
        if self.schedule not in ("epoch", "update", "constant"):
            raise SweepError(f"schedule: {self.schedule!r} is not one of epoch, update, constant")

    def rate(self, step: int) -> float:
        """The released learning rate of an update (from 0)."""
        return self.lr * (1 + math.cos(math.pi * step / self.period)) / 2

    def defend(self, case: Case) -> Outcome:
        """Train a copy of the victim."""
        model, classes = case.fresh_model(), len(case.clean.classes)
        if not self.epochs:
            return Outcome(model=model)
        rate = self.rate if self.schedule == "update" else None
        losses = case.fit(
            model,
            case.clean,
            hooks=Sharpness(self.rho, self.adaptive, rate),
            epochs=self.epochs,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=False,
            weight_decay=self.weight_decay,
            label_smoothing=self.smoothing * classes / (classes - 1),
            batch=min(self.batch, len(case.clean)),
            schedule="constant" if self.schedule == "constant" else "cosine",
            period=0,
            warmup=0.0,
        )
        return Outcome(model=model, notes={"loss_first": losses[0], "loss_last": losses[-1]})


class Sharpness(EveryStep):
    """The update in two passes."""

    def __init__(
        self, rho: float, adaptive: bool = True, rate: Callable[[int], float] | None = None
    ) -> None:
        """Set radius and form of the neighbourhood, and the learning rate of each update."""
        super().__init__(rate)
        self.rho = rho
        self.adaptive = adaptive

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        """One update whose gradient is taken at the worst point near by."""
        self.pace(optimizer)
        return sharpness.sharp_step(model, optimizer, loss, self.rho, self.adaptive)
