"""A model under suspicion: its network, the clean images of who inspects it, and a case of both.

Whoever inspects knows no trigger and no attacker. Methods get clean images of the training split;
what is measured is measured on the test split, which no method is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from attacks.parts import victim_folder
from defenses.base import Case, Needs
from sweeper import models
from sweeper.analyses import exchange
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Samples
from sweeper.core.weights import read_weights
from sweeper.data import Dataset, splits
from sweeper.engine import metrics, recipes, training
from sweeper.engine.recipes import Recipe
from sweeper.models.base import Net
from sweeper.run.material import Log

SEES = frozenset({"model", "clean"})
"""What a method may see here, of `defenses.base.SEES`."""
PROBES = 500
"""Test images on which changes of the model or of the images are tried."""


@dataclass(frozen=True)
class Suspect:
    """A model, and the images it is inspected with."""

    label: str
    """What it is called."""
    name: str
    """Its architecture."""
    options: Mapping[str, Any]
    """Options of that."""
    model: Net
    """In eval mode, on the device."""
    dataset: Dataset
    """The data it was made for."""
    clean: Samples
    """The defender's images, of the training split."""
    origin: str
    """Where they come from, for people."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.dataset.train.classes

    @property
    def recipe(self) -> Recipe:
        """How such models are trained, for repairs that train."""
        return recipes.resolve("fast", self.dataset.name, self.name)

    @property
    def key(self) -> str:
        """What every draw derives from: the same for all models of a data set."""
        return seeds.digest({"inspect": self.dataset.digest, "clean": len(self.clean)})

    @property
    def probes(self) -> Samples:
        """At most `PROBES` images of the test split, the same for all models."""
        test = self.dataset.test
        order = torch.randperm(len(test), generator=seeds.generator(self.key, "probes"))
        return test[order[:PROBES]]

    @property
    def needs(self) -> Needs:
        """What `Defense.applies` is asked with."""
        count, shape = len(self.classes), tuple(self.clean.inputs.shape[1:])
        asked = (self.name, self.options, count, shape)
        return Needs(
            count,
            shape,
            self.name,
            models.has_batchnorm(*asked),
            len(self.clean),
            batch=models.least_batch(*asked),
        )

    def case(self, log: Log | None = None) -> Case:
        """What a defense is given: the model and the clean images."""

        def build(rng: Generator, **changes: Any) -> Net:
            data = self.dataset
            return _built(self.name, self.options, data, rng, changes=changes)

        return Case(
            sees=SEES,
            key=self.key,
            device=self.device,
            recipe=self.recipe,
            given={"model": self.model, "clean": self.clean},
            build=build,
            log=log,
        )

    def predict(self, model: Net, images: Tensor) -> Tensor:
        """What a model calls uint8 images [N, C, H, W]; int64 [N]."""
        return metrics.predict(model, images, self.recipe, self.device)

    def called(self, label: int) -> str:
        """A class as people read it: `class 3 (cat)`."""
        name = self.classes[label]
        return f"class {label}" if name == str(label) else f"class {label} ({name})"


def _built(
    name: str, options: Mapping[str, Any], dataset: Dataset, rng: Generator, **more: Any
) -> Net:
    train = dataset.train
    return models.build(
        name,
        options,
        classes=len(train.classes),
        shape=tuple(train.inputs.shape[1:]),
        mean=dataset.mean,
        std=dataset.std,
        generator=rng,
        **more,
    )


def suspect(
    label: str,
    name: str,
    options: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dataset: Dataset,
    *,
    budget: int,
    reserve: float = 0.0,
) -> Suspect:
    """Put weights into their network, and draw the clean images.

    Args:
        label: What it is called.
        name: Its architecture.
        options: Options of that.
        weights: By the names of ours; those of the normaliser may be missing: the data set's.
        dataset: The data it was made for.
        budget: How many clean images.
        reserve: Share of the training split that is known to have been kept from the model; 0: none
            is known, and the images are drawn from the whole split.

    Raises:
        SweepError: The weights are not of this data set, or there are not so many images.
    """
    check(dataset)
    net = _built(name, options, dataset, seeds.generator("inspect"))
    whole = {**{k: v for k, v in net.state_dict().items() if k.startswith("normalise.")}, **weights}
    try:
        net.load_state_dict(whole)
    except RuntimeError:
        raise SweepError(
            f"{label}: its weights are not those of {name} for the {len(dataset.train.classes)} "
            f"classes of {dataset.name}: name the data set and the options it was trained with"
        ) from None
    held = torch.arange(len(dataset.train))
    origin = f"the training split of {dataset.name}, on which the model may have been trained"
    if reserve:
        _, held = splits.split(dataset, reserve)
        origin = f"the reserve of {dataset.name}, on which the model was not trained"
    if not 1 <= budget <= len(held):
        raise SweepError(f"--budget: {budget} clean images, there are {len(held)}: lower it")
    clean = dataset.train[splits.clean_set(dataset, held, budget, 0)].changed(positions=None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training.place(net.eval(), device, clean.inputs.ndim)
    return Suspect(label, name, dict(options), net, dataset, clean, origin)


def check(dataset: Dataset) -> None:
    """Refuse samples that are no images.

    Raises:
        SweepError: They are none.
    """
    if dataset.train.task != "image":
        raise SweepError(
            f"--dataset: {dataset.name} holds {dataset.train.task}: only models of images can be "
            "inspected"
        )


def of_file(given: exchange.Foreign, dataset: Dataset, budget: int) -> Suspect:
    """A checkpoint of anybody's.

    Raises:
        SweepError: It cannot be read, or does not fit the architecture or the data.
    """
    check(dataset)
    shape = tuple(dataset.train.inputs.shape[1:])
    weights, _ = exchange.named(given, read_weights(given.weights), shape)
    label = given.weights.name
    return suspect(label, given.model, given.options, weights, dataset, budget=budget)


def about(folder: Path) -> dict[str, Any]:
    """What a folder that `import-model` or `export` wrote says of its victim.

    Returns:
        `victim.json` with the architecture as `name` and `options`.

    Raises:
        SweepError: The folder is none of a victim.
    """
    said = victim_folder.about(str(folder))
    model = said["model"]
    options = {"model": model} if isinstance(model, str) else dict(model)
    return {**said, "name": options.pop("model"), "options": options}


def of_folder(folder: Path, dataset: Dataset, budget: int) -> Suspect:
    """A victim that `import-model` or `export` wrote.

    Raises:
        SweepError: The folder is none of a victim, or the data are not its.
    """
    said = about(folder)
    weights = victim_folder.read(str(folder), victim_folder.MODEL)
    reserve = float(said.get("reserve") or 0.0)
    return suspect(
        folder.name,
        said["name"],
        said["options"],
        weights,
        dataset,
        budget=budget,
        reserve=reserve,
    )


def of_victim(
    key: str,
    params: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dataset: Dataset,
    budget: int,
) -> Suspect:
    """A victim of a store, which was not trained on the reserve of its data.

    Args:
        key: Its key.
        params: All that made it.
        weights: Its weights.
        dataset: The data set it was trained on.
        budget: How many clean images.

    Raises:
        SweepError: It was trained on other data.
    """
    if dataset.digest != params["data"]:
        raise SweepError(
            f"--dataset: victim {key[:8]} was trained on other images than {dataset.name} has here:"
            " name them as its sweep does, such as --dataset '{dataset: cifar10, train_size: "
            "10000}'"
        )
    options = {k: v for k, v in params["model"].items() if k not in ("name", "version", "weights")}
    name, reserve = params["model"]["name"], params["reserve"]
    label = f"victim {key[:8]}"
    return suspect(label, name, options, weights, dataset, budget=budget, reserve=reserve)
