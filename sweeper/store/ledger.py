"""Rows of a store: written one part a cell, listed, compacted, read back. No torch.

    sweeps/<sweep>/results/     files of rows, see `sweeper.store.rowfiles`

A row is there once a file that has it is. The next run enters the row of a part that cannot be read
again. Several rows of one cell may be there (a node that was given up answered after all, a
compaction was interrupted, nothing deletes what a part beats): `rowfiles.rank` says which counts.
"""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from sweeper.core import rows
from sweeper.core.errors import SweepError
from sweeper.plan.source import NAME
from sweeper.store import rowfiles
from sweeper.store.rowfiles import KEY, STATES, RowFile
from sweeper.store.sweeps import Sweeps

CHECKPOINT = "checkpoint"
"""Kind of the artifact a training leaves on its way."""
RETRIES = 20
"""How often rows are listed anew while another process compacts them."""
_CHUNK = 200
"""How many files are read before their rows are merged: a table of one row takes 80 kB."""


@dataclass(frozen=True)
class _Survey:
    """What is known of a sweep's rows."""

    files: list[RowFile]
    """All that are ours."""
    table: pa.Table
    """The rows that were read, with their ages."""
    parts: list[RowFile]
    """The parts that count beside the rows of other files."""


def _every(parts: list[RowFile]) -> list[RowFile]:
    return parts


def _none(parts: list[RowFile]) -> list[RowFile]:
    return []


class Ledger(Sweeps):
    """The rows of one store, and the sweeps they are of."""

    def __init__(self, root: str, number: int | None = None) -> None:
        """Open a store.

        Args:
            root: See `Files`.
            number: Of the run whose rows are written, see `begin`; None: of no run.
        """
        super().__init__(root)
        self.number = number

    def keys(self, kind: str) -> set[str]:
        """Keys of the artifacts of a kind that are there, by one listing."""
        paths = [info.path for info in self._list(f"artifacts/{kind}", recursive=True)]
        keys = {path.split("/")[-2] for path in paths if path.endswith("/manifest.json")}
        return {key for key in keys if KEY.fullmatch(key)}

    def _artifact(self, kind: str, key: str) -> str:
        if not kind.isalpha():
            raise SweepError(f"{kind!r} is not a kind of cell")
        folder = "checkpoints" if kind == CHECKPOINT else f"artifacts/{kind}"
        return f"{folder}/{self._key(key)}"

    def log(self, sweep: str, kind: str, key: str) -> str:
        """What a cell said when it ran, of any sweep; where it failed, in this one.

        It lies in what the cell left, so it is there, replaced and gone with that.
        """
        kept = self.left(kind, key) or self.failure(sweep, key) or {}
        return str(kept.get("log") or "")

    def left(self, kind: str, key: str) -> dict[str, Any]:
        """What a cell says of what it left, as JSON values; empty where it left nothing."""
        meta = self._said(f"{self._artifact(kind, key)}/manifest.json").get("meta")
        return meta if isinstance(meta, dict) else {}

    # Rows

    def begin(self, sweep: str) -> int:
        """Number what is written from now on above all rows there are.

        Only the driver of a sweep does; its workers are told the number.
        """
        if any(file.age == rowfiles.NEWEST for file in self._files(sweep)):
            self.compact(sweep)  # rows of no run would be newer than those of this one
        self.number = 1 + rowfiles.latest(self._files(sweep))
        return self.number

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Write one row, in one request; it may count less than another of its cell."""
        path = f"{self._parts(row['sweep'])}/{self._key(row['key'])}.{row['status']}.parquet"
        content = rowfiles.encoded(_checked([row]), one=True)
        self._write(path, content, durable=False)  # lost with the power, it is entered again

    def write_rows(self, sweep: str, group: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of a sweep as one file; nothing where there are none."""
        if group:
            path = f"{self._parts(sweep)}/rows-{uuid.uuid4().hex}.parquet"
            self._write(path, rowfiles.encoded(_checked(group)), durable=False)

    def statuses(self, sweep: str) -> dict[str, str]:
        """Key -> status of every row of a sweep, by listings and the files of several rows."""
        found = self._survey(sweep, ["key", "status"], _none)
        known = rowfiles.once(found.table)
        states = dict(zip(known["key"].to_pylist(), known["status"].to_pylist(), strict=True))
        return states | {part.key: part.status for part in found.parts}

    def tables(self, sweep: str) -> list[pa.Table]:
        """The rows of a sweep, each cell once, as tables that may differ in their columns."""
        found = rowfiles.once(self._survey(sweep).table)
        return [found.drop_columns(rowfiles.AGE)] if len(found) else []

    def columns(
        self, sweep: str, names: Sequence[str], parts: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Key -> these columns of its row; null where an older row lacks one.

        Args:
            sweep: Its name.
            names: Columns.
            parts: How many rows not yet compacted are read at most, the oldest; default: all.
        """
        wanted = [*dict.fromkeys(["key", "status", *names])]
        found = self._survey(sweep, wanted, lambda files: _by_time(files)[:parts])
        return {row["key"]: row for row in _plain(found.table, wanted)}

    def recent_rows(self, columns: Sequence[str], parts: int) -> list[dict[str, Any]]:
        """These columns of the rows of all sweeps, one row a cell; null where a row has none.

        Args:
            columns: Names, `key` and `status` among them.
            parts: How many rows not yet compacted are read at most, the newest.
        """
        names = [name for name in self.sweeps() if NAME.fullmatch(name)]
        found = [self._survey(name, columns, _none) for name in names]
        single = _by_time([part for survey in found for part in survey.parts])
        look = functools.partial(self._glance, columns)
        read = self._each(look, single[max(0, len(single) - parts) :])
        tables = [*(survey.table for survey in found), *filter(None, read)]
        return _plain(rowfiles.merged([rowfiles.NOTHING, *tables]), columns)

    def compact(self, sweep: str) -> None:
        """Merge the rows of a sweep into one file; safe to interrupt, to repeat, and at once.

        It is numbered after those it read: what it does not have came after it, or is newer. An
        object store deletes parts a folder at a time, so it keeps those of the last run until the
        next compaction: one that came while this one read is in there.
        """
        found = self._survey(sweep)
        several = [file for file in found.files if not file.key]
        if found.parts or len(several) > 1 or not all(file.compact for file in several):
            table = rowfiles.merged([rows.schema().empty_table(), rowfiles.once(found.table)])
            number = 1 + rowfiles.latest(found.files)
            name = f"compact-{number}-{uuid.uuid4().hex[:8]}.parquet"  # another may have its number
            content = rowfiles.encoded(table.drop_columns(rowfiles.AGE))
            self._write(f"{self._results(sweep)}/{name}", content)
            self._each(self._delete, [file.path for file in several])
        self._clear(found.files)

    def _clear(self, files: Sequence[RowFile]) -> None:
        """Delete the parts among files, which were compacted."""
        folders: dict[str, list[RowFile]] = defaultdict(list)
        for file in files:
            if not file.compact:
                folders[file.folder].append(file)
        older = max((file.age for file in files if file.compact), default=0)
        for folder, inside in folders.items():
            paths, age = [file.path for file in inside], inside[0].age
            if age == rowfiles.NEWEST:
                self._each(self._delete, paths)
            elif self.local or age < older:
                strange = any(path.startswith(f"{folder}/") for path in self.foreign)
                self._delete_folder(folder, paths, whole=not strange)

    def _glance(self, columns: Sequence[str] | None, file: RowFile) -> pa.Table | None:
        """The rows of a file; None where it cannot be read, or is gone."""
        with contextlib.suppress(FileNotFoundError):
            return self._open(columns, file)
        return None

    def write_samples(self, key: str, columns: Mapping[str, Any]) -> None:
        """Keep what a defense cell says of each training sample: `samples/<key>.parquet`."""
        content = rowfiles.encoded(pa.table(dict(columns)))
        self._write(f"samples/{self._key(key)}.parquet", content, durable=False)

    def samples(self, key: str) -> pa.Table | None:
        """What `write_samples` kept of a cell; None where its defense scores no samples."""
        try:
            return rowfiles.decoded(self._read(f"samples/{self._key(key)}.parquet"))
        except FileNotFoundError:
            return None

    def _survey(
        self,
        sweep: str,
        columns: Sequence[str] | None = None,
        choose: Callable[[list[RowFile]], list[RowFile]] = _every,
    ) -> _Survey:
        """The rows of a sweep that may count; parts that others beat are not read.

        Args:
            sweep: Its name.
            columns: Which columns are read, `key` and `status` among them; default: all.
            choose: Which parts that count are read, of all that do.
        """
        for _ in range(RETRIES):
            with contextlib.suppress(FileNotFoundError):  # another process compacts meanwhile
                files = self._files(sweep)
                held = self._read_files([file for file in files if not file.key], columns)
                if held is None:
                    continue
                parts = rowfiles.unbeaten(held, [file for file in files if file.key])
                single = self._read_files(choose(parts), columns)
                if single is not None:
                    return _Survey(files, rowfiles.merged([held, single]), parts)
        raise SweepError(
            f"store {self.root}: the rows of {sweep} are being rewritten all the time: stop the "
            "other runs of this sweep"
        )

    def _files(self, sweep: str) -> list[RowFile]:
        """The files of a sweep's rows; what else lies there is noted and left alone."""
        places: list[tuple[int | None, pafs.FileInfo]] = []
        for info in self._list(self._results(sweep)):
            match = None if info.is_file else rowfiles.FOLDER.fullmatch(info.base_name)
            inside = self._list(info.path) if match else [info]
            places += [(rowfiles.bounded(match[1]) if match else None, item) for item in inside]
        found = []
        for number, info in places:
            file = rowfiles.row_file(info, number)
            if file is None:
                self.foreign.add(info.path)
            elif not info.size:  # as a power cut leaves it
                self._set_aside(info.path)
            elif info.path not in self.foreign:
                found.append(file)
        return found

    def _read_files(
        self, files: Sequence[RowFile], columns: Sequence[str] | None
    ) -> pa.Table | None:
        """The rows of files, with their ages; None where one was not what it seemed."""
        tables, open_ = [rowfiles.NOTHING], functools.partial(self._open, columns)
        for start in range(0, len(files), _CHUNK):
            found = self._each(open_, files[start : start + _CHUNK])
            read = [table for table in found if table is not None]
            if len(read) < len(found):
                return None
            tables.append(rowfiles.merged(read))
        return rowfiles.merged(tables)

    def _open(self, columns: Sequence[str] | None, file: RowFile) -> pa.Table | None:
        """The rows of a file; None where it is not ours, or damaged and set aside."""
        content = self._read(file.path)
        with contextlib.suppress(*rowfiles.BROKEN):
            table = rowfiles.decoded(content, columns)
            if not rowfiles.ours(table):
                self.foreign.add(file.path)
                return None
            if rowfiles.whole(table, file):
                return rowfiles.aged(table, file.age)
        self._set_aside(file.path)
        return None

    def _results(self, sweep: str) -> str:
        return f"{self._sweep(sweep)}/results"

    def _parts(self, sweep: str) -> str:
        results = self._results(sweep)
        return results if self.number is None else f"{results}/parts-{self.number}"


def _checked(group: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table.

    Raises:
        ValueError: One is in no state of a row.
        KeyError: One has a column no row has.
    """
    for row in group:
        if row["status"] not in STATES:
            raise ValueError(f"{row['status']!r} is not the state of a row: {', '.join(STATES)}")
    return rows.table(group)


def _by_time(parts: Sequence[RowFile]) -> list[RowFile]:
    """Parts, the oldest first by the clock of the store."""
    return sorted(parts, key=lambda part: part.mtime)


def _plain(table: pa.Table, columns: Sequence[str]) -> list[dict[str, Any]]:
    """These columns of the rows that count; null where there is no such column."""
    found = rowfiles.once(table).to_pylist()
    return [{name: row.get(name) for name in columns} for row in found]


def load(root: str, sweep: str) -> tuple[list[pa.Table], dict[str, list[str]]]:
    """Return the row tables of a sweep's present matrix, and the order of its labels.

    Rows of cells the sweep no longer has (another recipe, an attack taken out) stay in the store
    and are left out here.

    Raises:
        SweepError: The sweep has not been run into this store.
    """
    ledger = Ledger(root)
    outline = ledger.plan(sweep)
    tables = [rowfiles.among(table, outline["cells"]) for table in ledger.tables(sweep)]
    return tables, outline.get("order", {})
