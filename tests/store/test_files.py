"""How files are written: in what order, and what is said where they cannot be."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeper.core.errors import StoreError
from sweeper.store import files
from sweeper.store.artifacts import Store
from tests.support.full_disk import Breaking

KEY = f"{7:020x}"


def row(key: str = KEY, **more: Any) -> dict[str, Any]:
    return {"sweep": "study", "key": key, "status": "ok", "started_at": "", **more}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


class Recording:
    """A file system that says what it is told to do."""

    def __init__(self, inner: Any, said: list[tuple[str, str]]) -> None:
        self.inner, self.said = inner, said

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if name in ("move", "delete_file", "delete_dir"):
                self.said.append((name, "/".join(map(str, arguments[-1:]))))
            return getattr(self.inner, name)(*arguments, **options)

        return call


@pytest.fixture
def said(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is moved, deleted and brought to the disk, in this order."""
    said: list[tuple[str, str]] = []
    sync = os.fsync

    def recorded(handle: int) -> None:
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), store.root)
        said.append(("sync", path))
        sync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(store, "_fs", Recording(store._fs, said))
    return said


ONLY: dict[str, Callable[[Store], object]] = {
    "compaction": lambda store: store.compact("study"),
    "manifest": lambda store: store.put("train", KEY, {"model": {"w": torch.ones(1)}}, {}),
    "plan": lambda store: store.save_plan("study", {"cells": {}}),
    "sweep": lambda store: store.save_sweep("study", "name: study"),
    "intent": lambda store: store.replace("run", {"train": [KEY]}),
}
"""What writes a file that is the only copy of something."""


@pytest.mark.parametrize("what", ONLY)
def test_what_is_the_only_copy_is_on_the_disk_before_anything_is_deleted(
    store: Store, said: list[tuple[str, str]], what: str
) -> None:
    for number in range(3):
        store.write_row(row(f"{number:020x}"))
    said.clear()
    ONLY[what](store)
    assert [verb for verb, _ in said[:3]] == ["sync", "move", "sync"], (
        "the file, its name, its place"
    )
    assert said[0][1].endswith(".part")
    place = Path(said[1][1]).parent
    for above in (place, *list(place.parents)[:-1]):
        assert ("sync", str(above)) in said, "and the folders that may be as new"
    synced = max(at for at, (verb, _) in enumerate(said) if verb == "sync")
    deleted = [at for at, (verb, _) in enumerate(said) if verb.startswith("delete")]
    assert all(at > synced for at in deleted)
    assert (len(deleted) >= 3) == (what == "compaction")


def test_a_part_and_a_claim_do_not_wait_for_the_disk(
    store: Store, said: list[tuple[str, str]]
) -> None:
    """A part is what the artifact of its cell says; a claim is written anew every few seconds."""
    store.write_row(row())
    store.write_rows("study", [row()])
    store.save_claim("study", {"run": "one"})
    store.fail("study", KEY, {"status": "failed", "error": ""})
    assert {verb for verb, _ in said} == {"move"}


class Away:
    """A file system that fails as one over a network does."""

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            raise OSError(5, "Input/output error")

        return call


WORK: dict[str, Callable[[Store], object]] = {
    "write_row": lambda store: store.write_row(row()),
    "write_rows": lambda store: store.write_rows("study", [row()]),
    "statuses": lambda store: store.statuses("study"),
    "tables": lambda store: store.tables("study"),
    "recent_rows": lambda store: store.recent_rows(["key", "status"], 1),
    "columns": lambda store: store.columns("study", ["acc"]),
    "compact": lambda store: store.compact("study"),
    "begin": lambda store: store.begin("study"),
    "put": lambda store: store.put("train", KEY, {}, {}),
    "get": lambda store: store.get("train", KEY),
    "meta": lambda store: store.meta("train", KEY),
    "about": lambda store: store.about("train", KEY),
    "abouts": lambda store: store.abouts("train", [KEY]),
    "has": lambda store: store.has("train", KEY),
    "keys": lambda store: store.keys("train"),
    "recent": lambda store: store.recent("train", 1),
    "claim": lambda store: store.claim("study"),
    "save_claim": lambda store: store.save_claim("study", {}),
    "drop_claim": lambda store: store.drop_claim("study"),
    "plan": lambda store: store.plan("study"),
    "save_plan": lambda store: store.save_plan("study", {}),
    "sweeps": lambda store: store.sweeps(),
    "gallery": lambda store: store.gallery("study", {}),
    "save_gallery": lambda store: store.save_gallery("study", {}, [], []),
    "drop_gallery": lambda store: store.drop_gallery("study"),
    "failure": lambda store: store.failure("study", KEY),
    "failures": lambda store: store.failures("study"),
    "activity": lambda store: store.activity("study"),
    "log": lambda store: store.log("study", "train", KEY),
    "left": lambda store: store.left("train", KEY),
    "samples": lambda store: store.samples(KEY),
    "replace": lambda store: store.replace("run", {"train": [KEY]}),
    "replacing": lambda store: store.replacing(),
    "checkpoint": lambda store: store.checkpoint(KEY, {}, {}),
    "drop_checkpoint": lambda store: store.drop_checkpoint(KEY),
    "probe": lambda store: store.probe("run"),
    "probed": lambda store: store.probed("run").__enter__(),
    "holders": lambda store: store.holders({"train": [KEY]}),
}


@pytest.mark.parametrize("what", WORK)
def test_a_store_that_fails_says_that_it_is_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A method's own OSError is another matter: who sees one can tell."""
    monkeypatch.setattr(store, "_fs", Away())
    with pytest.raises(StoreError, match=r"Input/output error \(store .*\)") as caught:
        WORK[what](store)
    assert store.root in str(caught.value) and caught.value.errno == 5


def test_every_method_that_touches_files_is_tried() -> None:
    """What `Away` fails is all there is: nothing else of a store asks the file system."""
    names = {
        name
        for cls in Store.__mro__[:-1]
        for name, method in vars(cls).items()
        if callable(method) and not name.startswith("_")
    }
    others = {"sweep_text", "save_sweep", "write_samples", "fail"}
    assert names == set(WORK) | others, "say here what it does where the store fails"


@pytest.mark.parametrize("what", ["write_row", "put", "save_plan"])
def test_a_full_disk_is_named_with_its_cause(
    store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(store, "_fs", Breaking(store._fs, 0))
    with pytest.raises(StoreError, match=r"No space left on device \(store ") as caught:
        WORK[what](store)
    assert caught.value.errno == 28


def test_what_is_not_there_is_no_failure_of_the_store(store: Store) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        store._read("sweeps/study/plan.json")
    assert not isinstance(caught.value, StoreError)
    assert not store.has("train", KEY) and store.claim("study") is None
    store.drop_claim("study")


def test_an_object_store_is_asked_several_things_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "local", False)
    together = threading.Barrier(files.AT_ONCE, timeout=30)
    assert store._each(lambda item: (together.wait(), item)[1], range(64)) == list(range(64))
