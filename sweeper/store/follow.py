"""A store that is looked at again and again while its sweeps run: what is new is read. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sweeper.store import rowfiles
from sweeper.store.fresh import ABOVE
from sweeper.store.ledger import RETRIES, Ledger
from sweeper.store.rowfiles import RowFile

Row = dict[str, Any]
MOMENT = 1.0
"""Seconds for which a listing of artifacts is good."""


@dataclass
class _Read:
    """What was read of a sweep's rows."""

    several: list[RowFile] = field(default_factory=list)
    """The files of several rows."""
    held: pa.Table = field(default_factory=lambda: rowfiles.NOTHING)
    """What they have."""
    rows: dict[str, Row] = field(default_factory=dict)
    """The same by key, each cell once."""
    parts: dict[RowFile, Row] = field(default_factory=dict)
    """The parts that counted beside them, and their rows."""


class Followed(Ledger):
    """A store that remembers what it has read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._keys: dict[str, tuple[float, set[str]]] = {}
        self._reads: dict[tuple[str, Sequence[str]], _Read] = {}

    def keys(self, kind: str) -> set[str]:
        """As they were a moment ago: all sweeps ask for the same listing."""
        listed, found = self._keys.get(kind, (0.0, set[str]()))
        now = time.monotonic()
        if kind not in self._keys or now - listed > MOMENT:
            found = super().keys(kind)
            self._keys[kind] = now, found
        return found

    def mark(self, sweep: str, claim: Mapping[str, Any]) -> str:
        """What changes with all that can be read of a sweep, by listings alone.

        Args:
            sweep: Its name.
            claim: Who runs it, whose signs of life are no change.
        """
        files = self._list(self._sweep(sweep), recursive=True)
        said = [
            (info.path, info.size, info.mtime_ns)
            for info in files
            if info.is_file and info.base_name != "driver.json"
        ]
        above = [sorted(self.keys(kind)) for kind in ABOVE]
        driver = {name: value for name, value in claim.items() if name != "beat"}
        return hashlib.sha256(json.dumps([sorted(said), above, driver]).encode()).hexdigest()[:32]

    def rows(self, sweep: str, names: Sequence[str]) -> dict[str, Row]:
        """Key -> these columns of its row, as `columns`; only what is new is read."""
        wanted = tuple(dict.fromkeys(["key", "status", *names]))
        read = self._reads.setdefault((sweep, wanted), _Read())
        for _ in range(RETRIES):
            with contextlib.suppress(FileNotFoundError):  # the driver compacts meanwhile
                if self._bring_up(sweep, wanted, read):
                    return read.rows | {part.key: row for part, row in read.parts.items()}
        return {}

    def _bring_up(self, sweep: str, wanted: Sequence[str], read: _Read) -> bool:
        """Read what is new; False where a file was not what it seemed."""
        files = self._files(sweep)
        several = [file for file in files if not file.key]
        if several != read.several:
            held = self._read_files(several, wanted)
            if held is None:
                return False
            read.several, read.held = several, held
            read.rows = {row["key"]: _only(row, wanted) for row in rowfiles.once(held).to_pylist()}
        parts = rowfiles.unbeaten(read.held, [file for file in files if file.key])
        fresh = [part for part in parts if part not in read.parts]
        tables = self._each(lambda part: self._open(wanted, part), fresh)
        if any(table is None for table in tables):
            return False
        found = [_only(table.to_pylist()[0], wanted) for table in tables if table is not None]
        known = read.parts | dict(zip(fresh, found, strict=True))
        read.parts = {part: known[part] for part in parts}
        return True

    def row(self, sweep: str, key: str) -> Row | None:
        """The row of one cell, all of it; None where there is none."""
        for _ in range(RETRIES):
            with contextlib.suppress(FileNotFoundError):
                files = [file for file in self._files(sweep) if file.key in ("", self._key(key))]
                table = self._read_files(files, None)
                if table is not None:
                    mine = rowfiles.once(rowfiles.among(table, [key]))
                    found: list[Row] = mine.drop_columns(rowfiles.AGE).to_pylist()
                    return found[0] if found else None
        return None


def _only(row: Row, names: Sequence[str]) -> Row:
    return {name: row.get(name) for name in names}
