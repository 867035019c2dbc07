"""Whose fault it was that a cell did not end, and how it is tried again. No I/O, no Ray, no torch.

the method's     its row says so, and it is not tried again
the machine's    data, device, code or store that are not right there: tried elsewhere, and a row
                 only where two nodes agree; a node that fails so again and again is taken out
the process's    killed, or crashed: tried again, the last time alone on a device
memory           tried once more, alone on a device
the node's       lost: tried again, however often nodes are
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.core.types import Cell

Result = dict[str, Any]
RETRIES = 2
"""How often a cell is started again whose process was lost, or whose only machine was not right."""
LOST_NODES = 50
"""Likewise of its node: who loses so many is what kills them."""
FAULTS = 3
"""So many faults of a machine in a row, and it is taken out."""
PAUSE = 5.0
"""Seconds until a machine that was not right is tried again, for each time it was not."""
AGAIN, WHOLE = "again", "whole"
"""The lanes of cells that are tried again; of those that get a device for themselves."""


@dataclass(frozen=True)
class Loss:
    """How a process was lost."""

    kind: str
    """node | memory | process | machine."""
    words: str
    """What Ray says of it, in one line."""
    node: str = ""
    """Where it was; empty where that is not known."""


@dataclass
class Try:
    """What is known of a cell before it is tried again."""

    whole: bool = False
    """Whether it gets a device for itself."""
    avoid: set[str] = field(default_factory=set)
    """Nodes that could not run it."""
    due: float = 0.0
    """When it may start, by the monotonic clock."""
    lost: Counter[str] = field(default_factory=Counter)
    """Kind of loss -> how often."""
    said: list[str] = field(default_factory=list)
    """What machines said that were not right."""


class Health:
    """Which nodes run cells, and which do nothing but fail."""

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, str]] = lambda: {"": "this machine"},
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Trust all nodes.

        Args:
            nodes: Gives those that are there now and may run cells: id -> name.
            tell: Is told when one is taken out.
        """
        self._nodes = nodes
        self._tell = tell
        self._row: Counter[str] = Counter()
        self.out: set[str] = set()
        """Nodes no cell is given to any more."""

    def there(self, avoid: Collection[str] = ()) -> Mapping[str, str]:
        """Nodes that may run cells, but for some."""
        out = self.out.union(avoid)
        return {node: name for node, name in self._nodes().items() if node not in out}

    def take_out(self, node: str, why: str) -> None:
        """Take a node out, unless it is the last."""
        name = self.there().get(node)
        if name and self.there([node]):
            self.out.add(node)
            self._tell(f"node {name} is left out of this run: {why}")

    def fault(self, node: str, why: str) -> None:
        """A machine was not right."""
        self._row[node] += 1
        if self._row[node] >= FAULTS and node not in self.out:
            self.take_out(node, f"{FAULTS} faults of its own in a row, the last: {why}")

    def success(self, node: str) -> None:
        """A method's own code ran."""
        self._row.pop(node, None)


class Tries:
    """Every cell's tries in one run."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self._of: dict[str, Try] = {}

    def of(self, key: str) -> Try:
        """How a cell is to be run now."""
        return self._of.get(key) or Try()

    def due(self, cell: Cell) -> bool:
        """Whether a cell may start: most may at once."""
        return self.of(cell.key).due <= time.monotonic()

    def judge(self, key: str, result: Result, node: str = "") -> Result | None:
        """What a cell's result comes to; None where it is tried again.

        Args:
            key: The cell.
            result: As `cells.run` gave it.
            node: Where.
        """
        if result["status"] == "machine":
            return self._machine(key, str(result["error"]), node, result.get("passing", False))
        self.health.success(node)
        if result["status"] == "oom":
            self._try(key).whole = True
            return None
        return result

    def lost(self, key: str, loss: Loss) -> Result | None:
        """What it comes to that a cell's process was lost; None where it is tried again."""
        if loss.kind == "machine":
            return self._machine(key, loss.words, loss.node, passing=True)
        attempt = self._try(key)
        attempt.lost[loss.kind] += 1
        count = attempt.lost[loss.kind]
        if loss.kind == "node":
            most, what = LOST_NODES, "its node was lost"
        elif loss.kind == "memory":
            most, what = 0 if attempt.whole else 1, "out of memory, with a device for itself,"
            attempt.whole = True
        else:
            most, what = RETRIES, "its process was lost"
            attempt.whole |= count == RETRIES
        if count <= most:
            return None
        times = "" if loss.kind == "memory" else f" {count} times"
        return _failed(f"{what}{times}: {loss.words}")

    def _machine(self, key: str, why: str, node: str, passing: bool) -> Result | None:
        """See `judge`; what may pass by itself is tried again even where there is no other node."""
        attempt, last = self._try(key), why.strip().rpartition("\n")[2]
        name = self.health.there().get(node, "a node")
        attempt.said.append(f"{name}: {last}")
        attempt.avoid.add(node)
        self.health.fault(node, last)
        others = self.health.there(attempt.avoid)
        if len(attempt.avoid) > 1 or len(attempt.said) > RETRIES or not (others or passing):
            said = dict.fromkeys(attempt.said) if len(attempt.avoid) > 1 else ()
            return _failed("\n".join([why, *said]))
        if not others:
            attempt.avoid.clear()
            attempt.due = time.monotonic() + PAUSE * len(attempt.said)
        return None

    def _try(self, key: str) -> Try:
        return self._of.setdefault(key, Try())


def _failed(error: str) -> Result:
    return {"status": "failed", "error": error, "seconds": None}
