"""How far a sweep is, from the store alone: any machine may ask, while it runs or after. No torch.

What is done is what the store holds: artifacts with a manifest, rows in a finished state. What is
to be done is the plan the last `sweeper run` left there, or the one the file has now.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from sweeper.core import rows
from sweeper.store.claim import describe
from sweeper.store.ledger import Ledger

STATES = ("done", "failed", "left")


def status(
    ledger: Ledger,
    sweep: str,
    plan: Mapping[str, Any] | None = None,
    states: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Count the cells of a sweep.

    Args:
        ledger: The store.
        sweep: The sweep's name.
        plan: Its matrix; default: the one the last `sweeper run` left.
        states: Key -> status of its rows; default: as the store's listings say.

    Returns:
        sweep; cells: kind -> done, failed, left; rows: state -> count; total, done, failed, left;
        driver: who runs it, None for nobody; last_activity: ISO 8601, by the store's clock.

    Raises:
        SweepError: The sweep has not been run into this store.
    """
    plan = ledger.plan(sweep) if plan is None else plan
    states = ledger.statuses(sweep) if states is None else states
    row_states = {key: states.get(key, "left") for key in plan["cells"]}
    cells = {"defend": Counter(map(_state, row_states.values()))}
    keys_by_kind: dict[str, set[str]] = {}
    for key, kind in plan.get("above", {}).items():
        keys_by_kind.setdefault(kind, set()).add(key)
    failures = ledger.failures(sweep) if keys_by_kind else set()
    for kind, keys in keys_by_kind.items():
        done = keys & ledger.keys(kind)
        failed = len((keys & failures) - done)
        cells[kind] = Counter(done=len(done), failed=failed, left=len(keys) - len(done) - failed)
    counts = {kind: {state: cells[kind][state] for state in STATES} for kind in reversed(cells)}
    last = ledger.activity(sweep)
    return {
        "sweep": sweep,
        "cells": counts,
        "rows": dict(Counter(state for state in row_states.values() if state != "left")),
        "total": len(row_states) + sum(map(len, keys_by_kind.values())),
        **{state: sum(kind[state] for kind in counts.values()) for state in STATES},
        "driver": ledger.claim(sweep),
        "last_activity": last and last.isoformat(timespec="seconds"),
    }


def _state(row: str) -> str:
    return "done" if row in rows.FINISHED else "failed" if row in rows.UNFINISHED else "left"


def text(progress: dict[str, Any]) -> str:
    """Return `status` as people read it."""
    table = [
        [kind, *(counts[state] for state in STATES)] for kind, counts in progress["cells"].items()
    ]
    table.append(["all", *(progress[state] for state in STATES)])
    lines = [f"sweep {progress['sweep']}: {progress['done']} of {progress['total']} cells are done"]
    lines.append(tabulate(table, headers=["cells", *STATES]))
    states = ", ".join(f"{count} {state}" for state, count in sorted(progress["rows"].items()))
    lines.append(f"rows: {states or 'none'}")
    driver = progress["driver"]
    lines.append(f"run by {describe(driver)}" if driver else "nobody runs it")
    if progress["last_activity"]:  # of another machine: only clocks on the wall are comparable
        then = datetime.datetime.fromisoformat(progress["last_activity"])
        ago = datetime.datetime.now(datetime.timezone.utc) - then
        when = then.astimezone(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        lines.append(f"last activity {when}, {ago.total_seconds():.0f} s ago")
    return "\n".join(lines)
