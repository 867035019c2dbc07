"""Rows of a store: written one part a cell, listed, compacted, read back. No torch.

    sweeps/<sweep>/sweep.yaml, plan.json, driver.json
    sweeps/<sweep>/results/<key>.<status>.parquet, compact-<n>.parquet
    sweeps/<sweep>/failures/<key>.json

A file is written under a temporary name and moved, or, where renaming is copying (S3), written in
one piece whose size is checked; a row is there once its part is. A part that cannot be read (a
power cut) is moved to `damaged/`; the next run enters its row again. The root is a local folder,
NFS, or any pyarrow filesystem URI.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sweeper.core import rows
from sweeper.core.errors import SweepError
from sweeper.plan.source import NAME

KEY = re.compile(r"[0-9a-f]{20}")
"""The key of a cell."""
STATES = (*rows.UNFINISHED, *rows.FINISHED)
"""The states of a row, those that count less first."""
RETRIES = 20
"""How often rows are listed anew while another process compacts them."""
_MANY: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How many rows are written."""
_ONE = {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""How a part is written otherwise: one row has no use for more, and is sooner read without."""
_BROKEN = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged or vanished part raises."""
_PART = re.compile(r"([0-9a-f]{20})\.([a-z_]+)\.parquet")


def _table(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file in this thread alone.

    Arrow's threads outlive the read, and a process that ends meanwhile may abort (Arrow 34314).
    """
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    return file.read(columns, use_threads=False)


class Ledger:
    """The rows of one store; cheap to make, holds no open file."""

    def __init__(self, root: str) -> None:
        """Open a store; the first write creates it.

        Args:
            root: A folder, or a URI such as s3://bucket/folder.

        Raises:
            SweepError: The place cannot be reached, or is a file.
        """
        try:
            if "://" in root:
                base, path = pafs.FileSystem.from_uri(root)
            else:
                base, path = pafs.LocalFileSystem(), root
            kind = base.get_file_info(path or ".").type
        except (OSError, pa.ArrowInvalid) as error:
            raise SweepError(f"store: cannot open {root}: {error}") from None
        if kind == pafs.FileType.File:
            raise SweepError(f"store: {root} is a file: give --store a folder")
        self.root = root
        self.local = isinstance(base, pafs.LocalFileSystem)
        self._fs = pafs.SubTreeFileSystem(path, base)

    # Files

    def _write(self, path: str, content: bytes) -> None:
        """Write a file so that it is there whole or not at all."""
        target = path
        if self.local:  # an object store has no folders, and shows no object before it is whole
            folder = path.rpartition("/")[0]
            self._fs.create_dir(folder, recursive=True)
            target = f"{folder}/.{uuid.uuid4().hex}.part"
        try:
            with self._fs.open_output_stream(target) as stream:
                stream.write(content)
            if (size := self._fs.get_file_info(target).size) != len(content):
                raise OSError(f"{path}: {size} of {len(content)} bytes arrived")
            if self.local:
                self._fs.move(target, path)
        except BaseException:
            with contextlib.suppress(OSError):
                if self.local or self._fs.get_file_info(target).size != len(content):
                    self._fs.delete_file(target)
            raise

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())

    def _exists(self, path: str) -> bool:
        return bool(self._fs.get_file_info(path).type != pafs.FileType.NotFound)

    def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # another process may have been faster
            self._fs.delete_file(path)

    def _list(self, folder: str) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(folder, allow_not_found=True)
        return [f for f in self._fs.get_file_info(selector) if not f.base_name.startswith(".")]

    def keys(self, kind: str) -> set[str]:
        """Keys of the artifacts of a kind that are there, by one listing."""
        selector = pafs.FileSelector(f"artifacts/{kind}", allow_not_found=True, recursive=True)
        paths = [info.path for info in self._fs.get_file_info(selector)]
        keys = {path.split("/")[-2] for path in paths if path.endswith("/manifest.json")}
        return {key for key in keys if KEY.fullmatch(key)}

    def _artifact(self, kind: str, key: str) -> str:
        if not kind.isalpha():
            raise SweepError(f"{kind!r} is not a kind of cell")
        return f"artifacts/{kind}/{self._key(key)}"

    def _set_aside(self, path: str) -> None:
        """Move what cannot be read to `damaged/`, where it can be looked at."""
        self._move(path, f"damaged/{path.replace('/', '-')}-{time.time_ns()}")

    def _move(self, path: str, place: str) -> None:
        """Move a file, or a folder of files, whose manifest goes first; another may be faster."""
        with contextlib.suppress(FileNotFoundError):
            if self.local:
                self._fs.create_dir(place.rpartition("/")[0], recursive=True)
                self._fs.move(path, place)
                return
            inside = self._fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
            for info in sorted(inside, key=lambda f: f.base_name != "manifest.json"):
                self._fs.move(info.path, place + info.path.removeprefix(path))
            if not inside:  # an object store moves no folders, and a file has nothing inside
                self._fs.move(path, place)

    # Rows

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Write one row; another state of the same cell is replaced."""
        folder, key, status = self._results(row["sweep"]), self._key(row["key"]), row["status"]
        if status not in STATES:
            raise ValueError(f"{status!r} is not the state of a row: {', '.join(STATES)}")
        buffer = pa.BufferOutputStream()
        pq.write_table(rows.table([row]), buffer, **_MANY | _ONE)
        self._write(f"{folder}/{key}.{status}.parquet", buffer.getvalue().to_pybytes())
        for state in STATES:
            if state != status:
                self._delete(f"{folder}/{key}.{state}.parquet")

    def statuses(self, sweep: str) -> dict[str, str]:
        """Key -> status of every row of a sweep, by one listing and the compacted files.

        Of two states of one cell (a write was interrupted) the finished one counts.
        """
        statuses: dict[str, str] = {}
        for table in self._read_rows(sweep, "compact-", ["key", "status"])[1]:
            statuses |= dict(zip(*table.to_pydict().values(), strict=True))
        parts = [_PART.fullmatch(f.base_name) for f in self._list(self._results(sweep)) if f.size]
        states = [(match[1], match[2]) for match in parts if match and match[2] in STATES]
        return statuses | dict(sorted(states, key=lambda pair: STATES.index(pair[1])))

    def tables(self, sweep: str) -> list[pa.Table]:
        """All row tables of a sweep; several rows of one cell may be among them (latest counts)."""
        return self._read_rows(sweep)[1]

    def recent_rows(self, columns: Sequence[str], parts: int) -> list[dict[str, Any]]:
        """These columns of the rows of all sweeps, one row a cell; null where a row has none.

        Args:
            columns: Names, `key` among them.
            parts: How many rows not yet compacted are read at most, the newest.
        """
        sweeps = [name for name in self.sweeps() if NAME.fullmatch(name)]
        files = [info for sweep in sweeps for info in self._list(self._results(sweep))]
        files = [info for info in files if info.base_name.endswith(".parquet")]
        files.sort(key=lambda info: (info.base_name.startswith("compact-"), info.mtime))
        single = sum(not info.base_name.startswith("compact-") for info in files)
        by_key: dict[str, dict[str, Any]] = {}
        for info in files[max(0, single - parts) :]:
            with contextlib.suppress(*_BROKEN):
                table = _table(self._read(info.path))
                some = table.select([name for name in columns if name in table.column_names])
                by_key |= {row["key"]: row for row in some.to_pylist()}
        return [{**dict.fromkeys(columns), **row} for row in by_key.values()]

    def compact(self, sweep: str) -> None:
        """Merge the parts of a sweep into one file; safe to interrupt and to repeat."""
        parts, tables = self._read_rows(sweep)
        if len(parts) < 2:
            return
        merged = _merged([rows.SCHEMA.empty_table(), *tables])
        latest: dict[str, tuple[str, int]] = {}
        keys, times = merged["key"].to_pylist(), merged["started_at"].to_pylist()
        for place, (key, started) in enumerate(zip(keys, times, strict=True)):
            latest[key] = max(latest.get(key, ("", -1)), (started or "", place))
        merged = merged.take(sorted(place for _, place in latest.values()))
        buffer = pa.BufferOutputStream()
        pq.write_table(merged, buffer, **_MANY)
        name = f"compact-{time.time_ns()}.parquet"
        self._write(f"{self._results(sweep)}/{name}", buffer.getvalue().to_pybytes())
        for path in parts:
            self._delete(path)

    def write_samples(self, key: str, columns: Mapping[str, Any]) -> None:
        """Keep what a defense cell says of each training sample: `samples/<key>.parquet`."""
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table(dict(columns)), buffer, compression="zstd")
        self._write(f"samples/{self._key(key)}.parquet", buffer.getvalue().to_pybytes())

    def samples(self, key: str) -> pa.Table | None:
        """What `write_samples` kept of a cell; None where its defense scores no samples."""
        path = f"samples/{self._key(key)}.parquet"
        return _table(self._read(path)) if self._exists(path) else None

    def _read_rows(
        self, sweep: str, prefix: str = "", columns: list[str] | None = None
    ) -> tuple[list[str], list[pa.Table]]:
        """Paths of a sweep's files of rows, and their rows; what cannot be read is set aside."""
        for _ in range(RETRIES):
            paths: list[str] = []
            tables: list[pa.Table] = []
            try:
                for info in self._list(self._results(sweep)):
                    name = info.base_name
                    if name.startswith(prefix) and name.endswith(".parquet"):
                        content = self._read(info.path)
                        with contextlib.suppress(*_BROKEN):
                            tables.append(_table(content, columns))
                            paths.append(info.path)
                            if len(tables) == 200:  # a table of one row takes 80 kB
                                tables = [_merged(tables)]
                            continue
                        self._set_aside(info.path)
                return paths, tables
            except FileNotFoundError:
                continue  # another process compacted the rows meanwhile: list them again
        raise SweepError(
            f"store {self.root}: the rows of {sweep} are being rewritten all the time: stop the "
            "other runs of this sweep"
        )

    def _key(self, key: str) -> str:
        if not KEY.fullmatch(key):
            raise SweepError(f"{key!r} is not the key of a cell: 20 digits 0-9a-f")
        return key

    def _results(self, sweep: str) -> str:
        return f"{self._sweep(sweep)}/results"

    def _sweep(self, sweep: str) -> str:
        if not NAME.fullmatch(sweep):
            raise SweepError(
                f"{sweep!r} cannot name a sweep: use letters, digits, dots, underscores, hyphens"
            )
        return f"sweeps/{sweep}"

    # Sweeps

    def save_sweep(self, sweep: str, text: str) -> None:
        """Keep the sweep as it was run, beside its results; the first write of a run.

        Raises:
            SweepError: The store cannot be written to.
        """
        path = f"{self._sweep(sweep)}/sweep.yaml"
        try:
            self._write(path, text.encode())
        except OSError as error:
            raise SweepError(
                f"store: cannot write to {self.root}: {error.strerror or error}; name another "
                "place with --store"
            ) from None

    def sweep_text(self, sweep: str) -> str:
        """The text `save_sweep` kept; empty before the first run."""
        path = f"{self._sweep(sweep)}/sweep.yaml"
        return self._read(path).decode() if self._exists(path) else ""

    def save_plan(self, sweep: str, outline: Mapping[str, Any]) -> None:
        """Keep which cells the sweep now has: rows of other cells are not shown."""
        self._write(f"{self._sweep(sweep)}/plan.json", json.dumps(outline).encode())

    def plan(self, sweep: str) -> dict[str, Any]:
        """The outline `save_plan` kept.

        Raises:
            SweepError: The sweep has not been run into this store.
        """
        outline = self._json(f"{self._sweep(sweep)}/plan.json")
        if outline is None:
            names = ", ".join(self.sweeps()) or "none"
            raise SweepError(
                f"store {self.root} has no results of sweep {sweep!r} (it has: {names}): "
                f"run `sweeper run` first, or name the store with --store"
            )
        return outline

    def sweeps(self) -> list[str]:
        """Names of the sweeps in this store."""
        return sorted(f.base_name for f in self._list("sweeps"))

    def fail(self, sweep: str, key: str, failure: Mapping[str, Any]) -> None:
        """Record that a cell did not finish: status, error, run."""
        path = f"{self._sweep(sweep)}/failures/{self._key(key)}.json"
        self._write(path, json.dumps(dict(failure)).encode())

    def failure(self, sweep: str, key: str) -> dict[str, Any] | None:
        """The recorded failure of a cell; None where there is none."""
        return self._json(f"{self._sweep(sweep)}/failures/{self._key(key)}.json")

    def failures(self, sweep: str) -> set[str]:
        """Keys of the cells with a recorded failure, those that ended well later among them."""
        files = self._list(f"{self._sweep(sweep)}/failures")
        return {info.base_name.removesuffix(".json") for info in files}

    def activity(self, sweep: str) -> datetime.datetime | None:
        """When a file of a sweep last changed, by the clock of the store."""
        selector = pafs.FileSelector(self._sweep(sweep), allow_not_found=True, recursive=True)
        return max((f.mtime for f in self._fs.get_file_info(selector) if f.is_file), default=None)

    # Who runs a sweep (sweeper.store.claim)

    def claim(self, sweep: str) -> dict[str, Any] | None:
        """What the driver of a sweep last said of itself; None where nobody runs it."""
        return self._json(f"{self._sweep(sweep)}/driver.json")

    def save_claim(self, sweep: str, claim: Mapping[str, Any]) -> None:
        """Say who runs a sweep; the last to say so counts."""
        self._write(f"{self._sweep(sweep)}/driver.json", json.dumps(claim).encode())

    def drop_claim(self, sweep: str) -> None:
        """Nobody runs the sweep any more."""
        self._delete(f"{self._sweep(sweep)}/driver.json")

    def _json(self, path: str) -> dict[str, Any] | None:
        """A JSON file; None where there is none that can be read."""
        try:
            content: dict[str, Any] = json.loads(self._read(path))
        except (FileNotFoundError, ValueError):
            return None
        return content


def _merged(tables: list[pa.Table]) -> pa.Table:
    """The rows of several tables in one, their schemas in one."""
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def load(root: str, sweep: str) -> tuple[list[pa.Table], dict[str, list[str]]]:
    """Return the row tables of a sweep's present matrix, and the order of its labels.

    Rows of cells the sweep no longer has (another recipe, an attack taken out) stay in the store
    and are left out here.

    Raises:
        SweepError: The sweep has not been run into this store.
    """
    ledger = Ledger(root)
    outline = ledger.plan(sweep)
    keys = pa.array(list(outline["cells"]), pa.string())
    tables = ledger.tables(sweep)
    return [t.filter(pc.is_in(t["key"], keys)) for t in tables], outline["order"]
