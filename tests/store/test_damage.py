"""Damaged files of a store: each is set aside under its name, and everything else is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sweeper.core import rows
from sweeper.core.errors import StoreError, SweepError
from sweeper.store import status
from sweeper.store.artifacts import DamagedError, Store

KEYS = [f"{number:020x}" for number in range(4)]
PART, MERGED, VICTIM, LOST = KEYS


def row(key: str, state: str = "ok") -> dict[str, Any]:
    return {"sweep": "study", "key": key, "status": state, "started_at": "", "acc": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    store.write_row(row(MERGED))
    store.write_row(row(VICTIM))
    store.compact("study")
    store.write_row(row(PART))
    store.put("train", VICTIM, {"model": {"w": torch.ones(3)}}, {"acc": 0.5})
    store.save_plan("study", {"cells": {PART: {}}, "order": {}})
    store.fail("study", LOST, {"status": "failed", "error": "why", "run": "one"})
    store.save_gallery("study", {PART: {}}, [("BadNets", b"picture")], ["why"])
    store.save_claim("study", {"run": "one", "who": "ada", "pid": 7, "since": "noon"})
    return store


PLACES = {
    "manifest": f"artifacts/train/{VICTIM}/manifest.json",
    "tensors": f"artifacts/train/{VICTIM}/model-*.safetensors",
    "part": f"sweeps/study/results/{PART}.ok.parquet",
    "compaction": "sweeps/study/results/compact-*.parquet",
    "plan": "sweeps/study/plan.json",
    "failure": f"sweeps/study/failures/{LOST}.json",
    "claim": "sweeps/study/driver.json",
    "gallery": "sweeps/study/gallery.json",
}
DEEP = b'{"meta": ' * 100_000
SHAPES = {
    "manifest": [b'{"files": [], "meta": {}}', b'{"files": {}, "meta": 3}', b'{"files": {"a": 1}}'],
    "plan": [b'{"cells": []}'],
    "failure": [b'{"status": "failed"}', b'{"status": 1, "error": "", "run": "one"}'],
    "gallery": [b'{"of": "", "pictures": []}'],
    "claim": [b'{"run": "one"}', b'{"run": "one", "who": "", "pid": "7", "since": ""}'],
}
"""JSON that is not what was written."""


def parquet(*given: dict[str, Any]) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(given), schema=rows.schema()), buffer)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


TABLES = {
    "part": [
        parquet(row(PART, "splendid")),
        parquet(row(PART, "failed")),
        parquet(row(LOST)),
        parquet(row(PART), row(LOST)),
        parquet(),
    ],
    "compaction": [parquet(row(MERGED), row(VICTIM, "splendid")), parquet({"key": MERGED})],
}
"""Rows that are not what was written."""


def found(store: Store, kind: str) -> Path:
    (path,) = Path(store.root).glob(PLACES[kind])
    return path


def cases() -> list[Any]:
    every = [
        (kind, content)
        for kind in PLACES
        for content in (b"", b"\x00\xff", DEEP, *SHAPES.get(kind, ()), *TABLES.get(kind, ()))
        if not (kind == "tensors" and content == DEEP)
    ]
    return [
        pytest.param(kind, content, id=f"{kind}-{n}") for n, (kind, content) in enumerate(every)
    ]


def quietly(look: Callable[[], Any]) -> Any:
    """What a look gives; nothing where it says in words that something is damaged or missing."""
    try:
        return look()
    except (DamagedError, SweepError):
        return None


@pytest.mark.parametrize(("kind", "content"), cases())
def test_what_is_damaged_is_set_aside_and_the_rest_is_read(
    store: Store, kind: str, content: bytes
) -> None:
    path = found(store, kind)
    path.write_bytes(content)
    if kind == "tensors":  # written so by whoever wrote the manifest: its hash says it is right
        manifest = found(store, "manifest")
        said = json.loads(manifest.read_text())
        said["files"]["model"]["sha256"] = hashlib.sha256(content).hexdigest()
        manifest.write_text(json.dumps(said))
    for again in range(2):
        there = {
            "tensors": quietly(lambda: store.get("train", VICTIM).tensors["model"]["w"].tolist()),
            "manifest": store.about("train", VICTIM),
            "recent": store.recent("train", 5),
            "rows": {r["key"] for table in store.tables("study") for r in table.to_pylist()},
            "recent rows": {r["key"] for r in store.recent_rows(["key", "status"], 9)},
            "states": set(store.statuses("study")),
            "columns": set(store.columns("study", ["acc"])),
            "plan": quietly(lambda: store.plan("study")),
            "status": quietly(lambda: status.status(store, "study")["total"]),
            "failure": store.failure("study", LOST),
            "claim": store.claim("study"),
            "gallery": store.gallery("study", {PART: {}}),
        }
        lost = {"part": {PART}, "compaction": {MERGED, VICTIM}}.get(kind, set())
        whole = {MERGED, VICTIM, PART} - lost
        assert there["rows"] == there["columns"] == there["recent rows"] == whole
        assert there["states"] == whole or not again, "a name alone may say more at first"
        gone = {"manifest": {"manifest", "tensors"}, "tensors": {"manifest", "tensors"}}
        for what in ("manifest", "tensors", "plan", "failure", "claim", "gallery"):
            assert (there[what] is None) == (what in gone.get(kind, {kind})), what
        store.compact("study")
    (aside,) = {p.name.rpartition("-")[0] for p in Path(store.root, "damaged").iterdir()}
    folder = path.parent if kind in ("manifest", "tensors") else path
    assert aside == str(folder.relative_to(store.root)).replace("/", "-")
    assert store.aside == [str(folder.relative_to(store.root))], "and is named"
    if kind == "plan":
        with pytest.raises(SweepError, match=r"could not be read and was moved to damaged/"):
            store.plan("study")


def test_who_may_only_read_a_store_reads_what_is_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(store, "part").write_bytes(b"garbage")

    def refused(*_: Any) -> bool:
        raise StoreError("Read-only file system")

    monkeypatch.setattr(store, "_move", refused)
    (table,) = store.tables("study")
    assert set(table["key"].to_pylist()) == {MERGED, VICTIM}
    assert store.foreign == {str(found(store, "part").relative_to(store.root))}
