"""A worker that runs many cells holds no more memory than one that has run some."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.run import cells
from sweeper.run.walk import Walk
from tests.support import sweeps

DEFENSES = [
    "none",
    {"defense": "fine-tuning", "epochs": 3},
    {"defense": "fine-pruning", "epochs": 1},
    {"defense": "anp", "steps": 5},
    {"defense": "fip", "steps": 6},
    {"defense": "sibp", "epochs": 2},
    {"defense": "d-br", "epochs": 2},
]


def megabytes() -> float:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_fifty_cells_in_one_process_leave_memory_flat(tmp_path: Path) -> None:
    path = sweeps.write(tmp_path, attacks=["badnets"], seeds=4, defenses=DEFENSES)
    job = sweeps.prepared(path, tmp_path / "store")
    walk, held = Walk(job.plan.cells, job.todo), []
    while cell := walk.next():
        result = cells.run(cell, walk.ancestors(cell.key), job.context)
        assert result["status"] == "ok", result["error"]
        walk.complete(cell.key, result["status"])
        held.append(megabytes())
    assert len(held) > 70
    assert max(held[50:]) < 1.05 * max(held[:25]), held
