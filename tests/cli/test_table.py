"""`sweeper table`: its formats, its axes, and the store it reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sweeper.store import ledger
from tests.support.commands import call


@pytest.mark.parametrize("style", ["markdown", "csv", "latex", "html"])
def test_table_formats(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], tmp_path: Path, style: str
) -> None:
    words = ("table", done[0], "--store", done[1], "--format", style)
    said = call(capsys, *words)
    assert said.code == 0 and not said.err
    assert {
        "markdown": lambda text: "|" in text and "FT ACC" in text,
        "csv": lambda text: len({len(line) for line in csv.reader(text.splitlines())}) <= 2,
        "latex": lambda text: r"\begin{tabular}" in text,
        "html": lambda text: "<table" in text and "</table>" in text,
    }[style](said.out)
    out = tmp_path / "table"
    assert call(capsys, *words, "--out", out).out == ""
    assert out.read_text() == said.out


def test_table_of_other_axes_and_metrics(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path]
) -> None:
    words = ("table", done[0], "--store", done[1])
    said = call(capsys, *words, "--rows", "defense", "--cols", "attack, seed", "--values", "ra,der")
    assert said.code == 0 and "| FT " in said.out
    line = call(capsys, *words, "--values", "accuracy").sentence
    assert "no " in line and "'accuracy'" in line and "did you mean" in line
    assert "'excel'" in call(capsys, *words, "--format", "excel").sentence
    assert "'defence'" in call(capsys, *words, "--cols", "defence").sentence


def test_table_before_any_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    line = call(capsys, "table", "quickstart", "--store", store).sentence
    assert line == (
        f"store {store} has no results of sweep 'quickstart' (it has: none): `sweeper run "
        f"quickstart --store {store}` runs it, or name the store that has them with --store"
    )
    assert not store.exists()


def test_table_of_a_file_without_a_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("# a study\nseeds: 1\nname: a/b\n")
    line = call(capsys, "table", path).sentence
    assert line.startswith(f"{path}:3: name: needs letters, ") and line.endswith(", not 'a/b'")


def test_a_store_is_the_same_place_for_every_command(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = done
    monkeypatch.setenv("HOME", str(store.parent))
    monkeypatch.setenv("SWEEPER_STORE", "~/store")
    assert json.loads(call(capsys, "plan", path, "--json").out)["done"] == 3
    assert call(capsys, "table", path).code == 0
    monkeypatch.chdir(store.parent)
    assert call(capsys, "table", path, "--store", "store").code == 0
    assert call(capsys, "table", path, "--store", f"file://{store}").code == 0


def test_table_beside_published_figures(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], tmp_path: Path
) -> None:
    line = call(capsys, "table", done[0], "--store", done[1], "--compare").sentence
    assert line.startswith(
        "--compare: nothing published or measured is known for sweep 'tiny'; it is"
    )
    ledger_ = ledger.Ledger(str(tmp_path))
    row = {"sweep": "anp", "key": "0" * 20, "status": "ok", "dataset": "cifar10", "seed": 0}
    row |= {"model": "tiny", "attack": "badnets", "poison_rate": 0.05, "target": 0}
    row |= {"clean_budget": 500.0, "defense": "anp-0.05", "acc": 0.9, "asr": 0.2}
    ledger_.write_row(row)
    ledger_.save_plan("anp", {"order": {"attack": ["badnets"]}, "cells": {row["key"]: {}}})
    said = call(capsys, "table", "anp", "--store", tmp_path, "--compare", "--values", "asr")
    assert said.code == 0 and "9.00 [a] / 20.0 / +11.0≠" in said.out
    assert "[a] ANP recipe, figure" in said.out and "ANP at 0.05 ASR" in said.out
    assert "model resnet18, ours tiny" in said.out
