"""What of a data set, model, attack and defense stands in the keys of their cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from defenses.base import Defense, Stage
from sweeper.core import catalog, code, options, seeds
from sweeper.core.types import Facts
from sweeper.engine import metrics, recipes
from sweeper.plan.sweep import Entry


@dataclass(frozen=True)
class Place:
    """A data set with a model: what all victims there share."""

    facts: Facts
    """What is known of the data set."""
    batchnorm: bool
    """Whether the model has BatchNorm layers."""
    common: dict[str, Any]
    """What stands in the key of every victim."""
    recipe: recipes.Recipe
    """The data set's and model's, with the sweep's changes."""
    training: dict[str, Any]
    """The same as it stands in keys."""
    versions: dict[str, Any]
    """Of the code that trains, in the keys of what it trains."""
    local: dict[str, Any]
    """Where the two are found; in no key."""
    axes: dict[str, Any]
    """Their labels."""
    settings: dict[tuple[str, float, bool], tuple[Form, str]] = field(default_factory=dict)
    """Defense, clean budget, whether it trains otherwise than the victim -> the form of its keys,
    and why it cannot be run."""


@dataclass(frozen=True)
class Defender:
    """A defense with what all its cells share."""

    entry: Entry
    """As the sweep file has it."""
    defense: Defense
    """With its options."""
    stage: Stage | None
    """What it starts from."""
    params: dict[str, Any]
    """What stands of it in its cells' keys."""
    local: dict[str, Any]
    """How it is built again; in no key."""
    forms: dict[tuple[int, str], Form] = field(default_factory=dict)
    """Number of clean images, and its own recipe -> the form of its keys."""

    @classmethod
    def of(cls, entry: Entry, defense: Defense) -> Defender:
        """Take an entry of a sweep file and the defense built from it."""
        version = code.version(defense, *catalog.classes(defense))
        params = {"name": entry.name, **options.canonical(defense), "version": version}
        light = all(getattr(part, "light", True) for part in catalog.classes(defense))
        local = {
            "defense": {"defense": entry.name, **options.placed(defense, entry.options)},
            "shape": "light" if light else "defend",
        }
        return cls(entry, defense, defense.stage(), params, local)

    def form(self, count: int, recipe: dict[str, Any] | None = None) -> Form:
        """What its cells with so many clean images have in their keys, whatever the victim.

        Args:
            count: Clean images.
            recipe: How models are trained here, where the attack trained its victim otherwise.
        """
        kind = count, seeds.canonical(recipe) if recipe else ""
        if kind not in self.forms:
            self.forms[kind] = Form.of(self, count, recipe)
        return self.forms[kind]


@dataclass(frozen=True)
class Form:
    """The keys of a defense's cells, but for the victim."""

    params: dict[str, Any]
    """What a cell's key is made from, less its parents."""
    key: Callable[..., str]
    """(stage's key or None, victim's key) -> the cell's key."""
    stage: dict[str, Any]
    """What a key of its stage's cell is made from, less its parents."""
    stage_key: Callable[..., str]
    """Victim's key -> the stage's key."""

    @classmethod
    def of(cls, defender: Defender, count: int, recipe: dict[str, Any] | None) -> Form:
        """The form for so many clean images, and a recipe that is not the victim's."""
        own = {"recipe": recipe} if recipe else {}
        params = {
            "kind": "defend",
            "victim": None,
            "defense": defender.params,
            "n_clean": count,
            "stage": None,
            "versions": {"metrics": metrics.VERSION},
            **own,
        }
        stage = defender.stage
        shared: dict[str, Any] = {"kind": "stage", "victim": None, **own}
        if stage is not None:
            version = code.version(stage, *stage_classes(defender.defense, stage))
            shared |= {
                "stage": {"name": stage.name, **options.canonical(stage), "version": version},
                "n_clean": count if "clean" in stage.sees else 0,
            }
        key = seeds.digester(params, "stage", "victim")
        return cls(params, key, shared, seeds.digester(shared, "victim"))


def stage_classes(defense: Defense, stage: Stage) -> tuple[type, ...]:
    """Return the classes whose code a stage runs: its own, and the detector's of a chain."""
    return (type(stage), *catalog.classes(defense)[1:])
