"""Detectors that train or differentiate: CT and AGPD, parts by their definitions, and on toys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor
from torch.nn import functional

from defenses.agpd import AGPD, directions, distance, gap, grown, quiet, ratios, standing
from defenses.base import Needs
from defenses.confusion_training import (
    ConfusionTraining,
    confused,
    joint,
    lowest,
    rarity,
    ratio,
)
from defenses.parts.outputs import convolutions, watched
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from tests.support import toys


def draws(*shape: int, name: str = "draws") -> Tensor:
    return torch.randn(*shape, generator=seeds.generator("set", name), dtype=torch.float64)


GREY: dict[str, Any] = {"shape": toys.GREY}
"""Of a toy victim on small images, on which trainings take less than a second."""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("agpd", {"tau": 1.0}),
        ("agpd", {"per_class": 0}),
        ("confusion-training", {"keep": [0.5, 0.0]}),
        ("confusion-training", {"rates": [0.1]}),
        ("confusion-training", {"theta": 0.5}),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any]) -> None:
    if "keep" in options:
        options = {**options, "every": [1] * 3, "balance": [2] * 3, "rates": [0.1] * 3}
    with pytest.raises(SweepError, match=next(iter(options))):
        catalog.make("defense", name, options)


# Confusion training


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_confused_labels_are_never_those_predicted_and_go_round_the_others(classes: int) -> None:
    predicted = torch.arange(40) % classes
    found = torch.stack([confused(predicted, step, classes) for step in range(2 * classes)])
    assert not bool((found == predicted).any())
    assert int(found.min()) >= 0 and int(found.max()) < classes
    for place in range(3):
        assert len(found[: classes - 1, place].unique()) == classes - 1


def test_the_lowest_go_on_and_some_of_each_class() -> None:
    losses = draws(1000).abs() + 1
    labels = torch.arange(1000) % 4
    losses[labels == 2] += 100
    for share, least in ((0.5, 0.02), (0.01, 0.02), (0.01, 0.01)):
        kept = lowest(losses, labels, share, least)
        order = losses.argsort()
        assert bool(kept[order[: int(1000 * share)]].all()), "the share of lowest losses"
        floor = int(250 * least)
        counts = torch.bincount(labels[kept], minlength=4)
        assert int(counts.min()) >= floor and int(counts[2]) == floor
        own = losses[labels == 2]
        assert float(losses[kept & (labels == 2)].max()) <= float(own.sort().values[floor - 1])
        others = torch.bincount(labels[order[: int(1000 * share)]], minlength=4)
        assert torch.equal(counts, others.clamp(min=floor)), "and nothing else"
    few = lowest(torch.arange(9.0), torch.arange(9) % 3, 0.01, 0.02)
    assert few.tolist() == [True] * 3 + [False] * 6


def test_rare_classes_weigh_more() -> None:
    found = rarity(torch.tensor([0] * 90 + [1] * 10), 3)
    assert found.tolist() == pytest.approx([0.901**-0.5, 0.101**-0.5, 0.001**-0.5], rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_two_gaussians_are_likelier_than_one_and_far_likelier_of_two_modes(seed: int) -> None:
    features = draws(300, 6, name=f"features {seed}")
    chosen = torch.rand(300, generator=seeds.generator("set", seed)) < 0.2
    plain = ratio(features, chosen)
    assert 1 <= plain < 1.1
    features[chosen, 2] += 9
    assert ratio(features, chosen) > 2
    assert ratio(features, torch.arange(300) < 1) == 1.0, "one sample is no part"
    assert ratio(torch.ones(20, 4).double(), torch.arange(20) < 9) == pytest.approx(1.0)


def test_the_ratio_is_that_of_two_normal_densities() -> None:
    features = draws(60, 2)
    chosen = torch.arange(60) < 25
    features[chosen] += 3
    total = 0.0
    for sign, part in ((1, features[chosen]), (1, features[~chosen]), (-1, features)):
        covariance = part.T.cov(correction=0) + 1e-3 * torch.eye(2)
        normal = torch.distributions.MultivariateNormal(part.mean(0), covariance)
        total += sign * float(normal.log_prob(part).sum())
    assert ratio(features, chosen) == pytest.approx(2.718281828 ** (total / 60), rel=1e-6)


def test_classes_are_cleansed_by_their_ratio_or_the_largest_alone() -> None:
    labels = torch.arange(600) % 3
    features, isolated = draws(600, 4), torch.arange(600) % 2 == 0
    features[isolated & (labels == 1), 0] += 30
    flagged, found = ConfusionTraining().judge(features, isolated, labels)
    assert found[1] > 2 > 1.5 > max(found[0], found[2])
    assert torch.equal(flagged, isolated & (labels == 1))
    high = ConfusionTraining(theta=1e9)
    assert torch.equal(high.judge(features, isolated, labels)[0], flagged), "the largest, alone"
    features[isolated & (labels == 2), 0] += 60
    both, _ = ConfusionTraining().judge(features, isolated, labels)
    assert torch.equal(both, isolated & (labels > 0))
    one, ratios_ = high.judge(features, isolated, labels)
    assert torch.equal(one, isolated & (labels == max(ratios_, key=lambda k: ratios_[k])))
    assert not ConfusionTraining().judge(draws(600, 4), isolated, labels)[0].any()


def test_with_balance_one_a_step_is_plain_weighted_training() -> None:
    model, data = toys.victim(**GREY), toys.image_set(24, **GREY)
    images, weights = data.images.float() / 255, torch.arange(1.0, 11.0)
    both = [(images[:8], confused(data.labels[:8], 0, 10)), (images[8:], data.labels[8:])]
    logits = model(images)
    kept = functional.cross_entropy(logits[8:], data.labels[8:], weight=weights)
    wrong = functional.cross_entropy(logits[:8], both[0][1])
    assert torch.allclose(joint(model, both, weights, 1.0), kept)
    assert torch.allclose(joint(model, both, weights, 20.0), (19 * wrong + kept) / 20)
    assert torch.allclose(joint(model, both[:1], weights, 20.0), wrong, atol=1e-5)


def test_ct_finds_the_toy_trigger() -> None:
    asked = ConfusionTraining(
        keep=(0.5,),
        every=(2, 2),
        balance=(8, 8),
        rates=(0.01, 0.01),
        first_epochs=3,
        first_steps=40,
    )
    outcome = asked.defend(toys.case(asked.sees, **GREY))
    assert outcome.notes["left"][0] == 240 and 120 <= outcome.notes["left"][1] < 130
    assert toys.auroc(outcome.scores) > 0.95 and outcome.flagged is not None
    poisoned = toys.poisoned_set(**GREY).role == 1
    assert float((outcome.flagged == poisoned).float().mean()) > 0.95


# AGPD


def test_directions_are_the_gradients_of_the_label_s_logit() -> None:
    model, data = toys.victim(**GREY), toys.image_set(5, **GREY)
    convs = convolutions(model)
    found = directions(model, convs, data.images, data.labels)
    for place in range(5):
        with watched(convs) as seen:
            pixels = data.images[place : place + 1].float() / 255
            logit = model(pixels)[0, data.labels[place]]
        for part, conv in zip(found, convs, strict=True):
            (slope,) = torch.autograd.grad(logit, [seen[conv]], retain_graph=True)
            assert torch.allclose(part[place], slope[0].mean((1, 2)), atol=1e-5)
    assert not any(part._forward_hooks for part in model.modules())
    assert all(value.grad is None for value in model.parameters())


def test_the_gap_is_that_of_its_definition() -> None:
    found, clean = draws(20, 6), draws(6, name="clean")
    to_clean = functional.cosine_similarity(found, clean[None])
    far = int(to_clean.argmin())
    away = to_clean - functional.cosine_similarity(found, found[far : far + 1])
    wanted = torch.cat([away[:far], away[far + 1 :]]).norm() / 20**0.5
    width, near = gap(found, clean)
    assert torch.allclose(width, wanted) and torch.allclose(near, to_clean)
    assert torch.allclose(gap(7 * found, 0.1 * clean)[0], wanted), "lengths do not matter"


def test_only_gaps_above_the_median_stand_out() -> None:
    gaps = torch.tensor([0.1, 0.11, 0.12, 0.13, 0.9, 0.14, -0.9])
    found = standing(gaps)
    assert int(found.argmax()) == 4 and float(found[4]) == pytest.approx(
        (0.9 - 0.12) / (1.4826 * 0.02), rel=1e-4
    )
    assert float(found[6]) == 0


def mixed(count: int, poisoned: int) -> tuple[Tensor, Tensor]:
    """Directions of a class, the first `poisoned` of which point elsewhere, and the clean one."""
    clean = torch.eye(12, dtype=torch.float64)[0]
    found = clean + 0.25 * draws(count, 12)
    found[:poisoned] += 1.5 * torch.eye(12, dtype=torch.float64)[1] - 1.5 * clean
    return found, clean


def test_the_group_grows_over_what_points_elsewhere_and_ends() -> None:
    found, clean = mixed(400, 60)
    joined, moved = grown(found, clean, 0.05)
    assert bool((joined >= 0).all()) and int(joined.max()) == len(moved)
    assert int((joined == 0).sum()) == 1 and bool((joined[:60] == 0).any())
    between = ratios(found, clean, found[0])
    assert 0 <= float(between.min()) and float(between.max()) <= 1
    chosen = joined <= quiet(moved)
    assert int(chosen[:60].sum()) >= 54 and int(chosen[60:].sum()) <= 17
    assert torch.equal(grown(3 * found, 9 * clean, 0.05)[0], joined)
    same, rounds = grown(torch.ones(30, 4), torch.ones(4), 0.05)
    assert sorted(same.unique().tolist()) == [0, 1] and rounds == [1.0]


def test_the_distance_is_scipy_s_and_the_window_the_quietest() -> None:
    one, other = draws(30).abs(), draws(30, name="other").abs()
    one, other = one / one.sum(), other / other.sum()
    assert distance(one, other) == pytest.approx(float(jensenshannon(one, other)))
    assert distance(one, one) == pytest.approx(0, abs=1e-7)
    assert distance(one, torch.zeros(30).double()) == 1.0
    assert quiet([0.5, 0.4, 0.3] + [0.1] * 12 + [0.9]) == 3
    assert quiet([0.9] + [0.1] * 3) == 1 and quiet([0.4]) == 0 and quiet([]) == 0


def test_agpd_flags_the_poisoned_samples_of_the_target_alone() -> None:
    outcome = AGPD().defend(toys.case(AGPD.sees, **GREY))
    roles = toys.poisoned_set(**GREY)
    assert outcome.notes["classes"] == [0]
    assert toys.auroc(outcome.scores) > 0.9
    assert outcome.flagged is not None and not outcome.flagged[roles.labels != 0].any()
    assert float(outcome.flagged[roles.role == 1].float().mean()) > 0.9
    clean = (roles.role == 0) & (roles.labels == 0)
    assert float(outcome.flagged[clean].float().mean()) < 0.1


def test_agpd_does_not_depend_on_the_scale_of_the_logits() -> None:
    model = toys.victim(**GREY)
    with torch.no_grad():
        model.classifier.get_parameter("weight").mul_(5)
        model.classifier.get_parameter("bias").mul_(5)
    one, other = (
        AGPD().defend(toys.case(AGPD.sees, model=given, **GREY)) for given in (model, None)
    )
    assert one.scores is not None and other.scores is not None
    assert torch.allclose(one.scores, other.scores, atol=1e-4)
    assert one.flagged is not None and other.flagged is not None
    assert torch.equal(one.flagged, other.flagged)


def test_agpd_finds_no_target_without_a_gap() -> None:
    layer, chosen, index = AGPD().targets(0.1 + 0.01 * draws(5, 10))
    assert not chosen and len(index) == 10 and 0 <= layer < 5
    wide = torch.full((5, 10), 0.1)
    wide[2, 3] = wide[1, :2] = 0.5  # no spread: the last layers but one are asked
    assert AGPD(theta=1e9).targets(wide)[:2] == (1, [0, 1])
    wide[2, 3], wide[1, :2], wide[4, 6] = 0.1, 0.1, 0.9
    assert AGPD(theta=1e9).targets(wide)[1] == [], "the very last is not"


def test_agpd_says_what_it_needs() -> None:
    needs = Needs(10, toys.COLOUR, "tiny", True, 80)
    assert AGPD().applies(needs) is None
    assert "needs six" in (AGPD().applies(Needs(5, toys.COLOUR, "tiny", True, 80)) or "")
