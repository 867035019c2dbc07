"""Small sweeps for tests: written to a file, run inline, their rows compared."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sweeper.plan import spec
from sweeper.run import driver
from sweeper.run.job import Job
from sweeper.run.material import Context
from sweeper.store import ledger
from sweeper.tables import results
from tests.support.places import DATA

SMALL: dict[str, Any] = {
    "name": "small",
    "datasets": [{"dataset": "digits", "train_size": 300, "test_size": 100}],
    "models": [{"model": "tiny", "width": 4}],
    "attacks": ["badnets", "blend"],
    "poison_rates": [0.1, 0.2],
    "seeds": 3,
    "defenses": ["none", {"defense": "fine-tuning", "epochs": 1}],
    "recipe": {"epochs": 1},
}
MEASURED = ["status", "acc", "acc_nontarget", "asr", "asr_all", "ra", "der", "acc_before"]


class Silent:
    """A watcher that counts."""

    def __init__(self) -> None:
        self.cells: list[tuple[str, str]] = []
        self.said: list[str] = []

    def started(self, cell: Any, progress: Any = None) -> None:
        pass

    def finished(self, cell: Any, result: Any) -> None:
        self.cells.append((cell.kind, result["status"]))

    def put_back(self, cell: Any) -> None:
        pass

    def told(self, text: str) -> None:
        self.said.append(text)


def write(folder: Path, **changes: Any) -> Path:
    """Write a sweep file: `SMALL` with changes."""
    path = folder / f"{changes.get('name', 'small')}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def prepared(path: Path, store: Path, **context: Any) -> Job:
    """A sweep ready to run into `store`."""
    sweep = spec.load(str(path))
    about = Context(
        store=str(store),
        sweep=sweep.name,
        run=driver.new_run(),
        device="cpu",
        timeout=sweep.timeout,
        **context,
    )
    return driver.prepare(sweep, about)


def inline(path: Path, store: Path) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Run a sweep in this process: states of this call, and (kind, state) of each cell."""
    watcher = Silent()
    counts = driver.execute(prepared(path, store), driver.inline, watcher)
    return counts, watcher.cells


def frame(store: Path | str, name: str = "small") -> pd.DataFrame:
    """The rows of a sweep by key."""
    return results.frame(ledger.load(str(store), name)[0]).set_index("key").sort_index()


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same cells with the same metrics, bit for bit."""
    pd.testing.assert_frame_equal(one[MEASURED], other[MEASURED], check_exact=True)


def on_cifar(
    defense: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The row of a defense on 4,500 CIFAR-10 images with BadNets at 10 %."""
    if not (DATA / "cifar10" / "train.parquet").is_file():
        pytest.skip("no CIFAR-10: set SWEEPER_DATA to the folder above cifar10/train.parquet")
    monkeypatch.setenv("SWEEPER_DATA", str(DATA))
    path = write(
        folder,
        datasets=[{"dataset": "cifar10", "train_size": 5000, "test_size": 1000}],
        models=["tiny"],
        attacks=["badnets"],
        poison_rates=[0.1],
        seeds=1,
        defenses=[defense],
        recipe={"epochs": 15, "crop": 0, "flip": False},
    )
    inline(path, folder / "store")
    (row,) = frame(folder / "store").to_dict("records")
    assert row["status"] == "ok", row["error"]
    found = ", ".join(f"{name} {row[name]}" for name in ("acc", "asr", "auroc", "precision"))
    sys.stdout.write(f"{defense}: {found}\n")
    return {str(name): value for name, value in row.items()}
