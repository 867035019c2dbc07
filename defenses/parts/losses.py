"""The loss of every training sample, and the samples that have the lowest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case
from sweeper.core.errors import SweepError
from sweeper.core.types import Samples


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


@torch.inference_mode()
def losses_of(
    case: Case,
    model: nn.Module,
    data: Samples,
    loss: Callable[[Tensor, Tensor], Tensor] = _entropy,
) -> Tensor:
    """Loss of each image under its label, in the modes the model is in; float [N] on the CPU.

    Args:
        case: Where, and at what precision.
        model: On the case's device.
        data: Images and labels.
        loss: (float [B, K] logits, int64 [B] labels) -> float [B]; default cross-entropy.
    """
    losses = []
    with case.autocast():
        for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True):
            logits = model(images.to(case.device).float().div_(255)).float()
            losses.append(loss(logits, labels.to(case.device)))
    return torch.cat(losses).cpu()


def lowest(losses: Tensor, share: float, option: str = "isolate") -> Tensor:
    """Which samples have the lowest losses, rounded down, ties by index; bool [N].

    Raises:
        SweepError: There are none; `option` is what the user is told to raise.
    """
    count = int(share * len(losses) + 1e-9)
    if not count:
        raise SweepError(f"{option} {share:g} of {len(losses)} training samples is none: raise it")
    selected = torch.zeros(len(losses), dtype=torch.bool)
    selected[losses.argsort(stable=True)[:count]] = True
    return selected
