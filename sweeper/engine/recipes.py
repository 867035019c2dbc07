"""Training recipes as data: the fast default and the papers' own, by data set and model.

A sweep file names one (`recipe: d-br`), changes one (`recipe: {base: d-br, epochs: 60}`) or changes
the fast default (`recipe: {epochs: 60}`). Sources: the table of each release. `fast` beside one of
them, three seeds: docs/sweep.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Annotated, Any, Literal

from pydantic import Field

from sweeper.core import options
from sweeper.core.errors import SweepError, unknown
from sweeper.core.options import Count, LearningRate, NonNegative, ProperShare, Share, Whole


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained; everything here is part of a victim's key."""

    epochs: Whole = 30
    """Passes over the training set; 0 only where an attack sets it (no training at all)."""
    batch: Count = 128
    """Images of a step."""
    lr: LearningRate = 0.1
    """Peak learning rate."""
    momentum: ProperShare = 0.9
    """SGD momentum; Adam's decay of the mean gradient."""
    optimizer: Literal["sgd", "adam"] = field(default="sgd", metadata={"added": True})
    """sgd | adam (second moments decay by 0.98, as Transformers are trained)."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty on all parameters."""
    schedule: str = "linear"
    """linear (per step, to 0) | cosine (per epoch) | step (x gamma at milestones) | constant."""
    period: Whole = 0
    """Epochs of the cosine's half wave; 0: `epochs`."""
    milestones: tuple[Whole, ...] = ()
    """Epochs at which `step` multiplies the learning rate by `gamma`."""
    gamma: NonNegative = 0.1
    """Factor of `step`."""
    warmup: NonNegative = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    label_smoothing: ProperShare = 0.0
    """Share of the label spread over all classes."""
    crop: Whole = 0
    """Pixels of the random crop's border."""
    flip: bool = False
    """Whether to mirror at random; it moves a corner trigger, so it is declared, not assumed."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees of random rotation to either side."""
    erase: Share = 0.0
    """Probability of random erasing."""
    crop_probability: Share = field(default=1.0, metadata={"added": True})
    """Share of the images that are cropped at all."""
    rotation_probability: Share = field(default=1.0, metadata={"added": True})
    """Share of the images that are rotated at all."""
    precision: str = "auto"
    """auto (bfloat16 where the device computes it natively) | bf16 | fp32 | portable (fp32 on one
    thread whose bits no x86-64 processor with AVX2 and FMA changes; fp32 on a GPU)."""

    def __post_init__(self) -> None:
        """Check values.

        Raises:
            SweepError: A word is unknown.
        """
        if self.schedule not in ("linear", "cosine", "step", "constant"):
            raise SweepError(
                f"schedule: {self.schedule!r} is not one of linear, cosine, step, constant"
            )
        if self.precision not in ("auto", "bf16", "fp32", "portable"):
            raise SweepError(
                f"precision: {self.precision!r} is not one of auto, bf16, fp32, portable"
            )


Entry = tuple[str, str, dict[str, Any]]
"""(data set pattern, model pattern, settings); later entries override earlier ones."""

NATURAL: list[Entry] = [
    ("*", "*", {"crop": 4}),
    ("cifar*", "*", {"crop": 4, "flip": True}),
    ("tiny-imagenet", "*", {"crop": 8, "flip": True}),
    ("imagen*", "*", {"crop": 28, "flip": True}),
    ("*mnist", "*", {"crop": 2}),
    ("digits", "*", {"crop": 0}),
]
"""The augmentation a data set's content allows: digits and signs are never mirrored."""

RECIPES: dict[str, list[Entry]] = {
    "fast": [
        *NATURAL,
        ("*", "*", {"epochs": 30, "lr": 0.1, "warmup": 2.0, "schedule": "linear"}),
        ("*", "tiny", {"lr": 0.05, "warmup": 1.0}),  # at 0.1 its loss blows up
        ("digits", "*", {"epochs": 30, "batch": 64, "lr": 0.05, "warmup": 2.0}),
        ("*", "vit-tiny", {"lr": 0.01, "warmup": 5.0, "epochs": 60}),
    ],
    "d-br": [
        ("*", "*", {"epochs": 200, "lr": 0.01, "schedule": "step", "milestones": (100, 150)}),
        ("cifar10", "*", {"crop": 4, "flip": True}),
        ("cifar100", "*", {"crop": 4, "flip": True, "rotation": 15.0}),
        (
            "imagenet*",
            "*",
            {
                "epochs": 25,
                "lr": 0.001,
                "milestones": (15, 20),
                "weight_decay": 1e-4,
                "rotation": 20.0,
                "flip": True,
            },
        ),
    ],
    "anp": [
        ("*", "*", {"epochs": 200, "schedule": "step", "milestones": (100, 150)}),
        ("*", "*", {"crop": 4, "flip": True}),
    ],
    "fip": [
        ("*", "*", {"epochs": 250, "schedule": "step", "milestones": (100, 150)}),
        ("*", "*", {"crop": 4, "flip": True}),
    ],
    "backdoor-toolbox": [
        ("*", "*", {"epochs": 100, "schedule": "step", "weight_decay": 1e-4}),
        ("*", "*", {"milestones": (50, 75), "crop": 4, "flip": True}),
        ("gtsrb", "*", {"lr": 0.01, "milestones": (30, 60), "crop": 0, "flip": False}),
        ("gtsrb", "*", {"rotation": 15.0}),
        ("imagenette", "*", {"milestones": (40, 80), "crop": 0, "flip": True}),
    ],
    "sibp": [
        ("*", "*", {"epochs": 30, "batch": 256, "lr": 0.01, "schedule": "step"}),
        ("*", "*", {"milestones": (50, 75), "weight_decay": 1e-4, "crop": 4, "flip": True}),
    ],
    "backdoorbench": [
        ("*", "*", {"epochs": 100, "lr": 0.01, "schedule": "cosine", "crop": 4}),
        ("cifar10", "*", {"flip": True}),  # not CIFAR-100
        ("gtsrb", "*", {"epochs": 50, "period": 100}),
        ("tiny-imagenet", "*", {"epochs": 200}),
    ],
    "backdoorbox": [
        ("*", "*", {"epochs": 200, "schedule": "step", "milestones": (150, 180), "flip": True}),
    ],
}
"""Recipe name -> entries. The papers' run on every data set; where a paper does not train on a data
set, its entries for any data set apply. BackdoorBench's Tiny-ImageNet halves the learning rate on a
plateau of the test loss; the cosine stands in for it, since no recipe here may read test data."""


def resolve(
    declared: str | Mapping[str, Any],
    dataset: str,
    model: str,
    task: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe of a sweep for one data set and model.

    Args:
        declared: A recipe's name, or changes to one (`base`, default `fast`).
        dataset: The data set's name.
        model: The architecture's name.
        task: What the task of the data changes of `fast`.

    Raises:
        SweepError: No such recipe or setting.
    """
    changes = {"base": declared} if isinstance(declared, str) else dict(declared)
    base = changes.pop("base", "fast")
    if base not in RECIPES:
        raise SweepError(f"recipe: {unknown('recipe', base, RECIPES)}")
    settings: dict[str, Any] = {}
    for data_pattern, model_pattern, entry in RECIPES[base]:
        if fnmatch(dataset, data_pattern) and fnmatch(model, model_pattern):
            settings |= entry
    if base == "fast":
        settings |= task or {}
    recipe = options.construct(Recipe, settings | changes, "recipe")
    if recipe.epochs < 1:  # only an attack that trains nothing sets this
        raise SweepError(f"recipe: epochs: {recipe.epochs} is not a whole number >= 1")
    return recipe
