"""A `Sweep` -> the graph of its cells, with keys and parents; what does not apply, and why.

    prepare -> train -> stage -> defend        (prepare and stage only where a method asks for them)

A key is the hash of everything that changes the cell's numbers; a parent stands in it by its own
key. Cells that come out with the same key are one cell: that is how victims are shared.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from attacks.base import Attack
from defenses.base import Defense, Needs
from sweeper import models
from sweeper.core import catalog, code, options, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Cell, Facts
from sweeper.data import splits
from sweeper.data.base import Source
from sweeper.engine import recipes, training
from sweeper.engine import task as tasks
from sweeper.plan import known
from sweeper.plan.forms import Defender, Form, Place
from sweeper.plan.sweep import Entry, Sweep

UNKNOWN = 50_000
"""Training images a clean budget is a share of where the data are not here; no key counts then."""
NO_TRIGGER = (
    "needs the victim's ASR, which is not known without its trigger: import the victim with one"
)
"""Why nothing that looks at ASR can be had of some imported victims."""
KINDS = ("prepare", "train", "stage", "defend")


@dataclass(frozen=True)
class Plan:
    """The expanded sweep."""

    sweep: Sweep
    """What was expanded."""
    cells: Mapping[str, Cell]
    """Key -> cell, parents before children; only cells that apply."""
    inapplicable: tuple[Cell, ...]
    """Defense cells that cannot be run, with their reasons."""
    unresolved: tuple[str, ...]
    """Data sets that are not on this machine; their keys stand for nothing yet."""
    facts: Mapping[str, Facts]
    """Data set label -> what is known of it."""

    def counts(self) -> dict[str, int]:
        """Number of cells by kind."""
        by_kind = Counter(cell.kind for cell in self.cells.values())
        return {kind: by_kind[kind] for kind in KINDS} | {"not_applicable": len(self.inapplicable)}

    def trainings_saved(self) -> int:
        """Victim trainings that sharing saves against one for each defense cell."""
        counts = self.counts()
        return max(0, counts["defend"] - counts["train"])


def expand(sweep: Sweep, facts: Mapping[str, Facts]) -> Plan:
    """Expand a sweep.

    Args:
        sweep: The validated sweep.
        facts: Data set label -> what is known of it.

    Raises:
        SweepError: A clean budget exceeds the reserve, a model does not fit the data, two labels
            stand for the same cells, or nothing is left to run.
    """
    with code.still():
        return _Expansion(sweep, facts).run()


class _Expansion:
    """The loops of `expand` and what they share."""

    def __init__(self, sweep: Sweep, facts: Mapping[str, Facts]) -> None:
        self.sweep = sweep
        self.facts = facts
        self.cells: dict[str, Cell] = {}
        self.inapplicable: dict[str, Cell] = {}
        self.defenses = [
            Defender.of(entry, catalog.make("defense", entry.name, entry.options))
            for entry in sweep.defenses
        ]
        self.attacks: list[tuple[Entry, Attack]] = [
            (entry, catalog.make("attack", entry.name, entry.options)) for entry in sweep.attacks
        ]
        self.no_attack: Attack = catalog.make("attack", "none", {})
        self.patterns = [tuple(pattern.items()) for pattern in sweep.exclude]

    def run(self) -> Plan:
        sweep = self.sweep
        places = [self.place(*pair) for pair in self.pairs()]
        for place, (attack, sample) in itertools.product(places, self.attacks):
            for victim, why, axes in self.victims(place, attack, sample):
                own = victim.params["recipe"] != place.training
                for defender in self.defenses:
                    sees = defender.defense.sees
                    blind = NO_TRIGGER if "oracle" in sees and not sample.triggers else ""
                    for budget in sweep.clean_budgets if "clean" in sees else (0,):
                        self.defend(place, victim, why or blind, defender, axes, budget, own)
        if not self.cells and not self.inapplicable:
            raise SweepError("exclude: leaves nothing of the sweep to run: remove an entry")
        needed: set[str] = set()
        for key, cell in reversed(self.cells.items()):
            if cell.kind == "defend" or key in needed:
                needed.update(cell.parents)
        return Plan(
            sweep,
            {k: cell for k, cell in self.cells.items() if cell.kind == "defend" or k in needed},
            tuple(self.inapplicable.values()),
            tuple(label for label, fact in self.facts.items() if not fact.digest),
            self.facts,
        )

    def pairs(self) -> list[tuple[Entry, Entry]]:
        """Each data set with the models that take its samples.

        Raises:
            SweepError: One of them has no partner.
        """
        found = []
        for dataset, model in itertools.product(self.sweep.datasets, self.sweep.models):
            family = models.family(model.name, model.options)
            if self.facts[dataset.label].task in family.tasks:
                found.append((dataset, model))
        for dataset in self.sweep.datasets:
            if all(dataset is not paired for paired, _ in found):
                task = self.facts[dataset.label].task
                fit = [name for name, kind in models.families().items() if task in kind.tasks]
                raise SweepError(
                    f"models: none takes the samples of {dataset.label}, which are {task}: add one "
                    f"of {', '.join(fit)}"
                )
        for model in self.sweep.models:
            if all(model is not paired for _, paired in found):
                takes = " or ".join(sorted(models.families()[model.name].tasks))
                raise SweepError(
                    f"models: {model.label} takes {takes} samples, no data set has such: "
                    "leave it out"
                )
        return found

    def place(self, dataset: Entry, model: Entry) -> Place:
        facts = self.facts[dataset.label]
        family = models.family(model.name, model.options)
        classes = facts.classes or 10
        try:
            batchnorm = models.has_batchnorm(model.name, model.options, classes, facts.shape)
        except SweepError as error:
            raise SweepError(f"model {model.label} on data set {dataset.label}: {error}") from None
        task = tasks.task(facts.task)
        recipe = recipes.resolve(self.sweep.recipe, dataset.name, model.name, task.recipe)
        task.check(recipe)
        known.check(dataset, recipe)
        version = code.version(family, type(family))
        model_params = {"name": model.name, **options.canonical(family), "version": version}
        local = {
            "dataset": {"dataset": dataset.name, **options.placed(Source, dataset.options)},
            "model": {"model": model.name, **options.placed(family, model.options)},
            "task": facts.task,
            "shape": "train",
        }
        common = {
            "data": facts.digest or f"unresolved {dataset.label}",
            "reserve": self.sweep.reserve,
            "model": model_params,
        }
        axes = {"dataset": dataset.label, "model": model.label}
        versions: dict[str, Any] = {"training": training.VERSION}
        if facts.task != "image":  # keys of images are older than tasks
            versions["task"] = code.version(task, type(task))
        form = options.canonical(recipe)
        return Place(facts, batchnorm, common, recipe, form, versions, local, axes)

    def victims(
        self, place: Place, entry: Entry, sample: Attack
    ) -> Iterator[tuple[Cell, str, dict[str, Any]]]:
        """The victims of one attack on one data set and model: (cell, why not, axes)."""
        rates = (entry.poison_rates or self.sweep.poison_rates) if sample.rated else [0.0]
        targets = self.sweep.targets if sample.targeted else [0]
        for rate, target, seed in itertools.product(rates, targets, self.sweep.seeds):
            attack = replace(sample, target=target)
            words = {"attack": entry.label, "poison_rate": rate, "target": target, "seed": seed}
            axes = {**place.axes, **words}
            if all(self.excluded({**axes, "defense": f.entry.label}) for f in self.defenses):
                continue
            why = tasks.unmade(attack.tasks, place.facts.task)
            why = why or attack.applies(place.facts, rate) or ""
            victim = self.train(place, entry, attack, rate, seed, axes, keep=not why)
            yield victim, why, axes

    def train(
        self,
        place: Place,
        entry: Entry,
        attack: Attack,
        rate: float,
        seed: int,
        axes: dict[str, Any],
        keep: bool = True,
    ) -> Cell:
        """The victim's cell, with its prepared state where the attack has one."""
        parents: tuple[str, ...] = ()
        attack_params = self.attack_params(entry, attack)
        if attack.prepares:
            parents = (self.prepare(place, entry, attack, rate, seed, axes, keep).key,)
        params = {
            "kind": "train",
            **place.common,
            "attack": attack_params,
            "poison_rate": rate,
            "target": attack.target if attack.targeted else 0,
            "seed": seed,
            "recipe": options.canonical(attack.recipe(place.recipe)),
            "state": parents[0] if parents else None,
            "versions": place.versions,
        }
        local = self.found(place, entry, attack)
        return self.add(Cell("train", seeds.digest(params), params, parents, axes, local), keep)

    def prepare(
        self,
        place: Place,
        entry: Entry,
        attack: Attack,
        rate: float,
        seed: int,
        axes: dict[str, Any],
        keep: bool,
    ) -> Cell:
        """The state's cell: it depends only on the axes the attack names."""
        named = {"poison_rate": rate, "target": attack.target, "seed": seed}
        on = {axis: value for axis, value in named.items() if axis in attack.state_axes}
        parents: tuple[str, ...] = ()
        clean_seed = int(on.get("seed", 0))
        if attack.needs_clean_model:
            none_entry = Entry(name="none", label="none")
            clean_axes = {**place.axes, "attack": "none", "poison_rate": 0.0, "target": 0}
            clean = self.train(
                place,
                none_entry,
                self.no_attack,
                0.0,
                clean_seed,
                {**clean_axes, "seed": clean_seed},
                keep,
            )
            parents = (clean.key,)
        common = dict(place.common)
        if "model" not in attack.state_axes and not attack.needs_clean_model:
            common.pop("model")
        params = {
            "kind": "prepare",
            **common,
            "attack": self.attack_params(entry, attack),
            **on,
            "clean_model": parents[0] if parents else None,
            "recipe": place.training if "model" in common else None,
            "versions": place.versions,
        }
        words = {**place.axes, "attack": entry.label, **on}
        local = self.found(place, entry, attack)
        cell = Cell("prepare", seeds.digest(params), params, parents, words, local)
        return self.add(cell, keep)

    def found(self, place: Place, entry: Entry, attack: Attack) -> dict[str, Any]:
        """How an attack, its data set and its model are built again; in no key."""
        return {
            **place.local,
            "attack": {"attack": entry.name, **options.placed(attack, entry.options)},
        }

    def attack_params(self, entry: Entry, attack: Attack) -> dict[str, Any]:
        """What stands of an attack in the keys of its cells."""
        version = code.version(attack, *catalog.classes(attack))
        return {"name": entry.name, **options.canonical(attack), "version": version}

    def defend(
        self,
        place: Place,
        victim: Cell,
        why: str,
        defender: Defender,
        axes: dict[str, Any],
        budget: float | int,
        own: bool,
    ) -> None:
        """The cell of one defense on one victim, with its stage where it has one."""
        axes = {**axes, "defense": defender.entry.label, "clean_budget": float(budget)}
        if self.excluded(axes):
            return
        form, unfit = self.setting(place, defender, budget, own)
        why, local, stage = why or unfit, defender.local, None
        if defender.stage is not None:
            stage, shared = form.stage_key(victim.key), {**form.stage, "victim": victim.key}
            words = {**victim.axes, "stage": defender.stage.name}
            self.add(Cell("stage", stage, shared, (victim.key,), words, local), not why)
        key, params = form.key(stage, victim.key), {**form.params, "victim": victim.key}
        params["stage"] = stage
        parents = (victim.key, stage) if stage else (victim.key,)
        local = {**local, "victim_cell": victim} if why else local
        cell = Cell("defend", key, params, parents, axes, local, why)
        if key in self.cells or key in self.inapplicable:
            self.refuse_twin(cell)
        (self.inapplicable if why else self.cells)[key] = cell

    def setting(
        self, place: Place, defender: Defender, budget: float | int, own: bool
    ) -> tuple[Form, str]:
        """The form of a defense's keys with a clean budget, and why it cannot be run so.

        Args:
            place: The data set and model.
            defender: The defense.
            budget: Of clean images.
            own: Whether it trains otherwise than the victim was trained.

        Raises:
            SweepError: The budget exceeds the reserve.
        """
        kind = defender.entry.label, budget, own
        if kind not in place.settings:
            facts = place.facts
            count = splits.budget_count(budget, facts.n_train or UNKNOWN) if budget else 0
            if facts.digest and count > facts.n_reserve:
                raise SweepError(
                    f"clean_budgets: {budget:g} is {count} images of {place.axes['dataset']}, the "
                    f"reserve holds {facts.n_reserve}: lower the budget or raise `reserve`"
                )
            form = defender.form(count, place.training if own else None)
            place.settings[kind] = form, self.unfit(place, defender, count)
        return place.settings[kind]

    def refuse_twin(self, cell: Cell) -> None:
        """Two labels of one cell: the second would have no row of its own."""
        first = self.cells.get(cell.key) or self.inapplicable[cell.key]
        axes = [axis for axis, value in cell.axes.items() if first.axes[axis] != value]
        twins = [f"{axis} {first.axes[axis]} and {cell.axes[axis]}" for axis in axes]
        where = ", ".join(str(v) for axis, v in cell.axes.items() if axis not in axes)
        raise SweepError(
            f"{' with '.join(twins)} are the same in every number ({where}): leave one out"
        )

    def unfit(self, place: Place, defender: Defender, count: int) -> str:
        """Why this defense cannot be run on this model and data; empty where it can."""
        facts, family = place.facts, dict(place.local["model"])
        model, classes = family.pop("model"), facts.classes or 10
        needs = Needs(classes, facts.shape, model, place.batchnorm, count, facts.task)
        ask = functools.partial(misfit, defender.defense, label=place.axes["model"])
        why = ask(needs)
        if why != ask(replace(needs, batch=2)):  # a look into the network takes a while
            least = models.least_batch(model, family, classes, facts.shape)
            why = ask(replace(needs, batch=least))
        return why

    def add(self, cell: Cell, keep: bool = True) -> Cell:
        """Enter a cell of the graph; the first of a key stands for all."""
        return self.cells.setdefault(cell.key, cell) if keep else cell

    def excluded(self, axes: Mapping[str, Any]) -> bool:
        """Whether an entry of `exclude` leaves this combination out."""
        return bool(self.patterns) and any(
            all(axes.get(axis, ...) == value for axis, value in pattern)
            for pattern in self.patterns
        )


def shape_of(cell: Cell) -> str:
    """Which shape of resources a cell has: one of `sweep.SHAPES`."""
    by_kind = "train" if cell.kind in ("prepare", "train") else "defend"  # older code packed it
    return str(cell.local.get("shape", by_kind))


def misfit(defense: Defense, needs: Needs, label: str) -> str:
    """Why a defense cannot be run on a victim whose model is called `label`; empty where it can."""
    if why := tasks.unmade(defense.tasks, needs.task):
        return why
    if "batchnorm" in defense.requires and not needs.batchnorm:
        return f"needs BatchNorm layers, {label} has none"
    if reason := defense.applies(needs):
        return reason
    least = defense.least_clean(needs) if "clean" in defense.sees else 0
    if needs.clean < least:
        return (
            f"needs at least {least} clean images, the budget is {needs.clean}: raise "
            "`clean_budgets`"
        )
    return ""
