"""Rows of a store: written one part a cell, listed, compacted, read back. No torch.

    sweeps/<sweep>/sweep.yaml, plan.json, driver.json
    sweeps/<sweep>/results/<key>.<status>.parquet, compact-<n>-<any>.parquet
    sweeps/<sweep>/failures/<key>.json

A row is there once its part is. The next run enters the row of a part that cannot be read again.
Several rows of one cell may be there (a node that was given up answered after all, a compaction was
interrupted): `_rank` says which counts, to every reader.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sweeper.core import advice, rows, text
from sweeper.core.errors import SweepError
from sweeper.plan.source import NAME
from sweeper.store.files import Files

KEY = re.compile(r"[0-9a-f]{20}")
"""The key of a cell."""
CHECKPOINT = "checkpoint"
"""Kind of the artifact a training leaves on its way."""
STATES = (*rows.UNFINISHED, *reversed(rows.FINISHED))
"""The states of a row, those that count less first."""
RETRIES = 20
"""How often rows are listed anew while another process compacts them."""
_MANY: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How many rows are written."""
_ONE = {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""How a part is written otherwise: one row has no use for more, and is sooner read without."""
_BROKEN = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged or vanished part raises."""
_PART = re.compile(rf"({KEY.pattern})\.({'|'.join(STATES)})\.parquet")
_COMPACT = re.compile(r"compact-(\d+)(-.*)?\.parquet")
_NEWEST = 2**63 - 1
"""The age of a part; that of a compaction is its number."""
_AGE = "_age"
"""The column that says from what file a row is, while rows are chosen."""


def _rank(status: str, age: int) -> tuple[bool, int, int]:
    """What decides which of several rows of a cell counts: the greatest.

    A finished row beats an unfinished one, a part a compacted row, a newer compaction an older. No
    clock is asked: those of two machines differ. What is equal in all this is one state in two
    compactions made at once; there the contents decide.
    """
    return status in rows.FINISHED, age, STATES.index(status) if status in STATES else -1


def _counting(
    keys: Sequence[str],
    states: Sequence[str],
    ages: Sequence[int],
    content: Callable[[int], str] = str,
) -> dict[str, int]:
    """Key -> place of the row that counts, among rows given by column."""
    best: dict[str, tuple[tuple[bool, int, int], int]] = {}
    for place, (key, status, age) in enumerate(zip(keys, states, ages, strict=True)):
        rank, (other, there) = _rank(status, age), best.get(key, (None, place))
        if other is None or rank > other or (rank == other and content(place) > content(there)):
            best[key] = rank, place
    return {key: place for key, (_, place) in best.items()}


def _table(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file in this thread alone.

    Arrow's threads outlive the read, and a process that ends meanwhile may abort (Arrow 34314).
    """
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    return file.read(columns, use_threads=False)


class Ledger(Files):
    """The rows of one store, and the sweeps they are of."""

    def keys(self, kind: str) -> set[str]:
        """Keys of the artifacts of a kind that are there, by one listing."""
        selector = pafs.FileSelector(f"artifacts/{kind}", allow_not_found=True, recursive=True)
        paths = [info.path for info in self._fs.get_file_info(selector)]
        keys = {path.split("/")[-2] for path in paths if path.endswith("/manifest.json")}
        return {key for key in keys if KEY.fullmatch(key)}

    def _artifact(self, kind: str, key: str) -> str:
        if not kind.isalpha():
            raise SweepError(f"{kind!r} is not a kind of cell")
        folder = "checkpoints" if kind == CHECKPOINT else f"artifacts/{kind}"
        return f"{folder}/{self._key(key)}"

    # Rows

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Write one row in place of those it beats: an unfinished one leaves a finished one be."""
        folder, key, status = self._results(row["sweep"]), self._key(row["key"]), row["status"]
        if status not in STATES:
            raise ValueError(f"{status!r} is not the state of a row: {', '.join(STATES)}")
        buffer = pa.BufferOutputStream()
        pq.write_table(rows.table([row]), buffer, **_MANY | _ONE)
        self._write(f"{folder}/{key}.{status}.parquet", buffer.getvalue().to_pybytes())
        finished = status in rows.FINISHED  # two that finish at once must not delete each other
        for state in STATES[: STATES.index(status)] if finished else rows.UNFINISHED:
            if state != status:
                self._delete(f"{folder}/{key}.{state}.parquet")

    def statuses(self, sweep: str) -> dict[str, str]:
        """Key -> status of every row of a sweep, by one listing and the compacted files."""
        columns = ["key", "status"]
        known = _merged([_NONE, *self._read_rows(sweep, "compact-", columns)[1]])
        parts = _parts(self._list(self._results(sweep)))
        keys = known["key"].to_pylist() + [match[1] for match, _ in parts]
        states = known["status"].to_pylist() + [match[2] for match, _ in parts]
        counting = _counting(keys, states, known[_AGE].to_pylist() + [_NEWEST] * len(parts))
        return {key: states[place] for key, place in counting.items()}

    def tables(self, sweep: str) -> list[pa.Table]:
        """The rows of a sweep, each cell once, as tables that may differ in their columns."""
        tables = self._read_rows(sweep)[1]
        return [_once(_merged(tables)).drop_columns(_AGE)] if tables else []

    def recent_rows(self, columns: Sequence[str], parts: int) -> list[dict[str, Any]]:
        """These columns of the rows of all sweeps, one row a cell; null where a row has none.

        Args:
            columns: Names, `key` and `status` among them.
            parts: How many rows not yet compacted are read at most, the newest.
        """
        sweeps = [name for name in self.sweeps() if NAME.fullmatch(name)]
        files = [info for sweep in sweeps for info in self._list(self._results(sweep))]
        single = sorted((info for _, info in _parts(files)), key=lambda info: info.mtime)
        compact = [info for info in files if _COMPACT.fullmatch(info.base_name)]
        tables = [_NONE]
        for info in [*single[max(0, len(single) - parts) :], *compact]:
            with contextlib.suppress(*_BROKEN):
                table = _aged(_table(self._read(info.path)), info.base_name)
                tables.append(table.select([*set(columns) & set(table.column_names), _AGE]))
        found = _once(_merged(tables)).to_pylist()
        return [{name: row.get(name) for name in columns} for row in found]

    def compact(self, sweep: str) -> None:
        """Merge the parts of a sweep into one file; safe to interrupt, to repeat, and at once.

        It is numbered after those it read: what it does not have came after it, or is newer.
        """
        files, tables = self._read_rows(sweep)
        if len(files) < 2:
            return
        merged = _once(_merged([rows.SCHEMA.empty_table(), *tables])).drop_columns(_AGE)
        buffer = pa.BufferOutputStream()
        pq.write_table(merged, buffer, **_MANY)
        numbers = [_age(name) for name in files]
        number = 1 + max((n for n in numbers if n < _NEWEST), default=0)
        name = f"compact-{number}-{uuid.uuid4().hex[:8]}.parquet"  # another may have this number
        self._write(f"{self._results(sweep)}/{name}", buffer.getvalue().to_pybytes())
        for name in files:
            self._delete(f"{self._results(sweep)}/{name}")

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
        """Names of a sweep's files of rows, and their rows; what cannot be read is set aside."""
        for _ in range(RETRIES):
            names: list[str] = []
            tables: list[pa.Table] = []
            try:
                for info in self._list(self._results(sweep)):
                    name = info.base_name
                    if name.startswith(prefix) and name.endswith(".parquet"):
                        content = self._read(info.path)
                        with contextlib.suppress(*_BROKEN):
                            tables.append(_aged(_table(content, columns), name))
                            names.append(name)
                            if len(tables) == 200:  # a table of one row takes 80 kB
                                tables = [_merged(tables)]
                            continue
                        self._set_aside(info.path)
                return names, tables
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

    def save_sweep(self, sweep: str, content: str) -> None:
        """Keep the sweep as it was run, beside its results."""
        self._write(f"{self._sweep(sweep)}/sweep.yaml", content.encode())

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
                f"{advice.command('run', where={'store': self.root})} runs it, or name the store "
                "that has them with --store"
            )
        return outline

    def sweeps(self) -> list[str]:
        """Names of the sweeps in this store."""
        return sorted(f.base_name for f in self._list("sweeps"))

    def fail(self, sweep: str, key: str, failure: Mapping[str, Any]) -> None:
        """Record that a cell did not finish: status, error, run."""
        path = f"{self._sweep(sweep)}/failures/{self._key(key)}.json"
        said = {"error": text.error(failure["error"])} if "error" in failure else {}
        self._write(path, json.dumps({**failure, **said}).encode())

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


def _merged(tables: list[pa.Table]) -> pa.Table:
    """The rows of several tables in one, their schemas in one.

    Raises:
        SweepError: Two have the same column with types that do not go together.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SweepError(
            f"store: the rows of a sweep cannot be read as one table ({error}); move the older "
            "files out of its results folder and run the sweep again"
        ) from error


def _once(table: pa.Table) -> pa.Table:
    """Each cell once: the row that counts."""

    def content(place: int) -> str:
        return str(sorted(table.slice(place, 1).to_pylist()[0].items()))

    keys, states, ages = (table[name].to_pylist() for name in ("key", "status", _AGE))
    counting = _counting(keys, states, ages, content)
    return table if len(counting) == len(table) else table.take(sorted(counting.values()))


def _age(name: str) -> int:
    """How new the rows of a file are, by its name: a part the newest, a compaction its number."""
    match = _COMPACT.fullmatch(name)
    return min(int(match[1]), _NEWEST - 1) if match else _NEWEST


def _aged(table: pa.Table, name: str) -> pa.Table:
    """A table with the age of its file as a column."""
    return table.append_column(_AGE, pa.array([_age(name)] * len(table), pa.int64()))


def _parts(files: Sequence[pafs.FileInfo]) -> list[tuple[re.Match[str], pafs.FileInfo]]:
    """The parts that hold something, and (key, state) of each."""
    matches = ((_PART.fullmatch(info.base_name), info) for info in files if info.size)
    return [(match, info) for match, info in matches if match]


_NONE = pa.table({"key": pa.array([], pa.string()), "status": pa.array([], pa.string())})
_NONE = _aged(_NONE, "")
"""No rows."""


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
