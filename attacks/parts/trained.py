"""Attacks that control training, which a preset may take over from a source as a whole.

`training` names a source whose optimiser, schedule and augmentation the victim gets in place of the
sweep's recipe, `epochs` its length. Mirroring stays the recipe's: the sources mirror CIFAR-10
alone, as recipe `backdoorbench` does. They draw whether a batch is cropped or rotated, and
BackdoorBench by how much, once a batch; here every image has its own draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from attacks.base import Attack
from sweeper.core.errors import SweepError
from sweeper.core.options import Whole
from sweeper.engine.recipes import Recipe

STEPS: Mapping[str, Any] = {
    "batch": 128,
    "lr": 0.01,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "schedule": "step",
    "milestones": (100, 200, 300, 400),
    "gamma": 0.1,
    "warmup": 0.0,
    "label_smoothing": 0.0,
}
"""Updates of WaNet, BPP, Input-aware and LIRA in their releases and in BackdoorBench."""
RELEASED: Mapping[str, Any] = {
    **STEPS,
    "crop": 5,
    "crop_probability": 0.8,
    "rotation": 10.0,
    "rotation_probability": 0.5,
    "erase": 0.0,
}
"""Training of WaNet's and BPP's releases, and of both in BackdoorBench (their config files)."""


@dataclass(frozen=True, kw_only=True)
class TrainedAttack(Attack):
    """An attack whose source's training is an option."""

    training: str = field(default="", metadata={"added": True})
    """Whose training the victim gets: one of `trainings`; empty: the sweep's recipe."""
    epochs: Whole = field(default=0, metadata={"added": True})
    """Epochs of the victim; 0: the recipe's."""

    controls: ClassVar[str] = "training"
    trainings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "backdoorbench": RELEASED,
        "released": RELEASED,
    }
    """A source -> the recipe's settings there."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: No such training.
        """
        super().__post_init__()
        if self.training and self.training not in self.trainings:
            known = ", ".join(self.trainings)
            raise SweepError(f"training: {self.training!r} is not one of {known}")

    def recipe(self, recipe: Recipe) -> Recipe:
        """The sweep's recipe, or the settings and the length of the source."""
        changes = self.trainings.get(self.training, {})
        return replace(recipe, **{**changes, "epochs": self.epochs or recipe.epochs})
