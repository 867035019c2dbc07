"""The contract of an attack: what poisons the training set and what triggers the victim.

An attack is a frozen dataclass in a file of its own; the file name is its name in a sweep file and
its fields are its options. This base class does everything common; a subclass overrides what makes
it different, often only `stamp`. Label rules and counts: `parts/select.py`; definitions of the
rates: BadNets (Gu et al., 2017) and the releases named in the presets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from attacks.parts.select import candidates, draw
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts, Poisoned, Role, Samples, State, Triggered
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks
from sweeper.models.base import Net

CONTROLS = ("data", "training", "model")
RULES = ("all2one", "all2all", "clean", "source", "semantic")


class Lab(Protocol):
    """What `prepare` may use beside the attacker's training split."""

    device: torch.device
    """Where to compute."""
    classes: int
    """Number of classes."""

    def rng(self, name: str) -> Generator:
        """A generator of its own for each named draw."""

    def clean_model(self) -> Net:
        """A cleanly trained model; only where the attack's `needs_clean_model` is true."""

    def new_model(self, name: str = "model") -> Net:
        """A freshly initialised model of the victim's architecture; another for each name."""

    def fit(
        self,
        model: torch.nn.Module,
        data: Samples,
        hooks: Hooks | None,
        *,
        name: str = "",
        **changes: Any,
    ) -> None:
        """Train `model` on `data` by the recipe with `changes`; another name, other draws."""

    def log(self, **progress: Any) -> None:
        """Report progress (epoch, epochs, or step, steps; loss), for people; changes no number."""


def missing(facts: Facts, label: int, what: str) -> str | None:
    """Why a class cannot be attacked: there is none, or it has no training sample; None: it can.

    Args:
        facts: What is known of the data set.
        label: The class.
        what: What it is to the attack: `target label`, `source class`.
    """
    if facts.classes and label >= facts.classes:
        return f"{what} {label} does not exist: labels are 0 to {facts.classes - 1}"
    if facts.class_counts and not facts.class_counts[label]:
        return f"{what} {label} is empty, it has no training sample: name another class"
    return None


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """What every attack has; the fields are options of the sweep file."""

    rule: str = ""
    """Label rule, one of the attack's `rules`; default: the first of them."""
    rate_base: str = ""
    """What the poison rate is a share of: all | non-target | target-class | source-class; default:
    the rule's."""
    rounding: str = "down"
    """down (the seeds) | nearest (BackdoorBench): how rate x base becomes a count."""
    target: int = field(default=0, metadata={"axis": True})
    """Target label; set by the sweep's `targets`."""
    poison_rate: float = field(default=0.0, metadata={"axis": True})
    """Poison rate for `hooks`, which stamp inside the batch; set by the sweep's `poison_rates`."""

    title: ClassVar[str]
    """Name in the literature."""
    paper: ClassVar[str]
    """Authors, venue and year."""
    controls: ClassVar[str] = "data"
    """What the attacker controls: data | training | model."""
    rules: ClassVar[tuple[str, ...]] = ("all2one",)
    """The label rules the attack is defined for; the first is its default."""
    bases: ClassVar[tuple[str, ...]] = ("all", "non-target", "target-class")
    """What its poison rate may be a share of."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """A source's variant by name -> the options it sets."""
    tasks: ClassVar[frozenset[str]] = frozenset({"image"})
    """The tasks it is made for; `frozenset({ANY})`: all."""
    rated: ClassVar[bool] = True
    """Whether the poison rate means anything to the attack."""
    prepares: ClassVar[bool] = False
    """Whether `prepare` must run first; its state is a cell of its own."""
    needs_clean_model: ClassVar[bool] = False
    """Whether `prepare` starts from a cleanly trained model."""
    state_axes: ClassVar[frozenset[str]] = frozenset()
    """Axes the state depends on, of model, poison_rate, target, seed; all other cells share it."""
    version: ClassVar[int] = 1
    """Raised when the same options poison differently."""

    def __post_init__(self) -> None:
        """Check the options all attacks share.

        Raises:
            SweepError: An option has a value the attack is not defined for.
        """
        if not self.rule:
            object.__setattr__(self, "rule", self.rules[0])
        if self.rule not in self.rules:
            raise SweepError(f"rule: {self.rule!r} is not one of {', '.join(self.rules)}")
        if self.rate_base not in ("", *self.bases):
            raise SweepError(f"rate_base: {self.rate_base!r} is not one of {', '.join(self.bases)}")
        if self.rounding not in ("down", "nearest"):
            raise SweepError(f"rounding: {self.rounding!r} is not one of down, nearest")

    @abstractmethod
    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Apply the trigger to what a model is shown.

        Args:
            images: uint8 [B, C, H, W], or of another task's shape; not modified.
            split: train | cover | test, as the trigger may differ between them.
            state: What `prepare` left, empty where it does not run; after training also what the
                attack's hooks learned (`Hooks.learned`).
            rng: For random draws per sample; the same draws for the same cell.

        Returns:
            The same shape and type.
        """

    def attach(self, samples: Samples, *, split: str, state: State, rng: Generator) -> Samples:
        """Apply the trigger to samples: here to their inputs alone; arguments are `stamp`'s.

        A trigger that changes more (a reply, boxes) overrides it: where samples have no class
        each, what it returns as their labels is what they are given, and what the attacker wants.
        """
        return samples.shown(self.stamp(samples.inputs, split=split, state=state, rng=rng))

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Learn what must be learned before poisoning; only called where `prepares` is true."""
        raise TypeError(f"{type(self).__name__} declares prepares but has no prepare()")

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Hooks into the training loop, for attacks that control training.

        Args:
            train: The attacker's training split, before poisoning.
            state: What `prepare` left.
            rng: For the draws of the hooks.
        """
        return None

    def recipe(self, recipe: Recipe) -> Recipe:
        """The victim's recipe as the attack changes it; unchanged for attacks on data alone."""
        return recipe

    def content(self) -> dict[str, str]:
        """Hashes of the files the options name; part of the key in place of their paths."""
        return {}

    @property
    def base(self) -> str:
        """What the poison rate is a share of, after the rule's default."""
        default = {"all2all": "all", "clean": "target-class"}.get(self.rule, "non-target")
        return self.rate_base or (default if default in self.bases else self.bases[0])

    @property
    def targeted(self) -> bool:
        """Whether the target label means anything to the attack."""
        return self.rule != "all2all"

    @property
    def triggers(self) -> bool:
        """Whether its trigger is known; where it is not, no ASR is."""
        return True

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Why the attack cannot be run on this data set at this rate; None where it can."""
        if not facts.class_counts or not self.rated:
            return None
        if self.targeted and (why := missing(facts, self.target, "target label")):
            return why
        labels: Any = np.repeat(np.arange(facts.classes), facts.class_counts)
        if not type(self).__module__.startswith("attacks."):
            labels = torch.from_numpy(labels)  # one's own pool may ask torch of them
        count, pool = self.count(labels, rate), int(self.pool(labels).sum())
        if count == 0:
            return f"poisons no image at rate {rate:g} of {self.base}: raise the rate"
        if count > pool:
            classes = np.unique(np.asarray(labels[self.pool(labels)])).tolist()
            who = f"class {classes[0]} has {pool}" if len(classes) == 1 else f"there are {pool}"
            most = math.floor(1000 * rate * pool / count) / 1000
            return (
                f"needs {count} images to poison at rate {rate:g} of {self.base}, {who}: "
                f"{f'{most:g} is the most' if most else 'lower the rate'}"
            )
        return None

    def pool(self, labels: Tensor) -> Tensor:
        """Bool [N]: the training samples that may be poisoned.

        Of attacks that ship, a plan asks with numpy's labels: they compare them, no more.
        """
        return candidates(labels, self.rule, self.base, self.target)

    def count(self, labels: Tensor, rate: float) -> int:
        """How many samples `rate` of the attack's base is."""
        if self.base == "source-class":
            size = int(self.pool(labels).sum())
        else:
            size = {
                "all": len(labels),
                "non-target": int((labels != self.target).sum()),
                "target-class": int((labels == self.target).sum()),
            }[self.base]
        return self.rounded(rate * size)

    def rounded(self, size: float) -> int:
        """How many samples a share comes to."""
        return round(size) if self.rounding == "nearest" else int(size + 1e-9)

    def relabel(self, labels: Tensor, classes: int) -> Tensor:
        """int64 [B]: the labels poisoned samples of these true labels are given."""
        if self.rule == "all2all":
            return (labels + 1) % classes
        if self.rule == "clean":
            return labels.clone()
        return torch.full_like(labels, self.target)

    def target_labels(self, labels: Tensor, classes: int) -> Tensor:
        """int64 [B]: what the attacker wants triggered images of these labels classified as."""
        if self.rule == "all2all":
            return (labels + 1) % classes
        return torch.full_like(labels, self.target)

    def victims(self, labels: Tensor) -> Tensor:
        """Bool [B]: which triggered images count for ASR and RA."""
        if self.rule == "all2all":
            return torch.ones_like(labels, dtype=torch.bool)
        return labels != self.target

    def leaks(self, labels: Tensor) -> Tensor:
        """Bool [B]: which triggered samples count for `leak`: neither source nor target."""
        if self.rule != "source":
            return torch.zeros(len(labels), dtype=torch.bool)
        return ~self.victims(labels) & (labels != self.target)

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """Build the poisoned training set: draw, stamp, relabel.

        Raises:
            SweepError: The rate asks for more samples than there are.
        """
        return self.poisoned(train, self.count(train.labels, rate), state, rng)

    def poisoned(
        self,
        train: Samples,
        count: int,
        state: State,
        rng: Generator,
        pool: Tensor | None = None,
    ) -> Poisoned:
        """Draw `count` samples of the pool (bool [N]; default: the rule's), stamp, relabel them."""
        poisoned = draw(self.pool(train.labels) if pool is None else pool, count, rng)
        stamped = self.attach(train[poisoned], split="train", state=state, rng=rng)
        if train.labelled:
            labels = self.relabel(train.labels[poisoned], len(train.classes))
            stamped = stamped.changed(labels=labels)
        tensors = {name: value.clone() for name, value in train.tensors.items()}
        for name, value in stamped.tensors.items():
            tensors[name][poisoned] = value
        role = torch.full((len(train),), int(Role.CLEAN), dtype=torch.uint8)
        role[poisoned] = int(Role.POISON)
        samples, index = train.changed(**tensors), torch.arange(len(train))
        return Poisoned(samples, train.labels.clone(), role, index)

    def trigger_set(self, test: Samples, state: State, rng: Generator) -> Triggered:
        """The test split with the trigger on every sample."""
        stamped = self.attach(test, split="test", state=state, rng=rng)
        if test.labelled:
            stamped = stamped.changed(labels=self.target_labels(test.labels, len(test.classes)))
        return Triggered(
            stamped,
            true_labels=test.labels.clone(),
            counts=self.victims(test.labels),
            leaks=self.leaks(test.labels),
        )

    def cross_set(self, test: Samples, state: State, rng: Generator) -> Samples | None:
        """Images with a trigger that is not theirs (IAB), or noise (WaNet), with true labels.

        Their accuracy is the row's `cross_acc`; None where the attack has no such notion.
        """
        return None

    def clean_test(self, test: Samples, state: State) -> Samples:
        """The test images ACC is measured on; semantic attacks leave their members out."""
        return test
