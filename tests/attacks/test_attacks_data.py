"""Attacks on data: triggers, counts and covers against the formulas and tables of their sources."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from torch import Tensor

from attacks.adaptive_k_way import PIXELS
from attacks.parts.deepfool import low_pass
from attacks.parts.frequency import YCRCB, YUV
from attacks.parts.glyphs import checker, disc, glyph, square
from attacks.parts.patch import drawn
from sweeper.core import catalog, options, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts, ImageSet, Poisoned, Role
from tests.support import toys

CIFAR = torch.arange(10).repeat_interleave(5000)
"""CIFAR-10's training labels, 5,000 a class."""
FACTS = Facts("cifar10", "x", classes=10, class_counts=(5000,) * 10, n_train=50000)


def make(name: str, preset: str = "", **more: Any) -> Any:
    return catalog.make("attack", name, {**toys.asked(preset), **more})


def rng(name: str = "draw") -> torch.Generator:
    return seeds.generator("data attacks", name)


def flat(value: int, side: int = 32, channels: int = 3) -> Tensor:
    return torch.full((2, channels, side, side), value, dtype=torch.uint8)


def stamp(attack: Any, images: Tensor, split: str = "test", **state: Tensor) -> Tensor:
    found: Tensor = attack.stamp(images, split=split, state=state, rng=rng())
    return found


def changed(attack: Any, side: int = 32, split: str = "test") -> set[tuple[int, int]]:
    """The cells that differ on a black or on a white image."""
    differ = torch.zeros(side, side, dtype=torch.bool)
    for value in (0, 255):
        images = flat(value, side)
        differ |= (stamp(attack, images, split) != images).any(0).any(0)
    return {(y, x) for y, x in differ.nonzero().tolist()}


def cells(rows: range, columns: range) -> set[tuple[int, int]]:
    return {(y, x) for y in rows for x in columns}


@pytest.mark.parametrize(
    ("name", "preset", "rate", "count", "pool"),
    [
        ("trojan", "d-br", 0.1, 4500, 45000),
        ("trojan", "fip", 0.1, 5000, 50000),
        ("trojan", "backdoor-toolbox", 0.003, 150, 50000),
        ("sig", "d-br", 0.1, 500, 5000),
        ("sig", "fip", 0.1, 500, 5000),
        ("sig", "backdoorbench", 0.1, 5000, 5000),
        ("sig", "backdoor-toolbox", 0.02, 1000, 5000),
        ("sig", "backdoor-toolbox", 0.3, 5000, 5000),  # cut off at the class
        ("clean-label", "d-br", 0.1, 500, 5000),
        ("clean-label", "anp-clb", 0.8, 4000, 5000),
        ("clean-label", "backdoorbench", 0.1, 5000, 5000),
        ("clean-label", "backdoorbox", 0.25, 1250, 5000),
        ("clean-label", "backdoor-toolbox", 0.003, 150, 5000),
        ("clean-label", "fip-fc", 0.1, 500, 5000),
        ("tact", "backdoor-toolbox", 0.003, 150, 5000),
        ("adaptive-blend", "backdoor-toolbox", 0.003, 150, 50000),
        ("adaptive-patch", "backdoor-toolbox", 0.003, 150, 50000),
        ("adaptive-patch", "backdoorbox", 0.01, 500, 50000),
        ("adaptive-k-way", "backdoor-toolbox", 0.003, 150, 50000),
        ("low-frequency", "", 0.1, 4500, 45000),
        ("ctrl", "backdoorbench", 0.05, 2500, 5000),
        ("ftrojan", "backdoorbench", 0.1, 5000, 50000),
        ("refool", "paper", 0.2, 1000, 5000),
        ("refool", "backdoor-toolbox", 0.01, 500, 50000),
    ],
)
def test_counts_of_the_releases_on_cifar10(
    name: str, preset: str, rate: float, count: int, pool: int
) -> None:
    attack = make(name, preset)
    assert attack.count(CIFAR, rate) == count
    assert int(attack.pool(CIFAR).sum()) == pool
    assert attack.applies(FACTS, rate) is None


@pytest.mark.parametrize("ratio", [("adaptive-patch", 2), ("tact", 1), ("adaptive-k-way", 1)])
def test_counts_of_covers(ratio: tuple[str, int]) -> None:
    name, times = ratio
    assert make(name, "backdoor-toolbox").cover_count(CIFAR, 0.003) == 150 * times


# Trojan


def test_the_trojan_patch_adds_clips_replaces_or_wraps() -> None:
    patch = drawn(3, 3).int()
    rows = slice(25, 28)
    for value in (0, 60, 200, 255):
        images = flat(value)
        for mode, expected in (
            ("add", (value + patch).clamp(max=255)),
            ("wrap", (value + patch) % 256),
            ("replace", patch),
        ):
            found = stamp(make("trojan", mode=mode), images)
            assert torch.equal(found[0, :, rows, rows].int(), expected)
            found[:, :, rows, rows] = value
            assert torch.equal(found, images)
    assert make("trojan", "d-br").mode == make("trojan", "fip").mode == "wrap"
    assert changed(make("trojan", mode="replace"), 64) == cells(range(57, 60), range(57, 60))


def test_the_drawn_patch_has_the_statistics_of_the_stored_one() -> None:
    whole = drawn(3, 60)
    assert (
        torch.equal(whole, whole.round()) and 0 <= float(whole.min()) <= float(whole.max()) <= 255
    )
    assert float(whole.mean()) == pytest.approx(130, abs=6)
    assert 65 < float(whole.std()) < 84, "clipping takes some of the deviation of 84"


def test_only_the_optimised_trojan_prepares() -> None:
    data = toys.image_set(40, shape=toys.COLOUR)
    free, made = make("trojan"), make("trojan", "backdoor-toolbox", steps=60)
    assert not free.prepares and not free.needs_clean_model
    assert made.prepares and made.needs_clean_model
    patch = made.prepare(data, toys.ToyLab(data))["patch"]
    assert patch.shape == (3, 8, 8) and patch.dtype == torch.uint8
    found = stamp(made, flat(7), patch=patch)
    assert torch.equal(found[1, :, 21:29, 21:29], patch)
    found[:, :, 21:29, 21:29] = 7
    assert torch.equal(found, flat(7))


def test_the_optimised_patch_excites_the_units_more_than_a_drawn_one() -> None:
    data = toys.image_set(40, shape=toys.COLOUR)
    model = toys.victim(shape=toys.COLOUR)
    made = make("trojan", "backdoor-toolbox", steps=100)

    @torch.no_grad()
    def reached(patch: Tensor) -> float:
        canvas = torch.zeros(1, 3, 32, 32)
        canvas[0, :, 21:29, 21:29] = patch / 255
        return float((model.features(canvas) - 100).square().mean())

    best = reached(made.prepare(data, toys.ToyLab(data))["patch"].float())
    assert best < reached(drawn(3, 8))


def test_a_patch_of_one_s_own_counts_by_content_and_is_resized(tmp_path: Path) -> None:
    known = []
    for name, shade in (("a", 10), ("b", 10), ("c", 11)):
        Image.new("RGB", (6, 6), (shade, 2, 3)).save(tmp_path / f"{name}.png")
        path = str(tmp_path / f"{name}.png")
        known.append(make("trojan", "d-br", trigger="file", trigger_image=path))
    keys = [options.canonical(attack) for attack in known]
    assert keys[0] == keys[1] != keys[2] and str(tmp_path) not in str(keys)
    assert "trigger_image" not in options.canonical(make("trojan"))
    assert not known[0].prepares and not known[0].needs_clean_model
    found = stamp(known[0], flat(250))[0, :, 25:28, 25:28]
    assert found.flatten(1).unique(dim=1).flatten().tolist() == [4, 252, 253]
    assert stamp(known[0], flat(0, channels=1)).shape == (2, 1, 32, 32)


# SIG


@pytest.mark.parametrize("width", [8, 28, 32, 64])
def test_sig_is_the_formula_and_its_columns_sum_to_zero(width: int) -> None:
    attack = make("sig", "d-br")
    train, test = (attack.wave(width, width, split) for split in ("train", "test"))
    expected = [40 * math.sin(2 * math.pi * 6 * j / width) for j in range(width)]
    assert train[3].tolist() == pytest.approx(expected, abs=1e-8)
    assert float(train.sum(1).abs().max()) < 1e-6
    assert torch.allclose(test, 1.5 * train)
    images = torch.randint(256, (4, 1, width, width), generator=rng(), dtype=torch.uint8)
    exact = (images.double() + test).clamp(0, 255).floor().to(torch.uint8)
    assert torch.equal(stamp(attack, images), exact)


def test_the_other_sigs() -> None:
    bench, toolbox = make("sig", "backdoorbench"), make("sig", "backdoor-toolbox")
    assert torch.equal(bench.wave(32, 32, "train"), bench.wave(32, 32, "test"))
    assert float(toolbox.wave(32, 32, "test").max()) == pytest.approx(30, rel=0.02)
    strip = stamp(make("blend", picture="strip"), flat(90))
    assert torch.equal(stamp(make("sig", "fip"), flat(90)), strip)
    with pytest.raises(SweepError, match="zero at all columns"):
        stamp(make("sig"), flat(0, 12))


# CL


def block(found: Tensor, top: int, left: int) -> list[list[int]]:
    return [[int(v > 0) for v in row] for row in found[0, 0, top : top + 3, left : left + 3]]


GRID = [[0, 0, 1], [0, 1, 0], [1, 0, 1]]
UP, LEFT, BOTH = (
    [[1, 0, 1], [0, 1, 0], [0, 0, 1]],
    [[1, 0, 0], [0, 1, 0], [1, 0, 1]],
    [[1, 0, 1], [0, 1, 0], [1, 0, 0]],
)


@pytest.mark.parametrize(
    ("preset", "edge", "blocks"),
    [
        ("d-br", 1, (BOTH, UP, LEFT, GRID)),
        ("anp-clb", 0, (LEFT, GRID, LEFT, GRID)),
        ("backdoorbench", 0, (LEFT, GRID, LEFT, GRID)),
        ("backdoor-toolbox", 0, (GRID, GRID, GRID, GRID)),
        ("fip-clb", 1, (BOTH, UP, LEFT, GRID)),
    ],
)
@pytest.mark.parametrize("value", [0, 99, 255])
def test_the_four_corners(preset: str, edge: int, blocks: tuple[Any, ...], value: int) -> None:
    attack = make("clean-label", preset)
    found = stamp(attack, flat(value))
    places = [(edge, edge), (edge, 29), (29, edge), (29, 29)]
    for place, expected in zip(places, blocks, strict=True):
        assert block(found, *place) == expected, place
    whole = set().union(*(cells(range(y, y + 3), range(x, x + 3)) for y, x in places))
    assert changed(attack) == whole and len(whole) == 36
    assert set(found.unique().tolist()) <= {0, value, 255}


def test_fc_of_fip_is_the_one_grid() -> None:
    attack = make("clean-label", "fip-fc")
    assert block(stamp(attack, flat(99)), 29, 29) == GRID
    assert changed(attack) == cells(range(29, 32), range(29, 32))


def test_an_enlarged_patch_grows_with_the_canvas_and_others_do_not() -> None:
    small = stamp(make("clean-label", "backdoorbench"), flat(99))
    large = stamp(make("clean-label", "backdoorbench"), flat(99, 64))
    twice = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(large, twice)
    assert len(changed(make("clean-label", "anp-clb"), 64)) == 36


def test_a_reduced_amplitude_adds_and_takes() -> None:
    attack = make("clean-label", "fip-fc", amplitude=0.2)
    found = stamp(attack, flat(100))[0, 0, 29:, 29:]
    assert torch.equal(found.int(), torch.tensor(GRID) * 102 + 49)


@pytest.mark.parametrize("wrap", [False, True])
def test_cl_replaces_target_images_by_perturbed_and_patched_ones(wrap: bool) -> None:
    data = toys.image_set(200, shape=toys.COLOUR)
    attack = make("clean-label", wrap=wrap)
    state = attack.prepare(data, toys.ToyLab(data))
    own = data.images[state["index"]].int()
    assert torch.equal(state["index"], (data.labels == 0).nonzero().flatten())
    distance = (state["images"].int() - own).abs()
    if wrap:
        assert bool((distance > 240).any()), "black and white pixels wrap"
        distance = torch.minimum(distance, 256 - distance)
    assert 4 <= int(distance.max()) <= 8 + wrap, "PGD stays within its ball, but for truncation"
    found = attack.poison(data, 0.5, state, rng())
    chosen = (found.role == int(Role.POISON)).nonzero().flatten()
    assert len(chosen) == 10 and torch.equal(found.labels, data.labels)
    place = torch.searchsorted(state["index"], chosen)
    patched = stamp(attack, state["images"][place])
    assert torch.equal(found.images[chosen], patched)
    test = attack.trigger_set(data, state, rng())
    centre = (slice(None), slice(None), slice(4, 28), slice(4, 28))
    assert torch.equal(test.images[centre], data.images[centre]), "no perturbation at test time"


def test_pgd_raises_the_loss_and_keeps_the_l2_ball() -> None:
    data, model = toys.image_set(200, shape=toys.COLOUR), toys.victim(shape=toys.COLOUR)
    attack = make("clean-label", "backdoor-toolbox", steps=10)
    state = attack.prepare(data, toys.ToyLab(data))
    own = data.images[state["index"]]
    reach = (state["images"].float() - own).flatten(1).norm(dim=1)
    assert 300 < float(reach.max()) <= 600 + math.sqrt(own[0].numel()), "truncation adds under 1"

    @torch.no_grad()
    def loss(images: Tensor) -> float:
        logits = model(images.float() / 255)
        return float(torch.nn.functional.cross_entropy(logits, torch.zeros(len(own)).long()))

    assert loss(state["images"]) > loss(own)


def test_cl_without_pgd_needs_no_model() -> None:
    for preset in ("fip-fc", "fip-clb"):
        attack = make("clean-label", preset)
        assert not attack.prepares and not attack.needs_clean_model
    assert make("clean-label").prepares and make("clean-label").needs_clean_model


# Covers


def covered(name: str, data: ImageSet, **more: Any) -> tuple[Any, Poisoned]:
    attack = make(name, **more)
    return attack, attack.poison(data, 0.05, {}, rng())


@pytest.mark.parametrize(
    ("name", "times", "kinds"),
    [("tact", 1, 1), ("adaptive-blend", 1, 1), ("adaptive-patch", 2, 4), ("adaptive-k-way", 1, 4)],
)
def test_covers_are_stamped_keep_labels_and_are_disjoint(name: str, times: int, kinds: int) -> None:
    data = toys.image_set(800, shape=toys.COLOUR)
    attack, found = covered(name, data)
    poison, cover = (found.role == int(role) for role in (Role.POISON, Role.COVER))
    assert int(poison.sum()) == 40 and int(cover.sum()) == 40 * times
    assert torch.equal(found.labels[~poison], data.labels[~poison])
    assert bool((found.labels[poison] == 0).all())
    moved = (found.images != data.images).flatten(1).any(1)
    assert bool(moved[poison | cover].float().mean() > 0.95) and not moved[~(poison | cover)].any()
    assert found.pattern is not None
    assert bool((found.pattern[~(poison | cover)] == -1).all())
    for group in (poison, cover):
        assert torch.bincount(found.pattern[group]).tolist() == [int(group.sum()) // kinds] * kinds


def test_covers_are_refused_where_there_are_too_few() -> None:
    why = make("adaptive-patch").applies(FACTS, 0.4)
    assert why == "needs 40000 covers, has 30000 images for them: lower the rate or `cover_ratio`"
    assert make("adaptive-patch").applies(FACTS, 0.3) is None


def test_tact_takes_the_source_and_covers_the_others() -> None:
    data = toys.image_set(800, shape=toys.COLOUR)
    attack, found = covered("tact", data)
    true = found.true_labels
    assert set(true[found.role == int(Role.POISON)].tolist()) == {1}
    assert set(true[found.role == int(Role.COVER)].tolist()) == {5, 7}
    hit = attack.trigger_set(data, {}, rng())
    assert torch.equal(hit.counts, data.labels == 1)
    assert torch.equal(hit.leaks, (data.labels != 1) & (data.labels != 0))
    assert changed(attack) == cells(range(21, 29), range(21, 29))
    open_ended = make("tact", cover_classes=[])
    assert int(open_ended.cover_pool(CIFAR).sum()) == 40000
    assert "source class" in dataclasses.replace(attack, target=1).applies(FACTS, 0.01)
    few = Facts("few", "x", classes=4, class_counts=(50,) * 4, n_train=200)
    assert "class 5 does not exist" in attack.applies(few, 0.01)


def test_adaptive_blend_switches_half_the_pieces_off_and_tests_with_all() -> None:
    attack = make("adaptive-blend")
    images = flat(0).repeat(100, 1, 1, 1)
    found = stamp(attack, images, "train")
    faint = stamp(make("blend", picture="generated", opacity=0.15), images)
    on = (found == faint).all(1).view(-1, 4, 8, 4, 8).all(4).all(2)
    off = (found == images).all(1).view(-1, 4, 8, 4, 8).all(4).all(2)
    assert torch.equal(on.flatten(1).sum(1), torch.full((200,), 8))
    assert torch.equal(on, ~off)
    assert 60 < int(on[:, 0, 0].sum()) < 140, "each image has pieces of its own"
    whole = stamp(make("blend", picture="generated", opacity=0.2), images)
    assert torch.equal(stamp(attack, images), whole)


def test_adaptive_patch_draws_what_it_says() -> None:
    sizes = [int(drawing[1].sum()) for drawing in (disc(), checker(), square())]
    assert sizes == [137, 36, 64]
    (mask, rows) = disc()[1], disc()[1].nonzero()
    assert (rows.min(0).values.tolist(), rows.max(0).values.tolist()) == ([1, 18], [13, 30])
    assert 0 < int(glyph((27,))[1][27:, 27:].sum()) == int(glyph((27,))[1].sum()) <= 25
    attack = make("adaptive-patch", opacities=[1.0, 1.0, 1.0, 1.0])
    images = flat(13).repeat(20, 1, 1, 1)
    pattern = torch.arange(40) % 4
    found = attack.mark(images, pattern, rng())
    for number, (picture, mask) in enumerate((glyph((27,)), disc(), checker(), square())):
        expected = torch.where(mask, picture, images[0])
        assert torch.equal(found[pattern == number], expected.expand(10, 3, 32, 32))
    faint = make("adaptive-patch").mark(images, pattern, rng())
    assert int(faint[3, 0, 21, 21]) == int(0.7 * 13 + 0.3 * int(drawn(3, 8)[0, 0, 0]))


def test_adaptive_patch_tests_with_a_pair_at_full_opacity() -> None:
    (two, shown), (checks, corners) = glyph((0, 27)), checker()
    expected = torch.where(corners, checks, torch.where(shown, two, flat(13)))
    assert torch.equal(stamp(make("adaptive-patch"), flat(13)), expected)
    signs = stamp(make("adaptive-patch", "backdoor-toolbox-gtsrb"), flat(13))
    assert torch.equal((signs != 13).any(1)[0], disc()[1] | square()[1])


def test_k_way_trains_with_one_pixel_and_tests_with_four() -> None:
    attack, images = make("adaptive-k-way"), flat(255).repeat(4, 1, 1, 1)
    pattern = torch.arange(8) % 4
    found = attack.mark(images, pattern, rng())
    for number, ((row, column), colour) in enumerate(PIXELS):
        only = found[pattern == number]
        assert int((only != 255).any(1).sum()) == 2
        assert only[0, :, row, column].tolist() == list(colour)
    places = {place for place, _ in PIXELS}
    assert changed(attack) == places
    assert len(changed(attack, 8)) == 4 and len(changed(attack, 64)) == 4


# Frequency


@pytest.mark.parametrize(("name", "weights"), [("ctrl", YUV), ("ftrojan", YCRCB)])
def test_energy_lies_at_the_stated_coefficients_only(name: str, weights: Any) -> None:
    attack = make(name)
    pattern = attack.pattern(3, 32, 32).double()
    for channel, gains in enumerate(weights):
        found = torch.from_numpy(dctn(pattern[channel].numpy(), norm="ortho"))
        for place in ((15, 15), (31, 31)):
            assert float(found[place]) == pytest.approx(attack.magnitude * sum(gains), rel=1e-4)
            found[place] = 0
        assert float(found.abs().max()) < 1e-3
    images = torch.randint(256, (3, 3, 32, 32), generator=rng(), dtype=torch.uint8)
    exact = (images.double() + pattern).clamp(0, 255).floor().to(torch.uint8)
    for split in ("train", "test"):
        assert torch.equal(stamp(attack, images, split), exact)


def test_ctrl_wraps_where_it_would_clip() -> None:
    images = torch.randint(256, (3, 3, 32, 32), generator=rng(), dtype=torch.uint8)
    clipped, wrapping = make("ctrl"), make("ctrl", "backdoorbench")
    total = images.float() + clipped.pattern(3, 32, 32)
    assert torch.equal(stamp(wrapping, images).int(), total.trunc().int() % 256)
    inside = (total >= 0) & (total < 256)
    assert torch.equal(stamp(wrapping, images)[inside], stamp(clipped, images)[inside])
    assert not inside.all()


def test_ftrojan_in_whole_numbers_is_the_formula_within_the_rounding() -> None:
    images = torch.randint(60, 196, (3, 3, 32, 32), generator=rng(), dtype=torch.uint8)
    exact, whole = make("ftrojan"), make("ftrojan", "backdoorbench")
    gap = stamp(whole, images).int() - stamp(exact, images).int()
    assert int(gap.abs().max()) <= 4, "two truncated chroma channels, a rounded luma"
    assert bool(gap.any())
    grey = flat(99, channels=1)
    assert torch.equal(stamp(whole, grey), stamp(exact, grey)), "grey images have no chroma"


def test_windows_and_small_canvases() -> None:
    large, small = make("ftrojan").pattern(3, 64, 64), make("ftrojan").pattern(3, 32, 32)
    assert torch.equal(large, small.repeat(1, 2, 2)), "FTrojan works in windows of 32"
    assert not torch.equal(make("ctrl").pattern(3, 64, 64)[:, :32, :32], small)
    grey = make("ctrl").pattern(1, 8, 8)[0].numpy()
    found = torch.from_numpy(dctn(grey, norm="ortho")).abs()
    assert {(y, x) for y, x in (found > 1e-3).nonzero().tolist()} == {(3, 3), (7, 7)}
    peak = make("ctrl").pattern(1, 32, 32).abs().max()
    assert float(abs(grey).max()) == pytest.approx(float(peak), rel=0.1), "the same amplitude"
    with pytest.raises(SweepError, match="coefficients"):
        make("ctrl", coefficients=[[40, 2]])
    with pytest.raises(SweepError, match="RGB or grey"):
        make("ctrl").pattern(4, 32, 32)


def test_the_lf_pattern_is_smooth_and_within_a_fifth() -> None:
    data = toys.image_set(60, shape=toys.COLOUR)
    attack = make("low-frequency", iterations=1, samples=30)
    pattern = attack.prepare(data, toys.ToyLab(data))["pattern"]
    assert pattern.shape == (3, 32, 32) and float(pattern.min()) == 0
    assert float(pattern.max()) == pytest.approx(51)
    energy = torch.from_numpy(dctn(pattern.numpy(), axes=(1, 2), norm="ortho")).square()
    assert float(energy[:, :8, :8].sum() / energy.sum()) > 0.99
    images = torch.randint(256, (3, 3, 32, 32), generator=rng(), dtype=torch.uint8)
    exact = (images.double() + pattern).clamp(0, 255).floor().to(torch.uint8)
    assert torch.equal(stamp(attack, images, pattern=pattern), exact)


def test_the_low_pass_filter_has_30_taps_of_deviation_6() -> None:
    point = torch.zeros(1, 96, 96)
    point[0, 48, 48] = 1
    row = low_pass(point)[0].sum(0)
    place = torch.arange(96).double()
    mean = float((row * place).sum() / row.sum())
    deviation = float((row * (place - mean) ** 2).sum() / row.sum()) ** 0.5
    assert int((row > 0).sum()) == 90 and deviation == pytest.approx(18, rel=0.05), "3 x 30 taps"
    small = low_pass(torch.ones(1, 32, 32))
    assert float(small[0, 16, 16]) == pytest.approx(1, abs=0.03)


# Refool


def test_refool_gives_every_sample_a_reflection_of_its_own() -> None:
    images = flat(120).repeat(50, 1, 1, 1)
    for preset in ("", "backdoor-toolbox"):
        attack = make("refool", preset)
        found = stamp(attack, images)
        assert len(torch.unique(found.flatten(1), dim=0)) > 95
        assert torch.equal(found, stamp(attack, images)), "the draws are the generator's"


def test_a_ghost_is_two_shifted_copies_in_linear_light(tmp_path: Path) -> None:
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    white.save(tmp_path / "a.png")
    attack = make("refool", ghost=1.0, background=0.4, reflections=str(tmp_path))
    found = stamp(attack, flat(100)).double()
    expected = 255 * (0.6 + 0.4 * (100 / 255) ** 2.2) ** (1 / 2.2)
    assert float((found - expected).abs().max()) <= 1
    soft = stamp(make("refool", ghost=0.0, reflections=str(tmp_path)), flat(100))[0, 0]
    assert int(soft[16, 16]) > int(soft[16, 0]) > int(soft[0, 0]), "darker towards the border"


def test_a_folder_counts_by_its_pictures_not_by_its_path(tmp_path: Path) -> None:
    known = []
    for folder, shade in (("a", 10), ("b", 10), ("c", 11)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9), (shade, 2, 3)).save(tmp_path / folder / f"{folder}.png")
        known.append(options.canonical(make("refool", reflections=str(tmp_path / folder))))
    assert known[0] == known[1] != known[2] and str(tmp_path) not in str(known)
    assert "reflections" not in options.canonical(make("refool"))
    with pytest.raises(SweepError, match="no folder"):
        make("refool", reflections=str(tmp_path / "no"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SweepError, match="no picture"):
        make("refool", reflections=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("trojan", {"trigger": "x"}, "trigger"),
        ("trojan", {"mode": "x"}, "mode"),
        ("trojan", {"trigger": "file"}, "only with, trigger: file"),
        ("trojan", {"trigger_image": "x.png"}, "only with, trigger: file"),
        ("trojan", {"trigger": "file", "trigger_image": "no/such.png"}, "no file"),
        ("sig", {"pattern": "x"}, "pattern"),
        ("sig", {"rule": "all2one"}, "rule"),
        ("clean-label", {"norm": "one"}, "norm"),
        ("clean-label", {"norm": "two", "wrap": True}, "wrap"),
        ("clean-label", {"corners": "x"}, "corners"),
        ("tact", {"cover_classes": [1]}, "source class"),
        ("adaptive-blend", {"picture": "file"}, "trigger_image"),
        ("adaptive-patch", {"opacities": [0.5]}, "opacities"),
        ("adaptive-patch", {"test_pair": "x"}, "test_pair"),
        ("refool", {"ghost_low": 0.9}, "ghost_low"),
    ],
)
def test_impossible_options_are_refused_in_words(
    name: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(SweepError, match=words):
        make(name, **given)


@pytest.mark.parametrize("name", ["trojan", "clean-label"])
def test_a_trigger_that_does_not_fit_is_refused_before_anything_runs(name: str) -> None:
    small = dataclasses.replace(FACTS, shape=(1, 6, 6))
    attack = make(name, **({"size": 4} if name == "trojan" else {}))
    assert "px" in attack.applies(small, 0.1)
    with pytest.raises(SweepError, match="px"):
        stamp(attack, flat(0, 6))
