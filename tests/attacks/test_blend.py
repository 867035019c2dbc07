"""Blend: the pictures of the releases by their numbers, and what of them is part of a key."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from attacks.blend import MEAN, Blend
from attacks.parts.stamp import stripes
from sweeper.core import catalog, options, seeds
from sweeper.core.errors import SweepError
from tests.support import toys

STRIP = [0, 14, 19, 13, 255, 241, 237]
"""The first entries of a row of the D-BR release's mask; -1, -15 and -19 wrapped."""


def make(**given_options: Any) -> Blend:
    found: Blend = catalog.make("attack", "blend", given_options)
    return found


def stamp(attack: Blend, images: Tensor) -> Tensor:
    return attack.stamp(images, split="test", state={}, rng=seeds.generator("unused"))


def ramp(channels: int = 3, side: int = 32) -> Tensor:
    """256 images, image x all of value x."""
    return torch.arange(256).to(torch.uint8)[:, None, None, None].expand(256, channels, side, side)


def test_the_strip_mask_is_the_release_s() -> None:
    mask = stripes(32, 32)
    assert mask[0, :7].tolist() == STRIP
    assert torch.equal(mask, mask[:1].expand(32, 32)), "every row is the same"
    levels = set(mask.flatten().int().tolist())
    assert levels <= {*range(20), *range(237, 256)}


def test_the_strip_keeps_its_number_of_stripes_on_larger_canvases() -> None:
    narrow, wide = stripes(1, 32)[0], stripes(1, 64)[0]
    dark = [(row < 128).int() for row in (narrow, wide)]
    assert torch.equal(wide[::2], narrow), "every second column is a column of the small mask"
    turns = [int(row.diff().abs().sum()) for row in dark]
    assert abs(turns[0] - turns[1]) <= 1, "the period is scaled, not repeated"
    assert stripes(8, 8)[0].tolist() == narrow[:8].tolist(), "small canvases keep the period"


def test_the_strip_adds_little_where_dark_and_fifty_levels_where_bright() -> None:
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    change = stamp(make(preset="d-br-strip"), grey)[0, 0, 0].int() - 80
    dark = stripes(32, 32)[0] < 128
    assert int(change[dark].max()) <= 4 and int(change[~dark].min()) >= 47


def test_the_sine_is_signed_and_has_six_periods() -> None:
    for channels, width in ((3, 224), (1, 32)):
        wave = make(preset="d-br-strip-imagenet").pattern(channels, 8, width)
        assert wave.shape == (channels, 8, width)
        assert float(wave.max()) == pytest.approx(20, rel=0.02)
        assert float(wave.min()) == pytest.approx(-20, rel=0.02)
        assert int((wave[0, 0] > 1e-9).int().diff().eq(1).sum()) == 6
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    change = stamp(make(preset="d-br-strip-imagenet"), grey).int() - 80
    assert int(change.min()) == -4 and int(change.max()) in (3, 4)


@pytest.mark.parametrize("picture", ["noise", "strip", "sine", "generated"])
def test_a_brighter_pixel_never_becomes_darker_than_a_darker_one(picture: str) -> None:
    for channels in (1, 3):
        found = stamp(make(picture=picture), ramp(channels)).int()
        assert bool((found.diff(dim=0) >= 0).all()), "T must be monotone in x"
        picture_itself = make(picture=picture).pattern(channels, 32, 32)
        exact = 0.8 * torch.arange(256)[:, None, None, None] + 0.2 * picture_itself
        assert bool(((found - exact.clamp(0, 255).floor()).abs() <= 1).all())
        assert bool((found <= exact.clamp(min=0) + 1e-3).all()), "truncated, not rounded"


def test_the_noise_picture_is_n_125_75_rounded_and_clipped() -> None:
    found = make().pattern(3, 32, 32)
    raw = 125 + 75 * torch.randn(3, 32, 32, generator=seeds.generator("blend", "noise", 3, 32, 32))
    assert float(raw.mean()) == pytest.approx(125, abs=4)
    assert float(raw.std()) == pytest.approx(75, abs=3)
    assert torch.equal(found, raw.round().clamp(0, 255))
    assert float(found.mean()) == pytest.approx(125, abs=5) and float(found.std()) > 60
    assert torch.equal(found, make(preset="fip").pattern(3, 32, 32)), "one picture for all cells"
    assert float(make().pattern(3, 64, 64).std()) == pytest.approx(float(found.std()), abs=3)


def test_the_generated_picture_has_the_statistics_of_the_cartoon() -> None:
    found = make(preset="d-br-kitty").pattern(3, 256, 256)
    for channel, mean in enumerate(MEAN):
        assert float(found[channel].mean()) == pytest.approx(mean, abs=1)
    assert float(found.std()) >= 60
    small = make(preset="d-br-kitty").pattern(3, 32, 32)
    assert float(small.std()) >= 60
    for channel, mean in enumerate(MEAN):
        assert float(small[channel].mean()) == pytest.approx(mean, abs=1)
    step = (found[:, :, 1:] - found[:, :, :-1]).abs().mean()
    assert float(step) < 4, "the picture is smooth: its frequencies are low"
    assert make(preset="d-br-kitty").pattern(1, 8, 8).shape == (1, 8, 8)


@settings(max_examples=20, deadline=None)
@given(opacity=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_the_picture_s_share_is_the_opacity(opacity: float, seed: int) -> None:
    images = toys.image_set(4, shape=(3, 8, 8), seed=seed).images
    attack = Blend(opacity=opacity)
    picture = attack.pattern(3, 8, 8)
    exact = (1 - opacity) * images.double() + opacity * picture
    found = stamp(attack, images).double()
    assert bool((found <= exact + 1e-3).all()) and bool((found > exact - 1 - 1e-3).all())


def test_at_opacity_one_only_the_picture_is_left() -> None:
    found = stamp(make(opacity=1.0), ramp())
    assert torch.equal(found, make().pattern(3, 32, 32).to(torch.uint8).expand_as(found))


def save(path: Path, shift: int = 0) -> str:
    pixels = (torch.arange(16 * 16 * 3).view(16, 16, 3) + shift).remainder(256).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return str(path)


def test_a_picture_file_counts_by_content_not_by_path(tmp_path: Path) -> None:
    one, moved = save(tmp_path / "one.png"), save(tmp_path / "elsewhere.png")
    other = save(tmp_path / "other.png", shift=9)
    known = [
        options.canonical(make(picture="file", trigger_image=path)) for path in (one, moved, other)
    ]
    assert known[0] == known[1] and known[0] != known[2]
    hashed = hashlib.sha256(Path(one).read_bytes()).hexdigest()
    assert known[0]["trigger_image"] == hashed and str(tmp_path) not in str(known)
    assert "trigger_image" not in options.canonical(make())


def test_a_picture_file_is_resized_to_the_canvas(tmp_path: Path) -> None:
    attack = make(picture="file", trigger_image=save(tmp_path / "p.png"), opacity=1.0)
    same_size = stamp(attack, ramp(3, 16))[0]
    assert torch.equal(
        same_size.permute(1, 2, 0).flatten().int(), torch.arange(768, dtype=torch.int32) % 256
    )
    assert attack.pattern(1, 32, 32).shape == (1, 32, 32)


def test_a_shrunken_picture_is_averaged_or_sampled(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    pixels = torch.zeros(64, 64, 3, dtype=torch.uint8)
    pixels[:, ::8] = 240
    Image.fromarray(pixels.numpy()).save(path)
    averaged = make(picture="file", trigger_image=str(path)).pattern(3, 8, 8)
    sampled = make(preset="d-br-kitty", picture="file", trigger_image=str(path)).pattern(3, 8, 8)
    assert float(averaged.min()) > 0, "every pixel counts"
    assert float(sampled.max()) == 0, "between the bright columns"


@pytest.mark.parametrize(
    ("given_options", "words"),
    [
        ({"picture": "cat"}, "not one of noise, strip, sine, generated, file"),
        ({"picture": "file"}, "trigger_image"),
        ({"trigger_image": "x.png"}, "only with"),
        ({"picture": "file", "trigger_image": "no/such.png"}, "no file"),
        ({"opacity": 0}, "opacity"),
    ],
)
def test_impossible_options_are_refused_in_words(given_options: dict[str, Any], words: str) -> None:
    with pytest.raises(SweepError, match=words):
        make(**given_options)
