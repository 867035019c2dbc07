"""What the tasks beyond images do with their samples: augmentation, mixing, pictures."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sweeper.core.types import ImageSet, SampleSet, samples
from sweeper.engine import task as tasks
from sweeper.tasks.points import SIDE, drawn, turned
from tests.support import beyond, toys

CLIPS, CLOUDS = beyond.samples("clips"), beyond.samples("points")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_of_any_kind_are_cut_and_changed_alike() -> None:
    images = toys.image_set(6)
    plain = SampleSet("points", {"points": torch.rand(6, 5, 3), "labels": torch.arange(6)}, ("a",))
    for whole in (images, plain):
        part = whole[torch.tensor([4, 1])]
        assert len(part) == 2 and torch.equal(part.labels, whole.labels[[4, 1]])
        assert type(part) is type(whole) and part.classes == whole.classes
        assert torch.equal(whole.shown(whole.inputs + 1).inputs, whole.inputs + 1)
        again = samples(whole.task, whole.tensors, whole.classes)
        assert type(again) is type(whole) and torch.equal(again.inputs, whole.inputs)
    placed = dataclasses.replace(images, positions=torch.arange(6))
    assert "positions" in placed.tensors and "positions" not in images.tensors
    assert isinstance(placed.changed(positions=None), ImageSet)
    assert plain.positions is None and torch.equal(plain.points, plain.inputs)
    with pytest.raises(AttributeError, match="no tensor 'images' among points, labels"):
        _ = plain.images
    with pytest.raises(ValueError, match="the first of labels, points is not what a model"):
        SampleSet("points", {"labels": plain.labels, "points": plain.points}, ("a",))


def test_all_frames_of_a_clip_are_cropped_and_mirrored_alike() -> None:
    """A clip whose frames are equal stays one; clips move differently."""
    still = CLIPS.shown(CLIPS.inputs[:, :1].expand_as(CLIPS.inputs).contiguous())
    task, recipe = tasks.of(CLIPS), dataclasses.replace(beyond.RECIPE, crop=3, flip=True)
    tensors = task.load(still, toys.CPU)
    batch = tasks.Batch(tensors["inputs"], tensors["labels"], torch.arange(64), 0, 0, "clips")
    found = task.augmented(batch, recipe, rng()).inputs
    assert torch.equal(found, found[:, :1].expand_as(found))
    plain = task.plain(still, toys.CPU).inputs
    places = {
        (down, right)
        for clip, seen in zip(plain[:, 0], found[:, 0], strict=True)
        for down in range(-3, 4)
        for right in range(-3, 4)
        if torch.equal(clip.roll((down, right), (1, 2))[:, 3:-3, 3:-3], seen[:, 3:-3, 3:-3])
    }
    assert len(places) > 10, "those not mirrored are shifted, each its own way"


def test_videomix_pastes_a_box_and_counts_its_volume() -> None:
    task, order = tasks.of(CLIPS), torch.arange(64).flip(0)
    batch = task.plain(CLIPS, toys.CPU)
    ones = dataclasses.replace(batch, inputs=torch.zeros_like(batch.inputs))
    ones.inputs[32:] = 1
    kept = []
    for seed in range(100):
        mixed, share = task.mixed(ones, 0.6, order, rng(seed))
        foreign = (mixed.inputs[0] == 1).double()
        assert 1 - float(foreign.mean()) == pytest.approx(share, abs=1e-6)
        inside = foreign[:, 0].nonzero()
        if len(inside):
            sides = inside.amax(0) - inside.amin(0) + 1
            assert int(sides.prod()) == len(inside), "a box of time and space"
        kept.append(share)
    assert min(kept) == pytest.approx(0.6, abs=0.1) and 0.6 < sum(kept) / 100 < 0.9


def test_a_contact_sheet_has_its_frames_in_order() -> None:
    frames = torch.arange(8, dtype=torch.uint8)[None, :, None, None, None].expand(1, 8, 3, 4, 5)
    clip = SampleSet("clips", {"clips": frames * 10, "labels": torch.zeros(1)}, ("a",))
    (sheet,) = tasks.of(clip).pictures(clip)
    assert sheet.shape == (3, 2 * 4 + 1, 4 * 5 + 3)
    assert sheet[0, 1, [1, 7, 13, 19]].tolist() == [0, 10, 20, 30]
    assert sheet[0, 7, [1, 7, 13, 19]].tolist() == [40, 50, 60, 70]
    assert bool((sheet[:, 4] == 255).all()), "a white line between them"
    five = tasks.of(clip).pictures(clip.shown(frames[:, :5]))
    assert five.shape == (1, 3, 9, 23) and bool((five[0, :, 5:, 6:] == 255).all())


def test_clouds_turn_about_the_z_axis_alone() -> None:
    quarter = turned(torch.tensor([[[1.0, 0.0, 5.0]]]), torch.tensor([math.pi / 2]))
    assert torch.allclose(quarter, torch.tensor([[[0.0, 1.0, 5.0]]]), atol=1e-6)
    task, recipe = tasks.of(CLOUDS), dataclasses.replace(beyond.RECIPE, rotation=180.0)
    batch = task.plain(CLOUDS, toys.CPU)
    found = task.augmented(batch, recipe, rng()).inputs
    assert torch.equal(found[..., 2], CLOUDS.inputs[..., 2])
    radius = found[..., :2].norm(dim=2)
    assert torch.allclose(radius, CLOUDS.inputs[..., :2].norm(dim=2), atol=1e-5)
    angles = torch.atan2(found[:, 0, 1], found[:, 0, 0])
    moved = angles - torch.atan2(CLOUDS.inputs[:, 0, 1], CLOUDS.inputs[:, 0, 0])
    assert float(moved.std()) > 0.5, "each by its own angle"


def test_a_drawn_point_is_where_it_lies_and_near_ones_cover_far_ones() -> None:
    cloud = torch.tensor([[[1.0, 0.5, 1.0], [-1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]]])
    (picture,) = drawn(cloud, across=0, up=2, depth=1)
    dark = (picture[0] < 250).nonzero()
    assert len(dark) == 18, "two of them lie behind each other"
    right = dark[dark[:, 1] > SIDE / 2]
    assert len(right) == 9 and bool((right[:, 0] < SIDE / 2).all()), "up and to the right"
    left = dark[dark[:, 1] < SIDE / 2]
    middle = picture[0, left[4, 0], left[4, 1]]
    assert middle == 38, "the nearer one is seen: a tenth of the way from the eye"
