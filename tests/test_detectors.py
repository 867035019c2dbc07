"""Detectors of poisoned samples and filters of triggered inputs, on planted features and toys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from defenses._features import features_of, principal, two_means
from defenses._strip import entropy
from defenses._threshold import cut, drawn
from defenses.activation_clustering import ActivationClustering, independent, silhouette
from defenses.base import Case
from defenses.scale_up import ScaleUp, statistics
from defenses.spectral_signatures import SpectralSignatures, removed, signature
from defenses.strip import STRIP
from defenses.strip_cleanser import STRIPCleanser
from sweeper import catalog, metrics, seeds
from sweeper.errors import SweepError


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
        score = ScaleUp(standardise=True, least=4).defend(case).filter
        own, label = ScaleUp().consistency(case, fresh)
        assert torch.allclose(score(fresh), (own - mean[label]) / deviation[label])


def test_scale_up_s_threshold_is_chosen_or_published() -> None:
    assert outcome("scale-up", "published").threshold == 0.5
    case = toys.case(ScaleUp.sees)
    found = ScaleUp(rate=0.2).defend(case)
    spc, _ = ScaleUp().consistency(case, case.split()[1].images)
    assert found.threshold == cut(spc, 0.2)
