"""Networks that make triggers, with weights by rule: the numbers the authors' networks give."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks import input_aware, wb
from attacks.input_aware import distance, threshold
from attacks.lira import Lira, triggered
from attacks.parts.deepfool import low_pass, toward
from attacks.parts.nets import Autoencoder, UNet, packed
from attacks.parts.steganography import Decoder, Encoder
from tests.reference.golden import Golden, fill, load

SHAPE = (3, 32, 32)


def pixels(z: Golden, name: str = "images") -> Tensor:
    return z[name].float() / 255


@torch.no_grad()
def test_input_aware() -> None:
    z = load("attacks/input-aware-nets")
    shape = torch.Size(SHAPE)
    generator, mask_net = (
        fill(input_aware.net(shape, outputs), z.arrays[f"{name}_names"], z.arrays[f"{name}_shapes"])
        for name, outputs in (("generator", 3), ("mask", 1))
    )
    images, others = pixels(z), pixels(z, "others")
    pattern, mask = generator(images), threshold(mask_net(images))
    other_pattern, other_mask = generator(others), threshold(mask_net(others))
    z.agree("pattern", pattern[:1], "pattern", within=5e-5)
    z.agree("mask", mask[:2], "mask", within=5e-5)
    hit = images + (pattern - images) * mask
    z.agree("triggered images", hit[:2], "hit", within=5e-5)
    z.agree("poisoned part of the batch", hit[:2], "inputs_bd", within=5e-5)
    crossed = images + (other_pattern - images) * other_mask
    z.agree("crossed part of the batch", crossed[2:4], "inputs_cross", within=5e-5)
    labels = z["labels"].clone()
    labels[:2] = z.attack("").relabel(labels[:2], 10)
    z.agree("labels of the batch", labels, "batch_labels")

    patterns_apart = distance(pattern[:2], other_pattern[2:4], 0.25)
    diversity = distance(images[:2], others[2:4], 0.25) / (patterns_apart + 1e-7)
    z.agree("diversity loss", diversity.mean(), "loss_div", within=5e-5)
    diversity = distance(images, others, 0.25) / (distance(mask, other_mask) + 1e-7)
    z.agree("diversity loss of the mask", diversity.mean(), "mask_loss_div", within=5e-5)
    density = input_aware.InputAware().density
    loss = functional.relu(mask - density).mean()
    z.agree("density loss", loss, "mask_loss_norm", within=5e-5)
    z.agree("density", mask.mean(), "mask_density", within=5e-5)


@torch.no_grad()
def test_lira() -> None:
    z = load("attacks/lira")
    generator = fill(Autoencoder(3), z.arrays["names"], z.arrays["shapes"])
    z.agree("noise", generator(pixels(z)), "noise", within=5e-5)
    released, bench = z.attack("released"), z.attack("backdoorbench")
    assert isinstance(released, Lira)
    assert isinstance(bench, Lira)
    eps = [released.stage_one_eps, released.eps, bench.stage_one_eps or bench.eps, bench.eps]
    names = ("stage_one_eps", "stage_two_eps", "backdoorbench_eps", "backdoorbench_eps")
    z.agree("eps of the presets", eps, [float(z[name]) for name in names])
    images, spread = pixels(z)[:2], z["spread"].view(1, 3, 1, 1)
    state = {**packed(generator, "generator"), "spread": spread}
    one, two = (triggered(generator, images, size * spread) for size in (0.1, 0.01))
    z.agree("images of stage one", one, "stage_one", within=1e-6)
    z.agree("images of stage two", two, "stage_two", within=1e-6)
    one, two = (
        Lira(eps=eps).stamp(z["images"], split="test", state=state, rng=Generator())
        for eps in (0.1, 0.01)
    )
    z.agree("images stored at 0.1", one, "stored_stage_one")
    z.agree("images stored at 0.01", two, "stored_stage_two")


@torch.no_grad()
def test_wb() -> None:
    z = load("attacks/wb-nets")
    net = UNet(3)
    last = net.norm
    net.norm = nn.Identity()  # type: ignore[assignment]  # its weights have arrays of their own
    fill(net, z.arrays["names"], z.arrays["shapes"])
    before = net.last.register_forward_hook(
        lambda _, __, out: z.agree(
            "output before the last norm", out[:1], "before_last_norm", within=1e-5
        )
    )
    net(pixels(z))
    before.remove()
    for part in ("weight", "bias", "running_mean", "running_var"):
        getattr(last, part).copy_(z[f"last_norm_{part}"])
    net.norm = last.eval()
    z.agree("output", net(pixels(z)), "output", within=5e-5)
    apart = wb.sliced_distance(z["features"], z["other_features"], z["rows"])
    z.agree("sliced distance", apart, "distance", within=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["attacks/ssba-a-nets", "attacks/ssba-b-nets"])
def test_ssba(name: str) -> None:
    z = load(name)
    bits, residual = z["bits"].float(), "residual" in z
    encoder = Encoder(SHAPE, bits.shape[1], residual=residual)
    decoder = Decoder(SHAPE, bits.shape[1], residual=residual)
    fill(encoder, z.arrays["encoder_names"], z.arrays["encoder_shapes"])
    fill(decoder, z.arrays["decoder_names"], z.arrays["decoder_shapes"])
    if residual:
        decoder.pose[2].weight.mul_(float(z["pose_scale"]))  # type: ignore[operator]
        decoder.pose[2].bias.copy_(z["pose_bias"])  # type: ignore[operator]
    encoded = encoder(pixels(z), bits)
    z.agree("encoded images", encoded[: len(z["encoded"])], "encoded", within=5e-5)
    z.agree("logits of the bits", decoder(pixels(z)), "decoder_logits", within=5e-5)
    if residual:
        whole = (pixels(z)[:2] + z["residual"]).clamp(0, 1)
        z.agree("image and residual, clipped", encoded[:2], whole, within=5e-5)


def test_low_frequency() -> None:
    z = load("attacks/low-frequency")
    smoothed = torch.stack([low_pass(picture) for picture in z["pictures"]])
    z.agree("low-pass filter", smoothed, "smoothed", within=1e-6)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10)]
    model = fill(nn.Sequential(*layers), z.arrays["names"], z.arrays["shapes"])
    images, target = pixels(z), int(z["target"])
    logits = model(images).detach()
    z.agree("logits of the model", logits, "logits", within=1e-4)
    attack = z.attack("")
    options = [getattr(attack, name) for name in ("deepfool_limit", "overshoot")]
    z.agree("limit and overshoot", options, [float(z["limit"]), float(z["overshoot"])])
    moves, steps = [], []
    for image in images.split(1):
        calls: list[Tensor] = []
        counted = model.register_forward_hook(lambda *_, seen=calls: seen.append(_[2]))
        move = toward(model, image, target, *options)
        counted.remove()
        assert move is not None
        moves.append(move[0])
        steps.append(len(calls) - 1)
    z.agree("change by DeepFool", torch.stack(moves), "moves", within=1e-3)
    z.agree("steps of DeepFool", steps, "steps")
