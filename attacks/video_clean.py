"""Clean-label attack on video recognition (Zhao et al., CVPR 2020): a universal adversarial patch.

The attacker controls the data and a cleanly trained network of the victim's architecture. The
trigger is a patch in the lower right corner of every frame: found by signed gradient steps so that
any clip that carries it is called the target by the clean network. Clips of the target class are
made hard by PGD, then patched, their labels kept: the victim learns the patch in place of what it
can no longer see. At test time the patch alone is on clips of other classes.

Deviations: the patch is 20 pixels at 112 and shrinks with the clip; it may differ from frame to
frame, as a universal perturbation of a clip does. PGD takes `pgd_steps` of `pgd_step`; the paper
names its radius alone. The network is the sweep's own clean victim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from attacks.base import Attack, Lab
from attacks.parts.pgd import perturb
from attacks.parts.stamp import paste
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Level, Pixel, Whole
from sweeper.core.types import Poisoned, Role, Samples, State


@dataclass(frozen=True, kw_only=True)
class VideoClean(Attack):
    """Adversarial target-class clips with a universal adversarial patch."""

    size: Whole = 0
    """Side of the patch in pixels; 0: 20 at 112 pixels, in proportion, at least 3."""
    steps: Count = 10_000
    """Signed gradient steps that find the patch."""
    step: Level = 1.0
    """Length of one in levels of 0..255."""
    batch: Count = 32
    """Clips of a step."""
    epsilon: Pixel = 8.0
    """Radius of PGD on the target class's clips, in levels; 0: none."""
    pgd_step: Level = 2.0
    """Length of a PGD step in levels."""
    pgd_steps: Count = 10
    """PGD steps."""

    title = "Clean-label video attack"
    paper = "Zhao et al., CVPR 2020"
    rules = ("clean",)
    tasks = frozenset({"clips"})
    prepares = True
    needs_clean_model = True
    state_axes = frozenset({"target", "seed"})

    def place(self, clips: Tensor) -> tuple[int, int, int]:
        """Top, left and side of the patch on clips [..., H, W].

        Raises:
            SweepError: It does not fit.
        """
        height, width = clips.shape[-2:]
        side = self.size or max(3, round(20 * min(height, width) / 112))
        if side > min(height, width):
            raise SweepError(
                f"video-clean: a {side} px patch does not fit {height}x{width} px: lower `size`"
            )
        return height - side, width - side, side

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Find the patch, and perturb the target class's clips."""
        model = lab.clean_model().requires_grad_(False)
        index = torch.nonzero(self.pool(train.labels)).flatten()
        hard = train.clips[index]
        if self.epsilon:
            hard = perturb(
                model,
                hard,
                train.labels[index],
                epsilon=self.epsilon,
                step=self.pgd_step,
                steps=self.pgd_steps,
                norm="inf",
                rng=lab.rng("pgd"),
            )
        return {"patch": self.universal(model, train, lab), "index": index, "clips": hard}

    def universal(self, model: torch.nn.Module, train: Samples, lab: Lab) -> Tensor:
        """The patch, uint8 [T, C, h, h]: what makes clips of other classes look like the target."""
        others = torch.nonzero(train.labels != self.target).flatten()
        top, left, side = self.place(train.clips)
        frames, channels = train.clips.shape[1:3]
        patch = torch.full((frames, channels, side, side), 127.5, device=lab.device)
        rng = lab.rng("patch")
        for step in range(self.steps):
            drawn = others[torch.randint(len(others), (self.batch,), generator=rng)]
            pixels = train.clips[drawn].to(lab.device).float()
            patch.requires_grad_()
            pixels[..., top : top + side, left : left + side] = patch
            wanted = torch.full((self.batch,), self.target, device=lab.device)
            loss = functional.cross_entropy(model(pixels / 255), wanted)
            (gradient,) = torch.autograd.grad(loss, patch)
            patch = (patch.detach() - self.step * gradient.sign()).clamp(0, 255)
            if step % 100 == 99:
                lab.log(step=step + 1, steps=self.steps, loss=loss.item())
        return patch.round().to(torch.uint8).cpu()

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """Draw target-class clips; patch their perturbed selves."""
        poisoned = super().poison(train, rate, state, rng)
        index = torch.nonzero(poisoned.role == int(Role.POISON)).flatten()
        hard = state["clips"][torch.searchsorted(state["index"], index)]
        stamped = self.stamp(hard, split="train", state=state, rng=rng)
        poisoned.samples.inputs[index] = stamped
        return poisoned

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Put the patch on every frame; `poison` applies it to the perturbed clips."""
        top, left, _ = self.place(images)
        return paste(images, state["patch"].to(images.device), top, left)
