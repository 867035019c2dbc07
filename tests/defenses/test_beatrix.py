"""Beatrix: Gram entries, limits, held-out deviations, the discrepancy of classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from defenses.beatrix import Beatrix, Limits, grams, held_out, maps, mmd, stage
from defenses.parts.threshold import cut
from sweeper.core import seeds
from tests.support import toys
from tests.support.planted import gaussian, rank


def test_the_gram_entries_are_those_of_their_definition() -> None:
    features = gaussian(3, 4, 9)
    found, upper = grams(features, 3), torch.triu_indices(4, 4)
    plain = (features @ features.mT)[:, upper[0], upper[1]]
    assert torch.allclose(found[:, 0], plain), "order 1 is the plain Gram matrix, with its sign"
    third = torch.einsum("bil,bjl->bij", features**3, features**3)[:, upper[0], upper[1]]
    assert torch.allclose(found[:, 2] ** 3, third)
    rooted = grams(features, 3, powers=False)
    assert torch.allclose(rooted[:, 2] ** 3, plain) and not torch.allclose(rooted, found)
    order = torch.randperm(9, generator=seeds.generator("places"))
    assert torch.allclose(grams(features[:, :, order], 3), found), "places do not matter"
    assert not grams(torch.zeros(2, 4, 9).double(), 8).any()


def test_what_lies_within_the_limits_deviates_by_nothing() -> None:
    clean = grams(gaussian(20, 3, 16), 2)
    limits = Limits.of(clean)
    assert float(limits.deviation(clean.quantile(0.5, dim=0)[None], 3)) == 0
    far = limits.high.clone()
    far[0, 0] *= 2
    assert float(limits.deviation(far[None], 3)) == pytest.approx(1 / (9 / 2 * 2))
    assert bool(Limits.of(torch.zeros(5, 2, 6).double()).deviation(clean, 3).isfinite().all())


def test_held_out_deviations_are_those_of_fresh_images() -> None:
    clean, fresh = (
        grams(gaussian(count, 3, 4, seed=seed) * gaussian(count, 1, 1, seed=seed + 8).exp(), 3)
        for seed, count in enumerate((200, 1000))
    )
    threshold = cut(held_out(clean, 3), 0.05)
    found = float((Limits.of(clean).deviation(fresh, 3) > threshold).double().mean())
    assert 0.01 < found < 0.12
    inside = Limits.of(clean).deviation(clean, 3)
    assert float(held_out(clean, 3).mean()) > float(inside.mean()), "they do not fit their limits"
    tied = gaussian(1000, 1, 4, seed=3).expand(-1, 3, -1) * 9 + gaussian(1000, 3, 4, seed=2)
    both = Limits.of(clean).deviation(torch.cat([fresh, grams(tied, 3)]), 3)
    assert rank(both, torch.arange(2000) >= 1000) > 0.9, "channels that move together stand out"


def test_the_discrepancy_tells_distributions_apart() -> None:
    one, same, other = gaussian(200, 3), gaussian(200, 3, seed=1), gaussian(200, 3, seed=2) + 2
    assert mmd(one, other) > 10 * mmd(one, same) >= 0
    assert mmd(one, other) == pytest.approx(mmd(other, one), rel=1e-4)
    assert mmd(one, other[:1]) == 0 and mmd(torch.ones(3, 2), torch.ones(3, 2)) == 0
    assert mmd(one, other, weighted=False) == pytest.approx(
        mmd(other, one, weighted=False), rel=1e-4
    )
    few = one[:3], gaussian(300, 3, seed=3)
    large = 5 * mmd(one, same, weighted=False)
    assert mmd(*few, weighted=False) > large, "of three samples the biased estimate is large"
    assert mmd(*few) < mmd(one, other) / 20


@pytest.mark.parametrize("name", ["resnet18", "preact-resnet18", "vgg16-bn", "mobilenet-v2"])
def test_the_map_before_the_last_stage_leads_to_the_model_s_prediction(name: str) -> None:
    model = toys.network(seeds.generator(name), model=name).eval()
    images = toys.image_set(2, shape=toys.COLOUR).images
    ((features, label),) = maps(model, images)
    assert features.ndim == 3 and features.shape[2] >= 2 and stage(model) > 0
    assert torch.equal(label, model(images.float().div(255)).argmax(1))


def test_beatrix_flags_deviating_samples_of_a_class_that_stands_out_alone() -> None:
    means, labels = gaussian(800, 4), torch.arange(800) % 8
    scores = torch.where(torch.arange(800) % 80 < 16, 2.0, 0.5)
    means[(labels == 3) & (scores > 1)] += 3
    found = Beatrix().judge(scores, means, labels, 8)
    assert found.notes["classes"].tolist() == [3]
    assert torch.equal(found.flagged, (labels == 3) & (scores > 1))


def test_beatrix_is_not_misled_by_a_few_odd_images_of_clean_classes() -> None:
    means, labels = gaussian(4000, 4), torch.arange(4000) % 8
    scores = torch.full((4000,), 0.5)
    for label in range(8):  # class 3 has 200 of another distribution, the others 2 to 5
        odd = (labels == label).nonzero().flatten()[: 200 if label == 3 else 2 + label % 4]
        scores[odd] = 2.0
        means[odd] += 3
    assert Beatrix().judge(scores, means, labels, 8).notes["classes"].tolist() == [3]
    plain = Beatrix(weighted=False).judge(scores, means, labels, 8)
    assert not len(plain.notes["classes"]), "the plain discrepancy sees no difference"


def test_beatrix_groups_by_prediction_and_never_by_the_labels_given() -> None:
    case, relabelled = toys.case(Beatrix.sees), toys.case(Beatrix.sees)
    data = case.train
    relabelled._given["train"] = replace(data, labels=(data.labels + 1) % 10)
    held = relabelled.clean
    relabelled._given["clean"] = replace(held, labels=held.labels.flip(0))
    found, again = (Beatrix(orders=2).defend(given) for given in (case, relabelled))
    assert torch.equal(found.scores, again.scores) and torch.equal(found.flagged, again.flagged)
