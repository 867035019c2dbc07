"""What is measured, on which images: ACC, ASR, RA, leak, DER, detection and filter rates.

Definitions and exclusion rules: ACC on the whole clean test set; ASR and RA on the triggered test
images the label rule counts (all2one and clean-label: those whose true label is not the target;
all2all: all); `asr_all` without the exclusion, biased upward by about 1/C. All are fractions.

Clean and triggered images are shuffled together before a model or a filter is given them: neither
their order nor what stands beside an image in a batch says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Generator, Tensor, nn

from sweeper.core.errors import DivergedError
from sweeper.core.types import Outcome, Role, Samples, Triggered
from sweeper.engine import training
from sweeper.engine.pieces import in_pieces
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Answers, floats

VERSION = 2
"""Part of the key of all that stores a metric: raised when one is computed otherwise. 2: clean and
triggered images shuffled together, for models and filters."""
EVALUATION_BATCH = 1000
"""Images; on a CPU a quarter of them: ResNet-18 a third faster where memory is new to a process."""


Score = Callable[[Tensor], Tensor]
"""uint8 [N, C, H, W] -> float [N] on the CPU, high = triggered."""


def predict(model: nn.Module, inputs: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """Return the predicted labels, int64 [N] on the CPU, of inputs [N, ...]: uint8, or floats.

    Raises:
        DivergedError: A logit is NaN or infinite.
    """
    # Outside inference mode: weights laid out anew within it could never be trained again.
    training.place(model, device, inputs.ndim).eval()
    predictions, finite = [], torch.ones((), dtype=torch.bool, device=device)
    size = EVALUATION_BATCH // 4 if device.type == "cpu" else EVALUATION_BATCH
    if inputs.ndim == 5:  # clips: as many frames
        size = max(1, size // inputs.shape[1])
    with torch.inference_mode(), training.autocast(recipe, device), in_pieces(model):
        for part in inputs.split(size):
            shown = floats(part.to(device))
            if shown.ndim == 4:
                shown = shown.contiguous(memory_format=torch.channels_last)
            logits = model(shown)
            finite &= logits.isfinite().all()
            predictions.append(logits.argmax(1))
    if not finite:
        raise DivergedError("the model's outputs are NaN or infinite")
    return torch.cat(predictions).cpu()


def share(hits: Tensor, counted: Tensor) -> float | None:
    """Return the share of `counted` (bool [N]) that are hits (bool [N]); None of an empty set."""
    total = int(counted.sum())
    return int((hits & counted).sum()) / total if total else None


def scores(score: Score, images: Tensor) -> Tensor:
    """Return a filter's scores of uint8 images [N, C, H, W], in batches; float64 [N] on the CPU."""
    parts = [score(part).detach().cpu().double() for part in images.split(EVALUATION_BATCH)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def together(
    answer: Callable[[Tensor], Tensor], groups: Sequence[Tensor], rng: Generator
) -> list[Tensor]:
    """Ask about groups of inputs [N, ...] shuffled together; the answers [N, ...] of each group."""
    images = torch.cat(list(groups))
    order = torch.randperm(len(images), generator=rng)
    shuffled = answer(images[order])
    answers = torch.empty_like(shuffled)
    answers[order] = shuffled
    return list(answers.split([len(group) for group in groups]))


def evaluate(
    predict: Answers,
    test: Samples,
    triggered: Triggered,
    target: int | None,
    rng: Generator,
    crossed: Samples | None = None,
) -> dict[str, float | int | None]:
    """Measure a model on the clean and the triggered test set, in one pass over both, shuffled.

    Args:
        predict: The model's predictions.
        test: The clean test images that count.
        triggered: The triggered test images with what the attacker wants.
        target: The target label where there is one, for `acc_nontarget`.
        rng: Shuffles.
        crossed: Images whose accuracy is `cross_acc`, see `Attack.cross_set`.

    Returns:
        acc, acc_nontarget, asr, asr_all, ra, leak, n_test, n_triggered, and cross_acc where
        `crossed` is given; a metric without images is None.
    """
    shown = [test, triggered.samples, *([] if crossed is None else [crossed])]
    groups = [samples.inputs for samples in shown]
    on_clean, on_triggered, *on_crossed = together(predict, groups, rng)
    correct, every_image = on_clean == test.labels, torch.ones(len(test), dtype=torch.bool)
    fooled, counts = on_triggered == triggered.labels, triggered.counts
    attacked = bool(counts.any())
    measured = {
        "acc": share(correct, every_image),
        "acc_nontarget": share(correct, every_image if target is None else test.labels != target),
        "asr": share(fooled, counts),
        "asr_all": share(fooled, torch.ones_like(counts)) if attacked else None,
        "ra": share(on_triggered == triggered.true_labels, counts),
        "leak": share(fooled, triggered.leaks),
        "n_test": len(test),
        "n_triggered": int(counts.sum()),
    }
    if crossed is not None:
        hits = on_crossed[0] == crossed.labels
        measured["cross_acc"] = share(hits, torch.ones_like(hits))
    return measured


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
    score: Score, threshold: float | None, test: Samples, triggered: Triggered, rng: Generator
) -> Mapping[str, float | None]:
    """Rates of a filter of triggered inputs on equally many clean and triggered test images.

    Args:
        score: The filter's scores; it is asked once, about both kinds shuffled together.
        threshold: An input is refused where its score exceeds it.
        test: The clean test images.
        triggered: The triggered test images; those that count are used.
        rng: Draws which images of the larger set are used, and shuffles.

    Returns:
        auroc, tpr_at_5 (true positives at 5 % false ones); with a threshold also tpr, fpr, f1.
    """
    groups = [test.images, triggered.images[triggered.counts]]
    count = min(map(len, groups))
    drawn = [group[torch.randperm(len(group), generator=rng)[:count]] for group in groups]
    if not count:
        return {"auroc": None}
    clean, hit = (part.double().numpy() for part in together(score, drawn, rng))
    both = np.concatenate([clean, hit])
    positive = np.arange(2 * count) >= count
    over = hit > np.quantile(clean, 0.95, method="higher")
    rates = {"auroc": auroc(both, positive), "tpr_at_5": float(over.mean())}
    if threshold is not None:
        rates["tpr"] = tpr = float((hit > threshold).mean())
        rates["fpr"] = fpr = float((clean > threshold).mean())
        rates["f1"] = 2 * tpr / (1 + tpr + fpr)
    return rates
