"""What cells cost: seconds of cells of the same kind measured on this device, scaled to others.

What was never measured here is taken roughly from the epochs of its victim, whose pace
`sweeper.run.calibrate` measures where no victim tells it. `sweeper.run.estimate` adds up.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sweeper.core import catalog
from sweeper.core.text import without_homes
from sweeper.core.types import Cell
from sweeper.plan import matrix
from sweeper.plan.sweep import SHAPES
from sweeper.store.artifacts import Store

ROUGH = {"prepare": 13.0, "stage": 13.0, "repair": 3.0, "detection": 3.0, "input filter": 3.0}
"""Epochs of a victim's training that a cell never measured costs: medians over 10 attacks, 1 stage
and 38 defenses on one core (tiny; digits and CIFAR-10). Single methods cost 0.01 to 250."""
ROUGH_TRAINING = 1.5
"""Trainings of a victim that secure training costs: the median over 6 defenses, 1.3 to 13."""
RECENT = 100
"""Artifacts of a kind, and rows not yet compacted, that are read for it at most; and how many cells
of a sort count, the last ones."""


@dataclass(frozen=True)
class Sort:
    """What tells the cost of cells apart."""

    kind: str
    """Of the cell."""
    method: str
    """The attack, stage or defense."""
    options: str = "{}"
    """Its options, JSON."""
    dataset: str = "{}"
    """The data set's name and options, JSON."""
    model: str = ""
    """The architecture with its options."""
    images: int = 0
    """Its victim trains on; 0 where not known."""
    epochs: int = 0
    """Of its victim."""
    clean: int = 0
    """Images the defender holds."""
    aside: bool = False
    """Whether it computes on a CPU where victims train on a GPU, or the other way round."""
    code: str = ""
    """The hash of a method's code where its version does not tell it: one's own, which is edited
    between a run that takes no time and one that does."""


Key = tuple[str, ...]


def _last() -> deque[Any]:
    return deque(maxlen=RECENT)


class Book:
    """Seconds that cells took on one device, and what others will."""

    def __init__(self, device: str = "") -> None:
        self.device = device
        self.cells = 0
        """How many cells it knows."""
        self._seconds: dict[Key, deque[tuple[Sort, float]]] = defaultdict(_last)
        self._epochs: dict[Key, deque[float]] = defaultdict(_last)
        self._paces: dict[tuple[str, str], float] = {}
        self._answers: dict[Sort, tuple[float, bool] | None] = {}

    def add(self, sort: Sort, seconds: float, victim: float | None = None) -> None:
        """Enter a cell.

        Args:
            sort: What it was.
            seconds: What it took.
            victim: What its victim's training took; None where that is not known.
        """
        self._answers.clear()
        self.cells += 1
        for key in _narrow(sort):
            self._seconds[key].append((sort, seconds))
        if victim and sort.epochs and not sort.aside:
            for key in _wide(sort):
                self._epochs[key].append(seconds / (victim / sort.epochs))

    def enter(self, place: tuple[str, str], pace: float) -> None:
        """Enter what an image costs in an epoch on a data set with a model, from a calibration."""
        self._answers.clear()
        self._paces[place] = pace

    def seconds(self, sort: Sort) -> tuple[float, bool] | None:
        """What a cell will take: (seconds, whether that is only rough); None where unknown."""
        if not (self.cells or self._paces):
            return None
        try:
            return self._answers[sort]
        except KeyError:  # once a sort; to hash one takes longer than all else here
            return self._answers.setdefault(sort, self._find(sort))

    def _find(self, sort: Sort) -> tuple[float, bool] | None:
        for key in _narrow(sort):
            found = self._seconds.get(key, ())
            measured = [s * _scale(was, sort) for was, s in found if _alike(was, sort)]
            if measured:
                return statistics.median(measured), False
        pace = self._epoch(sort)
        if pace is None:
            return None
        epoch, rough = pace
        if sort.kind == "train":
            return (epoch * sort.epochs, rough) if sort.epochs else None
        for key in _wide(sort):
            if costs := self._epochs.get(key):
                return epoch * statistics.median(costs), rough or sort.options not in key
        kind = sort.kind if sort.kind != "defend" else _kind(sort.method)
        if kind == "secure training":
            return (epoch * sort.epochs * ROUGH_TRAINING, True) if sort.epochs else None
        return epoch * ROUGH.get(kind, 3.0), True

    def _epoch(self, sort: Sort) -> tuple[float, bool] | None:
        """Seconds of an epoch of its victim's training, and whether that is rough."""
        if sort.aside:  # a training on another kind of device tells nothing of it
            return None
        training = replace(sort, kind="train", method="", options="", clean=0, epochs=1)
        for key in _narrow(training)[2:]:
            measured = [(was, s) for was, s in self._seconds.get(key, ()) if was.epochs]
            if measured:
                return statistics.median(s * _scale(was, training) for was, s in measured), False
        pace = self._paces.get((sort.dataset, sort.model))
        return None if pace is None else (pace * sort.images, True)


def _narrow(sort: Sort) -> list[Key]:
    """Whose seconds are its own, the nearest first."""
    place = (sort.dataset, sort.model)
    if sort.kind == "train":
        name = json.loads(sort.dataset).get("dataset", "")
        method = (sort.kind, sort.method)
        return [
            (*method, sort.options, *place),
            (*method, *place),
            (sort.kind, *place),
            ("train", name, place[1]),
        ]
    size = (sort.images, sort.epochs, sort.clean) if sort.kind == "defend" else ()
    told = (*map(str, size), str(sort.aside), sort.code)
    return [(sort.kind, sort.method, sort.options, *place, *told)]


def _wide(sort: Sort) -> list[Key]:
    """Whose cost in epochs of the victim is its own, the nearest first."""
    method, place = (sort.kind, sort.method, sort.code), (sort.dataset, sort.model)
    return [(*method, sort.options, *place), (*method, *place), (*method, sort.options), method]


def _alike(was: Sort, to: Sort) -> bool:
    """Whether one tells what the other takes: a victim that is not trained tells of its own."""
    return to.kind != "train" or was.method == to.method or bool(was.epochs and to.epochs)


def _scale(was: Sort, to: Sort) -> float:
    """How much longer a training is for its epochs and images."""
    if to.kind != "train" or not (was.epochs and to.epochs):
        return 1.0
    images = to.images / was.images if was.images and to.images else 1.0
    return images * to.epochs / was.epochs


@functools.cache
def _kind(defense: str) -> str:
    return str(catalog.method("defense", defense).kind)


class Sorts:
    """The sort of every cell of a plan, and of what a store holds."""

    def __init__(self, plan: matrix.Plan) -> None:
        self.plan = plan
        self._datasets = {
            entry.label: _dumped({"dataset": entry.name, **entry.options})
            for entry in plan.sweep.datasets
        }
        self._images = {self._datasets[label]: images(plan, label) for label in self._datasets}
        self._models = {
            str(cell.axes["model"]): _model(str(cell.axes["model"]), _options(cell.params["model"]))
            for cell in plan.cells.values()
            if cell.kind == "train"
        }
        self._sorts: dict[tuple[Any, ...], Sort] = {}
        of = plan.sweep.resources.of
        self._aside = {name: of(name).device != of("train").device for name in SHAPES}
        self.edited: dict[tuple[str, str], str] = {}
        """Kind and name of the methods whose code their version does not tell -> its hash."""
        methods = {id(method): (kind, method) for kind, method in map(_method, plan.cells.values())}
        for kind, method in methods.values():
            if code := _code(method):
                self.edited[kind, method["name"]] = code

    def of(self, cell: Cell) -> Sort:
        """What tells the cost of a cell of the plan."""
        if cell.kind == "prepare":
            return self._place(cell.kind, cell.params, cell.axes)
        params, axes, given = cell.params, cell.axes, matrix.shape_of(cell)
        victim = cell if cell.kind == "train" else self.plan.cells[params["victim"]]
        method, trained = _method(cell)[1], victim.params["recipe"]["epochs"]
        clean = params.get("n_clean")
        alike = id(method), axes["dataset"], axes["model"], trained, clean, given
        if alike not in self._sorts:  # the cells of a defense share its options
            sort = self._place(cell.kind, params, axes, victim.params)
            self._sorts[alike] = replace(sort, aside=self._aside[given])
        return self._sorts[alike]

    def _place(
        self,
        kind: str,
        params: Mapping[str, Any],
        axes: Mapping[str, Any],
        victim: Mapping[str, Any] | None = None,
    ) -> Sort:
        method = params[_METHODS[kind]]
        dataset = self._datasets[str(axes["dataset"])]
        model, size = self._models[str(axes["model"])], self._images[dataset]
        epochs = victim["recipe"]["epochs"] if victim else 0
        text, clean = _options(method), params.get("n_clean", 0) if victim else 0
        asked = Sort(kind, method["name"], text, dataset, model, size, epochs, clean)
        return replace(asked, code=_code(method)) if kind != "train" else asked

    def of_artifact(self, kind: str, meta: Mapping[str, Any]) -> Sort:
        """Likewise of a cell, from what its artifact says of itself.

        Raises:
            KeyError: The plan has no such data set or model.
        """
        params = meta["params"]
        return self._place(kind, params, meta["axes"], params if kind == "train" else None)

    def of_row(self, row: Mapping[str, Any]) -> tuple[Sort, Sort]:
        """Likewise of a row's cell, and of its victim.

        Raises:
            ValueError: It did not end well, or older code wrote it.
        """
        if row["status"] != "ok" or not (row["recipe"] and row["dataset_options"]):
            raise ValueError(row["status"])
        row = {**row, **{name: without_homes(row[name]) for name in _OPTIONS if row[name]}}
        dataset = row["dataset_options"]
        size = json.loads(dataset).get("train_size", 0) * (1 - self.plan.sweep.reserve)
        model = _model(row["model"], row["model_options"])
        place = (dataset, model, self._images.get(dataset, round(size)))
        epochs = json.loads(row["recipe"]).get("epochs", 0)
        clean, name = row["n_clean"] or 0, row["defense_name"]
        defense = Sort("defend", name, row["defense_options"], *place, epochs, clean)
        if ("defense", name) in self.edited:
            code = json.loads(row["code"] or "{}").get("defense", "")
            defense = replace(defense, code=code)
        return defense, Sort("train", row["attack_name"], row["attack_options"], *place, epochs)


def images(plan: matrix.Plan, dataset: str) -> int:
    """How many images a victim trains on, as far as it is known here."""
    facts = plan.facts[dataset]
    known = facts.n_train - facts.n_reserve
    return known or round(matrix.UNKNOWN * (1 - plan.sweep.reserve))


_METHODS = {"prepare": "attack", "train": "attack", "stage": "stage", "defend": "defense"}
"""Kind of cell -> what of its key names its method."""


def _method(cell: Cell) -> tuple[str, Mapping[str, Any]]:
    """What a cell runs: its kind, and what its key says of it."""
    kind = _METHODS[cell.kind]
    return kind, cell.params[kind]


def _code(method: Mapping[str, Any]) -> str:
    """The hash of a method's code in the version of its keys; empty where the number tells it."""
    return str(method.get("version", "")).partition("+")[2]


def _dumped(values: Mapping[str, Any]) -> str:
    """Options as a row has them."""
    return without_homes(json.dumps(values, sort_keys=True))


def _options(params: Mapping[str, Any]) -> str:
    return _dumped({key: value for key, value in params.items() if key not in ("name", "version")})


def _model(label: str, options: str) -> str:
    return f"{label} {options}"


_OPTIONS = ("defense_options", "attack_options", "model_options", "dataset_options")
COLUMNS = (
    *("key", "status", "device", "victim_device", "seconds", "victim_seconds", "victim", "recipe"),
    *("defense_name", "attack_name", "n_clean", "model", "code", *_OPTIONS),
)


def book(store: Store, plan: matrix.Plan, device: str = "", aside: str = "") -> Book:
    """What a store knows of costs on one device, from the cells of all its sweeps.

    Args:
        store: The store.
        plan: Whose data sets and models are meant.
        device: Where victims train, as rows name it; where empty, what most rows are from.
        aside: The device of cells that are `aside`; likewise, of the other kind.
    """
    rows = store.recent_rows(COLUMNS, RECENT)
    if not device and rows:
        common = [name or "" for name, _ in Counter(row["device"] for row in rows).most_common()]
        device = common[0]
        others = (name for name in common if name.startswith("CPU") != device.startswith("CPU"))
        aside = next(others, "")
    costs, sorts, trained = Book(device), Sorts(plan), set()
    for row in rows:
        try:
            defense, victim = sorts.of_row(row)
        except ValueError:
            continue
        victim_device = row["victim_device"] or row["device"]
        victim_seconds = row["victim_seconds"] if victim_device == device else None
        if row["device"] == device and row["seconds"] is not None:
            costs.add(defense, row["seconds"], victim_seconds)
        elif row["device"] == aside and row["seconds"] is not None:
            costs.add(replace(defense, aside=True), row["seconds"])
        if victim_seconds is not None and row["victim"] not in trained:
            trained.add(row["victim"])
            costs.add(victim, victim_seconds)
    for kind in {cell.kind for cell in plan.cells.values()} - {"defend"}:
        for key, meta in store.recent(kind, RECENT).items():
            with contextlib.suppress(KeyError):
                if key not in trained and meta["device"] == device:
                    costs.add(sorts.of_artifact(kind, meta), meta["result"]["seconds"])
    return costs
