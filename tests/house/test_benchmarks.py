"""The benchmark of a CUDA card, measured on the CPU in small: a rare card finds it whole."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sweeper.engine import graphed
from tests.benchmarks import __main__ as command
from tests.benchmarks import chain, defenses, gpu, inspected, stamping, together, training
from tests.support import invented, toys
from tests.support.tape import Tape

SMALL = gpu.Bench(
    toys.CPU,
    models=("tiny",),
    cells=(1, 2),
    steps=5,
    seconds=0.05,
    rounds=1,
    side=64,
    images=100,
    limit=600.0,
)


FEW: dict[str, dict[str, Any]] = {
    "ceiling": {"ROUNDS": 1, "REPEATS": 1, "STEPS": 1},
    "chain": {"VICTIMS": 20, "SLOTS": (8,), "OLD": 50},
    "defenses": {"SHORT": defenses.SHORT[:1], "ROUNDS": 1},
    "evaluation": {"SHARE": {"tiny": 1.0}},
    "overhead": {"CELLS": [2], "OUTSIDE": 2, "TRIALS": 1},
    "requests": {"ROWS": [20], "SAMPLE": 10},
    "stamping": {"REPEATS": 1},
    "startup": {"REPEATS": 1},
    "tables": {"ROWS": 200, "CELLS": 100, "REPEATS": 1},
    "together": {"ROUNDS": 1, "SIDES": (8,)},
    "training": {"STEPS": {"tiny": 1}},
}
"""Benchmark of a CPU -> constants with which it takes seconds."""


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graphed.RECORDERS, "cpu", Tape)


def only(monkeypatch: pytest.MonkeyPatch, *titles: str) -> None:
    parts = [part for part in gpu.PARTS if part[0] in titles]
    assert len(parts) == len(titles)
    monkeypatch.setattr(gpu, "PARTS", tuple(parts))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_cuda_it_says_so_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--out", str(out)])
    with pytest.raises(SystemExit) as left:
        command.main()
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "") and not out.exists()
    assert said.err.startswith("gpu: torch sees no CUDA device") and said.err.count("\n") == 1


def test_every_table_is_written_as_soon_as_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"

    def measured(*_: Any) -> Any:
        yield "first", [{"way": "one", "images/s": 12345.678}, {"way": "two"}]
        said = capsys.readouterr().out
        assert "first" in said and "12346" in said and "nan" not in said
        assert len(pd.read_parquet(out)) == 2
        yield "second", [{"ms": 1.5}]

    monkeypatch.setattr(gpu, "lacking", lambda: "")
    monkeypatch.setattr(gpu, "tables", measured)
    monkeypatch.setattr(command.record, "device_name", lambda kind: f"a {kind}")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--out", str(out)])
    threads = torch.get_num_threads()
    command.main()
    torch.set_num_threads(threads)
    rows = pd.read_parquet(out)
    assert list(rows["table"]) == ["first", "first", "second"]
    assert set(rows["device"]) == {"a cuda"} and set(rows["benchmark"]) == {"gpu"}


def test_every_benchmark_is_tried_here() -> None:
    assert {*FEW} == {*command.NAMES} - {"gpu"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_every_benchmark_measures(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    monkeypatch.setattr(training, "ROUNDS", 1)
    for constant, value in FEW[name].items():
        monkeypatch.setattr(module, constant, value)
    out = tmp_path / "out.parquet"
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--out", str(out)])
    command.main()
    assert not capfd.readouterr().err and len(pd.read_parquet(out))


def test_a_benchmark_that_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> Any:
        raise ValueError("on purpose")

    out = tmp_path / "out.parquet"
    monkeypatch.setattr(chain, "rows", broken)
    monkeypatch.setattr(stamping, "rows", lambda: [{"ms": 1.5}])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "chain", "stamping", "--out", str(out)])
    with pytest.raises(SystemExit) as left:
        command.main()
    failed, measured = pd.read_parquet(out).itertuples()
    assert left.value.code == 1 and failed.error == "ValueError: on purpose"
    assert measured.benchmark == "stamping" and measured.ms == 1.5


def test_a_part_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: gpu.Bench) -> gpu.Rows:
        raise ValueError("on purpose")

    parts = [("broken", 0.0, broken), ("long", 1e6, broken), ("aims", 0.0, gpu.aims)]
    monkeypatch.setattr(gpu, "PARTS", tuple(parts))
    (_, failed), (_, late), (_, aims) = gpu.tables(replace(SMALL, found={}))
    assert failed == [{"error": "ValueError: on purpose"}] and "left out" in late[0]
    assert all(row["found"] is None or row["found"] == 0 for row in aims[:3])


def test_the_aims_by_hand() -> None:
    found = {
        "matmul bf16": 800e12,
        "operations": 4e9,
        "bf16 training": 40_000.0,
        "bf16, graphs training": 80_000.0,
        "toolbox": 2_000.0,
        "bf16, graphs 2 cells": 100_000.0,
    }
    rows = {row["what"]: row["found"] for row in gpu.aims(replace(SMALL, found=found))}
    best = "bf16, graphs"
    assert rows[f"{best}: fraction of the bf16 matrix product"] == pytest.approx(0.4)
    assert rows[f"{best}: times the torchvision loop"] == pytest.approx(40)
    assert rows[f"{best}: seconds to a victim of 30 epochs, computed"] == pytest.approx(18.75)
    assert rows["graphs: times the eager step, bf16"] == pytest.approx(2)
    assert rows[f"{best} 2 cells: times one"] == pytest.approx(1.25)


def test_a_way_is_undone() -> None:
    backend = torch.backends.cudnn
    before = backend.deterministic, backend.benchmark
    with gpu.running(gpu.WAYS[3]):
        assert graphed.asked(toys.CPU) and backend.benchmark and not backend.deterministic
    assert not graphed.asked(toys.CPU) and (backend.deterministic, backend.benchmark) == before


def test_the_expected_seconds_fit() -> None:
    assert sum(seconds for _, seconds, _ in gpu.PARTS) <= gpu.Bench(toys.CPU).limit <= 140


def test_the_card_and_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "the card", "evaluation")
    found = [row for _, rows in gpu.tables(replace(SMALL, found={})) for row in rows]
    assert not [row for row in found if "error" in row or "left out" in row]
    assert all(row["TFLOP/s"] > 0 for row in found[:3])
    assert found[-1]["images"] == 190 and found[-1]["images/s"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = replace(SMALL, found={})
    tables = dict(gpu.tables(bench))
    rows = [row for table in tables.values() for row in table]
    assert len(tables) == len(gpu.PARTS)
    assert not [row for row in rows if "error" in row or "left out" in row]
    updates = {row["defense"]: row["updates"] for row in rows if "defense" in row}
    assert set(updates) == set(gpu.SEEDS) and min(updates.values()) > 1
    assert {row["cells"] for row in rows if "cells" in row} == {1, 2}
    assert all(row["found"] > 0 for row in rows if "aim" in row)
    ways = [f"{way.name} {what}" for way in gpu.WAYS for what in ("training", "step alone")]
    assert all(bench.found[way] > 0 for way in ways)


def test_every_victim_of_a_store_is_inspected_once(tmp_path: Path) -> None:
    rows = invented.sweep(attacks=("badnets", "none"), rates=(0.1,), seeds=2)
    for name in ("first", "second"):
        invented.store(tmp_path, rows, f"name: {name}\n", name)
    found = [row["victim"] for row in inspected.victims(str(tmp_path))]
    assert found == list(dict.fromkeys(row["victim"] for row in rows))


def test_seeds_trained_as_one_batch_learn_what_each_learns_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(together, "BATCH", 16)
    bed = together.Bed("tiny", 8, "fp32", toys.CPU)
    assert together.apart(bed, together.in_turn) == 0 < together.apart(bed, together.as_one) < 1e-4
    alone, recorded = together.as_one(bed), together.recorded(together.as_one(bed), toys.CPU)
    for _ in range(graphed.WARM):
        alone()
    assert [recorded().tolist() for _ in range(2)] == [alone().tolist() for _ in range(2)]
