"""The cache of decoded data: decoded once, damage named and rebuilt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import sweeper.data
from sweeper.core.errors import SweepError
from sweeper.data import open_dataset
from sweeper.data.parquet import Parquet


def test_a_cached_data_set_is_not_decoded_again(fruit, monkeypatch):
    first = fruit.open()

    def refuse(self, root):
        raise AssertionError("decoded again")

    monkeypatch.setattr(Parquet, "read", refuse)
    again = fruit.open()
    assert again.digest == first.digest and torch.equal(again.train.images, first.train.images)
    assert fruit.open(train_size=5).mean == first.mean, "a subset needs no decoding either"
    file = fruit.root / "fruit/train.parquet"
    os.utime(file, ns=(1, 1))
    with pytest.raises(AssertionError, match="decoded again"):
        fruit.open()


def truncate(entry):
    file = entry / "train_images.npy"
    os.truncate(file, file.stat().st_size - 1)


def reshape(entry):
    meta = json.loads((entry / "meta.json").read_text())
    meta["files"]["test_labels"]["shape"] = [8]
    (entry / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        reshape,
        lambda entry: (entry / "test_labels.npy").unlink(),
        lambda entry: (entry / "meta.json").write_text('{"digest": '),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").unlink(),
    ],
)
def test_a_damaged_entry_is_named_set_aside_and_rebuilt(fruit, damage):
    before = fruit.open().digest
    (entry,) = (path for path in fruit.cache.iterdir() if path.is_dir())
    damage(entry)
    with pytest.warns(UserWarning, match=f"{entry.name} is damaged"):
        assert fruit.open().digest == before
    assert entry.with_name(f"{entry.name}.damaged").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fruit.open().digest == before, "the rebuilt entry is whole"


def test_what_a_killed_process_left_is_cleared(fruit, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "rename", die)
        fruit.open()
    assert [p for p in fruit.cache.iterdir() if p.name.endswith(".partial")]
    fruit.open()
    assert not [p for p in fruit.cache.iterdir() if p.name.endswith(".partial")]


def test_a_cache_that_cannot_be_written_is_named(fruit):
    fruit.cache.write_text("a file where the folder should be")
    with pytest.raises(SweepError, match="SWEEPER_CACHE"):
        fruit.open()


def test_the_environment_names_the_folders(fruit, monkeypatch):
    monkeypatch.setenv("SWEEPER_DATA", str(fruit.root))
    monkeypatch.setenv("SWEEPER_CACHE", str(fruit.cache))
    assert open_dataset({"dataset": "fruit"}).digest == fruit.open().digest


EIGHT = """
import multiprocessing, sys, time
from pathlib import Path
from sweeper.data import open_dataset, parquet

root, cache, counter = (Path(word) for word in sys.argv[1:])
read = parquet.Parquet.read

def counted(self, folder):
    with open(counter, "a") as file:
        file.write("x")
    time.sleep(0.3)
    return read(self, folder)

parquet.Parquet.read = counted

def work(barrier, queue):
    barrier.wait()
    queue.put(open_dataset({"dataset": "fruit"}, root, cache).digest)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(8), context.Queue()
    workers = [context.Process(target=work, args=(barrier, queue)) for _ in range(8)]
    for worker in workers:
        worker.start()
    print(*{queue.get(timeout=60) for _ in workers})
    for worker in workers:
        worker.join()
"""


@pytest.mark.slow
def test_eight_processes_at_once_decode_once(fruit, tmp_path):
    script, counter = tmp_path / "eight.py", tmp_path / "counter"
    script.write_text(EIGHT)
    repository = Path(sweeper.data.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, script, fruit.root, fruit.cache, counter],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert counter.read_text() == "x", "one process decodes, seven wait for it"
    assert done.stdout.split() == [fruit.open().digest], "all see the same data"
