"""CTRL and FTrojan: chroma waves as BackdoorBench's conversions add them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator

from attacks.parts.frequency import add_in_integers
from tests.reference.golden import load


@pytest.mark.parametrize(
    ("name", "share"), [("ctrl-backdoorbench", 0.001), ("ctrl-backdoorbench-64", 0.002)]
)
def test_ctrl_wraps(name: str, share: float) -> None:
    z = load(f"attacks/{name}")
    ours = z.attack().stamp(z["images"], split="train", state={}, rng=Generator())
    z.agree("training images", ours, "train", within=1, share=share, modulo=256)


@pytest.mark.parametrize("name", ["ftrojan-backdoorbench", "ftrojan-backdoorbench-64"])
def test_ftrojan_works_in_whole_numbers(name: str) -> None:
    z = load(f"attacks/{name}")
    attack: Any = z.attack()
    images = z["images"]
    ours = attack.stamp(images, split="train", state={}, rng=Generator())
    z.agree("training images", ours, "train", within=1, share=0.12)
    nothing = torch.zeros(images.shape[2:], dtype=torch.float64)
    unmoved = add_in_integers(images, nothing)
    z.agree("conversions alone", unmoved, "magnitude_0", within=3, share=0.25)
