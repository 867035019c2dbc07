"""STRIP as backdoor-toolbox calls it: entropies under each overlay, and the cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from defenses.parts import strip
from defenses.parts.strip import Blended
from defenses.parts.threshold import cut
from sweeper.core import catalog
from sweeper.core.types import ImageSet
from tests.reference.golden import Golden, load
from tests.support import toys

WITHIN = 5e-6


def images(z: Golden, name: str) -> ImageSet:
    data = z[name]
    return ImageSet(data, torch.zeros(len(data), dtype=torch.int64), tuple("0123456789"))


def entropies(
    z: Golden, patch: pytest.MonkeyPatch, method: str, *parts: str, **options: Any
) -> list[float]:
    """Of these images of the file, in nats: the overlays are the file's."""
    drawn = images(z, "overlays"), images(z, "rest")
    patch.setattr(strip, "drawn", lambda case, steps: drawn)
    defense: Blended = catalog.make("defense", method, options)
    own = toys.case(defense.sees, model=z.net(), clean=drawn[0], shape=toys.QUARTER)
    score, _ = defense.scorer(own)
    found = torch.cat([score(z[part]) for part in parts])
    return [-bits * math.log(2) for bits in found.tolist()]


def joined(z: Golden, *names: str) -> np.ndarray:
    return np.concatenate([z.arrays[name] for name in names])


def test_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("defenses/strip")
    found = entropies(z, monkeypatch, "strip", "inspected", "rest", preset="backdoor-toolbox")
    theirs = joined(z, "filter_called_inspected", "filter_called_rest")
    z.agree("entropy of the filter as called", found, theirs, within=WITHIN)
    given = {"overlay_weight": 0.5, "clip": True}
    found = entropies(z, monkeypatch, "strip", "inspected", "rest", **given)
    theirs = joined(z, "filter_class_default_inspected", "filter_class_default_rest")
    z.agree("entropy of the filter by its class's default", found, theirs, within=WITHIN)


def test_cleanser(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("defenses/strip")
    parts = ("inspected", "overlays", "rest")
    given = {"preset": "backdoor-toolbox"}
    found = entropies(z, monkeypatch, "strip-cleanser", *parts, **given)
    theirs = joined(z, "cleanser_inspected", "cleanser_overlays", "cleanser_rest")
    z.agree("entropy of the cleanser", found, theirs, within=WITHIN)


def test_the_cut() -> None:
    z = load("defenses/strip")
    threshold = cut(-z["cleanser_overlays"], 0.1)
    z.agree("cut of the cleanser", -threshold, "cleanser_threshold")
    found = (-z["cleanser_inspected"] > threshold).nonzero().flatten()
    z.agree("samples the cleanser flags", found, "cleanser_suspicious")


@pytest.mark.parametrize("method", ["strip", "strip-cleanser"])
def test_presets_are_the_toolbox_s_calls(method: str) -> None:
    defense = catalog.make("defense", method, {"preset": "backdoor-toolbox"})
    assert (defense.steps, defense.rate, defense.fit) == (100, 0.1, "quantile")
