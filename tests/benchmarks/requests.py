"""What a store on S3 is asked: requests a row, and how many are under way at the same time.

moto on this machine, in a process that counts; each request takes `SECONDS` there, as one to a
bucket far away does. A local folder's time stands beside it. `SWEEPER_ROWS` says how many rows
(1000,10000); the local folder reads as many.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from sweeper.store.artifacts import Store
from sweeper.store.ledger import Ledger
from tests.support import invented, s3

ROWS = [int(count) for count in os.environ.get("SWEEPER_ROWS", "1000,10000").split(",")]
SECONDS = 0.01
SAMPLE = 200
"""Rows that are written one by one while requests are counted."""


def given(count: int) -> Iterator[dict[str, Any]]:
    """Rows of real width, each of a cell of its own."""
    (like, *_) = invented.sweep()
    return ({**like, "sweep": "study", "key": f"{number:020x}"} for number in range(count))


class Place:
    """A store whose work is measured."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.found: list[dict[str, Any]] = []

    def measure(self, what: str, number: int, work: Callable[[Ledger], object]) -> None:
        """Add a row: seconds, and what the server saw."""
        remote = "://" in self.root
        ledger = Ledger(self.root, 1)
        if remote:
            s3.seen(self.root)
        start = time.perf_counter()
        work(ledger)
        seconds = time.perf_counter() - start
        row = {"what": what, "rows": number, "ms a row": round(1000 * seconds / number, 3)}
        if remote:
            saw = s3.seen(self.root)
            row |= {"requests a row": round(len(saw.requests) / number, 4), "at once": saw.most}
        self.found.append(row)

    def all(self, count: int, seconds: float) -> None:
        """Write, read, merge and read again; only a few writes are as slow as they would be."""
        name = "S3" if "://" in self.root else "local"
        made = list(given(count))

        def write(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
            for row in rows:
                ledger.write_row(row)

        def slow(seconds: float) -> None:
            if name == "S3":
                s3.behave(self.root, seconds=seconds)

        Ledger(self.root).save_plan("study", {"cells": {}, "order": {}})
        slow(0.0)
        write(Ledger(self.root, 1), made[SAMPLE:])
        slow(seconds)
        few = made[:SAMPLE]
        self.measure(f"{name}: write a row", len(few), lambda ledger: write(ledger, few))
        self.measure(f"{name}: states", count, lambda ledger: ledger.statuses("study"))
        self.measure(f"{name}: table of parts", count, lambda ledger: ledger.tables("study"))
        self.measure(f"{name}: compact", count, lambda ledger: ledger.compact("study"))
        self.measure(f"{name}: table compacted", count, lambda ledger: ledger.tables("study"))
        self.measure(f"{name}: compact again", count, lambda ledger: ledger.compact("study"))
        self.measure(f"{name}: ask for a cell", len(few), lambda _: self.ask(few))
        slow(0.0)

    def ask(self, rows: list[dict[str, Any]]) -> None:
        """What a worker asks of each cell before it runs it."""
        for row in rows:
            store = Store(self.root)
            store.about("defend", row["key"])
            store.failure("study", row["key"])


def rows() -> list[dict[str, Any]]:
    """Requests and ms a row, on S3 and in a folder."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, s3.CREDENTIALS):
        with s3.server(Path(folder, "log")) as uri:
            for count in ROWS:
                place = Place(uri.replace("/sweeps?", f"/rows-{count}?"))
                place.all(count, SECONDS)
                found += place.found
        for count in ROWS:
            here = Place(str(Path(folder, f"rows-{count}")))
            here.all(count, 0.0)
            found += here.found
    return found
