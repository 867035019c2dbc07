"""Baselines: the arithmetic of NAD, I-BAU and the detectors of poisoned training samples."""

from __future__ import annotations

import pytest
import torch
from torch import Generator
from torch.nn import functional

from defenses.activation_clustering import ActivationClustering, independent, silhouette
from defenses.i_bau import IBAU
from defenses.nad import attention
from defenses.parts.mad import anomaly
from defenses.scan import SCAn, _gain, covariances, evidence, metric
from defenses.spectral_signatures import SpectralSignatures, removed, signature
from sweeper.core.types import ImageSet
from sweeper.models.base import Normalise
from tests.reference.golden import load
from tests.support import toys

LEVELS = [
    ("loss of the first level", "its attention", "its gradient"),
    ("loss of the second level", "attention of the second", "gradient of the second"),
    ("loss of the third level", "attention of the third", "gradient of the third"),
]


def test_nad() -> None:
    z = load("defenses/nad")
    for level, (loss_of, attention_of, gradient_of) in enumerate(LEVELS):
        student = z[f"student_{level}"].float().requires_grad_()
        teacher = z[f"teacher_{level}"].float()
        looked = attention(student, z.meta["power"])
        loss = functional.mse_loss(looked, attention(teacher, z.meta["power"]))
        (gradient,) = torch.autograd.grad(loss, student)
        z.agree(loss_of, loss, f"loss_{level}", within=1e-6, relative=True)
        z.agree(attention_of, looked, f"attention_student_{level}", within=1e-6, relative=True)
        z.agree(gradient_of, gradient, f"gradient_{level}", within=1e-6, relative=True)


I_BAU = {
    "released": ("perturbation", "hypergradient", "weights after two updates"),
    "backdoor-toolbox": (
        "perturbation of normalised pixels",
        "hypergradient, normalised pixels",
        "weights after two updates, normalised pixels",
    ),
}
"""Preset -> what is compared. The release was given pixels; the toolbox gives its own normalised
ones, so that to our network these are pixels before a normaliser."""


@pytest.mark.parametrize("preset", I_BAU)
def test_i_bau(preset: str) -> None:
    z = load("defenses/i_bau")
    perturbation, hypergradient, displacement = I_BAU[preset]
    meta, model, data = z.meta, z.net(), z.data()
    images = data.images.float() / 255
    if preset == "backdoor-toolbox":
        model.trunk = torch.nn.Sequential(model.normalise, model.trunk)
        model.normalise = Normalise([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
        images = images * model.normalise.std + model.normalise.mean
    named = {name: meta[name] for name in ("ascent_lr", "penalty", "share", "fixed_step")}
    method = IBAU(**{**IBAU.presets[preset], **named, "iterations": meta["iterations"]})
    batches = [(images[a:b], data.labels[a:b]) for a, b in meta["batches"]]
    z.agree(perturbation, method.climb(model, batches)[0], "perturbation", within=1e-5)
    weights = [*model.parameters()]
    before = torch.cat([weight.detach().flatten() for weight in weights])
    optimizer = torch.optim.Adam(weights, lr=meta["lr"])
    gradients = []
    for (given, labels), carried in zip(batches, z["carried"].long(), strict=True):
        others = torch.tensor([n for n in range(len(given)) if n not in carried])
        order = torch.cat([carried, others])
        delta = z["perturbation"][None]
        _, found = method.outer_gradients(model, weights, delta, given, labels, order, batches[0])
        gradients.append(torch.cat([part.flatten() for part in found]))
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = gradient
        optimizer.step()
    ours = torch.stack(gradients)
    z.agree(hypergradient, ours, "hypergradient", within=1e-5, relative=True)
    after = torch.cat([weight.detach().flatten() for weight in weights])
    z.agree(displacement, after - before, "displacement", within=1e-5)


def test_activation_clustering() -> None:
    z = load("defenses/activation_clustering")
    meta, options = z.meta, ActivationClustering.presets["backdoor-toolbox"]
    method = ActivationClustering(**options)
    always = ActivationClustering(**{**options, "share": 1.0})
    assert method.dims == meta["dims_toolbox"] and bool(z["toolbox_deterministic"].all())
    flagged, smaller, silhouettes, norms, apart = [], [], [], [], []
    for label in range(meta["classes"]):
        index = (z["labels"] == label).nonzero().flatten()
        features = z["features"][index].double()
        _, found, notes = method.judge(features, Generator().manual_seed(label))
        flagged.append(index[found])
        silhouettes.append(notes["silhouette"])
        smaller.append(always.judge(features, Generator().manual_seed(label))[1])
        parts = independent(features, meta["dims_ica"], Generator().manual_seed(label))
        norms.append(parts.square().sum(1))
        apart.append(silhouette(parts, z["poisoned"][index]))
    z.agree("smaller cluster of each class", torch.stack(smaller), "toolbox_small")
    z.agree("flagged", torch.cat(flagged), "toolbox_flagged")
    seeds = [silhouettes] * len(z["toolbox_silhouette"])
    z.agree("silhouettes", seeds, "toolbox_silhouette", within=1e-5)
    z.agree(
        "squared norm of independent components",
        torch.stack(norms),
        "ica_squared_norm",
        within=1e-3,
    )
    z.agree("silhouette of the poisoned in them", apart, "ica_silhouette_of_poisoned", within=1e-5)


def test_scan_statistic() -> None:
    """With the covariances and the split of the release."""
    z = load("defenses/scan")
    identity, variation = z["Su"], z["Se"]
    whole = torch.cat([z["suspects"], z["clean"]]).double()
    labels, whole = torch.cat([z["suspect_labels"], z["clean_labels"]]), whole - whole.mean(0)
    whitening, split = metric(variation), z["split"]
    means, gains = [], []
    for label in range(10):
        members = whole[labels == label]
        mine, split = split[: len(members)], split[len(members) :]
        gain = _gain(identity, variation, members.new_full((1, 1, 1), len(members)))[0]
        means.append(gain @ members.mean(0))
        gains.append(evidence(members @ whitening, mine, means[-1] @ whitening))
    z.agree("posterior means, corrected", torch.stack(means), "mu_corrected", within=1e-9)
    z.agree("evidence, corrected", gains, "J_corrected", within=1e-6)
    index = anomaly(torch.tensor(gains))
    z.agree("anomaly index, corrected", index, "index_corrected", within=1e-3)
    mean = (
        "The release's mean of a class lacks the factor Su Se^-1, so that its index puts a clean "
    )
    mean += "class first."
    z.deviates("posterior means as released", torch.stack(means), "mu_released", by=0.1, why=mean)
    z.deviates("evidence as released", gains, "J_released", by=1000, why=mean)
    z.deviates("anomaly index as released", index, "index_released", by=1000, why=mean)
    assert bool((z["index_released"] > z.meta["theta_released"]).nonzero().flatten()[0] == 1)


def test_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the features to the classes flagged."""
    z = load("defenses/scan")
    features = {len(z[name]): z[name].float() for name in ("suspects", "clean")}
    monkeypatch.setattr("defenses.scan.features_of", lambda model, images: features[len(images)])
    held = {
        name: ImageSet(torch.zeros(len(labels), 1, 1, 1), labels.long(), tuple("0123456789"))
        for name, labels in (("train", z["suspect_labels"]), ("clean", z["clean_labels"]))
    }
    case = toys.case(SCAn.sees, key="golden", clean=held["clean"])
    case._given = {**case._given, **held}
    outcome = SCAn().defend(case)
    contaminated = outcome.notes["classes"].tolist()
    z.agree("class flagged", contaminated, z["suspect_labels"][z["poisoned"]].unique().long())
    z.agree("its samples flagged", outcome.flagged, "poisoned")
    given = z["clean"].double()
    found = covariances(given - given.mean(0), z["clean_labels"].long(), tolerance=1e-5)
    em = "Ours takes the posterior covariance of the identities into account, the release their "
    em += "means alone."
    z.deviates(
        "covariance of identity", found[0], "Su", by=1e-3, within=0.02, relative=True, why=em
    )
    z.deviates(
        "covariance of variation", found[1], "Se", by=1e-2, within=0.1, relative=True, why=em
    )


def test_spectral_signatures() -> None:
    z = load("defenses/spectral_signatures")
    features = z["features"].double()
    centred, uncentred = signature(features), signature(features, centred=False)
    toolbox = z["scores_toolbox"]
    scale = float(toolbox.max())
    z.agree("centred scores, of the largest", centred / scale, toolbox / scale, within=1e-5)
    count = int(z["removed_count_toolbox"])
    z.agree("centred, removed", removed(centred, count).nonzero().flatten(), "removed_toolbox")
    z.agree("scores as released", uncentred.sqrt(), "scores_backdoorbench", within=1e-9)
    for preset in ("released", "backdoorbench"):
        method = SpectralSignatures(**SpectralSignatures.presets[preset])
        assert 100 * (1 - method.factor * method.eps) == z.meta["percentile_backdoorbench"]
        assert not method.centred
    count = int(method.factor * method.eps * len(features) + 1e-9)
    cut = removed(uncentred, count).nonzero().flatten()
    z.agree("removed as released", cut, "removed_backdoorbench")
    z.deviates(
        "scores, our default",
        centred.sqrt(),
        "scores_backdoorbench",
        by=0.1,
        why="Ours projects centred features as the paper does, though scores are chance where "
        "half a class is poison, the release uncentred ones.",
    )
