"""Rows of a store: written one part a cell, listed, compacted, read back. No torch.

    sweeps/<sweep>/sweep.yaml, plan.json
    sweeps/<sweep>/results/<key>.<status>.parquet, compact-<n>.parquet
    sweeps/<sweep>/failures/<key>.json

A file is written under a temporary name and moved; a row is there once its part is. The root is a
local folder, NFS, or any pyarrow filesystem URI.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sweeper import rows
from sweeper.errors import SweepError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PART = re.compile(r"([0-9a-f]{20})\.([a-z_]+)\.parquet")


class Ledger:
    """The rows of one store; cheap to make, holds no open file."""

    def __init__(self, root: str) -> None:
        """Open (and create) a store.

        Args:
            root: A folder, or a URI such as s3://bucket/folder.

        Raises:
            SweepError: The place cannot be reached or written to.
        """
        try:
            if "://" in root:
                base, path = pafs.FileSystem.from_uri(root)
            else:
                base, path = pafs.LocalFileSystem(), root
            base.create_dir(path, recursive=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise SweepError(f"store: cannot open {root}: {error}") from None
        self.root = root
        self.local = isinstance(base, pafs.LocalFileSystem)
        self._fs = pafs.SubTreeFileSystem(path, base)

    # Files

    def _write(self, path: str, content: bytes) -> None:
        """Write a file so that it is there whole or not at all."""
        folder = path.rpartition("/")[0]
        self._fs.create_dir(folder, recursive=True)
        target = f"{folder}/.{uuid.uuid4().hex}.part" if self.local else path
        try:
            with self._fs.open_output_stream(target) as stream:
                stream.write(content)
            if self.local:
                self._fs.move(target, path)
        except BaseException:
            if self.local and self._exists(target):
                self._fs.delete_file(target)
            raise

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())

    def _exists(self, path: str) -> bool:
        return bool(self._fs.get_file_info(path).type != pafs.FileType.NotFound)

    def _list(self, folder: str) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(folder, allow_not_found=True)
        return [f for f in self._fs.get_file_info(selector) if not f.base_name.startswith(".")]

    # Rows

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Write one row; another state of the same cell is replaced."""
        folder, key, status = self._results(row["sweep"]), row["key"], row["status"]
        buffer = pa.BufferOutputStream()
        pq.write_table(rows.table([row]), buffer)
        self._write(f"{folder}/{key}.{status}.parquet", buffer.getvalue().to_pybytes())
        for other in (*rows.FINISHED, *rows.UNFINISHED):
            stale = f"{folder}/{key}.{other}.parquet"
            if other != status and self._exists(stale):
                self._fs.delete_file(stale)

    def statuses(self, sweep: str) -> dict[str, str]:
        """Key -> status of every row of a sweep, by one listing and the compacted files."""
        found: dict[str, str] = {}
        parts = self._list(self._results(sweep))
        for info in parts:
            if info.base_name.startswith("compact-"):
                table = self._table(info.path, ["key", "status"])
                found |= dict(zip(*table.to_pydict().values(), strict=True))
        for info in parts:
            if match := _PART.fullmatch(info.base_name):
                found[match[1]] = match[2]
        return found

    def tables(self, sweep: str) -> list[pa.Table]:
        """All row tables of a sweep; several rows of one cell may be among them (latest counts)."""
        found = self._list(self._results(sweep))
        return [self._table(f.path) for f in found if f.base_name.endswith(".parquet")]

    def compact(self, sweep: str) -> None:
        """Merge the parts of a sweep into one file; safe to interrupt and to repeat."""
        parts = [f for f in self._list(self._results(sweep)) if f.base_name.endswith(".parquet")]
        if len(parts) < 2:
            return
        merged = pa.concat_tables([self._table(f.path) for f in parts], promote_options="default")
        latest: dict[str, tuple[str, int]] = {}
        keys, times = merged["key"].to_pylist(), merged["started_at"].to_pylist()
        for place, (key, started) in enumerate(zip(keys, times, strict=True)):
            latest[key] = max(latest.get(key, ("", -1)), (started, place))
        merged = merged.take(sorted(place for _, place in latest.values()))
        buffer = pa.BufferOutputStream()
        pq.write_table(merged, buffer, compression="zstd")
        name = f"compact-{time.time_ns()}.parquet"
        self._write(f"{self._results(sweep)}/{name}", buffer.getvalue().to_pybytes())
        for part in parts:
            self._fs.delete_file(part.path)

    def _table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(pa.BufferReader(self._read(path)), columns=columns)

    def _results(self, sweep: str) -> str:
        return f"{self._sweep(sweep)}/results"

    def _sweep(self, sweep: str) -> str:
        if not _NAME.fullmatch(sweep):
            raise SweepError(f"{sweep!r} cannot name a sweep")
        return f"sweeps/{sweep}"

    # Sweeps

    def save_sweep(self, sweep: str, text: str) -> None:
        """Keep the sweep as it was run, beside its results."""
        self._write(f"{self._sweep(sweep)}/sweep.yaml", text.encode())

    def save_plan(self, sweep: str, outline: Mapping[str, Any]) -> None:
        """Keep which cells the sweep now has: rows of other cells are not shown."""
        self._write(f"{self._sweep(sweep)}/plan.json", json.dumps(outline).encode())

    def plan(self, sweep: str) -> dict[str, Any] | None:
        """The outline `save_plan` kept; None before the first run."""
        path = f"{self._sweep(sweep)}/plan.json"
        if not self._exists(path):
            return None
        found: dict[str, Any] = json.loads(self._read(path))
        return found

    def sweeps(self) -> list[str]:
        """Names of the sweeps in this store."""
        return sorted(f.base_name for f in self._list("sweeps"))

    def fail(self, sweep: str, key: str, failure: Mapping[str, Any]) -> None:
        """Record that a cell did not finish: status, error, run."""
        self._write(f"{self._sweep(sweep)}/failures/{key}.json", json.dumps(dict(failure)).encode())

    def failure(self, sweep: str, key: str) -> dict[str, Any] | None:
        """The recorded failure of a cell; None where there is none."""
        path = f"{self._sweep(sweep)}/failures/{key}.json"
        try:
            found: dict[str, Any] = json.loads(self._read(path))
        except (FileNotFoundError, ValueError):
            return None
        return found


def load(root: str, sweep: str) -> tuple[list[pa.Table], dict[str, list[str]]]:
    """Return the row tables of a sweep's present matrix, and the order of its labels.

    Rows of cells the sweep no longer has (another recipe, an attack taken out) stay in the store
    and are left out here.

    Raises:
        SweepError: The sweep has not been run into this store.
    """
    ledger = Ledger(root)
    outline = ledger.plan(sweep)
    if outline is None:
        known = ", ".join(ledger.sweeps()) or "none"
        raise SweepError(
            f"store {root} has no results of sweep {sweep!r} (it has: {known}): "
            f"run `sweeper run` first, or name the store with --store"
        )
    keys = pa.array(list(outline["cells"]), pa.string())
    tables = ledger.tables(sweep)
    return [t.filter(pc.is_in(t["key"], keys)) for t in tables], outline["order"]
