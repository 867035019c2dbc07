"""Neural Cleanse (Wang et al., S&P 2019): a trigger for every class, and unlearning of the small.

The defender sees the model and a few clean images. For each class t a mask m and a pattern p are
learned that move clean images to it, `min CE(f((1 - m) x + m p), t) + lam |m|_1`; a class that
needs an abnormally small mask is a target. The model is then fine-tuned with the triggers of such
classes on a share of the images, labels true. Detection is in the notes (norms, anomaly index,
flagged); where no class is flagged the model comes back as it was. It needs about six classes, and
a small trigger for one target: blended or warped triggers and all-to-all evade it.

Deviations, each with its reason:

- A class whose trigger never reaches `success` has no norm: it is not flagged and no part of the
  median. The released script takes the norm of whatever mask came last.
- Only small masks are flagged; the two-sided index would flag a large one.
- Norms are those of the real-valued masks; the release measures them after 8-bit rounding.
- Inversion runs for 60 short epochs (release: 1,000 at most, `paper`), without augmentation.
- All flagged classes are unlearned at once, each patched image with one of their triggers, for as
  many of 10 passes as a hold-out allows within `tau` (fair rule H; paper: one pass; BackdoorBench:
  100, and its saved network is the one before the repair). Triggers are learned on all images.
- All classes are inverted side by side on the same batches, from starts of their own; one that
  has ended leaves its group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.accept import last_within
from defenses.parts.mad import anomaly, outliers
from defenses.parts.passes import PLAIN, Lasting, passes
from sweeper.core.errors import SweepError
from sweeper.core.options import (
    CEILING,
    Count,
    LearningRate,
    NonNegative,
    Positive,
    PositiveShare,
    Share,
    Some,
    Whole,
)
from sweeper.core.types import Outcome, Samples
from sweeper.engine import training
from sweeper.engine.training import Batch
from sweeper.models.base import Net

INSIDE = 1 - 1e-6
"""Starts are kept this far from 0 and 1, where the inverse of tanh is infinite."""


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Defense):
    """Trigger inversion, detection by the norms of the masks, unlearning."""

    epochs: Whole = 60
    """Epochs of the inversion, at most."""
    steps: Count = 31
    """Batches of such an epoch, drawn with replacement."""
    batch: Count = 32
    """Images of a batch."""
    inversion_lr: LearningRate = 0.1
    """Learning rate of the inversion (Adam, betas 0.5 and 0.9)."""
    success: PositiveShare = 0.99
    """Share of an epoch's images that must be called the class."""
    weight: Positive = 1e-3
    """First weight of the mask's norm, after `patience` successes without it."""
    patience: Count = 5
    """Successes, or failures, in a row after which that weight is changed."""
    multiplier: Annotated[float, Field(gt=1, le=CEILING)] = 2.0
    """Factor by which it rises; it falls by this to the power of 1.5."""
    stale: Whole = 25
    """Epochs without a smaller mask after which a class ends, once its weight rose and fell."""
    classes: Some[Whole] | None = None
    """Classes to invert; default: all."""
    group: Count = 10
    """Classes inverted at a time; changes no more than rounding."""
    theta: NonNegative = 2.0
    """Anomaly index above which a small mask is flagged."""
    share: Share = 0.2
    """Share of the images that carry a trigger while it is unlearned."""
    tune_epochs: Whole = 10
    """Passes of the unlearning, at most; 0: detection alone."""
    lr: LearningRate = 0.01
    """Learning rate of the unlearning."""
    tune_batch: Count = 128
    """Images of a step of it."""
    tau: Share | None = 0.03
    """Hold-out accuracy it may cost, absolute, at least two images; null: all passes are run."""

    title = "Neural Cleanse (NC)"
    paper = "Wang et al., S&P 2019"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    rules = ("all2one", "clean")
    unlearns = True
    version = 2
    presets = {"paper": {"epochs": 1000, "tune_epochs": 1, "tau": None}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A class is named twice.
        """
        if self.classes is not None and len({*self.classes}) < len(self.classes):
            raise SweepError("classes: name each class once; null: all")

    def applies(self, needs: Needs) -> str | None:
        """Refuse too few classes for the index, and classes that do not exist."""
        if len(self.classes or range(needs.classes)) < 6:
            return "among fewer than six masks none can stand out: Neural Cleanse needs six classes"
        if self.classes and not all(0 <= label < needs.classes for label in self.classes):
            return f"classes: the labels are 0 to {needs.classes - 1}"
        return None

    def least_clean(self, needs: Needs) -> int:
        """One more than the unlearning takes where a hold-out is set aside."""
        return needs.batch + (self.tau is not None) if self.tune_epochs else 1

    def defend(self, case: Case) -> Outcome:
        """Invert and detect; unlearn what was flagged."""
        triggers = self.invert(case, case.fresh_model(), case.clean)
        anomaly_index, flagged = judged(triggers.norms, self.theta)
        notes: dict[str, Any] = {
            "labels": triggers.labels,
            "norms": listed(triggers.norms),
            "anomaly": listed(anomaly_index),
            "flagged": triggers.labels[flagged],
        }
        model = case.fresh_model()
        if bool(flagged.any()) and self.tune_epochs:
            flagged_triggers = Triggers(*(value[flagged] for value in vars(triggers).values()))
            model, tuning_notes = last_within(
                case, self.tau, lambda data: self.unlearn(case, data, flagged_triggers)
            )
            notes |= tuning_notes
        return Outcome(model=model, notes=notes)

    def unlearn(self, case: Case, data: Samples, triggers: Triggers) -> tuple[Net, Iterator[float]]:
        """A copy of the victim, and the passes that fine-tune it."""
        model, batch = case.fresh_model(), min(self.tune_batch, len(data))
        hooks = Patched(triggers, self.share)
        return model, passes(case, model, data, self.tune_epochs, hooks, lr=self.lr, batch=batch)

    def invert(self, case: Case, model: Net, data: Samples) -> Triggers:
        """The smallest successful mask of every class, with its pattern."""
        model.requires_grad_(False)
        labels = torch.tensor(self.classes or range(len(data.classes)))
        channels, height, width = data.images.shape[1:]
        shape = (len(labels), channels + 1, height, width)
        initial = torch.atanh((2 * torch.rand(shape, generator=case.rng("start")) - 1) * INSIDE)
        parts = [
            self.invert_group(case, model, data, part, raw)
            for part, raw in zip(labels.split(self.group), initial.split(self.group), strict=True)
        ]
        return Triggers(*(torch.cat(values) for values in zip(*map(_fields, parts), strict=True)))

    def invert_group(
        self, case: Case, model: Net, data: Samples, labels: Tensor, initial: Tensor
    ) -> Triggers:
        """The same for some classes, side by side."""
        raw = initial.to(case.device, copy=True).requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=self.inversion_lr, betas=(0.5, 0.9))
        recipe = replace(case.recipe, batch=min(self.batch, len(data)), **PLAIN)
        count = self.epochs * self.steps
        batches = training.draws(data, recipe, count, case.rng("batches"), case.device)
        targets = labels.to(case.device)[:, None].expand(-1, recipe.batch)
        weights, best = Weights(self, len(labels)), Best(initial)
        for epoch in range(self.epochs):
            active = best.active.nonzero().flatten().to(case.device)
            rates = torch.zeros(len(labels), device=case.device)
            weight, wanted = weights.value.to(case.device)[active], targets[active]
            for images, _ in islice(batches, self.steps):
                mask, pattern = squashed(raw[active])
                stamped = painted(images, mask[:, None], pattern[:, None])
                with case.autocast():
                    logits = model(stamped.flatten(0, 1))
                logits = logits.float().unflatten(0, wanted.shape)
                losses = functional.cross_entropy(logits.movedim(2, 1), wanted, reduction="none")
                loss = (losses.mean(1) + weight * mask.flatten(1).sum(1)).sum()
                (raw.grad,) = torch.autograd.grad(loss, [raw])
                optimizer.step()
                rates[active] += (logits.argmax(2) == wanted).float().mean(1)
            success = (rates / self.steps).cpu() >= self.success - 1e-6
            best.update(raw.detach().cpu(), success)
            weights.update(success)
            best.active &= ~((best.since >= self.stale) & weights.raised & weights.lowered)
            case.log(epoch=epoch + 1, epochs=self.epochs)
            if not bool(best.active.any()):
                break
        mask, pattern = squashed(best.raw)
        return Triggers(labels, mask, pattern, best.norms)


@dataclass(frozen=True)
class Triggers:
    """What inversion found, a row a class, on the CPU."""

    labels: Tensor
    """int64 [K]."""
    masks: Tensor
    """float [K, 1, H, W] in [0, 1]."""
    patterns: Tensor
    """float [K, C, H, W] in [0, 1]."""
    norms: Tensor
    """float [K], sums of the masks; infinite where no trigger succeeded."""


def _fields(triggers: Triggers) -> list[Tensor]:
    return [*vars(triggers).values()]


def squashed(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Free variables [K, 1 + C, H, W] -> masks [K, 1, H, W] and patterns [K, C, H, W] in [0, 1]."""
    values = raw.tanh() / 2 + 0.5
    return values[:, :1], values[:, 1:]


def painted(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Images in [0, 1] with the pattern where the mask is 1; all broadcast."""
    return images + mask * (pattern - images)


class Weights:
    """The weight of the norm in each class's loss, which follows how its trigger fares."""

    def __init__(self, options: NeuralCleanse, count: int) -> None:
        self.options = options
        self.value = torch.zeros(count)
        self.successes = torch.zeros(count, dtype=torch.int64)
        """Successes in a row."""
        self.failures = torch.zeros(count, dtype=torch.int64)
        """Failures in a row."""
        self.raised = torch.zeros(count, dtype=torch.bool)
        """Whether it was multiplied since it is above 0."""
        self.lowered = torch.zeros(count, dtype=torch.bool)
        """Whether it was ever lowered."""

    def update(self, success: Tensor) -> None:
        """Take in whether each class succeeded in an epoch; bool [K]."""
        factor = self.options.multiplier
        self.successes = torch.where(success, self.successes + 1, 0)
        self.failures = torch.where(success, 0, self.failures + 1)
        zero = self.value == 0
        up, down = self.successes >= self.options.patience, self.failures >= self.options.patience
        raised = torch.where(zero, self.options.weight, self.value * factor)
        self.value = torch.where(
            up, raised, torch.where(down, self.value / factor**1.5, self.value)
        )
        self.raised |= up & ~zero
        self.lowered |= down & ~zero
        self.successes[up], self.failures[down] = 0, 0


class Best:
    """The smallest successful mask of each class so far."""

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw.clone()
        self.norms = torch.full((len(raw),), torch.inf)
        self.since = torch.zeros(len(raw), dtype=torch.int64)
        """Epochs since it was found."""
        self.active = torch.ones(len(raw), dtype=torch.bool)
        """Whether the class is still looking."""

    def update(self, raw: Tensor, success: Tensor) -> None:
        """Take in the variables after an epoch, and whether each class succeeded in it."""
        norms = squashed(raw)[0].flatten(1).sum(1)
        better = self.active & success & (norms < self.norms)
        self.norms = torch.where(better, norms, self.norms)
        self.raw[better] = raw[better]
        self.since = torch.where(better | self.norms.isinf(), 0, self.since + 1)


def judged(norms: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """Anomaly index (NaN where there is no norm) and whether a mask is abnormally small; [K]."""
    finite = norms.isfinite()
    anomaly_index = torch.full(norms.shape, torch.nan, dtype=torch.float64)
    flagged = torch.zeros_like(finite)
    if bool(finite.any()):
        anomaly_index[finite] = anomaly(norms[finite])
        flagged[finite] = outliers(-norms[finite], theta)
    return anomaly_index, flagged


def listed(values: Tensor) -> list[float | None]:
    """As JSON has it: None for what is no finite number."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


class Patched(Lasting):
    """Fine-tuning with triggers on a share of the images, labels true."""

    def __init__(self, triggers: Triggers, share: float) -> None:
        super().__init__()
        self.triggers = triggers
        self.share = share

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """Each chosen image with one trigger."""
        count = len(batch.labels)
        carries = torch.rand(count, generator=rng) < self.share
        index = torch.randint(len(self.triggers.labels), (count,), generator=rng)
        mask = self.triggers.masks[index] * carries.view(-1, 1, 1, 1)
        device = batch.inputs.device
        pattern = self.triggers.patterns[index].to(device)
        return replace(batch, inputs=painted(batch.inputs, mask.to(device), pattern))
