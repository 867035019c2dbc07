"""Point clouds: ModelNet40's files where a user has them, and `solids`, a generated set.

| files | layout |
|---|---|
| `.off` | `<class>/train/*.off` and `<class>/test/*.off`, meshes: their surface is sampled |
| `.h5` | `*train*.h5` and `*test*.h5` with `data` [N, P, 3] and `label` (needs h5py) |
| `.npy` | `train_points.npy`, `train_labels.npy`, and the same of `test` |

Every cloud is moved to its centre and scaled into the unit ball. `solids` are eight shapes, sampled
evenly on their surface, stretched at random along each axis, turned about z, with a jitter of 0.01.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sweeper.core import seeds
from sweeper.core.errors import SweepError, unreadable
from sweeper.core.folders import inside
from sweeper.core.options import CEILING, Count
from sweeper.core.types import SampleSet
from sweeper.data._files import folders, used
from sweeper.data.base import Fileless, Source, Splits

Cloud: TypeAlias = "NDArray[np.float64]"
"""Points [P, 3]."""
_JITTER = 0.01


def clouds(points: Cloud, labels: Tensor, classes: tuple[str, ...]) -> SampleSet:
    """Labelled clouds [N, P, 3], scaled into the unit ball; rounded, that every machine agrees."""
    centred = points - points.mean(1, keepdims=True)
    radius = np.linalg.norm(centred, axis=2).max(1)[:, None, None]
    scaled = np.round(centred / np.maximum(radius, 1e-9), 5).astype(np.float32)
    tensors = {"points": torch.from_numpy(scaled), "labels": labels}
    return SampleSet("points", tensors, classes)


@dataclass(frozen=True, kw_only=True)
class PointFiles(Source):
    """Clouds of a user's own, such as ModelNet40."""

    points: Annotated[int, Field(ge=4, le=CEILING)] = 1024
    """Points of a cloud: sampled on a mesh, or the first of those stored."""
    renumber: bool = False
    """Whether to leave out classes without a training cloud and number the others from 0."""

    names: ClassVar[dict[str, str]] = {
        "modelnet40": "40 classes of CAD models, as .off, .h5 or .npy files; not downloaded"
    }
    idle = frozenset({"size"})
    task = "points"
    shape = (1024, 3)
    wants = "<class>/train/*.off and <class>/test/*.off, or .h5 or .npy files of points,"
    order: ClassVar[int] = 6

    def home(self, root: Path) -> Path | None:
        """The folder with the files."""
        given = [Path(self.path).expanduser()] if self.path else folders(root, self.name)
        return next((place for place in given if place.is_dir() and _kind(place)), None)

    def serves(self, root: Path) -> bool:
        """Whether there are training files."""
        return self.home(root) is not None

    def files(self, root: Path) -> list[Path]:
        """The files of both splits."""
        home = self.home(root)
        assert home is not None
        return sorted(file for pattern in _PATTERNS.values() for file in inside(home, pattern))

    def read(self, root: Path) -> Splits:
        """Read the clouds.

        Raises:
            SweepError: A file is missing or cannot be read, or has too few points.
        """
        home = self.home(root)
        assert home is not None
        read = {".off": self._off, ".h5": self._h5, ".npy": self._npy}[_kind(home)]
        train, test = (read(home, part) for part in ("train", "test"))
        labels, held = (torch.from_numpy(part[1]) for part in (train, test))
        labels, held, classes = used(self.name, labels, held, _classes(home), self.renumber)
        return Splits(clouds(train[0], labels, classes), clouds(test[0], held, classes))

    def _off(self, home: Path, part: str) -> tuple[Cloud, NDArray[np.int64]]:
        files, names = inside(home, f"*/{part}/*.off"), _classes(home)
        if not files:
            raise SweepError(f"{home}: has no <class>/{part}/*.off: add them")
        found = [sampled(*read_off(file), self.points, file.name) for file in files]
        labels = np.array([names.index(file.parts[-3]) for file in files], dtype=np.int64)
        return np.stack(found), labels

    def _h5(self, home: Path, part: str) -> tuple[Cloud, NDArray[np.int64]]:
        try:
            import h5py
        except ImportError:
            raise SweepError(f"{home}: .h5 files need h5py: pip install h5py") from None
        found, labels = [], []
        for file in inside(home, f"*{part}*.h5"):
            try:
                with h5py.File(file) as opened:
                    found.append(np.asarray(opened["data"], dtype=np.float64))
                    labels.append(np.asarray(opened["label"], dtype=np.int64).reshape(-1))
            except (OSError, KeyError) as error:
                raise unreadable(file, "cannot be read", error, remedy=_AGAIN) from error
        if not found:
            raise SweepError(f"{home}: has no *{part}*.h5: add it")
        return self._cut(home, np.concatenate(found)), np.concatenate(labels)

    def _npy(self, home: Path, part: str) -> tuple[Cloud, NDArray[np.int64]]:
        points, labels = (_array(home / f"{part}_{what}.npy") for what in ("points", "labels"))
        return self._cut(home, points.astype(np.float64)), labels.astype(np.int64).reshape(-1)

    def _cut(self, home: Path, points: Cloud) -> Cloud:
        if points.ndim != 3 or points.shape[2] < 3 or points.shape[1] < self.points:
            raise SweepError(
                f"{home}: clouds have shape {list(points.shape)}, wanted [N, {self.points} or "
                "more, 3]: lower `points`"
            )
        return points[:, : self.points, :3]


_PATTERNS = {".off": "*/train/*.off", ".h5": "*train*.h5", ".npy": "train_points.npy"}
"""What says that a folder holds clouds of a kind."""
_AGAIN = "fetch it again"


def _kind(home: Path) -> str:
    return next((kind for kind, pattern in _PATTERNS.items() if inside(home, pattern)), "")


def _classes(home: Path) -> list[str]:
    """The class names; none where only numbers are known."""
    if _kind(home) == ".off":
        return sorted(
            {f.parts[-3] for part in ("train", "test") for f in inside(home, f"*/{part}/*.off")}
        )
    named = home / "shape_names.txt"
    return named.read_text().split() if named.is_file() else []


def _array(file: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise unreadable(file, "cannot be read", error, remedy=_AGAIN) from error


def read_off(file: Path) -> tuple[Cloud, NDArray[np.int64]]:
    """Read a mesh: vertices [V, 3] and triangles int64 [F, 3]; larger faces become fans.

    Raises:
        SweepError: The file is no OFF file.
    """
    try:
        words = file.read_text().split()
        # some of ModelNet40's files lack the space after OFF
        head = [words[0][3:]] if len(words[0]) > 3 else []
        numbers = [*head, *words[1:]]
        if words[0][:3] != "OFF":
            raise ValueError("does not begin with OFF")
        count, faces = int(numbers[0]), int(numbers[1])
        end = 3 + 3 * count
        vertices = np.array(numbers[3:end], dtype=np.float64).reshape(count, 3)
        triangles, place = [], end
        for _ in range(faces):
            corners = [int(word) for word in numbers[place + 1 : place + 1 + int(numbers[place])]]
            triangles += [[corners[0], *pair] for pair in zip(corners[1:], corners[2:])]  # noqa: B905
            place += 1 + len(corners)
        return vertices, np.array(triangles, dtype=np.int64).reshape(-1, 3)
    except (OSError, ValueError, IndexError) as error:
        raise unreadable(file, "is not a readable OFF file", error, remedy=_AGAIN) from error


def sampled(vertices: Cloud, triangles: NDArray[np.int64], count: int, name: str) -> Cloud:
    """Draw points evenly on a mesh's surface; always the same for one name."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    if not len(area) or area.sum() == 0:
        raise SweepError(f"{name}: has no surface: remove it")
    rng = seeds.numpy_generator("surface", name)
    face = rng.choice(len(area), size=count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    points: Cloud = a[face] + u * (b - a)[face] + v * (c - a)[face]
    return points


# The generated shapes: each gives points on a surface around the origin


def _sphere(rng: np.random.Generator, count: int) -> Cloud:
    points = rng.normal(size=(count, 3))
    unit: Cloud = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit


def _box(rng: np.random.Generator, count: int) -> Cloud:
    points = rng.uniform(-1, 1, (count, 3))
    points[np.arange(count), rng.integers(3, size=count)] = rng.choice([-1.0, 1.0], size=count)
    return points


def _disc(rng: np.random.Generator, count: int, height: float) -> Cloud:
    radius, angle = np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    return np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), np.full(count, height)], axis=1
    )


def _around(rng: np.random.Generator, radius: NDArray[Any], z: NDArray[Any]) -> Cloud:
    angle = rng.uniform(0, 2 * np.pi, len(z))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def _cylinder(rng: np.random.Generator, count: int) -> Cloud:
    caps = count // 6
    side = _around(rng, np.ones(count - 2 * caps), rng.uniform(-1, 1, count - 2 * caps))
    return np.concatenate([side, _disc(rng, caps, 1.0), _disc(rng, caps, -1.0)])


def _cone(rng: np.random.Generator, count: int) -> Cloud:
    base = count // 3
    share = np.sqrt(rng.random(count - base))  # 0 at the tip
    return np.concatenate([_around(rng, share, 1 - 2 * share), _disc(rng, base, -1.0)])


def _torus(rng: np.random.Generator, count: int) -> Cloud:
    tube = rng.uniform(0, 2 * np.pi, count)
    return _around(rng, 1 + 0.4 * np.cos(tube), 0.4 * np.sin(tube))


def _pyramid(rng: np.random.Generator, count: int) -> Cloud:
    base = count // 3
    floor = np.concatenate([rng.uniform(-1, 1, (base, 2)), np.full((base, 1), -1.0)], axis=1)
    share = np.sqrt(rng.random(count - base))
    along, side = rng.uniform(-1, 1, count - base), rng.integers(4, size=count - base)
    edge = np.where(side < 2, 1.0, -1.0)
    x, y = np.where(side % 2 == 0, (along, edge), (edge, along))
    return np.concatenate([floor, np.stack([share * x, share * y, 1 - 2 * share], axis=1)])


def _capsule(rng: np.random.Generator, count: int) -> Cloud:
    ends = count // 2
    side = _around(rng, np.full(count - ends, 0.5), rng.uniform(-0.75, 0.75, count - ends))
    round_ends = 0.5 * _sphere(rng, ends)
    round_ends[:, 2] += np.where(round_ends[:, 2] >= 0, 0.75, -0.75)
    return np.concatenate([side, round_ends])


def _bracket(rng: np.random.Generator, count: int) -> Cloud:
    upright = count // 2
    parts = [_box(rng, count - upright), _box(rng, upright)]
    flat = parts[0] * [1.0, 0.5, 0.25] + [0, 0, -0.75]
    wall = parts[1] * [0.25, 0.5, 0.75] + [-0.75, 0, 0.25]
    return np.concatenate([flat, wall])


SHAPES: dict[str, Callable[[np.random.Generator, int], Cloud]] = {
    "sphere": _sphere,
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "pyramid": _pyramid,
    "capsule": _capsule,
    "bracket": _bracket,
}


@dataclass(frozen=True, kw_only=True)
class Solids(Fileless):
    """Generated clouds of eight shapes."""

    points: Annotated[int, Field(ge=16, le=CEILING)] = 256
    """Points of a cloud."""
    per_class: Count = 170
    """Training clouds of a shape."""
    test_per_class: Count = 40
    """Test clouds of a shape."""

    names: ClassVar[dict[str, str]] = {
        "solids": "generated clouds of 256 points on 8 shapes, 170 + 40 of each"
    }
    idle = frozenset({"size"})
    task = "points"
    shape = (256, 3)
    order: ClassVar[int] = 40

    def read(self, root: Path) -> Splits:
        """Draw both splits."""
        parts = (("train", self.per_class), ("test", self.test_per_class))
        train, test = (draw_solids(name, count, self.points) for name, count in parts)
        return Splits(train, test)


def draw_solids(name: str, per_class: int, points: int) -> SampleSet:
    """Draw clouds of every shape."""
    rng, found = seeds.numpy_generator("solids", name), []
    for shape in SHAPES.values():
        for _ in range(per_class):
            cloud = shape(rng, points) * rng.uniform(0.7, 1.3, 3)
            angle = rng.uniform(0, 2 * np.pi)
            cosine, sine = np.cos(angle), np.sin(angle)
            cloud = cloud @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
            found.append(cloud + rng.normal(0, _JITTER, cloud.shape))
    labels = np.repeat(np.arange(len(SHAPES)), per_class)
    order = rng.permutation(len(labels))
    return clouds(np.stack(found)[order], torch.from_numpy(labels[order]), tuple(SHAPES))
