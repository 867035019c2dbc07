"""WaNet: the field, a batch of the release's training, and what others store of it."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.loop import LoopHooks
from attacks.wanet import WaNet
from sweeper.engine.training import Batch
from tests.reference.draws import given
from tests.reference.golden import Golden, load


def stamp(z: Golden, images: Tensor, split: str, *noise: Tensor) -> Tensor:
    with given("rand", z["coarse_draws"], *noise):
        return z.attack().stamp(images, split=split, state={}, rng=torch.Generator())


def test_a_batch_of_the_release() -> None:
    z = load("attacks/wanet-release")
    attack, images = z.attack("released", poison_rate=0.1), z["images"]
    assert isinstance(attack, WaNet)
    with given("rand", z["coarse_draws"]):
        z.agree("field", attack.field(32, 32), "field", within=1e-6)
    hooks = attack.hooks(z.data(), {}, torch.Generator())
    assert isinstance(hooks, LoopHooks)
    before = Batch(images.permute(0, 2, 3, 1), z["labels"], torch.arange(10), 0, 0)
    with given("rand", z["coarse_draws"], z["coarse_draws"], z["noise_draws"].float() / 256):
        after = hooks.batch(before, torch.Generator())
    found = after.inputs.permute(0, 3, 1, 2)
    z.agree("a batch, its poisoned and its crossed images", found, "batch")
    z.agree("its labels", after.labels, "batch_labels")
    levels = z["batch_float"] * 255
    z.agree("stamped images before rounding, in levels", found[:3].float(), levels, within=0.501)


def test_test_images_of_backdoorbench() -> None:
    z = load("attacks/wanet-backdoorbench")
    ours = stamp(z, z["images"], "test")
    z.agree("test images", ours, "test")
    levels = z["test_float"] * 255
    z.agree("test images before rounding, in levels", ours[:2].float(), levels, within=0.501)
    z.deviates(
        "test images as stored",
        ours,
        "stored",
        by=1,
        within=1,
        why="BackdoorBench stores test images truncated, ours are rounded as in training.",
    )


def test_poison_and_covers_of_backdoor_toolbox() -> None:
    z = load("attacks/wanet-backdoor-toolbox")
    images, labels = z["images"].clone(), z["labels"].clone()
    poison, cover = z["poisoned"] == 1, z["cover"] == 1
    noise = z["noise_draws"].float() / 256
    images[poison] = stamp(z, images[poison], "train", noise)
    images[cover] = stamp(z, images[cover], "cover", noise)
    labels[poison] = z.attack().relabel(labels[poison], 10)
    z.agree("training images, poisoned and covers", images, "train")
    z.agree("training labels", labels, "train_labels")
