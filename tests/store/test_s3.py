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

from sweeper.core.errors import SweepError
from sweeper.store.artifacts import DamagedError, Store
from sweeper.store.claim import claimed
from sweeper.store.contents import Contents
from sweeper.store.garbage import Garbage
from sweeper.store.ledger import Ledger
from tests.support import s3, sweeps
from tests.support.full_disk import Breaking

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
    store.write_row({**row, "key": f"{0:020x}", "status": "failed"})
    store.write_row({**row, "key": f"{3:020x}", "status": "failed"})
    before = store.statuses("study")
    assert sorted(before.values()) == ["failed", "ok", "ok", "ok"], "a late failure takes no row"
    store.compact("study")
    assert store.statuses("study") == before and store.sweeps() == ["study"]
    assert len([name for name in objects(store.root) if "/results/" in name]) == 1
    store.save_claim("study", {"run": "one"})
    assert store.claim("study") == {"run": "one"} and store.activity("study") is not None
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


def test_nothing_half_written_stays(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(below(uri, "half"))
    for allowed in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(store, "_fs", Breaking(store._fs, allowed))
            store.put("train", KEY, TENSORS, {})
        assert not store.has("train", KEY) and len(objects(store.root)) == allowed


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
    assert table.stdout == again.stdout and "fine-tuning" in table.stdout
    sweeps.inline(path, tmp_path / "undisturbed")
    sweeps.assert_same(sweeps.frame(store), sweeps.frame(tmp_path / "undisturbed"))
