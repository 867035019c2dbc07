"""Detectors by features, planted here: AC, spectral signatures, SCAn, SPECTRE, and their parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from defenses.activation_clustering import ActivationClustering, independent, silhouette
from defenses.parts.features import features_of, principal, two_means
from defenses.parts.mad import anomaly, outliers
from defenses.parts.threshold import cut, drawn
from defenses.scan import SCAn, covariances, evidence, metric
from defenses.spectral_signatures import SpectralSignatures, removed, signature
from defenses.spectre import SPECTRE, que, robust, whitened
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from tests.support import toys
from tests.support.planted import (
    feature_case,
    first,
    gaussian,
    outcome,
    planted,
    populations,
    rank,
    rotation,
)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("activation-clustering", {"reduce": "nmf"}),
        ("activation-clustering", {"share": 1.5}),
        ("spectral-signatures", {"eps": -0.1}),
        ("strip", {"fit": "gamma"}),
        ("strip", {"steps": 0}),
        ("strip-cleanser", {"rate": 1.0}),
        ("beatrix", {"orders": 0}),
        ("ibd-psc", {"error": 1.5}),
        ("spectre", {"choose": "none"}),
        ("spectre", {"eps": 0.4}),
        ("frequency", {"cut": "half"}),
        ("scan", {"theta": -1.0}),
        ("scale-up", {"factors": [0, 3]}),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match=next(iter(options))):
        catalog.make("defense", name, options)


# What they share


def test_features_are_those_of_each_image_alone() -> None:
    model, images = toys.victim(), toys.image_set(7).images
    found = features_of(model, images)
    assert found.dtype == torch.float32 and not found.requires_grad
    one = torch.cat([model.features(image[None].float().div(255)) for image in images])
    assert torch.allclose(found, one, atol=1e-5)


def test_the_cut_leaves_the_asked_share_of_clean_scores_above_it() -> None:
    scores = torch.arange(100.0)[torch.randperm(100, generator=seeds.generator("cut"))]
    for rate in (0.01, 0.05, 0.5):
        assert int((scores > cut(scores, rate)).sum()) == round(100 * rate)
    assert cut(torch.ones(30), 0.05) == 1.0, "ties: nothing exceeds the cut"
    assert cut(torch.tensor([2.0, 5.0]), 0.05) == 5.0


def test_the_threshold_s_images_are_not_those_scored_with() -> None:
    case = toys.case(frozenset({"clean"}), clean=30)
    for count, taken in ((8, 8), (100, 15)):
        some, rest = drawn(case, count)
        assert len(some) == taken and len(rest) == 30 - taken
        seen = {image.numpy().tobytes() for image in some.images}
        assert seen.isdisjoint(image.numpy().tobytes() for image in rest.images)


def test_principal_directions_leave_out_what_does_not_vary() -> None:
    features = gaussian(50, 3) @ gaussian(3, 8, seed=1) + 4
    basis, variances = principal(features, 6)
    assert basis.shape == (8, 3) and torch.allclose(basis.T @ basis, torch.eye(3).double())
    projected = (features - features.mean(0)) @ basis
    assert torch.allclose(projected.var(0, unbiased=False), variances)
    assert bool((variances.diff() <= 0).all())
    assert principal(torch.ones(5, 4).double(), 2)[0].shape == (4, 0)


@pytest.mark.parametrize("seed", range(3))
def test_two_means_finds_planted_clusters_whatever_the_order(seed: int) -> None:
    points = planted(100, 4, 10, 9.0, seed)
    order = torch.randperm(100, generator=seeds.generator(seed))
    for way in (torch.arange(100), order):
        small, centres = two_means(points[way], seeds.generator("two", seed))
        assert torch.equal(small, first(10, 100)[way])
        assert torch.allclose(centres[1], points[:10].mean(0))
    same, _ = two_means(torch.ones(6, 2).double(), seeds.generator("same"))
    assert not same.any()


def test_only_what_lies_above_the_median_stands_out() -> None:
    values = torch.tensor([5.0, 5.1, 4.9, 5.05, 4.95, 0.1, 9.9])
    assert float(anomaly(values)[5]) > 7.4 < float(anomaly(values)[6])
    assert outliers(values, 7.389).tolist() == [False] * 6 + [True], "one side"
    same = torch.tensor([3.0] * 6 + [4.0])
    assert anomaly(same)[:6].tolist() == [0.0] * 6 and float(anomaly(same)[6]) > 1e3
    assert not outliers(torch.ones(7), 2.0).any()


# Activation clustering


def judged(features: Tensor, **options: Any) -> Tensor:
    found: Tensor = ActivationClustering(**options).judge(features, seeds.generator("ac"))[1]
    return found


@pytest.mark.parametrize("reduce", ["ica", "pca"])
def test_ac_recovers_a_planted_cluster_exactly(reduce: str) -> None:
    features = planted(400, 16, 40, 12.0)
    moved = features @ rotation(16) + 100
    for given in (features, moved):
        assert torch.equal(judged(given, reduce=reduce), first(40, 400))


@pytest.mark.parametrize("seed", range(3))
def test_ac_flags_no_single_cluster_and_by_size_alone_it_may(seed: int) -> None:
    assert not judged(gaussian(400, 16, seed=seed)).any()
    # Two clean sub-groups, 30 to 70: the rule on sizes alone takes the smaller.
    groups = planted(400, 16, 120, 4.0, seed)
    assert not judged(groups, reduce="pca", silhouette=0.4).any()
    assert judged(groups, reduce="pca", silhouette=-1.0).any()


def test_ac_skips_small_classes() -> None:
    found, labels = outcome("activation-clustering", classes=43), toys.poisoned_set(43).labels
    large = torch.bincount(labels, minlength=43) >= 10
    assert [int(label) for label in found.notes["clusters"]] == large.nonzero().flatten().tolist()
    assert not found.flagged[~large[labels]].any() and not found.scores[~large[labels]].any()


def test_ac_finds_the_small_cluster_of_every_class_in_any_order() -> None:
    features, labels, _ = populations(100, 0.0)
    role = torch.arange(800) % 100 < 10
    features[role] += 12 * rotation(6)[0]
    order = torch.randperm(800, generator=seeds.generator("order"))
    train = features[order], labels[order]
    found = ActivationClustering().defend(feature_case("activation-clustering", train, train))
    assert torch.equal(found.flagged, role[order]), "all to all: each class holds its own"


def test_ac_of_features_that_do_not_vary_flags_nothing() -> None:
    scores, flagged, *_ = ActivationClustering().judge(
        torch.ones(50, 8).double(), seeds.generator("same")
    )
    assert bool(scores.isfinite().all()) and not flagged.any()


def test_independent_components_are_white_and_find_what_was_mixed() -> None:
    sources = (gaussian(2000, 3).sign() + 0.1 * gaussian(2000, 3, seed=1)) * 1.0
    found = independent(sources @ gaussian(3, 3, seed=2), 3, seeds.generator("ica"))
    assert torch.allclose(found.T @ found / 2000, torch.eye(3).double(), atol=1e-6)
    matched = torch.corrcoef(torch.cat([found, sources], 1).T)[:3, 3:].abs()
    assert bool((matched.amax(1) > 0.98).all())


def test_the_silhouette_is_that_of_its_definition() -> None:
    points, small = gaussian(30, 3), first(7, 30)
    values = []
    for place in range(30):
        away = (points - points[place]).norm(dim=1)
        own = small == small[place]
        inside, outside = away[own].sum() / (own.sum() - 1), away[~own].mean()
        values.append((outside - inside) / max(inside, outside))
    assert silhouette(points, small) == pytest.approx(float(torch.stack(values).mean()))
    assert silhouette(points, first(0, 30)) == 0.0


# Spectral signatures


def test_ss_finds_what_is_moved_along_one_direction() -> None:
    features = planted(1000, 20, 50, 4.0)
    assert rank(signature(features), first(50, 1000)) > 0.95
    moved = features @ rotation(20) + 50
    assert torch.allclose(signature(moved), signature(features), atol=1e-6)
    assert not torch.allclose(signature(moved, centred=False), signature(moved), rtol=0.1)


def test_ss_is_chance_where_half_a_class_is_poison_and_features_are_centred() -> None:
    features, half = planted(1000, 20, 500, 8.0) + 1, first(500, 1000)
    assert abs(rank(signature(features), half) - 0.5) < 0.05
    assert rank(signature(features, centred=False), half) > 0.95


def test_ss_removes_as_many_as_its_bound_says() -> None:
    for eps in (0.0, 0.05, 0.1):
        found = toys.run(SpectralSignatures(eps=eps))
        counts = torch.bincount(toys.poisoned_set().labels)
        assert int(found.flagged.sum()) == sum(int(1.5 * eps * n + 1e-9) for n in counts.tolist())
    assert removed(torch.arange(3.0), 9).all()


def test_ss_removes_the_moved_samples_of_each_class_wherever_they_stand() -> None:
    features, labels, _ = populations(100, 0.0)
    role = torch.arange(800) % 100 < 5
    features[role] += 12 * rotation(6)[0]
    order = torch.randperm(800, generator=seeds.generator("order"))
    train = features[order], labels[order]
    found = SpectralSignatures(factor=1.0).defend(feature_case("spectral-signatures", train, train))
    assert torch.equal(found.flagged, role[order]), "positions are those of the training set"
    alone = features[:21], (torch.arange(21) == 20).long()
    one = SpectralSignatures(eps=0.5).defend(feature_case("spectral-signatures", alone, alone))
    assert not one.flagged[20] and float(one.scores[20]) == 0, "of one sample nothing can be said"


# SCAn


def test_the_covariances_are_those_features_were_drawn_with() -> None:
    labels = torch.arange(400).repeat_interleave(5)
    mixing = torch.diag(torch.tensor([3.0, 1.0, 0.5]).double())
    features = (gaussian(400, 3) @ mixing)[labels] + gaussian(2000, 3, seed=1)
    identity, variation = covariances(features - features.mean(0), labels, tolerance=1e-5)
    assert torch.allclose(variation, torch.eye(3).double(), atol=0.12)
    assert torch.allclose(identity.diag(), torch.tensor([9.0, 1.0, 0.25]).double(), rtol=0.2)
    naive = features.view(400, 5, 3).mean(1).T.cov()
    assert (identity - mixing**2)[2, 2].abs() < (naive - mixing**2)[2, 2].abs()


def test_the_metric_is_a_root_of_the_pseudo_inverse() -> None:
    thin = gaussian(5, 3)
    covariance = thin @ thin.T
    root = metric(covariance)
    inverse = root @ root.T
    assert torch.allclose(inverse, torch.linalg.pinv(covariance, hermitian=True), atol=1e-6)
    assert float(torch.linalg.eigvalsh(inverse).min()) > -1e-9


def test_the_evidence_is_nothing_for_one_group_and_the_same_for_swapped_parts() -> None:
    white, small = gaussian(60, 4), first(20, 60)
    gain = evidence(white, small, white.mean(0))
    assert gain >= 0 and gain == pytest.approx(evidence(white, ~small, white.mean(0)))
    assert evidence(white, first(0, 60), white.mean(0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_scan_flags_the_class_with_a_second_mode_alone(seed: int) -> None:
    clean = populations(20, 0.0)
    for second, classes in ((7.0, [0]), (0.0, [])):
        train = populations(100, second)
        found = SCAn().defend(feature_case("scan", train, clean, f"seed {seed}"))
        assert found.notes["classes"].tolist() == classes, found.notes
        if classes:
            assert torch.equal(found.flagged, train[2])
            assert rank(found.scores, train[2]) > 0.99
        else:
            assert not found.flagged.any()


# SPECTRE


def test_que_weights_are_a_matrix_exponential_of_trace_one() -> None:
    half = gaussian(50, 4)
    covariance = half.T @ half / 20
    top = torch.linalg.eigvalsh(covariance)[-1]
    power = 4 * (covariance - torch.eye(4).double()) / (top - 1)
    wanted = torch.linalg.matrix_exp(power)
    found = que(covariance, 4.0)
    assert torch.allclose(found, wanted / wanted.trace())
    assert not torch.allclose(found, power.exp() / power.exp().trace(), atol=1e-2)
    assert torch.allclose(que(torch.eye(4).double(), 4.0), torch.eye(4).double() / 4)
    assert torch.allclose(que(0.5 * torch.eye(4).double(), 4.0), torch.eye(4).double() / 4)


def test_spectre_s_scores_of_clean_features_are_chi_square() -> None:
    kept = robust(gaussian(2000, 5), 0.05, seeds.generator("robust"))
    assert kept.all(), "nothing of a Gaussian is filtered"
    white = whitened(3 * gaussian(2000, 5) + 7, kept)
    scores = (white @ que(white.T @ white / 2000, 4.0) * white).sum(1) * 5
    assert float(scores.mean()) == pytest.approx(5, abs=0.05)
    assert float(scores.var()) == pytest.approx(10, abs=1.5)


def test_the_robust_filter_drops_far_points_and_no_more_than_its_limit() -> None:
    for poisoned, far in ((10, 40.0), (200, 60.0)):
        features = planted(1000, 4, poisoned, far)
        kept = robust(features, 0.05, seeds.generator("robust"))
        assert int((~kept).sum()) <= 100
        if poisoned == 10:
            assert torch.equal(~kept, first(10, 1000))


def test_spectre_finds_what_moves_along_a_direction_of_little_variance() -> None:
    features = planted(1000, 20, 50, 8.0)
    features[:, 0] *= 30
    assert rank(signature(features), first(50, 1000)) < 0.7
    found, strength = SPECTRE().examine(features, seeds.generator("spectre"))
    assert rank(found, first(50, 1000)) > 0.95
    clean = planted(1000, 20, 0, 0.0)
    clean[:, 0] *= 30
    assert strength > 1.1 * SPECTRE().examine(clean, seeds.generator("spectre"))[1]
    turned, _ = SPECTRE().examine(features @ rotation(20) + 9, seeds.generator("spectre"))
    assert torch.allclose(turned, found, rtol=1e-4, atol=1e-6)


def test_spectre_removes_its_bound_from_the_class_that_stands_out() -> None:
    train = populations(200, 9.0)
    found = SPECTRE().defend(feature_case("spectre", train, train))
    assert found.notes["classes"].tolist() == [0]
    assert int(found.flagged.sum()) == int(1.5 * 0.05 * 200)
    assert bool(train[2][found.flagged].all()), "a tenth is poisoned, all that is flagged is"
    assert SPECTRE(choose="largest").defend(feature_case("spectre", train, train)).flagged.any()
    assert not SPECTRE(eps=0.0).defend(feature_case("spectre", train, train)).flagged.any()
