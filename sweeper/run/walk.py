"""Walks the graph: which cell may run next, what a failure blocks. No I/O, no Ray, no torch."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from sweeper.core.types import Cell

COST = {"prepare": 10.0, "train": 10.0, "stage": 5.0, "defend": 1.0}
"""Relative cost of a kind, for the order alone: the longest way to the end goes first."""


class Walk:
    """The cells still to run, released as their parents finish, with no barrier between kinds."""

    def __init__(self, cells: Mapping[str, Cell], todo: Iterable[str]) -> None:
        """Start a walk.

        Args:
            cells: Every cell of the graph by key, parents before children.
            todo: Keys of those to run; parents outside it count as finished.
        """
        self.cells = cells
        selected = set(todo)
        self.todo = [key for key in cells if key in selected]
        self._children: dict[str, list[str]] = defaultdict(list)
        self._waits: dict[str, int] = {}
        for key in self.todo:
            parents = [parent for parent in cells[key].parents if parent in selected]
            self._waits[key] = len(parents)
            for parent in parents:
                self._children[parent].append(key)
        self._rank: dict[str, float] = {}
        for key in reversed(self.todo):
            below = [self._rank[child] for child in self._children[key]]
            self._rank[key] = COST[cells[key].kind] + max(below, default=0.0) + 1e-3 * len(below)
        self._ready: list[tuple[float, int, str]] = []
        self._place = {key: place for place, key in enumerate(self.todo)}
        for key in self.todo:
            if not self._waits[key]:
                self._push(key)
        self.running: set[str] = set()
        self.alone: list[str] = []
        """Cells that ran out of memory once; each runs again with nothing beside it."""
        self._tried: set[str] = set()
        self._lonely: str | None = None
        self.status: dict[str, str] = {}
        """Key -> how it ended, for cells that have."""

    def _push(self, key: str) -> None:
        heapq.heappush(self._ready, (-self._rank[key], self._place[key], key))

    @property
    def finished(self) -> bool:
        """Whether nothing can ever run again."""
        return not (self._ready or self.running or self.alone)

    @property
    def ready(self) -> int:
        """How many cells may start now."""
        return len(self._ready)

    def next(self, fits: Callable[[Cell], bool] | None = None) -> tuple[Cell, bool] | None:
        """Take the next cell.

        Args:
            fits: Take it only if this says so.

        Returns:
            The cell, and whether this is its last try; None while none may start.
        """
        if self._lonely in self.running:
            return None
        if self._ready:
            key = self._ready[0][2]
            if fits and not fits(self.cells[key]):
                return None
            heapq.heappop(self._ready)
            self.running.add(key)
            return self.cells[key], False
        if self.alone and not self.running:
            self._lonely = self.alone.pop(0)
            self.running.add(self._lonely)
            return self.cells[self._lonely], True
        return None

    def put_back(self, key: str) -> None:
        """Return a cell that was taken and did not run."""
        self.running.discard(key)
        self._push(key)

    def complete(self, key: str, status: str) -> list[tuple[Cell, Cell]]:
        """Record how a cell ended: release its children, or block all that hangs on it.

        The first `oom` of a cell is no end: it will run once more, alone.

        Returns:
            (blocked cell, the failed cell above it), for every cell this blocked.
        """
        self.running.discard(key)
        if status == "oom" and key not in self._tried:
            self._tried.add(key)
            self.alone.append(key)
            return []
        self.status[key] = status
        if status == "ok":
            for child in self._children[key]:
                self._waits[child] -= 1
                if not self._waits[child] and child not in self.status:
                    self._push(child)
            return []
        blocked, below = [], list(self._children[key])
        while below:
            child = below.pop()
            if child not in self.status:
                self.status[child] = "blocked"
                blocked.append((self.cells[child], self.cells[key]))
                below += self._children[child]
        return sorted(blocked, key=lambda pair: self._place[pair[0].key])

    def ancestors(self, key: str) -> list[Cell]:
        """A cell's parents and theirs, each after its own parents."""
        ancestors: dict[str, Cell] = {}

        def visit(descendant: str) -> None:
            for parent in self.cells[descendant].parents:
                visit(parent)
                ancestors.setdefault(parent, self.cells[parent])

        visit(key)
        return list(ancestors.values())
