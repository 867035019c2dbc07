"""SAM and ASAM: the loss, the climb and the updates of the FIP release, made by `fip-sam`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from attacks import fip_sam
from sweeper.core.types import ImageSet
from sweeper.engine import sharpness
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from tests.reference.golden import load

SHARE = 0.1
"""Of the label, spread over the other classes."""
NAMES = {
    "sam": (
        "SAM gradient",
        "SAM climb",
        "SAM gradient after the climb",
        "SAM running statistics",
        "SAM losses",
        "SAM losses after the climb",
        "SAM displacement after 1 update",
        "SAM displacement after 3 updates",
    ),
    "asam": (
        "ASAM gradient",
        "ASAM climb",
        "ASAM gradient after the climb",
        "ASAM running statistics",
        "ASAM losses",
        "ASAM losses after the climb",
        "ASAM displacement after 1 update",
        "ASAM displacement after 3 updates",
    ),
}


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in tensors if value is not None])


def entropy(classes: int) -> float:
    """Of a smoothed label: what a cross-entropy has more than the release's KL divergence."""
    return -(1 - SHARE) * math.log(1 - SHARE) - SHARE * math.log(SHARE / (classes - 1))


def hooks(classes: int, **options: object) -> fip_sam._Hooks:
    """The attack's part of the training loop."""
    names = tuple(str(number) for number in range(classes))
    train = ImageSet(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1).long(), names)
    found = load("attacks/fip-sam").attack(**options).hooks(train, {}, torch.Generator())
    assert isinstance(found, fip_sam._Hooks)
    return found


@dataclass
class Run:
    """A model updated by the attack, with what is seen on the way."""

    model: nn.Module
    hooks: Hooks
    losses: list[float] = field(default_factory=list)
    """Of every pass: where the weights are, at w + e(w), where the weights are, and so on."""
    there: list[Tensor] = field(default_factory=list)
    """Gradients at w + e(w)."""
    statistics: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of one batch; the attack's smoothing takes the place of the recipe's."""
        batch = Batch(images, labels, torch.arange(len(labels)), 0, 0)
        found = self.hooks.loss(self.model, batch, Recipe(label_smoothing=0.7))
        self.losses.append(found.item())
        return found

    def over(self, batches: Iterable[tuple[Tensor, Tensor]], **sgd: float) -> Run:
        """One update a batch."""
        optimizer = torch.optim.SGD(self.model.parameters(), **sgd)
        for batch in batches:
            self.hooks.step(self.model, optimizer, self.at(batch))
            self.there.append(flat(p.grad for p in self.model.parameters()))
            self.statistics.append(flat([torch.zeros(0), *running(self.model)]))
            self.weights.append(flat(self.model.parameters()))
        return self

    def at(self, batch: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
        return lambda: self.loss(*batch)


def running(model: nn.Module) -> list[Tensor]:
    return [value for name, value in model.named_buffers() if ".running_" in name]


@pytest.mark.parametrize("form", ["sam", "asam"])
def test_three_updates(form: str) -> None:
    z, names = load("defenses/sam"), NAMES[form]
    data, rho = z.data(), z.meta["rho"][form]
    batches = [
        (data.images[index].float() / 255, data.labels[index]) for index in z["batches"].long()
    ]
    own = hooks(10, adaptive=form == "asam", rho=rho)
    model = z.net().train()
    begun = list(model.parameters())
    slopes = torch.autograd.grad(Run(model, own).loss(*batches[0]), begun)
    climb = sharpness.sam_perturbation([*z.net().parameters()], slopes, rho, form == "asam")
    z.agree(names[0], flat(slopes), f"{form}_gradient", within=1e-5, relative=True)
    z.agree(names[1], flat(climb), f"{form}_perturbation", within=2e-5, relative=True)

    sgd = {name: z.meta[name] for name in ("lr", "momentum", "weight_decay")}
    run = Run(z.net().train(), own).over(batches, **sgd)
    z.agree(names[2], run.there[0], f"{form}_gradient_there", within=2e-5, relative=True)
    z.agree(names[3], run.statistics[0], f"{form}_running", within=1e-6)
    less = torch.tensor(run.losses, dtype=torch.float64) - entropy(10)
    z.agree(names[4], less[::2], f"{form}_loss", within=1e-5)
    z.agree(names[5], less[1::2], f"{form}_loss_there", within=1e-5)
    first, third = z[f"{form}_displacement"]
    z.agree(names[6], run.weights[0] - flat(begun), first, within=2e-5, relative=True)
    z.agree(names[7], run.weights[2] - flat(begun), third, within=2e-5, relative=True)


def test_smoothed_loss() -> None:
    z = load("attacks/fip-sam")
    run, logits, labels = Run(nn.Identity(), hooks(10)), z["logits"].requires_grad_(), z["labels"]
    for sample in zip(logits.split(1), labels.split(1), strict=True):
        run.loss(*sample)
    ours = torch.tensor(run.losses, dtype=torch.float64) - entropy(10)
    z.agree("loss of each sample, less the entropy of its label", ours, "loss", within=1e-6)
    (slope,) = torch.autograd.grad(run.loss(logits, labels), logits)
    z.agree("gradient of the mean loss", slope, "gradient", within=1e-6)
    z.agree("share spread over the other classes", z.attack().label_smoothing, "smoothing")
    ours = [hooks(classes).smoothing for classes in (10, 5)]
    theirs = torch.stack([z["equal_label_smoothing"], z["equal_label_smoothing_5"]])
    z.agree("torch's smoothing at ten and five classes", ours, theirs, within=1e-4)


@pytest.mark.parametrize("form", ["adaptive", "plain"])
def test_a_layer_of_five_classes(form: str) -> None:
    z = load("attacks/fip-sam")
    layer = nn.Linear(12, 5)
    layer.load_state_dict({"weight": z["weight"], "bias": z["bias"]})
    own = hooks(5, adaptive=form == "adaptive", rho=float(z.arrays[f"rho_{form}"]))
    sgd = {name: float(z.arrays[name]) for name in ("lr", "momentum", "weight_decay")}
    run = Run(layer, own).over([(z["inputs"], z["targets"])] * 3, **sgd)
    wanted = [flat([z[f"{form}_weight_{k}"], z[f"{form}_bias_{k}"]]) for k in (1, 3)]
    names = {
        "adaptive": ("adaptive: weights after 1 update", "adaptive: weights after 3 updates"),
        "plain": ("plain: weights after 1 update", "plain: weights after 3 updates"),
    }[form]
    z.agree(names[0], run.weights[0], wanted[0], within=1e-6)
    z.agree(names[1], run.weights[2], wanted[1], within=1e-6)
