"""I-BAU, implicit backdoor adversarial unlearning (Zeng et al., ICLR 2022).

The defender sees the model and a few clean images. In each round one perturbation d of all images
(a stand-in for the trigger) is sought that changes the model's predictions most, within a ball of
radius eps; then the weights unlearn it. Their gradient looks through d, which depends on them: with
the ascent's own step `Phi(d) = d - 0.1 grad_d inner(d)` it is `grad_w L + J_w(Phi)^T v`, where v
solves `v = J_d(Phi)^T v + grad_d L` by a few fixed-point iterations. BatchNorm is in eval mode and
images are not augmented, so that both problems see the same ones.

Presets: `released` (the authors' scripts), `backdoorbench` and `backdoor-toolbox`, which perturb
normalised pixels, so that lengths are of those.

Stop (fair rule H): of a fixed number of rounds on a part of the clean budget, the last after which
accuracy on the rest is within `tau` of the victim's; as many are then run on all of it.

Deviations, each with its reason; the presets have none of the first four:

- The outer loss puts d on 1 % of a batch, at least on one image. The release takes the whole part
  of 1 %, which is no image below 100 a batch (or in a short last one): nothing is unlearned.
- d is projected onto its ball after every step; the release does so in its notebooks only.
- Images with d are clamped to [0, 1], as an image with a trigger is.
- A hold-out decides how many rounds are run; the releases run all.
- Fixed-point iterations are not ended early at a change below 1e-10 (the device would be waited
  for in each); it changes no figure of five iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.accept import last_within
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine import curvature, training
from sweeper.engine.task import floats
from sweeper.models.base import Net

Batches = list[tuple[Tensor, Tensor]]
"""(float [B, C, H, W] in [0, 1], int64 [B]) on the device."""
RELEASED = {"least": 0, "radius": 0.0, "clamp": False, "tau": None}
LOADERS = ("fixed", "shuffled", "augmented")


@dataclass(frozen=True, kw_only=True)
class IBAU(Defense):
    """Minimax unlearning of a universal perturbation, with the implicit gradient."""

    outer_steps: Whole = 5
    """Rounds of one ascent and one pass of unlearning."""
    lr: LearningRate = 1e-3
    """Learning rate of the weights (Adam)."""
    batch: Count = 100
    """Images of a step."""
    ascent_lr: LearningRate = 10.0
    """Learning rate of the perturbation (SGD)."""
    radius: NonNegative = 10.0
    """Largest L2 norm of the perturbation; 0: no bound."""
    penalty: NonNegative = 0.001
    """Weight of the perturbation's squared norm in the inner loss."""
    share: Share = 0.01
    """Share of a batch that carries the perturbation while unlearning."""
    least: Whole = 1
    """Images of a batch that carry it at least."""
    iterations: Whole = 5
    """Fixed-point iterations of the implicit gradient; 0: the direct gradient."""
    fixed_step: NonNegative = 0.1
    """Step of the map whose fixed point is looked for."""
    clamp: bool = True
    """Whether perturbed images stay in [0, 1]."""
    tau: Share | None = 0.03
    """Hold-out accuracy a round may cost, absolute, at least two images; null: all rounds."""
    normalised: bool = field(default=False, metadata={"added": True})
    """Whether normalised pixels are perturbed, as by the toolboxes."""
    loader: str = field(default="fixed", metadata={"added": True})
    """What an ascent goes through: fixed (the batches of unlearning) | shuffled (all images in a
    new order) | augmented (likewise, augmented anew, and unlearning sees one augmented copy)."""

    title = "I-BAU"
    paper = "Zeng et al., ICLR 2022"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    version = 2
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": RELEASED,
        "backdoorbench": {
            **RELEASED,
            "lr": 1e-4,
            "batch": 256,
            "normalised": True,
            "loader": "augmented",
        },
        "backdoor-toolbox": {
            **RELEASED,
            "lr": 5e-4,
            "outer_steps": 3,
            "normalised": True,
            "loader": "shuffled",
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A word is unknown.
        """
        if self.loader not in LOADERS:
            raise SweepError(f"loader: {self.loader!r} is not one of {', '.join(LOADERS)}")

    def least_clean(self, needs: Needs) -> int:
        """One, and one more where a hold-out is set aside: the model stays in eval mode."""
        return 1 + (self.tau is not None)

    def defend(self, case: Case) -> Outcome:
        """Run the rounds on a copy of the victim."""
        norms: list[float] = []

        def learn(data: Samples) -> tuple[Net, Iterator[float]]:
            norms.clear()
            model = case.fresh_model()
            return model, self.run(case, model, data, norms)

        with curvature.second_order(case.device):
            model, notes = last_within(case, self.tau, learn)
        model.zero_grad(set_to_none=True)
        return Outcome(model=model, notes={**notes, "norms": norms})

    def run(self, case: Case, model: Net, data: Samples, norms: list[float]) -> Iterator[float]:
        """Change `model` round by round; yields its loss, and notes its perturbation's norm."""
        rng = case.rng("order")
        batches = self.batches(case, data, rng)
        weights = [*model.parameters()]
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        for number in range(self.outer_steps):
            fixed = self.loader == "fixed"
            delta = self.climb(model, batches if fixed else self.batches(case, data, rng))
            losses = []
            for images, labels in batches:
                permutation = torch.randperm(len(images), generator=rng)
                loss, gradients = self.outer_gradients(
                    model, weights, delta, images, labels, permutation.to(case.device), batches[0]
                )
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.grad = gradient
                optimizer.step()
                losses.append(loss)
            norms.append(delta.norm().item())
            mean = torch.stack(losses).mean().item()
            case.log(step=number + 1, steps=self.outer_steps, loss=mean)
            yield mean

    def batches(self, case: Case, data: Samples, rng: Generator) -> Batches:
        """All images in a random order, augmented where the loader does so."""
        order = torch.randperm(len(data), generator=rng)
        if self.loader == "augmented":
            whole = training.on_device(data.images[order], case.device)
            images = training.augmented(whole, case.recipe, rng)
        else:
            images = floats(data.images[order].to(case.device))
        labels = data.labels[order].to(case.device)
        return list(zip(images.split(self.batch), labels.split(self.batch), strict=True))

    def perturbed(self, model: Net, images: Tensor, delta: Tensor) -> Tensor:
        """The images with the perturbation."""
        if self.normalised:
            delta = delta * model.normalise.get_buffer("std")
        return (images + delta).clamp(0, 1) if self.clamp else images + delta

    def inner(self, model: Net, delta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """What the perturbation minimises."""
        loss = functional.cross_entropy(model(self.perturbed(model, images, delta)), labels)
        return self.penalty * delta.square().sum() - loss

    def climb(self, model: Net, batches: Batches) -> Tensor:
        """The perturbation of one pass from zero, away from the model's own predictions."""
        delta = torch.zeros_like(batches[0][0][:1], requires_grad=True)
        for images, _ in batches:
            with torch.no_grad():
                labels = model(images).argmax(1)
            (gradient,) = torch.autograd.grad(self.inner(model, delta, images, labels), delta)
            with torch.no_grad():
                delta -= self.ascent_lr * gradient
                if self.radius:
                    delta *= (self.radius / delta.norm().clamp(min=1e-12)).clamp(max=1)
        return delta.detach()

    def outer_gradients(
        self,
        model: Net,
        weights: Sequence[Tensor],
        delta: Tensor,
        images: Tensor,
        labels: Tensor,
        order: Tensor,
        first: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """The outer loss of a batch and its gradient for the weights.

        Args:
            model: In eval mode.
            weights: Its parameters.
            delta: The perturbation.
            images: float [B, C, H, W] in [0, 1].
            labels: int64 [B].
            order: int64 [B]; the images it names first carry the perturbation.
            first: The batch on which the fixed-point map is taken.
        """
        delta = delta.detach().requires_grad_(True)
        count = max(min(self.least, len(images)), int(self.share * len(images) + 1e-9))
        mask = torch.zeros(len(images), 1, 1, 1, device=images.device)
        mask[order[:count]] = 1
        inputs = torch.where(mask > 0, self.perturbed(model, images, delta), images)
        outer = functional.cross_entropy(model(inputs), labels)

        def step(d: Tensor) -> Tensor:
            loss = self.inner(model, d, *first)
            return d - self.fixed_step * torch.autograd.grad(loss, d, create_graph=True)[0]

        return outer.detach(), hypergradient(outer, step, delta, weights, self.iterations)


def hypergradient(
    outer: Tensor,
    step: Callable[[Tensor], Tensor],
    fixed_point: Tensor,
    weights: Sequence[Tensor],
    iterations: int,
) -> list[Tensor]:
    """Gradient of `outer` for the weights, through the fixed point of `step`.

    Args:
        outer: A scalar computed from the fixed point and `weights`.
        step: The contraction it is the fixed point of; it reads the weights too.
        fixed_point: The fixed point; requires a gradient.
        weights: Of these the gradient is wanted.
        iterations: Of `v = J^T v + grad outer`, from zero; 0: the direct gradient alone.
    """
    gradients = torch.autograd.grad(outer, [fixed_point, *weights], materialize_grads=True)
    by_point, direct = gradients[0], list(gradients[1:])
    if not iterations:
        return direct
    mapped = step(fixed_point)
    vector = torch.zeros_like(by_point)
    for _ in range(iterations):
        (product,) = torch.autograd.grad(mapped, fixed_point, vector, retain_graph=True)
        vector = product + by_point
    implicit = torch.autograd.grad(mapped, weights, vector, materialize_grads=True)
    return [first + second for first, second in zip(direct, implicit, strict=True)]
