"""Folders of other people: hidden files, other layouts of Parquet, pointers of Git LFS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.parts import reflections
from sweeper.core.errors import SweepError
from sweeper.data import Dataset, at_hand, open_dataset
from tests.support.pictures import picture, png, write_boxes, write_folder, write_parquet

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
LEFT = (".ipynb_checkpoints/x.png", "._x.png", ".DS_Store", "__MACOSX/._x.png")
"""What notebooks and file managers leave."""
IMAGES = [picture(number) for number in range(6)]
LABELS = [0, 1, 2] * 2


def opened(root: Path, **options: Any) -> Dataset:
    return open_dataset({"dataset": "own", **options}, root, root / "cache")


# One writer a reader: what it writes, and the options that read it


def parquet(home: Path) -> dict[str, Any]:
    for part in ("train", "test"):
        write_parquet(home / f"{part}.parquet", IMAGES, LABELS)
    return {}


def folder(home: Path) -> dict[str, Any]:
    for part in ("train", "test"):
        write_folder(home / part, IMAGES, LABELS)
    return {}


def clips(home: Path) -> dict[str, Any]:
    for part in ("train", "test"):
        for number, image in enumerate(IMAGES):
            place = home / part / "ab"[number % 2] / str(number)
            place.mkdir(parents=True)
            image.save(place / "0.png")
    return {"frames": 1}


def meshes(home: Path) -> dict[str, Any]:
    for part in ("train", "test"):
        for name in ("a", "b"):
            file = home / name / part / f"{name}.off"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    return {"points": 8}


def arrays(home: Path) -> dict[str, Any]:
    home.mkdir()
    for part in ("train", "test"):
        np.save(home / f"{part}_points.npy", np.random.default_rng(0).normal(size=(2, 8, 3)))
        np.save(home / f"{part}_labels.npy", np.arange(2))
    return {"points": 8}


def sentences(home: Path) -> dict[str, Any]:
    home.mkdir()
    for part in ("train", "test"):
        for language in ("en", "de"):
            (home / f"{part}.{language}").write_text("one two\nthree four\n")
    return {"source": "en", "target": "de", "vocabulary": 300}


def boxes(home: Path) -> dict[str, Any]:
    for part in ("train", "test"):
        write_boxes(home / f"{part}.parquet", map(png, IMAGES[:1]), [[(0, 0, 3, 3, 0)]], ["a"])
    return {"size": 8}


def coco(home: Path) -> dict[str, Any]:
    for part in ("train", "val"):
        (home / part).mkdir(parents=True)
        IMAGES[0].save(home / part / "0.png")
        box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3]}
        held = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [box]}
        held["categories"] = [{"id": 1, "name": "a"}]
        file = home / f"annotations/instances_{part}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(held))
    return {"size": 8}


def voc(home: Path) -> dict[str, Any]:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (home / name).mkdir(parents=True)
    for part in ("train", "test"):
        (home / f"ImageSets/Main/{part}.txt").write_text("0\n")
    IMAGES[0].save(home / "JPEGImages/0.png")
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax>"
    (home / "Annotations/0.xml").write_text(
        f"<annotation><object><name>a</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    return {"size": 8}


READERS = [parquet, folder, clips, meshes, arrays, sentences, boxes, coco, voc]


@pytest.mark.parametrize("write", READERS)
def test_hidden_files_are_nothing(write: Any, tmp_path: Path) -> None:
    options = write(tmp_path / "own")
    before = opened(tmp_path, **options)
    folders = [path for path in (tmp_path / "own").rglob("*") if path.is_dir()]
    for place in (tmp_path / "own", *folders):
        for name in LEFT:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(b"no picture")
    for path in list((tmp_path / "own").rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            path.with_name(f"._{path.name}").write_bytes(b"no picture")
    after = open_dataset({"dataset": "own", **options}, tmp_path, tmp_path / "another cache")
    assert after.digest == before.digest and after.train.classes == before.train.classes


def test_hidden_pictures_reflect_nothing(tmp_path: Path) -> None:
    IMAGES[0].save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"no picture")
    assert [path.name for path in reflections.files(str(tmp_path), 9)] == ["a.png"]


@pytest.mark.parametrize("write", READERS)
def test_pointers_of_git_lfs_are_called_so(write: Any, tmp_path: Path) -> None:
    options = write(tmp_path / "own")
    for path in (tmp_path / "own").rglob("*"):
        if path.is_file() and path.suffix != ".txt":
            path.write_bytes(POINTER)
    with pytest.raises(SweepError, match="is a pointer of Git LFS, not the file itself: run `git"):
        opened(tmp_path, **options)


@pytest.mark.parametrize("broken", ["a/0003.png", "b/0001.png"])
def test_a_file_that_cannot_be_read_is_named_by_its_path(broken: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "own/train", IMAGES, [0, 1] * 3, ("a", "b"))
    (tmp_path / "own/train" / broken).write_bytes(b"no picture")
    with pytest.raises(SweepError, match=f"image .*own/train/{broken}: is not a readable image"):
        opened(tmp_path, test_share=0.5)


# Where Parquet files lie


def written(home: Path, *files: str) -> None:
    for file in files:
        test = any(word in file.lower() for word in ("test", "val"))
        images = [picture(100 + number) for number in range(6)] if test else IMAGES
        write_parquet(home / file, images, LABELS)


@pytest.mark.parametrize(
    "files",
    [
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("train/part-0-c0de.snappy.parquet", "test/part-0-c0de.snappy.parquet"),
        ("Train.parquet", "Test.parquet"),
        ("data/train-00000-of-00001-0af3.parquet", "data/Val.parquet"),
        ("some config/train.parquet", "some config/test.parquet"),
    ],
)
def test_parquet_is_found_where_hubs_and_people_leave_it(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    written(tmp_path / "cifar10", *files)
    parquet(tmp_path / "own")
    options = {"dataset": "cifar10"}
    assert at_hand(options, tmp_path, tmp_path / "cache")
    found = open_dataset(options, tmp_path, tmp_path / "cache")
    assert len(found.train) == 6 and len(found.test) == 6
    assert not (found.train.images == found.test.images).all()
    written(tmp_path / "plain", "train.parquet", "test.parquet")
    plain = open_dataset({"dataset": "plain"}, tmp_path, tmp_path / "cache")
    assert plain.digest == found.digest


def test_shards_in_a_folder_of_a_split_are_counted(tmp_path: Path) -> None:
    written(tmp_path / "own", "train/0000.parquet", "train/0001.parquet")
    assert len(opened(tmp_path, test_share=0.5).train) == 6
    (tmp_path / "own/train/0000.parquet").unlink()
    with pytest.raises(SweepError, match="1 train files where 2 make one split"):
        opened(tmp_path, test_share=0.5)


def test_several_configurations_are_named(tmp_path: Path) -> None:
    written(tmp_path / "own", "small/train.parquet", "large/train.parquet")
    with pytest.raises(SweepError, match=r"2 data sets, large, small: write `path: .*own/large`"):
        opened(tmp_path, test_share=0.5)
    assert len(opened(tmp_path, path=str(tmp_path / "own/small"), test_share=0.5).train) == 3


@pytest.mark.parametrize("name", ["cifar10", "own"])
def test_parquet_of_no_layout_is_named_and_nothing_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets, "CIFAR10", None)  # asked, it would fail
    written(tmp_path / name, "images_1.parquet", "deep/er/images_2.parquet")
    with pytest.raises(
        SweepError, match=r"holds images_1\.parquet, deep/er/images_2\.parquet, but no train\.par"
    ):
        open_dataset({"dataset": name}, tmp_path, tmp_path / "cache")
    with pytest.raises(SweepError, match=r"holds images_1\.parquet.*`path` of the training file"):
        open_dataset({"dataset": "x", "path": str(tmp_path / name)}, tmp_path, tmp_path / "cache")
    entry = {"dataset": name, "path": str(tmp_path / name / "images_1.parquet"), "test_share": 0.5}
    assert len(open_dataset(entry, tmp_path, tmp_path / "cache").train) == 3


def test_folders_of_splits_are_found_whatever_their_case(tmp_path: Path) -> None:
    write_folder(tmp_path / "own/Train", IMAGES, LABELS)
    write_folder(tmp_path / "own/Val", IMAGES, LABELS)
    assert len(opened(tmp_path).test) == 6
