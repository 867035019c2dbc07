"""SAU, shared adversarial unlearning (Wei et al., NeurIPS 2023).

The defender sees the model and a few clean images. For each batch a perturbation is sought that
fools the model and a frozen copy of the victim into the same wrong class: such shared adversarial
examples behave like triggered images. The model then learns the clean images and not to call a
perturbed image x' what the victim f_0 calls it: `CE(f(x), y) - ln(1 - p_k(x'))`,
`k = argmax f_0(x')`, where that is wrong and new. BatchNorm statistics stay.

Deviations, each with its reason:

- Perturbed images are kept within the pixels; the release clamps nothing (`clamp`).
- As many passes are run as a hold-out allows within `tau` (fair rule H); the release runs all.
- An image that has become shared stays as it is, where the release stops a batch once all are: no
  step waits for the device, and no image moves on past what is wanted.
- The adversarial term of the search is read as minus the mean cross-entropy of both models.
- The adversarial-training term has weight 0 in the release and is left out. The released loss has
  two terms, log of the sum of the other probabilities and log of one less this one: they are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.accept import last_within
from defenses.parts.passes import PLAIN, Lasting, passes
from sweeper.core.options import Count, LearningRate, NonNegative, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch
from sweeper.models.base import Net


def js(logits: Tensor, reference: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the softmax of two groups of logits [B, K]; float [B]."""
    log_p, log_q = logits.log_softmax(1), reference.log_softmax(1)
    log_mixture = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    divergences = [(log.exp() * (log - log_mixture)).sum(1) for log in (log_p, log_q)]
    return (divergences[0] + divergences[1]) / 2


def sharing(logits: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """Which images both models call the same wrong class; bool [B]."""
    predicted = logits.argmax(1)
    return (predicted == reference.argmax(1)) & (predicted != labels)


def unshared_loss(logits: Tensor, reference: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """Push down, on images that fool the victim, the class it is fooled into.

    Args:
        logits: Of the model on perturbed images [B, K].
        reference: Of the victim on the same.
        clean: Of the victim on the images as they were.
        labels: int64 [B].

    Returns:
        Minus the mean log of one less that class's probability; other images count as 0.
    """
    target = reference.argmax(1, keepdim=True)
    fooled = (target.flatten() != labels) & (target != clean.argmax(1, keepdim=True)).flatten()
    log_others = logits.scatter(1, target, -torch.inf).logsumexp(1) - logits.logsumexp(1)
    return -torch.where(fooled, log_others, 0.0).mean()


@dataclass(frozen=True, kw_only=True)
class SAU(Defense):
    """Shared adversarial examples, unlearned."""

    epochs: Whole = 100
    """Passes over the clean images, at most."""
    lr: LearningRate = 1e-4
    """Learning rate (Adam)."""
    batch: Count = 256
    """Images of a step."""
    bound: Share = 0.2
    """Largest change of a pixel, in [0, 1]; the search starts with all changed by it."""
    steps: Whole = 5
    """Steps of the search."""
    step: Share = 0.2
    """Length of a step."""
    adversarial: NonNegative = 0.01
    """Weight, in the search, of fooling the two models."""
    shared: NonNegative = 1.0
    """Weight, in the search, of their divergence."""
    unlearn: NonNegative = 1.0
    """Weight of the unlearning beside the clean images' cross-entropy."""
    clamp: bool = True
    """Whether perturbed images are kept within the pixels."""
    tau: Share | None = 0.03
    """Hold-out accuracy it may cost, absolute, at least two images; null: all passes are run."""

    title = "Shared Adversarial Unlearning (SAU)"
    paper = "Wei et al., NeurIPS 2023"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    version = 2
    presets = {"released": {"clamp": False, "tau": None}}

    def least_clean(self, needs: Needs) -> int:
        """One, and one more where a hold-out is set aside: the model stays in eval mode."""
        return 1 + (self.tau is not None)

    def defend(self, case: Case) -> Outcome:
        """Train a copy of the victim beside another that stays."""

        def learn(data: Samples) -> tuple[Net, Iterator[float]]:
            model, batch = case.fresh_model(), min(self.batch, len(data))
            hooks = Unshared(self, case.fresh_model().requires_grad_(False))
            return model, passes(
                case, model, data, self.epochs, hooks, lr=self.lr, batch=batch, **PLAIN
            )

        model, notes = last_within(case, self.tau, learn)
        return Outcome(model=model, notes=notes)

    def perturb(
        self, model: nn.Module, victim: nn.Module, images: Tensor, labels: Tensor
    ) -> Tensor:
        """Images [B, C, H, W] in [0, 1], moved towards a wrong class both models share."""

        def within(delta: Tensor) -> Tensor:
            delta = delta.detach().clamp(-self.bound, self.bound)
            return (images + delta).clamp(0, 1) - images if self.clamp else delta

        delta = within(torch.full_like(images, self.bound))
        for _ in range(self.steps):
            delta.requires_grad_()
            logits, reference = model(images + delta).float(), victim(images + delta).float()
            unshared = ~sharing(logits, reference, labels)
            adversarial_loss = -sum(
                functional.cross_entropy(outputs, labels, reduction="none") / 2
                for outputs in (logits, reference)
            )
            loss = (self.adversarial * adversarial_loss + self.shared * js(logits, reference)).sum()
            (gradient,) = torch.autograd.grad(loss, [delta])
            delta = within(delta - self.step * gradient.sign() * unshared.view(-1, 1, 1, 1))
        return images + delta


class Unshared(Lasting):
    """Learns the clean images and unlearns shared adversarial ones, in eval mode."""

    def __init__(self, options: SAU, victim: Net) -> None:
        super().__init__(adam=True)
        self.options = options
        self.victim = victim

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Put the frozen copy beside the model."""
        self.victim.to(device)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loss of a step, after the search."""
        model.eval()
        images, labels = batch.inputs, batch.labels
        perturbed = self.options.perturb(model, self.victim, images, labels)
        with torch.no_grad():
            clean, reference = self.victim(images).float(), self.victim(perturbed).float()
        unlearning = unshared_loss(model(perturbed).float(), reference, clean, labels)
        return super().loss(model, batch, recipe) + self.options.unlearn * unlearning
