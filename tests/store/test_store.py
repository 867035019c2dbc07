"""Artifacts and rows: what is written is read, nothing half-written counts, nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from sweeper.core import rows
from sweeper.core.errors import SweepError
from sweeper.store import ledger
from sweeper.store.artifacts import DamagedError, Store
from sweeper.store.claim import claimed
from sweeper.store.ledger import Ledger
from sweeper.tables import results
from tests.support.full_disk import Breaking
from tests.support.places import ROOT

KEY, OTHER = "0123456789abcdef0123", "fedcba9876543210ffff"
TENSORS: dict[str, dict[str, Tensor]] = {
    "model": {
        "float32": torch.tensor([[1.5, float("nan"), float("inf"), -0.0]]),
        "int64": torch.tensor([-(2**62), 2**62]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "bf16": torch.randn(3, 4, 5).to(torch.bfloat16),
        "float64": torch.tensor([1e-300], dtype=torch.float64),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12.0).reshape(3, 4).t(),
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    },
    "state": {"one": torch.ones(1)},
}


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def files(store: Store) -> list[str]:
    root = Path(store.root)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# Artifacts


def test_an_artifact_comes_back_bit_for_bit(store: Store) -> None:
    meta = {"acc": 0.1 + 0.2, "none": None, "losses": [1e-9, 2.5], "words": "naïve"}
    store.put("train", KEY, TENSORS, meta)
    found = store.get("train", KEY)
    assert found.meta == meta == store.meta("train", KEY)
    assert found.tensors.keys() == TENSORS.keys()
    for name, group in TENSORS.items():
        assert found.tensors[name].keys() == group.keys()
        for key, tensor in group.items():
            other = found.tensors[name][key]
            assert other.dtype == tensor.dtype and other.shape == tensor.shape, key
            assert bits(other) == bits(tensor), f"{key} is the same in every bit"


def test_an_artifact_without_tensors(store: Store) -> None:
    store.put("defend", KEY, {}, {"row": {"acc": 0.5}})
    assert store.has("defend", KEY) and not store.has("train", KEY)
    assert store.get("defend", KEY).tensors == {}
    assert files(store) == [f"artifacts/defend/{KEY}/manifest.json"]
    assert store.keys("defend") == {KEY} and store.keys("train") == set()


def test_a_second_writer_replaces_an_artifact(store: Store) -> None:
    store.put("train", KEY, TENSORS, {"try": 1})
    store.put("train", KEY, {"model": {"w": torch.zeros(2)}}, {"try": 2})
    assert store.meta("train", KEY) == {"try": 2}
    assert store.get("train", KEY).tensors["model"]["w"].tolist() == [0, 0]


def tensor_file(store: Store) -> Path:
    return next(Path(store.root, "artifacts", "train", KEY).glob("model-*.safetensors"))


def flip(store: Store) -> None:
    content = bytearray(tensor_file(store).read_bytes())
    content[-1] ^= 1
    tensor_file(store).write_bytes(content)


def truncate(store: Store) -> None:
    tensor_file(store).write_bytes(tensor_file(store).read_bytes()[:-10])


def remove(store: Store) -> None:
    tensor_file(store).unlink()


def manifest(store: Store) -> Path:
    return Path(store.root, "artifacts", "train", KEY, "manifest.json")


def write_manifest(text: str) -> Callable[[Store], None]:
    def write(store: Store) -> None:
        manifest(store).write_text(text)

    return write


def point_outside(store: Store) -> None:
    found = json.loads(manifest(store).read_text())
    found["files"]["model"]["file"] = "../../../secret.safetensors"
    manifest(store).write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, r"model-\w+\.safetensors is damaged"),
        (truncate, r"model-\w+\.safetensors is damaged"),
        (remove, r"model-\w+\.safetensors"),
        (write_manifest(""), "manifest.json is damaged"),
        (write_manifest('{"files": {"mo'), "manifest.json is damaged"),
        (write_manifest("[]"), "manifest.json is damaged"),
        (write_manifest('{"files": {}}'), "manifest.json is damaged"),
        (write_manifest('{"files": [1], "meta": {}}'), "manifest.json is damaged"),
        (point_outside, r"secret\.safetensors is outside its folder"),
    ],
)
def test_a_damaged_artifact_is_named_and_set_aside(
    store: Store, damage: Callable[[Store], None], said: str
) -> None:
    store.put("train", KEY, TENSORS, {})
    damage(store)
    with pytest.raises(DamagedError, match=f"artifact train/{KEY}: .*{said}.*set aside"):
        store.get("train", KEY)
    assert not store.has("train", KEY) and store.keys("train") == set()
    assert all(name.startswith("damaged/artifacts-train-") for name in files(store))
    store.put("train", KEY, TENSORS, {})
    assert store.has("train", KEY), "it can be built again"


def test_a_damaged_manifest_is_found_where_only_it_is_read(store: Store) -> None:
    store.put("train", KEY, TENSORS, {})
    manifest(store).write_text("")
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        store.meta("train", KEY)
    assert not store.has("train", KEY)


def test_an_artifact_that_is_not_there(store: Store) -> None:
    with pytest.raises(DamagedError, match=f"artifact train/{KEY}"):
        store.get("train", KEY)
    assert files(store) == []


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_nothing_half_written_is_visible(
    store: Store, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store, "_fs", Breaking(store._fs, allowed))
        with pytest.raises(OSError, match="No space left"):
            store.put("train", KEY, TENSORS, {})
        patch.setattr(store, "_fs", Breaking(store._fs.inner, 0))
        with pytest.raises(OSError, match="No space left"):
            store.write_row(row())
    assert not store.has("train", KEY) and store.keys("train") == set()
    assert store.statuses("study") == {} and store.tables("study") == []
    assert len(files(store)) == allowed, "files without a manifest are no artifact"
    assert not [name for name in files(store) if name.endswith((".part", ".json", ".parquet"))]


def test_a_killed_writer_leaves_nothing_that_counts(store: Store) -> None:
    folder = Path(store.root, "sweeps", "study", "results")
    folder.mkdir(parents=True)
    (folder / ".3f2a.part").write_bytes(b"half of a row")
    assert store.statuses("study") == {} and store.tables("study") == []
    store.write_row(row())
    store.compact("study")
    assert store.statuses("study") == {KEY: "ok"}


@pytest.mark.parametrize(
    "key",
    ["", "..", "../../../etc/passwd", "0123456789ABCDEF0123", KEY[:-1], f"{KEY}\n", f"a/{KEY}"],
)
def test_only_keys_are_keys(store: Store, key: str) -> None:
    attempts: list[Callable[[], Any]] = [
        lambda: store.put("train", key, {}, {}),
        lambda: store.get("train", key),
        lambda: store.meta("train", key),
        lambda: store.has("train", key),
        lambda: store.write_row(row(key)),
        lambda: store.fail("study", key, {}),
        lambda: store.failure("study", key),
    ]
    for attempt in attempts:
        with pytest.raises(SweepError, match="is not the key of a cell: 20 digits"):
            attempt()
    assert files(store) == []


def test_only_names_are_names(store: Store) -> None:
    for name in ("", "..", "a/b", "../x", ".hidden", "a\n", "x" * 101):
        for attempt in (store.plan, store.statuses, store.tables, store.compact):
            with pytest.raises(SweepError, match="cannot name a sweep"):
                attempt(name)
        with pytest.raises(SweepError, match="cannot name a sweep"):
            store.save_sweep(name, "")
    with pytest.raises(SweepError, match="is not a kind of cell"):
        store.put("../x", KEY, {}, {})
    assert files(store) == []


# Rows


def row(key: str = KEY, status: str = "ok", acc: float | None = 0.5, **more: Any) -> dict[str, Any]:
    made = {"sweep": "study", "key": key, "status": status, "acc": acc, "seed": 0, "oracle": False}
    return {**made, "started_at": "2026-01-01T00:00:00+00:00", **more}


def frame(store: Ledger) -> pd.DataFrame:
    return results.frame(store.tables("study")).set_index("key").sort_index()


def test_a_row_comes_back(store: Store) -> None:
    store.write_row(row(acc=1 / 3, notes='{"a": 1}', asr=None))
    found = frame(store).loc[KEY]
    assert found["acc"] == 1 / 3 and found["notes"] == '{"a": 1}' and pd.isna(found["asr"])
    assert store.statuses("study") == {KEY: "ok"}


def test_a_row_of_unknown_columns_or_state_is_refused(store: Store) -> None:
    with pytest.raises(KeyError, match="not a column of a row"):
        store.write_row(row(accuracy=1.0))
    with pytest.raises(ValueError, match="'fine' is not the state of a row"):
        store.write_row(row(status="fine"))
    assert files(store) == []


def test_any_text_can_be_stored(store: Store) -> None:
    """A lone surrogate is no UTF-8: Arrow refuses it, and the whole sweep ended there."""
    wrong = {
        name: "said \udcff"
        for name in rows.schema().names
        if rows.schema().field(name).type == pa.string()
    }
    wrong = {**wrong, **{name: row()[name] for name in ("sweep", "key", "started_at")}}
    long = "first \x1b[2J\ud800" + "x" * 50_000_000 + " last"
    store.write_row({**wrong, "status": "failed", "error": long})
    found = frame(store).loc[KEY]
    assert found["notes"] == found["device"] == found["left_behind"] == "said ?"
    assert found["error"].startswith("first [2J?xx") and found["error"].endswith(" last")
    store.fail("study", KEY, {"status": "failed", "error": long, "run": "1"})
    assert (store.failure("study", KEY) or {})["error"] == found["error"]
    assert len(found["error"]) <= 20_000
    assert all((Path(store.root) / name).stat().st_size < 60_000 for name in files(store))


def test_a_row_of_a_later_run_replaces_one_that_did_not_finish(store: Store) -> None:
    for status in ("blocked", "failed", "timeout", "failed", "diverged", "ok"):
        store.begin("study")
        store.write_row(row(status=status))
        assert store.statuses("study") == {KEY: status}
    assert len(files(store)) == 6, "nothing is deleted before a compaction"
    for status in ("failed", "timeout"):
        store.begin("study")
        store.write_row(row(status=status, acc=0.1))
        assert frame(store).loc[KEY, ["status", "acc"]].tolist() == ["ok", 0.5], "it came too late"
    store.compact("study")
    assert len(files(store)) == 1 and frame(store).loc[KEY, "acc"] == 0.5
    assert len(list(Path(store.root, "sweeps/study/results").iterdir())) == 1


def test_states_are_known_without_opening_a_row(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_row(row())
    store.write_row(row(OTHER, "failed"))
    monkeypatch.setattr(store, "_read", None)
    assert store.statuses("study") == {KEY: "ok", OTHER: "failed"}


def test_the_finished_state_counts_where_a_write_was_interrupted(store: Store) -> None:
    folder = Path(store.root, "sweeps", "study", "results")
    for first, second in (("ok", "failed"), ("failed", "ok")):
        store.write_row(row(status=first))
        content = (folder / f"{KEY}.{first}.parquet").read_bytes()
        store.write_row(row(status=second))
        (folder / f"{KEY}.{first}.parquet").write_bytes(content)
        assert store.statuses("study") == {KEY: "ok"}


def test_compacting_keeps_every_row_and_may_be_repeated(store: Store) -> None:
    for number in range(30):
        store.write_row(row(f"{number:020x}", acc=number / 30))
    before, states = frame(store), store.statuses("study")
    store.compact("study")
    once = files(store)
    assert len(once) == 1
    store.compact("study")
    assert files(store) == once, "a second time changes nothing"
    pd.testing.assert_frame_equal(frame(store), before)
    assert store.statuses("study") == states
    store.write_row(row(f"{3:020x}", acc=0.9))
    assert frame(store).loc[f"{3:020x}", "acc"] == 0.9, "a newer part counts"
    store.compact("study")
    assert frame(store).loc[f"{3:020x}", "acc"] == 0.9 and len(frame(store)) == 30


def test_compacting_nothing(store: Store) -> None:
    store.compact("study")
    assert files(store) == []


def test_an_interrupted_compaction_loses_and_doubles_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        store.write_row(row(f"{number:020x}", acc=number / 5))
    before = frame(store)

    def killed(path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_delete", killed)
        with pytest.raises(KeyboardInterrupt):
            store.compact("study")
    assert len(files(store)) == 6, "the merged file and all parts are there"
    pd.testing.assert_frame_equal(frame(store), before)
    store.write_row(row(f"{1:020x}", acc=0.9, started_at="2026-01-02T00:00:00+00:00"))
    assert frame(store).loc[f"{1:020x}", "acc"] == 0.9, "the latest row counts"
    store.compact("study")
    assert len(files(store)) == 1 and len(frame(store)) == 5
    assert frame(store).loc[f"{1:020x}", "acc"] == 0.9


def test_rows_that_cannot_be_read_are_set_aside(store: Store) -> None:
    store.write_row(row())
    folder = Path(store.root, "sweeps", "study", "results")
    (folder / f"{OTHER}.ok.parquet").write_bytes(b"")
    assert store.statuses("study") == {KEY: "ok"}, (
        "an empty file, as a power cut leaves it, is none"
    )
    (folder / f"{OTHER}.ok.parquet").write_bytes(b"PAR1 garbage")
    (folder / "compact-1.parquet").write_bytes(b"garbage")
    assert list(frame(store).index) == [KEY]
    assert store.statuses("study") == {KEY: "ok"}
    assert len([name for name in files(store) if name.startswith("damaged/sweeps-study-")]) == 3


def test_a_row_with_a_flipped_bit_stops_nothing_and_says_nothing_else(store: Store) -> None:
    store.write_row(row(notes="a value of its own"))
    folder = Path(store.root, "sweeps", "study", "results")
    whole = (folder / f"{KEY}.ok.parquet").read_bytes()
    for place in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 16
        (folder / f"{KEY}.ok.parquet").write_bytes(flipped)
        store.tables("study")
    at = whole.index(b"a value of its own")
    (folder / f"{KEY}.ok.parquet").write_bytes(whole[:at] + b"A" + whole[at + 1 :])
    assert store.tables("study") == [], "set aside: its checksum is another"


def test_parts_of_an_older_and_a_newer_schema(store: Store) -> None:
    folder = Path(store.root, "sweeps", "study", "results")
    store.write_row(row())
    whole = pq.read_table(folder / f"{KEY}.ok.parquet")
    older = whole.drop_columns(["auroc", "oracle", "started_at"])
    key = older.schema.get_field_index("key")
    older = older.set_column(key, "key", pa.array([OTHER]))
    pq.write_table(older, folder / f"{OTHER}.ok.parquet")
    newest = "a" * 20
    newer = whole.append_column("certified", pa.array([0.25]))
    newer = newer.set_column(newer.schema.get_field_index("key"), "key", pa.array([newest]))
    newer = newer.set_column(newer.schema.get_field_index("acc"), "acc", pa.array([1]))
    pq.write_table(newer, folder / f"{newest}.ok.parquet")
    for _ in range(2):
        found = frame(store)
        assert set(found.index) == {KEY, OTHER, newest} == set(store.statuses("study"))
        assert found.loc[newest, "certified"] == 0.25 and pd.isna(found.loc[KEY, "certified"])
        assert pd.isna(found.loc[OTHER, "auroc"]) and found.loc[newest, "acc"] == 1.0
        store.compact("study")
    assert len(files(store)) == 1


def test_rows_being_compacted_by_another_process_are_listed_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        store.write_row(row(f"{number:020x}"))
    read, calls = store._read, []

    def slow(path: str) -> bytes:
        calls.append(path)
        if len(calls) == 2:
            Store(store.root).compact("study")
        return read(path)

    monkeypatch.setattr(store, "_read", slow)
    assert len(frame(store)) == 4


WRITER = """
import sys
from sweeper.store.ledger import Ledger
store, start = Ledger(sys.argv[1]), int(sys.argv[2])
for number in range(start, start + 150):
    store.write_row({"sweep": "study", "key": f"{number:020x}", "status": "ok", "acc": number / 1e3,
                     "started_at": "2026-01-01T00:00:00+00:00"})
    if number % 10 == 9:
        store.compact("study")
"""


def test_two_processes_lose_nothing(store: Store) -> None:
    ran = [
        subprocess.Popen([sys.executable, "-c", WRITER, store.root, start], cwd=ROOT)
        for start in ("0", "150")
    ]
    assert [process.wait(120) for process in ran] == [0, 0]
    found = frame(store)
    assert len(found) == 300 and set(store.statuses("study").values()) == {"ok"}
    assert found["acc"].tolist() == [number / 1e3 for number in range(300)]


def test_a_store_named_by_a_uri(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/by-uri")
    assert store.local and not (tmp_path / "by-uri").exists(), "nothing is made before it is needed"
    store.put("train", KEY, TENSORS, {})
    store.write_row(row())
    store.compact("study")
    same = Store(str(tmp_path / "by-uri"))
    assert same.has("train", KEY) and same.statuses("study") == {KEY: "ok"}
    assert same.sweeps() == store.sweeps() == ["study"]


def test_a_store_that_cannot_be_reached() -> None:
    for root in ("nowhere://x/y", "http://example.org/x"):
        with pytest.raises(SweepError, match=f"store: cannot open {root}: "):
            Ledger(root)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepError, match="is a file: give --store a folder"):
        Ledger(str(tmp_path / "file"))
    below = Ledger(str(tmp_path / "file" / "below"))
    with pytest.raises(SweepError, match="store: cannot write to .*; name another place"):
        with claimed(below, "study", "one"):  # the first write of a run
            raise AssertionError("nobody runs into it")


def test_a_table_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"has no results of sweep 'study' \(it has: none\)"):
        ledger.load(str(tmp_path / "store"), "study")
    assert not (tmp_path / "store").exists(), "asking makes no folder"


def test_load_returns_the_rows_of_the_present_matrix(store: Store) -> None:
    store.write_row(row())
    store.write_row(row(OTHER))
    store.save_plan("study", {"cells": {KEY: {}}, "order": {"attack": ["badnets"]}})
    tables, order = ledger.load(store.root, "study")
    assert results.frame(tables)["key"].tolist() == [KEY] and order == {"attack": ["badnets"]}


def test_failures_are_kept_and_found(store: Store) -> None:
    assert store.failure("study", KEY) is None
    store.fail("study", KEY, {"status": "failed", "error": "x", "run": "1"})
    assert store.failure("study", KEY) == {"status": "failed", "error": "x", "run": "1"}
    Path(store.root, "sweeps", "study", "failures", f"{KEY}.json").write_text("")
    assert store.failure("study", KEY) is None


def test_every_state_is_finished_or_not() -> None:
    assert set(ledger.STATES) == set(rows.FINISHED) | set(rows.UNFINISHED)


def test_reading_leaves_no_thread_behind(tmp_path: Path) -> None:
    """A process that ends while one of Arrow's threads is at work aborts: `plan` read, and died."""
    store = Store(str(tmp_path))
    for number in range(3):
        store.write_row({"sweep": "s", "key": f"{number:020x}", "status": "ok"})
    store.compact("s")
    store.write_samples(KEY, {"score": [0.5, 1.0]})
    code = (
        "import os, sys\nfrom sweeper.store.ledger import Ledger\n"
        "def threads(): return len(os.listdir('/proc/self/task'))\n"
        "ledger, before = Ledger(sys.argv[1]), threads()\n"
        "assert len(ledger.recent_rows(['key', 'status'], 100)) == 3\n"
        "assert len(ledger.statuses('s')) == 3 and len(ledger.samples(sys.argv[2])) == 2\n"
        "sys.exit(threads() - before)"
    )
    words = [sys.executable, "-c", code, str(tmp_path), KEY]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr or f"{ran.returncode} threads more"
