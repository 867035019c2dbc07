"""NPD, neural polarizer defense (Zhu et al., NeurIPS 2023).

The defender sees the model and a few clean images. The network is frozen; before a convolution of
its last stage a plug is put, a 1x1 convolution and a norm, first the identity. The plug alone
learns to filter what carries a trigger: clean images stay what they are, and images moved towards
the most likely wrong class are called what they were, and neither that class c nor the likeliest
wrong one k: `CE(f(x), y) + a CE(f(x'), f(x)) - b ln(1 - p_k(x')) - d ln(1 - p_c(x'))`.

Deviations, each with its reason:

- The plug is folded into the convolution and its norm, so that the model returned is the victim's
  architecture (the release saves the plug beside the original network). That is exact as the plug
  sees the convolution's padding; in the release the padding comes after it.
- The place: the last but one convolution whose output goes straight into a BatchNorm, the second
  block's first in ResNet-18. The release knows PreAct-ResNet-18 only.
- As many passes, of warm-up and training, are run as a hold-out allows within `tau` (fair rule H).
- The length of an attack step is not given with the method: here each step has that of `radius`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.accept import last_within
from defenses.parts.passes import PLAIN, Lasting, passes
from sweeper.core.errors import SweepError
from sweeper.core.options import LearningRate, NonNegative, Several, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch
from sweeper.models.base import Net

ENOUGH = 0.6
"""Share of a batch called its targets at which the attack ends (released code)."""


@torch.no_grad()
def place(model: nn.Module, shape: tuple[int, ...], device: torch.device) -> tuple[str, str]:
    """Names of the last but one convolution that feeds a BatchNorm directly, and of that norm.

    Raises:
        SweepError: There is none.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}
    pairs, handles = list[tuple[str, str]](), []
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d) and part.groups == 1 and part.padding_mode == "zeros":

            def after(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                outputs[id(output)] = name, output

            handles.append(part.register_forward_hook(after))
        elif isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:

            def before(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                if id(inputs[0]) in outputs:
                    pairs.append((outputs[id(inputs[0])][0], name))

            handles.append(part.register_forward_pre_hook(before))
    try:
        model(torch.zeros(2, *shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
    if not pairs:
        raise SweepError(
            "npd: the model has no convolution followed by a BatchNorm to put its plug before; "
            "leave npd out for this model"
        )
    return pairs[-min(2, len(pairs))]


class Plugged(nn.Module):
    """A convolution with a plug before it, which sees its padding."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        width, weight = conv.in_channels, conv.weight
        self.mix = nn.Conv2d(width, width, 1, bias=False, device=weight.device)
        nn.init.dirac_(self.mix.weight)
        self.norm = nn.BatchNorm2d(width, device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Pad, filter, convolve."""
        conv = self.conv
        down, across = (int(side) for side in conv.padding)
        filtered = self.norm(self.mix(functional.pad(x, (across, across, down, down))))
        return functional.conv2d(
            filtered, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups
        )

    @torch.no_grad()
    def fold(self, after: nn.BatchNorm2d) -> nn.Conv2d:
        """Put the plug, in eval mode, into the convolution and the norm after it."""
        norm, conv = self.norm, self.conv
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        scale = norm.weight * (var + norm.eps).rsqrt()
        shift = norm.bias - mean * scale
        after.get_buffer("running_mean").sub_((conv.weight.sum((2, 3)) * shift).sum(1))
        mix = self.mix.weight[:, :, 0, 0] * scale[:, None]
        conv.weight.copy_(torch.einsum("ochw,ci->oihw", conv.weight, mix))
        return conv


@dataclass(frozen=True, kw_only=True)
class NPD(Defense):
    """A linear filter before a late convolution, trained against targeted attacks."""

    warmup_epochs: Whole = 5
    """Passes of cross-entropy alone, in which the plug's norm gathers statistics."""
    warmup_lr: LearningRate = 1e-4
    """Learning rate of these."""
    epochs: Whole = 50
    """Passes of the training, at most."""
    lr: LearningRate = 0.01
    """Learning rate of the training (SGD, momentum 0.9, constant)."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty on the plug."""
    batch: Several = 128
    """Images of a step."""
    radius: NonNegative = 3.0
    """Largest change of an image, its L2 norm in pixels of [0, 1]."""
    steps: Whole = 2
    """Steps of the attack, at most."""
    kept: NonNegative = 0.4
    """Weight of calling attacked images what they were called."""
    top: NonNegative = 0.4
    """Weight against the likeliest wrong class of attacked images."""
    target: NonNegative = 0.4
    """Weight against the class they were moved to."""
    tau: Share | None = 0.03
    """Hold-out accuracy it may cost, absolute, at least two images; null: all passes are run."""

    title = "Neural Polarizer Defense (NPD)"
    paper = "Zhu et al., NeurIPS 2023"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    requires = frozenset({"batchnorm"})
    version = 2
    presets = {"released": {"tau": None}}

    def least_clean(self, needs: Needs) -> int:
        """One, and one more where a hold-out is set aside: the model stays in eval mode."""
        return 1 + (self.tau is not None)

    def defend(self, case: Case) -> Outcome:
        """Train a plug in a copy of the victim, and fold it in."""
        name, norm = place(case.fresh_model(), tuple(case.clean.images.shape[1:]), case.device)
        parent, _, child = name.rpartition(".")

        def learn(data: Samples) -> tuple[Net, Iterator[float]]:
            model = case.fresh_model().requires_grad_(False)
            conv = model.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            plugged = Plugged(conv)
            setattr(model.get_submodule(parent), child, plugged)
            return model, self.rounds(case, model, plugged, data)

        model, notes = last_within(case, self.tau, learn)
        plugged, after = model.get_submodule(name), model.get_submodule(norm)
        assert isinstance(plugged, Plugged) and isinstance(after, nn.BatchNorm2d)
        conv = plugged.fold(after) if notes["kept"] else plugged.conv
        setattr(model.get_submodule(parent), child, conv)
        return Outcome(model=model.requires_grad_(True), notes={**notes, "place": name})

    def rounds(self, case: Case, model: Net, plugged: Plugged, data: Samples) -> Iterator[float]:
        """Train the plug that is in `model` pass by pass: the warm-up, then the training."""
        common: dict[str, Any] = {
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": self.weight_decay,
            "batch": min(self.batch, len(data)),
            **PLAIN,
        }
        warm, hooks = Warming(plugged.norm), Polarizing(self)
        warmup = {**common, "name": "warm-up", "lr": self.warmup_lr}
        yield from passes(case, model, data, self.warmup_epochs, warm, **warmup)
        yield from passes(case, model, data, self.epochs, hooks, lr=self.lr, **common)

    def attack(
        self, model: nn.Module, images: Tensor, labels: Tensor, clean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images moved to their likeliest wrong class by the logits `clean`, and that class."""
        targets = wrong_class(clean, labels)
        perturbed, step_size = images, self.radius / images[0].numel() ** 0.5
        for _ in range(self.steps):
            perturbed = perturbed.detach().requires_grad_()
            logits = model(perturbed).float()
            loss = functional.cross_entropy(logits, targets, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, [perturbed])
            ongoing = (logits.argmax(1) == targets).float().mean() <= ENOUGH
            delta = perturbed.detach() - step_size * gradient.sign() * ongoing - images
            norms = delta.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            perturbed = (images + delta * (self.radius / norms).clamp(max=1)).clamp(0, 1)
        return perturbed.detach(), targets


def wrong_class(logits: Tensor, labels: Tensor) -> Tensor:
    """The likeliest class other than the label; int64 [B]."""
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)


def against(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean of `-ln(1.0001 - p)` of a class for each image."""
    probabilities = logits.softmax(1).gather(1, classes[:, None])
    return -torch.log(1.0001 - probabilities).mean()


class Warming(Lasting):
    """Cross-entropy with all but the plug's norm in eval mode."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loop's loss."""
        model.eval()
        self.norm.train()
        return super().loss(model, batch, recipe)


class Polarizing(Lasting):
    """The plug's loss, in eval mode."""

    def __init__(self, options: NPD) -> None:
        super().__init__()
        self.options = options

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """Four terms: clean images, attacked ones, and two classes those must not be."""
        options, images, labels = self.options, batch.inputs, batch.labels
        clean = model.eval()(images).float()
        perturbed, targets = options.attack(model, images, labels, clean)
        logits = model(perturbed).float()
        return (
            functional.cross_entropy(clean, labels)
            + options.kept * functional.cross_entropy(logits, clean.argmax(1))
            + options.top * against(logits, wrong_class(logits, labels))
            + options.target * against(logits, targets)
        )
