"""SEAM, selective amnesia (Zhu et al., S&P 2023): forget everything, then relearn the clean task.

The defender sees the model and a few clean images. It is first fine-tuned on a few of them with
random wrong labels, fresh in every batch, until it has forgotten its task, and the backdoor with
it; then on the rest with their true labels. No authors' code was found: settings are those of
backdoor-toolbox, which draws the two sets from the training split (1 % and 10 %).

Deviations, each with its reason:

- Both sets are disjoint parts of the clean budget, of which `forget` goes to the first; the port
  draws two that may overlap. Each limit is measured on the set it ends.
- Both limits are looked at after whole epochs, without augmentation.
- With two classes a wrong label is the other label, and to forget is to learn the swap: refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Generator, Tensor

from defenses.base import Case, Defense, Needs
from defenses.parts.passes import Lasting, passes
from sweeper.core.options import Count, LearningRate, OpenShare, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine.training import Batch
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class SEAM(Defense):
    """Training on wrong labels until little is left, then on right ones."""

    forget: OpenShare = 0.1
    """Share of the clean budget that is forgotten on; the rest is for the recovery."""
    forget_epochs: Whole = 10
    """Passes of the forgetting, at most."""
    limit: Share = 0.6
    """It ends when less than this, and than 2 of K classes, is classified as labelled."""
    epochs: Whole = 100
    """Passes of the recovery, at most."""
    recovered: Share = 0.97
    """It ends when more than this is classified as labelled."""
    lr: LearningRate = 1e-3
    """Learning rate of both (Adam)."""
    batch: Count = 32
    """Images of a step of both."""

    title = "SEAM"
    paper = "Zhu et al., S&P 2023"
    kind = "repair"
    tasks = frozenset({"image", "clips", "points"})
    sees = frozenset({"model", "clean"})

    def applies(self, needs: Needs) -> str | None:
        """Refuse two classes."""
        if needs.classes < 3:
            return "of two classes the wrong label is the other one: SEAM needs three"
        return None

    def least_clean(self, needs: Needs) -> int:
        """So many that each of the two parts makes a batch."""
        about = 2 * needs.batch
        if needs.batch > 1:  # so near to it that a tiny share takes no long search
            smaller = min(self.forget, 1 - self.forget)
            about = max(about, int((needs.batch - 0.5) / smaller) - 1)
        fits = (n for n in count(about) if needs.batch <= self.forgotten(n) <= n - needs.batch)
        return next(fits)

    def defend(self, case: Case) -> Outcome:
        """Forget, then recover, on a copy of the victim."""
        model, notes = case.fresh_model(), dict[str, Any]()
        drop, keep = self.divided(case)
        limit = min(2 / len(case.clean.classes), self.limit)
        for name, data, epochs, hooks, done in (
            ("forget", drop, self.forget_epochs, Wrong(), lambda acc: acc < limit),
            ("recover", keep, self.epochs, Lasting(True), lambda acc: acc > self.recovered),
        ):
            batch = min(self.batch, len(data))
            rounds = passes(case, model, data, epochs, hooks, name=name, lr=self.lr, batch=batch)
            notes[name] = until(case, model, data, rounds, done)
        return Outcome(model=model, notes=notes)

    def divided(self, case: Case) -> tuple[Samples, Samples]:
        """The images to forget on and those to recover with, each at least one."""
        clean = case.clean
        order = torch.randperm(len(clean), generator=case.rng("division"))
        first = self.forgotten(len(clean))
        return clean[order[:first]], clean[order[first:]]

    def forgotten(self, images: int) -> int:
        """How many of so many images are to forget on."""
        return min(max(round(self.forget * images), 1), images - 1)


def until(
    case: Case,
    model: Net,
    data: Samples,
    rounds: Iterator[float],
    done: Callable[[float], bool],
) -> list[float]:
    """Run the rounds until `done` says so of the accuracy on `data`; accuracies, from the start."""
    curve = [case.accuracy(model, data)]
    for _ in rounds:
        curve.append(case.accuracy(model, data))
        if done(curve[-1]):
            break
    return curve


def wrong(labels: Tensor, classes: int, rng: Generator) -> Tensor:
    """Uniform labels other than the true ones; int64 [B] on their device."""
    shift = torch.randint(1, classes, labels.shape, generator=rng)
    return (labels + shift.to(labels.device)) % classes


class Wrong(Lasting):
    """Training with wrong labels, fresh in every batch."""

    def __init__(self) -> None:
        super().__init__(adam=True)
        self.classes = 0

    def start(self, model: torch.nn.Module, device: torch.device) -> None:
        """Count the classes."""
        assert isinstance(model, Net)
        self.classes = model.classifier.get_parameter("weight").shape[0]

    def batch(self, batch: Batch, rng: Generator) -> Batch:
        """The batch with wrong labels."""
        return replace(batch, labels=wrong(batch.labels, self.classes, rng))
