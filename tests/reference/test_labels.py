"""Labels: what a triggered image is to be called, and which of them count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator

from attacks.base import Attack
from sweeper.core import catalog
from sweeper.core.types import ImageSet, Triggered
from tests.reference.golden import load

CLASSES = 10


def triggered(name: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> Triggered:
    """Our triggered set of one image a class, the trigger itself left out."""
    kind: Any = catalog.method("attack", name)
    options = kind.presets.get(preset, {})
    attack: Attack = kind(**options)
    for method in ("stamp", "reveal"):
        if hasattr(kind, method):
            monkeypatch.setattr(kind, method, lambda self, images, **_: images)
    images = torch.zeros(CLASSES, 3, 32, 32, dtype=torch.uint8)
    names = tuple(str(number) for number in range(CLASSES))
    return attack.trigger_set(ImageSet(images, torch.arange(CLASSES), names), {}, Generator())


def test_labels_of_the_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("attacks/labels")
    rows = list(zip(z.arrays["attack"].tolist(), z.arrays["preset"].tolist(), strict=True))
    found = [triggered(*row, monkeypatch) for row in rows]
    z.agree("wanted labels", torch.stack([each.labels for each in found]), "wanted")
    z.agree("images that count for leak", torch.stack([each.leaks for each in found]), "leaks")
    counts = torch.stack([each.counts for each in found])
    over_all = torch.tensor(["asr_all" in preset for _, preset in rows])
    z.agree("images that count for ASR", counts[~over_all], z["counts"][~over_all])
    z.deviates(
        "images that count where a release divides by all",
        counts[over_all],
        z["counts"][over_all],
        by=1,
        why="ASR leaves the target class out for every attack; the rate over all is `asr_all`.",
    )
