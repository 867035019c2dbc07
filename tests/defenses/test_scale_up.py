"""SCALE-UP: consistency under amplified pixels, its statistics and thresholds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from defenses.base import Case
from defenses.parts.threshold import cut
from defenses.scale_up import ScaleUp, cuts, statistics
from tests.support import toys
from tests.support.planted import outcome


def asked(ask: Any, clean: Any = 80) -> Case:
    case = toys.case(ScaleUp.sees, clean=clean)
    case._given = {**case._given, "queries": ask}
    return case


def brightness(images: Tensor) -> Tensor:
    """A model that tells dark images (class 0) from bright ones (class 1)."""
    mean = images.float().mean((1, 2, 3))
    return torch.stack([255 - mean, mean], 1)


def flat(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_spc_is_the_share_of_factors_that_keep_the_label() -> None:
    spc, label = ScaleUp().consistency(asked(brightness), flat(0, 10, 20, 30, 60, 200))
    assert spc.tolist() == pytest.approx([1.0, 1.0, 0.4, 0.2, 0.0, 1.0])
    assert label.tolist() == [0, 0, 0, 0, 0, 1]
    one, _ = ScaleUp(factors=(1,)).consistency(asked(brightness), flat(0, 60, 200))
    assert one.tolist() == [1.0] * 3
    constant = asked(lambda images: torch.eye(3)[0].expand(len(images), -1))
    assert ScaleUp().consistency(constant, flat(7, 90))[0].tolist() == [1.0, 1.0]


def test_the_statistics_of_spc_are_those_of_the_predicted_class() -> None:
    spc = torch.tensor([0.0, 0.4, 1.0, 1.0, 0.2])
    label = torch.tensor([0, 0, 1, 1, 2])
    mean, deviation = statistics(spc, label, 4, least=2)
    whole = float(spc.std(correction=0))
    assert mean.tolist() == pytest.approx([0.2, 1.0, 0.52, 0.52])
    assert deviation.tolist() == pytest.approx([0.2, whole, whole, whole])
    assert statistics(torch.ones(4), torch.zeros(4).long(), 2, 1)[1].tolist() == [1.0, 1.0]


def test_scale_up_standardises_by_prediction_not_by_label() -> None:
    data = toys.image_set(80, seed=1)
    fresh = toys.image_set(40, seed=6).images
    for clean in (data, replace(data, labels=data.labels * 0)):
        case = toys.case(ScaleUp.sees, clean=clean)
        spc, predicted = ScaleUp().consistency(case, case.split()[0].images)
        mean, deviation = statistics(spc, predicted, 10, 4)
        found = ScaleUp(standardise=True, least=4).defend(case)
        assert found.filter is not None
        own, label = ScaleUp().consistency(case, fresh)
        wanted = (own - mean[label]) / deviation[label] - found.notes["thresholds"][label]
        assert torch.allclose(found.filter(fresh), wanted)


def test_the_threshold_is_that_of_the_predicted_class_where_it_has_enough_images() -> None:
    scores = torch.cat([torch.arange(40) / 40, 1 + torch.arange(40) / 40, torch.tensor([5.0])])
    label = torch.tensor([0] * 40 + [1] * 40 + [2])
    found = cuts(scores, label, 4, ScaleUp(rate=0.1, least=20))
    whole = cut(scores, 0.1)
    wanted = [cut(scores[:40], 0.1), cut(scores[40:80], 0.1), whole, whole]
    assert found.tolist() == pytest.approx(wanted) and len(set(wanted)) == 3
    assert bool((cuts(scores, label, 4, ScaleUp(rate=0.1, least=50)) == found[3]).all())


def test_scale_up_s_thresholds_are_chosen_or_published() -> None:
    found = outcome("scale-up", "published")
    fresh = toys.image_set(40, seed=6).images
    least = ScaleUp(factors=tuple(range(1, 12))).consistency(asked(brightness), flat(100))[0]
    assert float(least) == pytest.approx(1 / 11), "as released the image itself counts"
    case = toys.case(ScaleUp.sees)
    spc, label = ScaleUp().consistency(case, fresh)
    assert found.threshold == 0.5 and torch.equal(found.filter(fresh), spc)
    chosen = ScaleUp(rate=0.2, least=8).defend(case)
    clean, predicted = ScaleUp().consistency(case, case.clean.images)
    limits = cuts(clean, predicted, 10, ScaleUp(rate=0.2, least=8))
    assert chosen.filter is not None and chosen.threshold == 0
    assert torch.allclose(chosen.filter(fresh), spc - limits[label])
    refused = chosen.filter(case.clean.images) > 0
    for own in range(10):
        assert float(refused[predicted == own].float().mean()) <= 0.2
