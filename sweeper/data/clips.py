"""Clips: folders of frames, and `moving`, a generated set whose class is a motion.

    train/<class>/<clip>/*.jpg        UCF-101 as people have it, unpacked to frames

A clip is `frames` of its frames, evenly spaced. `moving` needs no file: a digit turns, grows or
drifts over a textured background. Position, angle and size of a single frame are distributed alike
in all classes, so that one frame says nothing of the class; the background wraps around.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.folders import called, inside
from sweeper.core.options import CEILING, Count
from sweeper.core.types import SampleSet
from sweeper.data._files import TEST_NAMES, ClassFiles, training
from sweeper.data._images import as_batches, decode
from sweeper.data.base import Fileless, Splits

MOTIONS = ("left", "right", "up", "down", "clockwise", "counter-clockwise", "grow", "shrink")
_SUFFIXES = frozenset(".png .jpg .jpeg .bmp .webp".split())
EachMotion = Annotated[int, Field(ge=len(MOTIONS), le=CEILING)]
"""How many clips, one of each motion at least."""
_SIDE, _FRAMES, _OBJECT = 24, 8, 12
_SPEED, _TURN = 2.0, math.radians(25)
"""Pixels and radians from frame to frame."""
_SMALL, _LARGE = 0.7, 1.3
"""Range of the object's size; one that grows out of it begins anew."""


def clips(frames: Tensor, labels: Tensor, classes: tuple[str, ...]) -> SampleSet:
    """Labelled clips: uint8 [N, T, C, H, W], int64 [N]."""
    return SampleSet("clips", {"clips": frames, "labels": labels}, classes)


@dataclass(frozen=True, kw_only=True)
class FrameFolder(ClassFiles):
    """A folder `train/<class>/<clip>/` of frames, with `test/` or `test_share`."""

    frames: Count = 16
    """Frames of a clip, evenly spaced; giving it says that the folder holds clips, not images."""

    names: ClassVar[dict[str, str]] = {}
    task = "clips"
    shape = (16, 3, 112, 112)
    wants = "folders of frames train/<class>/<clip>/ and test/<class>/<clip>/,"
    order: ClassVar[int] = 5

    @classmethod
    def asked(cls, options: Mapping[str, Any]) -> bool:
        """Where `frames` is given: a folder of images may be as deep."""
        return "frames" in options

    def home(self, root: Path) -> Path | None:
        """The folder that has `train`."""
        return next((p for p in self.places(root) if p.is_dir() and called(p, "train")), None)

    def serves(self, root: Path) -> bool:
        """Whether there is a `train` folder with clips."""
        home = self.home(root)
        return home is not None and any(True for _ in _folders(training(home)))

    def files(self, root: Path) -> list[Path]:
        """The frames of all clips."""
        home = self.home(root)
        assert home is not None
        parts = [training(home), called(home, *TEST_NAMES)]
        return [
            frame
            for part in parts
            if part is not None
            for folder, _ in _folders(part)
            for frame in _frames(folder)
        ]

    def read(self, root: Path) -> Splits:
        """Decode the frames.

        Raises:
            SweepError: A clip is too short, a class of `test` is not in `train`, a bad image.
        """
        home = self.home(root)
        assert home is not None
        folder = called(home, *TEST_NAMES)
        train, test = (
            list(_folders(training(home))),
            [] if folder is None else list(_folders(folder)),
        )
        labels, held, classes = self.labels(
            [kind for _, kind in train], [kind for _, kind in test], training(home)
        )
        frames = self._decoded(training(home), train)
        tests = None
        if folder is not None:
            tests = clips(self._decoded(folder, test, frames), held, classes)
        paths = [f"{name}/{clip.name}" for clip, name in train]
        return self.assemble(clips(frames, labels, classes), tests, paths)

    def _decoded(self, folder: Path, found: _Found, like: Tensor | None = None) -> Tensor:
        """The clips of a split, uint8 [N, T, C, H, W]."""
        chosen = [frame for clip, _ in found for frame in self._spaced(clip)]
        one = None if like is None else like[:, 0]
        images = decode(as_batches(chosen), len(chosen), f"{self.name}: {folder}", self.size, one)
        return images.reshape(-1, self.frames, *images.shape[1:])

    def _spaced(self, clip: Path) -> list[Path]:
        every = _frames(clip)
        if len(every) < self.frames:
            raise SweepError(
                f"{clip}: has {len(every)} frames, `frames` asks for {self.frames}: lower it, or "
                "remove the clip"
            )
        places = (np.arange(self.frames) + 0.5) * len(every) / self.frames
        return [every[int(place)] for place in places]


_Found = list[tuple[Path, str]]
"""Folders of frames, each with the name of its class."""


def _kinds(folder: Path) -> list[str]:
    """The class folders of a split."""
    return [entry.name for entry in inside(folder) if entry.is_dir()]


def _folders(folder: Path) -> Iterator[tuple[Path, str]]:
    """The clips below a split's folder with their classes, in sorted order."""
    for kind in _kinds(folder):
        for clip in inside(folder / kind):
            if clip.is_dir():
                yield clip, kind


def _frames(clip: Path) -> list[Path]:
    return [file for file in inside(clip) if file.suffix.lower() in _SUFFIXES]


@dataclass(frozen=True, kw_only=True)
class Moving(Fileless):
    """Generated clips of 8 frames, 3x24x24: a digit of scikit-learn that moves in one of 8 ways."""

    count: EachMotion = 2000
    """Training clips."""
    test_count: EachMotion = 500
    """Test clips; their digits are others than those of the training clips."""

    names: ClassVar[dict[str, str]] = {
        "moving": "generated clips, 8 frames of 3x24x24; the class is one of 8 motions of a digit"
    }
    task = "clips"
    shape = (_FRAMES, 3, _SIDE, _SIDE)
    idle = frozenset({"size"})
    forbids = frozenset({"flip"})
    order: ClassVar[int] = 40

    def read(self, root: Path) -> Splits:
        """Draw both splits."""
        from sklearn.datasets import load_digits  # here: importing it takes a second

        digits = load_digits().images / 16
        parts = (("train", self.count, digits[360:]), ("test", self.test_count, digits[:360]))
        train, test = (draw_moving(name, count, objects) for name, count, objects in parts)
        return Splits(train, test)


def draw_moving(name: str, count: int, objects: NDArray[np.float64]) -> SampleSet:
    """Draw clips of equally many of each motion.

    Args:
        name: Of the draw.
        count: Clips.
        objects: [M, h, w] in [0, 1], the shapes that move.
    """
    rng = seeds.numpy_generator("moving", name)
    labels = rng.permutation(np.arange(count) % len(MOTIONS))
    shapes = objects[rng.integers(len(objects), size=count)]
    inks = rng.uniform(150, 255, (count, 3)) * (rng.random((count, 3)) < 0.8)
    inks[inks.sum(1) == 0] = 220
    ground = _textures(rng, count)
    x, y, angle, size = (_course(rng, labels, kind) for kind in ("x", "y", "angle", "size"))
    rows, columns = np.meshgrid(np.arange(_SIDE) + 0.5, np.arange(_SIDE) + 0.5, indexing="ij")
    frames = np.empty((count, _FRAMES, 3, _SIDE, _SIDE), dtype=np.uint8)
    for t in range(_FRAMES):
        across = _centred(columns[None] - x[:, t, None, None])
        down = _centred(rows[None] - y[:, t, None, None])
        cosine, sine = (f(angle[:, t])[:, None, None] for f in (np.cos, np.sin))
        scale = size[:, t, None, None] * _OBJECT / shapes.shape[1]
        u = np.round((cosine * across + sine * down) / scale + shapes.shape[2] / 2, 6)
        v = np.round((cosine * down - sine * across) / scale + shapes.shape[1] / 2, 6)
        inside = (u >= 0) & (u < shapes.shape[2]) & (v >= 0) & (v < shapes.shape[1])
        u, v = (np.clip(np.floor(part), 0, shapes.shape[1] - 1).astype(int) for part in (u, v))
        ink = np.where(inside, shapes[np.arange(count)[:, None, None], v, u], 0)[:, None]
        frames[:, t] = np.round((1 - ink) * ground + ink * inks[:, :, None, None])
    return clips(torch.from_numpy(frames), torch.from_numpy(labels), MOTIONS)


def _textures(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Soft random patterns [N, 3, H, W] of dark colours."""
    cells = rng.uniform(0, 110, (count, 3, _SIDE // 4, _SIDE // 4))
    fine = rng.uniform(-20, 20, (count, 3, _SIDE, _SIDE))
    return np.clip(cells.repeat(4, 2).repeat(4, 3) + fine, 0, 255)


def _course(rng: np.random.Generator, labels: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """One coordinate of the object in each frame, [N, T]: a random start, then as the class is."""
    steps = {
        "x": {"left": -_SPEED, "right": _SPEED},
        "y": {"up": -_SPEED, "down": _SPEED},
        "angle": {"clockwise": _TURN, "counter-clockwise": -_TURN},
        "size": {"grow": 1.0, "shrink": -1.0},
    }[kind]
    step = np.array([steps.get(motion, 0.0) for motion in MOTIONS])[labels]
    along = step[:, None] * np.arange(_FRAMES)
    start = rng.random((len(labels), 1))
    if kind == "size":
        share = np.mod(start + along / _FRAMES, 1)
        return _SMALL + (_LARGE - _SMALL) * share
    period = 2 * np.pi if kind == "angle" else _SIDE
    return np.mod(start * period + along, period)


def _centred(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances on a ring of the frame's side, in [-side / 2, side / 2)."""
    return np.mod(offset + _SIDE / 2, _SIDE) - _SIDE / 2
