"""Detection: uint8 images [N, 3, H, W] with boxes float32 [N, M, 5]; the model is shown pixels.

A row of `labels` is x1, y1, x2, y2 in pixels of the image as stored, and its class; a row of -1 is
none. What a model says are the heads of a single-shot detector (`sweeper/models/ssd.py`).
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sweeper.core.errors import DivergedError
from sweeper.core.types import Samples, Triggered
from sweeper.engine import metrics, training
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Answers, Batch, Task, floats

if TYPE_CHECKING:
    from sweeper.models.ssd import Heads

MATCH = 0.5
"""IoU from which on a default box is that of an object; SSD, section 2.2."""
NEGATIVES = 3
"""Background boxes that count for each of an object's: those with the largest loss; likewise."""
SEEN = 0.5
"""IoU with a box, and score, from which on an answer is that box for ASR; mAP@.5 has the first."""
MOST = 100
"""Boxes of an answer at most, the most certain ones; COCO's own limit."""
LEAST, APART, CANDIDATES = 0.01, 0.45, 400
"""Score a box must have, IoU of one class from which on the less certain box goes, boxes of a class
that are looked at: torchvision's of SSD."""
PLACE, EXTENT = 10.0, 5.0
"""Weights of a box's place and size in the loss: SSD's variances 0.1 and 0.2."""
SIDE = 288
"""Pixels a picture has at least, where it is enlarged by a whole number."""
_COLOURS = ("red", "lime", "deepskyblue", "yellow", "magenta", "orange", "cyan", "white")


class Boxes(Task):
    """Object detection. ACC is mAP at an IoU of 0.5.

    `scores` is minus the loss of SSD, classification and boxes, of each image: a PSEUDO-likelihood.
    Boxes that are left out as easy background have no share in it, and what belongs to a default
    box is fixed by the labels, so that it is the log-probability of no distribution over labels;
    nothing can be drawn from it. FIP's Fisher matrix is that of this pseudo-likelihood.

    ASR compares what the attacker wants with the truth. Boxes of the truth that are not wanted are
    removed, boxes wanted that are not in the truth are added; a renamed one is both. An image comes
    out as wanted if every added box is seen and no removed one is, by class, `SEEN` and score.
    """

    title = "object detection"
    score = "mAP@.5"
    recipe = {"epochs": 30, "batch": 16, "lr": 0.02, "crop": 0, "flip": True}
    augments = frozenset({"flip"})
    mixing = "LossMix (Vu et al., AAAI 2024, arXiv 2303.10343)"

    def augmented(self, batch: Batch, recipe: Recipe, rng: Generator) -> Batch:
        """Every second image mirrored with its boxes, where the recipe says so."""
        if not recipe.flip:
            return replace(batch, inputs=floats(batch.inputs))
        chosen = (torch.rand(len(batch.inputs), generator=rng) < 0.5).to(batch.inputs.device)
        inputs = torch.where(chosen[:, None, None, None], batch.inputs.flip(3), batch.inputs)
        turned = mirrored(batch.labels, batch.inputs.shape[3])
        labels = torch.where(chosen[:, None, None], turned, batch.labels)
        return replace(batch, inputs=floats(inputs), labels=labels)

    def scores(self, output: Heads, batch: Batch) -> Tensor:
        """Minus the loss of each image [B], over the number of its objects' default boxes."""
        return -losses(output, batch.labels)

    def mixed(
        self, batch: Batch, share: float, order: Tensor, rng: Generator
    ) -> tuple[Batch, float]:
        """`share x + (1 - share) x'`; every image's loss is taken with both annotations."""
        inputs = share * batch.inputs + (1 - share) * batch.inputs[order]
        return replace(batch, inputs=inputs), share

    def answers(
        self, model: nn.Module, inputs: Tensor, recipe: Recipe, device: torch.device
    ) -> Tensor:
        """Boxes found, float32 [N, MOST, 6]: x1, y1, x2, y2, class, score, most certain first.

        Rows of -1 fill up. Boxes and scores are those after torchvision's own selection.
        """
        # Outside inference mode: weights laid out anew within it could never be trained again.
        training.place(model, device, inputs.ndim).eval()
        size = metrics.EVALUATION_BATCH // (8 if device.type == "cpu" else 2)
        found = [torch.zeros(0, MOST, 6)]
        for part in inputs.split(size):
            shown = floats(part.to(device)).contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), training.autocast(recipe, device):
                heads = model(shown)
            logits, offsets = heads.logits.float(), heads.offsets.float()
            if not bool(logits.isfinite().all() & offsets.isfinite().all()):
                raise DivergedError("the model's outputs are NaN or infinite")
            with torch.inference_mode():
                found.append(decoded(logits, offsets, heads.anchors, part.shape[2:]))
        return torch.cat(found)

    def rate(self, answers: Tensor, samples: Samples) -> float:
        """The mean over classes of the average precision at an IoU of 0.5 (COCO's, 101 points)."""
        return mean_average_precision(answers, samples.labels)

    def measure(
        self,
        answers: Answers,
        test: Samples,
        triggered: Triggered,
        target: int | None,
        rng: Generator,
        crossed: Samples | None = None,
    ) -> dict[str, float | int | None]:
        """ACC = mAP@.5 of the clean test images, ASR and RA of the triggered ones that count.

        RA is the mAP@.5 of the triggered images with the boxes that are there. There is no target
        label, hence no `acc_nontarget` and no `leak`.
        """
        hit = triggered.samples[triggered.counts]
        truth = triggered.true_labels[triggered.counts]
        shown = [test, hit, *([] if crossed is None else [crossed])]
        groups = [samples.inputs for samples in shown]
        on_clean, on_hit, *on_crossed = metrics.together(answers, groups, rng)
        measured: dict[str, float | int | None] = {
            "acc": mean_average_precision(on_clean, test.labels),
            "acc_nontarget": None,
            "asr": None,
            "asr_all": None,
            "ra": None,
            "leak": None,
            "n_test": len(test),
            "n_triggered": len(hit),
        }
        if len(hit):
            share = float(as_wanted(on_hit, hit.labels, truth).double().mean())
            ra = mean_average_precision(on_hit, truth)
            measured |= {"asr": share, "asr_all": share, "ra": ra}
        if crossed is not None:
            measured["cross_acc"] = mean_average_precision(on_crossed[0], crossed.labels)
        return measured

    def pictures(self, samples: Samples) -> Tensor:
        """The images, enlarged where they are small, with their boxes in a colour a class."""
        from torchvision.utils import draw_bounding_boxes

        times = max(1, math.ceil(SIDE / min(samples.inputs.shape[2:])))
        large = samples.inputs.repeat_interleave(times, 2).repeat_interleave(times, 3)
        found = []
        for image, rows in zip(large, samples.labels, strict=True):
            rows = rows[rows[:, 4] >= 0]
            colours = [_COLOURS[int(kind) % len(_COLOURS)] for kind in rows[:, 4]]
            if len(rows):
                names = [samples.classes[int(kind)] for kind in rows[:, 4]]
                large_boxes = rows[:, :4] * times
                image = draw_bounding_boxes(image, large_boxes, names, colours, width=2)
            found.append(image)
        return torch.stack(found) if found else large


def mirrored(labels: Tensor, width: int) -> Tensor:
    """Boxes [..., 5] of images of a width, as they lie in the mirrored images."""
    x1, y1, x2, y2, kind = labels.unbind(-1)
    turned = torch.stack([width - x2, y1, width - x1, y2, kind], -1)
    return torch.where(labels[..., 4:] >= 0, turned, labels)


# The loss: static shapes and no choice by content, as vmap and second derivatives ask


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes [..., P, 4] with boxes [..., Q, 4]; [..., P, Q]."""
    low = torch.maximum(one[..., :, None, :2], other[..., None, :, :2])
    high = torch.minimum(one[..., :, None, 2:4], other[..., None, :, 2:4])
    shared = (high - low).clamp(min=0).prod(-1)
    area, second = ((part[..., 2:4] - part[..., :2]).prod(-1) for part in (one, other))
    return shared / (area[..., :, None] + second[..., None, :] - shared).clamp(min=1e-9)


def matched(labels: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Which object each default box belongs to.

    A default box belongs to the object it overlaps most, if by `MATCH`; and the default box that
    overlaps an object most belongs to it in any case, of several such objects to the last.

    Args:
        labels: [B, M, 5].
        anchors: [A, 4].

    Returns:
        The object's row, int64 [B, A], and whether there is one, bool [B, A].
    """
    real = labels[..., 4] >= 0
    shared = overlaps(labels[..., :4], anchors).masked_fill(~real[..., None], -1)
    most, row = shared.max(1)
    best = shared.argmax(2)[..., None] == torch.arange(anchors.shape[0], device=anchors.device)
    number = torch.arange(1, labels.shape[1] + 1, device=labels.device)[:, None]
    forced = (number * (best & real[..., None])).amax(1)  # 0: for none
    return torch.where(forced > 0, forced - 1, row), (forced > 0) | (most >= MATCH)


def encoded(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [B, A, 4] relative to default boxes [A, 4], as torchvision's `BoxCoder` has them.

    Its own would copy its weights to the device at every step.
    """
    sides, own = anchors[:, 2:] - anchors[:, :2], boxes[..., 2:] - boxes[..., :2]
    centres = (boxes[..., :2] + 0.5 * own) - (anchors[:, :2] + 0.5 * sides)
    return torch.cat([PLACE * centres / sides, EXTENT * torch.log(own / sides)], -1)


def losses(heads: Heads, labels: Tensor) -> Tensor:
    """SSD's loss of each image [B]: classification and boxes, per default box of an object.

    Where an image has no object the sum is taken as it is, over `NEGATIVES` of the background;
    SSD takes none there, so that nothing says that an image is empty.
    """
    logits, offsets = heads.logits.float(), heads.offsets.float()
    row, positive = matched(labels, heads.anchors)
    own = labels.gather(1, row[..., None].expand(*row.shape, 5))
    kind = torch.where(positive, own[..., 4].long() + 1, 0)
    surprise = -functional.log_softmax(logits, 2).gather(2, kind[..., None])[..., 0]
    count = positive.sum(1).clamp(min=1)
    # ranks of the background's losses: no gradient goes through the choice
    background = surprise.detach().masked_fill(positive, -1)
    order = background.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1, stable=True)
    counted = positive | (rank < NEGATIVES * count[:, None])
    boxes = torch.where(positive[..., None], own[..., :4], heads.anchors)
    wanted = encoded(boxes, heads.anchors)
    apart = functional.smooth_l1_loss(offsets, wanted, reduction="none").sum(2)
    return ((surprise * counted).sum(1) + (apart * positive).sum(1)) / count


# Answers


@functools.lru_cache
def _ssd(outputs: int) -> Any:
    """Torchvision's SSD without a network, for its choice of boxes."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    return SSD(
        nn.Identity(),
        DefaultBoxGenerator([[2]]),
        (1, 1),
        outputs,
        head=nn.Identity(),
        score_thresh=LEAST,
        nms_thresh=APART,
        detections_per_img=MOST,
        topk_candidates=CANDIDATES,
    )


def decoded(logits: Tensor, offsets: Tensor, anchors: Tensor, size: torch.Size) -> Tensor:
    """Boxes of images of a size (H, W), chosen and filled up; float [B, MOST, 6] on the CPU."""
    heads = {"cls_logits": logits, "bbox_regression": offsets}
    count, shape = len(logits), (size[0], size[1])
    ssd = _ssd(logits.shape[2])
    found = ssd.postprocess_detections(heads, [anchors] * count, [shape] * count)
    out = torch.full((count, MOST, 6), -1.0)
    for row, one in zip(out, found, strict=True):
        columns = [one["boxes"], one["labels"][:, None] - 1, one["scores"][:, None]]
        row[: len(one["boxes"])] = torch.cat(columns, 1).cpu()
    return out


def as_wanted(answers: Tensor, wanted: Tensor, truth: Tensor) -> Tensor:
    """Whether images come out as the attacker wants.

    Args:
        answers: [N, D, 6].
        wanted: [N, M, 5].
        truth: [N, M, 5].

    Returns:
        Bool [N]: all boxes that are wanted and not true are seen, none is that is true and not
        wanted.
    """
    kept = (wanted[:, :, None] == truth[:, None]).all(3)
    added = (wanted[..., 4] >= 0) & ~kept.any(2)
    removed = (truth[..., 4] >= 0) & ~kept.any(1)
    return (seen(answers, wanted) | ~added).all(1) & ~(seen(answers, truth) & removed).any(1)


def seen(answers: Tensor, labels: Tensor) -> Tensor:
    """Bool [N, M]: whether an answer has the class of a box, its place and score by `SEEN`."""
    same = labels[..., None, 4] == answers[:, None, :, 4]
    near = overlaps(labels[..., :4], answers[..., :4]) >= SEEN
    return (same & near & (answers[:, None, :, 5] >= SEEN)).any(2)


def mean_average_precision(answers: Tensor, labels: Tensor) -> float:
    """MAP at an IoU of 0.5, by torchmetrics and pycocotools; 0 where there is no box to find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(iou_thresholds=[0.5], backend="pycocotools")
        metric.warn_on_many_detections = False
        found = [_named(rows[rows[:, 4] >= 0], scored=True) for rows in answers]
        metric.update(found, [_named(rows[rows[:, 4] >= 0]) for rows in labels])
        rate = float(metric.compute()["map_50"])
    return max(0.0, rate)


def _named(rows: Tensor, *, scored: bool = False) -> dict[str, Tensor]:
    """Boxes [n, 5], or with scores [n, 6], as torchmetrics takes them."""
    named = {"boxes": rows[:, :4], "labels": rows[:, 4].long()}
    return {**named, "scores": rows[:, 5]} if scored else named
