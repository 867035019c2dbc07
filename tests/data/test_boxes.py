"""Images with boxes: the three layouts of files, and the generated scenes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sweeper.core.errors import SweepError
from sweeper.data import open_dataset
from sweeper.data.boxes import DIGITS, BoxFiles, draw_scenes
from tests.support.pictures import write_boxes
from tests.support.places import data_folder

Boxes = list[tuple[float, float, float, float, int]]
"""x, y, width, height, class."""
TRAIN: list[Boxes] = [[(4, 2, 8, 4, 1)], [], [(0, 0, 20, 5, 0), (10, 5, 5, 5, 1), (3, 3, 0, 4, 0)]]
TEST: list[Boxes] = [[(15, 5, 10, 10, 0)]]
WANTED = {
    "train": [
        [[8, 8, 24, 24, 1]],
        [],
        [[0, 0, 40, 20, 0], [20, 20, 30, 40, 1]],
    ],
    "test": [[[30, 20, 40, 40, 0]]],
}
"""As they lie in images of 40x40 made of 20x10: the box of no width is gone, one is cut."""


def png(level: int) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.full((10, 20, 3), level, dtype=np.uint8)).save(held, "png")
    return held.getvalue()


def parquet(home: Path, split: str, given: list[Boxes], names: list[str] | None) -> None:
    blobs = [png(10 * number) for number in range(len(given))]
    write_boxes(home / f"{split}.parquet", blobs, given, names)


def coco(home: Path, split: str, given: list[Boxes]) -> Path:
    folder, listed = home / f"{split}2017", home / "annotations"
    folder.mkdir(parents=True)
    listed.mkdir(exist_ok=True)
    held: dict[str, Any] = {"images": [], "annotations": []}
    held["categories"] = [{"id": 9, "name": "cell"}, {"id": 4, "name": "blob"}]
    for number, boxes in enumerate(given):
        (folder / f"{number}.png").write_bytes(png(10 * number))
        held["images"].append({"id": 100 + number, "file_name": f"{number}.png"})
        for *box, kind in boxes:
            one = {"image_id": 100 + number, "bbox": box, "category_id": (4, 9)[kind]}
            held["annotations"].append({**one, "iscrowd": 0})
    crowd = {"image_id": 100, "bbox": [0, 0, 9, 9], "category_id": 4, "iscrowd": 1}
    held["annotations"].append(crowd)
    file = listed / f"instances_{split}2017.json"
    file.write_text(json.dumps(held))
    return file


def voc(home: Path, split: str, given: list[Boxes]) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{split}_{number}" for number in range(len(given))]
    (home / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
    for number, (name, boxes) in enumerate(zip(names, given, strict=True)):
        (home / f"JPEGImages/{name}.jpg").write_bytes(png(10 * number))
        objects = "".join(
            f"<object><name>{('blob', 'cell')[kind]}</name><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for x, y, w, h, kind in boxes
        )
        (home / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")


def written(home: Path, layout: str, splits: tuple[str, ...] = ("train", "test")) -> Path:
    for split, given in zip(splits, (TRAIN, TEST), strict=False):
        if layout == "parquet":
            parquet(home, split, given, ["blob", "cell"])
        elif layout == "coco":
            coco(home, split, given)
        else:
            voc(home, split, given)
    return home


def opened(home: Path, tmp_path: Path, **options: object):
    entry = {"dataset": "cells", "path": str(home), "size": 40, **options}
    return open_dataset(entry, tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("layout", ["parquet", "coco", "voc"])
def test_a_layout_is_told_by_its_content_and_read(tmp_path: Path, layout: str) -> None:
    found = opened(written(tmp_path / "cells", layout), tmp_path)
    assert found.train.task == "boxes" and found.train.classes == ("blob", "cell")
    assert not found.train.labelled and found.train.labels.dtype == torch.float32
    for split, part in (("train", found.train), ("test", found.test)):
        assert part.images.shape == (len(WANTED[split]), 3, 40, 40)
        assert part.labels.shape[1:] == (3, 5), "two at most, and a row to spare"
        kept = [rows[rows[:, 4] >= 0].tolist() for rows in part.labels]
        assert kept == WANTED[split]
        assert bool((part.labels[part.labels[..., 4] < 0] == -1).all())
    assert found.train.images[2].unique().tolist() == [20], "each box with its image"


def test_parquet_of_images_alone_stays_with_its_source(tmp_path: Path) -> None:
    image = pa.array([{"bytes": png(k), "path": ""} for k in range(4)])
    table = pa.table({"image": image, "label": [0, 1, 0, 1]})
    (tmp_path / "cells").mkdir()
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / "cells" / f"{split}.parquet")
    assert opened(tmp_path / "cells", tmp_path, size=16).train.task == "image"
    assert BoxFiles(name="cells", path=str(tmp_path / "cells")).size == 96


def test_classes_without_names_are_their_numbers(tmp_path: Path) -> None:
    for split, given in (("train", TRAIN), ("test", TEST)):
        parquet(tmp_path / "cells", split, given, None)
    assert opened(tmp_path / "cells", tmp_path).train.classes == ("0", "1")


def test_a_share_is_held_out_where_there_is_no_test_split(tmp_path: Path) -> None:
    home = tmp_path / "cells"
    parquet(home, "train", TRAIN * 4, ["blob", "cell"])
    with pytest.raises(SweepError, match="give `test_share: 0.2`"):
        opened(home, tmp_path)
    one, again = (opened(home, tmp_path, test_share=0.25) for _ in range(2))
    assert (len(one.train), len(one.test)) == (9, 3) and one.digest == again.digest


def broken(home: Path, what: str) -> None:
    """Spoil one file of a layout."""
    if what == "category":
        parquet(home, "train", [[(1, 1, 4, 4, 7)]], ["blob", "cell"])
    elif what == "image":
        (home / "train2017" / "1.png").unlink()
    elif what == "json":
        (home / "annotations" / "instances_train2017.json").write_text("[1]")
    elif what == "away":
        file = home / "annotations" / "instances_train2017.json"
        file.write_text(file.read_text().replace('"1.png"', '"../../secret.png"'))
        (home.parent / "secret.png").write_bytes(png(1))
    elif what == "list":
        (home / "ImageSets/Main/train.txt").write_text("train_0\n../../secret")
    elif what == "bomb":
        text = '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><annotation>&d;</annotation>'
        (home / "Annotations/train_0.xml").write_text(text)
    elif what == "corner":
        (home / "Annotations/train_0.xml").write_text("<a><object><name>cell</name></object></a>")


@pytest.mark.parametrize(
    ("layout", "what", "said"),
    [
        ("parquet", "category", "a box is of class 7, but there are 2 class names"),
        ("coco", "image", "1.png: no such file in .*train2017 or .*images"),
        ("coco", "json", "is not COCO's JSON of instances .*: correct it"),
        ("coco", "away", "leads out of its folder"),
        ("voc", "list", "leads out of its folder"),
        ("voc", "bomb", r"train_0.xml: is not Pascal VOC's XML \(it has a DOCTYPE"),
        ("voc", "corner", "train_0.xml: is not Pascal VOC's XML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, layout: str, what: str, said: str
) -> None:
    home = written(tmp_path / "cells", layout)
    broken(home, what)
    with pytest.raises(SweepError, match=said):
        opened(home, tmp_path)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = written(tmp_path / "cells", "coco")
    with pytest.raises(SweepError, match="size: needs a whole number, not None"):
        opened(home, tmp_path, size=None)
    monkeypatch.setattr("sweeper.data.base.find_spec", lambda name: None)
    with pytest.raises(SweepError, match=r"boxes need torchmetrics and pycocotools: .*detection"):
        opened(home, tmp_path)


# The generated scenes

SHAPES = np.ones((10, 8, 6))


def test_scenes_are_drawn_alike_with_their_boxes_on_their_objects() -> None:
    kinds = np.arange(10)
    one, other = (draw_scenes("a", 30, SHAPES, kinds) for _ in range(2))
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert one.images.shape == (30, 3, 96, 96) and one.classes == DIGITS
    objects = (one.labels[..., 4] >= 0).sum(1)
    assert set(objects.tolist()) == {2, 3, 4}, "a row is left for one more"
    for image, rows in zip(one.images, one.labels, strict=True):
        for x1, y1, x2, y2, kind in rows[rows[:, 4] >= 0].int().tolist():
            assert 20 <= y2 - y1 <= 34 and (x2 - x1) == (y2 - y1) * 6 // 8 and 0 <= kind < 5
            assert min(x1, y1) >= 0 and max(x2, y2) <= 96
            middle = image[:, (y1 + y2) // 2, (x1 + x2) // 2]
            assert int(middle.max()) >= 150, "there is ink"


def test_objects_of_a_scene_hardly_touch() -> None:
    labels = draw_scenes("a", 60, SHAPES, np.arange(10)).labels
    for rows in labels:
        held = rows[rows[:, 4] >= 0][:, :4]
        low = torch.maximum(held[:, None, :2], held[None, :, :2])
        high = torch.minimum(held[:, None, 2:], held[None, :, 2:])
        shared = (high - low).clamp(min=0).prod(2).fill_diagonal_(0)
        area = (held[:, 2:] - held[:, :2]).prod(1)
        assert bool((shared <= 0.0501 * torch.minimum(area[:, None], area)).all())


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "options", "counts", "boxes"),
    [("bccd", {}, (205, 72), 2804), ("coco128", {"test_share": 0.25}, (96, 32), None)],
)
def test_real_sets_are_read(
    name: str, options: dict[str, Any], counts: tuple[int, int], boxes: int | None, tmp_path: Path
) -> None:
    if (root := data_folder()) is None:
        pytest.skip("needs the Parquet data sets: set SWEEPER_DATA")
    found = open_dataset({"dataset": name, **options}, root, tmp_path / "cache")
    assert (len(found.train), len(found.test)) == counts and found.train.task == "boxes"
    assert len(found.train.classes) == {"bccd": 3, "coco128": 80}[name]
    held = found.train.labels[found.train.labels[..., 4] >= 0]
    assert bool((held[:, 2:4] > held[:, :2]).all()) and float(held[:, :4].max()) <= 96
    assert boxes is None or len(held) == boxes
