"""`sweeper du` and `sweeper gc`: what a store holds is told, and freed when asked."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from sweeper.store.artifacts import Store
from tests.support.commands import call


def test_what_a_store_holds_is_told_and_then_freed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "a store"
    store = Store(str(place))
    store.save_plan("old", {"cells": {}, "above": {"1" * 20: "train"}})
    store.put("train", "1" * 20, {}, {"params": {}})
    said = call(capsys, "du", "--store", place)
    assert re.search(r"^victims +1 +\d+ bytes$", said.out, re.MULTILINE) and said.code == 0
    assert re.search(r"^old +2 +\d+ bytes$", said.out, re.MULTILINE)
    used = json.loads(call(capsys, "du", "--store", place, "--json").out)
    assert used["sweeps"]["old"] == {"files": 2, "bytes": used["bytes"]}
    assert call(capsys, "gc", "--store", place).out == f"store {place}: nothing to free\n"
    told = call(capsys, "gc", "--store", place, "--sweep", "old")
    assert store.keys("train"), "it is only said"
    (command,) = re.findall("`sweeper (.*)` does it", told.out)
    assert shlex.split(command) == ["gc", "--yes", "--store", str(place), "--sweep", "old"]
    found = json.loads(call(capsys, "gc", "--store", place, "--sweep", "old", "--json").out)
    assert (found["bytes"], found["freed"]) == (used["bytes"], False)
    assert found["what"]["victims of old alone"]["paths"] == [f"artifacts/train/{'1' * 20}"]
    freed = call(capsys, *shlex.split(command))
    assert freed.code == 0 and "2 files freed" in freed.out and not list(place.rglob("*.json"))
    assert call(capsys, "du", "--store", place).out == f"store {place} is empty\n"
    assert "there is no " in call(capsys, "gc", "--store", tmp_path / "no store").sentence
