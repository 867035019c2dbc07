"""Rows travel with the results: a driver writes many at once, and parts are there for a crash."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeper.core.types import Cell
from sweeper.run import cells, driver, ending
from sweeper.run.ending import Ending, Watcher
from sweeper.run.job import Job
from sweeper.run.walk import Walk
from sweeper.store.artifacts import Store
from tests.support import sweeps

ONE: dict[str, Any] = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}
THREE = ["none", "clp", {"defense": "clp", "u": 2.5, "as": "other"}]
PART = re.compile(r"/results/.*[0-9a-f]{20}\.\w+\.parquet")
MANY = re.compile(r"/results/.*rows-\w+\.parquet")


class Watched:
    """What a store reads and writes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        self.written: list[str] = []
        read, write = Store._read, Store._write

        def reading(store: Store, path: str) -> bytes:
            self.read.append(path)
            return read(store, path)

        def writing(store: Store, path: str, content: bytes, **how: bool) -> None:
            self.written.append(path)
            write(store, path, content, **how)

        patch.setattr(Store, "_read", reading)
        patch.setattr(Store, "_write", writing)

    def parts(self, paths: list[str]) -> int:
        return len([path for path in paths if PART.search(path)])

    def many(self) -> int:
        return len([path for path in self.written if MANY.search(path)])


def as_ray(job: Job, walk: Walk, ending: Ending, watcher: Watcher) -> None:
    """`inline`, but each result is sent as workers send theirs."""
    while cell := walk.next():
        result = cells.run(cell, walk.ancestors(cell.key), job.context)
        ending(cell.key, json.loads(json.dumps(result)))


class Looking(sweeps.Silent):
    """A watcher that sees what it is told of."""

    def finished(self, cell: Cell, result: Any) -> None:
        super().finished(cell, result)
        assert "row" not in result, "who looks on is told of the numbers, not of the row"


def test_a_driver_reads_no_part_it_was_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweeps.write(tmp_path, **ONE, defenses=THREE)
    with monkeypatch.context() as patch:
        patch.setattr(ending, "ROWS", 2)
        watched = Watched(patch)
        driver.execute(sweeps.prepared(path, tmp_path / "store"), as_ray, Looking())
    assert watched.parts(watched.written) == 3 and watched.parts(watched.read) == 0
    assert watched.many() == 2, "no more than `ROWS` rows wait in the driver"
    told = sweeps.frame(tmp_path / "store")
    with monkeypatch.context() as patch:  # the driver dies before it has written anything
        patch.setattr(Ending, "enter", lambda ending: None)
        patch.setattr(Store, "compact", lambda store, sweep: None)
        driver.execute(sweeps.prepared(path, tmp_path / "crash"), as_ray, Looking())
    crashed = sweeps.frame(tmp_path / "crash")
    timed = ["seconds", "victim_seconds", "started_at", "peak_memory_mb"]
    pd.testing.assert_frame_equal(told.drop(columns=timed), crashed.drop(columns=timed))


def test_a_row_arrives_with_what_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {"acc": math.nan, "asr": None, "ra": math.inf, "f1": 1e-300, "n_test": 2**60}
    job = sweeps.prepared(sweeps.write(tmp_path, **ONE, defenses=["none"]), tmp_path / "store")
    measure = cells.Work.measure
    monkeypatch.setattr(cells.Work, "measure", lambda work, made: {**measure(work, made), **odd})
    with monkeypatch.context() as patch:
        watched = Watched(patch)
        driver.execute(job, as_ray, Looking())
    assert watched.parts(watched.read) == 0
    (row,) = job.store.tables("small")[0].to_pylist()
    assert math.isnan(row.pop("acc"))
    assert {name: row[name] for name in odd if name != "acc"} == {
        name: value for name, value in odd.items() if name != "acc"
    }


def test_adopted_rows_and_those_that_do_not_apply_are_one_file_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    sweeps.inline(sweeps.write(tmp_path, **ONE, defenses=THREE), store)
    far = {"targets": [0, 10, 11]}  # digits have ten classes
    path = sweeps.write(tmp_path, **ONE, name="second", defenses=THREE, **far)
    with monkeypatch.context() as patch:
        watched = Watched(patch)
        assert sweeps.inline(path, store)[0] == {}
    assert watched.many() == 2 and watched.parts(watched.written) == 0
    states = sweeps.frame(store, "second")["status"].tolist()
    assert sorted(states) == ["not_applicable"] * 6 + ["ok"] * 3
