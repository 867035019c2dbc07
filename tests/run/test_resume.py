"""Victims whose training is cut short and goes on from its checkpoint, in the store of a sweep."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sweeper.engine import checkpoint
from sweeper.run import driver, record
from sweeper.run.faults import Interrupted
from sweeper.run.material import Material
from sweeper.store.artifacts import Artifact, Store
from tests.support import sweeps
from tests.support.full_disk import Breaking

ONE = {"seeds": 1, "poison_rates": [0.1], "defenses": ["none"], "recipe": {"epochs": 4}}
KEY = "0123456789abcdef0123"


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch leaves a checkpoint."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that trainings tell of."""
    seen: list[int] = []

    def progress(self: Material, epoch: int, epochs: int, loss: float) -> None:
        seen.append(epoch)

    monkeypatch.setattr(Material, "progress", progress)
    return seen


def victim(store: Path) -> Artifact:
    (key,) = Store(str(store)).keys("train")
    return Store(str(store)).get("train", key)


def kept(store: Path) -> list[str]:
    return sorted(str(path.relative_to(store)) for path in store.glob("checkpoints/*/*"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of one victim and two stores: `cut` after two epochs, and `whole`."""
    folder = tmp_path_factory.mktemp("resume")
    path = sweeps.write(folder, attacks=["wanet"], **ONE)
    real, saved = Store.checkpoint, []

    def stopping(self: Store, key: str, *given: Any) -> None:
        real(self, key, *given)
        saved.append(key)
        if len(saved) == 2:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "EVERY", 0.0)
        with patch.context() as inner, pytest.raises(Interrupted):
            inner.setattr(Store, "checkpoint", stopping)
            sweeps.inline(path, folder / "cut")
        sweeps.inline(path, folder / "whole")
    manifest, state = kept(folder / "cut")
    assert manifest.endswith("/manifest.json") and "/state-" in state, "only the newest is kept"
    assert not kept(folder / "whole")
    return folder


@pytest.fixture
def cut(once: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The sweep's file, and a copy of the store that was cut short."""
    return once / "small.yaml", shutil.copytree(once / "cut", tmp_path / "store")


def assert_same(one: Artifact, other: Artifact) -> None:
    assert one.meta["losses"] == other.meta["losses"]
    assert one.tensors.keys() == other.tensors.keys()
    for name, group in one.tensors.items():
        for key, value in group.items():
            assert torch.equal(value, other.tensors[name][key]), f"{name} {key}"


def test_a_victim_goes_on_from_its_checkpoint_to_the_same_bits(
    cut: tuple[Path, Path], once: Path, told: list[int]
) -> None:
    path, store = cut
    counts, _ = sweeps.inline(path, store)
    assert counts == {"ok": 2} and told == [3, 4]
    assert_same(victim(store), victim(once / "whole"))
    sweeps.assert_same(sweeps.frame(store), sweeps.frame(once / "whole"))
    assert not kept(store), "the victim is there, and the checkpoint is not"


def test_seconds_are_those_of_all_attempts(cut: tuple[Path, Path]) -> None:
    path, store = cut
    (key,) = (folder.name for folder in (store / "checkpoints").iterdir())
    opened = Store(str(store))
    before = opened.get("checkpoint", key)
    assert before.meta["seconds"] > 0
    opened.checkpoint(key, before.tensors["state"], {**before.meta, "seconds": 1000.0})
    sweeps.inline(path, store)
    assert victim(store).meta["result"]["seconds"] > 1000


def test_images_count_the_epochs_before(cut: tuple[Path, Path]) -> None:
    path, store = cut
    results: list[Mapping[str, Any]] = []

    class Watcher(sweeps.Silent):
        def finished(self, cell: Any, result: Any) -> None:
            results.append(result)

    driver.execute(sweeps.prepared(path, store), driver.inline, Watcher())
    assert [result["images"] for result in results if "images" in result] == [4 * 270]


def state_file(store: Path) -> Path:
    return next(store.glob("checkpoints/*/state-*"))


def flip(store: Path) -> None:
    content = bytearray(state_file(store).read_bytes())
    content[-1] ^= 1
    state_file(store).write_bytes(content)


def truncate(store: Path) -> None:
    state_file(store).write_bytes(state_file(store).read_bytes()[:-10])


def remove(store: Path) -> None:
    state_file(store).unlink()


def garble(store: Path) -> None:
    next(store.glob("checkpoints/*/manifest.json")).write_text('{"files": {"st')


@pytest.mark.parametrize("damage", [flip, truncate, remove, garble])
def test_a_damaged_checkpoint_is_set_aside_and_training_begins_anew(
    damage: Callable[[Path], None], cut: tuple[Path, Path], once: Path, told: list[int]
) -> None:
    path, store = cut
    damage(store)
    counts, _ = sweeps.inline(path, store)
    assert counts == {"ok": 2} and told == [1, 2, 3, 4]
    assert [p.name for p in (store / "damaged").iterdir() if p.name.startswith("checkpoints-")]
    assert_same(victim(store), victim(once / "whole"))
    assert not kept(store)


def test_a_checkpoint_of_other_code_or_conditions_is_ignored(
    cut: tuple[Path, Path], told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = cut
    real = record.trained_by
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(record, "trained_by", lambda *given: {**real(*given), "engine": "other"})
        patch.setattr(Store, "checkpoint", interrupt)
        sweeps.inline(path, store)
    assert told == [1]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(record, "device_name", lambda device: "another processor")
        patch.setattr(Store, "checkpoint", interrupt)
        sweeps.inline(path, store)
    assert told == [1, 1]
    sweeps.inline(path, store)
    assert told == [1, 1, 3, 4], "it is still there for who made it"


def interrupt(*given: Any) -> None:
    raise Interrupted


def test_a_full_disk_ends_no_training(
    cut: tuple[Path, Path], told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError("No space left on device")

    path, store = cut
    monkeypatch.setattr(Store, "checkpoint", full)
    counts, _ = sweeps.inline(path, store)
    assert counts == {"ok": 2} and told == [3, 4]


def test_a_short_sweep_leaves_no_folder_of_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 600.0)
    sweeps.inline(sweeps.write(tmp_path, attacks=["badnets"], **ONE), tmp_path / "store")
    assert not (tmp_path / "store/checkpoints").exists()


def test_fresh_begins_at_the_first_epoch(cut: tuple[Path, Path], told: list[int]) -> None:
    path, store = cut
    (key,) = (folder.name for folder in (store / "checkpoints").iterdir())
    Store(str(store)).replace("again", {"train": [key]})
    assert not kept(store) and list((store / "replaced/again").iterdir())
    sweeps.inline(path, store)
    assert told == [1, 2, 3, 4]


# The store


def state(value: float) -> dict[str, Tensor]:
    return {"0": torch.full((4,), value), "1": torch.empty(0), "2": torch.empty(0)}


def test_the_older_checkpoint_goes_once_the_newer_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.checkpoint(KEY, state(1), {"epoch": 1})
    for allowed in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(store, "_fs", Breaking(store._fs, allowed))
            store.checkpoint(KEY, state(2), {"epoch": 2})
        found = store.get("checkpoint", KEY)
        assert found.meta == {"epoch": 1} and float(found.tensors["state"]["0"][0]) == 1
    store.checkpoint(KEY, state(2), {"epoch": 2})
    assert store.get("checkpoint", KEY).meta == {"epoch": 2} and len(kept(tmp_path)) == 2
    store.checkpoint(KEY, state(2), {"epoch": 3})
    assert store.get("checkpoint", KEY).meta == {"epoch": 3} and len(kept(tmp_path)) == 2
    assert store.keys("train") == set()
    store.drop_checkpoint(KEY)
    store.drop_checkpoint(KEY)
    assert not store.has("checkpoint", KEY) and not list((tmp_path / "checkpoints").iterdir())
