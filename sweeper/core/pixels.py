"""Encoded pictures of anyone -> 8 bits a channel: data sets, triggers, reflections."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from sweeper.core.errors import SweepError, unreadable

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, is cut short or is too large to be meant."""
_DEPTH, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF, and a value of the second."""
_SIXTEEN = ("PNG", "PPM")
"""Formats whose whole numbers Pillow gives in 0..65535, whatever the file's own range is."""


def opened(item: bytes | Path, name: str, upright: bool = False) -> Image.Image:
    """Open a picture; pixels of more than 8 bits are read and scaled, others are read when used.

    Args:
        item: The encoded file, or its path: no file stays open.
        name: What it is called in an error.
        upright: Whether to turn it as its EXIF orientation says.

    Raises:
        SweepError: It is no picture, or no number of its pixels is known to be white.
    """
    data = item if isinstance(item, bytes) else b""
    try:
        data = item.read_bytes() if isinstance(item, Path) else item
        image = raw(data)
        orientation = image.getexif().get(Base.Orientation) if upright else None
        image = eight_bit(image, name)
        if orientation not in range(2, 9):  # upright, or a file's nonsense
            return image
        image.getexif()[Base.Orientation] = orientation  # a picture scaled down lost it
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise unreadable(name, "is not a readable image", "of no known kind", data) from error
    except UNREADABLE as error:
        raise unreadable(name, "is not a readable image", error, data) from error


def raw(data: bytes) -> Image.Image:
    """Open a picture as Pillow does; only its header is decoded."""
    return Image.open(io.BytesIO(data))


def picture(path: Path, name: str) -> Image.Image:
    """Read a whole picture, with 8 bits a channel.

    Raises:
        SweepError: As `opened`; also where it is cut short.
    """
    image = opened(path, name)
    try:
        image.load()
    except UNREADABLE as error:
        raise SweepError(f"{name}: cannot be decoded ({error}): replace it") from error
    return image


def eight_bit(image: Image.Image, name: str) -> Image.Image:
    """The picture, of deeper grey scaled to 0..255 by the depth its file states.

    Pillow reads deeper colours as 8 bits itself, but cuts deeper grey off at 255.

    Raises:
        SweepError: Its pixels are floats or of 32 bits: nothing says which number is white.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    tags = getattr(image, "tag_v2", {})
    depth = 16 if image.format in _SIXTEEN or image.mode != "I" else 32
    depth = tags.get(_DEPTH, (depth,))[0]
    if image.mode == "F" or depth > 16 or (tags and image.mode == "I"):
        kind = "floats" if image.mode == "F" else "whole numbers of 32 bits or with a sign"
        raise SweepError(
            f"{name}: its pixels are {kind}, and nothing says which is white: save it with 8 or "
            "16 bits a channel"
        )
    white = 2**depth - 1
    values = np.asarray(image).astype(np.uint32)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def deep(image: Image.Image) -> bool:
    """Whether the file, of which only the header was read, states more than 8 bits a channel."""
    return image.mode.startswith("I") or any(
        ";16" in str(tile) for tile in getattr(image, "tile", ())
    )


def turned(image: Image.Image) -> bool:
    """Whether its EXIF orientation exchanges width and height."""
    return image.getexif().get(Base.Orientation) in range(5, 9)
