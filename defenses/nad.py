"""NAD, Neural Attention Distillation (Li et al., ICLR 2021).

The defender sees the model and a few clean images. A teacher is the model fine-tuned on them; the
student is the model itself, trained on the same images to classify them and to look where the
teacher looks. Attention of a feature map F [C, h, w] is `A = sum_c |F_c|^p`, divided by its norm;
the loss is `CE + sum_l beta_l mean (A_student - A_teacher)^2` over the levels l.

Levels: of each spatial resolution above 1x1 the last feature map, and of those the last `levels`;
in a ResNet the outputs of layers 2 to 4, in a VGG the maps its last poolings read. A map of 1x1 is
no level: its normalised attention is 1 whatever the network does, so nothing can be learned from
it (the third level of BackdoorBench is one). Transformers have no such maps and are refused.

Deviations, each with its reason:

- The release hooks block outputs of WRN-16-1; here any architecture, as above.
- Augmentation is the data set's; the release adds Cutout of 3 pixels in code but not in its tables.
- The last epoch is kept. The release keeps the epoch of the best test accuracy.
- `backdoorbench`: the student computes once a batch (there up to four times, so that running
  statistics move as often), and the teacher's learning rate is constant (there a cosine of 100
  epochs, of which ten take 2 % off). Its betas are those of its PreAct-ResNet-18, whose third level
  is the 1x1 map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.passes import PLAIN
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, Positive, Some, Whole
from sweeper.core.types import Outcome
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net

Maps = dict[str, Tensor]
"""Name of a module -> its output of the last pass, [B, C, h, w]."""


@dataclass(frozen=True, kw_only=True)
class NAD(Defense):
    """Distillation of attention from a fine-tuned copy of the model."""

    betas: Some[NonNegative] = (500.0, 1000.0, 1000.0)
    """Weights of the levels, early to late; their number is that of the levels, at most."""
    power: Positive = 2.0
    """Exponent p of the attention."""
    epochs: Whole = 20
    """Passes of the student over the clean budget."""
    lr: LearningRate = 0.1
    """The student's learning rate until epoch `switch`."""
    switch: Whole = 2
    """Epoch from which the learning rate is `lr * gamma`."""
    gamma: NonNegative = 0.1
    """Factor of the student's learning rate from `switch` on (backdoor-toolbox on GTSRB: 0.2)."""
    teacher_epochs: Whole = 10
    """Passes of the teacher over the clean budget."""
    teacher_lr: LearningRate = 0.1
    """The teacher's learning rate at first."""
    teacher_gamma: NonNegative = 1.0
    """Factor of the teacher's learning rate every second epoch."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty of both."""
    batch: Count = 64
    """Images of a step."""
    nesterov: bool = field(default=True, metadata={"added": True})
    """Whether the momentum of both is Nesterov's."""
    augment: bool = field(default=True, metadata={"added": True})
    """Whether the clean images are augmented as the recipe says."""

    title = "Neural Attention Distillation (NAD)"
    paper = "Li et al., ICLR 2021"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "backdoor-toolbox": {"gamma": 0.5, "teacher_gamma": 0.2, "augment": False},
        "backdoorbench": {
            "betas": (500.0, 1000.0),
            "lr": 0.01,
            "gamma": 1.0,
            "epochs": 10,
            "teacher_lr": 0.01,
            "weight_decay": 5e-4,
            "batch": 256,
            "nesterov": False,
        },
    }

    def applies(self, needs: Needs) -> str | None:
        """Refuse transformers."""
        if needs.model.startswith("vit"):
            return "distils attention over feature maps of convolutions: a transformer has none"
        return None

    def defend(self, case: Case) -> Outcome:
        """Fine-tune the teacher, then train the student beside it."""
        milestones = tuple(range(2, self.teacher_epochs, 2))
        teacher, student = case.fresh_model(), case.fresh_model()
        if self.teacher_epochs:
            self.train(
                case,
                teacher,
                "teacher",
                Hooks(),
                epochs=self.teacher_epochs,
                lr=self.teacher_lr,
                gamma=self.teacher_gamma,
                milestones=milestones,
            )
        return Outcome(model=student, notes=self.distil(case, teacher, student))

    def distil(self, case: Case, teacher: Net, student: Net) -> dict[str, Any]:
        """Train the student in place; returns the notes."""
        names = levels(teacher, case.clean.images[:2].to(case.device))[-len(self.betas) :]
        notes: dict[str, Any] = {"levels": names}
        weights = dict(zip(names, self.betas[-len(names) :], strict=True))
        if not self.epochs:
            return notes
        teacher.requires_grad_(False).eval()
        with recorded(teacher, names) as teacher_maps, recorded(student, names) as student_maps:
            hooks = _Distillation(weights, self.power, teacher, teacher_maps, student_maps)
            losses = self.train(
                case,
                student,
                "fit",
                hooks,
                epochs=self.epochs,
                lr=self.lr,
                gamma=self.gamma,
                milestones=(self.switch,),
            )
        return {**notes, "loss_first": losses[0], "loss_last": losses[-1]}

    def train(self, case: Case, model: Net, name: str, hooks: Hooks, **changes: Any) -> list[float]:
        """One training with what teacher and student share."""
        if not self.augment:
            changes |= PLAIN
        return case.fit(
            model,
            case.clean,
            name=name,
            hooks=hooks,
            momentum=0.9,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            batch=min(self.batch, len(case.clean)),
            schedule="step",
            warmup=0.0,
            **changes,
        )


class _Distillation(Hooks):
    """Adds the distance of attentions to the loop's loss."""

    def __init__(
        self,
        weights: Mapping[str, float],
        power: float,
        teacher: Net,
        teacher_maps: Maps,
        student_maps: Maps,
    ) -> None:
        self.weights = weights
        self.power = power
        self.teacher = teacher
        self.teacher_maps = teacher_maps
        self.student_maps = student_maps

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """Cross-entropy and, of every level, the weighted mean squared difference."""
        total = super().loss(model, batch, recipe)
        with torch.no_grad():
            self.teacher(batch.inputs)
        for name, weight in self.weights.items():
            student_attention = attention(self.student_maps[name], self.power)
            teacher_attention = attention(self.teacher_maps[name], self.power)
            total = total + weight * functional.mse_loss(student_attention, teacher_attention)
        return total


def attention(maps: Tensor, power: float = 2.0) -> Tensor:
    """Normalised attention of feature maps; float [B, C, h, w] -> [B, h, w].

    Raises:
        SweepError: The maps are 1x1, whose normalised attention is constant.
    """
    if maps.shape[2:].numel() == 1:
        raise SweepError("attention of a 1x1 feature map is 1 for any network: take an earlier map")
    attention_map = maps.float().abs().pow(power).sum(1)
    norm: Tensor = torch.linalg.vector_norm(attention_map, dim=(1, 2), keepdim=True)
    return attention_map / (norm + 1e-6)


@contextlib.contextmanager
def recorded(model: Net, names: list[str]) -> Iterator[Maps]:
    """Within the context, the outputs of these modules at each pass."""
    maps: Maps = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: maps.__setitem__(name, output)

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def levels(model: Net, images: Tensor) -> list[str]:
    """The part of the trunk that computes the last map of each resolution above 1x1, in order.

    Args:
        model: Left as it is.
        images: uint8 [B, C, H, W] on its device.

    Raises:
        SweepError: There is no such map.
    """
    names = [f"trunk.{name}" for name, _ in model.trunk.named_children()]
    with recorded(model, names) as maps:
        model.eval()(images.float().div(255))
    last: dict[torch.Size, str] = {}
    for name, output in maps.items():
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
            last.pop(output.shape[2:], None)
            last[output.shape[2:]] = name
    if not last:
        raise SweepError("the model has no feature map above 1x1 to look at: take another model")
    return [*last.values()]
