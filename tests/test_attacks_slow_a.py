"""Attacks on data end to end: on CIFAR-10 where it is on this machine, a few minutes a victim.

The rates are those at which an attack can be seen on few images and epochs with a tiny network, not
the papers'; the floors are far below what was measured. ACC and ASR are printed (`pytest -rP`).
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
    "trojan": ({"mode": "replace"}, 0.1, 0.8),
    "sig": ({}, 1.0, 0.3),
    "clean-label": ({"epsilon": 16.0}, 1.0, 0.3),
    "tact": ({}, 0.05, 0.5),
    "adaptive-blend": ({"cover_ratio": 0.5}, 0.1, 0.3),
    "adaptive-patch": ({}, 0.05, 0.2),
    "adaptive-k-way": ({}, 0.1, 0.0),
    "low-frequency": ({}, 0.1, 0.5),
    "ctrl": ({}, 1.0, 0.1),
    "ftrojan": ({}, 0.3, 0.0),
    "refool": ({}, 0.1, 0.2),
}
"""Attack -> options, poison rate, ASR that must be reached; 0: too faint for this few epochs."""


def measured(folder: Path, attack: dict[str, Any], rate: float) -> dict[str, Any]:
    """The row of the undefended victim."""
    path = sweeps.write(
        folder,
        datasets=[{"dataset": "cifar10", "train_size": IMAGES, "test_size": 2000}],
        attacks=[attack],
        poison_rates=[rate],
        seeds=1,
        defenses=["none"],
        recipe=RECIPE,
    )
    sweeps.inline(path, folder / "store")
    (row,) = sweeps.frame(folder / "store").to_dict("records")
    return row


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", FACTS)
def test_the_backdoor_works_on_real_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (DATA / "cifar10" / "train.parquet").is_file():
        pytest.skip("no CIFAR-10: set SWEEPER_DATA to the folder above cifar10/train.parquet")
    monkeypatch.setenv("SWEEPER_DATA", str(DATA))
    options, rate, least = FACTS[name]
    row = measured(tmp_path, {"attack": name, **options}, rate)
    assert row["status"] == "ok", row["error"]
    found = " ".join(f"{metric} {row[metric]}" for metric in ("acc", "asr", "leak"))
    sys.stdout.write(f"{name} at {rate:g}: {found}\n")
    assert row["acc"] > 0.25, "the clean task is learned"
    assert row["asr"] > least, "the trigger is learned"
