"""Runs one cell: prepare | train | stage | defend. Plain functions; nothing here knows of Ray."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sweeper.core import seeds
from sweeper.core.errors import DivergedError
from sweeper.core.types import Cell, ImageSet, Outcome, Role
from sweeper.engine import metrics, training
from sweeper.engine.isolation import CellTimeout, bound_memory, isolated, lacking, limit
from sweeper.run import record
from sweeper.run.material import Context, Lab, Log, Material
from sweeper.store.artifacts import DamagedError, Store

Result = dict[str, Any]
"""The driver is told: status (ok|failed|diverged|timeout|oom), error, seconds, acc, asr; of a
victim also how many images its training saw, each as often as it did."""


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
            cell may be tried again alone, with all of its GPU's memory.
    """
    store = Store(context.store)
    if not force and (stored := stored_result(store, cell, context)):
        return stored
    work = _Work(cell, ancestors, context, store, log)
    if lack := lacking(context.device):
        return _failed(work, "failed", lack)

    def give_up() -> Result:
        return _failed(work, "timeout", f"gave up after {context.timeout:g} s")

    started = time.time()
    try:
        with isolated(cell.key, context.threads), limit(context.timeout, lambda: _quiet(give_up)):
            bound_memory(work.device, 1.0 if last_try else context.gpus)
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


def stored_result(store: Store, cell: Cell, context: Context) -> Result | None:
    """The result the store already has for a cell; None where it must run."""
    meta = _meta(store, cell)
    if meta is not None:
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


def _meta(store: Store, cell: Cell) -> Mapping[str, Any] | None:
    """What a cell's artifact says of itself; None where there is none, or none that is whole."""
    try:
        return store.meta(cell.kind, cell.key) if store.has(cell.kind, cell.key) else None
    except DamagedError:
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
    row = {"sweep": sweep, "key": cell.key, "status": status, "error": error}
    about = record.describe(cell, victim) | record.labels(cell)
    return row | about | {"versions": record.versions(), "started_at": record.timestamp()}


class _Work(Material):
    """One cell at work."""

    def build(self) -> Result:
        """Build the cell from its parents, which are rebuilt first where they are damaged."""
        steps = {
            "prepare": self.prepare,
            "train": self.train,
            "stage": self.stage,
            "defend": self.defend,
        }
        self.check_code()
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
        ancestors = list(self.ancestors.values())
        older = ancestors[: ancestors.index(parent)]
        with isolated(parent.key, self.context.threads):
            _Work(parent, older, self.context, self.store, self.log).build()

    # The kinds of cells

    def prepare(self) -> Result:
        """Learn what an attack needs before it poisons."""
        started = time.time()
        state = self.attack.prepare(self.attacker, Lab(self))
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
        if self.learned:  # only now does the attack say what its hooks poisoned in the loop
            poisoned = self.poisoned()
        result = {"seconds": time.time() - started, **self.evaluate(model)}
        about = self.about(result) | {
            "losses": losses,
            "n_poisoned": int((poisoned.role == int(Role.POISON)).sum()),
            "shape": list(self.attacker.images.shape[1:]),
            "classes": list(self.attacker.classes),
        }
        tensors = {"model": model.state_dict()}
        if self.learned:
            tensors["attack"] = self.learned
        self.store.put("train", self.cell.key, tensors, about)
        seen = len(losses) * len(poisoned.labels)
        return {"status": "ok", "error": "", **result, "images": seen}

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
        if samples := self.samples(outcome):
            self.store.write_samples(self.cell.key, samples)
        self.store.put("defend", self.cell.key, {}, {"row": row})
        self.store.write_row(row)
        shown = {name: row.get(name) for name in ("acc", "asr")}
        return {"status": "ok", "error": "", "seconds": seconds, **shown}

    # What they share

    def about(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What an artifact says of itself."""
        return {
            "params": dict(self.cell.params),
            "axes": dict(self.cell.axes),
            "result": dict(result),
            "device": record.device_name(self.device),
            "versions": json.loads(record.versions()),
            "conditions": self.conditions(),
            "code": record.trained_by(self.attack, self.family),
        }

    def conditions(self) -> dict[str, Any]:
        """Under what this cell runs, as columns of a row."""
        recipe = self.recipe if self.victim.params["recipe"] else None
        return record.conditions(recipe, self.device, self.context.threads)

    def measure(self, outcome: Outcome) -> dict[str, Any]:
        """The metrics a defense's kind decides.

        Raises:
            DivergedError: A weight of the returned model is NaN or infinite.
        """
        measured: dict[str, Any] = {}
        if outcome.model is not None:
            for name, value in outcome.model.state_dict().items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise DivergedError(f"the returned model's {name} is NaN or infinite")
            measured |= self.evaluate(outcome.model)
            before = self.store.meta("train", self.victim.key)["result"]
            if measured["asr"] is not None:
                measured["der"] = metrics.der(
                    before["acc"], before["asr"], measured["acc"], measured["asr"]
                )
        if outcome.scores is not None or outcome.flagged is not None:
            measured |= metrics.detection(outcome, self.poisoned().role)
        if outcome.filter is not None:
            test = self.attack.clean_test(self.dataset.test, self.state(self.victim))
            measured |= metrics.filtering(outcome.filter, outcome.threshold, test, self.triggered())
        return measured

    def samples(self, outcome: Outcome) -> dict[str, Any]:
        """What the outcome says of each training sample, beside the truth; empty where nothing."""
        outputs = {"score": outcome.scores, "flagged": outcome.flagged}
        columns = {
            name: value.cpu().numpy() for name, value in outputs.items() if value is not None
        }
        if not columns:
            return {}
        poisoned = self.poisoned()
        truth = {
            name: getattr(poisoned, name) for name in ("index", "labels", "true_labels", "role")
        }
        return {name: value.numpy() for name, value in truth.items()} | columns

    def row(self, **values: Any) -> dict[str, Any]:
        """The row of this defense cell."""
        victim = self.victim
        row = blank_row(self.cell, victim, self.context.sweep, "", "")
        row |= {
            "peak_memory_mb": record.peak_memory(self.device),
            "device": record.device_name(self.device),
            "started_at": record.timestamp(self.started),
            "notes": None,
            "data_hash": victim.params["data"],
            **self.conditions(),
        }
        meta = _meta(self.store, victim)
        row["code"] = record.ran(self.defense, self.family, (meta or {}).get("code", {}))
        if meta:
            for name in ("acc", "acc_nontarget", "asr", "ra"):
                row[f"{name}_before"] = meta["result"][name]
            row["victim_seconds"] = meta["result"]["seconds"]
            row["victim_device"] = meta["device"]
            row["n_poisoned"] = meta["n_poisoned"]
            under = meta.get("conditions", {})  # victims of older code do not say
            for name in ("dtype", "threads", "device_kind", "torch"):
                row[f"victim_{name}"] = under.get(name)
        return {**row, **values}
