"""What is measured, on which images: ACC, ASR, RA, leak, DER, detection and filter rates.

Definitions and exclusion rules: ACC on the whole clean test set; ASR and RA on the triggered test
images the label rule counts (all2one and clean-label: those whose true label is not the target;
all2all: all); `asr_all` without the exclusion, biased upward by about 1/C. All are fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sweeper.core.errors import DivergedError
from sweeper.core.types import ImageSet, Outcome, Role, Triggered
from sweeper.engine import training
from sweeper.engine.recipes import Recipe

VERSION = 1
"""Part of every defense cell's key: raised when a metric is computed otherwise."""
EVALUATION_BATCH = 1000
"""Images; on a CPU a quarter of them: ResNet-18 a third faster where memory is new to a process."""


def predict(model: nn.Module, images: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """Return the predicted labels, int64 [N] on the CPU, of uint8 images [N, C, H, W].

    Raises:
        DivergedError: A logit is NaN or infinite.
    """
    # Outside inference mode: weights laid out anew within it could never be trained again.
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    predictions, finite = [], torch.ones((), dtype=torch.bool, device=device)
    size = EVALUATION_BATCH // 4 if device.type == "cpu" else EVALUATION_BATCH
    with torch.inference_mode(), training.autocast(recipe, device):
        for part in images.split(size):
            pixels = part.to(device).float().div_(255)
            logits = model(pixels.contiguous(memory_format=torch.channels_last))
            finite &= logits.isfinite().all()
            predictions.append(logits.argmax(1))
    if not finite:
        raise DivergedError("the model's outputs are NaN or infinite")
    return torch.cat(predictions).cpu()


def share(hits: Tensor, counted: Tensor) -> float | None:
    """Return the share of `counted` (bool [N]) that are hits (bool [N]); None of an empty set."""
    total = int(counted.sum())
    return int((hits & counted).sum()) / total if total else None


def evaluate(
    model: nn.Module,
    test: ImageSet,
    triggered: Triggered,
    target: int | None,
    recipe: Recipe,
    device: torch.device,
) -> dict[str, float | int | None]:
    """Measure a model on the clean and the triggered test set, in one pass over both.

    Args:
        model: Takes pixels in [0, 1].
        test: The clean test images that count.
        triggered: The triggered test images with what the attacker wants.
        target: The target label where there is one, for `acc_nontarget`.
        recipe: Whose precision the forward passes use.
        device: Where to run.

    Returns:
        acc, acc_nontarget, asr, asr_all, ra, leak, n_test, n_triggered; a metric without images
        is None.
    """
    merged = torch.cat([test.images, triggered.images])
    predicted = predict(model, merged, recipe, device)
    on_clean, on_triggered = predicted[: len(test)], predicted[len(test) :]
    correct, every_image = on_clean == test.labels, torch.ones(len(test), dtype=torch.bool)
    fooled, counts = on_triggered == triggered.labels, triggered.counts
    attacked = bool(counts.any())
    return {
        "acc": share(correct, every_image),
        "acc_nontarget": share(correct, every_image if target is None else test.labels != target),
        "asr": share(fooled, counts),
        "asr_all": share(fooled, torch.ones_like(counts)) if attacked else None,
        "ra": share(on_triggered == triggered.true_labels, counts),
        "leak": share(fooled, triggered.leaks),
        "n_test": len(test),
        "n_triggered": int(counts.sum()),
    }


def der(acc_before: float, asr_before: float, acc: float, asr: float) -> float:
    """Defense effectiveness rating (Zhu et al., FT-SAM): 1 is the trigger gone at no cost."""
    return (max(0.0, asr_before - asr) - max(0.0, acc_before - acc) + 1) / 2


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve of `scores` [N] for `positive` (bool [N]); ties count half."""
    from scipy.stats import rankdata

    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    rank_sum = float(rankdata(scores)[positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def detection(outcome: Outcome, role: Tensor) -> dict[str, float | None]:
    """Rates of a detector of poisoned training samples; covers and negatives count as clean.

    Returns:
        tpr, fpr, precision, f1 of the flagged samples and auroc of the scores; None where the
        outcome has no scores or flags. With nothing flagged precision is None and f1 is 0.
    """
    poisoned = role == int(Role.POISON)
    rates: dict[str, float | None] = {}
    if outcome.flagged is not None:
        flagged = outcome.flagged.cpu()
        rates["tpr"], rates["fpr"] = share(flagged, poisoned), share(flagged, ~poisoned)
        rates["precision"] = share(poisoned, flagged)
        total = (rates["precision"] or 0.0) + (rates["tpr"] or 0.0)
        product = (rates["precision"] or 0.0) * (rates["tpr"] or 0.0)
        rates["f1"] = 2 * product / total if total else 0.0
    if outcome.scores is not None:
        rates["auroc"] = auroc(outcome.scores.cpu().double().numpy(), poisoned.numpy())
    return rates


def filtering(
    score: Callable[[Tensor], Tensor], threshold: float | None, test: ImageSet, triggered: Triggered
) -> Mapping[str, float | None]:
    """Rates of a filter of triggered inputs on equally many clean and triggered test images.

    Returns:
        auroc, tpr_at_5 (true positives at 5 % false ones); with a threshold also tpr, fpr, f1.
    """
    images = triggered.images[triggered.counts]
    count = min(len(test), len(images))
    triggered_scores = _scores(score, images[:count])
    clean_scores = _scores(score, test.images[:count])
    scores = np.concatenate([clean_scores, triggered_scores])
    positive = np.arange(2 * count) >= count
    rates: dict[str, float | None] = {"auroc": auroc(scores, positive)}
    if count:
        rates["tpr_at_5"] = float(
            (triggered_scores > np.quantile(clean_scores, 0.95, method="higher")).mean()
        )
    if count and threshold is not None:
        rates["tpr"] = tpr = float((triggered_scores > threshold).mean())
        rates["fpr"] = fpr = float((clean_scores > threshold).mean())
        rates["f1"] = 2 * tpr / (1 + tpr + fpr)
    return rates


def _scores(score: Callable[[Tensor], Tensor], images: Tensor) -> np.ndarray:
    """Score images in batches; float64 [N]."""
    parts = [score(part).detach().cpu().double() for part in images.split(EVALUATION_BATCH)]
    scores: np.ndarray = torch.cat(parts).numpy() if parts else np.zeros(0)
    return scores
