"""The drawings of Adaptive-Patch on a canvas of 32x32: two glyphs, a checker and a square.

The release's are logos; only sizes and places are theirs. Other canvases take them resized.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.parts.patch import drawn
from attacks.parts.stamp import GRID

SIDE = 32
"""Side of the canvas things are drawn on."""
COLOURS = {"r": (230, 40, 40), "y": (250, 210, 60), "b": (40, 70, 200), "w": (250, 250, 250)}
GLYPH = (".rrr.", "ryyyr", "rywyr", "ryyyr", ".rbr.")
"""The 5x5 glyph; dots are transparent."""

Drawing = tuple[Tensor, Tensor]
"""uint8 [3, 32, 32] and bool [32, 32]: the colours, and the cells they cover."""


def _blank() -> Drawing:
    shape = (SIDE, SIDE)
    return torch.zeros(3, *shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.bool)


def glyph(columns: tuple[int, ...]) -> Drawing:
    """The 5x5 glyph at the bottom (rows 27..31), its left border at these columns."""
    picture, mask = _blank()
    for left in columns:
        for row, line in enumerate(GLYPH):
            for column, cell in enumerate(line):
                if cell != ".":
                    place = SIDE - 5 + row, left + column
                    picture[:, place[0], place[1]] = torch.tensor(COLOURS[cell])
                    mask[place] = True
    return picture, mask


def disc() -> Drawing:
    """A disc of 137 pixels in rows 1..13, columns 18..30: blue in white in red."""
    picture, mask = _blank()
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    distance = ((rows - 7) ** 2 + (columns - 24) ** 2).float().sqrt()
    for colour, radius in (("r", 6.6), ("w", 4.5), ("b", 2.5)):
        inside = distance <= radius
        picture[:, inside] = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None]
        mask |= inside
    return picture, mask


def checker() -> Drawing:
    """A 3x3 block in each corner, seen from it 255 0 255 / 0 255 0 / 255 0 0; 36 cells."""
    picture, mask = _blank()
    block = torch.tensor(GRID, dtype=torch.uint8)
    for top in (True, False):
        for left in (True, False):
            flipped = block.flip(0) if top else block
            flipped = flipped.flip(1) if left else flipped
            rows = slice(0, 3) if top else slice(SIDE - 3, SIDE)
            columns = slice(0, 3) if left else slice(SIDE - 3, SIDE)
            picture[:, rows, columns] = flipped
            mask[rows, columns] = True
    return picture, mask


def square() -> Drawing:
    """The 8x8 patch in rows and columns 21..28."""
    picture, mask = _blank()
    picture[:, 21:29, 21:29] = drawn(3, 8).to(torch.uint8)
    mask[21:29, 21:29] = True
    return picture, mask


def fitted(drawing: Drawing, channels: int, height: int, width: int) -> Drawing:
    """The drawing on another canvas: nearest pixel; the mean of the colours for other channels."""
    picture, mask = drawing
    if channels != 3:
        picture = picture.float().mean(0, keepdim=True).to(torch.uint8)
        picture = picture.expand(channels, SIDE, SIDE)
    rows, columns = (torch.arange(size) * SIDE // size for size in (height, width))
    return picture[:, rows][:, :, columns], mask[rows][:, columns]
