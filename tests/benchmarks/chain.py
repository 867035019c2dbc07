"""What a thousand slots lose to the order of cells: the graph in virtual time, no Ray.

A sweep of 60,000 cells as papers have them: a victim takes 20 minutes, a defense 2 (log-normal,
sigma 0.5), 29 of them below each victim. Beside what the sweeper does now stands what it did once:
a Tuner's 5,000 trials must all end before the next Tuner begins. `list` is the same order with
nothing between it and the slots: what is lost to it is lost to scheduling, the rest to the order,
which does not know how long a cell will take.
"""

from __future__ import annotations

import heapq
import random
from typing import Any

from sweeper.core.types import Cell
from sweeper.run import rays
from sweeper.run.walk import Walk
from tests.support import simulated

VICTIMS, DEFENSES = 2000, 29
SLOTS = (64, 256, 1000)
OLD = 5000


def graph() -> tuple[dict[str, Cell], dict[str, float]]:
    """The cells, and what each takes in seconds."""
    rng, cells, seconds = random.Random(0), {}, {}
    for v in range(VICTIMS):
        victim = f"t{v}"
        cells[victim] = Cell("train", victim, {"attack": v}, (), {})
        seconds[victim] = 1200 * rng.lognormvariate(-0.125, 0.5)
        for d in range(DEFENSES):
            params = {"victim": victim, "defense": {"name": str(d)}}
            key = f"d{v}-{d}"
            cells[key] = Cell("defend", key, params, (victim,), {})
            seconds[key] = 120 * rng.lognormvariate(-0.125, 0.5)
    return cells, seconds


def listed(cells: dict[str, Cell], seconds: dict[str, float], slots: int) -> float:
    """When the last cell ends if a free slot always takes the next cell of the walk."""
    walk, now, running = Walk(cells, cells), 0.0, list[tuple[float, str]]()
    while not walk.finished:
        while len(running) < slots and (cell := walk.next()):
            heapq.heappush(running, (now + seconds[cell.key], cell.key))
        now, key = heapq.heappop(running)
        walk.complete(key, "ok")
    return now


def rows() -> list[dict[str, Any]]:
    """Utilisation of the slots with and without the barrier, and with nothing but the order."""
    cells, seconds = graph()
    total, found = sum(seconds.values()), []
    for slots in SLOTS:
        nodes = [rays.Node(str(i), str(i), 8.0, 0.0) for i in range(slots // 8)]
        took = {"list": listed(cells, seconds, slots)}
        for name, chain in (("now", 0), ("chains of 5,000", OLD)):
            took[name] = simulated.run(cells, nodes, lambda c: seconds[c.key], chain=chain).seconds
        row: dict[str, Any] = {"slots": slots}
        row |= {name: round(total / (slots * end), 3) for name, end in took.items()}
        found.append({**row, "% lost to list": round(100 * (1 - took["list"] / took["now"]), 2)})
    return found
