"""Fifteen common corruptions of images in five severities (Hendrycks and Dietterich, ICLR 2019).

Severities have the numbers of ImageNet-C; those of `elastic`, which there depend on the image size,
the ones of the `imagecorruptions` library. What is random (noise, displacements, snow) is drawn
once a call and the same for all its images, so that a corrupted image depends on that image alone.

Deviations: frost is drawn from the ridges of a cloud, not cut out of photographs; a cloud is a sum
of octaves of noise, not a diamond-square map, with the same decay; a pixel behind glass takes the
value of a neighbour instead of changing places with it; blurs repeat the pixels of the border.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from defenses.frequency import cosines

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of the brightness at quality 50 (JPEG standard, table K.1)."""
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
"""Quantisation of the colours at quality 50 (JPEG standard, table K.2)."""
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""RGB -> brightness and two colours (JFIF)."""


def corrupted(images: Tensor, name: str, severity: int, rng: Generator) -> Tensor:
    """Corrupt uint8 images [B, C, H, W], on any device, of one or three channels and any size.

    Args:
        images: Left as they are.
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        rng: A CPU generator; the same one, the same pattern.
    """
    pixels = CORRUPTIONS[name](images.float().div_(255), severity - 1, rng)
    return pixels.clamp(0, 1).mul_(255).round_().to(torch.uint8)


# Noise: float [B, C, H, W] in [0, 1] -> the same, not clipped; `level` counts from 0


def _gaussian_noise(x: Tensor, level: int, rng: Generator) -> Tensor:
    noise = torch.randn(x.shape[1:], generator=rng).to(x.device)
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * noise


def _shot_noise(x: Tensor, level: int, rng: Generator) -> Tensor:
    """Photons counted: how many events of one Poisson process a pixel come before its value."""
    rate = (60, 25, 12, 5, 3)[level]
    events = int(rate + 10 * math.sqrt(rate)) + 10
    gaps = -torch.rand(*x.shape[1:], events, generator=rng).log()
    times = (rate * x).movedim(0, -1).contiguous()
    counts = torch.searchsorted(gaps.cumsum(-1).to(x.device), times, right=True)
    return counts.movedim(-1, 0) / rate


def _impulse_noise(x: Tensor, level: int, rng: Generator) -> Tensor:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    uniform = torch.rand(x.shape[1:], generator=rng).to(x.device)
    return x.masked_fill(uniform < share / 2, 0).masked_fill(uniform > 1 - share / 2, 1)


# Blurs


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve [B, C, H, W] with a kernel of odd sides around its middle; border pixels repeat."""
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = functional.pad(x, (columns, columns, rows, rows), mode="replicate")
    size = padded.shape[2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(x.device), s=size)
    filtered: Tensor = torch.fft.irfft2(spectrum, s=size)
    return filtered[..., 2 * rows :, 2 * columns :]


def bell(sigma: float, truncate: float = 4.0) -> Tensor:
    """A Gaussian kernel of this deviation in pixels."""
    reach = math.ceil(truncate * sigma)
    line = (-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma**2)).exp()
    return torch.outer(line, line) / line.sum() ** 2


def disk(radius: int, sigma: float) -> Tensor:
    """A kernel that is even within a radius, its edge blurred."""
    place = torch.arange(-radius - 2, radius + 3)
    inside = (place[:, None] ** 2 + place**2 <= radius**2).float()
    kernel = convolved(inside[None, None], bell(sigma))[0, 0]
    return kernel / kernel.sum()


def streaked(x: Tensor, radius: int, sigma: float, degrees: float) -> Tensor:
    """Smear each image along one direction, fading over 2 `radius` pixels; border pixels repeat."""
    height, width = x.shape[2:]
    step = torch.arange(2 * radius + 1)
    weights = (-(step.float() ** 2) / (2 * sigma**2)).exp()
    angle = math.radians(degrees)
    down = (step * math.sin(angle)).round().long().clamp(-height, height) + height
    right = (-step * math.cos(angle)).round().long().clamp(-width, width) + width
    padded = functional.pad(x, (width, width, height, height), mode="replicate")
    total = torch.zeros_like(x)
    places = zip(down.tolist(), right.tolist(), (weights / weights.sum()).tolist(), strict=True)
    for top, left, weight in places:
        total += weight * padded[..., top : top + height, left : left + width]
    return total


def zoomed(x: Tensor, factor: float) -> Tensor:
    """Magnify the middle of each image to its size."""
    theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], device=x.device)
    grid = functional.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _uniform(low: float, high: float, rng: Generator) -> float:
    return low + (high - low) * torch.rand((), generator=rng).item()


def _defocus_blur(x: Tensor, level: int, rng: Generator) -> Tensor:
    return convolved(x, disk(*((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]))


def _glass_blur(x: Tensor, level: int, rng: Generator) -> Tensor:
    sigma, reach, rounds = (
        (0.7, 1, 2),
        (0.9, 2, 1),
        (1.0, 2, 3),
        (1.1, 3, 2),
        (1.5, 4, 2),
    )[level]
    height, width = x.shape[2:]
    place = torch.arange(height * width).view(height, width)
    for _ in range(rounds):
        down, right = torch.randint(-reach, reach + 1, (2, height, width), generator=rng)
        rows = (torch.arange(height)[:, None] + down).clamp(0, height - 1)
        place = place[rows, (torch.arange(width) + right).clamp(0, width - 1)]
    moved = convolved(x, bell(sigma)).flatten(2)[..., place.flatten().to(x.device)]
    return convolved(moved.view_as(x), bell(sigma))


def _motion_blur(x: Tensor, level: int, rng: Generator) -> Tensor:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return streaked(x, radius, sigma, _uniform(-45, 45, rng))


def _zoom_blur(x: Tensor, level: int, rng: Generator) -> Tensor:
    count, step = ((11, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))[level]
    total = x.clone()
    for number in range(count):
        total += zoomed(x, 1 + step * number)
    return total / (count + 1)


# Weather


def cloud(x: Tensor, decay: float, rng: Generator) -> Tensor:
    """A map in [0, 1] of noise in octaves, each finer one weaker by decay squared; [1, 1, H, W]."""
    height, width = x.shape[2:]
    total = torch.zeros(1, 1, height, width)
    for octave in range(max(1, math.ceil(math.log2(max(height, width))))):
        cells = 2 ** (octave + 1) + 1
        grid = torch.rand(1, 1, cells, cells, generator=rng) * decay ** (-2 * octave)
        total += functional.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
    low, high = total.min(), total.max()
    return ((total - low) / (high - low).clamp(min=1e-12)).to(x.device)


def grey(x: Tensor) -> Tensor:
    """The brightness of images; [B, 1, H, W]."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(YCBCR[0]).view(-1, 1, 1)).sum(1, keepdim=True)


def _snow(x: Tensor, level: int, rng: Generator) -> Tensor:
    mean, deviation, factor, least, radius, sigma, image_weight = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    flakes = zoomed(mean + deviation * torch.randn(1, 1, *x.shape[2:], generator=rng), factor)
    flakes = flakes.masked_fill(flakes < least, 0).clamp(0, 1)
    flakes = streaked(flakes, radius, sigma, _uniform(-135, -45, rng)).to(x.device)
    pale = image_weight * x + (1 - image_weight) * torch.maximum(x, 1.5 * grey(x) + 0.5)
    return pale + flakes + flakes.flip(2, 3)


def _frost(x: Tensor, level: int, rng: Generator) -> Tensor:
    image_weight, frost_weight = (
        (1.0, 0.4),
        (0.8, 0.6),
        (0.7, 0.7),
        (0.65, 0.7),
        (0.6, 0.75),
    )[level]
    ridges = 1 - (2 * cloud(x, 1.4, rng) - 1).abs()
    return image_weight * x + frost_weight * ridges.square()


def _fog(x: Tensor, level: int, rng: Generator) -> Tensor:
    weight, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    brightest = x.amax((1, 2, 3), keepdim=True)
    foggy = x + weight * cloud(x, decay, rng)
    return foggy * brightest / (brightest + weight)


def _brightness(x: Tensor, level: int, rng: Generator) -> Tensor:
    """Raise the value of the HSV colour; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.clamp(min=1e-6)), raised)


# Digital


def _contrast(x: Tensor, level: int, rng: Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (x - mean)


def _elastic(x: Tensor, level: int, rng: Generator) -> Tensor:
    height, width = x.shape[2:]
    noise = 2 * torch.rand(1, 2, height, width, generator=rng) - 1
    pixels = convolved(0.005 * height * noise, bell(0.01 * max(height, width), 3.0))
    pixels *= 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[level]
    identity = functional.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], False)
    grid = identity + pixels.movedim(1, -1) * torch.tensor([2 / width, 2 / height])
    grid = grid.to(x.device).expand(len(x), -1, -1, -1)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _pixelate(x: Tensor, level: int, rng: Generator) -> Tensor:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width = (max(1, int(share * side)) for side in x.shape[2:])
    small = functional.adaptive_avg_pool2d(x, (height, width))
    return functional.interpolate(small, x.shape[2:], mode="nearest-exact")


def quantised(planes: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Round the cosine transform of blocks of 8 x 8 levels; [B, C, H, W], sides multiples of 8."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    steps = ((planes.new_tensor(table) * scale + 50) / 100).floor().clamp(1, 255)
    basis = cosines(8).to(planes)
    blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
    rounded = (basis @ blocks.round() @ basis.T / steps).round() * steps
    decoded: Tensor = (basis.T @ rounded @ basis).round()
    return decoded.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Compress as JPEG does, colours at half the resolution, and decompress."""
    height, width = x.shape[2:]
    padded = functional.pad(255 * x, (0, -width % 16, 0, -height % 16), mode="replicate")
    if x.shape[1] == 1:
        return (quantised(padded - 128, LUMA, quality) + 128)[..., :height, :width] / 255
    matrix = x.new_tensor(YCBCR)
    planes = torch.einsum("ij,bjhw->bihw", matrix, padded)
    light = quantised(planes[:, :1] - 128, LUMA, quality) + 128
    small = quantised(functional.avg_pool2d(planes[:, 1:], 2), CHROMA, quality)
    colours = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    joined = torch.cat([light, colours], 1)[..., :height, :width]
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(matrix), joined) / 255


def _jpeg(x: Tensor, level: int, rng: Generator) -> Tensor:
    return jpeg(x, (25, 18, 15, 10, 7)[level])


CORRUPTIONS: dict[str, Callable[[Tensor, int, Generator], Tensor]] = {
    "gaussian-noise": _gaussian_noise,
    "shot-noise": _shot_noise,
    "impulse-noise": _impulse_noise,
    "defocus-blur": _defocus_blur,
    "glass-blur": _glass_blur,
    "motion-blur": _motion_blur,
    "zoom-blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic": _elastic,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
