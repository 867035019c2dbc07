"""CT, confusion training (Qi et al., USENIX Security 2023).

The defender sees the poisoned training set with its labels and clean images, and trains models of
its own. Round by round a model that fits what is left of the training set is confused: it goes on
learning that set, and a clean set with labels that are wrong in ever other ways, which leaves it
nothing by which clean images are told: `((lam - 1) CE(f(x_c), wrong) + CE(f(x), y)) / lam`, lam =
`balance`. What it still fits is learned by something else, a trigger: samples of the lowest losses
go on to the next round. In the end, a class whose features fall apart into those still predicted as
labelled and the rest is cleansed of the former.

Deviations, each with its reason:

- A class is one Gaussian, or two of the parts, each fitted to what it describes, so that the ratio
  of likelihoods is at least 1. The release fits the one to a tenth of the class, of losses in its
  middle, which it takes for clean; its covariances are kept regular by adding to all entries, here
  by adding to the diagonal.
- Wrong labels are those the model of the round predicts, moved on by one class in each step, which
  never meets the prediction; one version of the release draws them at random.
- Of a class at least one sample goes on.
- Batches of the confusion are drawn with replacement.
- Scores are the negative losses of the last confused model, for every training sample.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.features import features_of, members, principal
from defenses.parts.losses import losses_of
from defenses.parts.passes import PLAIN
from defenses.parts.steps import descend
from sweeper.core.errors import SweepError
from sweeper.core.options import (
    Count,
    Factor,
    LearningRate,
    NonNegative,
    PositiveShare,
    Several,
    Whole,
)
from sweeper.core.types import Outcome, Samples
from sweeper.engine import metrics, training
from sweeper.engine.training import Batch
from sweeper.models.base import Net

REGULAR = 1e-3
"""Added to the variances of features (release)."""
LEAST = 0.02, 0.01
"""Share of a class that goes on at least, from all rounds and from the last (release)."""
ONE = 1.5
"""Ratio above which the class of the largest is cleansed, if it is no other's (release)."""


def confused(predicted: Tensor, step: int, classes: int) -> Tensor:
    """Labels int64 [B] that differ from those predicted, in another way at the next step."""
    return (predicted + 1 + step % (classes - 1)) % classes


def rarity(labels: Tensor, classes: int) -> Tensor:
    """Weights of the classes by how rare they are among labels [N]; float [K]."""
    shares = torch.bincount(labels, minlength=classes) / len(labels)
    return (shares + 1e-3).rsqrt()


def lowest(losses: Tensor, labels: Tensor, share: float, least: float) -> Tensor:
    """The samples that go on: the lowest losses of all and, to fill up, of their class; bool [N].

    Args:
        losses: float [N].
        labels: int64 [N].
        share: Samples that go on.
        least: Of each class, at least one.
    """
    order = losses.argsort(stable=True)
    selected = torch.zeros(len(losses), dtype=torch.bool)
    selected[order[: int(share * len(losses) + 1e-9)]] = True
    for _, index in members(labels[order], int(labels.max()) + 1):
        selected[order[index[: max(1, int(least * len(index) + 1e-9))]]] = True
    return selected


def ratio(features: Tensor, isolated: Tensor) -> float:
    """Gain in likelihood of a sample by two Gaussians over one, in the plane of most variance.

    Args:
        features: float64 [N, D], of one class.
        isolated: bool [N], what the second Gaussian is of.

    Returns:
        At least 1; 1 where one part has fewer than two samples.
    """
    if min(int(isolated.sum()), int((~isolated).sum())) < 2:
        return 1.0
    basis, _ = principal(features, 2)
    plane = features @ basis
    clusters = (plane[isolated], plane[~isolated])
    gain = likelihood(clusters[0]) + likelihood(clusters[1]) - likelihood(plane)
    return math.exp(float(gain) / len(plane))


def likelihood(points: Tensor) -> Tensor:
    """Log-likelihood of points [N, d] under the Gaussian fitted to them, but for a constant."""
    centred = points - points.mean(0)
    covariance = centred.T @ centred / len(points)
    regular = covariance + REGULAR * torch.eye(points.shape[1]).to(points)
    deviance: Tensor = torch.linalg.solve(regular, covariance).trace() + torch.logdet(regular)
    return -len(points) / 2 * deviance


@dataclass(frozen=True, kw_only=True)
class ConfusionTraining(Defense):
    """What a model still fits that is trained on wrong labels beside."""

    keep: tuple[PositiveShare, ...] = (1 / 2, 1 / 5, 1 / 25, 1 / 50, 1 / 100)
    """Share of the training set that goes on after each round but the last."""
    first_epochs: Whole = 100
    """Passes over what is left before the confusion, in the first two rounds."""
    later_epochs: Whole = 40
    """Likewise, in the others."""
    first_steps: Whole = 6000
    """Steps of the confusion, in the first four rounds."""
    later_steps: Whole = 2000
    """Likewise, in the others."""
    every: tuple[Count, ...] = (2, 2, 2, 2, 2, 2)
    """Of how many steps, in each round, one sees the training set too."""
    balance: tuple[Factor, ...] = (20, 20, 20, 30, 30, 15)
    """In each round, what such a step's loss of the training set is divided by."""
    rates: tuple[LearningRate, ...] = (0.001, 0.001, 0.001, 0.01, 0.01, 0.01)
    """Learning rate of the confusion in each round."""
    lr: LearningRate = 0.01
    """Learning rate before the confusion."""
    batch: Several = 32
    """Images of a step, of each set."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty."""
    theta: Factor = 2.0
    """Ratio of likelihoods above which a class is cleansed."""

    title = "Confusion Training (CT)"
    paper = "Qi et al., USENIX Security 2023"
    kind = "detection"
    sees = frozenset({"train", "clean"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gtsrb": {"balance": (20,) * 6, "rates": (0.001,) * 6, "every": (2, 2, 4, 8, 8, 2)},
        "small": {
            "first_epochs": 10,
            "later_epochs": 10,
            "first_steps": 300,
            "later_steps": 300,
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: There are not as many numbers as rounds.
        """
        rounds = len(self.keep) + 1
        for name in ("every", "balance", "rates"):
            values = getattr(self, name)
            if len(values) != rounds:
                raise SweepError(
                    f"{name}: {len(values)} numbers for {rounds} rounds, one more than keep has"
                )

    def least_clean(self, needs: Needs) -> int:
        """One: a step sees the training set too."""
        return 1

    def defend(self, case: Case) -> Outcome:
        """Confuse in rounds, then judge the classes."""
        data, rounds = case.train, len(self.keep) + 1
        base, remaining = case.new_model(), torch.ones(len(data), dtype=torch.bool)
        sizes, model = [], base
        for number in range(rounds):
            self.settle(case, base, data[remaining], number)
            model = self.confuse(case, base, data[remaining], number)
            losses = losses_of(case, model, data)
            sizes.append(int(remaining.sum()))
            if number < rounds - 1:
                least = LEAST[number == rounds - 2]
                remaining = lowest(losses, data.labels, self.keep[number], least)
            case.log(step=number + 1, steps=rounds)
        predicted = metrics.predict(model, data.images, case.recipe, case.device)
        flagged, ratios = self.judge(
            features_of(model, data.images).double(),
            predicted == data.labels,
            data.labels,
        )
        notes = {"left": sizes, "ratios": {str(label): value for label, value in ratios.items()}}
        return Outcome(scores=-losses, flagged=flagged, notes=notes)

    def settle(self, case: Case, base: Net, remaining: Samples, number: int) -> None:
        """Train the model of all rounds on what is left; in the last with the clean images."""
        if number == len(self.keep):
            images, labels = (
                torch.cat([getattr(data, name) for data in (remaining, case.clean)])
                for name in ("images", "labels")
            )
            remaining = remaining.changed(images=images, labels=labels, positions=None)
        case.fit(
            base,
            remaining,
            name=f"settle {number}",
            epochs=self.first_epochs if number < 2 else self.later_epochs,
            lr=self.lr,
            batch=self.batch,
            momentum=0.9,
            nesterov=False,
            weight_decay=self.weight_decay,
            schedule="constant",
            warmup=0.0,
            label_smoothing=0.0,
            **PLAIN,
        )

    def confuse(self, case: Case, base: Net, remaining: Samples, number: int) -> Net:
        """A copy of the model, confused."""
        model, clean = copy.deepcopy(base), case.clean
        clean = clean.changed(labels=metrics.predict(base, clean.images, case.recipe, case.device))
        recipe = replace(
            case.recipe,
            lr=self.rates[number],
            batch=self.batch,
            momentum=0.7,
            nesterov=False,
            weight_decay=self.weight_decay,
            schedule="constant",
            **PLAIN,
        )
        steps = self.first_steps if number < 4 else self.later_steps
        classes, mixed = len(remaining.classes), math.ceil(steps / self.every[number])
        weights = torch.ones(classes)
        if number < len(self.keep):
            weights = rarity(remaining.labels, classes)
        weights = weights.to(case.device)
        remaining_batches = training.draws(
            remaining, recipe, mixed, case.rng(f"left {number}"), case.device
        )

        def loss(batch: Batch) -> Tensor:
            batches = [(batch.inputs, confused(batch.labels, batch.step, classes))]
            if batch.step % self.every[number] == 0:
                batches.append(next(remaining_batches))
            with case.autocast():
                return joint(model, batches, weights, self.balance[number])

        model.train()
        descend(case, model, clean, recipe, steps, loss=loss, name=f"confuse {number}")
        return model.eval()

    def judge(
        self, features: Tensor, isolated: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[int, float]]:
        """Cleanse the classes that fall apart of what is isolated.

        Args:
            features: float64 [N, D], of the confused model.
            isolated: bool [N], what it predicts as labelled.
            labels: int64 [N].

        Returns:
            (bool [N]: what is flagged, class -> ratio of likelihoods).
        """
        ratios = {
            label: ratio(features[index.to(features.device)], isolated[index].to(features.device))
            for label, index in members(labels, int(labels.max()) + 1)
        }
        largest = max(ratios.values())
        threshold = self.theta if largest > self.theta else max(ONE, math.nextafter(largest, 0))
        cleansed = [label for label, value in ratios.items() if value > threshold]
        return isolated & torch.isin(labels, torch.tensor(cleansed, dtype=labels.dtype)), ratios


def joint(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], weights: Tensor, balance: float
) -> Tensor:
    """The loss of a step on a confused batch and, where there is one, a batch of what is left.

    Args:
        model: In train mode; both batches go through it together.
        batches: One or two of (float [B, C, H, W], int64 [B]).
        weights: float [K], of the classes of what is left.
        balance: What the second loss is divided by; the first takes the rest.
    """
    logits = model(torch.cat([images for images, _ in batches])).float()
    batch_logits = logits.split([len(labels) for _, labels in batches])
    confused_loss = functional.cross_entropy(batch_logits[0], batches[0][1])
    if len(batches) == 1:
        return confused_loss
    remaining_loss = functional.cross_entropy(batch_logits[1], batches[1][1], weight=weights)
    return ((balance - 1) * confused_loss + remaining_loss) / balance
