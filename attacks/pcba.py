"""PCBA (Xiang et al., ICCV 2021): a small ball of points beside clouds of one class.

The attacker controls the data and a surrogate network. The trigger is `points` points on a small
sphere; its centre, one for all clouds, is searched from several starts outside the unit ball: by
momentum steps that raise the surrogate's mean posterior of the target on source-class clouds, until
it is above `posterior`, and bring the ball as near to the clouds as that allows. The weight of the
distance adapts: it grows where the posterior is high enough, and shrinks where it is not. Clouds of
the source class get the trigger and the target label; as many of their points are deleted. Clouds
of the source class count for ASR, those of other classes for leak.

Deviations: the sphere's points are drawn once. The surrogate is the sweep's own clean victim, where
theirs is trained on a set of the attacker's own, and the search looks at `clouds` of the source
class. The distance of a centre is the mean over clouds of that to the nearest point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from attacks.base import Attack, Lab, missing
from sweeper.core.options import Count, OpenShare, Positive, Stride, Whole
from sweeper.core.types import Facts, Samples, State

MOMENTUM = 0.9
GROWTH = 1.5
"""Factor of the distance's weight from step to step."""
OUTSIDE = 1.5
"""Radius of the sphere the starts lie on."""


@dataclass(frozen=True, kw_only=True)
class PCBA(Attack):
    """Points on a small sphere, added to clouds of the source class."""

    source_class: Whole = 1
    """Class whose clouds are to become the target."""
    points: Count = 32
    """Points of the trigger, and points deleted."""
    radius: Positive = 0.05
    """Of the trigger's sphere, in the clouds' unit."""
    starts: Count = 10
    """Centres the search begins from."""
    steps: Count = 1000
    """Steps of the search."""
    step: Stride = 0.1
    """Length of a step, against the direction of the gradient."""
    posterior: OpenShare = 0.01
    """Mean posterior of the target the surrogate must reach."""
    clouds: Count = 32
    """Source-class clouds the search looks at."""

    title = "PCBA"
    paper = "Xiang et al., ICCV 2021"
    rules = ("source",)
    bases = ("source-class",)
    tasks = frozenset({"points"})
    prepares = True
    needs_clean_model = True
    state_axes = frozenset({"target", "seed"})

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not where there is no such class, or a cloud is smaller than the trigger."""
        if self.source_class == self.target:
            return f"source_class: {self.source_class} is the target: name another class"
        if why := missing(facts, self.source_class, "source class"):
            return why
        if self.points >= facts.shape[0]:
            return f"points: {self.points} are not fewer than a cloud's {facts.shape[0]}"
        return super().applies(facts, rate)

    def pool(self, labels: Tensor) -> Tensor:
        """The source class."""
        return labels == self.source_class

    def victims(self, labels: Tensor) -> Tensor:
        """The source class."""
        return labels == self.source_class

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Draw the sphere's points and search its centre."""
        unit = torch.randn(self.points, 3, generator=lab.rng("sphere"))
        offsets = self.radius * unit / unit.norm(dim=1, keepdim=True)
        model = lab.clean_model().requires_grad_(False)
        source = torch.nonzero(self.pool(train.labels)).flatten()
        order = torch.randperm(len(source), generator=lab.rng("clouds"))[: self.clouds]
        centre = self.centre(model, train.points[source[order]].to(lab.device), offsets, lab)
        return {"trigger": centre + offsets, "centre": centre}

    def centre(self, model: nn.Module, clouds: Tensor, offsets: Tensor, lab: Lab) -> Tensor:
        """The nearest centre whose posterior is high enough, else the highest's; float [3]."""
        offsets, kept = offsets.to(clouds.device), clouds[:, self.points :]
        begin = torch.randn(self.starts, 3, generator=lab.rng("starts"))
        centres = (OUTSIDE * begin / begin.norm(dim=1, keepdim=True)).to(clouds.device)
        velocity, weight = torch.zeros_like(centres), torch.ones(self.starts, device=clouds.device)
        every = clouds.flatten(0, 1)
        tried: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in range(self.steps):
            centres = centres.detach().requires_grad_()
            log_posterior = self._log_posterior(model, kept, centres, offsets)
            apart = torch.cdist(centres, every).view(len(centres), len(clouds), -1)
            distance = apart.amin(2).mean(1)
            loss = (weight * distance - log_posterior).sum()
            (gradient,) = torch.autograd.grad(loss, centres)
            tried.append((centres.detach(), log_posterior.detach(), distance.detach()))
            enough = log_posterior >= math.log(self.posterior)
            weight = torch.where(enough, weight * GROWTH, weight / GROWTH).clamp(1e-3, 1e3)
            direction = gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-12)
            velocity = MOMENTUM * velocity - (1 - MOMENTUM) * direction
            centres = centres.detach() + self.step * velocity
            if step % 100 == 99:
                lab.log(step=step + 1, steps=self.steps, loss=loss.item())
        places, posteriors, distances = (torch.cat(part) for part in zip(*tried, strict=True))
        enough = posteriors >= math.log(self.posterior)
        if bool(enough.any()):
            return places[distances.masked_fill(~enough, float("inf")).argmin()].cpu()
        return places[posteriors.argmax()].cpu()

    def _log_posterior(
        self, model: nn.Module, kept: Tensor, centres: Tensor, offsets: Tensor
    ) -> Tensor:
        """Log of the target's mean posterior over clouds with the trigger at each centre; [S]."""
        balls = centres[:, None] + offsets
        pairs = [torch.cat([kept, ball.expand(len(kept), -1, -1)], 1) for ball in balls.unbind()]
        logs = model(torch.cat(pairs)).float().log_softmax(1)[:, self.target]
        mean: Tensor = logs.view(len(centres), -1).logsumexp(1) - math.log(len(kept))
        return mean

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Put the trigger's points in the place of as many random ones of each cloud [B, P, 3]."""
        places = torch.rand(images.shape[:2], generator=rng).argsort(1)[:, : self.points]
        out = images.clone()
        index = places[..., None].expand(-1, -1, 3).to(images.device)
        return out.scatter_(1, index, state["trigger"].to(images).expand(len(images), -1, -1))
