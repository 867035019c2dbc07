"""Weights of every naming come out as the network they are of, whatever order the file has."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor

from attacks.parts.victim_folder import MODEL
from sweeper import models
from sweeper.analyses import exchange
from sweeper.core.errors import SweepError
from sweeper.core.namings import fitted
from sweeper.models.base import Net

HALF = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def drawn(name: str, classes: int = 7, side: int = 32, seed: int = 1, **options: Any) -> Net:
    """A network whose every tensor is drawn, its statistics too."""
    rng = torch.Generator().manual_seed(seed)
    net = models.build(name, options, classes=classes, shape=(3, side, side), **HALF, generator=rng)
    for key, value in net.state_dict().items():
        if value.is_floating_point() and not key.startswith("normalise."):
            noise = torch.rand(value.shape, generator=rng) * 0.2 - 0.1
            value.copy_(value + noise if value.ndim < 2 else value)
    return net.eval()


def imported(path: Path, name: str, folder: Path, side: int = 32, **given: Any) -> Net:
    """The network that comes out of a file."""
    options = given.pop("options", {})
    foreign = exchange.Foreign(path, None, name, options, shape=(3, side, side), **given)
    about = exchange.import_model(foreign, folder)
    net = drawn(name, about["classes"], side, seed=2, **options)
    state = load_file(folder / MODEL)
    net.load_state_dict({**net.state_dict(), **state})
    return net.eval()


def same(one: torch.nn.Module, other: torch.nn.Module, side: int = 32) -> bool:
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return torch.equal(one(x), other(x))


# Ours


SMALL = {"resnet": {"width": 4}, "preact": {"width": 4}, "vit": {"depth": 2, "dim": 24}}
IMAGES = [name for name, family in models.families().items() if "image" in family.tasks]


@pytest.mark.parametrize("name", IMAGES)
def test_an_exported_network_comes_back_with_its_logits(name: str, tmp_path: Path) -> None:
    options = next((found for start, found in SMALL.items() if name.startswith(start)), {})
    net = drawn(name, **options)
    folder = tmp_path / "out"
    exchange.save(folder, {}, {MODEL: net.state_dict()})
    back = imported(folder / MODEL, name, tmp_path / "in", options=options)
    assert same(net, back) and torch.equal(back.normalise.mean, net.normalise.mean)


# Theirs


def resnet(name: str) -> str:
    """kuangliu's and backdoor-toolbox's."""
    return (
        name.replace("trunk.", "").replace("downsample", "shortcut").replace("classifier", "linear")
    )


def preact(name: str) -> str:
    """BackdoorBench's, and with the norm that others have at the end."""
    name = re.sub(r"^trunk\.0\.", "conv1.", name)
    name = re.sub(r"^trunk\.6\.", "bn.", name)
    name = re.sub(r"^trunk\.(\d)\.", lambda found: f"layer{int(found[1]) - 1}.", name)
    return name.replace("shortcut.", "shortcut.0.").replace("classifier", "linear")


def wide(name: str) -> str:
    """block1.layer.0.convShortcut and bn1 at the end, as most codes for CIFAR."""
    name = re.sub(r"^trunk\.0\.", "conv1.", name)
    name = re.sub(r"^trunk\.4\.", "bn1.", name)
    name = re.sub(r"^trunk\.(\d)\.", r"block\1.layer.", name)
    return name.replace("shortcut.", "convShortcut.").replace("classifier", "fc")


def vgg(name: str) -> str:
    return name.replace("trunk.", "features.")


def vit(name: str) -> str:
    """timm's."""
    for ours, theirs in {
        "trunk.class_token": "cls_token",
        "trunk.conv_proj": "patch_embed.proj",
        "trunk.encoder.pos_embedding": "pos_embed",
        "trunk.encoder.layers.encoder_layer_": "blocks.",
        "trunk.encoder.ln": "norm",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "classifier": "head",
    }.items():
        name = name.replace(ours, theirs)
    return name


def mobilenet(name: str) -> str:
    """timm's: stages, and layers by what they do."""
    part, *rest = name.removeprefix("trunk.").split(".")
    tail = ".".join(rest)
    if part == "classifier":
        return name
    if part in ("0", "18"):
        first = {"0": ("conv_stem", "bn1"), "18": ("conv_head", "bn2")}[part]
        return f"{first[int(rest[0])]}.{rest[1]}"
    stage, block = next(
        (stage, int(part) - first)
        for stage, first, end in zip(
            range(7), (1, 2, 4, 7, 11, 14, 17), (2, 4, 7, 11, 14, 17, 18), strict=True
        )
        if first <= int(part) < end
    )
    if stage == 0:
        layers = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
    else:
        layers = {"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw"}
        layers |= {"conv.1.1": "bn2", "conv.2": "conv_pwl", "conv.3": "bn3"}
    layer, _, kind = tail.rpartition(".")
    return f"blocks.{stage}.{block}.{layers[layer]}.{kind}"


NAMINGS: dict[str, tuple[str, Callable[[str], str], dict[str, Any]]] = {
    "kuangliu": ("resnet18", resnet, {"width": 4}),
    "bottleneck": ("resnet50", resnet, {"width": 4}),
    "preact": ("preact-resnet18", preact, {"width": 4}),
    "backdoorbench": ("preact-resnet18", preact, {"width": 4, "final_norm": False}),
    "wide": ("wrn-16-1", wide, {}),
    "vgg": ("vgg11-bn", vgg, {}),
    "timm vit": ("vit-tiny", vit, {"depth": 11, "dim": 24}),
    "timm mobilenet": ("mobilenet-v2", mobilenet, {}),
}


def written(state: Mapping[str, Tensor], how: str, folder: Path) -> Path:
    """A file of these weights: in their order, as safetensors sorts them, shuffled or wrapped."""
    path = folder / "theirs.pt"
    if how == "safetensors":
        path = folder / "theirs.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, path)
        return path
    names = list(state)
    if how != "ordered":
        random.Random(4).shuffle(names)
    held = {f"{'module.' if how == 'wrapped' else ''}{name}": state[name] for name in names}
    torch.save({"epoch": 3, "state_dict": held} if how == "wrapped" else held, path)  # noqa: TID251
    return path


@pytest.mark.parametrize("how", ["ordered", "safetensors", "shuffled", "wrapped"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_names_of_others_are_matched_by_structure(naming: str, how: str, tmp_path: Path) -> None:
    name, renamed, options = NAMINGS[naming]
    net = drawn(name, **options)
    state = {renamed(n): v for n, v in net.state_dict().items() if not n.startswith("normalise.")}
    assert len(state) == len(net.state_dict()) - 2, "no two have one name"
    path = written(state, how, tmp_path)
    assert same(net, imported(path, name, tmp_path / "in", options=options, **HALF))


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "wrn-28-10"])
def test_numbered_modules_fit_every_architecture(name: str) -> None:
    options = next((found for start, found in SMALL.items() if name.startswith(start)), {})
    trunk = drawn(name, **options).trunk.state_dict()
    numbers: dict[str, int] = {}
    state = {}
    for at, (our, value) in enumerate(trunk.items()):
        module, _, kind = our.rpartition(".")
        number = numbers.setdefault(module, len(numbers))
        state[f"net.m{number}.{kind}"] = torch.full_like(value, at)
    names = random.Random(5).sample(list(state), len(state))
    found, left = fitted(trunk, {n: state[n] for n in names}, name, "")
    assert all(
        torch.equal(found[n], torch.full_like(v, at)) for at, (n, v) in enumerate(trunk.items())
    )
    assert not left


TORCHVISIONS = {
    "resnet18": "resnet18",
    "densenet121": "densenet121",
    "mobilenet-v2": "mobilenet_v2",
    "shufflenet-v2": "shufflenet_v2_x1_0",
}


@pytest.mark.parametrize("how", ["safetensors", "shuffled"])
@pytest.mark.parametrize("name", TORCHVISIONS)
@torch.inference_mode()
def test_torchvisions_networks_keep_their_logits(name: str, how: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        theirs = getattr(torchvision.models, TORCHVISIONS[name])(num_classes=7).eval()
        for buffer in theirs.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    path = written(theirs.state_dict(), how, tmp_path)
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3}
    net = imported(path, name, tmp_path / "in", side=96, **plain)
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-4)


# What is refused


def refused(state: Mapping[str, Tensor], why: str, folder: Path, **given: Any) -> None:
    path = written(state, "safetensors", folder)
    with pytest.raises(SweepError, match=why):
        imported(path, **{"name": "tiny", "folder": folder / "in", **given})
    assert not (folder / "in" / MODEL).exists()


def test_another_network_is_refused_with_the_shapes(tmp_path: Path) -> None:
    net = drawn("resnet18", width=4)
    state = {resnet(n): v for n, v in net.state_dict().items() if not n.startswith("normalise.")}
    given = {"name": "resnet18", "options": {"width": 4}}
    cut = {n: v for n, v in state.items() if n != "layer2.0.bn2.bias"}
    refused(
        cut,
        r"tensors such as layer2.*bias \[8\] the file has 1, resnet18 with width=4 has 2: name",
        tmp_path,
        **given,
    )
    other = {**state, "conv1.weight": torch.zeros(4, 3, 7, 7)}
    shapes = (
        r"conv1\.weight is \[4, 3, 7, 7\], conv1\.weight of resnet18 with width=4 \[4, 3, 3, 3\]"
    )
    refused(other, shapes, tmp_path, **given)
    refused(state, r"is \[.*\], .* of resnet18 \[", tmp_path, name="resnet18")
    refused(
        state, "of tensors such as .* the file has", tmp_path, name="resnet34", options={"width": 4}
    )
    more = {**state, "gate.weight": torch.zeros(4, 4, 1, 1)}
    refused(more, r"no place for gate\.weight \[4, 4, 1, 1\]", tmp_path, **given)
    headless = {n: v for n, v in state.items() if not n.startswith("linear.")}
    refused(headless, "has no head for", tmp_path, **given)


def test_equal_parts_without_an_order_are_not_guessed(tmp_path: Path) -> None:
    net = drawn("resnet18", width=4)
    state = {resnet(n): v for n, v in net.state_dict().items() if not n.startswith("normalise.")}
    letters = {n.replace("bn1", "alpha").replace("bn2", "beta"): v for n, v in state.items()}
    why = r"alpha and .*\.beta have the same shapes, .* which is .*\.bn1: number them"
    refused(letters, why, tmp_path, name="resnet18", options={"width": 4})


def test_the_head_says_how_many_classes_there_are_or_the_option_does(tmp_path: Path) -> None:
    net = drawn("resnet18", width=4)
    state = {resnet(n): v for n, v in net.state_dict().items() if not n.startswith("normalise.")}
    given = {"name": "resnet18", "options": {"width": 4}}
    refused(state, r"--classes: 9, the file has linear of 7 classes", tmp_path, **given, classes=9)
    two = {**state, "turned.weight": torch.zeros(4, 32), "turned.bias": torch.zeros(4)}
    why = "linear of 7 classes and turned of 4 classes: say with --classes"
    refused(two, why, tmp_path, **given)
    path = written(two, "safetensors", tmp_path)
    assert same(net, imported(path, folder=tmp_path / "in", **given, classes=7, **HALF))


def test_a_network_of_other_samples_is_refused(tmp_path: Path) -> None:
    state = drawn("tiny").state_dict()
    refused(state, "--model: ssd-small takes no images", tmp_path, name="ssd-small")
