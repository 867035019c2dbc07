"""SODA, defense and attack: detection, reconstruction and the epochs of the released code."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from defenses.parts.attribution import attribution, class_means, dissimilarity, intervened, source
from defenses.parts.features import features_of
from defenses.parts.mad import anomaly, outliers
from defenses.soda import outstanding, reconstruct
from tests.reference.golden import Golden, load


def detected(z: Golden) -> dict[str, Any]:
    """Stages 1 and 2 on the file's network and images."""
    model, data = z.net(), z.data()
    features = features_of(model, data.images)
    table = attribution(model.classifier, features)
    scores = dissimilarity(table[None])
    with torch.no_grad():
        means = class_means(model.classifier(features).double(), data.labels, 10)
    return {"table": table, "scores": scores, "means": means, "features": features, "model": model}


def test_detection() -> None:
    z = load("defenses/soda")
    found = detected(z)
    table, scores, means = found["table"], found["scores"], found["means"]
    z.agree("attribution", table, "attribution", within=1e-6)
    head, features = found["model"].classifier, found["features"]
    by_class = torch.stack([intervened(head, features[z["labels"] == k]) for k in range(10)])
    z.agree("attribution by intervention", by_class.mean(0), "attribution", within=1e-6)
    spread = (by_class - by_class[0]).abs().max()
    z.agree("spread of the ten tables", spread, "attribution_spread", within=1e-6)
    z.agree("s, of ten classes in place of nine", 1 - 0.9 * (1 - scores), "s", within=1e-6)
    z.agree("anomaly index", anomaly(scores), "index", within=1e-4, relative=True)
    flagged = outliers(scores, z.meta["theta1"]).nonzero().flatten()
    z.agree("flagged classes", flagged, "flags")
    flagged = outliers(scores, 1.5).nonzero().flatten()
    z.agree("flagged classes at theta1 1.5", flagged, "flags_theta1_15")
    index = anomaly(scores).masked_fill(scores < scores.quantile(0.5), -1)
    target = int(index.argmax())
    z.agree("target", target, "target")
    z.agree("source", source(means, target, z.meta["theta2"]), "source")
    z.agree("source at theta2 0.5", source(means, target, 0.5), "source_theta2_05")
    order = table[:, target].argsort(descending=True, stable=True)
    z.agree("first 30 % of the neurons in order", order[: len(z["neurons"])], "neurons")
    kept = outstanding(order, 0.3).nonzero().flatten()
    z.agree("neurons that stay switched on", kept, z["neurons"].sort().values)


def test_source_of_any_target() -> None:
    z = load("defenses/soda")
    means, theirs = detected(z)["means"], z["source_given_target"]
    found = torch.tensor([source(means, target, z.meta["theta2"]) for target in range(10)])
    others = theirs != torch.arange(10)
    z.agree("source given the target, where others lean to it", found[others], theirs[others])
    z.deviates(
        "source given the target, where none does",
        found[~others],
        theirs[~others],
        by=1,
        why="Where no other class leans to the target, the release takes the target for its own "
        "source; ours takes the class that leans most.",
    )


def rebuilt(z: Golden, pixels: Tensor, **changes: Any) -> Tensor:
    """Reconstructed images, normalised."""
    model, given = z.net(), z.meta["rebuild"]
    options = {"steps": given["most"], **{name: given[name] for name in ("lr", "weight", "stop")}}
    made, _ = reconstruct(model, pixels, given["target"], **{**options, **changes})
    normalised: Tensor = model.normalise(made)
    return normalised


def test_reconstruction() -> None:
    z = load("defenses/soda")
    pixels = z["own"].float().div(255)
    z.agree("images after five steps", rebuilt(z, pixels, steps=5), "after_five", within=1e-4)
    z.agree("reconstructed images", rebuilt(z, pixels), "rebuilt", within=1e-4)
    steps, stopped, before = z["rebuild_steps"].tolist(), [], []
    for image, count in zip(pixels, steps, strict=True):
        last = [rebuilt(z, image[None], steps=count + more) for more in (-1, 0, 1)]
        before.append(last[0])
        moved = [not torch.equal(one, other) for one, other in itertools.pairwise(last)]
        stopped.append(count if moved == [True, False] else -1)
    z.agree("images before their last step", torch.cat(before), "before_last", within=1e-4)
    z.agree("steps to the probability", stopped, "rebuild_steps")
