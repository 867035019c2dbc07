"""CL: the patches of the releases, and D-BR's PGD without a clip."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sweeper.core.types import ImageSet
from tests.reference.golden import Golden, fill, load


def patched(z: Golden, **options: Any) -> Tensor:
    return z.attack(**options).stamp(z["images"], split="test", state={}, rng=Generator())


@pytest.mark.parametrize(
    "name",
    [
        "anp-clb-patch",
        "backdoor-toolbox-patch",
        "backdoorbench",
        "backdoorbench-64",
        "backdoorbox-mnist-patch",
        "backdoorbox-patch",
        "d-br-patch",
    ],
)
def test_the_patch(name: str) -> None:
    z = load(f"attacks/clean-label-{name}")
    z.agree("test images", patched(z), "test")
    if "test_half" in z:
        z.agree("test images at half the amplitude", patched(z, amplitude=0.5), "test_half")


def crafted(z: Golden, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Tensor, Tensor]:
    """Perturbed images, and the training images: each as if its class were the target's."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10))
    fill(net, z.arrays["names"], z.arrays["shapes"])
    lab: Any = SimpleNamespace(clean_model=lambda: net, rng=lambda name: Generator())
    draws, data = z["start_draws"].float() / 256, z.data()
    perturbed, poisoned = [], []
    for i, label in enumerate(data.labels.tolist()):
        monkeypatch.setattr(torch, "rand", lambda *_, i=i, **__: draws[i : i + 1])
        one = ImageSet(data.images[i : i + 1], data.labels[i : i + 1], data.classes)
        attack = z.attack(target=label, **options)
        state = attack.prepare(one, lab)
        perturbed.append(state["images"])
        poisoned.append(attack.poison(one, 1.0, state, Generator()).images)
    return torch.cat(perturbed), torch.cat(poisoned)


def test_d_br_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("attacks/clean-label-d-br-pgd")
    perturbed, poisoned = crafted(z, monkeypatch)
    z.agree("training images", poisoned, "train")
    cast = z["before_cast"].int().remainder(256).to(torch.uint8)  # of half precision
    z.agree("images before the patch", perturbed[:2], cast, within=1, modulo=256)


def test_pgd_that_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("attacks/clean-label-d-br-pgd")
    perturbed, _ = crafted(z, monkeypatch, wrap=False)
    z.deviates(
        "images of the release clipped, ours without `wrap`",
        perturbed,
        "clipped",
        by=1,
        within=16,
        why="Without `wrap` ours clips between the steps too, which moves the steps that follow.",
    )
