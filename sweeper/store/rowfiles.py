"""Files of rows: their names, their content, and which of several rows of a cell counts. No I/O.

    results/parts-<n>/<key>.<status>.parquet    a part: one row, written by the run of number n
    results/parts-<n>/rows-<any>.parquet        rows its driver wrote or was told of
    results/compact-<m>-<any>.parquet           a compaction: all rows of lower numbers
    results/<key>.<status>.parquet, rows-<any>.parquet      of no run; newer than all others

Numbers say what is newer, and no clock is asked: those of two machines differ.

`pyarrow.array` imports pandas, which takes twice as long as `sweeper status`: what every reader
runs makes no array of Python's values.
"""

from __future__ import annotations

import array
import datetime
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sweeper.core import rows
from sweeper.core.errors import SweepError

KEY = re.compile(r"[0-9a-f]{20}")
"""The key of a cell."""
STATES = (*rows.UNFINISHED, *reversed(rows.FINISHED))
"""The states of a row, those that count less first."""
NEWEST = 2**63 - 1
"""The age of the rows of no run; that of others is their number."""
AGE = "_age"
"""The column that says how new a row is, while rows are chosen."""
BROKEN = (pa.ArrowException, OSError, ValueError)
"""What decoding a damaged file raises."""
FOLDER = re.compile(r"parts-(\d+)")
"""The folder of a run's parts."""
_PART = re.compile(rf"({KEY.pattern})\.({'|'.join(STATES)})\.parquet")
_COMPACT = re.compile(r"compact-(\d+)(-.*)?\.parquet")
_MANY = re.compile(r"rows-.*\.parquet")
_FORMAT: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
_ONE = {"compression": "none", "use_dictionary": False, "write_statistics": False}
"""How a part is written: one row has no use for more, and is sooner read without."""

Rank = tuple[bool, int, int]


@dataclass(frozen=True)
class RowFile:
    """A file of rows."""

    path: str
    """Where it lies in the store."""
    age: int
    """Its number, or that of its folder."""
    mtime: datetime.datetime
    """When it was written, by the clock of the store."""
    key: str = ""
    """Of a part: the cell."""
    status: str = ""
    """Of a part: the state of its row."""
    compact: bool = False
    """Whether it is a compaction."""

    @property
    def folder(self) -> str:
        """The folder it lies in."""
        return self.path.rpartition("/")[0]


def row_file(info: pafs.FileInfo, number: int | None) -> RowFile | None:
    """What a file is by its name; None where it is not ours.

    Args:
        info: The file.
        number: Of the folder of parts it lies in; None: in `results/` itself.
    """
    if not info.is_file:
        return None
    age, name = NEWEST if number is None else number, info.base_name
    if match := _PART.fullmatch(name):
        return RowFile(info.path, age, info.mtime, match[1], match[2])
    if _MANY.fullmatch(name):
        return RowFile(info.path, age, info.mtime)
    if number is None and (match := _COMPACT.fullmatch(name)):
        return RowFile(info.path, bounded(match[1]), info.mtime, compact=True)
    return None


def bounded(digits: str) -> int:
    """A number of a name; what is larger than any of ours counts as the largest."""
    return min(int(digits), NEWEST - 1)


def latest(files: Iterable[RowFile]) -> int:
    """The largest number among files, 0 where none has one."""
    return max((file.age for file in files if file.age != NEWEST), default=0)


# Content


def encoded(table: pa.Table, *, one: bool = False) -> bytes:
    """A table as a Parquet file.

    Args:
        table: The rows.
        one: Whether it is a part.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, **(_FORMAT | _ONE if one else _FORMAT))
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def decoded(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file in this thread alone.

    Arrow's threads outlive the read, and a process that ends meanwhile may abort (Arrow 34314).
    """
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    return file.read(columns and list(columns), use_threads=False)


def ours(table: pa.Table) -> bool:
    """Whether a table has the columns every row of ours has."""
    places = [table.schema.get_field_index(name) for name in ("key", "status")]
    return all(place >= 0 and table.field(place).type == pa.string() for place in places)


def whole(table: pa.Table, file: RowFile) -> bool:
    """Whether a file holds what its name says, in states that are known."""
    if file.key:
        named = {"key": file.key, "status": file.status}
        return bool(table.select(["key", "status"]).to_pylist() == [named])
    return set(table["status"].to_pylist()) <= set(STATES)


def among(table: pa.Table, keys: Collection[str]) -> pa.Table:
    """The rows of these cells."""
    import pyarrow.compute as pc

    return table.filter(pc.is_in(table["key"], pa.array(sorted(keys), pa.string())))


def aged(table: pa.Table, age: int) -> pa.Table:
    """A table with the age of its file as a column."""
    content = pa.py_buffer(array.array("q", [age]) * len(table))
    return table.append_column(AGE, pa.Array.from_buffers(pa.int64(), len(table), [None, content]))


NOTHING = aged(pa.table([pa.nulls(0, pa.string())] * 2, ["key", "status"]), 0)
"""No rows."""


def merged(tables: Sequence[pa.Table]) -> pa.Table:
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


# Which row counts


def rank(status: str, age: int) -> Rank:
    """What decides which of several rows of a cell counts: the greatest.

    A finished row beats an unfinished one, a newer file an older. What is equal in all this is one
    state of one run; there the contents decide.
    """
    return status in rows.FINISHED, age, STATES.index(status)


def counting(
    keys: Sequence[str],
    states: Sequence[str],
    ages: Sequence[int],
    content: Callable[[int], str] | None = None,
) -> dict[str, int]:
    """Key -> place of the row that counts, among rows given by column.

    Args:
        keys: Of the cells.
        states: Of the rows.
        ages: Of the rows.
        content: What decides between equal ranks, of a place; default: the first place.
    """
    best: dict[str, tuple[Rank, int]] = {}
    for place, (key, status, age) in enumerate(zip(keys, states, ages, strict=True)):
        mine = rank(status, age)
        other, there = best.get(key, ((False, -1, -1), place))
        decide = content if mine == other else None
        if mine > other or (decide and decide(place) > decide(there)):
            best[key] = mine, place
    return {key: place for key, (_, place) in best.items()}


def once(table: pa.Table) -> pa.Table:
    """Each cell once: the row that counts."""

    def content(place: int) -> str:
        return str(sorted(table.slice(place, 1).to_pylist()[0].items()))

    best = counting(*_columns(table), content)
    return table if len(best) == len(table) else table.take(sorted(best.values()))


def unbeaten(held: pa.Table, parts: Sequence[RowFile]) -> list[RowFile]:
    """The parts that count, beside rows that have been read; their names say so."""
    keys, states, ages = _columns(held)
    best = counting(
        [*keys, *(part.key for part in parts)],
        [*states, *(part.status for part in parts)],
        [*ages, *(part.age for part in parts)],
    )
    return [parts[place - len(keys)] for place in best.values() if place >= len(keys)]


def _columns(table: pa.Table) -> tuple[list[str], list[str], list[int]]:
    keys, states, ages = (table[name].to_pylist() for name in ("key", "status", AGE))
    return keys, states, ages
