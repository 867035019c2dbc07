"""Curves between two networks in weight space, learned on a few images: what MCR is made of.

All parameters of a network are one vector [P]; a curve is a stack of such vectors [bends, P] whose
first and last row are given and fixed, and a point of it one weighted sum. BatchNorm's running
statistics are never interpolated: a point inside has its own, estimated on clean images.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.batchnorm import reestimate
from defenses.parts.steps import descend
from sweeper.core.errors import SweepError
from sweeper.core.options import (
    CEILING,
    LearningRate,
    NonNegative,
    PositiveShare,
    Several,
    Share,
    Whole,
)
from sweeper.core.types import Outcome, Samples
from sweeper.engine.training import Batch
from sweeper.models.base import Net


def bezier(t: float, bends: int) -> list[float]:
    """Coefficients of a Bezier curve's control points: Bernstein polynomials."""
    last = bends - 1
    return [math.comb(last, i) * t**i * (1 - t) ** (last - i) for i in range(bends)]


def polychain(t: float, bends: int) -> list[float]:
    """Coefficients of a chain of straight lines through the bends."""
    return [max(0.0, 1 - abs(t * (bends - 1) - i)) for i in range(bends)]


SHAPES: dict[str, Callable[[float, int], list[float]]] = {"bezier": bezier, "polychain": polychain}


def annealed(share: float) -> float:
    """Factor of the learning rate: 1 up to the half, down to 0.01 at 0.9, then 0.01."""
    return 1 - 0.99 * min(1.0, max(0.0, (share - 0.5) / 0.4))


def cosine(share: float) -> float:
    """Factor of the learning rate: half a wave from 1 to 0."""
    return (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {"annealed": annealed, "cosine": cosine}


def flat(model: nn.Module) -> Tensor:
    """All parameters as one vector, a copy; float [P]."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Curve:
    """A curve from one network to another of the same architecture."""

    def __init__(self, first: Net, last: Net, *, bends: int = 3, shape: str = "bezier") -> None:
        """Start from the straight line.

        Args:
            first: The network at t = 0; kept, not changed.
            last: The network at t = 1; kept, not changed.
            bends: Points the curve is made of, both ends included.
            shape: bezier | polychain.
        """
        self.first = first
        self.last = last
        self.bends = bends
        self.shape = shape
        self._ends = flat(first), flat(last)
        self._net = copy.deepcopy(first).requires_grad_(False)
        shares = torch.linspace(0, 1, bends, device=self._ends[0].device)[1:-1, None]
        self.inner = nn.Parameter((1 - shares) * self._ends[0] + shares * self._ends[1])
        """The bends between the ends, all there is to train; float [bends - 2, P]."""

    def weights(self, t: float) -> Tensor:
        """The point at t in [0, 1]; float [P], differentiable in `inner`."""
        first, *middle, last = SHAPES[self.shape](t, self.bends)
        inner = self.inner.new_tensor(middle) @ self.inner
        return first * self._ends[0] + inner + last * self._ends[1]

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """A vector [P] as the network's parameters by name; views."""
        parameters = dict(self._net.named_parameters())
        slices = weights.split([p.numel() for p in parameters.values()])
        return {
            name: values.view(p.shape)
            for (name, p), values in zip(parameters.items(), slices, strict=True)
        }

    def loss(self, t: float, images: Tensor, labels: Tensor, l2: float = 0.0) -> Tensor:
        """Cross-entropy of the point at t with the batch's statistics, plus the L2 term."""
        weights = self.weights(t)
        self._net.train()
        logits = torch.func.functional_call(self._net, self.named(weights), (images,))
        loss = functional.cross_entropy(logits.float(), labels)
        return loss + l2 / 2 * weights.square().sum() if l2 else loss

    @torch.no_grad()
    def at(self, t: float, images: Tensor) -> Net:
        """The network at t, a plain model of its own in eval mode.

        Args:
            t: In [0, 1]; at 0 and 1 the given networks with their own running statistics.
            images: uint8 [N, C, H, W], which running statistics inside are estimated on.
        """
        if t in (0, 1):
            return copy.deepcopy(self.last if t else self.first).eval()
        model = copy.deepcopy(self.first).eval()
        for name, value in self.named(self.weights(t)).items():
            model.get_parameter(name).copy_(value)
        reestimate(model, images)
        return model


def path(
    curve: Curve, times: Sequence[float], images: Tensor, measure: Callable[[Net], float]
) -> list[float]:
    """Measure the networks at these t, such as their accuracy.

    Args:
        curve: Trained or not.
        times: Values of t.
        images: uint8 [N, C, H, W], for running statistics.
        measure: Takes a model in eval mode.
    """
    return [measure(curve.at(t, images)) for t in times]


def most_central(times: Sequence[float], accuracies: Sequence[float], tau: float) -> float:
    """The t nearest the middle whose accuracy is within tau of the best; of two the better."""
    best = max(accuracies)
    candidates = [
        (round(abs(t - 0.5), 9), -accuracy, t)
        for t, accuracy in zip(times, accuracies, strict=True)
        if accuracy >= best - tau - 1e-9
    ]
    return min(candidates)[2]


def farthest(times: Sequence[float], accuracies: Sequence[float], tau: float) -> float:
    """The largest t whose accuracy is within tau of the best."""
    best = max(accuracies)
    return max(
        t for t, accuracy in zip(times, accuracies, strict=True) if accuracy >= best - tau - 1e-9
    )


@dataclass(frozen=True, kw_only=True)
class CurveDefense(Defense):
    """What both forms of MCR share: the curve, its training and the choice of a point."""

    shape: str = "bezier"
    """bezier | polychain."""
    bends: Annotated[int, Field(ge=3, le=CEILING)] = 3
    """Points of the curve, both ends included."""
    steps: Whole = 7900
    """Steps that train the curve, whatever the number of images."""
    lr: LearningRate = 0.01
    """Their peak learning rate."""
    l2: NonNegative = 1e-4
    """Weight of half the squared norm of the point's weights, in the loss."""
    decay: NonNegative = 0.0
    """L2 penalty of the optimiser, on the bends."""
    schedule: str = "annealed"
    """annealed (constant to the half, linear to 1 % at 0.9, constant) | cosine."""
    batch: Several = 128
    """Images of a step, drawn with replacement."""
    augment: bool = False
    """Whether images are augmented as the recipe says."""
    t: PositiveShare | None = None
    """The point delivered, 1 being the second end; default: chosen on a hold-out."""
    tau: Share = 0.02
    """Hold-out accuracy the chosen point may lie below the best, absolute."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A word is unknown.
        """
        for name, allowed in (("shape", SHAPES), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise SweepError(
                    f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )

    @property
    @abstractmethod
    def times(self) -> Sequence[float]:
        """The points a choice is made among."""

    @abstractmethod
    def choose(self, accuracies: Sequence[float]) -> float:
        """The point to deliver, from the hold-out accuracies at `times`."""

    def descend(
        self,
        case: Case,
        name: str,
        model: nn.Module,
        data: Samples,
        loss: Callable[[Tensor, Tensor], Tensor],
        **changes: Any,
    ) -> None:
        """Minimise `loss(images, labels)` by SGD with momentum 0.9; steps as the options say.

        Args:
            case: For the device, the recipe's augmentation and precision, and draws.
            name: Names the draws.
            model: Its parameters that require a gradient are trained.
            data: On which images.
            loss: Loss of one batch, run under the recipe's precision.
            changes: Of the options steps, lr and decay.

        Raises:
            DivergedError: A loss or a weight became NaN or infinite.
        """
        options = replace(self, **changes)
        recipe = replace(case.recipe, batch=options.batch)
        if not options.augment:
            recipe = replace(recipe, crop=0, flip=False, rotation=0.0, erase=0.0)
        weights = [value for value in model.parameters() if value.requires_grad]

        def autocast_loss(batch: Batch) -> Tensor:
            with case.autocast():
                return loss(batch.inputs, batch.labels)

        descend(
            case,
            model,
            data,
            recipe,
            options.steps,
            loss=autocast_loss,
            name=name,
            optimizer=torch.optim.SGD(
                weights, lr=options.lr, momentum=0.9, weight_decay=options.decay
            ),
            rate=lambda step: options.lr * SCHEDULES[options.schedule](step / options.steps),
        )

    def connect(self, case: Case, first: Net, last: Net, data: Samples) -> Curve:
        """Learn the curve between two networks on these images."""
        curve = Curve(first, last, bends=self.bends, shape=self.shape)
        rng: Generator = case.rng("times")
        times = iter(torch.rand(self.steps, generator=rng).tolist())
        self.descend(
            case,
            "curve",
            nn.ParameterList([curve.inner]),
            data,
            lambda images, labels: curve.loss(next(times), images, labels, self.l2),
        )
        return curve

    def least_clean(self, needs: Needs) -> int:
        """One more than a training takes where a hold-out is set aside."""
        return needs.batch + (self.t is None)

    def repaired(self, case: Case, second: Callable[[Samples], Net]) -> Outcome:
        """Choose t on a hold-out where none is given; learn the curve on all images, deliver t.

        Args:
            case: Whose model is the first end.
            second: Makes the second end, of these clean images.
        """
        t, first, notes = self.t, case.fresh_model(), {}
        if t is None:
            fitted, holdout = case.split()
            curve = self.connect(case, first, second(fitted), fitted)
            accuracies = path(
                curve, self.times, fitted.images, lambda model: case.accuracy(model, holdout)
            )
            t = self.choose(accuracies)
            notes = {"curve": list(zip(self.times, accuracies, strict=True))}
        curve = self.connect(case, first, second(case.clean), case.clean)
        return Outcome(model=curve.at(t, case.clean.images), notes={**notes, "t": t})
