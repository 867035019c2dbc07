"""What a thousand slots lose to the order of cells: the graph in virtual time, no Ray.

A sweep of 60,000 cells as papers have them: a victim takes 20 minutes (log-normal, sigma 0.5), a
defense 2 (sigma 1), 29 of them below each victim. Beside what the sweeper does now stands what it
did once: a Tuner's 5,000 trials must all end before the next Tuner begins.
`bound` is what no order can beat: all cells on all slots, or the longest way through the graph.
"""

from __future__ import annotations

import random
from typing import Any

from sweeper.core.types import Cell
from sweeper.run import rays
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
            seconds[key] = 120 * rng.lognormvariate(-0.5, 1.0)
    return cells, seconds


def rows() -> list[dict[str, Any]]:
    """Utilisation of the slots with and without the barrier, and the best that is possible."""
    cells, seconds = graph()
    total = sum(seconds.values())
    longest = max(seconds[c.key] + sum(seconds[p] for p in c.parents) for c in cells.values())
    found = []
    for slots in SLOTS:
        nodes = [rays.Node(str(i), str(i), 8.0, 0.0) for i in range(slots // 8)]
        ran = {
            name: simulated.run(cells, nodes, lambda cell: seconds[cell.key], chain=chain)
            for name, chain in (("now", 0), ("chains", OLD))
        }
        bound = max(total / slots, longest)
        use = {name: run.busy / (slots * run.seconds) for name, run in ran.items()}
        found.append(
            {
                "slots": slots,
                "utilisation, chains of 5,000": round(use["chains"], 3),
                "utilisation, now": round(use["now"], 3),
                "bound": round(total / (slots * bound), 3),
                "% lost to the bound": round(100 * (1 - bound / ran["now"].seconds), 1),
            }
        )
    return found
