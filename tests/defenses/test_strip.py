"""STRIP and its cleanser: entropy, overlays, thresholds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.parts.strip import entropy
from defenses.parts.threshold import drawn
from defenses.strip import STRIP
from defenses.strip_cleanser import STRIPCleanser
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from tests.support import toys
from tests.support.planted import gaussian, rank


class Constant(nn.Module):
    """Gives every image the same logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def strip(model: Any = None, **options: Any) -> tuple[Any, float]:
    sees = frozenset({"model", "clean"})
    case = toys.case(sees, model=model, clean=options.pop("clean", 80))
    return STRIP(**options).scorer(case)


def test_strip_s_entropy_is_in_bits_and_has_its_bounds() -> None:
    logits = 3 * gaussian(50, 7).float()
    found, p = entropy(logits), logits.double().softmax(1)
    assert torch.allclose(found.double(), -(p * p.log2()).sum(1), atol=1e-5)
    assert bool((found >= 0).all()) and bool((found <= torch.tensor(7.0).log2()).all())
    sure = torch.tensor([[0.0, 1000.0, -1000.0]])
    assert entropy(sure).tolist() == [0.0], "a probability of 0 gives no NaN"
    assert entropy(torch.zeros(1, 8)).tolist() == pytest.approx([3.0])


@pytest.mark.parametrize(("sharp", "bits"), [(0.0, 3.0), (500.0, 0.0)])
def test_strip_scores_a_constant_model_by_its_entropy(sharp: float, bits: float) -> None:
    model = Constant(torch.arange(8) * sharp)
    score, threshold = strip(model, steps=5)
    assert (-score(toys.image_set(6).images)).tolist() == pytest.approx([bits] * 6, abs=1e-5)
    assert -threshold == pytest.approx(bits, abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"image_weight": 0.5, "clip": True}])
def test_strip_is_the_mean_over_its_overlays_in_any_order(options: dict[str, Any]) -> None:
    model, images = toys.victim(), toys.image_set(9, seed=4).images
    score, _ = strip(steps=6, **options)
    overlays, _ = drawn(toys.case(frozenset({"clean"})), 6)
    x, z = images.float().div(255), overlays.images.flip(0).float().div(255)
    blends = x[:, None] * options.get("image_weight", 1.0) + z[None]
    blends = blends.clamp(0, 1) if options else blends
    assert options or float(blends.max()) > 1, "unclipped by default"
    p = model(blends.flatten(0, 1)).detach().double().softmax(1).clamp(min=1e-300)
    wanted = -(p * p.log2()).sum(1).view(9, 6).mean(1)
    assert torch.allclose(score(images).double(), -wanted, atol=1e-4)
    assert torch.allclose(score(images[:1]), score(images)[:1], atol=1e-5), "each on its own"


def test_normalised_blends_are_sums_of_normalised_images() -> None:
    model, images = toys.victim(), toys.image_set(9, seed=4).images
    weights = {"image_weight": 0.7, "overlay_weight": 1.1}
    score, _ = strip(steps=6, normalised=True, **weights)
    overlays, _ = drawn(toys.case(frozenset({"clean"})), 6)
    x, z = (model.normalise(part.float().div(255)) for part in (images, overlays.images))
    blends = (0.7 * x[:, None] + 1.1 * z[None]).flatten(0, 1)
    with torch.no_grad():
        wanted = entropy(model.classifier(model.trunk(blends))).view(9, 6).mean(1)
    assert torch.allclose(score(images), -wanted, atol=1e-4)
    with pytest.raises(SweepError, match="no range to clip to"):
        STRIP(clip=True, normalised=True)


def test_strip_flags_its_share_of_fresh_clean_images_and_triggered_ones() -> None:
    fresh = toys.image_set(300, seed=7)
    score, threshold = strip(steps=8, clean=400, rate=0.1)
    found = score(fresh.images) > threshold
    assert abs(float(found.float().mean()) - 0.1) < 3 * (0.1 * 0.9 * (1 / 300 + 1 / 390)) ** 0.5
    hit = toys.PLANTED.trigger_set(fresh, {}, seeds.generator("trigger"))
    both = torch.cat([score(fresh.images[:100]), score(hit.images[:100])])
    assert rank(both, torch.arange(200) >= 100) > 0.8


def test_strip_s_normal_fit_is_the_paper_s() -> None:
    score, threshold = strip(fit="normal", rate=0.01, steps=5)
    _, rest = drawn(toys.case(frozenset({"clean"})), 5)
    clean = score(rest.images).double()
    wanted = clean.mean() + 2.3263478740408408 * clean.std(correction=0)
    assert threshold == pytest.approx(float(wanted), rel=1e-6)


def test_the_cleanser_scores_training_samples_in_their_order() -> None:
    found = toys.run(STRIPCleanser(steps=4))
    score, threshold = STRIPCleanser(steps=4).scorer(toys.case(STRIPCleanser.sees))
    data = toys.poisoned_set()
    assert torch.allclose(found.scores[50:60], score(data.images[50:60]), atol=1e-5)
    assert torch.equal(found.flagged, found.scores > threshold)
