"""Attacks that stamp: the same images, the same pixels.

Draws of a reference are in its file; they are given to ours in place of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from attacks.parts.covers import CoverAttack
from sweeper.core.types import Role
from tests.reference.golden import Golden, load

FLOATS = "Ours truncates to whole levels; the release trains on floats, here rounded."


def stamped(z: Golden, split: str = "train", **options: Any) -> Tensor:
    """What ours makes of the file's images; the state is what the file's meta lists."""
    state = {name: z[name] for name in z.meta.get("state", ())}
    attack = z.attack(**options)
    return attack.stamp(z["images"], split=split, state=state, rng=Generator())


def written(pixels: np.ndarray, folder: Path) -> dict[str, str]:
    """The option that names these pixels [H, W, 3] as a file."""
    path = folder / "picture.png"
    Image.fromarray(pixels).save(path)
    return {"trigger_image": str(path)}


@pytest.mark.parametrize(
    "name",
    [
        "badnets-anp",
        "badnets-backdoor-toolbox",
        "badnets-backdoorbench",
        "badnets-backdoorbench-64",
        "badnets-backdoorbox",
        "badnets-d-br",
        "badnets-d-br-all2all",
        "badnets-d-br-imagenet",
        "badnets-fip",
        "blend-d-br-strip",
        "sig-fip",
        "trojan-d-br",
        "trojan-fip",
        "clean-label-fip-clb",
        "clean-label-fip-fc",
    ],
)
def test_equal_to_the_last_pixel(name: str) -> None:
    z = load(f"attacks/{name}")
    z.agree("training images", stamped(z), "train")


@pytest.mark.parametrize("name", ["trojan-d-br", "trojan-fip"])
def test_the_patch_of_a_release_as_a_file(name: str, tmp_path: Path) -> None:
    z = load(f"attacks/{name}")
    patch = written(z["patch"].permute(1, 2, 0).numpy(), tmp_path)
    ours = stamped(z, trigger="file", **patch)
    z.agree("training images, the patch from a file", ours, "train")


def test_trojan_of_backdoor_toolbox() -> None:
    z = load("attacks/trojan-backdoor-toolbox")
    ours = z.attack().stamp(
        z["images"], split="train", state={"patch": z["patch"]}, rng=Generator()
    )
    z.agree("training images", ours, "train")


# Blend


def test_blend_of_anp(tmp_path: Path) -> None:
    z = load("attacks/blend-anp")
    z.agree("training images", stamped(z, **written(z.arrays["picture"], tmp_path)), "train")


def test_blend_of_backdoorbench(tmp_path: Path) -> None:
    z = load("attacks/blend-backdoorbench")
    ours = stamped(z, **written(z.arrays["picture"], tmp_path))
    assert float((ours != z["train"]).float().mean()) <= 0.05
    z.deviates(
        "training images",
        ours,
        "train",
        by=1,
        within=1,
        why="The release's picture passes through floats and is truncated: a level may be lost.",
    )


def test_blend_of_backdoor_toolbox(tmp_path: Path) -> None:
    z = load("attacks/blend-backdoor-toolbox")
    ours = stamped(z, **written(z.arrays["picture"], tmp_path))
    z.deviates("training images", ours, "train", by=1, within=1, why=FLOATS)
    floats = 255 * z["train_float"].double()
    z.deviates("images in floats", ours[:2].double(), floats, by=0.5, within=1, why=FLOATS)


def test_kitty_of_d_br(tmp_path: Path) -> None:
    z = load("attacks/blend-d-br-kitty")
    picture = written(z.arrays["picture"], tmp_path)
    attack: Any = z.attack(**picture)
    z.agree("resized picture", attack.pattern(3, 32, 32), "resized")
    z.agree("training images", stamped(z, **picture), "train")


def test_strip_of_d_br_at_224_px() -> None:
    z = load("attacks/blend-d-br-strip-imagenet")
    attack: Any = z.attack("d-br-strip-imagenet")
    z.agree("wave", attack.pattern(3, 224, 224)[0, 0].float(), "wave", within=1e-12)
    z.agree("training images", stamped(z, preset="d-br-strip-imagenet"), "train")


# SIG


def test_sig_of_backdoor_toolbox() -> None:
    z = load("attacks/sig-backdoor-toolbox")
    attack: Any = z.attack()
    z.agree("wave", attack.wave(32, 32, "train")[0] / 255, "pattern", within=1e-7)
    ours = stamped(z)
    z.deviates("training images", ours, "train", by=1, within=1, why=FLOATS)
    floats = 255 * z["train_float"].double()
    z.deviates("images in floats", ours[:2].double(), floats, by=0.5, within=1, why=FLOATS)


@pytest.mark.parametrize(
    ("name", "split", "elsewhere", "crossing"),
    [
        ("sig-d-br", "train", "beside the zeros of the sine", "at the zeros of the sine"),
        (
            "sig-d-br",
            "test",
            "test images beside the zeros",
            "test images at the zeros",
        ),
        (
            "sig-backdoorbench",
            "train",
            "beside the zeros of the sine",
            "at the zeros of the sine",
        ),
        (
            "sig-backdoorbench-64",
            "train",
            "beside the zeros of the sine",
            "at the zeros of the sine",
        ),
    ],
)
def test_sig_where_the_sine_is_and_is_not_zero(
    name: str, split: str, elsewhere: str, crossing: str
) -> None:
    z = load(f"attacks/{name}")
    ours, theirs = stamped(z, split), z[split]
    attack: Any = z.attack()
    zero = attack.wave(*ours.shape[2:], split)[0] == 0
    z.agree(elsewhere, ours[..., ~zero], theirs[..., ~zero])
    z.deviates(
        crossing,
        ours[..., zero],
        theirs[..., zero],
        by=1,
        within=1,
        why="Sin(6 pi) is -7e-16 in the release, which truncation makes a level; ours is 0.",
    )


# Attacks with covers


def covered(z: Golden, **options: Any) -> None:
    """Compare the labels, and how many samples are poisoned or cover, by trigger.

    Which samples they are is a draw; rate and share of covers are the reference's.
    """
    labels, theirs = z["labels"], (z["poisoned"] == 1, z["cover"] == 1)
    rate = float(theirs[0].float().mean())
    attack = z.attack(cover_ratio=float(theirs[1].sum() / theirs[0].sum()), **options)
    assert isinstance(attack, CoverAttack)
    found = attack.poison(z.data(), rate, {}, Generator().manual_seed(0))
    ours = [found.role == int(role) for role in (Role.POISON, Role.COVER)]
    assert found.pattern is not None
    pattern = z["pattern"] if "pattern" in z else torch.zeros_like(labels)
    z.agree(
        "poisoned and covers by trigger",
        [torch.bincount(found.pattern[chosen]).sort().values.tolist() for chosen in ours],
        [torch.bincount(pattern[chosen]).sort().values.tolist() for chosen in theirs],
    )
    labels[theirs[0]] = attack.relabel(labels[theirs[0]], 10)
    z.agree("training labels", labels, "train_labels")


def marked(z: Golden, attack: CoverAttack) -> Tensor:
    """Training images: the samples the reference chose carry the triggers it chose."""
    chosen = (z["poisoned"] + z["cover"]) == 1
    pattern = z["pattern"] if "pattern" in z else torch.zeros(len(chosen), dtype=torch.int64)
    out = z["images"]
    out[chosen] = attack.mark(out[chosen], pattern[chosen], Generator())
    return out


def test_tact() -> None:
    z = load("attacks/tact")
    attack: Any = z.attack()
    z.agree("training images", marked(z, attack), "train")
    z.agree("test images", attack.reveal(z["images"]), "test")
    covered(z)
    labels = z["labels"]
    pools = [attack.pool(labels), attack.cover_pool(labels)]
    for chosen, pool in zip((z["poisoned"] == 1, z["cover"] == 1), pools, strict=True):
        assert bool(pool[chosen].all()), "the reference draws from our pools"


def test_adaptive_k_way() -> None:
    z = load("attacks/adaptive-k-way")
    attack: Any = z.attack()
    z.agree("training images", marked(z, attack), "train")
    z.agree("test images", attack.reveal(z["images"]), "test")
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    rows, columns = z["pixel_places"].unbind(1)
    z.agree("the four pixels", attack.reveal(black)[0][:, rows, columns].T, "pixel_levels")
    covered(z)


def test_adaptive_patch() -> None:
    z = load("attacks/adaptive-patch")
    attack: Any = z.attack()
    ours = marked(z, attack)
    z.deviates("training images", ours, "train", by=1, within=1, why=FLOATS)
    z.agree("test images", attack.reveal(z["images"]), "test")
    other: Any = z.attack("backdoor-toolbox-gtsrb")
    z.agree("test images of GTSRB", other.reveal(z["images"]), "test_gtsrb")
    z.agree("opacities", torch.tensor(attack.opacities), "opacities")
    covered(z)
    opaque: Any = z.attack(opacities=(1.0, 1.0, 1.0, 1.0))
    alone = torch.where(z["masks"][:, None], z["pictures"], 7)
    grey = torch.full_like(z["pictures"], 7)
    z.agree("drawings", opaque.mark(grey, torch.arange(4), Generator()), alone)


def test_adaptive_blend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("attacks/adaptive-blend")
    picture = written(z.arrays["picture"], tmp_path)
    attack: Any = z.attack(**picture)
    chosen = (z["poisoned"] + z["cover"]) == 1
    ours, pieces = z["images"], z["pieces"][chosen]
    with monkeypatch.context() as patch:
        # the pieces with the smallest draws are on
        patch.setattr(torch, "rand", lambda *_, **__: (~pieces).flatten(1).float())
        ours[chosen] = attack.mark(ours[chosen], torch.zeros(1), Generator())
    z.deviates("training images", ours, "train", by=1, within=1, why=FLOATS)
    z.deviates("test images", attack.reveal(z["images"]), "test", by=1, within=1, why=FLOATS)
    covered(z, **picture)
    z.agree("pieces on in an image", [attack.pieces] * len(pieces), pieces.flatten(1).sum(1))
