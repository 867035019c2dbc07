"""Runs a sweep: expand, subtract what the store holds, walk the rest, leave the table."""

from __future__ import annotations

import functools
import os
import signal
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from sweeper.core import rows, text
from sweeper.core.types import Cell, Facts
from sweeper.engine import portable
from sweeper.plan import known, matrix
from sweeper.plan.sweep import Shape, Sweep
from sweeper.run import cells, fresh, record
from sweeper.run.faults import Interrupted
from sweeper.run.material import Context, Progress
from sweeper.run.tries import AGAIN, WHOLE, Health, Loss, Tries
from sweeper.run.walk import REBUILDS, Walk
from sweeper.run.work import Result
from sweeper.store.artifacts import DamagedError, Store
from sweeper.store.claim import claimed


class Watcher(Protocol):
    """Who looks on while a sweep runs."""

    def started(self, cell: Cell, progress: Progress | None = None) -> None:
        """A cell starts; `progress` fills as it goes, where the executor knows."""

    def finished(self, cell: Cell, result: Result) -> None:
        """A cell ended, or was blocked."""

    def put_back(self, cell: Cell) -> None:
        """A cell that had started waits again, or ended for a second time."""

    def told(self, text: str) -> None:
        """Something happened that people should know, in a sentence or a table."""


@dataclass
class Job:
    """A sweep ready to run: its plan less what is done."""

    plan: matrix.Plan
    """The expanded sweep."""
    store: Store
    """Where victims and rows are kept."""
    context: Context
    """Where the cells run, and under what those that train do."""
    done: set[str]
    """Keys of cells the store has, defense cells with a finished row of this sweep."""
    adopted: set[str] = field(default_factory=set)
    """Defense cells another sweep of the store has already run."""
    hidden: int = 0
    """Finished rows of this sweep whose cells the plan does not have: no table shows them now."""

    @property
    def todo(self) -> list[str]:
        """Keys to run: unfinished defense cells and the ancestors they lack."""
        keys: set[str] = set()

        def add(key: str) -> None:
            if key not in keys and key not in self.done and key not in self.adopted:
                keys.add(key)
                for parent in self.plan.cells[key].parents:
                    add(parent)

        for key, cell in self.plan.cells.items():
            if cell.kind == "defend":
                add(key)
        return [key for key in self.plan.cells if key in keys]

    def context_of(self, cell: Cell) -> Context:
        """Under what a cell runs: the job's context, with threads and device of its own shape."""
        resources = self.plan.sweep.resources
        shape = resources.of(matrix.shape_of(cell))
        if shape == resources.of("train"):
            return self.context
        threads, gpus, device = shape.cpus, shape.gpus, shape.device
        context = replace(self.context, threads=threads, gpus=gpus, device=device)
        return _carried(context, self.plan.sweep)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The distinct shapes of the cells to run."""
        names = dict.fromkeys(matrix.shape_of(self.plan.cells[key]) for key in self.todo)
        return tuple(dict.fromkeys(map(self.plan.sweep.resources.of, names)))

    def _defended(self) -> list[Cell]:
        """The cells that have a row, those that do not apply among them."""
        every = (*self.plan.cells.values(), *self.plan.inapplicable)
        return [cell for cell in every if cell.kind == "defend"]

    @property
    def row_count(self) -> int:
        """How many rows the sweep has once it is done."""
        return len(self._defended())

    def unfinished(self) -> dict[str, int]:
        """The rows that are not finished now, whoever left them so: state, or missing -> count."""
        statuses = self.store.statuses(self.plan.sweep.name)
        states = Counter(statuses.get(cell.key, "missing") for cell in self._defended())
        return {state: states[state] for state in sorted(states.keys() - set(rows.FINISHED))}

    @functools.cached_property
    def other_code(self) -> list[dict[str, Any]]:
        """What is done by other code than today's; see `fresh.other_code`."""
        return fresh.other_code(self.plan, self.store, self.done)

    def resume(self) -> None:
        """End what an interrupted `again` began."""
        fresh.resume(self.plan, self.store, self.context.run)

    def again(self, names: Sequence[str]) -> str:
        """Have cells run again that are done, with all below them; say what that is.

        Args:
            names: See `fresh.chosen`.

        Raises:
            SweepError: One names nothing, or another driver runs a sweep that has such a cell.
        """
        keys = fresh.chosen(self.plan, self.store, self.done, names)
        if not keys:
            return "--fresh: no other engine has done any of these cells, none is run again"
        moved, others = fresh.replace(self.plan, self.store, self.context.run, keys)
        for group in moved.values():
            self.done -= set(group)
            self.adopted -= set(group)
        return fresh.spoken(moved, others, self.context.run)

    def summary(self) -> dict[str, Any]:
        """What `sweeper plan --json` prints."""
        todo = self.todo
        return {
            "sweep": self.plan.sweep.name,
            "cells": self.plan.counts(),
            "total": len(self.plan.cells),
            "done": len(self.done | self.adopted),
            "to_run": len(todo),
            "to_run_by_kind": dict(Counter(self.plan.cells[key].kind for key in todo)),
            "trainings_saved": self.plan.trainings_saved(),
            "why_not": self._why_not(),
            "unresolved": list(self.plan.unresolved),
            "other_code": self.other_code,
        }

    def _why_not(self) -> list[dict[str, Any]]:
        """What does not apply, by its cause: how many cells, of which attacks if not of all."""
        groups: dict[str, list[Cell]] = defaultdict(list)
        for cell in self.plan.inapplicable:
            groups[cell.reason].append(cell)
        causes = []
        for reason, group in groups.items():
            item: dict[str, Any] = {"cells": len(group), "reason": reason}
            for axis in (f"{name}s" for name in WHO):
                labels = list(dict.fromkeys(cell.axes[axis[:-1]] for cell in group))
                if len(labels) < len(getattr(self.plan.sweep, axis)):
                    item[axis] = labels
            causes.append(item)
        return sorted(causes, key=lambda item: -item["cells"])


WHO = ("attack", "defense", "dataset", "model")
"""The axes that say what does not fit together."""


def prepare(sweep: Sweep, context: Context, *, need_data: bool = True) -> Job:
    """Open the data, expand the sweep and subtract what the store holds.

    Args:
        sweep: The validated sweep.
        context: Store, data folder, and under what cells train; portable cells, which have one
            thread, are noted in the job's.
        need_data: Whether a data set that is not here is an error, or left unresolved.

    Raises:
        SweepError: Data that are here cannot be read, or data, models and budgets do not fit
            together.
    """
    facts: dict[str, Facts] = {}
    root = Path(context.data) if context.data else None
    cache = Path(context.cache) if context.cache else None
    for entry in sweep.datasets:
        if need_data or known.at_hand(entry, root, cache):
            facts[entry.label] = known.of(entry, sweep.reserve, root, cache)
        else:
            facts[entry.label] = known.unresolved(entry)
    plan = matrix.expand(sweep, facts)
    store = Store(context.store)
    statuses = store.statuses(sweep.name)
    stored = {kind: store.keys(kind) for kind in matrix.KINDS}
    done = {
        key
        for key, cell in plan.cells.items()
        if cell.kind != "defend" and key in stored[cell.kind]
    }
    done |= {key for key, status in statuses.items() if status in rows.FINISHED} & set(plan.cells)
    away = {key for gone in store.replacing().values() for keys in gone.values() for key in keys}
    done -= away
    shown = set(plan.cells) | {cell.key for cell in plan.inapplicable}
    hidden = sum(statuses[key] in rows.FINISHED for key in set(statuses) - shown)
    adopted = (stored["defend"] & set(plan.cells)) - done - away
    return Job(plan, store, _carried(context, sweep), done, adopted, hidden)


def _carried(context: Context, sweep: Sweep) -> Context:
    """The context with what `precision: portable` makes of it: one thread, on a CPU."""
    asked = portable.asked(sweep.recipe, context.device)
    return replace(context, portable=asked, threads=1 if asked else context.threads)


def execute(job: Job, walker: Walker, watcher: Watcher) -> Counter[str]:
    """Run what is missing and leave the rows compacted.

    Args:
        job: The prepared sweep.
        walker: Runs the cells of a walk: `inline` here, or Ray's in `sweeper.run.schedule`.
        watcher: Who looks on.

    Returns:
        How many cells of this call ended in each state, reused ones aside.

    Raises:
        SweepError: Another driver runs this sweep into this store, or it cannot be written.
    """
    sweep, store = job.plan.sweep, job.store
    with claimed(store, sweep.name, job.context.run):
        store.save_sweep(sweep.name, as_file(sweep))
        store.save_plan(sweep.name, _outline(job))
        for key in list(job.adopted):
            try:
                row = store.meta("defend", key)["row"]
            except DamagedError:
                job.adopted.discard(key)
            else:
                cells.adopt(store, job.plan.cells[key], sweep.name, row)
        walk = Walk(job.plan.cells, job.todo, matrix.shape_of)
        statuses = store.statuses(sweep.name)
        for cell in job.plan.inapplicable:
            if statuses.get(cell.key) not in rows.FINISHED:
                store.write_row(_inapplicable(cell, job))
        ending = Ending(job, walk, watcher)
        try:
            walker(job, walk, ending, watcher)
        finally:
            store.compact(sweep.name)
    return ending.counts


def as_file(sweep: Sweep) -> str:
    """A sweep as the text of a file that `spec.load` reads as the same sweep, defaults and all."""
    values = sweep.model_dump(mode="json")
    values["resources"] = {k: v for k, v in values["resources"].items() if v is not None}
    for kind in ("dataset", "model", "attack", "defense"):
        entries: list[Any] = []
        for entry in values[f"{kind}s"]:
            rates = {"poison_rates": entry["poison_rates"]} if entry["poison_rates"] else {}
            options = {**entry["options"], **rates}
            named = {kind: entry["name"], "as": entry["label"]}
            plain = entry["name"] == entry["label"] and not options
            entries.append(entry["name"] if plain else {**named, **options})
        values[f"{kind}s"] = entries
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=True))


class Ending:
    """What happens in the driver when a cell was run: ended, or tried again another way."""

    def __init__(self, job: Job, walk: Walk, watcher: Watcher) -> None:
        self.job = job
        self.walk = walk
        self.watcher = watcher
        self.tries = Tries(Health())
        """Of all cells; who knows of several machines says which there are."""
        self.counts: Counter[str] = Counter()
        self._left = set(walk.todo)

    def __call__(self, key: str, result: Result, node: str = "") -> None:
        """Take what came of cell `key`, and where it ran."""
        if result["status"] == "parents":
            self._wait(key, result)
            return
        final = self.tries.judge(key, result, node)
        if final is None:
            self._again(key)
            return
        if final is not result:
            self.record(key, final)
        self._end(key, final)

    def lost(self, key: str, loss: Loss) -> None:
        """The process of cell `key` was lost."""
        if final := self.tries.lost(key, loss):
            self.give_up(key, final)
        else:
            self._again(key)

    def give_up(self, key: str, result: Result) -> None:
        """End cell `key`, whose process was lost, so."""
        final = {**result, "error": text.error(result["error"])}
        self.record(key, final)
        self._end(key, final)

    def record(self, key: str, final: Result) -> None:
        """Write what a process could not; in this run the cell is not tried again."""
        cell, status, why = self.walk.cells[key], final["status"], final["error"]
        failure = {"status": status, "error": why, "run": self.job.context.run, "kind": cell.kind}
        name, store = self.job.plan.sweep.name, self.job.store
        _patiently(lambda: store.fail(name, key, {**failure, "axes": dict(cell.axes)}))
        if cell.kind == "defend":
            _patiently(lambda: store.write_row(self._row(cell, status, why)))

    def _again(self, key: str) -> None:
        """Cell `key` is tried again."""
        self.walk.put_back(key, WHOLE if self.tries.of(key).whole else AGAIN)
        self.watcher.put_back(self.walk.cells[key])

    def _wait(self, key: str, result: Result) -> None:
        """Cell `key` has lost parents, which are made again before it runs."""
        parent = self.walk.reopen(key, result["lost"])
        if parent is None:
            self.watcher.put_back(self.walk.cells[key])
            return
        above, state = self.walk.cells[parent], self.walk.status.get(parent, "ok")
        ended = f"was damaged {REBUILDS} times" if state == "ok" else state
        status = "failed" if state == "ok" else "blocked"
        error = f"{result['error']}; made again, {above.kind} cell {parent} {ended}"
        self.give_up(key, {"status": status, "error": error, "seconds": None})

    def _end(self, key: str, result: Result) -> None:
        cell = self.walk.cells[key]
        blocked = self.walk.complete(key, result["status"])
        self._count(cell, result)
        for child, failed in blocked:
            cause = text.last_line(result["error"]) or "it does not say why"
            words = " ".join(str(value) for value in failed.axes.values())
            error = f"{failed.kind} cell {failed.key} ({words}) {result['status']}: {cause}"
            if child.kind == "defend":
                row = self._row(child, "blocked", error)
                _patiently(functools.partial(self.job.store.write_row, row))
            self._count(child, {"status": "blocked", "error": error, "seconds": None})

    def _count(self, cell: Cell, result: Result) -> None:
        """Count a cell once; what was made again had ended before."""
        if cell.key not in self._left:
            self.watcher.put_back(cell)
            return
        self._left.discard(cell.key)
        self.counts[result["status"]] += 1
        self.watcher.finished(cell, result)

    def _row(self, cell: Cell, status: str, error: str) -> dict[str, Any]:
        victim = self.job.plan.cells[cell.params["victim"]]
        return record.blank_row(cell, victim, self.job.plan.sweep.name, status, error)


Walker = Callable[[Job, Walk, Ending, Watcher], None]
"""What runs the cells of a walk."""


def _inapplicable(cell: Cell, job: Job) -> dict[str, Any]:
    victim = cell.local["victim_cell"]
    return record.blank_row(cell, victim, job.plan.sweep.name, "not_applicable", cell.reason)


def _outline(job: Job) -> dict[str, Any]:
    """What tables, reports and `sweeper status` must know of the matrix."""
    sweep = job.plan.sweep
    every = [*job.plan.cells.values(), *job.plan.inapplicable]
    return {
        "order": {
            axis: [entry.label for entry in getattr(sweep, f"{axis}s")]
            for axis in ("dataset", "model", "attack", "defense")
        },
        "cells": {c.key: dict(c.axes) for c in every if c.kind == "defend"},
        "data": {c.axes["dataset"]: c.params["data"] for c in every if c.kind == "train"},
        "above": {c.key: c.kind for c in every if c.kind != "defend"},
    }


AWAY = 60.0
"""Seconds the driver waits for a store that is away."""


def _patiently(write: Callable[[], None]) -> None:
    """Write into a store that may be away for a moment.

    Raises:
        OSError: It stays away.
    """
    deadline = time.monotonic() + AWAY
    while True:
        try:
            return write()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def inline(job: Job, walk: Walk, ending: Ending, watcher: Watcher) -> None:
    """Run the cells one after the other in this process, without Ray.

    Ctrl-C stops after the running cell; a second one at once.
    """
    tries = ending.tries
    with gentle_interrupt() as stopped:
        while not (walk.finished or stopped()):
            cell = walk.next(tries.due)
            if cell is None:  # what is left was tried, and waits
                time.sleep(0.1)
                continue
            progress = Progress()
            watcher.started(cell, progress)
            ancestors, whole = walk.ancestors(cell.key), tries.of(cell.key).whole
            context = job.context_of(cell)
            ending(cell.key, cells.run(cell, ancestors, context, progress, last_try=whole))


@contextmanager
def gentle_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to stop, which is yielded; the second interrupts."""
    interrupts: list[int] = []

    def handle(number: int, _: Any) -> None:
        if interrupts:
            raise Interrupted
        interrupts.append(number)
        os.write(2, b"\nstopping after the running cells; Ctrl-C again stops at once\n")

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread: nothing to catch there
        yield lambda: False
        return
    try:
        yield lambda: bool(interrupts)
    finally:
        signal.signal(signal.SIGINT, before)


def new_run() -> str:
    """Return the name of one call of `sweeper run`."""
    return uuid.uuid4().hex[:12]
