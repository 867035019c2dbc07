"""A large store read: 100,000 rows to a table of Markdown, and the status of 20,000 cells.

The rows are made up and compacted. `sweeper table` and `sweeper status` are commands, so they are
measured as such too, with the start of Python and all imports.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sweeper.core import rows as columns
from sweeper.store import ledger, status
from sweeper.tables import results, tables

ROWS, CELLS, REPEATS = 100_000, 20_000, 3
SWEEP = "name: wide\ndatasets: [digits]\nmodels: [tiny]\nattacks: [none]\ndefenses: [none]\n"
"""What the file and the store have alike: rows and plan are made up, and nothing is planned."""
AXES: dict[str, list[Any]] = {
    "dataset": [f"data-{i}" for i in range(5)],
    "model": [f"model-{i}" for i in range(4)],
    "attack": [f"attack-{i:02}" for i in range(10)],
    "poison_rate": [0.005, 0.01, 0.02, 0.05, 0.1],
    "defense": [f"defense-{i:02}" for i in range(20)],
    "seed": list(range(5)),
}
FIXED = {
    "target": 0,
    "clean_budget": 500.0,
    "status": "ok",
    "kind": "repair",
    "sees": "clean,model",
}


def store(root: Path, count: int, compact: bool) -> ledger.Ledger:
    """A store with one finished sweep of this many rows, in one file or one a row."""
    rng, made = random.Random(0), []
    for number, values in enumerate(itertools.islice(itertools.product(*AXES.values()), count)):
        axes = dict(zip(AXES, values, strict=True))
        names = {f"{axis}_name": axes[axis] for axis in ("attack", "defense")}
        told = {"key": f"{number:020x}", "sweep": "wide", "started_at": "2026-01-01T00:00:00Z"}
        rates = {name: rng.random() for name in ("acc", "asr", "ra", "der")}
        made.append({**axes, **names, **told, **rates, **FIXED, "seconds": 1.0, "device": "x"})
    found = ledger.Ledger(str(root))
    found.save_sweep("wide", SWEEP)
    cells = {row["key"]: {axis: row[axis] for axis in AXES} for row in made}
    order = {axis: AXES[axis] for axis in ("dataset", "model", "attack", "defense")}
    found.save_plan("wide", {"cells": cells, "order": order, "data": {}, "above": {}})
    folder = root / "sweeps" / "wide" / "results"
    folder.mkdir(parents=True)
    table = columns.table(made)
    if compact:
        pq.write_table(table, folder / "compact-1.parquet", compression="zstd")
    else:
        buffer = io.BytesIO()
        pq.write_table(table.slice(0, 1), buffer)
        for row in made:
            (folder / f"{row['key']}.ok.parquet").write_bytes(buffer.getvalue())
    return found


def markdown(root: Path) -> str:
    """The table of all rows, as `sweeper table` makes it."""
    parts, order = ledger.load(str(root), "wide")
    built = tables.build(results.frame(parts), order=order)
    return tables.render(built, "markdown")


def seconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median time of `work`."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def command(*words: str) -> Callable[[], Any]:
    """A call of the command line."""
    line = [sys.executable, "-m", "sweeper", *words]
    return lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def rows() -> list[dict[str, Any]]:
    """Seconds of each, and how many rows or cells it is about."""
    found: list[tuple[str, int, float]] = []
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        full, open_, packed = (Path(place, name) for name in ("full", "open", "packed"))
        store(full, ROWS, True)
        markdown(full)
        found.append(("rows -> frame -> pivot -> Markdown", ROWS, seconds(lambda: markdown(full))))
        for name, root, compact in (("compacted", packed, True), ("a file a row", open_, False)):
            book = store(root, CELLS, compact)
            work = seconds(lambda book=book: status.text(status.status(book, "wide")))
            found.append((f"status, {name}", CELLS, work))
        sweep = Path(place, "wide.yaml")
        sweep.write_text(SWEEP, encoding="utf-8")
        wide = seconds(command("table", str(sweep), "--store", str(full)), 1)
        found.append(("`sweeper table`", ROWS, wide))
        told = seconds(command("status", str(sweep), "--store", str(packed)), 1)
        found.append(("`sweeper status`, compacted", CELLS, told))
    return [{"what": w, "number": n, "seconds": round(t, 2)} for w, n, t in found]
