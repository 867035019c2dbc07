"""Sleeper Agent (Souri et al., 2022): clean-label images whose gradient is that of triggered ones.

The attacker controls the data and knows the victim's architecture. Images of the target class are
changed by at most `epsilon`, their labels kept, so that training on them moves a model as training
on patched source images with the target label would. The patch itself is in no training image. ASR
counts the source class alone; `leak` is the share of triggered images of all other classes, the
target's aside, that reach the target.

1. A clean model; the target-class images with the largest parameter gradient are chosen.
2. `steps` signed steps of Adam minimise `1 - cos` of the gradient of the chosen images, shifted and
   mirrored at random, and that of patched source images with the target label.
3. Every `retrain_every` steps a new model is trained on the data as poisoned so far, and the second
   gradient is taken from it.

The state belongs to one poison rate and target, and is shared by all seeds of the victim.

Deviations: the gradient of the source images is the mean over up to 1,000 of them, patched at
random places. Adam's rate is in [0, 1] pixels, x0.1 after 3/8, 5/8 and 7/8 of the steps. All chosen
images take each step together, their gradients matched batch by batch. Retraining is the sweep's
recipe with the published length and steps (x0.1 after .35, .6 and .875 of its epochs). The images
stay in their places instead of at the end of the set. The patch shrinks with images below 32 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.base import Lab, missing
from attacks.parts.clean_label import CleanLabel
from attacks.parts.patch import corner
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Level, Stride, Whole
from sweeper.core.types import Facts, Poisoned, Role, Samples, State

SOURCES = 1000
"""Source images whose gradient is matched."""
DECAY = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the crafting after which Adam's rate falls to a tenth."""
RETRAIN_DECAY = (0.35, 0.6, 0.875)
"""Shares of a retraining likewise (14, 24, 35 of 40 epochs)."""


@dataclass(frozen=True, kw_only=True)
class SleeperAgent(CleanLabel):
    """Hidden-trigger, clean-label attack by gradient matching."""

    rate_base: str = "all"
    """What the poison rate is a share of: all (the paper) | non-target | target-class."""
    source_class: Whole = 1
    """The class whose triggered images are to be misclassified."""
    size: Whole = 0
    """Side of the patch in pixels; 0: 8 at 32 px, less on smaller images."""
    place: str = "corner"
    """corner (bottom right) | random: where the patch is at test time."""
    epsilon: Level = 16.0
    """Largest change of a pixel in levels of 0..255."""
    steps: Count = 250
    """Crafting steps."""
    lr: Stride = 0.025
    """Adam's rate, pixels in [0, 1], for batches of 128; others are scaled."""
    batch: Count = 128
    """Poisoned images whose gradient is matched at once."""
    shift: Whole = 4
    """Largest random shift of the images in crafting, in pixels at 32 px."""
    flip: bool = True
    """Whether images are mirrored at random in crafting."""
    retrain_every: Whole = 50
    """Crafting steps between two retrainings; 0: the clean model is kept."""
    retrain_epochs: Count = 40
    """Epochs of a retraining."""

    title = "Sleeper Agent"
    paper = "Souri et al., NeurIPS 2022 (arXiv 2106.08970)"
    rules = ("source",)
    prepares = True
    needs_clean_model = True
    state_axes = frozenset({"model", "poison_rate", "target"})
    presets = {"backdoorbox": {"place": "random"}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown place.
        """
        super().__post_init__()
        if self.place not in ("corner", "random"):
            raise SweepError(f"place: {self.place!r} is not one of corner, random")
        if min(self.source_class, self.size, self.shift, self.retrain_every) < 0:
            raise SweepError("source_class, size, shift, retrain_every: not below 0")

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not where the source class does not exist, has no image or is the target."""
        source = self.source_class
        if self.target == source:
            return f"target label {source} is the source class: name another `source_class`"
        return missing(facts, source, "source class") or super().applies(facts, rate)

    def pool(self, labels: Tensor) -> Tensor:
        """The target class."""
        return labels == self.target

    def victims(self, labels: Tensor) -> Tensor:
        """The source class."""
        return labels == self.source_class

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Choose and change the images of the target class.

        Returns:
            `patch` uint8 [C, s, s]; `index` int64 [P], ascending; `images` uint8 [P, C, H, W].
        """
        rng = lab.rng("patch")
        side = corner("sleeper-agent", train.images, self.size, 0)[2]
        bits = torch.randint(2, (train.images.shape[1], side, side), generator=rng)
        patch = (255 * bits).to(torch.uint8)
        model = lab.clean_model().requires_grad_(True)
        pool = torch.nonzero(self.pool(train.labels)).flatten()
        count = min(self.count(train.labels, self.poison_rate), len(pool))
        norms = gradient_norms(model, train.images[pool], self.target)
        index = pool[norms.topk(count).indices.cpu()].sort().values
        images = self._craft(model, train, index, patch, lab) if count else train.images[:0]
        return {"patch": patch, "index": index, "images": images}

    def _craft(
        self, model: nn.Module, train: Samples, index: Tensor, patch: Tensor, lab: Lab
    ) -> Tensor:
        """uint8: the images at `index` as changed."""
        rng, limit = lab.rng("craft"), self.epsilon / 255
        clean = train.images[index].to(lab.device).float() / 255
        sources = train.images[self.victims(train.labels)]
        sources = sources[torch.randperm(len(sources), generator=rng)[:SOURCES]]
        sources = scattered(sources, patch, rng)
        noise = 2 * torch.rand(clean.shape, generator=rng) - 1
        delta = within(clean, limit * noise.to(lab.device), limit)
        adam = torch.optim.Adam([delta], lr=self.lr * min(self.batch, len(index)) / 128)
        milestones = [round(share * self.steps) for share in DECAY]
        schedule = torch.optim.lr_scheduler.MultiStepLR(adam, milestones)
        source_gradient = self._source_gradient(model, sources)
        for step in range(self.steps):
            if step and self.retrain_every and step % self.retrain_every == 0:
                poisoned = train.changed(images=train.images.clone())
                poisoned.images[index] = changed(train.images[index], delta)
                model = self._retrained(poisoned, f"model {step}", lab)
                source_gradient = self._source_gradient(model, sources)
            signs = []
            for part, part_delta in zip(
                clean.split(self.batch), delta.split(self.batch), strict=True
            ):
                part_delta = part_delta.detach().requires_grad_()
                augmented = self._augmented(part + part_delta, rng)
                labels = torch.full((len(part),), self.target, device=lab.device)
                loss = functional.cross_entropy(model(augmented), labels)
                poison_gradient = torch.autograd.grad(loss, weights(model), create_graph=True)
                (gradient,) = torch.autograd.grad(
                    1 - cosine(poison_gradient, source_gradient), part_delta
                )
                signs.append(gradient.sign())
            delta.grad = torch.cat(signs)
            adam.step()
            schedule.step()
            delta.copy_(within(clean, delta, limit))
            lab.log(step=step + 1, steps=self.steps)
        return changed(train.images[index], delta)

    def _retrained(self, data: Samples, name: str, lab: Lab) -> nn.Module:
        """A new model trained on the data as they are now."""
        model, epochs = lab.new_model(name), self.retrain_epochs
        milestones = tuple(round(share * epochs) for share in RETRAIN_DECAY)
        lab.fit(model, data, None, name=name, epochs=epochs, schedule="step", milestones=milestones)
        return model.eval()

    def _source_gradient(self, model: nn.Module, sources: Tensor) -> list[Tensor]:
        """Gradient of the mean loss of patched source images [N] with the target label."""
        totals = [torch.zeros_like(w) for w in weights(model)]
        device = totals[0].device
        for part in sources.split(250):
            labels = torch.full((len(part),), self.target, device=device)
            logits = model(part.to(device).float() / 255)
            loss = functional.cross_entropy(logits, labels, reduction="sum") / len(sources)
            for total, gradient in zip(
                totals, torch.autograd.grad(loss, weights(model)), strict=True
            ):
                total += gradient
        return totals

    def _augmented(self, pixels: Tensor, rng: Generator) -> Tensor:
        """Shift (by fractions of a pixel) and mirror each image, differentiably."""
        count, _, height, width = pixels.shape
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = 1
        theta[:, 1, 1] = 1
        theta[:, :, 2] = (2 * torch.rand(count, 2, generator=rng) - 1) * (2 * self.shift / 32)
        if self.flip:
            theta[:, 0, 0] = 1 - 2 * torch.randint(2, (count,), generator=rng).float()
        grid = functional.affine_grid(theta, [count, 1, height, width], align_corners=False)
        return functional.grid_sample(pixels, grid.to(pixels.device), align_corners=False)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Put the patch into the corner or at random places."""
        if self.place == "random":
            return scattered(images, state["patch"], rng)
        top, left, side = corner("sleeper-agent", images, self.size, 0)
        out = images.clone()
        out[:, :, top : top + side, left : left + side] = state["patch"].to(images.device)
        return out

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """Replace the chosen images; no label changes."""
        index, labels = state["index"], train.labels.clone()
        role = torch.full((len(train),), int(Role.CLEAN), dtype=torch.uint8)
        role[index] = int(Role.POISON)
        images = train.images.clone()
        images[index] = state["images"]
        return Poisoned(
            train.changed(images=images, labels=labels),
            labels.clone(),
            role,
            torch.arange(len(train)),
        )


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients are matched: all."""
    return list(model.parameters())


def cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Cosine of the angle between two gradients, each a tensor a parameter."""
    pairs = list(zip(first, second, strict=True))
    dot, first_square, second_square = (
        torch.stack([(a * b).sum() for a, b in group]).sum()
        for group in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs])
    )
    return dot / (first_square * second_square).clamp(min=1e-30).sqrt()


def gradient_norms(model: nn.Module, images: Tensor, label: int) -> Tensor:
    """Norm of each image's parameter gradient of the loss of `label`; float [N]."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    device = next(iter(parameters.values())).device
    buffers = dict(model.named_buffers())

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, (values, buffers), (image.unsqueeze(0),))
        return functional.cross_entropy(logits, torch.tensor([label], device=device))

    # per-sample gradients of 2e8 numbers, 0.8 GB, at once
    chunk = max(1, min(128, int(2e8 / sum(v.numel() for v in parameters.values()))))
    per_sample_gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    norms = [torch.empty(0, device=device)]
    for part in images.split(chunk):
        gradients = per_sample_gradient(parameters, part.to(device).float() / 255)
        norms.append(sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt())
    return torch.cat(norms)


def scattered(images: Tensor, patch: Tensor, rng: Generator) -> Tensor:
    """Overwrite a patch [C, s, s] at a random place of each uint8 image."""
    count, side = len(images), patch.shape[-1]
    height, width = images.shape[2:]
    top = torch.randint(height - side + 1, (count, 1, 1), generator=rng).to(images.device)
    left = torch.randint(width - side + 1, (count, 1, 1), generator=rng).to(images.device)
    rows = torch.arange(height, device=images.device)[:, None] - top
    columns = torch.arange(width, device=images.device) - left
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    cells = rows.clamp(0, side - 1), columns.clamp(0, side - 1)
    placed = patch.to(images.device)[:, cells[0], cells[1]].transpose(0, 1)
    return torch.where(inside[:, None], placed, images)


def within(pixels: Tensor, delta: Tensor, limit: float) -> Tensor:
    """Clip the change to the limit and the changed pixels to [0, 1]."""
    return (pixels + delta.clamp(-limit, limit)).clamp(0, 1) - pixels


def changed(images: Tensor, delta: Tensor) -> Tensor:
    """uint8 images with a change in [0, 1]; truncated towards the originals."""
    change = (255 * delta).trunc().to(torch.int16).cpu()
    return (images.to(torch.int16) + change).clamp(0, 255).to(torch.uint8)
