"""SD: training samples told apart by how far their features jump under a transformation.

The first module of D-BR and D-ST (Chen, Wu and Wang, NeurIPS 2022). A network trained briefly
without augmentation learns a trigger first; `L_intra = mean cos(c_k, c_l)` then drives the centres
c of the given classes apart; rotating and shifting an image breaks its trigger, and the feature of
a triggered image moves farther than that of a clean one: `FCT = |h(x) - h(t(x))|^2`. The lowest
scores become D_c, the highest D_p, the rest D_u.

Deviations from the released code, which the preset `released` restores:

- The split is by rank of one set of scores, ties by index: exact sizes. The release takes two
  thresholds from the scores and applies them, ties included, to scores drawn anew.
- One forward pass a step under `L_intra`; the release makes two and updates BatchNorm twice.

Scores are the paper's sum of squares (release: their mean), computed in float32. Of the release's
transformations for ablation, blur and erasing are not offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense, Stage
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, PositiveShare, Several, Some, Whole
from sweeper.core.types import Samples
from sweeper.engine import augment
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net

CLEAN, UNCERTAIN, POISONED = 0, 1, 2
"""Values of `part`: which of D_c, D_u and D_p a training sample is in."""
TRANSFORMS = ("rotate", "translate", "flip", "crop")
FCT_BATCH = 500


def intra_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine similarity of the centres of the classes in a batch, their own counted as 0.

    Args:
        features: float [B, D].
        labels: int64 [B], as given.
    """
    with torch.autocast(features.device.type, enabled=False):
        same_class = (labels[:, None] == labels).to(torch.float32)
        # each sample stands for its part of a class, so nothing is counted
        weights = 1 / same_class.sum(1)
        centres = functional.normalize(same_class @ features.float(), dim=1)
        between = (centres @ centres.T) * (1 - same_class)
        return weights @ between @ weights / weights.sum().square()


def moved(images: Tensor, transforms: Sequence[str], rng: Generator) -> Tensor:
    """Transform each of a batch of images [B, C, H, W], one random draw each, black outside."""
    for name in transforms:
        if name == "rotate":
            images = augment.rotate(images, 180.0, rng)
        elif name == "translate":
            images = augment.translate(images, 0.2, rng)
        elif name == "flip":
            images = images.flip(3)
        else:
            images = augment.crop_flip(images.permute(0, 2, 3, 1), 4, False, rng)
            images = images.permute(0, 3, 1, 2)
    return images


@torch.inference_mode()
def fct(
    model: Net,
    images: Tensor,
    rng: Generator,
    *,
    transforms: Sequence[str] = ("rotate", "translate"),
    draws: int = 1,
) -> Tensor:
    """Feature consistency towards transformations: squared distance the features move.

    Args:
        model: Used in eval mode, and left in it, in float32, on the device of its weights.
        images: uint8 [N, C, H, W].
        rng: A CPU generator for the transformations.
        transforms: Of `TRANSFORMS`, applied in this order.
        draws: Transformations of each image that are averaged.

    Returns:
        float [N] on the CPU; high = suspicious.
    """
    model.eval()
    device, scores = next(model.parameters()).device, []
    for batch in images.split(FCT_BATCH):
        pixels = batch.to(device).float().div_(255)
        features, total = model.features(pixels), torch.zeros(len(batch), device=device)
        for _ in range(draws):
            jump = model.features(moved(pixels, transforms, rng)) - features
            total += jump.flatten(1).square().sum(1)
        scores.append(total / draws)
    return torch.cat(scores).cpu()


def sizes(count: int, alpha_c: float, alpha_p: float) -> tuple[int, int]:
    """How many of `count` samples D_c and D_p have.

    Raises:
        SweepError: One of them would be empty.
    """
    clean, poisoned = int(count * alpha_c + 1e-9), int(count * alpha_p + 1e-9)
    if not clean or not poisoned:
        raise SweepError(
            f"alpha_c {alpha_c:g} and alpha_p {alpha_p:g} of {count} training samples are {clean} "
            f"and {poisoned}: raise the share that is 0"
        )
    return clean, poisoned


def separate(scores: Tensor, alpha_c: float, alpha_p: float) -> Tensor:
    """Split by rank: the `alpha_c` lowest are D_c, the `alpha_p` highest D_p; ties by index.

    Args:
        scores: float [N].
        alpha_c: Share of D_c.
        alpha_p: Share of D_p; both together at most 1.

    Returns:
        `part`, uint8 [N]: CLEAN, UNCERTAIN or POISONED.
    """
    clean, poisoned = sizes(len(scores), alpha_c, alpha_p)
    order = scores.argsort(stable=True)
    part = torch.full((len(scores),), UNCERTAIN, dtype=torch.uint8)
    part[order[:clean]] = CLEAN
    part[order[len(scores) - poisoned :]] = POISONED
    return part


def separate_by_threshold(scores: Tensor, fresh: Tensor, alpha_c: float, alpha_p: float) -> Tensor:
    """Split as released: thresholds from `scores`, applied to `fresh` scores of the same samples.

    Returns:
        `part` as of `separate`; sizes vary, and where the thresholds meet D_c takes all.

    Raises:
        SweepError: D_c or D_p stays empty.
    """
    clean, poisoned = sizes(len(scores), alpha_c, alpha_p)
    ranked = scores.sort().values
    part = torch.full((len(scores),), UNCERTAIN, dtype=torch.uint8)
    part[fresh >= ranked[len(scores) - poisoned]] = POISONED
    part[fresh <= ranked[clean]] = CLEAN
    if not (part == POISONED).any() or not (part == CLEAN).any():
        raise SweepError(
            "separation: thresholds leave D_c or D_p empty, as too many scores are equal: use "
            "`separation: rank`"
        )
    return part


class _Sensitise(Hooks):
    """Cross-entropy for the first epochs, then `intra_loss` alone; the head then stays."""

    def __init__(self, epochs: int, two_passes: bool) -> None:
        self.epochs = epochs
        self.two_passes = two_passes

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loss of the step."""
        if batch.epoch < self.epochs:
            return super().loss(model, batch, recipe)
        assert isinstance(model, Net)
        if self.two_passes:
            with torch.no_grad():
                model(batch.inputs)
        return intra_loss(model.features(batch.inputs), batch.labels)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the separation, which D-BR and D-ST have beside their own."""

    train_epochs: Whole = 2
    """SD: epochs of cross-entropy without augmentation."""
    intra_epochs: Whole = 10
    """SD: epochs of the intra-class loss that follow; many steps drive the features of a narrow
    network to 0, where scores tie and D_c and D_p are draws."""
    sd_lr: LearningRate = 0.01
    """SD: learning rate of both."""
    sd_batch: Several = 128
    """SD: images of a step."""
    alpha_c: PositiveShare = 0.2
    """SD: share of the training set taken for clean; below the true share. Larger shares are closer
    to the data, but may hold poisoned samples."""
    alpha_p: PositiveShare = 0.05
    """SD: share of the training set taken for poisoned; below the true share."""
    transforms: Some[str] = ("rotate", "translate")
    """SD: what images are moved by, in order, of rotate, translate, flip, crop."""
    draws: Count = 1
    """SD: random transformations of each image the score averages."""
    separation: str = "rank"
    """SD: rank (exact sizes) | threshold (as released, on scores drawn anew)."""
    two_passes: bool = False
    """SD: whether a step under the intra-class loss updates BatchNorm twice, as released."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Numbers do not fit together, or a word is unknown.
        """
        if self.alpha_c + self.alpha_p > 1:
            raise SweepError("alpha_c and alpha_p: their sum is above 1: lower one")
        if not self.train_epochs + self.intra_epochs:
            raise SweepError("train_epochs and intra_epochs are both 0: train for one epoch")
        if unknown := sorted({*self.transforms} - {*TRANSFORMS}):
            raise SweepError(f"transforms: {unknown[0]!r} is not one of {', '.join(TRANSFORMS)}")
        if self.separation not in ("rank", "threshold"):
            raise SweepError(f"separation: {self.separation!r} is not one of rank, threshold")


@dataclass(frozen=True, kw_only=True)
class SD(Options, Stage):
    """Training, scores and split; leaves `scores` float [N] and `part` uint8 [N]."""

    name = "sd"
    sees = frozenset({"train"})

    def run(self, case: Case) -> dict[str, Tensor]:
        """Train a fresh model without augmentation, score the training set, split it."""
        data = case.train
        sizes(len(data), self.alpha_c, self.alpha_p)
        model = self.train(case, data)

        def score(name: str) -> Tensor:
            rng = case.rng(name)
            return fct(model, data.images, rng, transforms=self.transforms, draws=self.draws)

        scores = score("fct")
        if self.separation == "threshold":
            part = separate_by_threshold(scores, score("fresh fct"), self.alpha_c, self.alpha_p)
        else:
            part = separate(scores, self.alpha_c, self.alpha_p)
        return {"scores": scores, "part": part}

    def train(self, case: Case, data: Samples) -> Net:
        """The network whose features the scores are taken from."""
        model = case.new_model()
        case.fit(
            model,
            data,
            hooks=_Sensitise(self.train_epochs, self.two_passes),
            epochs=self.train_epochs + self.intra_epochs,
            batch=self.sd_batch,
            lr=self.sd_lr,
            momentum=0.9,
            nesterov=False,
            weight_decay=5e-4,
            schedule="cosine",
            period=100,
            warmup=0.0,
            label_smoothing=0.0,
            crop=0,
            flip=False,
            rotation=0.0,
            erase=0.0,
        )
        return model


@dataclass(frozen=True, kw_only=True)
class Separated(Options, Defense):
    """A defense that starts from the separation, a cell of its own."""

    def stage(self) -> Stage:
        """The SD separation with these options."""
        return SD(**{item.name: getattr(self, item.name) for item in fields(Options)})
