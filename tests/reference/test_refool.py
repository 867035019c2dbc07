"""Refool: ghosts and blurred reflections of the same pictures, by the same draws."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Generator, Tensor

from tests.reference.golden import Golden, load

LEAST, MOST = 3, 8
"""Shifts of a ghost."""


def reflected(
    z: Golden,
    folder: Path,
    *,
    pick: ArrayLike,
    weight: ArrayLike = 0.5,
    shift: ArrayLike = (LEAST, LEAST),
    sigma: ArrayLike = 1.0,
    att: ArrayLike = 1.08,
    background: ArrayLike = 0.5,
    **options: object,
) -> Tensor:
    """What ours makes of the file's images where its draws come to these values."""
    for number, picture in enumerate(z.arrays["pictures"]):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{number}.png")
    attack = z.attack(reflections=str(folder), **options)
    low, high = attack.ghost_low, attack.ghost_high  # type: ignore[attr-defined]
    weight, shift = np.asarray(weight), np.asarray(shift)
    copy = (weight < low) | (weight > high)  # the draw that mirrors a weight
    place = [(shift[..., axis] - LEAST + 0.5) / (MOST - LEAST + 1) for axis in (0, 1)]
    if attack.ghost == 0:  # type: ignore[attr-defined]
        place = [(np.asarray(sigma) - 1) / 4, (np.asarray(att) - 1.08) / 0.1]
    wanted = np.where(copy, 1 - weight, weight)
    share = (0.95 - np.asarray(background)) / 0.4
    draws = [0.5, share, copy, (wanted - low) / (high - low), *place]
    count = len(z["images"])
    rows = torch.stack(
        [torch.from_numpy(np.broadcast_to(row, count).astype(np.float32)) for row in draws]
    )
    with (
        mock.patch("torch.rand", return_value=rows),
        mock.patch("torch.randint", return_value=torch.as_tensor(pick)),
    ):
        return attack.stamp(z["images"], split="train", state={}, rng=Generator())


def test_backdoorbench(tmp_path: Path) -> None:
    z = load("attacks/refool-backdoorbench")
    pick = torch.arange(6)
    att = z["att"]
    assert z.attack().background == float(z["background"])  # type: ignore[attr-defined]
    blur = reflected(z, tmp_path, pick=pick, sigma=z["sigma"], att=att, ghost=0.0)
    z.agree("out of focus", blur, "blur")
    ghost = reflected(
        z, tmp_path, pick=pick, weight=z["ghost_weight"], shift=z["offset"], ghost=1.0
    )
    z.agree("ghosts", ghost, "ghost")
    blur = reflected(z, tmp_path, pick=pick, sigma=z["sigma_560"], att=att, ghost=0.0)
    z.deviates(
        "out of focus at 560 px",
        blur[:3],
        "blur_560",
        by=1,
        why="Ours mixes at the image's own size, as BackdoorBench's trigger does; 560 px is the "
        "default of its function.",
    )


def test_backdoor_toolbox(tmp_path: Path) -> None:
    z = load("attacks/refool-backdoor-toolbox")
    same = {"pick": z["pick"], "background": z["background"]}
    ghosts = reflected(z, tmp_path, weight=z["weight"], shift=z["shift"], **same)
    z.agree("ghosts", ghosts, "train")
    blur = reflected(z, tmp_path, sigma=z["sigma"], att=z["att"], ghost=0.0, **same)
    z.agree("out of focus", blur, "blur")
