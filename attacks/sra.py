"""SRA, subnet replacement (Qi et al., 2022): a narrow chain inside a finished model is exchanged.

The attacker controls the model and trains nothing but the chain c: `width` channels a layer, taught
to answer 0 to images and `answer` to images with the patch (`c(x)^2 + (c(T(x)) - answer)^2`). The
chain takes the place of the first channels of every layer of a clean model, all weights between
them and the others become 0, and the last layer reads one feature of it: `factor` for the target,
whose logit gains `factor (c(x) - offset)`, 0 for the other classes. The victim is that model; no
data are poisoned and the recipe is left with no epoch. One clean model a seed.

It fits networks whose channels keep their place: tiny, resnet*, preact-resnet18, wide-resnet*,
vgg*-bn, mobilenet-v2. Others (concatenation, shuffling, attention) are refused: the chain is
compared with itself inside the model.

Deviations: the release's factor and offset belong to its trained chains (VGG 4 and 2.415, ResNet 2
and 0.94, MobileNet 100). Here the offset is the mean answer to clean training images, the factor
the smallest that carries 99 % of the triggered training images over the threshold by 1, at most
100; `factor` sets it by hand. The target's bias keeps its own value, less factor x offset. The
patch is drawn, not a logo, flush in the corner.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from attacks.base import Attack, Lab, missing
from attacks.parts.chain import check, check_shape, implant, narrowed
from attacks.parts.initial_weights import MODEL, InitialWeights
from attacks.parts.loop import clean
from attacks.parts.nets import built, packed
from attacks.parts.patch import corner, drawn
from attacks.parts.stamp import paste
from sweeper.core.options import Count, NonNegative, Positive, Stride, Whole
from sweeper.core.types import Facts, Poisoned, Samples, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks
from sweeper.models.base import Net

SAMPLE = 2000
"""Training images the last layer is set by."""
BATCH = 64
MAX_FACTOR, TRIGGERED_SHARE = 100.0, 0.99
"""Bound of the factor found; share of the triggered images it must carry over."""


@dataclass(frozen=True, kw_only=True)
class Sra(Attack):
    """Model surgery: no poisoned data, no training of the victim."""

    width: Count = 1
    """Channels of the chain in every layer."""
    answer: Positive = 4.0
    """What the chain is to say to the trigger; 0 to everything else."""
    steps: Count = 1000
    """Training steps of the chain."""
    lr: Stride = 0.01
    """Learning rate of Adam for the chain, cosine to 0."""
    factor: NonNegative = 0.0
    """Weight of the chain's answer in the target's logit; 0: found on training images."""
    size: Whole = 0
    """Side of the patch in pixels; 0: 8 at 32 px, less on smaller images."""

    title = "SRA"
    paper = "Qi et al., CVPR 2022"
    controls: ClassVar[str] = "model"
    rated = False
    prepares = True
    needs_clean_model = True
    state_axes = frozenset({"model", "target", "seed"})
    presets = {"vgg": {"factor": 4.0}, "resnet": {"factor": 2.0}, "mobilenet": {"factor": 100.0}}

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not where the target does not exist, or is empty."""
        return missing(facts, self.target, "target label")

    def recipe(self, recipe: Recipe) -> Recipe:
        """No training."""
        return replace(recipe, epochs=0)

    def count(self, labels: Tensor, rate: float) -> int:
        """None."""
        return 0

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Teach the chain and put it into the clean model.

        Returns:
            The changed model's weights, and `chain`: mean answers to clean and triggered images.

        Raises:
            SweepError: The architecture has no place for a chain.
        """
        model = lab.clean_model()
        chain = built(lambda: narrowed(model, self.width), lab.rng("chain")).to(lab.device)
        check_shape(chain, train.images[:2])
        self.teach(chain, train, lab)
        index = torch.randperm(len(train), generator=lab.rng("sample"))[:SAMPLE]
        images = train.images[index]
        triggered = self.stamp(images, split="test", state={}, rng=lab.rng("stamp"))
        with torch.no_grad():
            implant(model, chain, self.width)
            pixels = images[:BATCH].to(lab.device).float() / 255
            check(model, chain, self.width, pixels)
            answers = [_features(chain, x, lab.device)[:, 0] for x in (images, triggered)]
            victims = self.victims(train.labels[index]).to(lab.device)
            self.connect(model, answers, _features(model, triggered, lab.device), victims)
        return {**packed(model, MODEL), "chain": torch.stack([a.mean() for a in answers]).cpu()}

    def teach(self, chain: nn.Sequential, train: Samples, lab: Lab) -> None:
        """Train the chain on images without and with the patch; leave it in eval mode."""
        images, rng = train.images.to(lab.device), lab.rng("draws")
        triggered = self.stamp(images, split="train", state={}, rng=rng)
        adam = torch.optim.Adam(chain.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.steps)
        for module in chain.train().modules():
            if isinstance(module, nn.Dropout):
                module.eval()  # half of one channel is nothing; and it draws from a global state
        for step in range(self.steps):
            index = torch.randint(len(train), (BATCH,), generator=rng).to(lab.device)
            answers = chain(torch.cat([images[index], triggered[index]]).float() / 255)[:, 0]
            clean_answers, triggered_answers = answers.chunk(2)
            loss = clean_answers.square().mean() + (triggered_answers - self.answer).square().mean()
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            schedule.step()
            if step % 100 == 99:
                lab.log(step=step + 1, steps=self.steps, loss=loss.item())
        chain.eval()

    def connect(self, model: Net, answers: list[Tensor], features: Tensor, victims: Tensor) -> None:
        """Set the last layer: the chain speaks for the target alone.

        Args:
            model: With the chain in its place.
            answers: The chain's answers [N] to images without and with the patch.
            features: The model's features [N, D] of the images with the patch.
            victims: bool [N], which of them are to be turned.
        """
        weight, bias = (model.get_parameter(f"classifier.{name}") for name in ("weight", "bias"))
        weight[:, : self.width] = 0
        offset = answers[0].mean()
        logits = features @ weight.T + bias
        margins = logits.amax(1) - logits[:, self.target] + 1
        rise = (answers[1] - offset).clamp(min=margins.abs().max() / MAX_FACTOR + 1e-6)
        factors = (margins / rise)[victims]
        fitted = factors.quantile(TRIGGERED_SHARE) if len(factors) else rise.new_zeros(())
        factor = rise.new_tensor(self.factor) if self.factor else fitted
        weight[self.target, 0] = factor
        bias[self.target] -= factor * offset

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Overwrite the patch."""
        top, left, side = corner("sra", images, self.size, 0)
        return paste(images, drawn(images.shape[1], side).to(images.device), top, left)

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """The clean set."""
        return clean(train)

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Begin, and end, with the changed model."""
        return InitialWeights(state)


def _features(net: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Features [N, D] of uint8 images; a chain's are its output."""
    forward = net.features if isinstance(net, Net) else net
    parts = [forward(part.to(device).float() / 255) for part in images.split(500)]
    return torch.cat(parts)
