"""Bundles: cells so short that one trial runs several of them, so that its cost is paid once.

How long a cell takes is known from the last ones of its method. Every cell still has its own row,
time limit and failure; what a bundle has no time left for, and what it lost its process over, goes
back to the walk.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

from sweeper.core import switches
from sweeper.core.types import Cell
from sweeper.run import cells
from sweeper.run.material import Context, Log
from sweeper.run.walk import Walk
from sweeper.run.work import Result

SECONDS = 1.0
"""What the cells of a bundle may take together, by what their like took; at twice that it ends."""
SAMPLE = 4
"""So many cells of a method must have been short, the last ones, for others to be bundled."""

Reported = list[tuple[str, Result, float]]
"""Of each cell that ended: its key, its result, and the seconds it took in all."""


class Bundles:
    """Takes cells from a walk: one, or several short ones at once."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=SAMPLE))
        self._single: set[str] = set()

    def take(
        self, slots: int, fits: Callable[[Cell], bool], like: Callable[[Cell, Cell], bool]
    ) -> list[Cell]:
        """Take what the next trial runs; no cells while none may start.

        Args:
            slots: How many trials run at once: a bundle leaves as much to each other one.
            fits: Whether a cell may start now.
            like: Whether two cells need the same place.
        """
        cell = self._walk.next(fits)
        if cell is None:
            return []
        taken, limit = [cell], math.ceil((self._walk.ready + 1) / (2 * slots))
        left = SECONDS - self._expected(cell)

        def too(other: Cell) -> bool:
            return self._expected(other) <= left and like(cell, other)

        while left > 0 and len(taken) < limit and (more := self._walk.next(too)):
            taken.append(more)
            left -= self._expected(more)
        return taken

    def _expected(self, cell: Cell) -> float:
        """Seconds a cell will take; infinite where nothing says that it is short."""
        seconds = self._seconds[_method(cell)]
        short = cell.kind == "defend" and len(seconds) == SAMPLE and cell.key not in self._single
        return max(seconds) if short else math.inf

    def learn(self, cell: Cell, seconds: float) -> None:
        """Note how long a cell took."""
        self._seconds[_method(cell)].append(seconds)

    def put_back(self, keys: Iterable[str], *, lost: bool) -> None:
        """Return cells that were taken and did not run.

        Args:
            keys: Their keys.
            lost: Whether their process was lost: then each is run by itself.
        """
        for key in keys:
            self._walk.put_back(key)
            if lost:
                self._single.add(key)


def _method(cell: Cell) -> str:
    return str(cell.params.get("defense", {}).get("name"))


def pack(taken: list[Cell], walk: Walk) -> str:
    """Cells with their ancestors as one JSON text."""
    ancestors = {cell.key: walk.ancestors(cell.key) for cell in taken}
    by_key = {item.key: vars(item) for group in ancestors.values() for item in group}
    by_key |= {cell.key: vars(cell) for cell in taken}
    order = {key: [item.key for item in group] for key, group in ancestors.items()}
    return json.dumps({"cells": by_key, "run": order})


def run(
    packed: str,
    context: Context,
    starting: Callable[[Cell], Log],
    *,
    last_try: bool = False,
) -> Reported:
    """Run a bundle in a worker.

    Args:
        packed: What `pack` made.
        context: Where it runs.
        starting: Is told of each cell as it starts, and gives its log.
        last_try: See `cells.run`.
    """
    values = json.loads(packed)
    by_key = {key: _cell(value) for key, value in values["cells"].items()}
    reports: Reported = []
    began = time.perf_counter()
    for key, ancestor_keys in values["run"].items():
        started = time.perf_counter()
        if started - began > 2 * SECONDS or switches.LEFT:
            break
        ancestors = [by_key[parent] for parent in ancestor_keys]
        log = starting(by_key[key])
        result = cells.run(by_key[key], ancestors, context, log, last_try=last_try)
        reports.append((key, result, time.perf_counter() - started))
    return reports


def _cell(values: dict[str, Any]) -> Cell:
    return Cell(**{**values, "parents": tuple(values["parents"])})
