"""Attacks that own the loop or learn their trigger, end to end on CIFAR-10 where it is here.

A few minutes a victim: few images, few epochs and a tiny network, so the rates are those at which
an attack can be seen, not the papers'. ACC, ASR and cross accuracy are printed (`pytest -rP`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import sweeps

SHARED = Path(__file__).parents[2] / "shared" / "data"
DATA = Path(os.environ.get("SWEEPER_DATA", SHARED))
IMAGES = 4000
RECIPE = {"epochs": 15, "crop": 0, "flip": False}
"""Without augmentation, which hides small triggers from so short a training."""
FACTS: dict[str, tuple[dict[str, Any], float, float]] = {
    "wanet": ({"strength": 2.0}, 0.2, 0.3),
    "bpp": ({"levels": 4}, 0.2, 0.0),
    "input-aware": ({"mask_epochs": 5}, 0.2, 0.0),
    "ssba": ({"bits": 4, "lr": 1e-3}, 0.2, 0.0),
    "fip-spectral": ({}, 0.1, 0.5),
    "fip-sam": ({}, 0.1, 0.5),
    "lira": ({"preset": "visible"}, 0.1, 0.3),
    "blind": ({"threshold": 2.2}, 0.1, 0.5),
    "wb": ({}, 0.1, 0.5),
    "dynamic": ({"mask_epochs": 5, "epochs": 15}, 0.2, 0.0),
}
"""Attack -> options, poison rate, ASR to reach; 0: the trigger takes more than these epochs.

Blind's loss stays above its own threshold of 1 in so short a training."""


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FACTS)
def test_the_backdoor_works_on_real_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (DATA / "cifar10" / "train.parquet").is_file():
        pytest.skip("no CIFAR-10: set SWEEPER_DATA to the folder above cifar10/train.parquet")
    monkeypatch.setenv("SWEEPER_DATA", str(DATA))
    options, rate, least = FACTS[name]
    path = sweeps.write(
        tmp_path,
        datasets=[{"dataset": "cifar10", "train_size": IMAGES, "test_size": 2000}],
        attacks=[{"attack": name, **options}],
        poison_rates=[rate],
        seeds=1,
        defenses=["none"],
        recipe=RECIPE,
    )
    sweeps.inline(path, tmp_path / "store")
    (row,) = sweeps.frame(tmp_path / "store").to_dict("records")
    assert row["status"] == "ok", row["error"]
    found = " ".join(f"{metric} {row.get(metric)}" for metric in ("acc", "asr", "cross_acc"))
    sys.stdout.write(f"{name} at {rate:g}: {found}\n")
    assert row["acc"] > 0.2, "the clean task is learned"
    assert row["asr"] > least, "the trigger is learned"
