"""Walks the graph: which cell may run next, what a failure blocks. No I/O, no Ray, no torch."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from sweeper.core.types import Cell

COST = {"prepare": 10.0, "train": 10.0, "stage": 5.0, "defend": 1.0}
"""Relative cost of a kind, for the order alone: the longest way to the end goes first."""
REBUILDS = 5
"""How often what a cell left may be found damaged and made again in one walk."""


class Walk:
    """The cells still to run, released as their parents finish, with no barrier between kinds.

    Ready cells stand in lanes, one for each sort of place they need: who has no room for the first
    of one lane still takes that of another.
    """

    def __init__(
        self,
        cells: Mapping[str, Cell],
        todo: Iterable[str],
        lane: Callable[[Cell], str] = lambda cell: "",
    ) -> None:
        """Start a walk.

        Args:
            cells: Every cell of the graph by key, parents before children.
            todo: Keys of those to run; parents outside it count as finished.
            lane: Where a cell stands in line when its parents have finished.
        """
        self.cells = cells
        selected = set(todo)
        self.todo = [key for key in cells if key in selected]
        self._lane = lane
        self._children: dict[str, list[str]] = defaultdict(list)
        self._waits: Counter[str] = Counter()
        for key in self.todo:
            for parent in cells[key].parents:
                if parent in selected:
                    self._waits[key] += 1
                    self._children[parent].append(key)
        self._rank: dict[str, float] = {}
        for key in reversed(self.todo):
            below = [self._rank[child] for child in self._children[key]]
            self._rank[key] = COST[cells[key].kind] + max(below, default=0.0) + 1e-3 * len(below)
        self._lanes: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
        self._place = {key: place for place, key in enumerate(cells)}
        self._asked: Counter[str] = Counter()
        for key in self.todo:
            if not self._waits[key]:
                self._push(key)
        self.running: set[str] = set()
        self.status: dict[str, str] = {}
        """Key -> how it ended, for cells that have."""

    def _push(self, key: str, lane: str | None = None) -> None:
        place = self._lane(self.cells[key]) if lane is None else lane
        rank = self._rank.get(key, float("inf"))  # not of the walk: others wait for it
        heapq.heappush(self._lanes[place], (-rank, self._place[key], key))

    @property
    def finished(self) -> bool:
        """Whether nothing can ever run again."""
        return not (self.ready or self.running)

    @property
    def ready(self) -> int:
        """How many cells may start now."""
        return sum(map(len, self._lanes.values()))

    def waiting(self, lane: str) -> int:
        """How many of them stand in a lane."""
        return len(self._lanes[lane])

    def next(self, fits: Callable[[Cell], bool] | None = None) -> Cell | None:
        """Take the first cell of all lanes; None while none may start.

        Args:
            fits: Take it only if this says so; of a lane whose first does not fit, none is taken.
        """
        for lane in sorted(filter(None, self._lanes.values()), key=lambda lane: lane[0]):
            cell = self.cells[lane[0][2]]
            if fits is None or fits(cell):
                heapq.heappop(lane)
                self.running.add(cell.key)
                return cell
        return None

    def put_back(self, key: str, lane: str | None = None) -> None:
        """Return a cell that was taken and did not run to its end.

        Args:
            key: The cell.
            lane: Where it stands in line now; default: where it stood.
        """
        self.running.discard(key)
        self._push(key, lane)

    def reopen(self, key: str, lost: Sequence[str]) -> str | None:
        """Return a cell whose parents' artifacts are lost: they run once more, then it does.

        Many children may meet the loss at once; a parent that is being made again is not asked for
        a second time.

        Args:
            key: The cell.
            lost: Keys of the parents.

        Returns:
            The parent that cannot be had, which ends the cell; None where it will run.
        """
        self.running.discard(key)
        for parent in lost:
            spent = self._asked[parent] >= REBUILDS and not self._waiting(parent)
            if spent or self.status.get(parent, "ok") != "ok":
                return parent
        for parent in lost:
            if not self._waiting(parent):
                self.status.pop(parent, None)
                self._asked[parent] += 1
                self._children[parent] = []
                self._push(parent)
            self._children[parent].append(key)
            self._waits[key] += 1
        return None

    def _waiting(self, key: str) -> bool:
        """Whether a cell runs, stands in a lane, or waits for its parents."""
        standing = any(item[2] == key for lane in self._lanes.values() for item in lane)
        return standing or key in self.running or bool(self._waits[key])

    def complete(self, key: str, status: str) -> list[tuple[Cell, Cell]]:
        """Record how a cell ended: release its children, or block all that hangs on it.

        Returns:
            (blocked cell, the failed cell above it), for every cell this blocked.
        """
        self.running.discard(key)
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
