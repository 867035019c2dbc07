"""A victim that was trained elsewhere: its weights, its trigger, and its poisoned samples if known.

`path` names a folder that `sweeper import-model` made of a checkpoint, or `sweeper export` of a
victim; the hash of its tensors stands in the key. The sweep's model must be the victim's, and its
target one of the sweep's; there is no rate and no training, and every seed has the same weights.

A trigger given as triggered test images is measured as it is: nothing else can be stamped with it.
Where the trigger is not known, defenses run and ASR is unknown.
Where the poisoned samples are not known, a defense that looks at the training set is given the
clean split: its detection has nothing to find.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from attacks.base import Attack
from attacks.parts import victim_folder
from attacks.parts.initial_weights import MODEL, InitialWeights
from attacks.parts.loop import clean
from attacks.parts.stamp import quantise
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts, ImageSet, Poisoned, Role, Samples, State, Triggered
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks

FOLDER = "a folder that `sweeper import-model` or `sweeper export` wrote"


@dataclass(frozen=True, kw_only=True)
class Imported(Attack):
    """Brings its model instead of training one."""

    path: str = field(default="", metadata={"path": True, "required": FOLDER})
    """Folder of the victim; its tensors, not the path, are part of the key."""

    title = "Imported model"
    paper = "that of the checkpoint"
    controls: ClassVar[str] = "model"
    rules = ("all2one", "all2all")
    rated = False

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: The folder is not a victim's, or the victim has another label rule.
        """
        super().__post_init__()
        if self.path and (rule := victim_folder.about(self.path)["rule"]) != self.rule:
            raise SweepError(f"rule: the victim's is {rule}: write `rule: {rule}`")

    def content(self) -> dict[str, str]:
        """The hash of the victim's tensors."""
        return {"path": victim_folder.content(self.path)} if self.path else {}

    @property
    def triggers(self) -> bool:
        """Whether the victim came with its trigger."""
        return not self.path or bool(victim_folder.about(self.path)["trigger"])

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not to other images, other classes or another target than the victim's."""
        if not (facts.class_counts and self.path):
            return None
        about = victim_folder.about(self.path)
        if (about["shape"], about["classes"]) != (facts.shape, facts.classes):
            size = "x".join(map(str, about["shape"]))
            return (
                f"the victim has images of {size} and {about['classes']} classes: use its data set"
            )
        if self.targeted and about["target"] != self.target:
            return f"the victim's target is {about['target']}: write `targets: [{about['target']}]`"
        return None

    def recipe(self, recipe: Recipe) -> Recipe:
        """No training."""
        return replace(recipe, epochs=0)

    def count(self, labels: Tensor, rate: float) -> int:
        """None are drawn."""
        return 0

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Begin, and end, with the victim's weights."""
        return VictimWeights(self.path) if self.path else None

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Put the patch on the images.

        Raises:
            SweepError: The trigger is a set of images, or of another size.
        """
        if not self.path:
            return images.clone()
        trigger = victim_folder.read(self.path, victim_folder.TRIGGER)
        if "pattern" not in trigger:
            how = "triggered test images" if trigger else "no trigger"
            raise SweepError(
                f"imported: the victim came with {how}, so no other image can be triggered: import "
                "it with a patch"
            )
        pattern, mask = trigger["pattern"].float(), trigger["mask"].float()
        if pattern.shape != images.shape[1:]:
            raise SweepError(
                f"imported: the patch is for images of {_size(pattern)}, these have "
                f"{_size(images[0])}: import the victim with another"
            )
        return quantise(images * (1 - mask) + pattern * mask)

    def trigger_set(self, test: Samples, state: State, rng: Generator) -> Triggered:
        """The triggered images the victim came with, or the test split with its patch, or none.

        Raises:
            SweepError: The images are not the test split's, and nothing says which they are.
        """
        if not self.triggers:
            nothing = torch.zeros(0, dtype=torch.bool)
            return Triggered(test[:0], test.labels[:0], nothing, nothing)
        trigger = victim_folder.read(self.path, victim_folder.TRIGGER) if self.path else {}
        if "images" not in trigger:
            return super().trigger_set(test, state, rng)
        images = trigger["images"]
        if "true_labels" in trigger:
            true_labels = trigger["true_labels"]
        else:
            index = trigger.get("index", torch.arange(len(images)))
            if len(images) != len(index) or int(index.max()) >= len(test):
                raise SweepError(
                    f"imported: {len(images)} triggered images and a test split of {len(test)}: "
                    "import the victim with their `true_labels`, or their `index` in the split"
                )
            true_labels = test.labels[index]
        labels = trigger.get("labels", self.target_labels(true_labels, len(test.classes)))
        no_leaks = torch.zeros(len(images), dtype=torch.bool)
        counts = trigger.get("counts", labels != true_labels).bool()
        hit = ImageSet(images, labels, test.classes)
        return Triggered(hit, true_labels, counts, trigger.get("leaks", no_leaks).bool())

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """The victim's own training set where its poisoned samples are known, else the clean one.

        Raises:
            SweepError: The samples are not those of this training split.
        """
        samples = victim_folder.read(self.path, victim_folder.POISON) if self.path else {}
        clean_train = clean(train)
        if not samples:
            return clean_train
        index = samples["index"]
        if int(index.max()) >= len(train) or bool(
            (train.labels[index] != samples["true_labels"]).any()
        ):
            raise SweepError(
                "imported: the poisoned samples are not of this training split: use the data set "
                "and the `reserve` the victim was trained with, or leave out poison.safetensors"
            )
        images, labels = clean_train.images.clone(), clean_train.labels.clone()
        role = torch.full((len(train),), int(Role.CLEAN), dtype=torch.uint8)
        images[index], labels[index], role[index] = (
            samples["images"],
            samples["labels"],
            samples["role"],
        )
        return replace(clean_train, samples=train.changed(images=images, labels=labels), role=role)


class VictimWeights(InitialWeights):
    """Begins with the weights of a victim's folder."""

    keeps = ()

    def __init__(self, path: str) -> None:
        self.about = victim_folder.about(path)
        weights = victim_folder.read(path, victim_folder.MODEL)
        super().__init__({f"{MODEL}.{name}": value for name, value in weights.items()})

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Load them; a victim that brings no normaliser takes the data set's.

        Raises:
            SweepError: The sweep's model is not the victim's.
        """
        normaliser = {k: v for k, v in model.state_dict().items() if k.startswith("normalise.")}
        self.weights = {**normaliser, **self.weights}
        try:
            super().start(model, device)
        except RuntimeError:
            raise SweepError(
                f"imported: the victim is another network than the sweep's model: write `models: "
                f"[{self.about['model']}]`"
            ) from None


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape))
