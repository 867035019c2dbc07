"""Invented sweeps for the tests of figures: rows of every state, written by the ledger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sweeper.core import rows
from sweeper.store.ledger import Ledger
from sweeper.tables import results

ATTACKS = ("badnets", "blend", "sig", "wanet", "trojan", "input-aware", "clean-label", "none")
DEFENSES = (
    "none fine-tuning fine-pruning nad anp fip sibp soda d-br d-st i-bau ft-sam mcr anp-oracle"
).split()
RATES = (0.01, 0.05, 0.1)
TRACE = "Traceback (most recent call last):\n  ...\nRuntimeError: the loss is not a number"


def sweep(
    datasets: Sequence[str] = ("cifar10",),
    attacks: Sequence[str] = ATTACKS[:3],
    rates: Sequence[float] = RATES,
    defenses: Sequence[str] = DEFENSES[:5],
    seeds: int = 2,
    broken: float = 0.0,
) -> list[dict[str, Any]]:
    """Rows of a sweep whose numbers a generator invents; a share `broken` did not end well."""
    draw = np.random.default_rng(0)
    found = []
    for dataset in datasets:
        for place, attack in enumerate(attacks):
            for rate in rates if attack != "none" else (0.0,):
                for seed in range(seeds):
                    strength = min(1.0, 0.8 + 2 * rate) * (attack != "none")
                    before = {
                        "acc_before": 0.93 + 0.01 * draw.random(),
                        "asr_before": strength * (0.97 + 0.03 * draw.random()),
                        "victim_seconds": 100.0 + 10 * draw.random(),
                    }
                    victim = _key(dataset, attack, rate, seed)
                    axes = {"dataset": dataset, "attack": attack, "poison_rate": rate, "seed": seed}
                    for rank, defense in enumerate(defenses):
                        row = {**axes, **before, "victim": victim, "defense": defense}
                        left = strength * abs(np.cos(rank + 0.3 * place)) ** (1 + rank / 2)
                        row["asr"] = left * draw.uniform(0.9, 1) if rank else before["asr_before"]
                        row["acc"] = row["acc_before"] - (0.004 * rank * draw.random())
                        row["der"] = 0.5 + (row["asr_before"] - row["asr"]) / 2
                        row["seconds"] = 5.0 * rank + draw.random()
                        end = str(draw.choice(rows.UNFINISHED)) if draw.random() < broken else "ok"
                        found.append(_whole(row, end, len(found)))
    return found


def _key(*words: Any) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()[:20]


def _whole(row: dict[str, Any], status: str, number: int) -> dict[str, Any]:
    row |= {
        "sweep": "invented",
        "key": _key(*row.values()),
        "status": status,
        "model": "resnet18",
        "target": 0,
        "clean_budget": 0.0 if row["defense"] in ("none", "d-br", "d-st") else 0.05,
        "attack_name": row["attack"],
        "defense_name": row["defense"].removesuffix("-oracle"),
        "oracle": row["defense"].endswith("oracle"),
        "kind": "repair",
        "sees": "clean,model",
        "n_test": 10000,
        "n_triggered": 9000,
        "device": "NVIDIA H200",
        "torch": "2.15.0",
        "victim_torch": "2.15.0",
        "versions": json.dumps({"torch": "2.15.0", "ray": "2.60.0", "sweeper": "0.1.0"}),
        "notes": json.dumps({"curve": [[i / 20, 0.9 - i / 50] for i in range(20)]}),
        "started_at": f"2026-01-02T03:{number // 60 % 60:02d}:{number % 60:02d}+00:00",
    }
    if status != "ok":
        row["error"] = TRACE if status == "failed" else f"cell {row['victim']} stopped"
        for name in ("acc", "asr", "der", "seconds"):
            row.pop(name)
    return row


def frame(**changes: Any) -> pd.DataFrame:
    """The rows of `sweep` as the tables read them."""
    return results.frame([rows.table(sweep(**changes))])


def store(
    folder: Path,
    given: Sequence[dict[str, Any]],
    text: str = "name: invented\n",
    name: str = "invented",
) -> Path:
    """A store that holds a sweep of these rows, beside what it held before."""
    ledger = Ledger(str(folder))
    order = {
        axis: list(dict.fromkeys(row[axis] for row in given)) for axis in ("attack", "defense")
    }
    ledger.save_sweep(name, text)
    outline = {"order": order, "cells": {row["key"]: {} for row in given}}
    ledger.save_plan(name, {**outline, "data": {"cifar10": "ab" * 32}})
    ledger.write_rows(name, [{**row, "sweep": name} for row in given])
    ledger.compact(name)
    return folder
