"""Clips: frames read from folders, and the generated set whose class is a motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sweeper.core.errors import SweepError
from sweeper.data import open_dataset
from sweeper.data.clips import MOTIONS, draw_moving

WHOLE = np.ones((3, 8, 8))


def folder(root: Path, train: dict[str, int], test: dict[str, int] | None = None) -> Path:
    """`clip -> frames`, each frame of one grey level: its number."""
    home = root / "ucf"
    for part, clips in (("train", train), ("test", test or {})):
        for name, count in clips.items():
            place = home / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((6, 8, 3), 10 * number, dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number:03}.png")
    return home


def opened(home: Path, tmp_path: Path, **options: object):
    entry = {"dataset": "ucf", "path": str(home), **options}
    return open_dataset(entry, tmp_path, tmp_path / "cache")


def test_frames_are_taken_evenly_from_folders_of_clips(tmp_path: Path) -> None:
    train = {"run/a": 8, "run/b": 4, "walk/a": 5}
    found = opened(folder(tmp_path, train, {"walk/z": 4}), tmp_path, frames=4)
    assert found.train.task == "clips" and found.train.classes == ("run", "walk")
    assert found.train.clips.shape == (3, 4, 3, 6, 8) and found.test.clips.shape[0] == 1
    assert found.train.labels.tolist() == [0, 0, 1] and found.test.labels.tolist() == [1]
    levels = found.train.clips[:, :, 0, 0, 0] // 10
    assert levels.tolist() == [[1, 3, 5, 7], [0, 1, 2, 3], [0, 1, 3, 4]]
    assert len(found.mean) == len(found.std) == 3


def test_a_folder_without_frames_asked_for_holds_images(tmp_path: Path) -> None:
    home = folder(tmp_path, {"run/a": 2, "walk/a": 2}, {"run/b": 2})
    assert opened(home, tmp_path).train.task == "image"


@pytest.mark.parametrize(
    ("train", "test", "options", "said"),
    [
        ({"run/a": 3}, {"run/b": 4}, {"frames": 4}, "has 3 frames, `frames` asks for 4"),
        ({"run/a": 4}, {"fly/b": 4}, {"frames": 4}, "class 'fly', of which train has none"),
        ({"run/a": 4}, None, {"frames": 4}, "give `test_share: 0.2`"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, train: dict, test: dict | None, options: dict, said: str
) -> None:
    with pytest.raises(SweepError, match=said):
        opened(folder(tmp_path, train, test), tmp_path, **options)


def test_a_test_share_holds_out_clips(tmp_path: Path) -> None:
    train = {f"run/{k}": 2 for k in range(5)} | {f"walk/{k}": 2 for k in range(5)}
    found = opened(folder(tmp_path, train), tmp_path, frames=2, test_share=0.2, size=4)
    assert len(found.train) == 8 and len(found.test) == 2
    assert found.train.clips.shape[2:] == (3, 4, 4)


def test_moving_is_drawn_alike_with_equally_many_of_each_motion() -> None:
    one, other = draw_moving("a", 80, WHOLE), draw_moving("a", 80, WHOLE)
    assert torch.equal(one.inputs, other.inputs) and torch.equal(one.labels, other.labels)
    assert not torch.equal(one.inputs, draw_moving("b", 80, WHOLE).inputs)
    assert torch.bincount(one.labels).tolist() == [10] * 8 and one.classes == MOTIONS


def tracks(motion: str) -> torch.Tensor:
    """Steps of a bright square from frame to frame: on a ring, by the phase of its first wave."""
    found = draw_moving("track", 160, WHOLE)
    bright = (found.inputs[found.labels == MOTIONS.index(motion)].float().amax(2) > 135).double()
    wave = torch.exp(2j * torch.pi * torch.arange(24) / 24)
    lines = bright.sum(3 if motion in ("up", "down") else 2)
    phase = (lines.to(wave.dtype) @ wave).angle()
    turned = torch.remainder(phase[:, 1:] - phase[:, :-1] + torch.pi, 2 * torch.pi) - torch.pi
    return turned.median(1).values * 24 / (2 * torch.pi)


@pytest.mark.parametrize(("motion", "step"), [("left", -2), ("right", 2), ("up", -2), ("down", 2)])
def test_an_object_moves_as_its_class_says(motion: str, step: float) -> None:
    assert tracks(motion).median().item() == pytest.approx(step, abs=0.3)


def test_a_single_frame_is_distributed_alike_in_all_classes() -> None:
    """Mean and spread of a frame's bright share do not tell the class, nor the frame's place."""
    found = draw_moving("alike", 1600, WHOLE)
    share = (found.inputs.float().amax(2) > 135).double().mean((2, 3))
    means = torch.stack([share[found.labels == k].mean(0) for k in range(8)])
    assert float(means.std() / means.mean()) < 0.06


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dataset": "ucf101", "frames": 4}, "put folders of frames train/<class>/<clip>/"),
        ({"dataset": "ucf101", "frames": 4, "path": "nowhere"}, "holds no folders of frames"),
        ({"dataset": "modelnet40"}, r"put <class>/train/\*\.off"),
        ({"dataset": "modelnet40", "path": "nowhere"}, r"holds no <class>/train/\*\.off"),
        ({"dataset": "mine"}, "put train.parquet and test.parquet, or image folders"),
    ],
)
def test_data_that_are_not_there_are_asked_for_as_they_are_wanted(
    tmp_path: Path, entry: dict, said: str
) -> None:
    with pytest.raises(SweepError, match=said):
        open_dataset(entry, tmp_path, tmp_path / "cache")


def test_clips_of_one_group_stay_on_one_side(tmp_path: Path) -> None:
    clips = {f"run/v_Run_g{group:02}_c{k:02}": 2 for group in range(4) for k in range(3)}
    home = folder(tmp_path, clips)
    found = opened(home, tmp_path, frames=2, test_share=0.3, group_by="path-prefix")
    assert len(found.train) == 6 and len(found.test) == 6, "two groups of three each"
    assert found.groups is not None and len(found.groups.unique()) == 2
