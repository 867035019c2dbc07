"""How far a sweep is, from the store alone: any machine may ask, while it runs or after. No torch.

What is done is what the store holds: artifacts with a manifest, rows in a finished state. What is
to be done is the plan the last `sweeper run` left there.
"""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

from tabulate import tabulate

from sweeper.core import rows
from sweeper.store.claim import told
from sweeper.store.ledger import Ledger

STATES = ("done", "failed", "left")


def status(ledger: Ledger, sweep: str) -> dict[str, Any]:
    """Count the cells of a sweep.

    Returns:
        sweep; cells: kind -> done, failed, left; rows: state -> count; total, done, failed, left;
        driver: who runs it, None for nobody; last_activity: ISO 8601, by the store's clock.

    Raises:
        SweepError: The sweep has not been run into this store.
    """
    plan = ledger.plan(sweep)
    states = ledger.statuses(sweep)
    own = {key: states.get(key, "left") for key in plan["cells"]}
    cells = {"defend": Counter(map(_state, own.values()))}
    above: dict[str, set[str]] = {}
    for key, kind in plan.get("above", {}).items():
        above.setdefault(kind, set()).add(key)
    failures = ledger.failures(sweep) if above else set()
    for kind, keys in above.items():
        made = keys & ledger.keys(kind)
        failed = len((keys & failures) - made)
        cells[kind] = Counter(done=len(made), failed=failed, left=len(keys) - len(made) - failed)
    counts = {kind: {state: cells[kind][state] for state in STATES} for kind in reversed(cells)}
    last = ledger.activity(sweep)
    return {
        "sweep": sweep,
        "cells": counts,
        "rows": dict(Counter(state for state in own.values() if state != "left")),
        "total": len(own) + sum(map(len, above.values())),
        **{state: sum(kind[state] for kind in counts.values()) for state in STATES},
        "driver": ledger.claim(sweep),
        "last_activity": last and last.isoformat(timespec="seconds"),
    }


def _state(row: str) -> str:
    return "done" if row in rows.FINISHED else "failed" if row in rows.UNFINISHED else "left"


def text(found: dict[str, Any]) -> str:
    """Return `status` as people read it."""
    table = [
        [kind, *(counts[state] for state in STATES)] for kind, counts in found["cells"].items()
    ]
    table.append(["all", *(found[state] for state in STATES)])
    said = [f"sweep {found['sweep']}: {found['done']} of {found['total']} cells are done"]
    said.append(tabulate(table, headers=["cells", *STATES]))
    states = ", ".join(f"{count} {state}" for state, count in sorted(found["rows"].items()))
    said.append(f"rows: {states or 'none'}")
    driver = found["driver"]
    said.append(f"run by {told(driver)}" if driver else "nobody runs it")
    if found["last_activity"]:
        ago = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(
            found["last_activity"]
        )
        said.append(f"last activity {found['last_activity']}, {ago.total_seconds():.0f} s ago")
    return "\n".join(said)
