"""NONE: training without compromised neurons (Wang et al., NeurIPS 2022).

The defender sees the poisoned training set with its labels, and nothing else. A model is trained as
usual. A channel of a convolution is compromised where its largest activation on images that are
surely of some class lies far above what images of other classes give it,
`max a - mean a' - 3 sd a'`: the channels with the largest such gaps of each layer are reset to
zero. Images on which the first channels of the layers are high together, by a natural break, are
dropped; the rest fine-tune the model.

A break in two always exists: of a clean training set a part is dropped too.

Deviations, each with its reason:

- All convolutions are looked at; the release names those of a ResNet from its second stage on
  (`skip: 0.25` leaves out as many).
- What a channel of each layer adds to the suspicion of an image is standardised over the images, as
  layers have other scales (`standardise`; the release adds raw activations).
- What reads a channel is traced through the network's graph, up to additions: a sum is of other
  channels too, and a channel that was reset adds nothing to it. The release zeroes the slice of
  the convolution that follows by name; in ResNets it also resets the channels listed before again
  at later layers, and in one toolbox no name matches, so that nothing is reset
  (`backdoor-toolbox`).
- The image at the break belongs to the part that stays.
- Several rounds, which the release has for trojans in found models, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from defenses.base import Case, Defense, Needs
from defenses.fine_tuning import FrozenInEval
from defenses.parts.graph import graph
from defenses.parts.outputs import convolutions, watched
from sweeper.core.options import LearningRate, NonNegative, Several, Share, Whole
from sweeper.core.types import Outcome

BATCH = 250
SPREAD = 3.0
"""Deviations of the other images' activations that count as usual (release)."""
CHANNELWISE = (
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.Identity,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
)
"""Modules that keep channels apart."""


@torch.inference_mode()
def peaks(
    model: nn.Module, convs: Sequence[nn.Conv2d], images: Tensor, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, batch by batch, (largest activations float64 [B, channels], probabilities [B, K]).

    The channels are those of all `convs`, one after the other.
    """
    with watched(convs) as seen:
        for part in images.split(BATCH):
            logits = model(part.to(device).float().div_(255)).double()
            maxima = [seen[conv].amax((2, 3)).double() for conv in convs]
            yield torch.cat([logits[:, :0], *maxima], 1), logits.softmax(1)


def gaps(batches: Iterable[tuple[Tensor, Tensor]], strong: float, weak: float) -> Tensor:
    """How far a channel's activations rise for some class above what is usual for the others.

    Args:
        batches: (values float64 [B, C], probabilities float64 [B, K]).
        strong: Images above this probability are of the class; at least a half.
        weak: Images below it are of others.

    Returns:
        float64 [C]: the largest over the classes of the maximum on its images less the mean and
        three deviations on the others; -inf where no class has both.
    """
    top = count = total = squares = torch.zeros(())
    for values, p in batches:
        if not top.ndim:
            total = squares = values.new_zeros(p.shape[1], values.shape[1])
            top, count = torch.full_like(total, -math.inf), values.new_zeros(p.shape[1], 1)
        confidence, label = p.max(1)
        confident = confidence > strong
        index = label[confident, None].expand(-1, values.shape[1])
        top = top.scatter_reduce(0, index, values[confident], "amax")
        others = (p < weak).to(values.dtype)
        count = count + others.sum(0)[:, None]
        total = total + others.T @ values
        squares = squares + others.T @ values.square()
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return (top - mean - SPREAD * deviation).nan_to_num(-math.inf, neginf=-math.inf).amax(0)


def natural_break(values: Tensor) -> Tensor:
    """The upper of the two parts [N] splits in with least variance; bool [N], of equals none."""
    ranked, order = values.double().sort(stable=True)
    upper = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    if len(values) > 1 and bool(ranked[0] < ranked[-1]):
        below = torch.arange(1, len(values), device=values.device)
        sums = (ranked - ranked.mean()).cumsum(0)[:-1]
        between = sums.square() / (below * (len(values) - below))
        upper[order[int(between.argmax()) + 1 :]] = True
    return upper


def readers(model: nn.Module) -> dict[nn.Conv2d, list[nn.Module]]:
    """Of each convolution the norms and convolutions that read its channels one by one."""
    modules, readers_of = dict(model.named_modules()), {}
    for node in graph(model).nodes:
        conv = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d):
            continue
        readers_of[conv], queue = list[nn.Module](), list(node.users)
        while queue:
            user = queue.pop()
            module = modules.get(user.target) if user.op == "call_module" else None
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                readers_of[conv].append(module)
            if isinstance(module, CHANNELWISE):
                queue += user.users
    return readers_of


@torch.no_grad()
def reset(model: nn.Module, compromised: Mapping[nn.Conv2d, Tensor]) -> None:
    """Zero channels (int64 [n]) of convolutions: filter, norm, and what the next makes of them."""
    following = readers(model)
    for conv, channels in compromised.items():
        for layer in (conv, *following[conv]):
            if layer is not conv and isinstance(layer, nn.Conv2d):
                width = layer.in_channels // layer.groups
                grouped = layer.weight.view(layer.groups, -1, *layer.weight.shape[1:])
                grouped[channels // width, :, channels % width] = 0.0
                continue
            for name in ("weight", "bias"):
                if getattr(layer, name) is not None:
                    layer.get_parameter(name)[channels] = 0.0


@dataclass(frozen=True, kw_only=True)
class NONE(Defense):
    """Training, reset of compromised channels, fine-tuning without suspicious images."""

    epochs: Whole = 200
    """Passes of the training."""
    lr: LearningRate = 0.1
    """Its learning rate, a tenth of it after two and again after four fifths."""
    share: Share = 0.05
    """Channels of a layer that are reset, rounded up."""
    strong: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    """Probability of a class above which an image is of it."""
    weak: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Probability of a class below which an image is of others."""
    skip: Share = 0.0
    """Share of the convolutions, from the first, that are left alone."""
    standardise: bool = True
    """Whether layers weigh the same in the suspicion of an image."""
    reset: bool = True
    """Whether channels are reset, and not images dropped alone."""
    tune_epochs: Whole = 20
    """Passes over the other images, with BatchNorm's statistics frozen."""
    tune_lr: LearningRate = 1e-4
    """Learning rate of these (constant)."""
    batch: Several = 128
    """Images of a step."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty."""

    title = "NONE"
    paper = "Wang et al., NeurIPS 2022"
    kind = "secure training"
    sees = frozenset({"train"})
    presets = {
        "released": {"share": 0.03, "skip": 0.25, "standardise": False},
        "backdoor-toolbox": {
            "share": 0.03,
            "skip": 0.25,
            "standardise": False,
            "reset": False,
            "tune_epochs": 40,
            "tune_lr": 0.01,
        },
        "small": {"epochs": 20, "lr": 0.05, "tune_epochs": 5, "tune_lr": 1e-3},
    }

    def applies(self, needs: Needs) -> str | None:
        """Refuse networks without convolutions to look at."""
        if needs.model.startswith("vit"):
            return "NONE resets channels of convolutions: a transformer has but one of these"
        return None

    def defend(self, case: Case) -> Outcome:
        """Train a fresh model, reset, drop, fine-tune."""
        model, data = case.new_model(), case.train
        common: dict[str, Any] = {
            "batch": min(self.batch, len(data)),
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": self.weight_decay,
            "warmup": 0.0,
            "label_smoothing": 0.0,
        }
        case.fit(
            model,
            data,
            name="train",
            epochs=self.epochs,
            lr=self.lr,
            schedule="step",
            milestones=(round(self.epochs * 2 / 5), round(self.epochs * 4 / 5)),
            gamma=0.1,
            **common,
        )
        compromised, scores = self.examine(model, data.images, case.device)
        suspects = natural_break(scores)
        if self.reset:
            reset(model, compromised)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        case.fit(
            model,
            data[~suspects],
            name="tune",
            hooks=FrozenInEval(norms),
            epochs=self.tune_epochs,
            lr=self.tune_lr,
            schedule="constant",
            **common,
        )
        notes = {
            "channels": [len(channels) for channels in compromised.values()],
            "suspects": int(suspects.sum()),
        }
        return Outcome(model=model, scores=scores.float(), flagged=suspects, notes=notes)

    def examine(
        self, model: nn.Module, images: Tensor, device: torch.device
    ) -> tuple[dict[nn.Conv2d, Tensor], Tensor]:
        """The channels of each convolution to reset, and the suspicion of each image.

        Returns:
            (convolution -> int64 [n], most compromised first; float64 [N] on the CPU).
        """
        convs = convolutions(model)
        convs = convs[round(self.skip * len(convs)) :]
        widths = [conv.out_channels for conv in convs]
        layer_gaps = gaps(peaks(model, convs, images, device), self.strong, self.weak).split(widths)
        ranked = [gap.argsort(descending=True, stable=True) for gap in layer_gaps]
        first = [sum(widths[:place]) + order[:1] for place, order in enumerate(ranked)]
        strongest = torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *first])
        activations = torch.cat(
            [values[:, strongest] for values, _ in peaks(model, convs, images, device)]
        )
        if self.standardise:
            activations = activations - activations.mean(0)
            activations = activations / activations.square().mean(0).sqrt().clamp(min=1e-12)
        counts = [math.ceil(self.share * width - 1e-9) for width in widths]
        compromised = {
            conv: order[:count] for conv, order, count in zip(convs, ranked, counts, strict=True)
        }
        return compromised, activations.sum(1).cpu()
