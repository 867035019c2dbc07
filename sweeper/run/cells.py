"""Runs one cell: prepare | train | stage | defend. Plain functions; nothing here knows of Ray."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeper.core import catalog, rows, switches, text
from sweeper.core.errors import MachineError, StoreError
from sweeper.core.types import Cell
from sweeper.engine import portable
from sweeper.engine.isolation import (
    GRACE,
    CellTimeout,
    bound_memory,
    isolated,
    lacking,
    limit,
)
from sweeper.run import apart, record
from sweeper.run.faults import Interrupted, blame, interruptible, of_the_machine
from sweeper.run.material import Context, Log, measured
from sweeper.run.walk import REBUILDS
from sweeper.run.work import ParentsLost, Result, Work, is_foreign
from sweeper.store.artifacts import Store


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
        ancestors: Its parents and theirs, parents first.
        context: Where it runs.
        log: Takes progress as keywords.
        force: Run it even if the store has it.
        last_try: Whether running out of memory is final; else the result says `oom` and the
            cell may be tried again with a device for itself.

    Returns:
        How it ended, or that it did not: see `Result`.

    Raises:
        Interrupted: Somebody wants the run to stop now.
    """
    started, more = time.monotonic(), dict[str, Any]()
    try:
        store = Store(context.store, context.number)
        if not force and (stored := stored_result(store, cell, ancestors, context)):
            return stored
        return _tried(Work(cell, ancestors, context, store, log), last_try)
    except ParentsLost as error:
        status, more = "parents", {"lost": error.keys}
        why = str(error)
    except (MachineError, StoreError) as error:
        status, more = "machine", {"passing": isinstance(error, StoreError)}
        why = text.error(str(error))
    return {"status": status, "error": why, "seconds": time.monotonic() - started, **more}


def run_here(
    cell: Cell, ancestors: Sequence[Cell], context: Context, log: Log | None = None, **how: bool
) -> Result:
    """Run a cell for good, and first what it lacks of its ancestors: `run`, for one machine.

    Args:
        cell: The cell.
        ancestors: Its parents and theirs, parents first.
        context: Where it runs.
        log: Takes progress as keywords.
        how: `force` of the cell itself.
    """
    for _ in range(REBUILDS):
        result = run(cell, ancestors, context, log, last_try=True, **how)
        if result["status"] == "machine":
            work = Work(cell, ancestors, context, Store(context.store, context.number))
            return _failed(work, "failed", result["error"])
        if result["status"] != "parents":
            return result
        for place, parent in enumerate(ancestors):
            if parent.key in result["lost"]:
                above = run_here(parent, ancestors[:place], context, log)
                if above["status"] != "ok":
                    return above
    return result


def _tried(work: Work, last_try: bool) -> Result:
    """Run a cell that the store does not have."""
    if lack := lacking(work.context.device):
        raise MachineError(lack)

    def give_up() -> Result:
        return _failed(work, "timeout", f"gave up after {work.context.timeout:g} s")

    started = time.monotonic()
    try:
        with interruptible(), work.printed.hearing():
            return _run(work, last_try, lambda: _quiet(give_up))
    except CellTimeout:
        return give_up()
    except (Interrupted, ParentsLost, MachineError, StoreError):
        raise
    except BaseException as error:
        status, why = blame(error)
        if status == "oom" and not last_try:
            return {"status": "oom", "error": why, "seconds": time.monotonic() - started}
        return _failed(work, "failed" if status == "oom" else status, why)


def _run(work: Work, last_try: bool, give_up: Callable[[], None]) -> Result:
    """Run a cell here, or all in a child where it is portable or its attack does not ship."""
    context = work.context
    with of_the_machine():
        foreign = "attack" in context.outside and (switches.LEFT or is_foreign(work.attack))
    if foreign or (context.portable and not portable.entered()):
        within = tuple(kind for kind in context.outside if kind != "attack")
        alone = dataclasses.replace(context, outside=within, timeout=None)  # the clock is here
        arguments = (work.cell, list(work.ancestors.values()), alone, last_try)
        result: Result = apart.call(_whole, arguments, context.timeout, work.log)
        return result
    spare = GRACE if work.apart else 0.0  # its child ends sooner
    seconds = context.timeout and context.timeout + spare
    with isolated(work.cell.seed, context.threads) as left, limit(seconds, give_up):
        bound_memory(work.device, 1.0 if last_try else context.gpus)
        write = work.build()
    return write(left)


def _whole(
    cell: Cell, ancestors: Sequence[Cell], context: Context, last_try: bool, log: Log
) -> Result:
    """What the child of a whole cell runs."""
    if context.portable:
        portable.require()
    if context.code:
        catalog.look_in(context.code)
    return run(cell, ancestors, context, log, force=True, last_try=last_try)


def _quiet(action: Callable[[], Any]) -> None:
    action()


def stored_result(
    store: Store, cell: Cell, ancestors: Sequence[Cell], context: Context
) -> Result | None:
    """The result the store already has for a cell; None where it must run.

    A defense cell's row is entered where whoever had the result was lost before entering it.
    """
    meta = store.about(cell.kind, cell.key)
    if meta is not None:
        if cell.kind == "defend":
            row = adopted(cell, context.sweep, meta["row"])
            store.write_row(row)
            shown = {name: row.get(name) for name in ("status", "acc", "asr", "seconds")}
            return {**shown, "error": row.get("error") or "", "reused": True, "row": row}
        rates = measured(store, cell.key) if cell.kind == "train" else None
        result = {**meta.get("result", {}), **(rates or {})}
        return {"status": "ok", "error": "", **result, "reused": True}
    failure = store.failure(context.sweep, cell.key)
    if failure and context.run and failure["run"] == context.run:
        status, error = failure["status"], failure["error"]
        known = (*rows.FINISHED, status)
        if cell.kind == "defend" and store.statuses(context.sweep).get(cell.key) not in known:
            (victim,) = (item for item in ancestors if item.key == cell.params["victim"])
            store.write_row(record.blank_row(cell, victim, context.sweep, status, error))
        return {"status": status, "error": error, "seconds": None}
    return None


def _failed(work: Work, status: str, error: str) -> Result:
    """Write the failure (and a defense's row) and report it."""
    cell, context, store, error = work.cell, work.context, work.store, text.error(error)
    seconds = time.monotonic() - work.started
    failure = {"status": status, "error": error, "run": context.run, "kind": cell.kind}
    log = work.printed.text(error)
    store.fail(context.sweep, cell.key, {**failure, "axes": dict(cell.axes), "log": log})
    result = {"status": status, "error": error, "seconds": seconds}
    if cell.kind == "defend":
        row = work.row(**result)
        if status == "diverged":
            store.put("defend", cell.key, {}, {"row": row, "log": log})
        store.write_row(row)
        return {**result, "row": row}
    return result


def adopted(cell: Cell, sweep: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row another sweep of this store wrote for the same cell, under our labels."""
    return {**row, "sweep": sweep, **record.labels(cell)}
