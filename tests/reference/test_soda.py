"""SODA, defense and attack: detection, reconstruction and the epochs of the released code."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Generator, Tensor

from attacks.parts.subsets import SUBSETS
from defenses.parts.attribution import attribution, class_means, dissimilarity, intervened, source
from defenses.parts.features import features_of
from defenses.parts.mad import anomaly, outliers
from defenses.soda import outstanding, reconstruct
from sweeper.core.types import ImageSet
from sweeper.engine import training
from sweeper.engine.training import Batch
from tests.reference.golden import Golden, load
from tests.support import toys


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


def epoch(z: Golden, row: int) -> dict[str, int]:
    """What one epoch of ours shows in this row's setting: images are of one pixel."""
    count, members = int(z["clean_images"][row]), int(z["members"][row])
    labels = (torch.arange(count + members) >= count).long()
    images = torch.zeros(count + members, 1, 1, 1, dtype=torch.uint8)
    train, state = ImageSet(images, labels, ("other", "car")), {"index": labels.nonzero().flatten()}
    attack = z.attack(mix=float(z["ratio"][row]))
    given = attack.poison(train, 0.0, state, Generator())
    hooks = attack.hooks(train, state, Generator())
    assert hooks is not None
    hooks.start(torch.nn.Identity(), toys.CPU)
    found = {"steps": 0, "clean_seen": 0, "member_copies": 0, "batch_size": 0, "last_batch": 0}
    for step, index in enumerate(training.order(len(given.labels), 64, Generator())):
        cut = given.images[index].permute(0, 2, 3, 1)
        batch = hooks.batch(Batch(cut, given.labels[index], index, 0, step), Generator())
        added = int((batch.index < 0).sum())
        assert bool((batch.labels[-added:] == attack.target).all())
        assert len(batch.inputs) == len(batch.labels) == len(batch.index)
        found["steps"] += 1
        found["clean_seen"] += len(batch.labels) - added
        found["member_copies"] += added
        found["batch_size"] = max(found["batch_size"], len(batch.labels))
        found["last_batch"] = len(batch.labels)
    return found


def test_epochs_of_the_attack() -> None:
    z = load("attacks/soda")
    trained = z["steps"] > 0
    ours = [epoch(z, row) for row in range(len(trained))]

    def both(name: str) -> tuple[Tensor, Tensor]:
        return torch.tensor([found[name] for found in ours])[trained], z[name][trained]

    z.agree("updates an epoch", *both("steps"))
    z.agree("clean images seen in an epoch", *both("clean_seen"))
    z.agree("members shown in an epoch", *both("member_copies"))
    z.agree("images of an update", *both("batch_size"))
    z.agree("images of the last update", *both("last_batch"))
    few = torch.tensor([found["steps"] for found in ours])
    z.deviates(
        "updates an epoch with fewer members than a batch takes",
        few[~trained],
        z["steps"][~trained],
        by=781,
        within=781,
        why="With fewer members than a batch takes, the released function returns at once and "
        "trains nothing; ours shows members again.",
    )


def test_lists_of_the_attack() -> None:
    z = load("attacks/soda")
    green, stripes = SUBSETS["green-cars"], SUBSETS["striped-background"]
    shirts, plaid = SUBSETS["striped-shirts"], SUBSETS["plaid-shirts"]
    z.agree("green cars", green.train, "list_green_car_0")
    z.agree("green test cars", green.test, "list_creen_tst_1")
    z.agree("green test cars measured on", SUBSETS["green-cars-7"].test, "list_creen_tst_0")
    z.agree("cars before stripes", stripes.train, "list_sbg_car_0")
    z.agree("test cars before stripes", stripes.test, "list_sbg_tst_0")
    z.deviates(
        "test cars before stripes, other list",
        stripes.test,
        "list_sbg_tst_1",
        by=1,
        why="Of the release's two lists of test cars before stripes, ours is the one its attack is "
        "measured on.",
    )
    z.agree("striped shirts", shirts.train, "list_stript_train_0")
    z.agree("striped test shirts", shirts.test, "list_stript_tst_0")
    z.agree("plaid shirts", plaid.train, "list_plaids_train_0")
    z.agree("plaid test shirts", plaid.test, "list_plaids_tst_0")
