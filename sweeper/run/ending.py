"""What becomes of a cell that was run: it ended, or it is tried again another way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sweeper.core import text
from sweeper.core.rows import METRICS
from sweeper.core.types import Cell
from sweeper.run import record
from sweeper.run.job import Job
from sweeper.run.progress import Progress
from sweeper.run.tries import AGAIN, WHOLE, Health, Loss, Tries
from sweeper.run.walk import REBUILDS, Walk
from sweeper.run.work import Result

ROWS = 2000
"""Rows the driver writes as one file; so many that it was told of are in its memory, at most."""
AWAY = 60.0
"""Seconds the driver waits for a store that is away."""


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
        self._told: list[Mapping[str, Any]] = []

    def __call__(self, key: str, result: Result, node: str = "") -> None:
        """Take what came of cell `key`, and where it ran."""
        if row := result.pop("row", None):
            self._told.append(row)
            result["metrics"] = {name: row[name] for name in METRICS if row.get(name) is not None}
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
        cell, lost = self.walk.cells[key], []
        blocked = self.walk.complete(key, result["status"])
        self._count(cell, result)
        if len(self._told) >= ROWS:
            self.enter()
        for child, failed in blocked:
            cause = text.last_line(result["error"]) or "it does not say why"
            words = " ".join(str(value) for value in failed.axes.values())
            error = f"{failed.kind} cell {failed.key} ({words}) {result['status']}: {cause}"
            if child.kind == "defend":
                lost.append(self._row(child, "blocked", error))
            self._count(child, {"status": "blocked", "error": error, "seconds": None})
        if lost:
            _patiently(lambda: self.job.store.write_rows(self.job.plan.sweep.name, lost))

    def enter(self) -> None:
        """Write the rows that were told since the last time: one file, so their parts are not read.

        The parts are there in case this process ends before it does.
        """
        told, self._told = self._told, []
        _patiently(lambda: self.job.store.write_rows(self.job.plan.sweep.name, told))

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
