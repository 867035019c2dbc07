"""AWM, Adversarial Weight Masking (Chai and Chen, NeurIPS 2022).

The defender sees the model and a few clean images, down to one a class. Every weight of every
convolution gets a mask in [0, 1], at first 1. In turn, a perturbation d of all images is sought
that changes the masked model's predictions most, and the masks learn to classify with and without
it: `alpha CE(x) + (1 - alpha) CE(clamp(x + d)) + gamma |m|_1`. The result is the softly masked
model; nothing is made binary. BatchNorm is in eval mode. gamma's gradient is 1e-8 an element: it
acts only where that of the cross-entropy is about as small. Notes tell what the masks came to.

Stop (fair rule H): of a fixed number of turns on a part of the clean budget, the last after which
accuracy on the rest is within `tau` of the victim's; as many are then run on all of it.

Deviations, each with its reason:

- A turn has `inner_epochs * ceil(N / batch)` batches. The release rounds down: no batch at all
  where the images are fewer than a batch, so that the model comes back as it was.
- Augmentation is the data set's; the one-shot setting of the release adds nine augmented copies of
  each image to the set, which batches drawn with replacement and augmented anew stand for.
- Its switches that are off are not here: a phase before that only shrinks, decay of the learning
  rate, random masks.
- Clean images are the clean budget; the release takes test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.accept import last_within
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine import training
from sweeper.models.base import Net

Masks = dict[str, Tensor]
"""Name of a weight -> its mask, of its shape."""


@dataclass(frozen=True, kw_only=True)
class AWM(Defense):
    """Soft masks on single weights, learned against a universal perturbation."""

    outer_steps: Whole = 20
    """Turns of perturbation and masks."""
    inner_epochs: Count = 5
    """Passes over the clean images, drawn with replacement, in each half of a turn."""
    alpha: Share = 0.9
    """Weight of the natural loss; 1 - alpha weighs the perturbed one."""
    gamma: NonNegative = 1e-8
    """Weight of the masks' sum."""
    lr: LearningRate = 1e-2
    """Learning rate of the masks (Adam)."""
    ascent_lr: LearningRate = 10.0
    """Learning rate of the perturbation (SGD)."""
    bound: NonNegative = 1000.0
    """Largest L1 norm of the perturbation."""
    batch: Count = 128
    """Images of a step."""
    tau: Share | None = 0.03
    """Hold-out accuracy a turn may cost, absolute, at least two images; null: all turns."""

    title = "Adversarial Weight Masking (AWM)"
    paper = "Chai and Chen, NeurIPS 2022"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    version = 2
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "one-shot": {"alpha": 0.99, "bound": 100.0, "batch": 32, "tau": None},
    }

    def applies(self, needs: Needs) -> str | None:
        """Refuse transformers, whose only convolution cuts the image into patches."""
        if needs.model.startswith("vit"):
            return "masks the weights of convolutions, which a transformer does not compute with"
        return None

    def least_clean(self, needs: Needs) -> int:
        """One, and one more where a hold-out is set aside: the model stays in eval mode."""
        return 1 + (self.tau is not None)

    def defend(self, case: Case) -> Outcome:
        """Learn the masks beside a copy of the victim, and fold them in."""
        model = case.fresh_model().requires_grad_(False)

        def learn(data: Samples) -> tuple[Masks, Iterator[float]]:
            masks = whole(model)
            return masks, self.learn(case, model, masks, data)

        masks, notes = last_within(
            case, self.tau, learn, lambda masks: folded(case.fresh_model(), masks)
        )
        everything = torch.cat([mask.detach().flatten() for mask in masks.values()])
        notes |= {
            "masks": len(everything),
            "mask_mean": everything.mean().item(),
            "below_half": (everything < 0.5).float().mean().item(),
        }
        return Outcome(model=folded(case.fresh_model(), masks), notes=notes)

    def learn(self, case: Case, model: Net, masks: Masks, data: Samples) -> Iterator[float]:
        """Change `masks` turn by turn; yields the last loss of each."""
        size = min(self.batch, len(data))
        recipe, steps = replace(case.recipe, batch=size), self.inner_epochs * -(-len(data) // size)
        optimizer = torch.optim.Adam(masks.values(), lr=self.lr)
        rng = case.rng("batches")
        for turn in range(self.outer_steps):
            batches = training.draws(data, recipe, 2 * steps, rng, case.device)
            perturbation = torch.zeros(1, *data.images.shape[1:], device=case.device)
            for _ in range(steps):
                perturbation = self.climb(case, model, masks, next(batches)[0], perturbation)
            norm = perturbation.abs().sum().clamp(min=1e-12)
            perturbation = perturbation * (self.bound / norm).clamp(max=1)
            loss = torch.zeros(())
            for images, labels in batches:
                with case.autocast():
                    loss = self.loss(model, masks, images, labels, perturbation)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_clamp_min_([*masks.values()], 0.0)
                    torch._foreach_clamp_max_([*masks.values()], 1.0)
            case.log(step=turn + 1, steps=self.outer_steps, loss=loss.item())
            yield loss.item()

    def climb(
        self, case: Case, model: Net, masks: Masks, images: Tensor, perturbation: Tensor
    ) -> Tensor:
        """One step of the perturbation away from the masked model's own predictions."""
        perturbation = perturbation.detach().requires_grad_(True)
        fixed = {name: mask.detach() for name, mask in masks.items()}
        with case.autocast():
            with torch.no_grad():
                labels = masked(model, fixed, images).argmax(1)
            logits = masked(model, fixed, images + perturbation).float()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, labels), perturbation)
        return (perturbation + self.ascent_lr * gradient).detach()

    def loss(
        self, model: Net, masks: Masks, images: Tensor, labels: Tensor, perturbation: Tensor
    ) -> Tensor:
        """What the masks descend, of one batch."""
        perturbed_images = (images + perturbation).clamp(0, 1)
        natural = functional.cross_entropy(masked(model, masks, images).float(), labels)
        perturbed = functional.cross_entropy(masked(model, masks, perturbed_images).float(), labels)
        l1_norm = torch.stack([mask.sum() for mask in masks.values()]).sum()
        return self.alpha * natural + (1 - self.alpha) * perturbed + self.gamma * l1_norm


def whole(model: nn.Module) -> Masks:
    """Masks of one for the weights of all convolutions.

    Raises:
        SweepError: The model has no convolution.
    """
    masks = {
        f"{name}.weight": torch.ones_like(module.weight).requires_grad_(True)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    if not masks:
        raise SweepError("AWM masks convolutions and the model has none: leave AWM out")
    return masks


def masked(model: nn.Module, masks: Masks, images: Tensor) -> Tensor:
    """Logits of the model with masked weights."""
    weights = {name: model.get_parameter(name) * mask for name, mask in masks.items()}
    logits: Tensor = torch.func.functional_call(model, weights, (images,))
    return logits


@torch.no_grad()
def folded(model: Net, masks: Masks) -> Net:
    """The model with the masks multiplied into its weights, in place."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)
    return model
