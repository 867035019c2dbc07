"""ANP, Adversarial Neuron Pruning (Wu and Wang, NeurIPS 2021, arXiv 2110.14430).

The defender sees the model and a few clean images. One mask per BatchNorm channel is learned while
weights and biases of all channels are perturbed to hurt most,
`min_m a CE(m w, b) + (1 - a) max_{d, x} CE((m + d) w, (1 + x) b)` with d and x bounded by eps; then
every channel whose mask is small gets weight zero (its bias stays) in the original model with its
original statistics. Networks without BatchNorm are masked at their other norms, or at their
convolutions (`parts/neurons.py`).

Deviations, each with its reason:

- The released code prints test accuracy and ASR of every mask threshold and leaves the choice to
  the reader. Here a hold-out of the clean budget decides (`choose`); BackdoorBench's choice on test
  data is `anp-oracle`. The preset `backdoorbench` has its rates and no threshold of its own.
- `project`: the paper bounds the perturbation by eps; the released code lets it reach 2 eps, and
  all its figures come from that. Off by default, as released.
- Pruning is `mask < threshold` (released: <=, after rounding to 4 decimals), so threshold 0 prunes
  nothing.
- All weights but masks and perturbations are frozen (same result, about half the time).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from defenses.base import Case, Defense
from defenses.parts.neurons import Neurons, prune, swapped
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Outcome
from sweeper.engine import training
from sweeper.models.base import Net

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, kw_only=True)
class ANP(Defense):
    """Masks learned under adversarial perturbation, then pruning by threshold or by number."""

    eps: float = 0.4
    """Perturbation budget, relative to each weight and bias."""
    alpha: float = 0.2
    """Weight of the natural loss; 1 - alpha weighs the perturbed one."""
    inner_steps: int = 1
    """Ascent steps per batch."""
    lr: float = 0.2
    """Learning rate of the masks (SGD, momentum 0.9)."""
    steps: int = 2000
    """Batches, drawn with replacement."""
    batch: int = 128
    """Images of a batch."""
    project: bool = False
    """Whether perturbations are clamped to eps after each ascent step."""
    threshold: float | None = None
    """Prune masks below this; default: chosen on a hold-out of the clean budget."""
    prune_count: int | None = None
    """Prune this many of the smallest masks instead."""
    tau: float = 0.03
    """Hold-out accuracy the choice may cost, absolute, at least two images."""

    title = "Adversarial Neuron Pruning (ANP)"
    paper = "Wu and Wang, NeurIPS 2021"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    presets = {"fixed": {"threshold": 0.2}, "backdoorbench": {"lr": 0.01, "batch": 256}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Both ways of pruning are asked for, or a number is out of range.
        """
        if self.threshold is not None and self.prune_count is not None:
            raise SweepError("give threshold or prune_count, not both")
        if not 0 <= self.alpha <= 1 or self.eps < 0 or self.steps < 0 or self.inner_steps < 1:
            raise SweepError("alpha lies in [0, 1]; eps and steps >= 0; inner_steps >= 1")

    def defend(self, case: Case) -> Outcome:
        """Learn the masks on a part of the clean budget, choose on the rest, prune the victim."""
        fixed = self.threshold is not None or self.prune_count is not None
        fitted, holdout = (case.clean, case.clean) if fixed else case.split()
        masks = self.learn(case, fitted)
        if self.prune_count is not None:
            order = masks.argsort(stable=True)
            dead = torch.zeros_like(masks, dtype=torch.bool)
            dead[order[: self.prune_count]] = True
            notes: dict[str, Any] = {}
        else:
            threshold, notes = (
                (self.threshold, {})
                if self.threshold is not None
                else self.choose(case, masks, holdout)
            )
            dead = masks < threshold
            notes["threshold"] = threshold
        model = case.fresh_model()
        prune(model, dead)
        histogram = torch.histc(masks, bins=20, min=0, max=1).int().tolist()
        notes |= {"pruned": int(dead.sum()), "neurons": len(masks), "histogram": histogram}
        return Outcome(model=model, notes=notes)

    def learn(self, case: Case, data: ImageSet) -> Tensor:
        """Stage A: optimise the masks; float [n] in [0, 1] on the CPU."""
        model = case.fresh_model().requires_grad_(False).train()
        neurons = Neurons(model)
        optimizer = torch.optim.SGD([neurons.mask], lr=self.lr, momentum=0.9)
        rng = case.rng("perturbation")
        recipe = replace(case.recipe, batch=min(self.batch, len(data)))
        with swapped(model, neurons):
            batches = training.draws(data, recipe, self.steps, case.rng("batches"), case.device)
            for step, (images, labels) in enumerate(batches):
                with case.autocast():
                    loss = self.loss(model, neurons, images, labels, rng)
                (neurons.mask.grad,) = torch.autograd.grad(loss, [neurons.mask])
                optimizer.step()
                with torch.no_grad():
                    neurons.mask.clamp_(0, 1)
                if step % 100 == 99:
                    case.log(step=step + 1, steps=self.steps, loss=loss.item())
        return neurons.mask.detach().cpu()

    def loss(
        self, model: Net, neurons: Neurons, images: Tensor, labels: Tensor, rng: Generator
    ) -> Tensor:
        """`alpha * natural + (1 - alpha) * perturbed` loss of one batch, after the ascent."""

        def cost(perturbed: bool) -> Tensor:
            neurons.perturbed = perturbed
            return functional.cross_entropy(model(images).float(), labels)

        if self.eps == 0:
            return self.alpha * cost(False)
        shifts = [neurons.weight_shift, neurons.bias_shift]
        with torch.no_grad():
            for shift in shifts:
                noise = torch.rand(neurons.count, generator=rng) * 2 - 1
                shift.copy_(self.eps * noise)
        for _ in range(self.inner_steps):
            gradients = torch.autograd.grad(cost(True), shifts)
            with torch.no_grad():
                for shift, gradient in zip(shifts, gradients, strict=True):
                    shift.add_(self.eps / self.inner_steps * gradient.sign())
                    if self.project:
                        shift.clamp_(-self.eps, self.eps)
        return self.alpha * cost(False) + (1 - self.alpha) * cost(True)

    def choose(self, case: Case, masks: Tensor, holdout: ImageSet) -> tuple[float, dict[str, Any]]:
        """The fair threshold: the largest below which hold-out accuracy never fell by over tau."""
        before = case.accuracy(case.fresh_model(), holdout)
        tolerance = max(self.tau, 2 / len(holdout))
        accepted, after, curve = 0.0, before, [(0.0, before)]
        for threshold in THRESHOLDS:
            model = case.fresh_model()
            prune(model, masks < threshold)
            accuracy = case.accuracy(model, holdout)
            curve.append((threshold, accuracy))
            if accuracy < before - tolerance - 1e-9:
                break
            accepted, after = threshold, accuracy
        return accepted, {"holdout_before": before, "holdout_after": after, "curve": curve}
