"""Pictures that are reflected in Refool: generated ones, or those of a folder."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from attacks.parts.pictures import fitted, read
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.folders import inside

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def generated(count: int, channels: int, height: int, width: int) -> Tensor:
    """Float [count, C, height, width] in [0, 1]: two smooth colour fields with a curved border."""
    rng = seeds.generator("refool", "pool", count, channels, height, width)
    coarse = torch.randn(count, 2 * channels + 1, 5, 5, generator=rng)
    fine = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    first, second, border = fine.split([channels, channels, 1], dim=1)
    return torch.where(border > 0, first, second).mul(2).sigmoid()


def files(folder: str, count: int) -> list[Path]:
    """The first `count` pictures of a folder by name.

    Raises:
        SweepError: There is no such folder, or no picture in it.
    """
    if not Path(folder).is_dir():
        raise SweepError(f"reflections: no folder {folder}: name one with pictures")
    pictures = [p for p in inside(Path(folder)) if p.suffix.lower() in SUFFIXES]
    if not pictures:
        raise SweepError(
            f"reflections: no picture ({', '.join(SUFFIXES)}) in {folder}: name another folder"
        )
    return pictures[:count]


def content(folder: str, count: int) -> str:
    """The hash of the pictures, whatever the folder and its files are called."""
    digest = hashlib.sha256()
    for path in files(folder, count):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def decoded(folder: str, digest: str, count: int, channels: int, height: int, width: int) -> Tensor:
    """Float [count, C, height, width] in [0, 1]: the pictures of a folder with this content."""
    images = (read(path, "reflections") for path in files(folder, count))
    return torch.stack([fitted(image, channels, height, width) for image in images]) / 255
