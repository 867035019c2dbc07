"""Cells that are to run again: what they left is moved away before they do. No torch.

    replaced/<run>.json     which cells; written first, removed last
    replaced/<run>/...      their artifacts and rows, of all sweeps of the store

While the first is there the move has not ended: none of these cells counts as done, and the next
run that has one of them ends the move before it does anything else.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sweeper.plan.source import NAME
from sweeper.store.ledger import (
    _BROKEN,
    _MANY,
    _NONE,
    _PART,
    CHECKPOINT,
    Ledger,
    _aged,
    _merged,
    _once,
    _table,
)

Cells = Mapping[str, Collection[str]]
"""Kind -> keys."""
ABOVE = {"prepare": "clean_model", "train": "state", "stage": "victim"}
"""Kind -> where a cell's parameters name its parent; each has one at most."""


class Fresh(Ledger):
    """A store whose cells can be run again."""

    def replacing(self) -> dict[str, Cells]:
        """What is being moved away, or was when a process stopped: run -> its cells."""
        files = [f.base_name for f in self._list("replaced") if f.base_name.endswith(".json")]
        found = {name: self._json(f"replaced/{name}") for name in files}
        return {name.removesuffix(".json"): cells for name, cells in found.items() if cells}

    def replace(self, run: str, cells: Cells) -> None:
        """Move away what cells left, in all sweeps; repeat it where it was interrupted.

        Args:
            run: Names the folder below `replaced/`.
            cells: The cells, with all that are below them.
        """
        intent = f"replaced/{run}.json"
        self._write(
            intent, json.dumps({kind: sorted(keys) for kind, keys in cells.items()}).encode()
        )
        place = f"replaced/{run}"
        for kind, keys in cells.items():
            there = self.keys(kind)
            for key in keys:
                if key in there:
                    self._away(self._artifact(kind, key), place)
        for key in {f.base_name for f in self._list("checkpoints")} & set(cells.get("train", ())):
            self._away(self._artifact(CHECKPOINT, key), place)
        keys = set(cells.get("defend", ()))
        for sweep in self._sweeps():
            self._rows_away(sweep, keys, place)
            for key in self.failures(sweep) & {key for group in cells.values() for key in group}:
                self._away(f"{self._sweep(sweep)}/failures/{key}.json", place)
        samples = {f.base_name.removesuffix(".parquet") for f in self._list("samples")}
        for key in samples & keys:
            self._away(f"samples/{key}.parquet", place)
        self._delete(intent)

    def columns(
        self, sweep: str, names: Sequence[str], parts: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Key -> these columns of its row; null where an older row lacks one.

        Args:
            sweep: Its name.
            names: Columns.
            parts: How many rows not yet compacted are read at most, the oldest; default: all.
        """
        wanted, tables = [*dict.fromkeys(["key", "status", *names])], [_NONE]
        files = self._files_of(sweep)
        single = sorted((f for f in files if _PART.fullmatch(f.base_name)), key=lambda f: f.mtime)
        left_out = {f.path for f in single[parts:]} if parts is not None else set()
        for info in files:
            if info.path not in left_out:
                with contextlib.suppress(FileNotFoundError):  # compacted meanwhile
                    content = self._read(info.path)
                    with contextlib.suppress(*_BROKEN):
                        tables.append(_aged(_table(content, wanted), info.base_name))
        found = {row["key"]: row for row in _once(_merged(tables)).to_pylist()}
        return {key: {name: row.get(name) for name in wanted} for key, row in found.items()}

    def holders(self, cells: Cells) -> list[str]:
        """Sweeps whose last matrix has one of these cells, or whose rows are of one."""
        keys = {key for group in cells.values() for key in group}
        found = []
        for sweep in self._sweeps():
            outline = self._json(f"{self._sweep(sweep)}/plan.json") or {}
            known = {*outline.get("cells", ()), *outline.get("above", ())}
            if not keys.isdisjoint(known) or not keys.isdisjoint(self.columns(sweep, ["key"])):
                found.append(sweep)
        return found

    def _sweeps(self) -> Iterator[str]:
        return (name for name in self.sweeps() if NAME.fullmatch(name))

    def _files_of(self, sweep: str) -> list[pafs.FileInfo]:
        """Files of rows, those that count more last."""
        files = [f for f in self._list(self._results(sweep)) if f.base_name.endswith(".parquet")]
        return sorted(files, key=lambda f: (not f.base_name.startswith("compact-"), f.base_name))

    def _away(self, path: str, place: str) -> None:
        self._move(path, f"{place}/{path.replace('/', '-')}-{time.time_ns()}")

    def _rows_away(self, sweep: str, keys: set[str], place: str) -> None:
        """Move rows of these cells; a compacted file is written anew under its own name."""
        wanted = pa.array(sorted(keys), pa.string())
        for info in self._files_of(sweep):
            part = _PART.fullmatch(info.base_name)
            if part and part[1] in keys:
                self._away(info.path, place)
            if part:
                continue
            content = self._read(info.path)
            try:
                table = _table(content)
            except (pa.ArrowException, ValueError):
                continue  # damaged: who reads rows sets it aside
            ours = pc.is_in(table["key"], wanted)
            if pc.any(ours).as_py():
                name = f"{sweep}-{info.base_name.removesuffix('.parquet')}-{time.time_ns()}.parquet"
                self._write(f"{place}/{name}", _bytes(table.filter(ours)))
                self._write(info.path, _bytes(table.filter(pc.invert(ours))))


def _bytes(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, **_MANY)
    content: bytes = buffer.getvalue().to_pybytes()
    return content
