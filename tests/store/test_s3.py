"""The store on S3: a real server process, a driver killed, the same command again, the table."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from sweeper.core.errors import StoreError, SweepError
from sweeper.store.artifacts import DamagedError, Store
from sweeper.store.claim import claimed
from sweeper.store.contents import Contents
from sweeper.store.garbage import Garbage
from sweeper.store.ledger import Ledger
from tests.support import s3, sweeps

pytest.importorskip("moto", reason="pip install 'moto[s3,server]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
KEY = "0123456789abcdef0123"
TENSORS = {"model": {"weight": torch.arange(10.0)}}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.CREDENTIALS.items():
            patch.setenv(name, value)
        with s3.server(tmp_path_factory.mktemp("s3") / "log") as found:
            yield found


def below(uri: str, folder: str) -> str:
    return uri.replace("/sweeps?", f"/{folder}?")


def objects(uri: str) -> list[str]:
    fs, path = pafs.FileSystem.from_uri(uri)
    found = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(f"{path}/") for info in found if info.is_file)


def test_artifacts_and_rows(uri: str) -> None:
    store = Store(below(uri, "unit"))
    assert not store.local and store.statuses("study") == {} and not store.has("train", KEY)
    store.put("train", KEY, TENSORS, {"acc": 0.5})
    assert store.keys("train") == {KEY}
    assert (store.get("train", KEY).tensors["model"]["weight"] == torch.arange(10.0)).all()
    row = {"sweep": "study", "status": "ok", "started_at": "2026"}
    for number in range(3):
        store.write_row({**row, "key": f"{number:020x}", "acc": number / 3})
    store.begin("study")
    store.write_row({**row, "key": f"{0:020x}", "status": "failed"})
    store.write_row({**row, "key": f"{3:020x}", "status": "failed"})
    before = store.statuses("study")
    assert sorted(before.values()) == ["failed", "ok", "ok", "ok"], "a late failure takes no row"
    store.compact("study")
    assert store.statuses("study") == before and store.sweeps() == ["study"]
    store.compact("study")
    assert store.statuses("study") == before
    assert len([name for name in objects(store.root) if "/results/" in name]) == 1
    claim = {"run": "one", "who": "ada", "pid": 7, "since": "noon"}
    store.save_claim("study", claim)
    assert store.claim("study") == claim and store.activity("study") is not None
    store.drop_claim("study")
    assert store.claim("study") is None


def test_a_damaged_artifact_is_set_aside(uri: str) -> None:
    store = Store(below(uri, "damage"))
    store.put("train", KEY, TENSORS, {})
    (tensors,) = [name for name in objects(store.root) if name.endswith(".safetensors")]
    store._write(tensors, b"not what was written")
    with pytest.raises(DamagedError, match="is damaged; set aside"):
        store.get("train", KEY)
    assert not store.has("train", KEY) and store.keys("train") == set()
    assert len(objects(store.root)) == 2
    assert all(name.startswith("damaged/artifacts-train-") for name in objects(store.root))
    store.put("train", KEY, TENSORS, {})
    assert store.get("train", KEY).meta == {}


def test_a_checkpoint_replaces_the_one_before_and_goes(uri: str) -> None:
    store = Store(below(uri, "checkpoints"))
    assert not store.has("checkpoint", KEY)
    for epoch in (1, 2):
        store.checkpoint(KEY, {"0": torch.full((3,), epoch)}, {"epoch": epoch})
        assert store.get("checkpoint", KEY).meta == {"epoch": epoch}
        assert len(objects(store.root)) == 2
    for _ in range(2):
        store.drop_checkpoint(KEY)
        assert not store.has("checkpoint", KEY) and not objects(store.root)


def test_a_refused_write_leaves_what_was_there(uri: str) -> None:
    """The cleaning up after it deleted the good object that was to be replaced."""
    store = Store(below(uri, "refused"))
    store.put("train", KEY, TENSORS, {"try": 1})
    store.save_plan("study", {"cells": {}})
    before = objects(store.root)
    s3.behave(uri, refuse="PUT")
    try:
        for again in range(2):
            with pytest.raises(StoreError, match=r"\(store s3://bucket/refused"):
                store.put("train", KEY, {"model": {"weight": torch.zeros(3)}}, {"try": 2})
            with pytest.raises(StoreError):
                store.save_plan("study", {"cells": {KEY: {}}})
            with pytest.raises(StoreError):
                store.write_row({"sweep": "study", "key": KEY, "status": "ok"})
            assert objects(store.root) == before, again
    finally:
        s3.behave(uri)
    assert store.meta("train", KEY) == {"try": 1} and store.plan("study") == {"cells": {}}
    assert (store.get("train", KEY).tensors["model"]["weight"] == torch.arange(10.0)).all()


def rows_of(uri: str, folder: str, count: int) -> Store:
    """A store in whose first run so many cells ended."""
    store = Store(below(uri, folder), 1)
    for number in range(count):
        store.write_row({"sweep": "study", "key": f"{number:020x}", "status": "ok", "acc": 0.5})
    return store


def test_requests_are_few_and_under_way_together(uri: str) -> None:
    s3.seen(uri)
    store = rows_of(uri, "counted", 100)
    kinds = [word.partition(" ")[0] for word in s3.seen(uri).requests]
    assert kinds.count("PUT") == 100 and len(kinds) <= 102, "each row is one, opening two"
    s3.behave(uri, seconds=0.05)
    try:
        assert len(store.tables("study")[0]) == 100
        saw = s3.seen(uri)
        assert len(saw.requests) <= 2 * 100 + 2 and 8 < saw.most <= 60
        store.compact("study")
        assert len(s3.seen(uri).requests) <= 2 * 100 + 10
    finally:
        s3.behave(uri)
    assert len(store.tables("study")[0]) == 100
    assert len(s3.seen(uri).requests) <= 5, "what was compacted is not read again"
    store.begin("study")
    store.compact("study")
    saw = s3.seen(uri)
    assert len(saw.requests) <= 15 and any("POST" in word for word in saw.requests), "in bulk"
    assert len([name for name in objects(store.root) if name.endswith(".parquet")]) == 1
    cell = Store(store.root)
    s3.seen(uri)
    assert cell.about("defend", KEY) is None and cell.failure("study", KEY) is None
    assert not cell.has("train", KEY)
    assert len(s3.seen(uri).requests) == 3, "opened once a process, and one for each question"


def test_what_comes_after_a_compaction_is_kept(uri: str) -> None:
    """A node that was given up answers late; and the user keeps a file among the parts."""
    store = rows_of(uri, "late", 3)
    store.compact("study")
    late = Store(store.root, 1)
    late.write_row({"sweep": "study", "key": KEY, "status": "ok", "acc": 0.25})
    late._write("sweeps/study/results/parts-1/mine.parquet", b"a table of the user")
    for _ in range(3):
        store.begin("study")
        store.compact("study")
        (table,) = store.tables("study")
        assert len(table) == 4 and KEY in table["key"].to_pylist()
    left = [name for name in objects(store.root) if name.endswith(".parquet")]
    assert len(left) == 2 and "sweeps/study/results/parts-1/mine.parquet" in left
    assert store.foreign == {"sweeps/study/results/parts-1/mine.parquet"}


def test_what_nothing_needs_is_told_and_freed(uri: str) -> None:
    store = Store(below(uri, "garbage"))
    for name, number in (("old", 1), ("new", 2)):
        key = f"{number:020x}"
        store.put("train", key, TENSORS, {"params": {}})
        store.put("measure", f"{number + 2:020x}", {}, {"victim": key})
        store.write_row({"sweep": name, "status": "ok", "started_at": "2026", "key": f"{9:020x}"})
        store.save_plan(name, {"cells": {f"{9:020x}": {}}, "above": {key: "train"}})
    store._write("damaged/artifacts-train-0-1000000000000000000", b"12345")
    before = objects(store.root)
    used = Contents(store.root).usage()
    assert used["files"] == len(before) and {*used["sweeps"]} == {"old", "new"}
    garbage = Garbage(store.root)
    assert not garbage.waste().things and garbage.waste().young == 1
    told = garbage.waste(["old"]).sums()["all"]
    assert objects(store.root) == before and garbage.free(["old"]).sums()["all"] == told
    left = objects(store.root)
    assert len(before) - len(left) == told["files"] == 5
    assert Ledger(store.root).sweeps() == ["new"] and store.keys("train") == {f"{2:020x}"}
    assert not any("old" in name for name in left)
    with pytest.raises(SweepError, match="there is no s3://bucket/nowhere"):
        Contents(below(uri, "nowhere")).usage()


def test_a_bucket_that_is_not_there_and_a_server_that_is_away(uri: str) -> None:
    missing = Ledger(uri.replace("//bucket/", "//missing/"))
    with pytest.raises(SweepError, match="store: cannot write to s3://missing/.*name another"):
        with claimed(missing, "study", "one"):
            raise AssertionError("nobody runs into it")
    port = uri.partition("127.0.0.1:")[2].partition("&")[0]
    with pytest.raises(SweepError, match="store: cannot open s3://bucket/"):
        Ledger(uri.replace(port, "1"))


def test_run_kill_resume_table(uri: str, tmp_path: Path) -> None:
    path = sweeps.write(tmp_path, seeds=2, recipe={"epochs": 3})
    store = below(uri, "runs")
    words = [sys.executable, "-m", "sweeper"]
    command = [*words, "run", str(path), "--store", store]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger, deadline = Ledger(store), time.monotonic() + 200
    while len(ledger.statuses("small")) < 3:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    rows, victims = set(ledger.statuses("small")), ledger.keys("train")
    assert 3 <= len(rows) < 16, "the driver must die in mid-sweep for this test to say anything"
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    had = int(re.search(r"24 cells, (\d+) done", again.stderr)[1])  # type: ignore[index]
    assert had >= len(rows) + len(victims), "a worker may have finished the cell it was at"
    assert f"cells run: {24 - had} ok" in again.stderr
    table = subprocess.run(
        [*words, "table", str(path), "--store", store], capture_output=True, text=True, check=True
    )
    assert table.stdout == again.stdout and "FT ACC" in table.stdout
    sweeps.inline(path, tmp_path / "undisturbed")
    sweeps.assert_same(sweeps.frame(store), sweeps.frame(tmp_path / "undisturbed"))
