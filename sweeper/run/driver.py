"""Runs a sweep: expand, subtract what the store holds, walk the rest, leave the table."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sweeper.core import rows
from sweeper.core.types import Cell
from sweeper.plan import known, matrix
from sweeper.plan.sweep import Sweep
from sweeper.run import cells, record
from sweeper.run.ending import ROWS, Ending, Watcher
from sweeper.run.faults import Interrupted
from sweeper.run.job import Job, carried
from sweeper.run.material import Context
from sweeper.run.present import outline
from sweeper.run.progress import Progress
from sweeper.run.walk import Walk
from sweeper.store.artifacts import Store
from sweeper.store.claim import claimed

T = TypeVar("T")
SHOWN = 200
"""Cells that a driver says it has begun, at most."""


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
    root = Path(context.data) if context.data else None
    cache = Path(context.cache) if context.cache else None
    plan = matrix.expand(sweep, known.each(sweep, root, cache, need_data=need_data))
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
    return Job(plan, store, carried(context, sweep), done, adopted, hidden)


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
    walks: list[Walk] = []
    with claimed(store, sweep.name, job.context.run, lambda: _at_work(walks)):
        job.context = replace(job.context, number=store.begin(sweep.name))
        store.save_sweep(sweep.name, as_file(sweep))
        store.save_plan(sweep.name, outline(job.plan))
        _enter(job)
        walk = Walk(job.plan.cells, job.todo, matrix.shape_of)
        walks.append(walk)
        ending = Ending(job, walk, watcher)
        try:
            walker(job, walk, ending, watcher)
        finally:
            ending.enter()
            store.compact(sweep.name)
    return ending.counts


def _at_work(walks: Sequence[Walk]) -> dict[str, str]:
    """The cells that were begun, in words; of very many the first."""
    walk, *_ = [*walks, Walk({}, [])]
    keys = sorted(walk.running.copy())[:SHOWN]  # the walk goes on meanwhile
    return {key: title(walk.cells[key]) for key in keys}


def title(cell: Cell) -> str:
    """A cell in words: its kind, then its axes."""
    return " ".join(map(str, [cell.kind, *cell.axes.values()]))


def _enter(job: Job) -> None:
    """Write the rows that no cell has to run for: adopted ones, and those that do not apply."""
    store, name = job.store, job.plan.sweep.name
    for keys in _groups(sorted(job.adopted)):
        found = store.abouts("defend", keys)
        job.adopted -= set(keys) - set(found)
        cell_of = job.plan.cells
        store.write_rows(name, [cells.adopted(cell_of[k], name, found[k]["row"]) for k in found])
    statuses = store.statuses(name)
    left = [c for c in job.plan.inapplicable if statuses.get(c.key) not in rows.FINISHED]
    for group in _groups(left):
        store.write_rows(name, [_inapplicable(cell, job) for cell in group])


def _groups(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + ROWS] for start in range(0, len(items), ROWS))


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


Walker = Callable[[Job, Walk, Ending, Watcher], None]
"""What runs the cells of a walk."""


def _inapplicable(cell: Cell, job: Job) -> dict[str, Any]:
    victim = cell.local["victim_cell"]
    return record.blank_row(cell, victim, job.plan.sweep.name, "not_applicable", cell.reason)


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
