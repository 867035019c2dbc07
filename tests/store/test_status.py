"""How far a sweep is, from its store alone: counted right, and fast."""

from __future__ import annotations

import json
import time
from pathlib import Path
from unittest import mock

import pytest

from sweeper.cli import remote
from sweeper.core.errors import SweepError
from sweeper.store import status
from sweeper.store.artifacts import Store
from sweeper.store.files import Files
from sweeper.store.ledger import Ledger
from tests.support import sweeps
from tests.support.commands import call

TRAIN, DEFEND = (f"{number:020x}" for number in (1, 2))


def test_a_sweep_that_never_ran(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="has no results of sweep 'small'"):
        status.status(Ledger(str(tmp_path)), "small")


def test_cells_are_counted_by_kind_and_state(tmp_path: Path) -> None:
    faulty = {"defense": "tests.support.faulty:Raises", "as": "raises"}
    path = sweeps.write(
        tmp_path,
        attacks=["badnets", {"attack": "tests.support.faulty:FailsToPoison", "as": "unbuilt"}],
        poison_rates=[0.1],
        seeds=1,
        defenses=["none", faulty],
    )
    sweeps.inline(path, tmp_path / "store")
    ledger = Ledger(str(tmp_path / "store"))
    found = status.status(ledger, "small")
    assert found["cells"] == {
        "train": {"done": 1, "failed": 1, "left": 0},
        "defend": {"done": 1, "failed": 3, "left": 0},
    }
    assert found["rows"] == {"ok": 1, "failed": 1, "blocked": 2}
    assert (found["total"], found["done"], found["failed"], found["left"]) == (6, 2, 4, 0)
    assert found["driver"] is None
    said = status.text(found)
    assert "2 of 6 cells are done" in said and "nobody runs it" in said

    grown = sweeps.prepared(sweeps.write(tmp_path, seeds=2), tmp_path / "store")
    ledger.save_plan("small", {"cells": dict.fromkeys(grown.plan.cells, {})})
    found = status.status(ledger, "small")
    assert found["left"] == found["total"] - found["done"] > 20, "rows of the old matrix are none"


def test_a_failure_that_was_made_good_is_no_failure(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.save_plan("small", {"cells": {DEFEND: {}}, "above": {TRAIN: "train"}})
    assert status.status(store, "small")["left"] == 2
    store.fail("small", TRAIN, {})
    assert status.status(store, "small")["cells"]["train"]["failed"] == 1
    store.put("train", TRAIN, {}, {})
    assert status.status(store, "small")["cells"]["train"] == {"done": 1, "failed": 0, "left": 0}


def test_twenty_thousand_cells_are_counted_without_being_read(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    folder = tmp_path / "sweeps/small/results"
    folder.mkdir(parents=True)
    defend = [f"{number:020x}" for number in range(18000)]
    train = [f"{number:020x}" for number in range(20000, 22000)]
    for key in defend[:15000]:
        (folder / f"{key}.ok.parquet").write_bytes(b"a row")
    for key in train[:1900]:
        made = tmp_path / "artifacts/train" / key
        made.mkdir(parents=True)
        (made / "manifest.json").write_bytes(b"{}")
    plan = {"cells": dict.fromkeys(defend, {}), "above": dict.fromkeys(train, "train")}
    ledger.save_plan("small", plan)
    with mock.patch.object(Files, "_at_work", autospec=True, side_effect=Files._at_work) as asked:
        found = status.status(ledger, "small")
    assert 0 < asked.call_count < 20, "listings, not a request for each"
    assert found["cells"]["defend"] == {"done": 15000, "failed": 0, "left": 3000}
    assert found["cells"]["train"] == {"done": 1900, "failed": 0, "left": 100}


def test_of_a_plan_without_cells_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    Ledger(str(store)).save_plan("quickstart", {"cells": {}, "above": {}})
    told = call(capsys, "status", "quickstart", "--store", store, "--json").out
    assert json.loads(told)["total"] == 0
    assert "0 of 0 cells are done" in call(capsys, "watch", "quickstart", "--store", store).out


def test_watch_looks_until_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "store"))
    store.save_plan("quickstart", {"cells": {}, "above": {TRAIN: "train"}})
    looks = []

    def work(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            store.put("train", TRAIN, {}, {})

    monkeypatch.setattr(time, "sleep", work)
    remote.watch("quickstart", str(tmp_path / "store"), 5.0)
    assert looks == [5.0, 5.0]
    assert "1 of 1 cells are done" in capsys.readouterr().out
