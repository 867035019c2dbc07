"""Point clouds: ModelNet40's kinds of files, and the generated solids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sweeper.core.errors import SweepError
from sweeper.data import open_dataset
from sweeper.data.points import SHAPES, draw_solids, read_off, sampled

CUBE = """OFF
8 6 0
-1 -1 -1
1 -1 -1
1 1 -1
-1 1 -1
-1 -1 1
1 -1 1
1 1 1
-1 1 1
4 0 1 2 3
4 4 5 6 7
4 0 1 5 4
4 2 3 7 6
4 0 3 7 4
4 1 2 6 5
"""


def opened(home: Path, tmp_path: Path, **options: object):
    entry = {"dataset": "shapes", "path": str(home), **options}
    return open_dataset(entry, tmp_path, tmp_path / "cache")


def off(tmp_path: Path, text: str = CUBE) -> Path:
    home = tmp_path / "shapes"
    for name in ("cube", "box"):
        for part in ("train", "test"):
            (home / name / part).mkdir(parents=True)
            (home / name / part / f"{name}_1.off").write_text(text)
    return home


def test_meshes_are_sampled_on_their_surface(tmp_path: Path) -> None:
    found = opened(off(tmp_path), tmp_path, points=500)
    assert found.train.task == "points" and found.train.classes == ("box", "cube")
    assert found.train.points.shape == (2, 500, 3) and found.train.labels.tolist() == [0, 1]
    assert found.mean == found.std == ()
    radius = found.train.points.norm(dim=2)
    assert float(radius.max()) == pytest.approx(1, abs=1e-4)
    vertices, triangles = read_off(tmp_path / "shapes/cube/train/cube_1.off")
    assert vertices.shape == (8, 3) and triangles.shape == (12, 3)
    cloud = sampled(vertices, triangles, 6000, "cube")
    assert np.allclose(np.abs(cloud).max(1), 1), "every point lies on a face"
    faces = [(np.isclose(cloud[:, k], s)).mean() for k in range(3) for s in (-1, 1)]
    assert min(faces) > 0.14 and max(faces) < 0.19, "evenly"


def test_a_header_without_a_space_is_read(tmp_path: Path) -> None:
    home = off(tmp_path, CUBE.replace("OFF\n8", "OFF8"))
    assert len(opened(home, tmp_path, points=64).train) == 2


@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_arrays_are_read(tmp_path: Path, kind: str) -> None:
    home, rng = tmp_path / "shapes", np.random.default_rng(0)
    home.mkdir()
    for part, count in (("train", 6), ("test", 3)):
        points, labels = rng.normal(size=(count, 40, 3)), np.arange(count) % 2
        if kind == "npy":
            np.save(home / f"{part}_points.npy", points.astype(np.float32))
            np.save(home / f"{part}_labels.npy", labels)
        else:
            h5py = pytest.importorskip("h5py")
            with h5py.File(home / f"ply_data_{part}0.h5", "w") as file:
                file["data"], file["label"] = points, labels[:, None]
    (home / "shape_names.txt").write_text("chair\nlamp\n")
    found = opened(home, tmp_path, points=32)
    assert found.train.points.shape == (6, 32, 3) and found.test.labels.tolist() == [0, 1, 0]
    assert found.train.classes == ("chair", "lamp")
    with pytest.raises(SweepError, match="lower `points`"):
        opened(home, tmp_path, points=64)


@pytest.mark.parametrize(
    "text", ["", "PLY\n1 0 0\n0 0 0", "OFF\n9 1 0\n0 0 0", "OFF\n2 0 0\n0 0 0 1"]
)
def test_a_file_that_is_no_mesh_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(SweepError, match=r"\.off: is not a readable OFF file"):
        opened(off(tmp_path, text), tmp_path, points=16)


def test_solids_are_drawn_alike_in_the_unit_ball() -> None:
    one, other = draw_solids("a", 5, 64), draw_solids("a", 5, 64)
    assert torch.equal(one.points, other.points) and torch.equal(one.labels, other.labels)
    assert one.points.shape == (40, 64, 3) and one.classes == tuple(SHAPES)
    assert torch.bincount(one.labels).tolist() == [5] * 8
    assert torch.allclose(one.points.mean(1), torch.zeros(40, 3), atol=1e-4)
    assert torch.allclose(one.points.norm(dim=2).amax(1), torch.ones(40), atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_a_solid_has_its_points_on_its_surface(name: str) -> None:
    x, y, z = SHAPES[name](np.random.default_rng(1), 300).T
    round_ = np.hypot(x, y)
    distance = {
        "sphere": np.sqrt(x**2 + y**2 + z**2) - 1,
        "box": np.maximum(np.maximum(abs(x), abs(y)), abs(z)) - 1,
        "cylinder": np.minimum(abs(round_ - 1), abs(abs(z) - 1)),
        "cone": np.minimum(abs(round_ - (1 - z) / 2), abs(z + 1)),
        "torus": np.hypot(round_ - 1, z) - 0.4,
        "pyramid": np.minimum(abs(np.maximum(abs(x), abs(y)) - (1 - z) / 2), abs(z + 1)),
        "capsule": np.hypot(round_, np.maximum(abs(z) - 0.75, 0)) - 0.5,
        "bracket": np.minimum(
            abs(np.maximum(np.maximum(abs(x), abs(y) * 2), abs(z + 0.75) * 4) - 1),
            abs(np.maximum(np.maximum(abs(x + 0.75) * 4, abs(y) * 2), abs(z - 0.25) / 0.75) - 1),
        ),
    }[name]
    assert np.abs(distance).max() < 1e-9
