"""The contract of a defense: what it may see, and what it gives back.

A defense is a frozen dataclass in a file of its own; the file name is its name in a sweep file and
its fields are its options. All it gets is a `Case`; touching what `sees` does not declare raises
`AccessDenied`. A case holds no test image, no trigger, no role of a training sample and no target.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from sweeper.core import seeds
from sweeper.core.errors import AccessDenied
from sweeper.core.types import Outcome, Samples, State
from sweeper.engine import task as tasks
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.models.base import Net

KINDS = ("repair", "secure training", "detection", "input filter")
SEES = ("model", "clean", "train", "queries", "oracle")
"""model: the backdoored model's weights; clean: the clean budget; train: the poisoned training set
with the labels given; queries: the model as a black box; oracle: what no defender knows, be it ACC
and ASR of any model on the test set or facts of the attack given as options - allowed only under a
name that ends in `-oracle`."""


@dataclass(frozen=True)
class Needs:
    """What is known of a victim before a defense runs; what `applies` is asked with."""

    classes: int
    """Number of classes."""
    shape: tuple[int, ...]
    """Of what the model is shown of one sample; (C, H, W) of an image."""
    model: str
    """Name of the architecture."""
    batchnorm: bool
    """Whether the model has BatchNorm layers."""
    clean: int
    """Clean images the defender holds."""
    task: str = "image"
    """What the samples are."""
    batch: int = 1
    """Samples of a batch that the model can be trained on, at least: BatchNorm may need two."""


class Case:
    """All a defense is given. Made by `sweeper.run.cells`; a test makes one by hand."""

    def __init__(
        self,
        *,
        sees: frozenset[str],
        key: str,
        device: torch.device,
        recipe: Recipe,
        given: Mapping[str, Any],
        build: Callable[..., Net],
        state: State | None = None,
        log: Callable[..., None] | None = None,
    ) -> None:
        """Bind what the defense may see.

        Args:
            sees: What the defense declares; `given` holds no more than that.
            key: The cell's key; every draw derives from it.
            device: Where to compute.
            recipe: How models are trained on this data set.
            given: Of model, clean, train, queries, oracle those the defense declares.
            build: Makes a freshly initialised model of the victim's architecture, from a generator
                and changes to its options.
            state: What the defense's stage left.
            log: Takes progress as keywords.
        """
        self.device = device
        self.recipe = recipe
        self.state: State = state or {}
        self._sees = sees
        self._key = key
        self._given = given
        self._build = build
        self._log = log

    def _get(self, name: str) -> Any:
        if name not in self._sees:
            declared = ", ".join(sorted(self._sees)) or "nothing"
            asked = "fresh_model()" if name == "model" else name
            raise AccessDenied(
                f"case.{asked}: the defense declares to see {declared}: add {name!r} to its `sees`"
            )
        return self._given[name]

    def fresh_model(self) -> Net:
        """The backdoored model: a copy of the defense's own at every call, in eval mode."""
        model: Net = copy.deepcopy(self._get("model"))
        return model.to(self.device).eval()

    def asked_model(self) -> Net:
        """`fresh_model` for methods that only ask it about images: `training.asked`."""
        model = self.fresh_model()
        training.asked(model, self.recipe, self.device)
        return model

    @property
    def clean(self) -> Samples:
        """The clean budget: images of the training distribution the attacker did not train on."""
        clean: Samples = self._get("clean")
        return clean

    @property
    def train(self) -> Samples:
        """The poisoned training set with the labels given."""
        train: Samples = self._get("train")
        return train

    @property
    def queries(self) -> Callable[[Tensor], Tensor]:
        """The model as a black box: uint8 images [B, C, H, W] -> probabilities [B, K]."""
        queries: Callable[[Tensor], Tensor] = self._get("queries")
        return queries

    @property
    def oracle(self) -> Callable[[nn.Module], tuple[float, float]]:
        """ACC and ASR of any model on the test set: only for defenses named `...-oracle`."""
        oracle: Callable[[nn.Module], tuple[float, float]] = self._get("oracle")
        return oracle

    def rng(self, name: str) -> Generator:
        """A CPU generator of its own for each named draw."""
        return seeds.generator(self._key, name)

    def log(self, **progress: Any) -> None:
        """Report progress (epoch, epochs, or step, steps; loss), for people; changes no number."""
        if self._log:
            self._log(**progress)

    def new_model(self, name: str = "model", **changes: Any) -> Net:
        """A freshly initialised model of the victim's architecture; other names, other weights.

        Args:
            name: Names the draw of the weights.
            changes: Options of the architecture to change; one it does not have is left out.
        """
        return self._build(self.rng(name), **changes)

    def split(self, share: float = 0.2, per_class: int = 10) -> tuple[Samples, Samples]:
        """Split the clean budget into a part to fit on and a hold-out for choices.

        Fair rule H: no choice is made on the test set, and none on images that what is chosen
        among could have memorised; yet all of the budget is learned from. (A) What cannot memorise
        images - a mask per neuron, a threshold, BatchNorm statistics, one scalar - is learned and
        chosen on all of `clean`, without a split. (B) What can - weights, a mask per weight - is
        learned on the first part, the hold-out chooses how many rounds or which strength, and with
        that it is learned again on all of `clean`, to the bit as if it had been given
        (`parts/accept.py`). (C) The rate of false positives of a detector or input filter is set on
        the hold-out alone, which its score was not fitted to.

        The hold-out has `share` of each class, at least `per_class` images of it while that leaves
        half of the class to fit on. Where no class has two images, or
        samples have no class, it has `share` of all.

        Returns:
            (fit, holdout), disjoint, the same at every call.
        """
        clean = self.clean
        order = torch.randperm(len(clean), generator=self.rng("hold-out"))
        holdouts = []
        for label in range(len(clean.classes) if clean.labelled else 0):
            members = order[clean.labels[order] == label]
            count = max(round(share * len(members)), min(per_class, len(members) // 2))
            holdouts.append(members[:count])
        holdout = torch.cat(holdouts) if holdouts else order[:0]
        if not len(holdout):
            holdout = order[: max(1, round(share * len(clean)))]
        in_holdout = torch.zeros(len(clean), dtype=torch.bool)
        in_holdout[holdout] = True
        return clean[~in_holdout], clean[in_holdout]

    def fit(
        self,
        model: nn.Module,
        data: Samples,
        *,
        name: str = "fit",
        hooks: training.Hooks | None = None,
        **changes: Any,
    ) -> list[float]:
        """Train `model` in place by the case's recipe with `changes`; the loss of each epoch.

        Args:
            model: What to train.
            data: On which images.
            name: Names the random draws; two trainings of one defense take two names.
            hooks: The parts of the loop the defense owns.
            changes: Fields of the recipe, such as epochs and lr.
        """
        return training.fit(
            model,
            data,
            replace(self.recipe, **changes),
            key=f"{self._key}/{name}",
            device=self.device,
            hooks=hooks,
            progress=self._passed,
        )

    def _passed(self, epoch: int, epochs: int, loss: float) -> None:
        """Report an epoch, unless it is all of a fit: such fits are steps of something longer."""
        if epochs > 1:
            self.log(epoch=epoch, epochs=epochs, loss=loss)

    def accuracy(self, model: nn.Module, data: Samples) -> float:
        """The model's score on `data`: the share it classifies as labelled; no augmentation."""
        task = tasks.of(data)
        return task.rate(task.answers(model, data.inputs, self.recipe, self.device), data)

    def autocast(self) -> torch.autocast:
        """The context of forward passes at the recipe's precision."""
        return training.autocast(self.recipe, self.device)


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """An intermediate result several defenses share (D-BR and D-ST: the SD separation).

    A stage is a cell of its own: its options, `name` and `version` make its key, so that defenses
    with equal stages share one run. It sees what `sees` declares, as a defense does.
    """

    name: ClassVar[str]
    """Names the stage in keys and on the screen."""
    sees: ClassVar[frozenset[str]]
    """Subset of `SEES`."""
    version: ClassVar[int] = 1
    """Raised when the same options give another result."""

    @abstractmethod
    def run(self, case: Case) -> dict[str, Tensor]:
        """Compute the result: named tensors."""


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """What every defense has; a subclass's fields are options of the sweep file."""

    title: ClassVar[str]
    """Name in the literature."""
    paper: ClassVar[str]
    """Authors, venue and year."""
    kind: ClassVar[str]
    """One of `KINDS`; decides what is measured."""
    sees: ClassVar[frozenset[str]]
    """Subset of `SEES`: the threat model, printed in every table."""
    tasks: ClassVar[frozenset[str]] = frozenset({"image"})
    """The tasks it is made for; `frozenset({ANY})`: all."""
    requires: ClassVar[frozenset[str]] = frozenset()
    """What a model must have: batchnorm."""
    rules: ClassVar[tuple[str, ...]] = ("any",)
    """Label rules the method was made for; it is run on all of them."""
    light: ClassVar[bool] = False
    """Whether a CPU runs it about as fast as it measures the result: it trains nothing, and does
    arithmetic on weights or up to ten or so forward passes over the clean budget and the test
    images. Its cells have the shape `light` of `resources`; no number depends on it."""
    unlearns: ClassVar[bool] = False
    """Whether it unlearns the trigger it finds, so that `{detect: it, then: unlearn}` is itself."""
    idle: ClassVar[frozenset[str]] = frozenset()
    """Inherited options it makes no use of: none may be given, and all stand in keys."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """A source's variant by name -> the options it sets."""
    version: ClassVar[int] = 1
    """Raised when the same options give another result."""

    def stage(self) -> Stage | None:
        """The shared intermediate result this defense starts from; its tensors are `case.state`."""
        return None

    def applies(self, needs: Needs) -> str | None:
        """Why the defense cannot be run on this victim; None where it can."""
        return None

    def least_clean(self, needs: Needs) -> int:
        """Clean images below which it cannot be run, if it sees any; default: one batch."""
        return needs.batch

    @abstractmethod
    def defend(self, case: Case) -> Outcome:
        """Run the defense."""
