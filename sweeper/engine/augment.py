"""Whole-batch augmentation on the device: geometry and colour, each drawn per sample.

`crop_flip` takes uint8 [B, H, W, C], everything else float [B, C, H, W] in [0, 1]. What is drawn is
drawn on the CPU, so that the same generator gives the same images on every device, and sent there
as a few numbers an image: a copy of more than 64 KiB would make the program wait for a GPU.
Functions named by a participle (`turned`, `shifted`) apply given numbers, one for each image.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

NOTHING = 1e-17
"""A weight of a blur below this is 0: products of two would be subnormal, which processors multiply
slowly."""


def crop_flip(
    images: Tensor, pad: int, flip: bool, rng: Generator, probability: float = 1.0
) -> Tensor:
    """Shift each image by up to `pad` pixels over a black border and mirror every second one.

    Args:
        images: uint8 [B, H, W, C].
        pad: Pixels of border; 0 leaves images where they are.
        flip: Whether to mirror with probability one half.
        rng: A CPU generator.
        probability: That an image is shifted at all.

    Returns:
        uint8 [B, H, W, C].
    """
    if not pad and not flip:
        return images
    (count, height, width, channels), device = images.shape, images.device
    drawn = [torch.randint(2 * pad + 1, (count,), generator=rng) for _ in range(2)]
    if probability < 1:
        still = torch.rand(count, generator=rng) >= probability
        drawn = [shift.masked_fill(still, pad) for shift in drawn]
    if flip:
        drawn.append(torch.rand(count, generator=rng) < 0.5)
    top, left, *mirrored = torch.stack(drawn).to(device)[:, :, None]
    columns = torch.arange(width, device=device)
    if flip:
        columns = torch.where(mirrored[0] > 0, width - 1 - columns, columns)
    padded = functional.pad(images, (0, 0, pad, pad, pad, pad)) if pad else images
    tall, wide = height + 2 * pad, width + 2 * pad
    rows = top + torch.arange(height, device=device)
    rows += torch.arange(count, device=device)[:, None] * tall
    index = (rows * wide)[:, :, None] + (columns + left)[:, None, :]
    return padded.view(-1, channels).index_select(0, index.flatten()).view(images.shape)


def rotate(images: Tensor, degrees: float, rng: Generator, probability: float = 1.0) -> Tensor:
    """Rotate each image [B, C, H, W] by U(-degrees, degrees), nearest pixel, black outside.

    With a `probability` below 1 the other images stay as they are.
    """
    angle = _around(0, math.radians(degrees), len(images), rng)
    if probability < 1:
        angle *= torch.rand(len(images), generator=rng) < probability
    return turned(images, angle)


def turned(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate each image [B, C, H, W] counter-clockwise by its angle in radians, float [B]."""
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros(len(images))
    ratio = images.shape[2] / images.shape[3]
    theta = torch.stack(
        [
            torch.stack([cosine, -sine * ratio, zero], 1),
            torch.stack([sine / ratio, cosine, zero], 1),
        ],
        1,
    ).to(images.device)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", align_corners=False)


def translate(images: Tensor, share: float, rng: Generator) -> Tensor:
    """Shift each image [B, C, H, W] by up to `share` of its sides, whole pixels, black outside."""
    down, right = (
        _around(0, share * side, len(images), rng).round().long() for side in images.shape[2:]
    )
    return shifted(images, down, right)


def shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift each image [B, C, H, W] by its own whole pixels, int64 [B] each, black outside."""
    (height, width), device = images.shape[2:], images.device
    down, right = torch.stack([down, right]).to(device)[:, :, None]
    rows = torch.arange(height, device=device) - down
    columns = torch.arange(width, device=device) - right
    rows_in, columns_in = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    outside = ~(rows_in[:, :, None] & columns_in[:, None, :])
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    number = torch.arange(len(images), device=device)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
    return pixels.permute(0, 3, 1, 2).masked_fill_(outside[:, None], 0)


def resize_crop(
    images: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool,
    rng: Generator,
) -> Tensor:
    """Stretch a random box of each image [B, C, H, W] to the image's size, bilinear.

    Args:
        images: Float.
        scale: Least and largest area of the box, as a share of the image.
        ratio: Least and largest width over height; its logarithm is uniform.
        flip: Whether to mirror with probability one half.
        rng: A CPU generator.
    """
    height, width = images.shape[2:]
    box = _boxes(len(images), height, width, scale, ratio, rng)
    mirrored = torch.rand(len(images), generator=rng) < (0.5 if flip else 0.0)
    return resized(images, *box, mirrored)


def _boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random boxes: top, left, height, width, int64 [count] each.

    The first of ten draws that fits is taken; where none does, the largest allowed box.
    """
    area = torch.empty(count, 10).uniform_(*scale, generator=rng) * height * width
    aspect = torch.empty(count, 10).uniform_(*map(math.log, ratio), generator=rng).exp()
    tall, wide = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    first = fits.int().argmax(1, keepdim=True)
    whole = width / height
    least, most = round(width / max(whole, ratio[0])), round(height * min(whole, ratio[1]))
    tall = torch.where(fits.any(1), tall.gather(1, first)[:, 0], float(least))
    wide = torch.where(fits.any(1), wide.gather(1, first)[:, 0], float(most))
    top = (torch.rand(count, generator=rng) * (height - tall + 1)).floor()
    left = (torch.rand(count, generator=rng) * (width - wide + 1)).floor()
    return top.long(), left.long(), tall.long(), wide.long()


def resized(
    images: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, mirrored: Tensor
) -> Tensor:
    """Stretch the given box of each image [B, C, H, W] to the image's size, bilinear.

    Pixels outside the box are never read: at its border the border's own pixels repeat.
    """

    def lines(offset: Tensor, length: Tensor, side: int) -> Tensor:
        offset, length = offset[:, None].float(), length[:, None].float()
        position = (torch.arange(side, device=device) + 0.5) * length / side - 0.5
        position = offset + position.clamp(min=0).minimum(length - 1)
        return position * (2 / max(side - 1, 1)) - 1

    (height, width), device = images.shape[2:], images.device
    given = torch.stack([top, left, tall, wide, mirrored]).to(device)
    top, left, tall, wide, mirrored = *given[:4], given[4] > 0
    rows, columns = lines(top, tall, height), lines(left, wide, width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    shape = (len(images), height, width)
    grid = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], 3)
    return functional.grid_sample(images, grid, align_corners=True)


def erase(images: Tensor, probability: float, rng: Generator) -> Tensor:
    """Blacken, with this probability, a box of 2-33 % of each image's area (random erasing)."""
    (count, _, height, width), device = images.shape, images.device
    area = (torch.rand(count, generator=rng) * 0.31 + 0.02) * height * width
    ratio = torch.exp((torch.rand(count, generator=rng) * 2 - 1) * math.log(3.3))
    tall = (area * ratio).sqrt().clamp(max=height)
    wide = (area / ratio).sqrt().clamp(max=width)
    top = torch.rand(count, generator=rng) * (height - tall)
    left = torch.rand(count, generator=rng) * (width - wide)
    applied = torch.rand(count, generator=rng) < probability
    bottom = torch.where(applied, top + tall, 0)  # an image that keeps all has no row in its box
    edges = torch.stack([top, bottom, left, left + wide]).to(device)[:, :, None]
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows = (rows >= edges[0]) & (rows < edges[1])
    in_columns = (columns >= edges[2]) & (columns < edges[3])
    box = in_rows[:, :, None] & in_columns[:, None, :]
    return images.masked_fill(box[:, None], 0)


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float [B, C, H, W] in [0, 1], channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def jitter(
    images: Tensor,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    probability: float,
    rng: Generator,
) -> Tensor:
    """Change the colours of each image [B, C, H, W], with this probability, in an order of its own.

    Args:
        images: Float in [0, 1].
        brightness: The factor is U(1 - brightness, 1 + brightness).
        contrast: Likewise.
        saturation: Likewise.
        hue: The turn is U(-hue, hue) of the colour circle.
        probability: That an image is changed at all.
        rng: A CPU generator.
    """
    count, out = len(images), images.clone()
    amounts = [_around(1, reach, count, rng) for reach in (brightness, contrast, saturation)]
    amounts.append(_around(0, hue, count, rng))
    applied = torch.rand(count, 1, generator=rng) < probability
    order = torch.rand(count, 4, generator=rng).argsort(1).masked_fill(~applied, -1)
    for turn in order.unbind(1):
        for number, change in enumerate((brightened, contrasted, saturated, hue_turned)):
            index = (turn == number).nonzero().flatten()
            amount, positions = amounts[number][index], index.to(images.device)
            out[positions] = change(out[positions], amount.to(images.device))
    return out


def decolour(images: Tensor, probability: float, rng: Generator) -> Tensor:
    """Make each image [B, C, H, W] grey with this probability."""
    applied = (torch.rand(len(images), generator=rng) < probability).to(images.device)
    return torch.where(applied[:, None, None, None], luma(images), images)


def blur(images: Tensor, sigma: tuple[float, float], probability: float, rng: Generator) -> Tensor:
    """Blur each image [B, C, H, W], with this probability, by U(*sigma) pixels."""
    index = (torch.rand(len(images), generator=rng) < probability).nonzero().flatten()
    width = torch.empty(len(images)).uniform_(*sigma, generator=rng)[index].to(images.device)
    out, positions = images.clone(), index.to(images.device)
    out[positions] = blurred(out[positions], width)
    return out


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image [B, C, H, W] by a Gaussian of its standard deviation in pixels, float [B].

    Nothing lies outside an image: near its border the weights of the pixels inside are scaled up.
    """

    def lines(side: int) -> Tensor:
        place = torch.arange(side, device=images.device)
        squared_distance = (place[:, None] - place).square()
        weights = (-squared_distance / (2 * sigma.square()[:, None, None])).softmax(2)
        return weights.where(weights > NOTHING, 0.0)[:, None]

    height, width = images.shape[2:]
    return lines(height) @ images @ lines(width).mT


def luma(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 1, H, W], brightness as the eye sees it (ITU-R 601); else the mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    brightness: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return brightness


def brightened(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image by its factor, float [B]; 0 is black."""
    return _mixed(images, torch.zeros_like(images), factor)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """Scale each image's distance to its mean brightness, float [B]; 0 is plain grey."""
    return _mixed(images, luma(images).mean((2, 3), keepdim=True), factor)


def saturated(images: Tensor, factor: Tensor) -> Tensor:
    """Scale each image's distance to its grey self, float [B]; images without colours stay."""
    return _mixed(images, luma(images), factor) if images.shape[1] == 3 else images


def hue_turned(images: Tensor, turn: Tensor) -> Tensor:
    """Turn each image's hue by a share of the colour circle, float [B], via HSV."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    high, spread = images.amax(1), images.amax(1) - images.amin(1)
    safe = torch.where(spread == 0, 1.0, spread)
    green_or_blue = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(high == red, (green - blue) / safe, green_or_blue) + 6 * turn[:, None, None]
    offset = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
    sector = (offset + hue[:, None]).remainder(6)
    return high[:, None] - spread[:, None] * sector.minimum(4 - sector).clamp(0, 1)


def _mixed(images: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return (base + factor[:, None, None, None] * (images - base)).clamp(0, 1)


def _around(centre: float, reach: float, count: int, rng: Generator) -> Tensor:
    """Draw float [count], uniform in centre -+ reach."""
    return centre + (torch.rand(count, generator=rng) * 2 - 1) * reach
