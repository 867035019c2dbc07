"""The folder belongs to the user: what is not ours is left alone, and named once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeper.core import rows
from sweeper.store.ledger import Ledger
from sweeper.tables import results

KEY, OTHER = f"{1:020x}", f"{2:020x}"
THEIRS = pa.table({"name": ["mine"], "value": [1.5]})
NAMES = {
    "export.parquet": THEIRS,
    "notes.parquet": pa.table({"key": [KEY], "status": ["ok"], "acc": [0.1]}),
    "compact.parquet": THEIRS,
    "compact-7.parquet": THEIRS,
    "compact-8.parquet": pa.table({"key": [1], "status": [2]}),
    "rows-of-mine.parquet": THEIRS,
    f"{OTHER}.ok.parquet": THEIRS,
    f"{KEY}.splendid.parquet": THEIRS,
    "readme.txt": None,
    "parts-9": None,
}
"""What a user may put there: tables, text, and a folder where a file is expected."""


def row(key: str = KEY, status: str = "ok") -> dict[str, Any]:
    return {"sweep": "study", "key": key, "status": status, "acc": 0.5, "started_at": ""}


def put(folder: Path, name: str) -> None:
    table = NAMES[name]
    if table is not None:
        pq.write_table(table, folder / name)
    else:
        (folder / name).write_text("not a table")


@pytest.mark.parametrize("below", ["", "parts-1"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_the_user_is_left_alone_and_named(tmp_path: Path, name: str, below: str) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.begin("study")
    ledger.write_row(row())
    ledger.write_row(row(f"{3:020x}", "failed"))
    folder = tmp_path / "sweeps/study/results" / below
    put(folder, name)
    content = (folder / name).read_bytes()
    for _ in range(3):
        found = results.frame(ledger.tables("study")).set_index("key")["status"].to_dict()
        assert found == {KEY: "ok", f"{3:020x}": "failed"} == ledger.statuses("study")
        assert len(ledger.recent_rows(["key", "status"], 9)) == 2
        assert ledger.columns("study", ["acc"])[KEY]["acc"] == 0.5
        ledger.begin("study")
        ledger.compact("study")
    assert (folder / name).read_bytes() == content
    where = "/".join(filter(None, ["sweeps/study/results", below, name]))
    assert ledger.foreign == {where} and ledger.aside == []
    assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize(
    "name", ["compact-1.parquet", f"{KEY}.ok.parquet", "more", "a.parquet", "rows-1.parquet"]
)
def test_a_folder_of_the_user_is_left_alone_and_not_looked_into(tmp_path: Path, name: str) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.write_row(row(OTHER))
    inside = tmp_path / "sweeps/study/results" / name
    inside.mkdir()
    pq.write_table(rows.table([row()]), inside / f"{KEY}.ok.parquet")
    for _ in range(2):
        assert ledger.statuses("study") == {OTHER: "ok"}
        assert results.frame(ledger.tables("study"))["key"].tolist() == [OTHER]
        ledger.compact("study")
    assert os.listdir(inside) == [f"{KEY}.ok.parquet"]
    assert ledger.foreign == {f"sweeps/study/results/{name}"}
