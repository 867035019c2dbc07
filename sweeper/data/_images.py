"""Encoded images to one uint8 tensor, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sweeper.core import pixels
from sweeper.core.errors import SweepError
from sweeper.core.machine import cores

Pixels: TypeAlias = "NDArray[np.uint8]"
"""Raw pixels of one image, [H, W] or [H, W, 3]."""
Item: TypeAlias = "bytes | Path | Pixels"
"""One image: an encoded file's bytes, its path, or raw pixels."""
Batches = Callable[[], Iterable[Sequence[Item]]]
"""Gives the images of a split in order, in batches; may be called more than once."""

_BLOCK = 256
"""Images a thread decodes in one go: one task an image costs as much as decoding it."""
_SMALL = 64
"""Side in pixels up to which one thread decodes: at 32 and 64 two threads were no faster than one
(2 cores, Pillow 13, 10,000 to 50,000 JPEGs), since opening an image holds the interpreter lock."""
_THREADS = 8
"""Threads for larger images at most; a guess at where they only wait for the interpreter lock."""
_GREY = ("1", "L")
_DARK = 32
"""Of 256 levels: a split of deeper pixels that has none brighter holds fewer bits than it states,
such as 12 of 16."""


class _ColourError(Exception):
    """A colour image among images taken to be grey."""


def decode(
    batches: Batches,
    count: int,
    what: str,
    size: int | None = None,
    like: Tensor | None = None,
    upright: bool = False,
) -> Tensor:
    """Decode `count` images to one uint8 tensor [count, C, H, W].

    A split whose images are all grey has one channel; otherwise all are read as RGB.

    Args:
        batches: The images, in order.
        count: How many there are.
        what: The split as the user knows it, for messages.
        size: Side in pixels to resize to (bilinear, antialiased, the aspect ratio is not kept).
        like: Images [N, C, H, W] of the training split, whose C, H and W these must share.
        upright: Whether to turn images as their EXIF orientation says.

    Raises:
        SweepError: An image cannot be read, or has pixels of an unknown range, or sizes differ and
            `size` is not given.
    """
    if count == 0:
        raise SweepError(
            f"{what}: there are no images: add some, or name another place with `path`"
        )
    first = next(iter(next(iter(batches()))))
    image = _open(first, _named(what, first, 0), upright)
    if like is not None:
        shape = (like.shape[1], like.shape[2], like.shape[3])
    else:
        shape = (1 if image.mode in _GREY else 3, size or image.height, size or image.width)
    threads = min(cores(), _THREADS) if max(image.size) > _SMALL else 1
    try:
        out = _fill(batches(), count, shape, size, what, threads, upright)
    except _ColourError:
        if like is not None:
            raise SweepError(
                f"{what}: colour images, but those of the training split are grey: convert one"
            ) from None
        out = _fill(batches(), count, (3, *shape[1:]), size, what, threads, upright)
    _check_levels(out, batches, what)
    return out


def _fill(
    batches: Iterable[Sequence[Item]],
    count: int,
    shape: tuple[int, int, int],
    size: int | None,
    what: str,
    threads: int,
    upright: bool,
) -> Tensor:
    """Decode straight into the final tensor, blocks of images in parallel."""
    out = torch.empty((count, *shape), dtype=torch.uint8)
    array: Pixels = out.numpy()
    filled = 0
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            lows = range(0, len(batch), _BLOCK)
            jobs = pool.map(
                _fill_block,
                [array[filled + low : filled + min(low + _BLOCK, len(batch))] for low in lows],
                [batch[low : low + _BLOCK] for low in lows],
                [filled + low for low in lows],
                repeat(size),
                repeat(what),
                repeat(upright),
            )
            list(jobs)
            filled += len(batch)
    if filled != count:
        raise SweepError(
            f"{what}: {filled} images where {count} were announced: its files changed while they "
            "were read, run again"
        )
    return out


def _fill_block(
    block: Pixels, items: Sequence[Item], first: int, size: int | None, what: str, upright: bool
) -> None:
    channels, height, width = block.shape[1:]
    mode = "L" if channels == 1 else "RGB"
    for offset, item in enumerate(items):
        name = _named(what, item, first + offset)
        image = _open(item, name, upright)
        if channels == 1 and image.mode not in _GREY:
            raise _ColourError
        try:
            image = image if image.mode == mode else image.convert(mode)
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            if image.size != (width, height):
                raise SweepError(
                    f"{name}: {image.width}x{image.height} pixels among images of "
                    f"{width}x{height}: give `size: N` to resize all to N x N"
                )
            values = np.asarray(image)
        except pixels.UNREADABLE as error:
            raise SweepError(f"{name}: cannot be decoded ({error}): replace it") from error
        block[offset] = values if channels == 1 else values.transpose(2, 0, 1)


def _named(what: str, item: Item, number: int) -> str:
    """What an image is called in an error: its path, where it has one."""
    return f"{what}, image {item if isinstance(item, Path) else number}"


def _open(item: Item, name: str, upright: bool) -> Image.Image:
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    return pixels.opened(item, name, upright)


def _check_levels(images: Tensor, batches: Batches, what: str) -> None:
    """Refuse a split whose pixels were lost: its files hold more than what was decoded shows."""
    low, high = int(images[0].min()), int(images[0].max())
    if high >= _DARK and bool(((images[0] != low) & (images[0] != high)).any()):
        return  # the first image already shows three levels: so it is for nearly all splits
    low, high = int(images.min()), int(images.max())
    levels = 3 if any(bool(((part != low) & (part != high)).any()) for part in images) else 2
    if levels > 2 and high >= _DARK:
        return
    seen: set[int] = set()
    for item in (item for batch in batches() for item in batch if not isinstance(item, np.ndarray)):
        with pixels.raw(item.read_bytes() if isinstance(item, Path) else item) as image:
            states_more = pixels.deep(image)
            seen.update(np.unique(np.asarray(image)).tolist())
        if (states_more and high < _DARK) or (levels == 2 and len(seen) > 2):
            raise SweepError(
                f"{what}: all its pixels become {low} to {high} of 0 to 255, while its files hold "
                "more: they use fewer bits than they state; save them with 8 bits a channel"
            )


def as_batches(items: Sequence[Any], batch: int = 8192) -> Batches:
    """Return `decode`'s batches of a sequence that is already in memory."""
    return lambda: (items[low : low + batch] for low in range(0, len(items), batch))
