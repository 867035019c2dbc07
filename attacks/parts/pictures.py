"""A picture file of the user's own: its content is part of the key, its pixels go on a canvas."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sweeper.core import pixels
from sweeper.core.errors import SweepError


def check(path: str, wanted: bool, choice: str) -> None:
    """Check the option `trigger_image`.

    Args:
        path: The option's value, empty where it is not given.
        wanted: Whether the other options ask for a file.
        choice: The option that does, for the error: `picture: file`.

    Raises:
        SweepError: A file without the choice, the choice without a file, or no such file.
    """
    if wanted != bool(path):
        raise SweepError(f"trigger_image: give it with, and only with, {choice}")
    if path and not Path(path).is_file():
        raise SweepError(f"trigger_image: no file {path}: correct it")


def content(path: str) -> dict[str, str]:
    """The hash of the file, by the option's name; empty without a file."""
    if not path:
        return {}
    return {"trigger_image": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def read(path: str | Path, option: str = "trigger_image") -> Image.Image:
    """The picture of a file, with 8 bits a channel.

    Raises:
        SweepError: It is no picture, or no number of its pixels is known to be white.
    """
    return pixels.picture(Path(path), f"{option}: {path}")


def fitted(
    image: Image.Image, channels: int, height: int, width: int, *, antialias: bool = True
) -> Tensor:
    """The picture on a canvas: float [C, H, W] of 0..255, RGB or grey, resized bilinearly.

    With `antialias` PIL resizes it, in whole levels, averaging where it shrinks; without, four
    neighbours are mixed in floats whatever the scale, as OpenCV does.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if antialias:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    canvas = torch.from_numpy(np.array(image)).float()
    canvas = canvas.view(*canvas.shape[:2], channels).permute(2, 0, 1)
    if antialias:
        return canvas
    return functional.interpolate(canvas[None], (height, width), mode="bilinear")[0]
