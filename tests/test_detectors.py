"""Detectors of poisoned samples and filters of triggered inputs, on planted features and toys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from defenses._features import features_of, principal, two_means
from defenses._mad import anomaly, outliers
from defenses._strip import entropy
from defenses._threshold import cut, drawn
from defenses.activation_clustering import ActivationClustering, independent, silhouette
from defenses.base import Case, Needs
from defenses.beatrix import Beatrix, Limits, grams, held_out, maps, mmd, stage
from defenses.frequency import (
    Frequency,
    Spectrum,
    blocks,
    cosines,
    detector,
    odds,
    shadows,
    triggered,
)
from defenses.ibd_psc import IBDPSC, norms
from defenses.scale_up import ScaleUp, cuts, statistics
from defenses.scan import SCAn, covariances, evidence, metric
from defenses.spectral_signatures import SpectralSignatures, removed, signature
from defenses.spectre import SPECTRE, que, robust, whitened
from defenses.strip import STRIP
from defenses.strip_cleanser import STRIPCleanser
from sweeper import catalog, metrics, seeds
from sweeper.errors import SweepError
from sweeper.types import ImageSet

PARTS = ("weight", "bias")


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeds.generator("detectors", seed), dtype=torch.float64)


def planted(count: int, width: int, poisoned: int, far: float, seed: int = 0) -> Tensor:
    """Gaussian features [count, width]; the first `poisoned` moved by `far` along one direction."""
    found = gaussian(count, width, seed=seed)
    found[:poisoned, 1] += far
    return found


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(gaussian(width, width, seed=9))[0]


def first(count: int, of: int) -> Tensor:
    return torch.arange(of) < count


def rank(scores: Tensor, positive: Tensor) -> float:
    found = metrics.auroc(scores.double().numpy(), positive.numpy())
    assert found is not None
    return found


def outcome(name: str, preset: str = "", **given: Any) -> Any:
    return toys.run(toys.short("defense", name, toys.asked(preset)), **given)


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


# STRIP


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


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "clip": True}])
def test_strip_is_the_mean_over_its_overlays_in_any_order(options: dict[str, Any]) -> None:
    model, images = toys.victim(), toys.image_set(9, seed=4).images
    score, _ = strip(steps=6, **options)
    overlays, _ = drawn(toys.case(frozenset({"clean"})), 6)
    x, z = images.float().div(255), overlays.images.flip(0).float().div(255)
    blends = x[:, None] * options.get("alpha", 1.0) + z[None]
    blends = blends.clamp(0, 1) if options else blends
    assert options or float(blends.max()) > 1, "unclipped by default"
    p = model(blends.flatten(0, 1)).detach().double().softmax(1).clamp(min=1e-300)
    wanted = -(p * p.log2()).sum(1).view(9, 6).mean(1)
    assert torch.allclose(score(images).double(), -wanted, atol=1e-4)
    assert torch.allclose(score(images[:1]), score(images)[:1], atol=1e-5), "each on its own"


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


# SCALE-UP


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


# SCAn


def populations(
    counts: int, second: float, *, classes: int = 8, width: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and roles: classes apart by 5, a tenth of class 0 moved by `second`."""
    centres = 5 * gaussian(classes, width, seed=50 + seed)
    labels = torch.arange(classes).repeat_interleave(counts)
    role = (labels == 0) & first(counts // 10, len(labels))
    features = centres[labels] + gaussian(len(labels), width, seed=seed)
    features[role] += second * gaussian(1, width, seed=70).div(gaussian(1, width, seed=70).norm())
    return features, labels, role


class Given(nn.Module):
    """A network whose features are what its images encode, one number a pixel."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, classes)
        self.width = width

    def features(self, x: Tensor) -> Tensor:
        return (255 * x.flatten(1)[:, : self.width] - 128) / 5

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


def encoded(features: Tensor, labels: Tensor, classes: int) -> ImageSet:
    """Images whose first pixels are these features, in steps of a fifth."""
    images = torch.zeros(len(features), 3 * 64, dtype=torch.uint8)
    images[:, : features.shape[1]] = (features * 5 + 128).round().clamp(0, 255).to(torch.uint8)
    names = tuple(f"class {number}" for number in range(classes))
    return ImageSet(images.view(-1, 3, 8, 8), labels, names)


def feature_case(name: str, train: Any, clean: Any, key: str = "toy case") -> Case:
    """A case whose model has the features given as (features, labels)."""
    sees = catalog.method("defense", name).sees
    data, held = (encoded(*given[:2], 8) for given in (train, clean))
    case = toys.case(sees, clean=held, model=Given(8, train[0].shape[1]), key=key)  # type: ignore
    case._given["train"] = data
    return case


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


# Frequency detector


def test_the_cosine_transform_is_orthonormal_and_scipy_s() -> None:
    from scipy.fft import dctn

    pixels = toys.image_set(4).images.float().div(255)
    found = Spectrum(32, 32)(pixels)
    wanted = dctn(255 * pixels.double().numpy(), axes=(2, 3), norm="ortho")
    assert torch.allclose(found.double(), torch.from_numpy(wanted), atol=1e-2)
    assert torch.allclose(found.square().sum(), (255 * pixels).square().sum(), rtol=1e-5)
    basis = cosines(12)
    assert torch.allclose(basis @ basis.T, torch.eye(12).double(), atol=1e-12)
    constant = Spectrum(8, 16)(torch.full((1, 1, 8, 16), 0.5))[0, 0]
    assert float(constant[0, 0]) == pytest.approx(127.5 * 128**0.5, rel=1e-5)
    assert float(constant.flatten()[1:].abs().max()) < 1e-3, "a constant image is all in one"


def test_the_detector_has_the_release_s_parameters() -> None:
    model = detector(toys.COLOUR, seeds.generator("detector"))
    learned = sum(value.numel() for value in model.parameters())
    running = sum(value.numel() for name, value in model.named_buffers() if "running" in name)
    assert learned + running == 292_898
    same = detector(toys.COLOUR, seeds.generator("detector"))
    assert toys.same(toys.weights(model), toys.weights(same))


def test_made_up_triggers_change_every_image_and_stay_in_range() -> None:
    images = 0.2 + 0.5 * toys.image_set(300).images.float().div(255)
    before, found = images.clone(), triggered(images, seeds.generator("made"))
    assert torch.equal(images, before) and 0 <= float(found.min()) and float(found.max()) <= 1
    changed = (found != images).flatten(1).double().mean(1)
    assert float((changed > 0).double().mean()) > 0.97, "a thin shadow may miss every pixel"
    assert bool((changed > 0.99).any()) and bool(((changed > 0) & (changed < 0.05)).any())


def test_blocks_lie_whole_within_the_image_near_every_corner() -> None:
    found = blocks(400, 20, 24, seeds.generator("blocks"))[:, 0]
    tall, wide = found.any(2).sum(1), found.any(1).sum(1)
    assert torch.equal(found.sum((1, 2)), tall * wide), "a rectangle"
    assert {int(v) for v in (*tall, *wide)} == set(range(2, 8))
    corners = found[:, :7, :7], found[:, :7, -7:], found[:, -7:, :7], found[:, -7:, -7:]
    hits = torch.stack([part.flatten(1).any(1) for part in corners])
    assert bool((hits.sum(0) == 1).all()) and int(hits.sum(1).min()) > 60


def test_shadows_are_triangles_of_either_winding() -> None:
    found = shadows(2000, 16, 16, seeds.generator("shadows")).double().mean((1, 2, 3))
    assert float(found.mean()) == pytest.approx(11 / 144, abs=0.01), "of three uniform points"


def test_the_detector_learns_to_tell_patches_it_never_saw() -> None:
    smooth = torch.nn.functional.interpolate(
        torch.rand(160, 3, 4, 4, generator=seeds.generator("smooth")), 32, mode="bicubic"
    )
    images = (255 * smooth).clamp(0, 255).to(torch.uint8)
    clean = ImageSet(images, torch.arange(160) % 10, tuple(map(str, range(10))))
    case = toys.case(frozenset({"clean"}), clean=clean[:120])
    model = detector(toys.COLOUR, seeds.generator("detector"))
    Frequency(epochs=4, lr=0.5).learn(case, model, case.clean)
    hit = toys.PLANTED.trigger_set(clean[120:], {}, seeds.generator("trigger")).images
    scores = odds(case, model, torch.cat([images[120:], hit]))
    assert rank(scores, torch.arange(len(scores)) >= 40) > 0.9


# Beatrix


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
    images = toys.image_set(2).images
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


# IBD-PSC


def test_the_norms_are_those_of_the_forward_pass() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.BatchNorm2d(3)
            self.bare = nn.BatchNorm2d(3, affine=False)
            self.first = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.bare(self.first(self.first(x))))
            return out

    model = Crossed().eval()
    assert norms(model, toys.image_set(1).images) == ["first", "last"]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_copy_has_its_last_layers_amplified_and_the_victim_none() -> None:
    case = toys.case(IBDPSC.sees)
    order = norms(case.model, case.clean.images[:1])
    before = toys.weights(case._given["model"])
    for count in (0, 2, len(order)):
        model = IBDPSC().copy(case, order, count)
        wanted = {f"{name}.{part}" for name in order[len(order) - count :] for part in PARTS}
        assert toys.differing(model, case.model) <= wanted
        for name in order[len(order) - count :]:
            assert torch.equal(model.state_dict()[f"{name}.weight"], 1.5 * before[f"{name}.weight"])
            assert torch.equal(model.state_dict()[f"{name}.bias"], 1.5 * before[f"{name}.bias"])
    assert toys.same(before, toys.weights(case._given["model"]))


def test_layers_are_amplified_until_the_error_passes() -> None:
    case = toys.case(IBDPSC.sees, clean=120)
    order = norms(case.model, case.clean.images[:1])
    for error in (0.05, 0.6):
        count, errors = IBDPSC(error=error, factor=3.0).enough(case, order, case.clean)
        assert len(errors) == count and all(value <= error for value in errors[:-1])
        assert errors[-1] > error or count == len(order)
        again = 1 - case.accuracy(IBDPSC(factor=3.0).copy(case, order, count), case.clean)
        assert again == pytest.approx(errors[-1])
    found = IBDPSC(error=1.0).defend(case)
    assert found.notes["layers"] == [len(order)], "all layers, once"


def test_with_factor_one_the_score_is_the_top_probability() -> None:
    case, images = toys.case(IBDPSC.sees), toys.image_set(30, seed=6).images
    found = IBDPSC(factor=1.0).defend(case).filter
    assert found is not None
    top = case.model(images.float().div(255)).softmax(1).amax(1)
    assert torch.allclose(found(images), top, atol=1e-5)
    assert outcome("ibd-psc", "published").threshold == 0.9


@pytest.mark.parametrize("name", ["ibd_psc", "_strip"])
def test_every_input_of_a_filter_is_scored_in_batches_as_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense, images = (IBDPSC() if name == "ibd_psc" else STRIP(steps=3)), toys.image_set(25).images
    whole = defense.defend(toys.case(defense.sees)).filter
    assert whole is not None
    before = whole(images)
    monkeypatch.setattr(f"defenses.{name}.BATCH", 8)
    assert len(before) == 25 and torch.allclose(whole(images), before, atol=1e-5)


def test_ibd_psc_says_what_a_model_without_norms_lacks() -> None:
    needs = Needs(10, toys.COLOUR, "vit-tiny", False, 80)
    assert "BatchNorm" in (IBDPSC().applies(needs) or "")
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(SweepError, match="BatchNorm"):
        IBDPSC().defend(toys.case(IBDPSC.sees, model=bare))


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
