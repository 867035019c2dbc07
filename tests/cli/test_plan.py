"""`sweeper plan`: what is to do, what it costs, what does not apply, and which data are missing."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweeper import Sweep, data
from sweeper.cli import runs
from sweeper.run import calibrate
from tests.support.commands import SWEEP, call, defended, loaded
from tests.support.places import ROOT


def test_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "tiny.yaml", tmp_path / "store"
    path.write_text(SWEEP)
    said = call(capsys, "plan", path, "--store", store, "--set", "seeds=2", "--json")
    found = json.loads(said.out)
    cost = found.pop("estimate")
    assert (cost["cells_unknown"], cost["cell_seconds"]) == (6, 0), "nothing was measured yet"
    assert found == {
        "sweep": "tiny",
        "cells": {"prepare": 0, "train": 2, "stage": 0, "defend": 4, "not_applicable": 0},
        "total": 6,
        "done": 0,
        "to_run": 6,
        "to_run_by_kind": {"train": 2, "defend": 4},
        "trainings_saved": 2,
        "why_not": [],
        "unresolved": [],
        "other_code": [],
    }
    words = call(capsys, "plan", path, "--store", store).out
    assert "sweep tiny: 3 cells" in words and "trainings saved" in words
    assert "cost: unknown" in words
    assert f"`sweeper plan {path} --calibrate --store {store}`" in words
    monkeypatch.setattr(calibrate, "SECONDS", 0.2)
    guess = call(capsys, "plan", path, "--store", store, "--calibrate").out
    assert "cost, a rough estimate: about " in guess and " of core time on " in guess
    assert not store.exists(), "a plan leaves nothing"


def test_plan_of_a_finished_sweep(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path]
) -> None:
    path, store = done
    found = json.loads(call(capsys, "plan", path, "--store", store, "--json").out)
    assert (found["total"], found["done"], found["to_run"]) == (3, 3, 0)
    assert found["estimate"]["cell_seconds"] == 0
    assert "cost:" not in call(capsys, "plan", path, "--store", store).out
    grown = ("--set", "seeds=2", "--json")
    found = json.loads(call(capsys, "plan", path, "--store", store, *grown).out)
    assert (found["total"], found["done"], found["to_run"]) == (6, 3, 3)
    cost = found["estimate"]
    assert cost["cells_measured"] == 3 and cost["cell_seconds"] >= cost["wall_seconds"] > 0


def test_plan_of_data_that_are_not_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is downloaded for a plan")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    empty = tmp_path / "data"
    empty.mkdir()
    path = tmp_path / "tiny.yaml"
    path.write_text(
        SWEEP.replace("[{dataset: digits, train_size: 300, test_size: 100}]", "[cifar10]")
    )
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    words = ("plan", path, "--data", empty, "--store", tmp_path / "store")
    found = json.loads(call(capsys, *words, "--json").out)
    assert found["unresolved"] == ["cifar10"]
    assert found["cells"]["train"] == 1 and found["cells"]["defend"] == 2
    first, *_ = call(capsys, *words).out.splitlines()
    assert first == (
        f"data set cifar10 is not on this machine: `run` downloads about 170 MB into "
        f"{empty / 'torchvision'}; what is done of it is not known before"
    )
    path.write_text(path.read_text().replace("[cifar10]", "[imagenet]"))
    monkeypatch.setenv("SWEEPER_DATA", str(empty))
    first, *_ = call(capsys, "plan", path, "--store", tmp_path / "store").out.splitlines()
    assert first.startswith(
        f"data set imagenet is not on this machine: imagenet: not found under {empty} and not "
        "downloadable: put train.parquet and test.parquet, or "
    )
    assert f"into {empty / 'imagenet'}" in first and "with --data DIR" in first
    assert not list(empty.iterdir())


def test_every_download_says_how_large_it_is() -> None:
    for kind in data.sources():
        for name in kind.names if kind.downloads else ():
            assert 10e6 < kind.sizes[name] < 1e9, name


def test_a_plan_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    heavy = {"ray", "torchvision", "sympy", "sklearn"}
    plan, found = loaded(heavy, "plan", "grand", "--json", "--store", tmp_path)
    assert not found
    assert json.loads(plan)["total"] > 20_000


def test_a_plan_says_what_does_not_apply_and_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP.replace("[badnets]", "[badnets, tact]"))
    words = ("plan", path, "--store", tmp_path / "store", "--set", "poison_rates=[0.3]")
    (why,) = json.loads(call(capsys, *words, "--json").out)["why_not"]
    assert set(why) == {"cells", "reason", "attacks"}, "it is so for every defense"
    assert (why["cells"], why["attacks"]) == (2, ["tact"])
    said = call(capsys, *words).out
    assert f"       2  tact: {why['reason']}\n" in said
    assert re.search(r"needs 81 images to poison at rate 0.3 of all, class 1 has \d\d: ", said)


def test_a_method_beside_the_sweep_file_is_found(tmp_path: Path) -> None:
    own = (ROOT / "defenses" / "none.py").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(own.replace("NoDefense", "Mine"))
    mine = defended("mine:Mine")
    (tmp_path / "tiny.yaml").write_text(mine.replace("[none,", "["))
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", "from sweeper.cli import main; main()", "plan", "tiny.yaml"]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0 and "  defend               1, 1 to run" in ran.stdout, ran.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_expansion_is_said_on_a_terminal_alone(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(runs, "MANY", 2)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") if terminal else (tmp_path / "log").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        for seeds in (1, 1000):
            sweep = Sweep.from_values({**yaml.safe_load(SWEEP), "seeds": seeds})
            with runs._expanding(sweep.declared):
                pass
    if terminal:
        said = b""
        with contextlib.suppress(OSError):  # a terminal arrives in pieces, and ends with EIO
            while piece := os.read(ours, 10_000):
                said += piece
        assert b"expanding tiny, up to 2,000 rows" in said and b"to 2 rows" in said
    assert terminal or not (tmp_path / "log").read_text()
    os.close(ours)
