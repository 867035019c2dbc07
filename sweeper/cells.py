"""Runs one cell: prepare | train | stage | defend. Plain functions; nothing here knows of Ray."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from attacks.base import Attack
from defenses.base import Case, Defense
from sweeper import catalog, data, metrics, models, options, record, seeds, training
from sweeper.data import splits
from sweeper.errors import DivergedError
from sweeper.isolation import CellTimeout, isolated, limit
from sweeper.models.base import Net
from sweeper.recipes import Recipe
from sweeper.store import DamagedError, Store
from sweeper.types import Cell, ImageSet, Outcome, Poisoned, Role, State, Triggered


@dataclass(frozen=True)
class Context:
    """Where and under what a cell runs; none of it changes a number."""

    store: str
    """Root of the store."""
    sweep: str
    """Name of the sweep rows belong to."""
    run: str = ""
    """Identifies this call of `sweeper run`: what failed in it is not tried again in it."""
    data: str | None = None
    """Folder of the data sets."""
    cache: str | None = None
    """Folder of decoded data sets."""
    threads: int = 1
    """CPU threads of the cell."""
    device: str = "auto"
    """auto | cpu | cuda."""
    timeout: float | None = None
    """Seconds after which the cell is given up."""


Result = dict[str, Any]
"""The driver is told: status (ok|failed|diverged|timeout|oom), error, seconds, acc, asr."""
Log = Callable[..., None]


def run(
    cell: Cell,
    ancestors: Sequence[Cell],
    context: Context,
    log: Log | None = None,
    *,
    force: bool = False,
    last_try: bool = False,
) -> Result:
    """Run a cell unless the store has it; never raises for what the cell's own code does.

    Args:
        cell: The cell.
        ancestors: Its parents and theirs, parents first; rebuilt here where the store lost them.
        context: Where it runs.
        log: Takes progress as keywords.
        force: Run it even if the store has it.
        last_try: Whether running out of memory is final; else the result says `oom` and the
            cell may be tried again alone.
    """
    store = Store(context.store)
    if not force and (known := _known(store, cell, context)):
        return known
    work = _Work(cell, ancestors, context, store, log)

    def give_up() -> Result:
        return _failed(work, "timeout", f"gave up after {context.timeout:g} s")

    started = time.time()
    try:
        with isolated(cell.key, context.threads), limit(context.timeout, lambda: _quiet(give_up)):
            return work.build()
    except CellTimeout:
        return give_up()
    except DivergedError as error:
        return _failed(work, "diverged", str(error))
    except Exception as error:
        if _out_of_memory(error) and not last_try:
            return {"status": "oom", "error": str(error), "seconds": time.time() - started}
        return _failed(work, "failed", traceback.format_exc())


def _quiet(action: Callable[[], Any]) -> None:
    action()


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _known(store: Store, cell: Cell, context: Context) -> Result | None:
    """The result the store already has for a cell; None where it must run."""
    if store.has(cell.kind, cell.key):
        meta = store.meta(cell.kind, cell.key)
        if cell.kind == "defend":
            adopt(store, cell, context.sweep, meta["row"])
            row = meta["row"]
            shown = {name: row.get(name) for name in ("status", "acc", "asr", "seconds")}
            return {**shown, "error": row.get("error") or "", "reused": True}
        return {"status": "ok", "error": "", **meta.get("result", {}), "reused": True}
    failure = store.failure(context.sweep, cell.key)
    if failure and context.run and failure["run"] == context.run:
        return {"status": failure["status"], "error": failure["error"], "seconds": None}
    return None


def _failed(work: _Work, status: str, error: str) -> Result:
    """Write the failure (and a defense's row) and report it."""
    cell, context, store = work.cell, work.context, work.store
    seconds = time.time() - work.started
    failure = {"status": status, "error": error, "run": context.run, "kind": cell.kind}
    store.fail(context.sweep, cell.key, {**failure, "axes": dict(cell.axes)})
    if cell.kind == "defend":
        row = work.row(status=status, error=error, seconds=seconds)
        if status == "diverged":
            store.put("defend", cell.key, {}, {"row": row})
        store.write_row(row)
    return {"status": status, "error": error, "seconds": seconds}


def adopt(store: Store, cell: Cell, sweep: str, row: Mapping[str, Any]) -> None:
    """Enter the row another sweep of this store wrote for the same cell, under our labels."""
    store.write_row({**row, "sweep": sweep, **record.labels(cell)})


def blank_row(cell: Cell, victim: Cell, sweep: str, status: str, error: str) -> dict[str, Any]:
    """The row of a defense cell that did not run."""
    found = {"sweep": sweep, "key": cell.key, "status": status, "error": error}
    about = record.describe(cell, victim) | record.labels(cell)
    return found | about | {"versions": record.versions(), "started_at": record.timestamp()}


class _Work:
    """One cell at work: what its parts share."""

    def __init__(
        self,
        cell: Cell,
        ancestors: Sequence[Cell],
        context: Context,
        store: Store,
        log: Log | None,
    ) -> None:
        self.cell = cell
        self.ancestors = {parent.key: parent for parent in ancestors}
        self.context = context
        self.store = store
        self.log = log
        self.learned: State = {}
        """What the attack learned while this cell trained its victim."""
        self.started = time.time()
        wanted = context.device
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(wanted)

    def build(self) -> Result:
        """Build the cell from its parents, which are rebuilt first where they are damaged."""
        steps = {
            "prepare": self.prepare,
            "train": self.train,
            "stage": self.stage,
            "defend": self.defend,
        }
        for _ in range(1 + len(self.ancestors)):
            for parent in self.ancestors.values():
                if not self.store.has(parent.kind, parent.key):
                    self.rebuild(parent)
            try:
                return steps[self.cell.kind]()
            except DamagedError as error:
                damaged = error
        raise damaged

    def rebuild(self, parent: Cell) -> None:
        """Build a lost ancestor, exactly as its own cell would."""
        known = list(self.ancestors.values())
        older = known[: known.index(parent)]
        with isolated(parent.key, self.context.threads):
            _Work(parent, older, self.context, self.store, self.log).build()

    # The parts of the graph

    @functools.cached_property
    def victim(self) -> Cell:
        """The victim's cell: this one, or the ancestor a defense or stage names."""
        if self.cell.kind in ("train", "prepare"):
            return self.cell
        return self.ancestors[self.cell.params["victim"]]

    @functools.cached_property
    def dataset(self) -> data.Dataset:
        """The data set, checked to be the one the key was made from."""
        found = _dataset(
            json.dumps(self.victim.local["dataset"]), self.context.data, self.context.cache
        )
        if found.digest != self.victim.params["data"]:
            raise RuntimeError(
                f"the data set {found.name} on this machine is not the one the sweep was planned "
                "with: its content hash differs"
            )
        return found

    @functools.cached_property
    def attacker(self) -> ImageSet:
        """The attacker's training split."""
        index, _ = splits.split(self.dataset, self.victim.params["reserve"])
        return self.dataset.train[index]

    @functools.cached_property
    def attack(self) -> Attack:
        """The attack with its options and target."""
        local = dict(self.victim.local["attack"])
        name = local.pop("attack")
        target = self.victim.params.get("target", 0)
        found: Attack = catalog.make("attack", name, local, target=target)
        return found

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The victim's recipe."""
        return options.construct(Recipe, self.victim.params["recipe"], "recipe")

    def new_model(self, rng: Generator) -> Net:
        """A freshly initialised model of the victim's architecture."""
        return _builder(self)(rng)

    def state(self, victim: Cell) -> State:
        """What the attack's `prepare` left for this victim."""
        prepared: State = {}
        if victim.params.get("state"):
            prepared = self.store.get("prepare", victim.params["state"]).tensors["state"]
        if self.cell.key == victim.key:
            return {**prepared, **self.learned}
        return {**prepared, **self.store.get("train", victim.key).tensors.get("attack", {})}

    def poisoned(self) -> Poisoned:
        """The poisoned training set; the same tensors at every call for one victim."""
        victim = self.victim
        rng = seeds.generator(victim.key, "poison")
        rate = victim.params["poison_rate"]
        return self.attack.poison(self.attacker, rate, self.state(victim), rng)

    def triggered(self) -> Triggered:
        """The triggered test set."""
        rng = seeds.generator(self.victim.key, "trigger")
        return self.attack.trigger_set(self.dataset.test, self.state(self.victim), rng)

    def evaluate(self, model: nn.Module) -> dict[str, float | int | None]:
        """ACC, ASR, RA and their variants on the test set."""
        attack, test = self.attack, self.dataset.test
        found = metrics.evaluate(
            model,
            attack.clean_test(test),
            self.triggered(),
            attack.target if attack.targeted else None,
            self.recipe,
            self.device,
        )
        rng = seeds.generator(self.victim.key, "cross")
        crossed = attack.cross_set(test, self.state(self.victim), rng)
        if crossed is not None:
            predicted = metrics.predict(model, crossed.images, self.recipe, self.device)
            found["cross_acc"] = float((predicted == crossed.labels).double().mean())
        return found

    # The kinds of cells

    def prepare(self) -> Result:
        """Learn what an attack needs before it poisons."""
        started = time.time()
        state = self.attack.prepare(self.attacker, _Lab(self))
        result = {"seconds": time.time() - started}
        self.store.put("prepare", self.cell.key, {"state": state}, self.about(result))
        return {"status": "ok", "error": "", **result}

    def train(self) -> Result:
        """Train a victim and measure it."""
        poisoned = self.poisoned()
        model = self.new_model(seeds.generator(self.cell.key, "model"))
        state, rng = self.state(self.cell), seeds.generator(self.cell.key, "hooks")
        hooks = self.attack.hooks(self.attacker, state, rng) or training.Hooks()
        started = time.time()
        losses = training.fit(
            model,
            ImageSet(poisoned.images, poisoned.labels, self.attacker.classes),
            self.recipe,
            key=self.cell.key,
            device=self.device,
            hooks=hooks,
            progress=self.progress,
        )
        self.learned = hooks.learned()
        result = {"seconds": time.time() - started, **self.evaluate(model)}
        about = self.about(result) | {
            "losses": losses,
            "n_poisoned": int((poisoned.role == int(Role.POISON)).sum()),
        }
        tensors = {"model": model.state_dict()}
        if self.learned:
            tensors["attack"] = self.learned
        self.store.put("train", self.cell.key, tensors, about)
        return {"status": "ok", "error": "", **result}

    def stage(self) -> Result:
        """Run what several defenses share."""
        stage = self.defense.stage()
        assert stage is not None
        started = time.time()
        tensors = stage.run(self.case(stage.sees, {}))
        result = {"seconds": time.time() - started}
        self.store.put("stage", self.cell.key, {"state": tensors}, self.about(result))
        return {"status": "ok", "error": "", **result}

    def defend(self) -> Result:
        """Run a defense, then measure what it returned; only now is the test set opened."""
        stage = self.cell.params["stage"]
        state = self.store.get("stage", stage).tensors["state"] if stage else {}
        case = self.case(self.defense.sees, state)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.time()
        outcome = self.defense.defend(case)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.time() - started
        row = self.row(status="ok", error="", seconds=seconds, **self.measure(outcome))
        if row["notes"] is None:
            row["notes"] = json.dumps(record.plain(outcome.notes))
        tensors = {} if outcome.scores is None else {"scores": {"scores": outcome.scores}}
        self.store.put("defend", self.cell.key, tensors, {"row": row})
        self.store.write_row(row)
        shown = {name: row.get(name) for name in ("acc", "asr")}
        return {"status": "ok", "error": "", "seconds": seconds, **shown}

    # What they share

    @functools.cached_property
    def defense(self) -> Defense:
        """The defense with its options."""
        local = dict(self.cell.local["defense"])
        found: Defense = catalog.make("defense", local.pop("defense"), local)
        return found

    def model(self) -> Net:
        """The victim's model with its trained weights."""
        tensors = self.store.get("train", self.victim.key).tensors["model"]
        model = self.new_model(seeds.generator(self.victim.key, "model"))
        model.load_state_dict(dict(tensors))
        return model.to(self.device).eval()

    def case(self, sees: frozenset[str], state: State) -> Case:
        """What a defense or stage is given: what it declares to see, and nothing else."""
        given: dict[str, Any] = {}
        if "model" in sees:
            given["model"] = self.model()
        if "clean" in sees:
            _, held = splits.split(self.dataset, self.victim.params["reserve"])
            seed, count = self.victim.params["seed"], self.cell.params["n_clean"]
            given["clean"] = self.dataset.train[splits.clean_set(self.dataset, held, count, seed)]
        if "train" in sees:
            poisoned = self.poisoned()
            given["train"] = ImageSet(poisoned.images, poisoned.labels, self.attacker.classes)
        if "queries" in sees:
            given["queries"] = _queries(self.model(), self.recipe, self.device)
        if "oracle" in sees:
            given["oracle"] = self.oracle
        return Case(
            sees=sees,
            key=self.cell.key,
            device=self.device,
            recipe=self.recipe,
            given=given,
            build=_builder(self),
            state=state,
            log=self.log,
        )

    def oracle(self, model: nn.Module) -> tuple[float, float]:
        """ACC and ASR on the test set, for what is named an oracle."""
        found = self.evaluate(model)
        return float(found["acc"] or 0), float(found["asr"] or 0)

    def progress(self, epoch: int, epochs: int, loss: float) -> None:
        """Pass an epoch on to the log."""
        if self.log:
            self.log(step=epoch, steps=epochs, loss=loss)

    def about(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What an artifact says of itself."""
        return {
            "params": dict(self.cell.params),
            "axes": dict(self.cell.axes),
            "result": dict(result),
            "device": record.device_name(self.device),
            "versions": json.loads(record.versions()),
        }

    def measure(self, outcome: Outcome) -> dict[str, Any]:
        """The metrics a defense's kind decides.

        Raises:
            DivergedError: A weight of the returned model is NaN or infinite.
        """
        found: dict[str, Any] = {}
        if outcome.model is not None:
            for name, value in outcome.model.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise DivergedError(f"the returned model's {name} is NaN or infinite")
            found |= self.evaluate(outcome.model)
            before = self.store.meta("train", self.victim.key)["result"]
            if found["asr"] is not None:
                found["der"] = metrics.der(before["acc"], before["asr"], found["acc"], found["asr"])
        if outcome.scores is not None or outcome.flagged is not None:
            found |= metrics.detection(outcome, self.poisoned().role)
        if outcome.filter is not None:
            test = self.attack.clean_test(self.dataset.test)
            found |= metrics.filtering(outcome.filter, outcome.threshold, test, self.triggered())
        return found

    def row(self, **values: Any) -> dict[str, Any]:
        """The row of this defense cell."""
        victim = self.victim
        row = blank_row(self.cell, victim, self.context.sweep, "", "")
        row |= {
            "peak_memory_mb": record.peak_memory(self.device),
            "device": record.device_name(self.device),
            "started_at": record.timestamp(self.started),
            "notes": None,
        }
        if self.store.has("train", victim.key):
            meta = self.store.meta("train", victim.key)
            for name in ("acc", "acc_nontarget", "asr", "ra"):
                row[f"{name}_before"] = meta["result"][name]
            row["victim_seconds"] = meta["result"]["seconds"]
            row["n_poisoned"] = meta["n_poisoned"]
        return {**row, **values}


class _Lab:
    """What an attack's `prepare` may use; see `attacks.base.Lab`."""

    def __init__(self, work: _Work) -> None:
        self.device = work.device
        self.classes = len(work.dataset.train.classes)
        self._work = work

    def rng(self, name: str) -> Generator:
        """A generator of its own for each named draw."""
        return seeds.generator(self._work.cell.key, name)

    def clean_model(self) -> Net:
        """The cleanly trained model this cell's parent left."""
        work = self._work
        tensors = work.store.get("train", work.cell.params["clean_model"]).tensors["model"]
        model = self.new_model()
        model.load_state_dict(dict(tensors))
        return model.to(work.device).eval()

    def new_model(self) -> Net:
        """A freshly initialised model of the victim's architecture."""
        return self._work.new_model(self.rng("model"))

    def fit(
        self,
        model: nn.Module,
        data: ImageSet,
        hooks: training.Hooks | None = None,
        **changes: Any,
    ) -> None:
        """Train by the sweep's recipe with `changes`.

        Raises:
            TypeError: The attack trains but does not declare that its state depends on the model.
        """
        work = self._work
        if work.cell.params["recipe"] is None:
            raise TypeError("prepare() calls lab.fit: `state_axes` must contain model")
        recipe = dataclasses.replace(work.recipe, **changes)
        training.fit(model, data, recipe, key=work.cell.key, device=work.device, hooks=hooks)


def _builder(work: _Work) -> Callable[[Generator], Net]:
    """A function that builds models and holds no data."""
    dataset, local = work.dataset, dict(work.victim.local["model"])
    name, classes = local.pop("model"), len(dataset.train.classes)
    channels, height, width = dataset.train.images.shape[1:]
    mean, std = dataset.mean, dataset.std

    def build(rng: Generator) -> Net:
        shape = (channels, height, width)
        return models.build(
            name, local, classes=classes, shape=shape, mean=mean, std=std, generator=rng
        )

    return build


def _queries(
    model: Net, recipe: Recipe, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model as a black box: uint8 [B, C, H, W] -> probabilities [B, K] on the CPU."""

    @torch.inference_mode()
    def ask(images: torch.Tensor) -> torch.Tensor:
        with training.autocast(recipe, device):
            logits = model(images.to(device).float().div_(255))
        probabilities: torch.Tensor = logits.float().softmax(1).cpu()
        return probabilities

    return ask


@functools.lru_cache(maxsize=4)
def _dataset(asked: str, root: str | None, cache: str | None) -> data.Dataset:
    """An immutable input, kept by the process between cells."""
    return data.open_dataset(
        json.loads(asked), Path(root) if root else None, Path(cache) if cache else None
    )
