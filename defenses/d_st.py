"""D-ST: secure training by semi-supervised contrast (Chen, Wu and Wang, NeurIPS 2022).

The defender sees the poisoned training set with its labels, and nothing else. After the SD stage
(`parts/sd.py`) an encoder is trained from scratch on two views of every image: samples held to be
clean (D_c) attract those of their label, all others only their own second view (SS-CTL):
`-mean_{p in P} ln(exp(z z_p / T) / sum_{a != z} exp(z z_a / T))`, P what z attracts. Then the
encoder is frozen and a linear head learns D_c and, with a small weight, unlearns D_p (MCE):
`CE(D_c) - lam CE(D_p)`.

Deviations:

- `positives`: in the paper a clean sample attracts clean samples; in the released code all of its
  label, among them uncertain and poisoned ones. The paper's form is the default.
- The release keeps the head of best test accuracy; here the last epoch is taken.
- Mirroring is left out where the victim's recipe has none (digits, signs, a corner trigger).
- The warm-up takes at most half of the epochs, so that a shortened schedule still has a cosine.
- A batch without a member of D_c or D_p drops that term of MCE; the release divides by zero.

The preset `released` restores what concerns positives and SD. The release's encoder has a 3x3 stem
without pooling, also where its victim pools (CIFAR-10); so has that of `released`.

`head_lr` suits the small averages a ResNet has for features; tiny has maxima, on which 5 diverges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from defenses.base import Case
from defenses.parts.sd import CLEAN, POISONED, UNCERTAIN, Separated
from defenses.parts.simclr import TwoViews, view
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, Positive, Several, Whole
from sweeper.core.types import Outcome
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net


def ss_ctl(
    views: Tensor,
    labels: Tensor,
    part: Tensor,
    *,
    temperature: float = 0.1,
    base: float = 0.07,
    positives: str = "paper",
) -> Tensor:
    """The semi-supervised contrastive loss of a batch, a mean over its 2 B anchors.

    Args:
        views: float [2 B, D] of unit length; rows i and i + B are the views of image i.
        labels: int64 [B], as given.
        part: uint8 [B], CLEAN, UNCERTAIN or POISONED; only CLEAN anchors use labels.
        temperature: Divides similarities.
        base: The loss is scaled by temperature / base.
        positives: paper (clean samples attract clean ones) | release (all of their label).
    """
    with torch.autocast(views.device.type, enabled=False):
        count, views = len(labels), views.float()
        diagonal = torch.eye(2 * count, dtype=torch.bool, device=views.device)
        labels, clean = labels.repeat(2), (part == CLEAN).repeat(2)
        same_class = (labels[:, None] == labels) & clean[:, None]
        if positives == "paper":
            same_class &= clean
        pairs = (same_class | diagonal.roll(count, 0)) & ~diagonal
        similarity = (views @ views.T / temperature).masked_fill(diagonal, float("-inf"))
        log_probs = similarity.log_softmax(1).masked_fill(diagonal, 0)
        return -(temperature / base) * ((log_probs * pairs).sum(1) / pairs.sum(1)).mean()


def mce(logits: Tensor, labels: Tensor, part: Tensor, weight: float) -> Tensor:
    """Mean cross-entropy of the CLEAN samples of a batch, less `weight` times that of POISONED."""
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    clean, poisoned = (
        (losses * (part == subset)).sum() / (part == subset).sum().clamp(min=1)
        for subset in (CLEAN, POISONED)
    )
    return clean - weight * poisoned


@dataclass(frozen=True, kw_only=True)
class DST(Separated):
    """SD, then an encoder by SS-CTL and a head by MCE."""

    epochs: Count = 200
    """Epochs of the encoder."""
    lr: LearningRate = 0.5
    """Peak learning rate of the encoder (SGD, momentum 0.9, cosine to a thousandth of it)."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty on the encoder."""
    batch: Several = 512
    """Images of a step, of the encoder and of the head."""
    warmup_epochs: Whole = 10
    """Epochs over which the encoder's learning rate rises from 0.01 where `batch` is above 256."""
    temperature: Positive = 0.1
    """Temperature of the contrast."""
    base_temperature: Positive = 0.07
    """The contrastive loss is scaled by temperature / base_temperature."""
    positives: str = "paper"
    """paper | release: whom a clean sample attracts, clean ones or all of its label."""
    head_epochs: Count = 10
    """Epochs of the head."""
    head_lr: LearningRate = 5.0
    """Learning rate of the head (constant)."""
    unlearn: NonNegative = 0.001
    """Weight of D_p in the head's loss (the paper's lambda_p)."""
    stem: Literal["cifar", "cifar-pool", "imagenet"] | None = field(
        default=None, metadata={"added": True}
    )
    """Stem of the encoder, where the architecture has that option; default: the victim's."""

    title = "D-ST"
    paper = "Chen, Wu and Wang, NeurIPS 2022"
    kind = "secure training"
    sees = frozenset({"train"})
    presets = {
        "released": {
            "positives": "release",
            "separation": "threshold",
            "two_passes": True,
            "stem": "cifar",
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A word is unknown.
        """
        super().__post_init__()
        if self.positives not in ("paper", "release"):
            raise SweepError(f"positives: {self.positives!r} is not one of paper, release")

    def defend(self, case: Case) -> Outcome:
        """Train encoder and head of a fresh model."""
        scores, part = case.state["scores"], case.state["part"]
        model = case.new_model(**({"stem": self.stem} if self.stem else {}))
        certain = part != UNCERTAIN
        common: dict[str, Any] = {
            "batch": self.batch,
            "momentum": 0.9,
            "nesterov": False,
            "schedule": "constant",
            "warmup": 0.0,
            "crop": 0,
            "flip": False,
            "rotation": 0.0,
            "erase": 0.0,
        }
        flip = case.recipe.flip
        contrast_losses = case.fit(
            model,
            case.train,
            name="encoder",
            hooks=_Contrast(self, part, flip, case.rng("projection")),
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            **common,
        )
        head_losses = case.fit(
            model,
            case.train[certain],
            name="head",
            hooks=_Mixed(part[certain], flip, self.unlearn),
            epochs=self.head_epochs,
            lr=self.head_lr,
            weight_decay=0.0,
            **common,
        )
        model.requires_grad_(True)
        notes = {
            "clean": int((part == CLEAN).sum()),
            "poisoned": int((part == POISONED).sum()),
            "contrast_loss": contrast_losses,
            "head_loss": head_losses,
        }
        return Outcome(model=model, scores=scores, flagged=part == POISONED, notes=notes)

    def rate(self, progress: float) -> float:
        """Learning rate of the encoder after this many epochs, counted from 0 in steps."""
        warm = min(self.warmup_epochs, self.epochs // 2) if self.batch > 256 else 0
        floor = self.lr * 1e-3

        def cosine(epoch: int) -> float:
            return floor + (self.lr - floor) * (1 + math.cos(math.pi * epoch / self.epochs)) / 2

        if progress < warm:
            initial = min(0.01, self.lr)
            return initial + (cosine(warm) - initial) * progress / warm
        return cosine(int(progress) + 1)


class _Contrast(TwoViews):
    """Trains the trunk by SS-CTL."""

    def __init__(self, options: DST, part: Tensor, flip: bool, rng: Generator) -> None:
        super().__init__(flip, rng)
        self.options = options
        self.part = part
        self.steps = len(training.order(len(part), options.batch, torch.Generator()))
        self.progress = 0.0

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Make the projection head."""
        super().start(model, device)
        self.part = self.part.to(device)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """Two views, one after the other."""
        self.progress = batch.step / self.steps
        return super().augmented(batch, rng)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """SS-CTL."""
        return ss_ctl(
            self.projected(model, batch),
            batch.labels,
            self.part[batch.index],
            temperature=self.options.temperature,
            base=self.options.base_temperature,
            positives=self.options.positives,
        )

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any) -> Tensor:
        """One update at the encoder's own learning rate."""
        for group in optimizer.param_groups:
            group["lr"] = self.options.rate(self.progress)
        return super().step(model, optimizer, loss)


class _Mixed(Hooks):
    """Trains the head on the frozen trunk, by MCE."""

    def __init__(self, part: Tensor, flip: bool, weight: float) -> None:
        self.part = part
        self.flip = flip
        self.weight = weight

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Freeze the trunk."""
        assert isinstance(model, Net)
        model.trunk.requires_grad_(False)
        self.part = self.part.to(device)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """One view."""
        return replace(batch, inputs=view(batch.inputs, self.flip, rng))

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """MCE on the features of the trunk in eval mode."""
        assert isinstance(model, Net)
        model.trunk.eval()
        logits = model.classifier(model.features(batch.inputs))
        return mce(logits, batch.labels, self.part[batch.index], self.weight)
