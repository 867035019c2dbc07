"""Sleeper Agent: selection, patch, augmentation, the matched gradients."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks import sleeper_agent
from tests.reference.golden import Golden, fill, load, uniform


def moved(z: Golden, pixels: Tensor, name: str) -> Tensor:
    """Ours with the release's draws; it mirrors the shift with the image, ours the image alone."""
    draws = z[name].float() / 256
    mirror = draws[:, 2] > 0.5
    draws[mirror, 0] = 1 - draws[mirror, 0]
    with (
        mock.patch("torch.rand", return_value=draws[:, :2]),
        mock.patch("torch.randint", return_value=mirror.long()),
    ):
        augmented: Tensor = z.attack()._augmented(pixels, Generator())  # type: ignore[attr-defined]
    return augmented


def test_sleeper_agent() -> None:
    z = load("attacks/sleeper-agent")
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10)]
    model = fill(nn.Sequential(*layers), z.arrays["names"], z.arrays["shapes"])
    images = z["images"].float() / 255
    augmented = moved(z, images, "draws")
    z.agree("augmented images", augmented[:2], "augmented", within=1e-5)
    levels = (255 * augmented).round().clamp(0, 255).to(torch.uint8)
    z.agree("augmented images in levels", levels, "augmented_levels", within=1, share=0.02)

    norms = sleeper_agent.gradient_norms(model, z["images"], 0).detach()
    z.agree("gradient norms", norms, "gradient_norms", within=1e-4)
    z.agree("order of the images by them", norms.argsort(), "order")
    state = {"patch": z["patch"]}
    patched = z.attack().stamp(z["images"], split="test", state=state, rng=Generator())
    z.agree("patched images", patched, "patched")

    change = uniform(int(z["delta_seed"]), (6, 3, 32, 32)) * 32 / 255
    change = torch.from_numpy(change).float()
    change = sleeper_agent.within(images, change, 16 / 255)
    z.agree("clipped change in levels", 255 * change[:1], "clipped_move", within=1e-5)

    labels = torch.zeros(6, dtype=torch.long)
    loss = functional.cross_entropy(model(patched.float() / 255), labels)
    source_gradient = list(torch.autograd.grad(loss, sleeper_agent.weights(model)))
    change.requires_grad_()
    loss = functional.cross_entropy(model(moved(z, images + change, "objective_draws")), labels)
    own = torch.autograd.grad(loss, sleeper_agent.weights(model), create_graph=True)
    distance = 1 - sleeper_agent.cosine(own, source_gradient)
    (slope,) = torch.autograd.grad(distance, change)
    z.agree("distance of the gradients", distance, "loss", within=1e-5)
    z.agree("sign of its slope", slope.sign(), "slope_sign", within=2, share=1e-3)
