"""BPP: quantisation, batches with negatives, and how many of them there are at every rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from attacks.parts.loop import LoopHooks
from sweeper.core.errors import SweepError
from sweeper.engine.training import Batch
from tests.reference.draws import evenly, given
from tests.reference.golden import Golden, load

REPEATS = 1000


def hooks(z: Golden, preset: str, **options: Any) -> LoopHooks:
    """Our hooks; residuals are of the file's pool."""
    found = z.attack(preset, **options).hooks(
        z.data("pool", "batch_labels"), {}, Generator().manual_seed(0)
    )
    assert isinstance(found, LoopHooks)
    return found


def test_quantisation() -> None:
    z = load("attacks/bpp")
    images, rng = z["images"], Generator()
    squeezed = z.attack().stamp(images, split="train", state={}, rng=rng)
    z.agree("quantised images", squeezed, "squeezed")
    dithered = z.attack(dithering=True).stamp(images, split="train", state={}, rng=rng)
    z.agree("dithered images", dithered, "dithered")


def test_batches_with_negatives() -> None:
    z = load("attacks/bpp")
    images, labels = z["batch_images"], z["batch_labels"]
    before = Batch(images.permute(0, 2, 3, 1), labels, torch.arange(10), 0, 0)
    drawn = z["residual_draws"] % len(z["pool"])
    rates = {
        "a batch of 20 % poisoned and as many negatives": ("20_20", 0.2, None),
        "a batch of 10 % poisoned and 30 % negatives": ("10_30", 0.1, 0.3),
    }
    wrong = 0
    for what, (name, rate, negatives) in rates.items():
        count = 3 if negatives else 2
        with given("randint", drawn[:count]):
            stamped = hooks(z, "bpp", poison_rate=rate, negatives=negatives)
            after = stamped.batch(before, Generator())
        z.agree(what, after.inputs.permute(0, 3, 1, 2), f"batch_{name}")
        wrong += int((after.labels != z[f"labels_{name}"]).sum())
    z.agree("labels of both that differ", wrong, 0)


def counts(z: Golden, preset: str) -> np.ndarray:
    """[rate, batch, poisoned or negative]: images of a batch, the mean over draws."""
    sizes, found = z["batch_sizes"].tolist(), np.zeros((6, 2, 2))
    labels = torch.zeros(128, dtype=torch.int64)
    for row, rate in enumerate(z["rates"].tolist()):
        stamped = hooks(z, preset, poison_rate=rate)
        if not stamped.attack.chance and rate * 128 < 1:
            with pytest.raises(SweepError, match="poisons no image: rate 0.001 of a batch of 128"):
                stamped.parts(labels)
            continue
        for column, size in enumerate(sizes):
            with evenly(REPEATS):
                parts = [stamped.parts(labels[:size]) for _ in range(REPEATS)]
            found[row, column] = np.mean([[len(p), len(n)] for p, n in parts], axis=0)
    return found


def test_counts_of_a_batch() -> None:
    z = load("attacks/bpp")
    injection_rate, neg_rate = z["released_rates"].tolist()
    share = z.attack("bpp").extras(round(1000 * injection_rate), 1000) / 1000
    z.agree("share of negatives of the release", share, neg_rate)
    share = z.attack("backdoorbench").extras(0, 1000) / 1000
    z.agree("share of negatives of BackdoorBench", share, z["backdoorbench_rates"][1])
    ours = counts(z, "bpp")
    z.agree("poisoned images of a batch", ours[..., 0], "release_poisoned")
    z.agree("negatives of a batch", ours[..., 1], "release_negative")
    ours, theirs = counts(z, "backdoorbench"), z["backdoorbench_poisoned"]
    # a rate of 0.01 is 1.28 of 128: their array has the whole number
    z.agree("poisoned images of a batch in BackdoorBench", ours[..., 0], theirs, within=2e-3)
    z.agree("negatives of a batch in BackdoorBench", ours[..., 1], "backdoorbench_negative")
