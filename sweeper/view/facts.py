"""What `sweeper view` shows, as JSON values: the sweeps of a store, one with its matrix, one cell.

All of it is read from the store, so any machine that sees it may ask. What was asked for before is
read again only where something has changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sweeper.core import rows
from sweeper.core.errors import SweepError
from sweeper.core.names import KINDS
from sweeper.core.rows import AXES
from sweeper.core.text import without_homes
from sweeper.plan import document, view
from sweeper.plan.source import NAME, Source
from sweeper.store import ledger as ledgers
from sweeper.store import status
from sweeper.store.claim import SILENT, describe, seen
from sweeper.store.follow import Followed
from sweeper.store.rowfiles import KEY
from sweeper.tables import flat, report, results
from sweeper.tables.layout import head
from sweeper.tables.titles import titled

Made = tuple[str, Any]
"""What changes with an answer, and the answer."""
SHOWN = ("acc", "asr", "acc_before", "asr_before", "score")
"""Columns of the matrix."""
RECORDS = 20
"""Cells whose answers are kept."""
FAILED = 50
"""Cells above the defenses that failed, shown at most."""


class Unknown(Exception):
    """There is nothing of that name."""


class Facts:
    """What is to be known of a store; threads may ask at once."""

    def __init__(self, root: str) -> None:
        """Open a store, which may be empty so far."""
        self.ledger = Followed(root)
        self._made: dict[tuple[str, str], Made] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._beats: dict[str, tuple[Any, float]] = {}

    # What is asked

    def sweeps(self) -> Made:
        """All sweeps: name, counts of cells, who runs it, last change."""
        found = [self._progress(name) for name in self._names()]
        mark = hashlib.sha256(" ".join(mark for mark, _ in found).encode()).hexdigest()[:32]
        return mark, {"store": self.ledger.root, "sweeps": [said for _, said in found]}

    def sweep(self, name: str) -> Made:
        """One sweep with its matrix.

        Raises:
            Unknown: The store has no such sweep.
        """
        mark, said = self._progress(self._name(name))
        return mark, self._once("matrix", name, mark, lambda: {**said, **self._matrix(name, said)})

    def record(self, name: str, key: str) -> Made:
        """One cell: its axes, its row or what it left, and what it said.

        Raises:
            Unknown: The sweep has no such cell.
        """
        mark, said = self._progress(self._name(name))
        if not KEY.fullmatch(key):
            raise Unknown
        return mark, self._once(f"record {key}", name, mark, lambda: self._record(name, key, said))

    def report(self, name: str) -> str:
        """The page `sweeper report` would write.

        Raises:
            Unknown: The store has no such sweep.
            SweepError: It has no rows yet.
        """
        mark, _ = self._progress(self._name(name))
        page: str = self._once("report", name, mark, lambda: self._report(name))
        return page

    def table(self, name: str) -> str:
        """All rows of the present matrix as CSV.

        Raises:
            Unknown: The store has no such sweep.
        """
        tables, _ = ledgers.load(self.ledger.root, self._name(name))
        return flat.encoded(results.frame(tables), "csv").decode()

    # What is known

    def _names(self) -> list[str]:
        return [name for name in self.ledger.sweeps() if NAME.fullmatch(name)]

    def _name(self, name: str) -> str:
        if not NAME.fullmatch(name) or name not in self._names():
            raise Unknown
        return name

    def _once(self, what: str, name: str, mark: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for a mark."""
        place = what, name
        with self._locks.setdefault(place, threading.Lock()):
            before, made = self._made.get(place, ("", None))
            if before != mark:
                made = make()
                old = [there for there in list(self._made) if there[0].startswith("record")]
                for there in old[:-RECORDS]:
                    self._made.pop(there, None)
                self._made[place] = mark, made
            return made

    def _progress(self, name: str) -> Made:
        """How far a sweep is, and who runs it."""
        claim = self.ledger.claim(name)
        driver = self._driver(name, claim) if claim else None
        mark = f"{self.ledger.mark(name, claim or {})}{(driver or {}).get('state', '')}"

        def make() -> dict[str, Any]:
            try:
                said = status.status(self.ledger, name)
            except SweepError:  # it has just begun
                said = {"sweep": name, "cells": {}, "rows": {}, "last_activity": None}
                said |= dict.fromkeys(("total", "done", "failed", "left"), 0)
            at_work = (claim or {}).get("at_work")
            said["at_work"] = at_work if isinstance(at_work, dict) else {}
            return {**said, "driver": driver}

        return mark, self._once("progress", name, mark, make)

    def _driver(self, name: str, claim: Mapping[str, Any]) -> dict[str, str]:
        """Who runs a sweep: alive, silent or dead; no two clocks are compared."""
        beat, now = claim.get("beat"), time.monotonic()
        if name not in self._beats or self._beats[name][0] != beat:
            self._beats[name] = beat, now
        silent = now - self._beats[name][1] > SILENT
        state = "dead" if seen(dict(claim)) is False else "silent" if silent else "alive"
        return {"who": describe(dict(claim)), "state": state}

    def _matrix(self, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
        plan = self._plan(name)
        found = self.ledger.rows(name, SHOWN)
        cells = plan["cells"]
        scores = {row["score"] for row in found.values()} - {None, "accuracy"}
        score = str(scores.pop()) if len(scores) == 1 else ""
        columns: dict[str, list[Any]] = {"key": list(cells)}
        for axis in AXES:
            columns[axis] = [axes.get(axis) for axes in cells.values()]
        columns["state"] = [_state(key, found, said["at_work"]) for key in cells]
        for metric in SHOWN[:4]:
            columns[metric] = [_rounded(found.get(key, {}).get(metric)) for key in cells]
        order = plan.get("order") or {}
        return {
            "order": order,
            "titles": {kind: titled(kind, dict.fromkeys(order.get(kind, ()))) for kind in KINDS},
            "heads": {metric: head(metric, score) for metric in ("acc", "asr")},
            "columns": columns,
            "failures": self._failures(name, plan),
        }

    def _plan(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(SweepError):
            return self.ledger.plan(name)
        return {"cells": {}}

    def _failures(self, name: str, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Victims, and what else stands above the defenses, that failed."""
        above = plan.get("above") or {}
        failed = sorted(self.ledger.failures(name) & set(above))
        done = {key for kind in set(above.values()) for key in self.ledger.keys(kind)}
        keys = [key for key in failed if key not in done][:FAILED]
        found = [(key, self.ledger.failure(name, key) or {}) for key in keys]
        return [
            {"key": key, "kind": above[key], "axes": said.get("axes"), "state": said.get("status")}
            for key, said in found
        ]

    def _record(self, name: str, key: str, said: Mapping[str, Any]) -> dict[str, Any]:
        plan = self._plan(name)
        above = plan.get("above") or {}
        if key not in plan["cells"] and key not in above:
            raise Unknown
        kind = above.get(key, "defend")
        failure = self.ledger.failure(name, key) or {}
        record: dict[str, Any] = {"sweep": name, "key": key, "kind": kind}
        record["log"] = self.ledger.log(name, kind, key)
        record["at_work"] = key in said["at_work"]
        if kind == "defend":
            axes = plan["cells"][key]
            row = self.ledger.row(name, key) or {}
            facts = {column: row[column] for column in rows.schema().names if column in row}
            seeds = [
                {"key": other, "seed": there.get("seed")}
                for other, there in plan["cells"].items()
                if all(there.get(axis) == axes.get(axis) for axis in AXES if axis != "seed")
            ]
            state = row.get("status") or ("running" if record["at_work"] else "waiting")
            return {**record, "axes": axes, "state": state, "facts": facts, "seeds": seeds}
        left = self.ledger.left(kind, key)
        kept = ("params", "result", "versions", "device", "conditions", "left_behind", "n_poisoned")
        facts = {name: left[name] for name in kept if name in left}
        state = "ok" if left else failure.get("status") or "waiting"
        if not left and failure:
            facts["error"] = failure["error"]
        axes = left.get("axes") or failure.get("axes") or {}
        return {**record, "axes": axes, "state": state, "facts": facts, "seeds": []}

    def _report(self, name: str) -> str:
        tables, order = ledgers.load(self.ledger.root, name)
        if not sum(map(len, tables)):
            raise SweepError(f"sweep {name} has no rows yet: come back when a defense has ended")
        text = self.ledger.sweep_text(name)
        layout = view.View()
        with contextlib.suppress(SweepError):
            parsed = document.parse(text, name)
            if isinstance(parsed.values, dict):
                layout = view.of(Source(name, parsed.values, parsed))
        return report.build(
            results.frame(tables),
            name,
            order,
            heads=layout.heads(order),
            untaken=layout.untaken,
            max_acc_loss=layout.max_acc_loss,
            text=text,
            data=self._plan(name).get("data"),
        )


def encoded(value: Any) -> bytes:
    """JSON as a browser takes it: no NaN, no text that tells a home."""
    return without_homes(json.dumps(_plain(value), allow_nan=False)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _state(key: str, found: Mapping[str, Mapping[str, Any]], at_work: Mapping[str, str]) -> str:
    """What is known of a cell; one that failed before and is tried again is at work."""
    state = str(found[key]["status"]) if key in found else "waiting"
    return "running" if key in at_work and state not in rows.FINISHED else state


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)
